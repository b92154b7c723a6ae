"""The report: finished runs described as one page of blocks, a function for each section."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from userlm.show import (
    assessed,
    claims,
    compared,
    detected,
    differences,
    evaluated,
    judged,
    measures,
    thresholds,
    verdicts,
)
from userlm.show.blocks import (
    Axis,
    Block,
    Chart,
    Figure,
    Group,
    Line,
    Page,
    Part,
    Point,
    Quote,
    Reasons,
    Row,
    Section,
    Series,
    Small,
    Table,
    Text,
    Transcripts,
    Value,
    Where,
)
from userlm.show.data import MAX_REASONS, by_count, first_ones, unscrubbed, usage_table
from userlm.show.finished import EXTRACTIVE, TURN_BINS, WORD_BINS, Finished
from userlm.show.formats import axis, json_text, percent, plain, plural
from userlm.show.transcripts import STOPS, transcript
from userlm.types import InputError

VERBS = (
    "import",
    "clean",
    "intents",
    "train",
    "ppl",
    "respond",
    "simulate",
    "serve",
    "score",
    "judge",
    "detect",
    "assess",
    "evaluate",
    "compare",
)
CURVE_POINTS = 240  # points; a longer log is averaged
WITHOUT_MODEL = "No language model wrote these intents: they hold the users’ own words."
STUB = (
    "A stub assistant answered there; what users did in these conversations says nothing about "
    "talk with a language model."
)

Runs = Sequence[Finished]
Colours = Mapping[str, str]


def describe(runs: Runs) -> Page:
    """Return the report of the runs. Raises `InputError` when there are none."""
    if not runs:
        raise InputError(
            "no runs given; give the folders of finished runs, such as runs/score"
        )
    runs = _distinct(runs)
    colours = measures.colours_of(runs)
    sections = (
        compared.section(runs),
        verdicts.section(runs),
        verdicts.published(runs),
        evaluated.section(runs),
        assessed.section(runs),
        differences.section(runs),
        assessed.side_by_side(runs),
        assessed.unmeasured(runs),
        _measures(runs, colours),
        judged.section(runs),
        detected.section(runs),
        _lengths(runs, colours),
        _training(runs, colours),
        _data(runs),
        _stops(runs),
        _usage(runs),
        thresholds.section(runs, colours),
        _guards(runs),
        compared.failed(runs),
        _conversations(runs, colours),
        _missing(runs),
        _manifest(runs),
    )
    counts = Counter(run.verb for run in runs)
    summary = ", ".join(f"{counts[verb]} {verb}" for verb in VERBS if counts[verb])
    lead = f"{plural(len(runs), 'finished run')}: {summary}."
    filled = [section for section in sections if section.blocks]
    return Page("User model report", lead, list(_notices(runs)), filled)


def _distinct(runs: Runs) -> Runs:
    """Return the runs with unique names, since two folders may have the same name."""
    seen: Counter[str] = Counter()
    named = []
    for run in runs:
        seen[run.name] += 1
        times = seen[run.name]
        named.append(run if times == 1 else replace(run, name=f"{run.name} ({times})"))
    return named


def _notices(runs: Runs) -> Iterator[Line]:
    for kind in sorted({kind for run in runs for kind in run.stubs}):
        names = ", ".join(run.name for run in runs if kind in run.stubs)
        why = WITHOUT_MODEL if kind == EXTRACTIVE else STUB
        badge = Quote(kind, 60, "badge")
        yield ("Without a model: ", badge, " in ", Quote(names, 1000), f". {why}")
    for run in runs:
        if left := unscrubbed(run.results.get("counts") or {}):
            name = Quote(run.name, 1000)
            advice = "; clean again with --scrub."
            yield ("Personal data: ", name, " keeps ", left, advice)


def _name(run: Finished, detail: str = "") -> Line:
    return (Quote(run.name, 60), Small(f"{run.verb}{detail}"))


def _table(head: Row, rows: Sequence[Row], look: str = "fixed") -> Sequence[Table]:
    """Return the table as a list of blocks, empty if it has no rows."""
    return [Table(head, rows, look)] if rows else []


def _reasons(counts: Iterable[tuple[str, int]]) -> Reasons:
    return Reasons(first_ones(by_count(counts), MAX_REASONS, "more reasons"))


# --- measures -------------------------------------------------------------------------------------


def _measures(runs: Runs, colours: Colours) -> Section:
    intro = (
        "Value, 95 % interval over clusters (people, intents or tasks; none below 5), n, the "
        "number measured, and the number of clusters; what could not be measured counts as "
        "missing, never as zero. The dashed line "
        "and the diamond are the human reference, measured by the same functions. ↑ higher is "
        "better, ↓ lower is better; without an arrow, close to the human reference is better."
    )
    columns = measures.columns_of(runs, colours)
    blocks = [*measures.blocks(columns), *claims.blocks(runs)]
    return Section("figures", "Figures", "Headline figures", blocks, intro)


def _missing(runs: Runs) -> Section:
    rows = []
    for run in runs:
        for (column, measure), whys in run.missing.items():
            name = Quote(f"{run.name} · {column}", 90)
            reasons = _reasons(whys.items())
            rows.append((name, Quote(measure, 60), f"{whys.total():,}", reasons))
    table = _table(("run", "measure", "items", "reasons"), rows, "")
    return Section(
        "missing",
        "Not measured",
        "What could not be measured, and why",
        table,
        where="details",
    )


# --- lengths, training ----------------------------------------------------------------------------


def _lengths(runs: Runs, colours: Colours) -> Section:
    # `intents` has the same conversations as `clean`, with more data, so it comes first.
    runs = sorted(runs, key=lambda run: (not run.is_human, run.verb == "clean"))
    turns = [(run, run.lengths.turns, _turns_note(run)) for run in runs]
    words = [(run, run.lengths.words, "user turns") for run in runs]
    groups = [
        *_histograms("User turns per conversation", TURN_BINS, turns, colours),
        *_histograms("Words per user turn", WORD_BINS, words, colours),
    ]
    intro = (
        "Each panel is one run, in shares of all. The outline is the human reference; humans are "
        "those of the test split, if there is one."
    )
    title = "How long humans and simulated users talk"
    blocks = [Group(groups, look="pair")] if groups else []
    return Section("lengths", "Lengths", title, blocks, intro, where="page")


def _turns_note(run: Finished) -> str:
    note = "conversations"
    if failed := len(run.lengths.failed):
        note += f"; {failed:,} failed ones have no known length"
    if limit := run.options.get("max_turns"):
        note += f"; limit {limit}"
    return note


def _histograms(
    title: str,
    bins: Sequence[str],
    found: Sequence[tuple[Finished, Sequence[int], str]],
    colours: Colours,
) -> Iterator[Group]:
    """Return each distinct set of humans, then each simulated user with the first set as
    outline."""
    shown: list[tuple[Finished, list[float], str]] = []
    for run, counts, note in found:
        total = sum(counts)
        shares = [100 * count / total for count in counts if total]
        known = run.is_human and any(shares == others for _, others, _ in shown)
        if total and not known:
            shown.append((run, shares, f"{total:,} {note}"))
    if not shown:
        return
    highest = max(max(shares) for _, shares, _ in shown)
    outline = shown[0][1] if shown[0][0].is_human else []
    figures = []
    for run, shares, note in shown:
        label = f"humans ({run.name})" if run.is_human else run.name
        over = [] if run.is_human else outline
        drawn = histogram(
            f"{plain(label)}, {note}", title.lower(), bins, shares, over, highest
        )
        figures.append(Figure(Quote(label, 70), note, drawn, colours[run.name]))
    yield Group(figures, title, look="plots")


def histogram(
    label: str,
    unit: str,
    bins: Sequence[str],
    shares: Sequence[float],
    outline: Sequence[float],
    highest: float,
) -> Chart:
    """Return shares in percent as bars, and those of the human reference as an outline."""
    corners = [(0.0, 0.0)]
    for i, share in enumerate(outline):
        corners += [(i, share), (i + 1, share)]
    corners.append((len(outline), 0))
    named = [
        f"{name}: {share:.0f} %"
        for name, share in zip(bins, shares, strict=True)
        if share
    ]
    places = [(i + 0.5, name) for i, name in enumerate(bins)]
    return Chart(
        f"{label}, by {unit}. {', '.join(named)}",
        Axis(unit, 0, len(bins), places),
        axis("% of all", 0, highest, 4),
        [Series(corners, "outline")] if outline else [],
        bars=shares,
    )


def _training(runs: Runs, colours: Colours) -> Section:
    figures = []
    trained = [run for run in runs if run.verb == "train"]
    for run in trained:
        note = tuple(_training_note(run))
        figures.append(
            Figure(Quote(run.name, 60), note, _loss_chart(run), colours[run.name])
        )
    averaged = any(len(run.log) > CURVE_POINTS for run in trained)
    intro = "Long logs are averaged over neighbouring steps." if averaged else ""
    blocks: list[Block] = [Group(figures, look="plots")] if figures else []
    blocks += _sample_counts(trained)
    return Section("training", "Training", "Training", blocks, intro)


def _sample_counts(trained: Runs) -> Iterator[Table]:
    """Yield the numbers of samples before and after the limit on tokens, under both policies."""
    rows: list[Row] = []
    for run in trained:
        if counts := run.results.get("sample_counts"):
            limit = run.results.get("max_tokens") or 0
            cells = [f"{counts[key]:,}" for key in ("all", "truncate", "drop")]
            rows.append((Quote(run.name, 60), *cells, f"{limit:,}"))
    if rows:
        head = ("run", "in all", "truncate", "drop", "--max-tokens")
        note = "What --max-tokens leaves with --overlong truncate, and with drop."
        yield Table(head, rows, "table", "Samples", note)


def _training_note(run: Finished) -> Iterator[Part]:
    yield "base "
    yield Quote(str(run.options.get("base")))
    for noun in ("parameter", "sample", "token", "loss token", "step"):
        count = run.results.get(f"{noun}s".replace(" ", "_"))
        if count is not None:
            yield f" · {plural(count, noun)}"
    values = {"final loss": run.results.get("loss")}
    for key, when in (("untrained", "before"), ("best", "best")):
        evaluated = run.results.get(key) or {}
        values[f"validation perplexity {when}"] = evaluated.get("valid_perplexity")
    for name, value in values.items():
        if value is not None:
            yield f" · {name} "
            yield Value(value)
    if len(run.log) < 2:
        yield " · fewer than two steps: no curve"


def _loss_chart(run: Finished) -> Chart | None:
    if len(run.log) < 2:
        return None
    points = thin(run.log, CURVE_POINTS)
    losses = [loss for _, loss in points]
    first_step, first_loss = run.log[0]
    last_step, last_loss = run.log[-1]
    told = f"{first_loss:.2f} at step {first_step}, {last_loss:.2f} at {last_step}"
    return Chart(
        f"Training loss of {plain(run.name)}: {told}",
        axis("optimizer step", min(0, first_step), max(1, last_step), 4),
        axis("loss, nats per target token", min(losses), max(losses), 4),
        [Series(points)],
        [Point(*points[0]), Point(*points[-1])],
    )


def thin(log: Sequence[tuple[int, float]], most: int) -> list[tuple[float, float]]:
    """Return at most `most` points; if there are more, neighbours are averaged."""
    size = math.ceil(len(log) / most)
    points = []
    for start in range(0, len(log), size):
        steps, losses = zip(*log[start : start + size], strict=True)
        points.append((fmean(steps), fmean(losses)))
    return points


# --- data -----------------------------------------------------------------------------------------


def _data(runs: Runs) -> Section:
    rows = []
    groups = []
    for run in runs:
        if run.tables:
            groups.append(
                Group(run.tables, Quote(run.name, 60), measures.HUMAN, "tables")
            )
        if (stage := run.stage) and run.verb != "assess":
            dropped = sum(count for _, count in stage.reasons)
            cells = []
            for count in (stage.incoming, stage.outgoing, dropped):
                cells.append("" if count is None else f"{count:,}")
            name = _name(run, f", {stage.unit}")
            rows.append((name, *cells, _reasons(stage.reasons), Reasons(stage.notes)))
    table = _table(
        ("stage", "in", "out", "dropped", "reasons", "also counted"), rows, ""
    )
    return Section("data", "Data", "Data processing", [*table, *groups])


# --- conversations --------------------------------------------------------------------------------


def _stops(runs: Runs) -> Section:
    counts = {}
    for run in runs:
        if run.verb in ("simulate", "respond"):
            counts[_name(run)] = Counter(run.results.get("stops") or {})
    seen = {stop for found in counts.values() for stop in found}
    stops = [stop for stop in dict.fromkeys([*STOPS, *sorted(seen)]) if stop in seen]
    rows = []
    for name, found in counts.items():
        rows.append(
            (name, *(f"{found[stop]:,}" for stop in stops), f"{found.total():,}")
        )
    head = [(Quote(stop, 40), Small(STOPS.get(stop, ""))) for stop in stops]
    table = _table(("run", *head, "all"), rows)
    return Section("endings", "Endings", "How conversations stopped", table)


def _usage(runs: Runs) -> Section:
    models = {}
    for run in runs:
        for role, usage in run.results.get("usage", {}).items():
            if usage is not None:
                models[f"{run.name}: {role} {run.options.get(role)}"] = usage
    tables = [usage_table(models)] if models else []
    where: Where = "details"
    if any(usage["cost"] is not None for usage in models.values()):
        where = "everywhere"
    return Section("usage", "Usage", "What was called", tables, where=where)


def _guards(runs: Runs) -> Section:
    rows = []
    for run in runs:
        if guard := run.results.get("guard"):
            turns = guard["turns"]
            drafts = f"{guard['drafts'] / turns:.2f}" if turns else ""
            rates = []
            for count in (guard["resampled"], guard["kept"], guard["stopped"]):
                rates.append((percent(count, turns), Small(f"{count:,}")))
            all_drafts = (drafts, Small(f"{guard['drafts']:,} in all"))
            faults = _reasons(guard["why"].items())
            rows.append((_name(run), f"{turns:,}", all_drafts, *rates, faults))
    intro = (
        "A draft that the guard rejects is resampled. If no draft passes, the one with the fewest "
        "faults is kept, or the conversation stops."
    )
    head = (
        "run",
        "turns",
        "drafts a turn",
        "resampled",
        "kept anyway",
        "stopped",
        "faults",
    )
    return Section(
        "guard", "Guard", "What the guard rejected", _table(head, rows), intro
    )


def _conversations(runs: Runs, colours: Colours) -> Section:
    groups = []
    for run in runs:
        if run.verb in ("simulate", "serve"):
            badges = [
                Quote(f"{kind}, without a model", 60, "badge") for kind in run.stubs
            ]
            user, assistant = (
                str(run.options.get(name)) for name in ("user", "assistant")
            )
            text = Text((Quote(user), " talks to ", Quote(assistant), ". ", *badges))
            shown = [transcript(talk, run) for talk in run.transcripts]
            talks = Transcripts(shown, run.total, f"{run.folder}/conversations.jsonl")
            groups.append(Group([text, talks], Quote(run.name, 60, colours[run.name])))
    intro = (
        "P(end) is the user model’s probability, before it generates a turn, of ending here. "
        "Characters that cannot be seen or change the direction of text are shown as ",
        Quote("\u202e"),
        ".",
    )
    title = "Conversations"
    return Section(
        "conversations", title, title, groups, intro, search=True, where="details"
    )


def _manifest(runs: Runs) -> Section:
    blocks = []
    for run in runs:
        rows: list[Row] = []
        for key, part in run.manifest.items():
            is_group = isinstance(part, dict)
            for name, value in (part if is_group else {key: part}).items():
                shown = "–" if value is None else json_text(value)
                rows.append(
                    (Quote(key) if is_group else "run", Quote(name), Quote(shown, 800))
                )
        if not run.manifest.get("prompts"):
            rows.append(("prompts", "none recorded", ""))
        table = Table(("part", "name", "value"), rows, "manifest")
        blocks.append(Group([table], _name(run), look="fold"))
    intro = "The command, its inputs and the host of each run: enough to run it again."
    return Section("manifest", "Manifest", "Manifest", blocks, intro, where="page")

"""The report: finished runs described as one page of blocks, a function for each section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from userlm.show import (
    assessed,
    claims,
    compared,
    detected,
    differences,
    evaluated,
    judged,
    measures,
    story,
    thresholds,
    training,
    verdicts,
)
from userlm.show.blocks import (
    Axis,
    Chart,
    Conversations,
    Figure,
    Group,
    Line,
    Page,
    Quote,
    Reasons,
    Row,
    Section,
    Series,
    Small,
    Table,
    Transcripts,
    Where,
)
from userlm.show.data import MAX_REASONS, by_count, first_ones, unscrubbed, usage_table
from userlm.show.finished import (
    EXTRACTIVE,
    SPEAKING,
    TURN_BINS,
    WORD_BINS,
    Finished,
)
from userlm.show.formats import axis, json_text, percent, plain, plural
from userlm.show.noted import Noted, Talks
from userlm.show.transcripts import STOPS, transcripts
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
WITHOUT_MODEL = "No language model wrote these intents: they hold the users’ own words."
STUB = (
    "A stub assistant answered there; what users did in these conversations says nothing about "
    "talk with a language model."
)

Runs = Sequence[Finished]
Colours = Mapping[str, str]


def describe(runs: Runs) -> Page:
    """Return the report of the runs: what was found, with its figures; the conversations; tables
    and plots; what was not measured; and how the runs were made. Raises `InputError` when there
    are no runs."""
    if not runs:
        raise InputError(
            "no runs given; give the folders of finished runs, such as runs/score"
        )
    runs = _distinct(runs)
    colours = measures.colours_of(runs)
    columns = measures.columns_of(runs, colours)
    concluded = list(story.users(runs))
    sections = (
        story.section(runs, concluded),
        story.figures(runs, concluded, columns, colours),
        assessed.side_by_side(runs),
        _conversations(runs),
        compared.section(runs),
        verdicts.section(runs),
        verdicts.published(runs),
        evaluated.section(runs),
        assessed.section(runs),
        differences.section(runs),
        _measures(runs, columns),
        judged.section(runs),
        detected.section(runs),
        thresholds.section(runs, colours),
        _lengths(runs, colours),
        training.section(runs, colours),
        _data(runs),
        _stops(runs),
        _guards(runs),
        _usage(runs),
        assessed.unmeasured(runs),
        _missing(runs),
        _manifest(runs),
    )
    counts = Counter(run.verb for run in runs)
    summary = ", ".join(f"{counts[verb]} {verb}" for verb in VERBS if counts[verb])
    lead = f"{plural(len(runs), 'finished run')}: {summary}."
    filled = [section for section in sections if section.blocks]
    notices = [*story.cautions(runs), *_notices(runs)]
    return Page(story.title(runs), lead, notices, filled)


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
        yield ("Without a model in ", Quote(names, 1000), ": ", badge, f". {why}")
    for run in runs:
        if left := unscrubbed(run.results.get("counts") or {}):
            name = Quote(run.name, 1000)
            advice = "; clean again with --scrub."
            yield ("Personal data: ", name, " keeps ", left, advice)
        if cut := _cut(run):
            yield ("Cut before the end: ", Quote(run.name, 1000), ": ", cut)


def _cut(run: Finished) -> str:
    """Say how many turns of a run were cut; empty if none was, or if it does not say."""
    counts: Counter[str] = Counter()
    if run.verb in ("simulate", "respond"):
        counts.update(run.results.get("cut", {}))
    if run.verb == "evaluate":
        for cell in run.results["cells"]:
            counts.update(cell.get("cut", {}))
    turns = " and ".join(
        plural(counts[role], f"{role} turn")
        for role in ("assistant", "user")
        if counts[role]
    )
    if not turns:
        return ""
    option = " (--max-answer-tokens)" if counts["assistant"] else ""
    return f"{turns}, by their maximum length{option} or a content filter."


def _name(run: Finished, detail: str = "") -> Line:
    return (Quote(run.name, 60), Small(f"{run.verb}{detail}"))


def _table(head: Row, rows: Sequence[Row], look: str = "fixed") -> Sequence[Table]:
    """Return the table as a list of blocks, empty if it has no rows."""
    return [Table(head, rows, look)] if rows else []


def _reasons(counts: Iterable[tuple[str, int]]) -> Reasons:
    return Reasons(first_ones(by_count(counts), MAX_REASONS, "more reasons"))


# --- measures -------------------------------------------------------------------------------------


def _measures(runs: Runs, columns: Sequence[measures.Column]) -> Section:
    intro = (
        "Value, 95 % interval, n, the number measured, and how many people, tasks or test items "
        "the interval is over (none below 5; where logs name nobody, conversations with one intent "
        "count as one person). What could not be measured counts as missing, never as zero. The "
        "human reference is measured by the same functions. ↑ higher is better, ↓ lower is better; "
        "without an arrow, close to the human reference is better."
    )
    blocks = [*measures.blocks(columns), *claims.blocks(runs)]
    told = (*measures.asked(runs, [one.label for one in columns]), intro)
    return Section("measures", "Measures", "All measures", blocks, told)


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


# --- lengths --------------------------------------------------------------------------------------


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
        if run.verb in SPEAKING:
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


def _conversations(runs: Runs) -> Section:
    shown: list[Transcripts] = []
    paths: set[str] = set()
    names: Counter[str] = Counter()
    noted: dict[tuple[str, str], Noted] = {}
    for run in runs:
        noted |= run.notes
    # Those of an assessment are also a run of their own, which may be given too; and those of a
    # comparison, about the hardest tasks, are in its runs.
    turn = {"assess": 0, "compare": 2}
    for run in sorted(runs, key=lambda run: turn.get(run.verb, 1)):
        for talks in run.talks:
            is_shown = run.verb == "compare" and names[talks.name]
            if talks.path in paths or is_shown:
                continue
            if run.verb != "compare":
                paths.add(talks.path)
            name = _name_of(run, talks)
            names[name] += 1
            if names[name] > 1:
                name = f"{name} ({names[name]})"
            known = replace(talks, notes={**noted, **talks.notes})
            shown.append(transcripts(known, name, run.options.get("keep_turns") or 0))
    intro = (
        "P(end) is the user model’s probability, before it generates a turn, of ending here. "
        "Characters that cannot be seen or change the direction of text are shown as ",
        Quote("\u202e"),
        ".",
    )
    title = "Conversations"
    blocks = [Conversations(shown)] if shown else []
    return Section("conversations", title, title, blocks, intro, where="details")


def _name_of(run: Finished, talks: Talks) -> str:
    """Return the name of a run of conversations, which is also in links to them."""
    match run.verb:
        case "simulate" | "serve":
            return run.folder.resolve().name
        case "assess":
            return f"{run.name}/{talks.name}"
    return talks.name


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

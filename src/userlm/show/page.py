"""The report: finished runs described as one page of blocks, a function for each section."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from userlm.show import measures, thresholds
from userlm.show.blocks import (
    Axis,
    Badge,
    Chart,
    Counts,
    Figure,
    Group,
    Line,
    Page,
    Panel,
    Part,
    Point,
    Quote,
    Reasons,
    Section,
    Series,
    Small,
    Table,
    Text,
    Transcripts,
    Value,
)
from userlm.show.data import MAX_REASONS, by_count, first_ones
from userlm.show.finished import EXTRACTIVE, TURN_BINS, WORD_BINS, Finished
from userlm.show.formats import axis, finite, json_text, number, percent, plain, plural
from userlm.show.transcripts import STOPS, transcript
from userlm.types import InputError

VERBS = ("import", "clean", "intents", "train", "ppl", "respond", "simulate", "score")
CURVE_POINTS = 240  # a longer log is averaged
WITHOUT_MODEL = (
    "These intents were picked from the users’ own words, not written by a language model."
)
STUB = "A stub assistant answered here; the figures say nothing about a language model."

Runs = Sequence[Finished]
Colours = Mapping[str, str]


def describe(runs: Runs) -> Page:
    """Return the report of the runs. Raises `InputError` when there are none."""
    if not runs:
        raise InputError("no runs given; give the folders of finished runs, such as runs/score")
    runs = _distinct(runs)
    colours = measures.colours_of(runs)
    panels = measures.panels(measures.columns_of(runs, colours))
    sections = (
        _headline(panels),
        _measures(panels),
        _lengths(runs, colours),
        _training(runs, colours),
        _data(runs),
        _stops(runs),
        thresholds.section(runs, colours),
        _guards(runs),
        _conversations(runs, colours),
        _missing(runs),
        _manifest(runs),
    )
    counts = Counter(run.verb for run in runs)
    summary = ", ".join(f"{counts[verb]} {verb}" for verb in VERBS if counts[verb])
    return Page(
        title="User model report",
        lead=f"{plural(len(runs), 'finished run')}: {summary}.",
        notices=tuple(_notices(runs)),
        sections=tuple(section for section in sections if section.blocks),
    )


def _distinct(runs: Runs) -> Runs:
    """The runs with different names: two folders may have the same."""
    seen: Counter[str] = Counter()
    named = []
    for run in runs:
        seen[run.name] += 1
        times = seen[run.name]
        named.append(run if times == 1 else replace(run, name=f"{run.name} ({times})"))
    return named


def _notices(runs: Runs) -> Iterator[Line]:
    for kind in sorted({kind for run in runs for kind in run.stubs}):
        names = [Quote(run.name) for run in runs if kind in run.stubs]
        separated = [part for name in names for part in (", ", name)][1:]
        why = WITHOUT_MODEL if kind == EXTRACTIVE else STUB
        yield ("Without a model: ", Badge(kind), " in ", *separated, f". {why}")


def _name(run: Finished, detail: str = "") -> Line:
    return (Quote(run.name, 60), Small(f"{run.verb}{detail}"))


def _table(head: tuple[Line, ...], rows: Sequence[tuple[Line, ...]], look: str = "fixed") -> Any:
    """The table as the blocks of a section; without rows there are none."""
    return (Table(head, tuple(rows), look=look),) if rows else ()


def _reasons(counts: Counts) -> Reasons:
    return Reasons(first_ones(counts, MAX_REASONS, "more reasons"))


# --- measures -------------------------------------------------------------------------------------


def _headline(panels: Sequence[Panel]) -> Section:
    shown = tuple(panel for panel in panels if not measures.is_variant(panel))
    intro = (
        "Value and 95 % interval, from resampling whole people, intents or tasks. The dashed line "
        "and the diamond are the human reference, measured by the same functions."
    )
    blocks = (Group(shown, look="panels"),) if shown else ()
    return Section("figures", "Figures", "Headline figures", blocks, intro)


def _measures(panels: Sequence[Panel]) -> Section:
    intro = (
        "Value, 95 % interval and n, the number measured; what could not be measured is counted "
        "as missing and is never a zero. ↑ higher is better, ↓ lower is better; without an arrow, "
        "close to the human reference is better."
    )
    blocks = tuple(measures.tables(panels))
    return Section("measures", "Measures", "All measures", blocks, intro)


def _missing(runs: Runs) -> Section:
    rows = []
    for run in runs:
        for (column, measure), whys in run.missing.items():
            name = Quote(f"{run.name} · {column}", 90)
            reasons = _reasons(by_count(whys.items()))
            rows.append((name, Quote(measure, 60), f"{whys.total():,}", reasons))
    table = _table(("run", "measure", "items", "reasons"), rows, "")
    return Section("missing", "Not measured", "What was not measured, and why", table)


# --- lengths, training ----------------------------------------------------------------------------


def _lengths(runs: Runs, colours: Colours) -> Section:
    """Each distinct set of humans once, then each simulated user."""
    turns = []
    words = []
    # `intents` holds the conversations that `clean` holds, with more about them: it comes first.
    for run in sorted(runs, key=lambda run: (not run.is_human, run.verb == "clean")):
        if lengths := run.lengths:
            failed = f"; {lengths.failed:,} that failed have no known length"
            limit = run.options.get("max_turns")
            note = "conversations" + failed * bool(lengths.failed)
            turns.append((run, lengths.turns, f"{note}; limit {limit}" if limit else note))
            words.append((run, lengths.words, "user turns"))
    groups = (
        *_histograms(
            "User turns per conversation", "user turns in a conversation", TURN_BINS, turns, colours
        ),
        *_histograms("Words per user turn", "words in a user turn", WORD_BINS, words, colours),
    )
    intro = (
        "Each panel is one run, in shares of all. The outline is the human reference; humans are "
        "those of the test split, if there is one."
    )
    blocks = (Group(groups, look="pair"),) if all(len(g.blocks) < 2 for g in groups) else groups
    title = "How long humans and simulated users talk"
    return Section("lengths", "Lengths", title, blocks if groups else (), intro)


def _histograms(
    title: str,
    unit: str,
    bins: tuple[str, ...],
    found: Sequence[tuple[Finished, tuple[int, ...], str]],
    colours: Colours,
) -> Iterator[Group]:
    """A group of histograms on one scale, with the first set of humans as outline; or nothing."""
    shown: list[tuple[Finished, list[float], str]] = []
    for run, counts, note in found:
        total = sum(counts)
        shares = [100 * count / total for count in counts if total]
        known = run.is_human and any(shares == others for _, others, _ in shown)
        if total and not known:
            shown.append((run, shares, f"{total:,} {note}"))
    highest = max((max(shares) for _, shares, _ in shown), default=0)
    figures = []
    for run, shares, note in shown:
        label = f"humans ({run.name})" if run.is_human else run.name
        first = shown[0]
        outline = first[1] if first[0].is_human and not run.is_human else []
        drawn = histogram(f"{plain(label)}, {note}", bins, shares, outline, highest, unit)
        figures.append(Figure(Quote(label, 70), note, drawn, colours[run.name]))
    if figures:
        yield Group(tuple(figures), title, look="plots")


def histogram(
    label: str,
    bins: Sequence[str],
    shares: Sequence[float],
    outline: Sequence[float],
    highest: float,
    unit: str,
) -> Chart:
    """Return shares in percent as bars, and those of the human reference as an outline."""
    corners = [(0.0, 0.0)]
    for i, share in enumerate(outline):
        corners += [(i, share), (i + 1, share)]
    corners.append((len(outline), 0))
    named = [f"{name}: {share:.0f} %" for name, share in zip(bins, shares, strict=True) if share]
    places = tuple((i + 0.5, name) for i, name in enumerate(bins) if i % 2 == 0)  # all would touch
    return Chart(
        f"{label}, by {unit}. {', '.join(named)}",
        Axis(unit, 0, len(bins), places),
        axis("% of all", 0, highest, 4),
        (Series(tuple(corners), "outline"),) if outline else (),
        bars=tuple(shares),
    )


def _training(runs: Runs, colours: Colours) -> Section:
    figures = []
    averaged = False
    for run in runs:
        if run.verb == "train":
            averaged |= len(run.log) > CURVE_POINTS
            note = tuple(_training_note(run))
            figures.append(Figure(Quote(run.name, 60), note, _loss_chart(run), colours[run.name]))
    intro = "Long logs are averaged over neighbouring steps." if averaged else ""
    blocks = (Group(tuple(figures), look="plots"),) if figures else ()
    return Section("training", "Training", "Training", blocks, intro)


def _training_note(run: Finished) -> Iterator[Part]:
    results = run.results
    yield "base "
    yield Quote(str(run.options.get("base")))
    for name in ("parameters", "samples", "steps"):
        count = finite(results.get(name))
        if count is not None:
            yield f" · {plural(int(count), name.removesuffix('s'))}"
    before = results.get("untrained") or {}
    best = results.get("best") or {}
    for name, found in (
        ("final loss", results.get("loss")),
        ("validation perplexity before", before.get("valid_perplexity")),
        ("validation perplexity best", best.get("valid_perplexity")),
    ):
        value = finite(found)
        if value is not None:
            yield f" · {name} "
            yield Value(value, number(value))
    if len(run.log) < 2:
        yield " · fewer than two steps: no curve"


def _loss_chart(run: Finished) -> Chart | None:
    if len(run.log) < 2:
        return None
    points = thin(run.log, CURVE_POINTS)
    losses = [loss for _, loss in points]
    (first_step, first_loss), (last_step, last_loss) = run.log[0], run.log[-1]
    told = f"{first_loss:.2f} at step {first_step}, {last_loss:.2f} at {last_step}"
    return Chart(
        f"Training loss of {plain(run.name)}: {told}",
        axis("optimizer step", min(0.0, first_step), max(1.0, last_step), 4),
        axis("loss, nats per target token", min(losses), max(losses), 4),
        (Series(tuple(points)),),
        (Point(*points[0]), Point(*points[-1])),
    )


def thin(log: Sequence[tuple[int, float]], most: int) -> list[tuple[float, float]]:
    """Return at most `most` points: the means of neighbours, if there are more."""
    size = math.ceil(len(log) / most)
    points = []
    for start in range(0, len(log), size):
        steps, losses = zip(*log[start : start + size], strict=True)
        points.append((sum(steps) / len(steps), sum(losses) / len(losses)))
    return points


# --- data -----------------------------------------------------------------------------------------


def _data(runs: Runs) -> Section:
    rows = []
    groups = []
    for run in runs:
        if run.tables:
            groups.append(Group(run.tables, Quote(run.name, 60), measures.HUMAN, "tables"))
        if stage := run.stage:
            dropped = sum(count for _, count in stage.reasons)
            counts = (stage.incoming, stage.outgoing, dropped)
            cells = ["" if count is None else f"{count:,}" for count in counts]
            name = _name(run, f", {stage.unit}")
            rows.append((name, *cells, _reasons(stage.reasons), Reasons(stage.notes)))
    table = _table(("stage", "in", "out", "dropped", "reasons", "also counted"), rows, "")
    return Section("data", "Data", "What the data went through", (*table, *groups))


# --- conversations --------------------------------------------------------------------------------


def _stops(runs: Runs) -> Section:
    talking = [run for run in runs if run.verb in ("simulate", "respond")]
    counts = [Counter(run.results.get("stops") or {}) for run in talking]
    seen = {stop for found in counts for stop in found}
    stops = [stop for stop in STOPS if stop in seen] + sorted(seen - STOPS.keys())
    rows = []
    for run, found in zip(talking, counts, strict=True):
        rows.append((_name(run), *(f"{found[stop]:,}" for stop in stops), f"{found.total():,}"))
    head = [(Quote(stop, 40), Small(STOPS.get(stop, ""))) for stop in stops]
    table = _table(("run", *head, "all"), rows)
    return Section("endings", "Endings", "How conversations stopped", table)


def _guards(runs: Runs) -> Section:
    rows = []
    for run in runs:
        if guard := run.guard:
            turns = guard["turns"]
            drafts = f"{guard['drafts'] / turns:.2f}" if turns else ""
            rates = []
            for count in (guard["resampled"], guard["kept"], guard["stopped"]):
                rates.append((percent(count, turns), Small(f"{count:,}")))
            all_drafts = (drafts, Small(f"{guard['drafts']:,} in all"))
            faults = _reasons(by_count(guard["why"].items()))
            rows.append((_name(run), f"{turns:,}", all_drafts, *rates, faults))
    intro = (
        "A draft that the guard rejects is resampled. If no draft passes, the one with the fewest "
        "faults is kept, or the conversation stops."
    )
    head = ("run", "turns", "drafts a turn", "resampled", "kept anyway", "stopped", "faults")
    return Section("guard", "Guard", "What the guard rejected", _table(head, rows), intro)


def _conversations(runs: Runs, colours: Colours) -> Section:
    groups = []
    for run in runs:
        if run.verb == "simulate":
            badges = [Badge(f"{kind}, without a model") for kind in run.stubs]
            user = Quote(str(run.options.get("user")))
            assistant = Quote(str(run.options.get("assistant")))
            text = Text((user, " talks to ", assistant, ". ", *badges))
            shown = tuple(transcript(talk, run) for talk in run.transcripts)
            talks = Transcripts(shown, run.total, f"{run.folder}/conversations.jsonl")
            groups.append(Group((text, talks), Quote(run.name, 60, colours[run.name])))
    intro = (
        "P(end) is the user model’s probability, before it generates a turn, of ending here. "
        "Characters that cannot be seen or change the direction of text are shown as ",
        Quote("\u202e"),
        ".",
    )
    title = "Conversations"
    return Section("conversations", title, title, tuple(groups), intro, search=True)


def _manifest(runs: Runs) -> Section:
    blocks = []
    for run in runs:
        parts = {name: part for name, part in run.manifest.items() if isinstance(part, dict)}
        rest = {name: value for name, value in run.manifest.items() if name not in parts}
        rows = []
        for group, part in {"": rest, "prompts": {}, **parts}.items():
            for name, value in (part or {"none recorded": ""}).items():
                shown = "–" if value is None else json_text(value)
                rows.append((group, Quote(name), Quote(shown, 800)))
        table = Table(("", "name", "value"), tuple(rows), look="manifest")
        blocks.append(Group((table,), _name(run), look="fold"))
    intro = "What was asked, with which inputs, and on what it ran: enough to run it again."
    return Section("manifest", "Manifest", "Manifest", tuple(blocks), intro)

"""Measures of several runs side by side: panels on one scale each, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from userlm.metrics import catalog
from userlm.metrics.adherence import CEILINGS
from userlm.show.blocks import (
    MISSING,
    NOT_MEASURED,
    Axis,
    Block,
    Group,
    Line,
    Measurement,
    Measures,
    Panel,
    Part,
    Quote,
    Row,
    Small,
    Strip,
    Table,
    Value,
    interval,
)
from userlm.show.finished import SPEAKING, STAGES, Finished
from userlm.show.formats import axis, number, percent, plural
from userlm.show.results import Distance, Measured, OfFamily, TellingNgram

HUMAN = "human"
MEANINGS = "What these measures are"
COLOURS = 6
SHAPES = ("circle", "square", "triangle")
MARKS = {f"c{i}": SHAPES[i % len(SHAPES)] for i in range(COLOURS)} | {HUMAN: "diamond"}
"""The shape for each colour."""

ARROWS = {"higher": "↑", "lower": "↓"}
UNITS = {"%", *(metric.unit for metric in catalog.METRICS)} - {""}
"""Those of ours: any other one is text from a file."""


@dataclass(frozen=True)
class Column:
    """The measures of one run: of a user, of humans, or of a model with or without intents.

    Attributes:
        label: its heading; no two columns have the same.
        stub: the stub assistant in it, if there is one.
    """

    label: str
    measures: Mapping[str, Measured]
    colour: str
    shape: str
    stub: str = ""


def colours_of(runs: Sequence[Finished]) -> dict[str, str]:
    """Return a colour for each run and each scored column.

    Training runs, perplexities and conversations never share a drawing, so each of these families
    starts with the first colour.
    """
    trained = [run.name for run in runs if run.verb == "train"]
    predicted = [run.name for run in runs if run.verb == "ppl"]
    talking = [name for run in runs if run.verb == "score" for name in run.columns]
    talking += [run.name for run in runs if run.verb in SPEAKING]
    humans = {HUMAN, *(run.name for run in runs if run.is_human)}
    colours = dict.fromkeys(humans, HUMAN)
    for family in (trained, predicted, talking):
        names = dict.fromkeys(name for name in family if name not in humans)
        colours |= {name: f"c{i % COLOURS}" for i, name in enumerate(names)}
    return colours


def columns_of(runs: Sequence[Finished], colours: Mapping[str, str]) -> list[Column]:
    """Return the columns, the human reference last; equal columns are shown once."""
    found: dict[str, Column] = {}
    for run in runs:
        for i, (name, measures) in enumerate(run.columns.items()):
            stub = next((one.get("stub") for one in measures.values()), "")
            if run.verb == "ppl":
                label = f"{run.name} · {name}" if len(runs) > 1 else name
                colour = colours[run.name]
                shape = SHAPES[i % len(SHAPES)]
            elif name in found and found[name].measures == measures:
                continue
            else:
                label = f"{name} ({run.name})" if name in found else name
                colour = colours[name]
                shape = MARKS[colour]
            found[label] = Column(label, measures, colour, shape, stub or "")
    return sorted(found.values(), key=lambda column: column.colour == HUMAN)


def asked(runs: Sequence[Finished], labels: Iterable[str]) -> Iterator[Line]:
    """Yield what users were asked for in the runs that are called so."""
    told = {run.name: STAGES[run.verb] for run in runs if run.verb in STAGES}
    for run in runs:
        for name, found in run.columns.items():
            if found.keys() & CEILINGS.keys():
                told[name] = "replies to test items"
    names: dict[str, list[str]] = {}
    for label in labels:
        if label in told:
            names.setdefault(told[label], []).append(label)
    for what, alike in names.items():
        yield (Quote(", ".join(alike), 300), f": {what}. ")


def blocks(columns: Sequence[Column]) -> Iterator[Block]:
    """Yield the measures; the many variants of perplexity are folded."""
    found = panels(columns)
    variants = [one for one in found if is_variant(one)]
    shown = [one for one in found if one not in variants]
    families: dict[str, list[Panel]] = {family: [] for family in catalog.FAMILIES}
    for one in shown:
        families[catalog.family_of(one.title.text)].append(one)
    # Who scores tasks, and compares with no people, asks about the assistant.
    has_people = any(column.colour == HUMAN for column in columns)
    is_about_tasks = bool(families[catalog.TASKS]) and not has_people
    for family, own in families.items():
        if own:
            is_beside = is_about_tasks and family != catalog.TASKS
            yield Group([Measures(own, tables(own))], family, details=is_beside)
    if variants:
        yield Group(tables(variants), "Variants of perplexity", look="fold")
    for column in columns:
        for measure in column.measures.values():
            if ngrams := measure.get("ngrams"):
                yield _telling(column, ngrams)
            if measure.get("outcomes"):
                yield outcomes(measure, column.label)
    yield from _by_family(columns)
    if shown:
        rows = [(one.title, one.note) for one in shown]
        yield Group([Table(("measure", "is"), rows, "findings")], MEANINGS, look="fold")


def _telling(column: Column, ngrams: Sequence[TellingNgram]) -> Group:
    """Return the n-grams that tell a simulated user from people."""
    rows: list[Row] = []
    for one in ngrams:
        text = Quote(one["text"].replace(" ", "␣"), 20)
        rows.append((text, percent(one["simulated"], 100), percent(one["human"], 100)))
    head = ("n-gram", "simulated turns", "human turns")
    note = "Characters that separate the turns most, and in how many turns they are."
    title = ("What gives ", Quote(column.label, 60), " away")
    return Group([Table(head, rows, "fixed", note=note)], title)


def _by_family(columns: Sequence[Column]) -> Iterator[Group]:
    """Yield a table of the measures that have families of tasks: a row for each measure and family,
    a column for each run."""
    rows: dict[tuple[str, str], dict[str, Line]] = {}
    for column in columns:
        for name, measure in column.measures.items():
            unit = "%" if measure["unit"] == "%" else ""
            for one in measure.get("families", ()):
                cells = rows.setdefault((name, one["name"]), {})
                cells[column.label] = of_family(one, unit)
    if not rows:
        return
    labels = [column.label for column in columns]
    lines: list[Row] = []
    for (name, family), cells in rows.items():
        shown = [cells.get(label, "") for label in labels]
        lines.append((Quote(name, 60), Quote(family, 60), *shown))
    head: list[Line] = ["measure", "family", *(Quote(label, 60) for label in labels)]
    yield Group([Table(head, lines, "fixed")], "By family of tasks")


def of_family(one: OfFamily, unit: str) -> Line:
    """Return the value of a measure in one family of tasks, or why there is none."""
    if one["value"] is None:
        return (NOT_MEASURED, Quote(one.get("why") or "nothing to measure", 60))
    counted = f"n {one['n']:,}"
    if one["missing"]:
        counted += f", {one['missing']:,} missing"
    between = interval(one["low"], one["high"])
    return (Value(one["value"]), unit, between, " ", Small(counted))


def outcomes(measure: Measured, label: str) -> Group:
    """Return how often a user did what after test items."""
    counts = measure["outcomes"]
    total = sum(counts.values())
    rows: list[Row] = [
        (Quote(str(what), 60), f"{count:,}", percent(count, total))
        for what, count in counts.items()
    ]
    title = (Quote(measure["name"], 60), ": what ", Quote(label, 60), " does")
    return Group([Table(("the user", "replies", "share"), rows, "fixed")], title)


def panels(columns: Sequence[Column]) -> list[Panel]:
    """Return a panel for each measure."""
    having: dict[str, list[Column]] = {metric.name: [] for metric in catalog.METRICS}
    for column in columns:
        for name in column.measures:
            having.setdefault(name, []).append(column)
    return [panel(name, found) for name, found in having.items() if found]


def is_variant(one: Panel) -> bool:
    """Return whether it shows one of the many variants of perplexity."""
    name = one.title.text
    return not one.note and ("perplexity" in name or ": " in name)


def panel(name: str, columns: Sequence[Column], is_brief: bool = False) -> Panel:
    """Return a measure of these columns; in brief without distances from people in numbers."""
    measures = [column.measures[name] for column in columns]
    known: list[float] = []
    for one in measures:
        ends = (one["value"], one["low"], one["high"])
        known += [end for end in ends if end is not None]
    unit = measures[0]["unit"]
    percent = "%" if unit == "%" else ""
    below = axis("", min(known), max(known), 5, percent) if known else None
    human = [
        column.measures[name]["value"] for column in columns if column.colour == HUMAN
    ]
    reference = human[0] if human else None
    return Panel(
        Quote(name, 60),
        ARROWS.get(measures[0]["better"], ""),
        "" if unit in ("", "%") else Quote(unit, 16),
        catalog.about(name),
        [_measurement(column, name, below, reference, is_brief) for column in columns],
        below,
    )


def _measurement(
    column: Column,
    name: str,
    below: Axis | None,
    reference: float | None,
    is_brief: bool,
) -> Measurement:
    one = column.measures[name]
    value = one["value"]
    low = one["low"]
    high = one["high"]
    shown: tuple[Part, ...] = (
        NOT_MEASURED,
        Quote(one.get("why") or "nothing to measure", 90),
    )
    strip = None
    if value is not None and below is not None:
        shown = (Value(value), "%" if one["unit"] == "%" else "", interval(low, high))
        strip = Strip(
            value, low, high, (below.low, below.high), column.shape, reference
        )
    counts = [f"n {one['n']:,}"]
    if "clusters" in one:
        counts.append(clusters_of(one))
    if one["missing"]:
        counts.append(f"{one['missing']:,} missing")
    if "distance" in one and not is_brief:
        counts += _distance(one["distance"])
    return Measurement(
        Quote(column.label, 60, column.colour),
        Quote(f"{column.stub} stub", 60, "badge") if column.stub else "",
        shown,
        ", ".join(counts),
        strip,
    )


def clusters_of(one: Measured) -> str:
    """Return how many people, tasks, test items or pairs its interval is over."""
    return plural(one.get("clusters", 0), catalog.cluster_of(one["name"]))


def measured(one: Measured, digits: int = 2) -> Line:
    """Return the value with its unit and interval, or why there is none."""
    if one["value"] is None:
        return (NOT_MEASURED, Quote(one.get("why") or "nothing to measure", 90))
    unit: Line = ""
    if one["unit"]:
        name = one["unit"]
        unit = (" ", name if name in UNITS else Quote(name, 16))
    shown = interval(one["low"], one["high"], digits)
    return (Value(one["value"], digits), unit, shown)


def value_alone(one: Measured, digits: int = 2) -> Line:
    """Return `measured` without interval and reason, so that a row stays on one line."""
    if one["value"] is None:
        return MISSING
    return measured({**one, "low": None, "high": None}, digits)


def distance_line(one: Measured, digits: int) -> Line:
    """Return how far a measure is from people's, or a dash."""
    distance = one.get("distance")
    if not distance or distance["value"] is None:
        return "–"
    ends = interval(distance["low"], distance["high"], digits)
    return (Value(distance["value"], digits), ends)


def _distance(distance: Distance) -> Iterator[str]:
    """Yield how far a measure is from the human reference, if that is known."""
    value = distance["value"]
    low = distance["low"]
    high = distance["high"]
    if value is not None:
        sign = "" if value < 0 else "+"
        yield f"{sign}{number(value)} from humans"
    if low is not None and high is not None:
        yield f"{number(low)} to {number(high)}"


def tables(panels: Sequence[Panel]) -> list[Table]:
    """Return a table for each set of runs that share measures, so that none is mostly empty."""
    groups: list[tuple[set[Quote], list[Panel]]] = []
    for panel in panels:
        labels = {row.label for row in panel.rows}
        own = [panel]
        for group in [group for group in groups if group[0] & labels]:
            groups.remove(group)
            labels |= group[0]
            own += group[1]
        groups.append((labels, sorted(own, key=panels.index)))
    return [_table(own) for _, own in groups]


def _table(panels: Sequence[Panel]) -> Table:
    found = dict.fromkeys(row.label for panel in panels for row in panel.rows)
    labels = sorted(found, key=lambda label: label.look == HUMAN)  # humans last
    rows: list[Row] = []
    for panel in panels:
        cells: dict[Quote, Line] = dict.fromkeys(labels, "")
        for row in panel.rows:
            cells[row.label] = (*row.value, Small(row.counted))
        rows.append(
            ((panel.title, f" {panel.arrow}", Small(panel.unit)), *cells.values())
        )
    return Table(("measure", *labels), rows, "fixed measures")

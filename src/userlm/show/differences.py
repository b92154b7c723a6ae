"""How far apart the users of two assessments are, in what both were measured in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from userlm.metrics import catalog
from userlm.metrics.verdict import in_points, in_words
from userlm.show.assessed import AXIS, NO_VALUE, TITLES, UNIT, strip
from userlm.show.blocks import (
    Group,
    Line,
    Quote,
    Row,
    Section,
    Small,
    Strip,
    Table,
    Text,
    Value,
    interval,
)
from userlm.show.finished import Finished, alike
from userlm.show.formats import called, plural
from userlm.show.measures import HUMAN, value_alone
from userlm.show.results import Measured
from userlm.show.verdicts import user_of
from userlm.stats import Estimate, difference
from userlm.types import Measure, MeasureRow

INTRO = (
    "The first user less the other one. Where rows pair, it is that of the people (or test items) "
    "that both have, with their number and a 95 % interval; else that of the two values, without "
    "an interval, as of an AUROC, below 5 people, or if the people are in different files. It says "
    "in what they differ, not which one is closer to people. Coloured where 0 is outside; the "
    "scale is in points, as above."
)
LARGEST = 3
STATISTICS = {metric.name: metric.statistic for metric in catalog.METRICS}


@dataclass(frozen=True)
class Side:
    """A user that is compared: the run in which it was, what was measured of it in each stage, and
    the rows of that."""

    run: Finished
    user: str
    measures: Mapping[str, Sequence[Measured]]
    rows: Mapping[tuple[str, str], Sequence[MeasureRow]]


def section(runs: Sequence[Finished]) -> Section:
    """Return the section with the first user of `assess` runs beside each of the others, and the
    same of runs that were scored together."""
    groups = []
    for sides in (_assessed(runs), *_scored(runs)):
        for first, other in _pairs(sides):
            names = (Quote(first.run.name, 60), " less ", Quote(other.run.name, 60))
            if tables := list(_tables(first, other)):
                groups.append(Group(tables, names, look="fold"))
    title = "How far are the users from one another?"
    return Section("apart", "Differences", title, groups, INTRO, where="details")


def sentences(runs: Sequence[Finished]) -> Iterator[Text]:
    """Yield in how much the first user of `assess` runs differs from each of the others."""
    for first, other in _pairs(_assessed(runs)):
        pair = (Quote(called(first.user), 60), " and ", Quote(called(other.user), 60))
        if not first.run.may_be_paired(other.run):
            why = (
                " were not measured on the same people, so their differences have no interval, "
                "unless they are on the same test items."
            )
            yield Text((*pair, why), "answer")
            continue
        sizes: dict[str, float] = {}
        total = 0
        for stage, one, two in _shared(first, other):
            apart = _apart(first, other, stage, one, two)
            points = None
            if two["value"] is not None:
                points = in_points(one, two["value"], apart._asdict())
            total += points is not None
            if points and (points.low > 0 or points.high < 0):
                sizes.setdefault(one["name"], abs(points.size))
        most = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST]
        where = ", most of all in " if most else ""
        names = Quote(", ".join(map(in_words, most)), 200)
        counts = (
            f" differ in {len(sizes)} of {plural(total, 'measure')} by 95 % intervals"
        )
        yield Text((*pair, counts, where, names, "."), "answer")


def _assessed(runs: Sequence[Finished]) -> list[Side]:
    """Return the users of `assess` runs."""
    sides = []
    for run in runs:
        if run.verb == "assess":
            measured = {}
            for stage, compared in run.results["measures"].items():
                measured[stage] = [one["user"] for one in compared]
            sides.append(Side(run, user_of(run), measured, run.rows))
    return sides


def _pairs(sides: Sequence[Side]) -> list[tuple[Side, Side]]:
    """Return the first user beside each of the others."""
    return [(sides[0], other) for other in sides[1:]]


def _scored(runs: Sequence[Finished]) -> Iterator[list[Side]]:
    """Yield the users of runs that were scored together and talked to the same assistant."""
    made = {run.name: run for run in runs}
    for run in runs:
        for names in alike(run, runs):
            yield [_column(run, made[name]) for name in names]


def _column(run: Finished, made: Finished) -> Side:
    """Return the column of a run in a score as the side of its user."""
    name = made.name
    rows = {}
    for (owner, metric), found in run.rows.items():
        if owner == name:
            rows["", metric] = found
    measures = {"": list(run.columns[name].values())}
    return Side(made, made.user, measures, rows)


def _shared(first: Side, other: Side) -> Iterator[tuple[str, Measured, Measured]]:
    """Yield what both were measured in, with its stage."""
    for stage, measured in first.measures.items():
        beside = {one["name"]: one for one in other.measures.get(stage, ())}
        for one in measured:
            if one["name"] in beside:
                yield stage, one, beside[one["name"]]


def _tables(first: Side, other: Side) -> Iterator[Table]:
    """Yield a table for each stage that both have."""
    head = ("measure", _name(first), _name(other), "difference", "people")
    rows: dict[str, list[Row]] = {}
    strips: dict[str, list[Strip | None]] = {}
    for stage, one, two in _shared(first, other):
        apart = _apart(first, other, stage, one, two)
        rows.setdefault(stage, []).append(_row(one, two, apart))
        strips.setdefault(stage, []).append(_strip(one, two, apart))
    for stage, found in rows.items():
        title = TITLES.get(stage, "Another stage") if stage else ""
        drawn = strips[stage]
        scale = replace(AXIS, title=UNIT)
        yield Table(head, found, "table forest", title, drawings=drawn, axis=scale)


def _name(side: Side) -> Line:
    return (Quote(side.run.name, 40), Small(Quote(side.user, 40)))


def _apart(
    first: Side, other: Side, stage: str, one: Measured, two: Measured
) -> Estimate:
    """Return the difference on what both have, with its interval; else that of the values."""
    name = one["name"]
    statistic = STATISTICS.get(name)
    if statistic and first.run.may_be_paired(other.run, stage):
        key = (stage, name)
        of_first, of_other = (
            Measure(name, None, None, None, tuple(side.rows.get(key, ())))
            for side in (first, other)
        )
        paired = difference(of_first, of_other, statistic)
        if paired.low is not None:
            return paired
    if one["value"] is None or two["value"] is None:
        return Estimate(None, None, None, 0)
    return Estimate(one["value"] - two["value"], None, None, 0)


def _row(one: Measured, two: Measured, apart: Estimate) -> Row:
    digits = 1 if one["unit"] else 2
    values = (value_alone(one, digits), value_alone(two, digits))
    name = Quote(one["name"], 60)
    if apart.value is None:
        return (name, *values, NO_VALUE, NO_VALUE)
    shown = (Value(apart.value, digits), interval(apart.low, apart.high, digits))
    return (name, *values, shown, f"{apart.clusters:,}" if apart.clusters else NO_VALUE)


def _strip(one: Measured, two: Measured, apart: Estimate) -> Strip | None:
    if two["value"] is None:
        return None
    points = in_points(one, two["value"], apart._asdict())
    if points is None:
        return None
    look = "c1" if points.low > 0 or points.high < 0 else HUMAN
    return strip(points, "circle", look)

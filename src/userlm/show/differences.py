"""How far apart the users of two assessments are, in what both were measured in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from userlm.metrics import catalog
from userlm.metrics.verdict import in_points
from userlm.show.assessed import AXIS, NO_VALUE, TITLES, strip
from userlm.show.blocks import (
    Group,
    Line,
    Quote,
    Row,
    Section,
    Small,
    Strip,
    Table,
    Value,
    interval,
)
from userlm.show.finished import Finished
from userlm.show.measures import HUMAN, value_alone
from userlm.show.results import Measured
from userlm.show.verdicts import user_of
from userlm.stats import Estimate, difference
from userlm.types import Measure

INTRO = (
    "The first user less the other one. Where rows pair, it is that of the people (or test items) "
    "that both have, with their number and a 95 % interval; else that of the two values, without "
    "an interval, as of an AUROC, or below 5 people. It says in what they differ, not "
    "which one is closer to people. Coloured where 0 is outside; the scale is in points, as above."
)
STATISTICS = {metric.name: metric.statistic for metric in catalog.METRICS}


def section(runs: Sequence[Finished]) -> Section:
    """Return the section with the first user of `assess` runs beside each of the others."""
    assessed = [run for run in runs if run.verb == "assess"]
    groups = []
    for other in assessed[1:]:
        names = (Quote(assessed[0].name, 60), " less ", Quote(other.name, 60))
        groups.append(Group(list(_tables(assessed[0], other)), names))
    title = "How far are the users from one another?"
    return Section("apart", "Differences", title, groups, INTRO, where="details")


def _tables(first: Finished, other: Finished) -> Iterator[Table]:
    """Yield a table for each stage that both runs have."""
    head = ("measure", _name(first), _name(other), "difference", "people")
    for stage, compared in first.results["measures"].items():
        beside = {}
        for one in other.results["measures"].get(stage, ()):
            beside[one["user"]["name"]] = one["user"]
        rows: list[Row] = []
        strips = []
        for one in compared:
            name = one["user"]["name"]
            if name in beside:
                pair = one["user"], beside[name]
                apart = _apart(first, other, stage, *pair)
                rows.append(_row(*pair, apart))
                strips.append(_strip(*pair, apart))
        if rows:
            title = TITLES.get(stage, "Another stage")
            look = "table forest"
            yield Table(head, rows, look, title, drawings=strips, axis=AXIS)


def _name(run: Finished) -> Line:
    return (Quote(run.name, 40), Small(Quote(user_of(run), 40)))


def _apart(
    first: Finished, other: Finished, stage: str, one: Measured, two: Measured
) -> Estimate:
    """Return the difference on what both have, with its interval; else that of the values."""
    name = one["name"]
    if statistic := STATISTICS.get(name):
        key = (stage, name)
        of_first, of_other = (
            Measure(name, None, None, None, run.rows.get(key, ()))
            for run in (first, other)
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

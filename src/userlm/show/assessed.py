"""How far a user is from people: what `assess` found, drawn and in tables, what it said beside what
people said, and what could not be measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from userlm.items import KINDS
from userlm.metrics.catalog import FAMILIES, family_of
from userlm.metrics.verdict import Finding, Points, finding, in_words, reference_of
from userlm.show.blocks import (
    Axis,
    Block,
    Group,
    Line,
    Mark,
    Measurement,
    Pairs,
    Panel,
    Quote,
    Row,
    Section,
    Small,
    Strip,
    Table,
    Value,
    interval,
)
from userlm.show.data import dropped
from userlm.show.finished import STAGES, Finished
from userlm.show.formats import called
from userlm.show.measures import measured, value_alone
from userlm.show.published import NOT_ASKED
from userlm.show.results import Compared, ItemCounts, Measured
from userlm.show.transcripts import pair
from userlm.show.verdicts import LOOKS, SHAPES, concluded, user_of

TITLES = {
    **{stage: what.capitalize() for stage, what in STAGES.items()},
    "role": "Does it stay in its role?",
    "intent": "Does it stay with its intent?",
    "robustness": "Both together",
    "judge-role": "Does it stay in its role? By a judge",
    "judge-intent": "Does it stay with its intent? By a judge",
    "detect": "Naturalness",
    "ratings": "Blind test",
}
TESTS = ("role", "intent", "robustness", "judge-role", "judge-intent")
"""The stages that measure replies to test items."""
INTRO = (
    "Each mark is the user’s value minus people’s, with its 95 % interval over people (of tests: "
    "over items): ",
    Mark(SHAPES["bad"], LOOKS["bad"]),
    " is not like people, ",
    Mark(SHAPES["good"], LOOKS["good"]),
    " is, ",
    Mark(SHAPES["unknown"], LOOKS["unknown"]),
    " is undecided. The dashed line is people. Differences are of the same people, so one may be "
    "sure although the intervals of both values overlap; intervals are long where a few people "
    "wrote most of the turns, and there is none for fewer than 5 people, or where all are alike. "
    "The scale is in points: percent of turns or tests; hundredths of an AUROC; of lengths, the "
    "difference in percent of the longer one. Whole conversations also depend on the assistant.",
)
NOTE = (
    "In what it differs most, with 95 % intervals. The dashed line is people. Lengths differ in "
    "percent of the longer one."
)
UNIT = "points of percent"
LARGEST = 6
MOST = 100
"""Points: the ends of the scale."""
TICKS = [(float(at), f"{at:+d}" if at else "0") for at in range(-MOST, MOST + 1, 50)]
AXIS = Axis(f"{UNIT} more or less than people", -MOST, MOST, TICKS)
NO_VALUE = "–"


def largest(runs: Sequence[Finished]) -> Iterator[Panel]:
    """Yield for each user the measures in which it is least like people."""
    for run in runs:
        found = concluded(run).of_kind("bad")[:LARGEST] if run.verb == "assess" else []
        drawn = [one for one in found if None not in (one.size, one.low, one.high)]
        if not drawn:
            continue
        rows = []
        for one in drawn:
            ends = (one.size or 0.0, one.low or 0.0, one.high or 0.0)
            value = (Value(ends[0], 0), interval(*ends[1:], 0))
            row = Quote(in_words(one.measure), 60, LOOKS[one.kind])
            rows.append(Measurement(row, "", value, "", _strip(one)))
        title = Quote(f"{called(user_of(run))} less people", 60)
        yield Panel(title, "", "points", NOTE, rows, AXIS)


def section(runs: Sequence[Finished]) -> Section:
    """Return the section of distances of all runs of `assess`."""
    groups = []
    for run in runs:
        if run.verb == "assess":
            groups.append(
                Group(
                    list(_distances(run)), (Quote(user_of(run), 60), " beside people")
                )
            )
    title = "How far from people?"
    return Section("assess", "Distances", title, groups, INTRO, where="details")


def _distances(run: Finished) -> Iterator[Block]:
    tests: list[Table] = []
    tested: list[Measured] = []
    for stage, compared in run.results["measures"].items():
        if stage in TESTS:
            tests.append(_forest(run, stage, TITLES[stage], compared))
            tested += [one["user"] for one in compared]
            continue
        shown = []
        for family in FAMILIES:
            own = [one for one in compared if family_of(one["user"]["name"]) == family]
            if own:
                shown.append(_forest(run, stage, family, own))
        yield Group(shown, _title(run, stage))
    if tests:
        done = _outcomes(tested, run.results.get("items", {}))
        yield Group([*tests, done], "Where it is tempted")
    columns = run.results["perplexity"]
    if columns:
        rows = [(Quote(name, 60), measured(one)) for name, one in columns.items()]
        yield Table(
            ("intent", "perplexity"), rows, "table", "How well it predicts people"
        )


def _title(run: Finished, stage: str) -> Quote:
    """Return the title of a stage; values of different detectors cannot be compared, so it names
    the detector."""
    title = TITLES.get(stage, stage)
    found = run.results.get("naturalness")
    if stage == "detect" and found:
        title += f", by {found['detector']['name']}"
    return Quote(title, 100)


def _forest(
    run: Finished, stage: str, title: str, compared: Sequence[Compared]
) -> Table:
    """Return measures of a stage as a table with their distances drawn, all on one scale."""
    head = ("measure", "user", "people", "difference")
    rows = []
    strips = []
    for one in compared:
        user, human = one["user"], one["human"]
        rows.append(_row(user, human))
        strips.append(_strip(finding(stage, user, human, run.results, run.options)))
    return Table(head, rows, "table forest", title, drawings=strips, axis=AXIS)


def _outcomes(tested: Sequence[Measured], items: Mapping[str, ItemCounts]) -> Table:
    """Return what the user did after test items."""
    rows: list[Row] = []
    for one in tested:
        counts = one.get("outcomes", {})
        if not counts:  # the mean of both tests
            continue
        did = ", ".join(f"{what} {count:,}" for what, count in counts.items())
        replies: list[Line] = [Quote(did, 200)]
        if by := one.get("by"):
            replies.append(Small(("by ", Quote(by, 120))))
        rows.append((Quote(one["name"], 60), tuple(replies)))
    drawn = [
        f"{items[kind]['out']:,} of {items[kind]['in']:,} items of the kind {kind}"
        for kind in KINDS
        if kind in items and items[kind]["out"] < items[kind]["in"]
    ]
    note = f"Drawn by the seed: {', '.join(drawn)}." if drawn else ""
    title = "What it does where it is tempted"
    return Table(("measure", "replies"), rows, "table", title, note)


def _strip(found: Finding) -> Strip | None:
    if found.size is None or found.low is None or found.high is None:
        return None
    points = Points(found.size, found.low, found.high)
    return strip(points, SHAPES[found.kind], LOOKS[found.kind])


def strip(points: Points, shape: str, look: str) -> Strip:
    """Return a distance drawn on the scale."""
    size, low, high = (min(max(end, -MOST), MOST) for end in points)
    return Strip(size, low, high, (-MOST, MOST), shape, 0, look)


def _row(user: Measured, human: Measured | None) -> Row:
    digits = 1 if user["unit"] else 2
    value, distance = reference_of(user, human)
    of_people: Line = value_alone(human, digits) if human else NO_VALUE
    if human is None and value is not None:
        of_people = (Value(value, digits), " %", Small(NOT_ASKED))
    apart: Line = NO_VALUE
    if distance and distance["value"] is not None:
        ends = interval(distance["low"], distance["high"], digits)
        apart = (Value(distance["value"], digits), ends)
    return (Quote(user["name"], 60), value_alone(user, digits), of_people, apart)


# --- side by side ---------------------------------------------------------------------------------


def side_by_side(runs: Sequence[Finished]) -> Section:
    """Return the section with conversations of users beside those of the people."""
    groups = []
    for run in runs:
        for stage, drawn in run.drawn.items():
            pairs = [pair(person, talk) for person, talk in drawn]
            if pairs:
                name = (Quote(user_of(run), 60), f": {TITLES[stage].lower()}")
                groups.append(Group([Pairs(pairs)], name))
    intro = (
        "Drawn at random, not chosen: what the person did, and what the simulated user did in the "
        "same place."
    )
    title = "The person and the simulated user, side by side"
    return Section("pairs", "Side by side", title, groups, intro, where="details")


# --- not measured ---------------------------------------------------------------------------------


def unmeasured(runs: Sequence[Finished]) -> Section:
    """Return the section on what could not be measured of users, and which conversations were left
    out, and why."""
    groups = []
    for run in runs:
        if run.verb == "assess":
            tables = []
            if rows := list(_unmeasured(run)):
                tables.append(Table(("measure", "where", "why"), rows, "findings"))
            if out := dropped(run.results["counts"]):
                rows = [(Quote(why), f"{count:,}") for why, count in out]
                tables.append(
                    Table(("conversations left out", "number"), rows, "fixed")
                )
            groups += [Group(tables, Quote(user_of(run), 60))] if tables else []
    title = "What was not measured, and why"
    return Section("unmeasured", "Unmeasured", title, groups, where="details")


def _unmeasured(run: Finished) -> Iterator[Row]:
    reasons: Mapping[str, str] = {**run.results["left_out"], **run.results["failed"]}
    for stage, why in reasons.items():
        yield ("all of it", Quote(TITLES.get(stage, stage), 60), Quote(why, 400))
    for stage, compared in run.results["measures"].items():
        for one in compared:
            user = one["user"]
            if user["value"] is None:
                why = user.get("why") or "nothing to measure"
                where = Quote(TITLES.get(stage, stage), 60)
                yield (Quote(user["name"], 60), where, Quote(why, 400))

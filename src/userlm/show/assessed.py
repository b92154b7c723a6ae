"""How far a user is from people: what `assess` found, in a table for each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from userlm.show.blocks import (
    Block,
    Group,
    Line,
    Quote,
    Row,
    Section,
    Table,
    Text,
    Value,
    interval,
)
from userlm.show.finished import Finished
from userlm.show.measures import measured
from userlm.show.results import Compared, Measured

TITLES = {
    "respond": "Single turns, after those of people",
    "simulate": "Whole conversations",
}
INTRO = (
    "The distance is the user's value less people's, with its 95 % interval over the people; there "
    "is none below 5 people, or if all of them are alike. Where 0 lies in it, no difference was "
    "found, which does not say that there is none. Values with their intervals are below."
)
NO_HUMAN = "–"
INCOMPLETE = (
    " is incomplete: some of it ended in an error, or was not begun because of a limit, and counts "
    "as missing; the same command tries it again, with a higher limit if that was the reason."
)


def section(runs: Sequence[Finished]) -> Section:
    """Return the section about all runs of `assess`."""
    groups = []
    for run in runs:
        if run.verb == "assess":
            user = Quote(str(run.options.get("user")), 60)
            groups.append(Group(list(_blocks(run)), (user, " beside people")))
    return Section("assess", "Distances", "How far from people?", groups, INTRO)


def _blocks(run: Finished) -> Iterator[Block]:
    for stage, compared in run.results["measures"].items():
        rows = [_row(one) for one in compared]
        head = ("measure", "user", "human", "distance")
        yield Table(head, rows, "table", TITLES[stage])
    columns = run.results["perplexity"]
    if columns:
        rows = [(Quote(name, 60), measured(one)) for name, one in columns.items()]
        yield Table(
            ("intent", "perplexity"), rows, "table", "How well it predicts people"
        )
    for key, what in (("left_out", "not measured"), ("failed", "failed")):
        yield from _reasons(what, run.results[key])
    for stage in run.results["incomplete"]:
        yield Text((Quote(stage, 60), INCOMPLETE))


def _reasons(what: str, reasons: Mapping[str, str]) -> Iterator[Text]:
    for stage, why in reasons.items():
        yield Text((Quote(stage, 60), f" {what}: ", Quote(why, 400), "."))


def _row(one: Compared) -> Row:
    user = one["user"]
    human = one["human"]
    digits = 1 if user["unit"] else 2
    beside: Line = _value(human, digits) if human else NO_HUMAN
    distance = user.get("distance")
    apart: Line = NO_HUMAN
    if distance and distance["value"] is not None:
        ends = interval(distance["low"], distance["high"], digits)
        apart = (Value(distance["value"], digits), ends)
    return (Quote(user["name"], 60), _value(user, digits), beside, apart)


def _value(one: Measured, digits: int) -> Line:
    """Return the value without its interval, so that a row stays on one line."""
    return measured({**one, "low": None, "high": None}, digits)

"""How far a user is from people: what `assess` found, in a table for each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from userlm.items import KINDS
from userlm.show.blocks import (
    Block,
    Group,
    Line,
    Quote,
    Row,
    Section,
    Small,
    Table,
    Text,
)
from userlm.show.finished import Finished
from userlm.show.measures import distance_line, measured, value_alone
from userlm.show.results import Compared, ItemCounts, Measured

TITLES = {
    "respond": "Single turns, after those of people",
    "simulate": "Whole conversations",
    "detect": "Naturalness",
}
TESTS = ("role", "intent", "robustness", "judge-role", "judge-intent")
INTRO = (
    "The distance is the user's value less people's, with its 95 % interval over the people; there "
    "is none below 5 people, or if all of them are alike. Where 0 lies in it, no difference was "
    "found, which does not say that there is none. Values with their intervals are below."
)
NOTHING = "–"
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
    tested: list[Compared] = []
    for stage, compared in run.results["measures"].items():
        if stage in TESTS:
            tested += compared
        elif stage != "detect" or not run.results.get("naturalness"):
            # else it is in the section that names the detector
            head = ("measure", "user", "human", "distance")
            rows = [_row(one) for one in compared]
            yield Table(head, rows, "table", TITLES.get(stage, stage))
    if tested:
        users = [one["user"] for one in tested]
        yield _robustness(users, run.results.get("items", {}))
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


def _robustness(tested: Sequence[Measured], items: Mapping[str, ItemCounts]) -> Table:
    """Return the measures of test items; people were not asked them, so there is no distance."""
    rows: list[Row] = []
    for one in tested:
        counts = one.get("outcomes", {}).items()
        did = ", ".join(f"{what} {count:,}" for what, count in counts)
        shown: list[Line] = [Quote(did, 200) if did else NOTHING]
        if by := one.get("by"):
            shown.append(Small(("by ", Quote(by, 120))))
        rows.append((Quote(one["name"], 60), measured(one, 1), tuple(shown)))
    title = "Does it stay a user, with its own intent?"
    drawn = [
        f"{items[kind]['out']:,} of {items[kind]['in']:,} items of the kind {kind}"
        for kind in KINDS
        if kind in items and items[kind]["out"] < items[kind]["in"]
    ]
    note = f"Drawn by the seed: {', '.join(drawn)}." if drawn else ""
    return Table(("measure", "user", "what it did"), rows, "table", title, note)


def _row(one: Compared) -> Row:
    user = one["user"]
    human = one["human"]
    digits = 1 if user["unit"] else 2
    beside: Line = value_alone(human, digits) if human else NOTHING
    apart = distance_line(user, digits)
    return (Quote(user["name"], 60), value_alone(user, digits), beside, apart)

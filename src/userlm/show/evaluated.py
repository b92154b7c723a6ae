"""What `evaluate` found: how many tasks each assistant solved with each user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from userlm.show.blocks import (
    NOT_MEASURED,
    Block,
    Group,
    Line,
    Quote,
    Reasons,
    Row,
    Section,
    Table,
    Text,
)
from userlm.show.data import by_count
from userlm.show.finished import Finished
from userlm.show.measures import measured, of_family, value_alone
from userlm.show.results import CellResult, Measured, Spent

SCORE, COVERAGE = "assistant score", "intent coverage"
TURNS = "turns per conversation"
INTRO = (
    "How many conversations solved their task, in percent with a 95 % interval over tasks; how "
    "much of the required facts the user said; user turns; and how conversations stopped. The user "
    "single says everything in one prompt."
)


def section(runs: Sequence[Finished]) -> Section:
    """Return the section about all runs of `evaluate`."""
    groups = []
    for run in runs:
        if run.verb == "evaluate":
            groups.append(Group(list(_tables(run)), Quote(run.name, 60)))
    title = "How many tasks are solved"
    return Section("evaluated", "Tasks", title, groups, INTRO)


def _tables(run: Finished) -> Iterator[Block]:
    cells: Sequence[CellResult] = run.results["cells"]
    rows = [_row(cell) for cell in cells]
    head = ("assistant", "user", "score", "coverage", "turns", "stops")
    yield Table(head, rows, "table")
    if reasons := _reasons(cells):
        yield Text(("Missing, since there is no grade: ", Quote(reasons, 300)))
    if shown := _spent(run.results["spent"]):
        yield Text(shown)
    yield _all_measures(cells)


def _all_measures(cells: Sequence[CellResult]) -> Group:
    """Return all measures of tasks, of all conversations and of each family of tasks."""
    rows: dict[tuple[str, str, str], dict[str, Line]] = {}
    for cell in cells:
        for one in cell["measures"]:
            place = (cell["assistant"], cell["user"], one["name"])
            shown = rows[place] = {"": measured(one)}  # no family has this name
            for each in one.get("families", ()):
                unit = "%" if one["unit"] == "%" else ""
                shown[each["name"]] = of_family(each, unit)
    names = list(dict.fromkeys(chain.from_iterable(rows.values())))
    lines: list[Row] = []
    for place, values in rows.items():
        named = (Quote(name, 60) for name in place)
        lines.append((*named, *(values.get(name, "") for name in names)))
    families = (Quote(name, 60) for name in names[1:])
    head: Row = ("assistant", "user", "measure", "all tasks", *families)
    return Group([Table(head, lines, "")], "All measures, also by family", look="fold")


def _reasons(cells: Sequence[CellResult]) -> str:
    """Return why conversations have no grade, the commonest reason of each cell."""
    found: dict[str, None] = {}
    for cell in cells:
        for one in cell["measures"]:
            if one["name"] == SCORE and one["missing"]:
                found[one.get("why") or "no reason"] = None
    return "; ".join(found)


def _spent(found: Spent) -> str:
    """Say what calls of models used; nothing if none was counted."""
    if not found["calls"]:
        return ""
    cost = f", ${found['dollars']:,.2f}" if found["dollars"] else ""
    return f"{found['calls']:,} calls of models, {found['tokens']:,} tokens{cost}."


def _row(cell: CellResult) -> Row:
    found = {one["name"]: one for one in cell["measures"]}
    shown: list[Line] = []
    for name in (SCORE, COVERAGE, TURNS):
        if name not in found:
            shown.append((NOT_MEASURED, Quote(cell["failed"] or "no such facts", 200)))
        elif name == SCORE:
            shown.append((measured(found[name], 1), _missing(found[name])))
        else:
            shown.append(value_alone(found[name], 1))
    stops = Reasons(by_count(cell["stops"].items()))
    return (Quote(cell["assistant"], 60), Quote(cell["user"], 60), *shown, stops)


def _missing(score: Measured) -> str:
    return f" ({score['missing']:,} missing)" if score["missing"] else ""

"""What judges said about the turns of users, and how far people agree with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from userlm.show.blocks import (
    Block,
    Line,
    Quote,
    Reasons,
    Row,
    Section,
    Small,
    Table,
    Text,
)
from userlm.show.data import by_count
from userlm.show.finished import Finished
from userlm.show.measures import clusters_of, measured
from userlm.show.results import Measured

INTRO = (
    "A chat model gave the user’s last turn of each conversation one of a few labels; ↑ is the one "
    "that counts. Shares are of the turns with a verdict. Labels by hand show how far people agree "
    "with the judge."
)
NO_LABELS = "Agreement with people is not measured: there are no labels by hand."
HASH_DIGITS = 12
NOTHING = "–"


def section(runs: Sequence[Finished]) -> Section:
    """Return the section about all runs of `judge`."""
    judging = [run for run in runs if run.verb == "judge"]
    blocks = list(_blocks(judging)) if judging else []
    return Section("judges", "Judges", "What judges say", blocks, INTRO)


def _blocks(runs: Sequence[Finished]) -> Iterator[Block]:
    for run in runs:
        if warning := run.results["warning"]:
            badge = Quote("one model", 60, "badge")
            yield Text((badge, " ", Quote(warning, 600), "."))
    for prompt in dict.fromkeys(run.results["hash"] for run in runs):
        alike = [run for run in runs if run.results["hash"] == prompt]
        yield _verdicts(alike)
        labelled = [run for run in alike if run.results["agreement"]]
        if labelled:
            yield _table(labelled, "agreement", "Agreement with people")
        else:
            yield Text(NO_LABELS)


def _verdicts(runs: Sequence[Finished]) -> Table:
    table = _table(runs, "measures", "Verdicts")
    rows = []
    for row, run in zip(table.rows, runs, strict=True):
        counts = run.results["counts"].items()
        others = [(name, count) for name, count in counts if name not in ("in", "out")]
        rows.append((*row, Reasons(by_count(others))))
    return replace(table, head=(*table.head, "without a verdict"), rows=rows)


def _table(runs: Sequence[Finished], key: str, title: str) -> Table:
    """Return a row for each run, with a column for each of its measures."""
    positive = runs[0].results["positive"]
    names = dict.fromkeys(one["name"] for run in runs for one in run.results[key])
    rows: list[Row] = []
    for run in runs:
        found = {one["name"]: one for one in run.results[key]}
        cells = [_cell(found[name]) if name in found else NOTHING for name in names]
        rows.append((_who(run), *cells))
    heads: list[Line] = []
    for name in names:
        heads.append((Quote(name, 60), " ↑" if name == positive else ""))
    return Table(("judged", *heads), rows, "", title)


def _who(run: Finished) -> Line:
    """Return what was judged, by which judge, with which prompt."""
    results = run.results
    judged: list[Line] = [Quote(results["run"], 60)]
    if results["user"]:
        judged.append(Small(Quote(results["user"], 60)))
    judged.append(Small(("by ", Quote(results["judge"], 60))))
    prompt = Quote(results["prompt"], 60)
    judged.append(Small((prompt, f" {results['hash'][:HASH_DIGITS]}")))
    return tuple(judged)


def _cell(one: Measured) -> Line:
    counted = f"n {one['n']:,}, {clusters_of(one)}"
    cell: list[Line] = [measured(one, 1 if one["unit"] else 2), Small(counted)]
    if one["missing"]:
        cell.append(Small(f"{one['missing']:,} missing"))
    return tuple(cell)

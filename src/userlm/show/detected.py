"""How natural turns are by a detector: a table for each run of `detect`, so that no two detectors
stand in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

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
from userlm.show.results import Measured

INTRO = (
    "Mean probability, in percent, that a person wrote a turn, by a detector of others. A detector "
    "is worth as much as its AUROC on texts whose writers are known: 0.5 is chance, and length "
    "alone needs no detector. A user is natural if its value is people's, not if it is high. "
    "Values of different detectors cannot be compared."
)
ASSISTANT = "The assistant is the one in people's logs."
LENGTH = "Length alone takes the shorter text for a person's."
NONE = "–"


def section(runs: Sequence[Finished]) -> Section:
    """Return the section about all runs of `detect`."""
    groups = []
    for run in runs:
        if run.verb == "detect":
            name = (Quote(run.results["user"], 60), " by ", _detector(run))
            groups.append(Group(list(_blocks(run)), name))
    title = "Do the turns look as if people wrote them?"
    return Section("naturalness", "Naturalness", title, groups, INTRO)


def _blocks(run: Finished) -> Iterator[Block]:
    if warning := run.results["warning"]:
        yield Text((Quote(warning, 400),))
    detector = _detector(run)
    known = run.results["auroc"]
    on_assistants, on_user = (value_alone(one["detector"]) for one in known)
    worth = ("AUROC ", on_assistants, " on assistants, ", on_user, " on this user")
    name = (detector, Small(worth))
    rows: list[Row] = []
    for one in run.results["measures"]:
        user = one["user"]
        assistant = one["assistant"]
        rows.append(
            (
                Quote(user["name"], 60),
                _cell(user),
                _cell(one["human"]),
                distance_line(user, 1),
                _cell(assistant) if assistant else NONE,
            )
        )
    head: Row = (name, "user", "human", "distance", "assistant")
    yield Table(head, rows, "table", "Naturalness", ASSISTANT)
    rows = []
    for one in known:
        detected = one["detector"]
        cells = (measured(detected), measured(one["length"]))
        rows.append((Quote(detected["name"], 60), *cells, f"{detected['n']:,}"))
    head = ("AUROC, telling", detector, "length alone", "turns")
    yield Table(head, rows, "table", "What the detector is worth here", LENGTH)


def _cell(one: Measured) -> Line:
    counts = f"n {one['n']:,}"
    if one["missing"]:
        counts += f", {one['missing']:,} missing"
    return (measured(one, 1), Small(counts))


def _detector(run: Finished) -> Quote:
    """Return the name of the detector and its versions."""
    found: dict[str, Any] = run.results["detector"]
    return Quote(" ".join((found["name"], ", ".join(found["versions"]))).strip(), 90)

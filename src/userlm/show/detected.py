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
    Where,
)
from userlm.show.finished import Finished
from userlm.show.formats import number
from userlm.show.measures import distance_line, measured
from userlm.show.results import Detections, Known, Measured

INTRO = (
    "Mean probability, in percent, that a person wrote a turn, by a detector of others. A detector "
    "is worth as much as its AUROC on texts whose writers are known: 0.5 is chance, and length "
    "alone needs no detector. A user is natural if its value is people's, not if it is high. "
    "Values of different detectors cannot be compared."
)
LENGTH = "Length alone takes the shorter text for a person's."
NONE = "–"


def section(runs: Sequence[Finished]) -> Section:
    """Return the section about all runs of `detect`, else about those in runs of `assess`."""
    found: list[Any] = [run.results for run in runs if run.verb == "detect"]
    where: Where = "everywhere" if found else "details"
    if not found:
        assessed = (run.results for run in runs if run.verb == "assess")
        found = [one["naturalness"] for one in assessed if one.get("naturalness")]
    groups = []
    for one in found:
        name = (Quote(one["user"], 60), " by ", _detector(one))
        groups.append(Group(list(_blocks(one)), name))
    title = "Do the turns look as if people wrote them?"
    return Section("naturalness", "Naturalness", title, groups, INTRO, where=where)


def _blocks(found: Detections) -> Iterator[Block]:
    if warning := found["warning"]:
        yield Text((Quote(warning, 400),))
    detector = ("by ", _detector(found))
    known = found["auroc"]
    rows: list[Row] = []
    for one in found["measures"]:
        user = one["user"]
        cells = (_cell(user), _cell(one["human"]), distance_line(user, 1))
        assistant = one["assistant"]
        beside = _cell(assistant) if assistant else NONE
        rows.append((Quote(user["name"], 60), *cells, beside))
    head: Row = (detector, "user", "human", "distance", "assistant")
    yield Table(head, rows, "table", "Naturalness", _worth(known))
    rows = []
    for pair in known:
        by = pair["detector"]
        cells = (measured(by), measured(pair["length"]), f"{by['n']:,}")
        rows.append((Quote(by["name"], 60), *cells))
    head = ("AUROC, telling", detector, "by length alone", "turns")
    yield Table(head, rows, "table", "What the detector is worth here", LENGTH)


def _worth(known: Sequence[Known]) -> str:
    """Return the AUROC of the detector, for below its table."""
    values = (pair["detector"]["value"] for pair in known)
    against_assistants, against_user = (
        "not measured" if value is None else number(value) for value in values
    )
    return (
        f"AUROC of this detector: people from assistants {against_assistants}, people from this "
        f"user {against_user}. The assistant is the one in people's logs."
    )


def _cell(one: Measured) -> Line:
    counts = f"n {one['n']:,}"
    if one["missing"]:
        counts += f", {one['missing']:,} missing"
    return (measured(one, 1), Small(counts))


def _detector(found: Detections) -> Quote:
    """Return the name of the detector and its versions."""
    detector = found["detector"]
    name = " ".join((detector["name"], ", ".join(detector["versions"])))
    return Quote(name.strip(), 90)

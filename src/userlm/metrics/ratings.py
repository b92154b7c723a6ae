"""How often people who see a person's conversation and a simulated one, without knowing which is
which, take the simulated one for the person's. `userlm serve` collects such ratings at `/blind`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from userlm.json_files import take
from userlm.lines import Line
from userlm.rows import read_parsed
from userlm.stats import PERCENT, measure
from userlm.types import Measure, MeasureRow

NAME = "taken for a person"
CHANCE = 50.0
"""The percent of a user whom nobody can tell from a person."""


@dataclass(frozen=True, slots=True)
class RatedUser:
    """Whose turns were rated.

    Attributes:
        name: the address, and the options of the user; empty if it is not known.
        version: names what the address and the options mean, with the contents of its files;
            empty if these are not known.
    """

    name: str = ""
    version: str = ""

    def may_be(self, other: RatedUser) -> bool:
        """Whether both can be the same user: by their versions, else by their names, as far as
        these are known."""
        if self.version and other.version:
            return self.version == other.version
        names = {self.name, other.name} - {""}
        return len(names) < 2


@dataclass(frozen=True, slots=True)
class Rating:
    """One line of ratings.jsonl.

    Attributes:
        pair: the number of the pair in its test, from 1.
        id_human: the id of the person's conversation, and `id_model` that of the simulated one.
        chosen: which of the two the rater took for the person's.
        rater: who rated, as they call themselves; may be empty.
        answers: whether the assistants' answers were shown, which may give a side away.
        shown: names what was shown, whichever side it was on; empty in older files.
        user, version: see `RatedUser`.
    """

    pair: int
    id_human: str
    id_model: str
    chosen: Literal["human", "model"]
    rater: str = ""
    answers: bool = False
    shown: str = ""
    user: str = ""
    version: str = ""

    @property
    def of(self) -> RatedUser:
        """Whose turns were rated."""
        return RatedUser(self.user, self.version)

    def repeats(self, other: Rating) -> bool:
        """Whether its rater had rated the same pair of the same user with the other one."""
        is_same = (self.rater, self.shown) == (other.rater, other.shown)
        return is_same and self.of.may_be(other.of)


def read_ratings(path: Path) -> list[Rating]:
    """Return the ratings in a file; raise `InputError` that names the line for what is none."""
    return list(read_parsed(path, _rating))


def _rating(line: Line) -> Rating:
    row = line.row
    chosen = take(row, "chosen", str)
    if chosen not in ("human", "model"):
        raise ValueError(f"chosen is {chosen!r}; it must be 'human' or 'model'")
    return Rating(
        take(row, "pair", int),
        take(row, "id_human", str),
        take(row, "id_model", str),
        chosen,
        take(row, "rater", str, default=""),
        take(row, "answers", bool, default=False),
        take(row, "shown", str, default=""),
        take(row, "user", str, default=""),
        take(row, "version", str, default=""),
    )


def taken_for_person(ratings: Sequence[Rating]) -> Measure:
    """Return 100 x the share of ratings in which the simulated conversation was taken for the
    person's. Rows have the stats (1 if it was, 1); several ratings of a pair are one cluster."""
    rows = []
    for number, rating in enumerate(ratings):
        pair = f"{rating.id_human} {rating.id_model}"
        wrong = float(rating.chosen == "model")
        rows.append(MeasureRow(f"{pair}/{number}", pair, (wrong, 1.0)))
    return measure(rows, PERCENT, NAME)

"""The paper's figures, for a table in which a user of ours stands beside its users and people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """A row of the paper's table of simulators; `None` where it has no figure.

    Attributes:
        not_asked: the measures of people that are no measurement.
    """

    name: str
    figures: tuple[float | None, ...]
    not_asked: tuple[str, ...] = ()


MEASURES = (
    "first-turn diversity",
    "intent decomposition",
    "termination F1",
    "naturalness",
    "robustness",
)
"""The columns. Robustness is the mean of user-role and intent adherence."""

PAPER: Mapping[str, tuple[float | None, ...]] = {
    "Llama3.2-1b-Instruct": (81.36, 15.72, 3.47, 0.14, 77.55, 54.95),
    "Llama3-8b-Instruct": (81.31, 23.95, 3.51, 0.20, 63.25, 78.05),
    "GPT-4o-mini": (66.10, 9.66, 15.31, 0.04, 80.20, 88.70),
    "GPT-4o": (74.42, 7.68, 1.38, 3.31, 38.85, 70.95),
    "USP-8b": (94.37, 6.33, 21.31, 77.73, 98.05, 97.55),
    "UserLM-1b": (90.90, 3.07, 56.83, 78.96, 91.30, 93.55),
    "UserLM-8b": (94.55, 2.69, 63.54, 80.21, 93.95, 94.65),
    "humans": (94.01, 1.68, None, 90.15, None, None),
}
"""All rows, as the authors' slides label them: diversity, decomposition, termination F1,
naturalness, and user-role and intent adherence."""


def _short(row: str) -> tuple[float | None, ...]:
    """Return the figures of a row in the order of `MEASURES`; what the paper does not measure of
    people is 100: see `NOTE`."""
    known = [100.0 if figure is None else figure for figure in PAPER[row]]
    *first, role, intent = known
    return (*first, (role + intent) / 2)


ROWS = (
    Published("GPT-4o, prompted", _short("GPT-4o")),
    Published(
        "people",
        _short("humans"),
        ("termination F1", "robustness"),
    ),
    Published("UserLM-8b", _short("UserLM-8b")),
)

NOT_ASKED = "set, not measured"
"""Beside what is only taken for people's."""
NOTE = (
    "Diversity: how different first turns are. Decomposition: words of a turn that are the "
    "intent's. Termination: how well the ends fall where people's do. Naturalness: how probably a "
    "person wrote the turns, by a detector; without one, the two-sample AUROC says how easily the "
    "user is told from people. Robustness: how often it keeps its role and its intent, the mean of "
    "both. People's 100 is set, not measured: the ends are their own, and they were not tested. "
    "All in percent; higher is better, of decomposition closer to people. The published figures "
    "are of other conversations, so only the order can be compared; of decomposition not even "
    "that, since how the paper counts is not known."
)

"""The paper's figures, for a table in which a user of ours stands beside its users and people."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A row of the paper's table of simulators; `None` where it has no figure.

    Attributes:
        by_construction: the measures of people that are no measurement.
    """

    name: str
    figures: tuple[float | None, ...]
    by_construction: tuple[str, ...] = ()


MEASURES = (
    "first-turn diversity",
    "intent decomposition",
    "termination F1",
    "naturalness",
    "robustness",
)
"""The columns. Robustness is the mean of user-role and intent adherence."""

ROWS = (
    Published("GPT-4o, prompted", (74.42, 7.68, 1.38, 3.31, (38.85 + 70.95) / 2)),
    Published(
        "people",
        (94.01, 1.68, 100.0, 90.15, 100.0),
        ("termination F1", "robustness"),
    ),
    Published("UserLM-8b", (94.55, 2.69, 63.54, 80.21, (93.95 + 94.65) / 2)),
)

NOTE = (
    "The published figures are of other conversations, so only the order can be compared; of "
    "intent decomposition not even that, since how the paper counts is not known. Higher is "
    "better; of intent decomposition, closer to people. Naturalness needs a detector; without one, "
    "the two-sample AUROC says how easily the user is told apart from people."
)

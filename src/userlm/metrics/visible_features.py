"""How predictable ends are from what anybody can see of a conversation: its length, questions,
thanks. A reference for the termination of a user.

A logistic regression is fitted to the people of the log, each fifth of them predicted by the other
four (Cox, 1958; fitted by Newton's method). A user that orders the turns worse knows less about
ends than the lengths of turns tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from userlm.metrics.crowds import THANKS
from userlm.stats import Array
from userlm.text import words
from userlm.types import Conversation

FOLDS = 5
PENALTY = 1.0  # on the squared weights of standardized features
STEPS = 25

_ASKS = re.compile(r"\?\W*\Z")
_BYE = re.compile(r"\b(bye|goodbye)\b")


def features(prefix: Conversation) -> list[float]:
    """Return the features of a conversation before the turn at which the user may end: numbers of
    turns and words (as log(1 + n)), and 1 or 0 for what the last two turns have."""
    last = {turn.role: turn.text for turn in prefix.turns}
    answer = last.get("assistant", "")
    said = last.get("user", "")
    plain = said.lower()
    return [
        np.log1p(len(prefix.user_turns)),
        np.log1p(len(words(said))),
        np.log1p(len(words(answer))),
        np.log1p(sum(len(words(turn)) for turn in prefix.user_turns)),
        float(bool(_ASKS.search(answer))),
        float(bool(_ASKS.search(said))),
        float("```" in answer),
        float(bool(THANKS.search(plain) or _BYE.search(plain))),
    ]


def predicted(
    prefixes: Sequence[Conversation], ended: Sequence[bool], people: Sequence[str]
) -> list[tuple[float, bool]] | None:
    """Return P(end) after each prefix, and whether that is an end at the threshold with the best F1
    on the other people; `None` if there are too few people or ends to fit and predict.

    Args:
        ended: whether the person ended there.
        people: who the person is.
    """
    # The same person has the same fold; people are dealt in the order in which they come.
    number = {person: i for i, person in enumerate(dict.fromkeys(people))}
    fold = np.array([number[person] % FOLDS for person in people], dtype=int)
    x = np.array([features(prefix) for prefix in prefixes])
    y = np.array(ended, dtype=float)
    found: list[tuple[float, bool]] = [(0.0, False)] * len(y)
    for held_out in range(FOLDS):
        mine, others = fold == held_out, fold != held_out
        if len(number) < 2 * FOLDS or not 0 < y[others].sum() < others.sum():
            return None
        p_end = _fit_and_predict(x[others], y[others], x)
        threshold = _best_threshold(p_end[others], y[others])
        for i in np.flatnonzero(mine):
            found[i] = float(p_end[i]), bool(p_end[i] >= threshold)
    return found


def _fit_and_predict(x: Array, y: Array, wanted: Array) -> Array:
    """Return P(y = 1) for the rows of `wanted`."""
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1

    def standardized(rows: Array) -> Array:
        return np.column_stack([np.ones(len(rows)), (rows - mean) / scale])

    design = standardized(x)
    penalty = PENALTY * np.eye(design.shape[1])
    penalty[0, 0] = 0  # not on the constant
    weights = np.zeros(design.shape[1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (y - p) - penalty @ weights
        curvature = (design.T * (p * (1 - p))) @ design + penalty
        weights += np.linalg.solve(curvature, slope)
    return np.asarray(1 / (1 + np.exp(-standardized(wanted) @ weights)))


def _best_threshold(p_end: Array, y: Array) -> float:
    """Return the P(end) from which on ending has the best F1."""
    order = np.argsort(-p_end)
    hits = np.cumsum(y[order])
    f1 = 2 * hits / (np.arange(1, len(y) + 1) + y.sum())
    return float(p_end[order][np.argmax(f1)])

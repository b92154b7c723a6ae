"""How much of what a user says stands word by word in the logs that it was trained on.

Some of it always does: people say "thank you very much" too. So it is read beside people who were
not trained on, at the same places.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from userlm.metrics.intrinsic import Conversations, own_turns, turn_rows
from userlm.stats import MEAN, Indices, measure
from userlm.text import words
from userlm.types import Measure

BETWEEN = 0
"""Stands between two turns, in place of the number of a word."""
UNKNOWN = -1
"""The number of a word that is in no turn of training."""


class TrainingTurns(NamedTuple):
    """The words of turns as numbers.

    Attributes:
        numbers: the number of each word, from 1.
        turns: all turns, one after the other, each followed by `BETWEEN`.
    """

    numbers: dict[str, int]
    turns: Indices


def training_turns(conversations: Conversations) -> TrainingTurns:
    """Return the user turns of the logs that a user was trained on."""
    numbers: dict[str, int] = {}
    turns = array("l")
    for conversation in conversations:
        for text in conversation.user_turns:
            for word in words(text):
                turns.append(numbers.setdefault(word, len(numbers) + 1))
            turns.append(BETWEEN)
    return TrainingTurns(numbers, np.array(turns, dtype=np.intp))


def verbatim_overlap(conversations: Conversations, training: TrainingTurns) -> Measure:
    """Return the mean over turns of their `longest_runs`, in words."""
    kept = list(conversations)
    turns = [turn for conversation in kept for turn in own_turns(conversation)]
    found = iter(longest_runs([turn.text for turn in turns], training))
    return measure(turn_rows(kept, lambda turn: (float(next(found)), 1.0)), MEAN)


def longest_verbatim_overlap(
    conversations: Conversations, training: TrainingTurns
) -> Measure:
    """Return the largest of all `longest_runs`, in words. It has no interval, and grows with the
    number of turns."""
    rows = verbatim_overlap(conversations, training).rows
    runs = [row.stats[0] for row in rows if row.stats]
    return Measure("", max(runs, default=None), None, None, rows)


def longest_runs(texts: Sequence[str], training: TrainingTurns) -> list[int]:
    """Return for each text the length of its longest run of words that is in one turn of training.

    Runs of one word, then of two words and so on are looked up, of all texts at once. A run can
    only be known if it is without its last word, so soon few are left on both sides.
    """
    codes: list[int] = []
    text_of: list[int] = []
    for i, text in enumerate(texts):
        said = [training.numbers.get(word, UNKNOWN) for word in words(text)]
        codes += [*said, BETWEEN]
        text_of += [i] * (len(said) + 1)
    ours = _empty_runs(np.array(codes, dtype=np.intp))
    theirs = _empty_runs(training.turns)
    owner = np.array(text_of, dtype=np.intp)
    longest = np.zeros(len(texts), dtype=np.intp)
    factor = len(training.numbers) + 1
    size = 0
    while len(ours.starts):
        ours = ours.longer(size, factor)
        theirs = theirs.longer(size, factor)
        shared = np.intersect1d(ours.number, theirs.number)
        ours = ours.among(shared)
        theirs = theirs.among(shared)
        size += 1
        longest[owner[ours.starts]] = size
    return longest.tolist()


class _Runs(NamedTuple):
    """Runs of words.

    Attributes:
        codes: the words that they are in.
        starts: where they start.
        number: the number of each; equal runs of both sides have the same.
    """

    codes: Indices
    starts: Indices
    number: Indices

    def longer(self, size: int, factor: int) -> _Runs:
        """Return the runs with one word more, where their turn has a known one."""
        after = self.codes[self.starts + size]
        known = after > BETWEEN
        number = self.number[known] * factor + after[known]
        return _Runs(self.codes, self.starts[known], number)

    def among(self, shared: Indices) -> _Runs:
        """Return the runs with these numbers, numbered by their places there."""
        kept = np.isin(self.number, shared)
        number = np.searchsorted(shared, self.number[kept])
        return _Runs(self.codes, self.starts[kept], number)


def _empty_runs(codes: Indices) -> _Runs:
    """Return a run of no words at each place."""
    return _Runs(codes, np.arange(len(codes)), np.zeros(len(codes), np.intp))

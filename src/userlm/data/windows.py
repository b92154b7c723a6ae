"""Calls to a model that were sent only the last messages of a conversation.

An app that sends the last ten messages with each call, or cuts them to the context length, logs
calls of which each begins with the last turns of the one before. Left as they are, a conversation
of twenty turns would be a dozen, each with an end that never happened.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Set

import numpy as np

from userlm.types import Conversation

_FEWEST = 2  # turns that two calls share, so one of each side
_MODULUS = (1 << 61) - 1
_BASE = 0x9E3779B97F4A7C1

_Entry = tuple[int, int]
"""The place of a call, and how many turns it shares with the one before."""


class Windows:
    """Finds calls that begin with the last turns of an earlier one. It holds 16 bytes a turn.

    The turns at the beginning and at the end of each call are compared by hashes of all lengths,
    which a polynomial in the hashes of the turns gives (Rabin and Karp).
    """

    def __init__(self) -> None:
        self._counts = array("q")  # of the hashes of each call
        self._heads = array("q")
        self._tails = array("q")

    def add(self, conversation: Conversation, whose: str | None) -> None:
        """Add what may be a call, in the order of the file; of an unknown person, only its
        place."""
        before = len(self._heads)
        if whose is not None:
            sums, power = [0], 1
            for turn in conversation.turns:
                said = hash((turn.role, turn.text.strip()))
                sums.append((sums[-1] * _BASE + said) % _MODULUS)
            for count in range(1, len(conversation.turns)):
                power = power * _BASE % _MODULUS
                if count >= _FEWEST:
                    tail = (sums[-1] - sums[-1 - count] * power) % _MODULUS
                    self._heads.append(hash((whose, count, sums[count])))
                    self._tails.append(hash((whose, count, tail)))
        self._counts.append(len(self._heads) - before)

    def chains(self, others: Set[int]) -> Iterator[list[_Entry]]:
        """Return the calls of each conversation, in order.

        Args:
            others: places of conversations that are no calls.
        """
        following = self._following(others)
        later = {place for place, _ in following.values()}
        for first in following.keys() - later:
            chain = [(first, 0)]
            while (last := chain[-1][0]) in following:
                chain.append(following[last])
            yield chain

    def _following(self, others: Set[int]) -> dict[int, _Entry]:
        """Return for each call the next one that begins with its last turns: with most of them."""
        heads, tails = np.array(self._heads), np.array(self._tails)
        begins = np.flatnonzero(np.isin(heads, tails))
        ends = np.flatnonzero(np.isin(tails, heads))
        counts = np.array(self._counts)
        places = np.repeat(np.arange(len(counts)), counts)
        starts = np.cumsum(counts) - counts
        # The last of these in the file first, so that those before a call are popped.
        by_head: defaultdict[int, list[int]] = defaultdict(list)
        for at in reversed(begins.tolist()):
            by_head[self._heads[at]].append(int(places[at]))
        of_place: defaultdict[int, list[int]] = defaultdict(list)
        for at in ends.tolist():
            of_place[int(places[at])].append(at)
        following: dict[int, _Entry] = {}
        taken = set(others)
        for place, tail_places in of_place.items():
            for at in reversed(tail_places) if place not in others else ():
                calls = by_head[self._tails[at]]
                while calls and (calls[-1] <= place or calls[-1] in taken):
                    calls.pop()
                if calls:
                    taken.add(calls[-1])
                    shared = at - int(starts[place]) + _FEWEST
                    following[place] = calls.pop(), shared
                    break
        return following

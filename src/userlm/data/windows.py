"""Calls to a model that were sent only the last messages of a conversation.

An app that sends the last ten messages with each call, or cuts them to the context length, logs
calls of which each begins with the last turns of the one before. Left as they are, a conversation
of twenty turns would be a dozen, each with an end that never happened.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from itertools import chain
from operator import eq
from typing import NamedTuple

import numpy as np

from userlm.data.filters import FLAGS, is_set
from userlm.types import Conversation

EXCHANGE, TWO_EXCHANGES = 2, 4
"""In turns."""
_FEWEST = TWO_EXCHANGES
"""Turns that two calls share. Two may be a greeting that a person writes again and again, or what
an app asks a model about the last exchange."""
_MODULUS = (1 << 61) - 1
_BASE = 0x9E3779B97F4A7C1

Entry = tuple[int, int]
"""The place of a call, and how many turns it shares with the one before."""


class _Matches(NamedTuple):
    """Beginnings of calls that others end with, and ends of calls that others begin with.

    Attributes:
        begins: the hash and the place of each, in the order of the file.
        ends: the same, and the number of turns.
    """

    begins: Sequence[tuple[int, int]]
    ends: Sequence[tuple[int, int, int]]


class Windows:
    """Finds calls that begin with the last turns of another one. It holds 16 bytes a turn.

    The turns at the beginning and at the end of each call are compared by hashes of all lengths,
    which a polynomial in the hashes of the turns gives (Rabin and Karp).
    """

    def __init__(self) -> None:
        self._starts = array("q")  # of the hashes of each call
        self._whose = array("q")
        self._heads = array("q")
        self._tails = array("q")

    def add(self, conversation: Conversation, whose: str | None) -> None:
        """Add what may be a call, in the order of the file.

        Args:
            whose: the person, or the id of the conversation; of `None` only the place is added.
        """
        heads, tails = self._hashes(conversation, whose)
        self._starts.append(len(self._heads))
        self._whose.append(hash(whose))
        self._heads.extend(heads)
        self._tails.extend(tails)

    def are_neighbours(
        self, conversation: Conversation, whose: str | None, place: int
    ) -> bool:
        """Return whether a call begins with the last turns of the one at a place, or ends with the
        first ones of it."""
        heads, tails = self._hashes(conversation, whose)
        first = self._starts[place]
        end = next(iter(self._starts[place + 1 : place + 2]), len(self._heads))
        as_later = map(eq, heads, self._tails[first:end])
        as_earlier = map(eq, tails, self._heads[first:end])
        return any(as_later) or any(as_earlier)

    def _hashes(
        self, conversation: Conversation, whose: str | None
    ) -> tuple[list[int], list[int]]:
        """Return hashes of the first turns of a call, and of as many last ones: of each number from
        the fewest on."""
        heads: list[int] = []
        tails: list[int] = []
        if whose is None:
            return heads, tails
        sums, power = [0], 1
        for turn in conversation.turns:
            said = hash((turn.role, turn.text.strip()))
            sums.append((sums[-1] * _BASE + said) % _MODULUS)
        for count in range(1, len(conversation.turns)):
            power = power * _BASE % _MODULUS
            if count >= _FEWEST:
                tail = (sums[-1] - sums[-1 - count] * power) % _MODULUS
                heads.append(hash((whose, count, sums[count])))
                tails.append(hash((whose, count, tail)))
        return heads, tails

    def chains(self, others: Set[int] = frozenset()) -> Iterator[list[Entry]]:
        """Return the calls of each conversation, in order. In a file the last may stand first: for
        each person they go the way in which more of them follow each other.

        Args:
            others: places of conversations that are no calls.
        """
        matches = self._matches()
        ahead, back = (self._following(matches, others, step) for step in (1, -1))
        counts: Counter[int] = Counter(self._whose[place] for place in ahead)
        counts.subtract(self._whose[place] for place in back)
        following = {
            place: entry
            for step, found in ((1, ahead), (-1, back))
            for place, entry in found.items()
            if (counts[self._whose[place]] >= 0) == (step > 0)
        }
        later = {place for place, _ in following.values()}
        for first in following.keys() - later:
            calls = [(first, 0)]
            while (last := calls[-1][0]) in following:
                calls.append(following[last])
            yield calls

    def _matches(self) -> _Matches:
        """Return which calls begin as others end."""
        heads, tails = np.array(self._heads), np.array(self._tails)
        starts = np.array(self._starts, dtype=np.int64)
        counts = np.diff(starts, append=len(heads))
        places = np.repeat(np.arange(len(starts)), counts)
        begins = np.flatnonzero(np.isin(heads, tails))
        ends = np.flatnonzero(np.isin(tails, heads))
        shared = ends - starts[places[ends]] + _FEWEST
        # The windows of an app do not get shorter, or hardly.
        ends = ends[2 * shared >= counts[places[ends]] + _FEWEST]
        shared = ends - starts[places[ends]] + _FEWEST
        end_columns = (tails[ends], places[ends], shared)
        return _Matches(
            [*zip(heads[begins].tolist(), places[begins].tolist(), strict=True)],
            [*zip(*(column.tolist() for column in end_columns), strict=True)],
        )

    def _following(
        self, matches: _Matches, others: Set[int], step: int
    ) -> dict[int, Entry]:
        """Return for each call the next one that begins with its last turns: with most of them.

        Args:
            step: 1 if calls follow each other in the file; -1 if the last one is first.
        """
        # The last of these first, so that those before a call are popped.
        by_head: defaultdict[int, list[int]] = defaultdict(list)
        for head, place in matches.begins[::-step]:
            by_head[head].append(place)
        following: dict[int, Entry] = {}
        taken = set(others)
        # Those that share most first: a call may begin as an earlier conversation ends by chance.
        for tail, place, count in sorted(
            matches.ends, key=lambda end: (-end[2], end[1] * step)
        ):
            if place in following or place in others:
                continue
            calls = by_head[tail]
            while calls and ((calls[-1] - place) * step <= 0 or calls[-1] in taken):
                calls.pop()
            if calls:
                taken.add(calls[-1])
                following[place] = calls.pop(), count
        return following


def join(calls: Sequence[Conversation], shared: Sequence[int]) -> Conversation:
    """Return the conversation of these calls, under the id of the first one; of the person that one
    of them names.

    Args:
        shared: how many of its first turns each shares with the one before.
    """
    turns = chain.from_iterable(
        call.turns[count:] for call, count in zip(calls, shared, strict=True)
    )
    meta = dict(chain.from_iterable(call.meta.items() for call in calls))
    user = next(filter(None, (call.user for call in calls)), None)
    whole = replace(calls[-1], id=calls[0].id, turns=tuple(turns), user=user, meta=meta)
    return with_facts(whole, calls)


def facts_of(conversation: Conversation) -> Conversation:
    """Return a conversation with its intent and its flags (`filters.FLAGS`) alone."""
    return replace(conversation, turns=(), ended=False, meta=_flags_of(conversation))


def _flags_of(conversation: Conversation) -> dict[str, bool]:
    return {name: True for name in FLAGS if is_set(conversation.meta.get(name))}


def with_facts(
    conversation: Conversation, calls: Sequence[Conversation]
) -> Conversation:
    """Return a conversation with the flags of all calls that are a part of it, and the intent of
    one if it has none."""
    flags = chain.from_iterable(_flags_of(call).items() for call in calls)
    intents = (each.intent for each in (conversation, *calls))
    return replace(
        conversation,
        intent=next(filter(None, intents), None),
        meta={**conversation.meta, **dict(flags)},
    )

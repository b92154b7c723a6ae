"""Conversations that a log holds in several rows.

An app that logs each call to a model logs the history with each: rows of one, two and three
exchanges of a person are one conversation. Left as they are, the first two would be ends that never
happened. (Spans are gathered by `layouts.otel`, which knows their ids.) If it sends only the last
messages, each row begins with the last turns of the one before (`data.windows`).

Some copies of ShareGPT cut long conversations into pieces, as FastChat's split_long_conversation
does: `QWJhYvA_0`, `QWJhYvA_2`, `QWJhYvA_8`, where the number is that of the first message.
Elsewhere such a number may count conversations, so pieces are joined only where all speaks for
ShareGPT.

Paths of a tree of replies stay conversations of their own, but share their first turns.
"""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from userlm.data.windows import (
    EXCHANGE,
    TWO_EXCHANGES,
    Windows,
    facts_of,
    join,
    with_facts,
)
from userlm.types import Conversation, Origin

# A name of ShareGPT, after a prefix that some copies have: 4 to 7 characters by chance, so no
# word with or without a number (`user001`). A longer number is a date, or an index.
_PIECE = re.compile(
    r"((?:.*[^A-Za-z0-9])?(?![A-Za-z]?[a-z]*[0-9]*_)[A-Za-z0-9]{4,7})_(0|[1-9][0-9]{0,3})"
)
_STRANGERS = ("arena", "prism")
_STRANGERS_IN = ("wildchat", "lmsys")
"""Sets, and what the names of others have in them, in which a row is a conversation by itself. Many
of their people say `hi` and get the same answer, so a history without a person is not compared
there."""
_GATHERED = ("oasst", "otel")
"""Layouts that put rows together themselves."""

_Piece = tuple[int, int, int]
"""The number of the first message, how many turns there are, and the place in the file."""
_Key = tuple[int, str]
"""The hash of a history, and the id of its call; empty for what holds for all with this history."""
_Answer = tuple[int, int]
"""The length and the hash of the beginning of an answer."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Pieces of a conversation without a gap between them, in order.

    Attributes:
        pieces: their places in the file.
        is_last: whether no further pieces come after a gap.
        name: the name of the conversation if it has several segments, which cannot be joined.
        shared: for each piece, how many of its first turns the one before has, if any has.
    """

    pieces: Sequence[int]
    is_last: bool = True
    name: str | None = None
    shared: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with the conversations of a file, by their places in it.

    Attributes:
        continued: those with which another one begins; they are left out.
        segments: for each piece, its segment.
        later: of calls with one id, the next one that goes on from each.
    """

    continued: frozenset[int]
    segments: dict[int, Segment]
    later: Mapping[int, int] = field(default_factory=dict)

    @property
    def merged(self) -> int:
        """The number of conversations that become a part of another one."""
        firsts = {segment.pieces[0] for segment in self.segments.values()}
        return len(self.continued) + len(self.segments) - len(firsts)

    def __bool__(self) -> bool:
        return bool(self.continued or self.segments)

    def apply(
        self, conversations: Callable[[], Iterable[Conversation]]
    ) -> Iterator[Conversation]:
        """Yield the conversations that remain, in order. Only pieces are held in memory, until
        their segment is complete.

        Args:
            conversations: returns them from the beginning.
        """
        facts = self._facts(conversations()) if self.continued else {}
        held: defaultdict[int, dict[int, Conversation]] = defaultdict(dict)
        carried: dict[int, Conversation] = {}  # to the next call of an id
        for place, conversation in enumerate(conversations()):
            if place in carried:
                conversation = with_facts(conversation, [carried.pop(place)])
            if place in self.later:
                carried[self.later[place]] = facts_of(conversation)
            if place in self.continued:
                continue
            if facts:
                earlier = _facts_before(facts, conversation)
                conversation = with_facts(conversation, earlier)
            segment = self.segments.get(place)
            if segment is None:
                yield conversation
                continue
            first = segment.pieces[0]
            held[first][place] = conversation
            if len(held[first]) == len(segment.pieces):
                pieces = held.pop(first)
                yield _joined([pieces[piece] for piece in segment.pieces], segment)

    def _facts(self, conversations: Iterable[Conversation]) -> dict[_Key, Conversation]:
        """Return for each history an earlier call with its flags and its intent alone, if it has
        any. In a log the first call stands first."""
        facts: dict[_Key, Conversation] = {}
        of_shared_ids = {*self.later.keys(), *self.later.values()}
        for place, conversation in enumerate(conversations):
            if place not in self.continued:
                continue
            own = with_facts(facts_of(conversation), _facts_before(facts, conversation))
            if not (own.intent or own.meta):
                continue
            whole = _history(conversation).whole
            turns = len(conversation.turns) - _is_open(conversation)
            # Many strangers begin with one greeting. Where the calls of a conversation have one
            # id, what another one begins with is another person's, or said once more.
            may_be_of_many = conversation.user is None and turns <= EXCHANGE
            ids = [conversation.id]
            if not (may_be_of_many or place in of_shared_ids):
                ids.append("")
            for key in ((whole, id) for id in ids):
                facts[key] = with_facts(own, [facts.get(key, own)])
        return facts


class Joining:
    """Collects what is needed of many conversations to find those that belong together: 8 bytes a
    turn and a paragraph of the last one, and in logs that may be of calls 16 more a turn.

    Args:
        are_whole: whether each is known to be whole, as where the messages of an id were gathered:
            then one that begins with another is of its own (many open with the same greeting).
    """

    def __init__(self, are_whole: bool = False) -> None:
        self._are_whole = are_whole
        self._wholes = array("q")  # 0: not compared
        self._asked = array("q")  # those up to the last turn of the user
        self._beginnings = array("q")
        self._starts = array("q")  # of the beginnings of each
        self._windows = Windows()
        self._last_answers: dict[int, _Answer] = {}  # by place, of those without an end
        # Of a call, and the one of its id that goes on from it.
        self._later: dict[int, int] = {}
        # by source and name
        self._pieces: defaultdict[tuple[str, str], list[_Piece]] = defaultdict(list)

    def __len__(self) -> int:
        """The number of conversations."""
        return len(self._wholes)

    def add(self, conversation: Conversation, before: int | None = None) -> int:
        """Add a conversation, in the order of the file; return its place there.

        Args:
            before: the place of the latest conversation of its id, if both `are_one`.
        """
        place = len(self._wholes)
        if before is not None and self._continues(conversation, before):
            self._later[before] = place
        history = _NOT_COMPARED if self._are_whole else _history(conversation)
        self._wholes.append(history.whole)
        self._asked.append(history.asked)
        self._starts.append(len(self._beginnings))
        self._beginnings.extend(history.kept)
        self._windows.add(conversation, self._whose(conversation))
        if history.whole and _is_open(conversation):
            answer = conversation.turns[-1].text
            self._last_answers[place] = _beginning(answer, len(answer.strip()))
        match = _PIECE.fullmatch(conversation.id)
        if match and _may_be_a_piece(conversation):
            key = _source(conversation), match[1]
            piece = int(match[2]), len(conversation.turns), place
            self._pieces[key].append(piece)
        return place

    def are_one(self, conversation: Conversation, place: int) -> bool:
        """Return whether a conversation and the one at `place`, of the same id, are calls of one:
        it goes on from that (`_continues`), or one begins with the last turns of the other."""
        return self._continues(conversation, place) or self._windows.are_neighbours(
            conversation, self._whose(conversation), place
        )

    def _whose(self, conversation: Conversation) -> str | None:
        """Return the person of what may be a call with the last messages alone, or if no person is
        known the id; `None` if it is none."""
        is_whole = self._are_whole or _is_of_strangers(conversation)
        if is_whole or not _may_be_a_part(conversation):
            return None
        return conversation.user or conversation.id

    def _continues(self, conversation: Conversation, place: int) -> bool:
        """Return whether a conversation goes on from the one at `place`, which has its id: it
        begins with all of that, or all but a last answer, which was made again. That one may be of
        a guest."""
        whole, asked = self._wholes[place], self._asked[place]
        end = next(iter(self._starts[place + 1 : place + 2]), len(self._beginnings))
        shorter = self._beginnings[self._starts[place] : end]
        may_be = [conversation]
        if conversation.user is not None:
            may_be.append(replace(conversation, user=None))
        for each in may_be:
            history = _history(each, are_of_one_id=True)
            is_copy_or_part = history.whole == whole or history.whole in shorter
            if is_copy_or_part:
                return False
            if whole in history.beginnings or asked in history.beginnings:
                return True
        return False

    def plan(self, conversations: Iterable[Conversation]) -> Plan:
        """Return what to do, once all conversations were added.

        Args:
            conversations: the same, in order; they are only read if some may be earlier calls
                whose last answer is not complete.
        """
        wholes = np.array(self._wholes)
        is_continued = np.isin(wholes, np.array(self._beginnings)) & (wholes != 0)
        places = set(np.flatnonzero(is_continued).tolist())
        unsure = places.intersection(self._last_answers)
        continued = frozenset(
            self._later.keys()
            | places - unsure
            | self._continued(unsure, conversations)
        )
        counting = {
            source for (source, _), each in self._pieces.items() if _count(each)
        }
        segments: dict[int, Segment] = {}
        for (source, name), pieces in self._pieces.items():
            is_apart = continued.isdisjoint(place for _, _, place in pieces)
            if is_apart and source not in counting:
                for segment in _segments(name, sorted(pieces)):
                    segments.update(dict.fromkeys(segment.pieces, segment))
        for chain_of_calls in self._windows.chains(continued | segments.keys()):
            calls, shared = zip(*chain_of_calls, strict=True)
            segments.update(dict.fromkeys(calls, Segment(calls, shared=shared)))
        return Plan(continued, segments, self._later)

    def _continued(
        self, places: Set[int], conversations: Iterable[Conversation]
    ) -> set[int]:
        """Return those of the places with which one of the conversations begins."""
        lengths: defaultdict[int, set[int]] = defaultdict(set)
        calls: defaultdict[tuple[int, _Answer], list[int]] = defaultdict(list)
        for place in places:
            whole, answer = self._wholes[place], self._last_answers[place]
            lengths[whole].add(answer[0])
            calls[whole, answer].append(place)
        shortest_first = {whole: sorted(each) for whole, each in lengths.items()}
        compared: set[tuple[int, int]] = set()
        found: set[int] = set()
        for conversation in conversations if places else ():
            beginnings = _history(conversation).beginnings
            for whole in lengths.keys() & beginnings:
                following = beginnings[whole]
                if following == len(conversation.turns):
                    continue
                text = conversation.turns[following].text
                # Thousands of rows may go on from one answer.
                if (whole, hash(text)) in compared:
                    continue
                compared.add((whole, hash(text)))
                for length in shortest_first[whole]:
                    if length > len(text):
                        break  # of thousands, a short answer is compared with few
                    found.update(calls.pop((whole, _beginning(text, length)), ()))
        return found


class SharedTurns:
    """The user turns of trees of replies, and the id of the first path with each.

    The layout `oasst` knows them by their ids; in other layouts a path is a row with its `tree`.
    """

    def __init__(self) -> None:
        self._owner: dict[int, str] = {}

    def owned(self, path: Conversation) -> Conversation:
        """Return a path with the first user turn of its own in `origin`, if earlier ones have those
        before it; any other conversation unchanged."""
        tree = path.meta.get("tree")
        if tree is None or path.stop:
            return path
        hashes = _hashes(path, (_source(path), str(tree)))
        turns = zip(path.turns, hashes, strict=True)
        asked = [keys[-1] for turn, keys in turns if turn.role == "user"]
        owners = [self._owner.setdefault(key, path.id) for key in asked]
        shared = [owner for owner in owners if owner != path.id]
        if not shared or path.origin:
            return path
        return replace(path, origin=Origin(shared[-1], len(shared)))


def _source(conversation: Conversation) -> str:
    return str(conversation.meta.get("source", "")).lower()


def _may_be_a_part(conversation: Conversation) -> bool:
    """Return whether a conversation may be a part of one. One that a run made is whole."""
    is_gathered = _source(conversation) in _GATHERED or "tree" in conversation.meta
    return not (is_gathered or conversation.stop or conversation.origin)


def _may_be_a_piece(conversation: Conversation) -> bool:
    """Return whether a conversation is of ShareGPT, which knows no people, and begins as a piece
    does."""
    is_of_sharegpt = "sharegpt" in _source(conversation) and conversation.user is None
    begins = conversation.turns[0].role == "user"
    return is_of_sharegpt and begins and _may_be_a_part(conversation)


def _may_be_a_call(conversation: Conversation) -> bool:
    is_known = conversation.user is not None or not _is_of_strangers(conversation)
    return is_known and _may_be_a_part(conversation)


def _is_of_strangers(conversation: Conversation) -> bool:
    source = _source(conversation)
    return source in _STRANGERS or any(name in source for name in _STRANGERS_IN)


def _is_open(conversation: Conversation) -> bool:
    """Return whether the last answer may not be complete, as before a tool call."""
    return conversation.next_role == "user" and not conversation.ended


class _History(NamedTuple):
    """Hashes of a conversation; 0 and none if it is not compared.

    Attributes:
        whole: of all of it, but for a last answer that may not be complete.
        asked: up to the last turn of its user.
        beginnings: of each beginning that may be an earlier call, and its number of turns.
        kept: of these, those of whole turns, and all within the last one.
    """

    whole: int
    asked: int
    beginnings: Mapping[int, int]
    kept: Sequence[int]


_NOT_COMPARED = _History(0, 0, {}, ())


def _history(conversation: Conversation, are_of_one_id: bool = False) -> _History:
    """Return the hashes by which calls are compared.

    Args:
        are_of_one_id: whether earlier calls have its id, too.
    """
    if not _may_be_a_call(conversation):
        return _NOT_COMPARED
    hashes = _hashes(conversation, conversation.user)
    turns = zip(conversation.turns, hashes, strict=True)
    *_, asked = (keys[-1] for turn, keys in turns if turn.role == "user")
    if _is_open(conversation):
        hashes.pop()
    beginnings = {key: n for n, turn in enumerate(hashes, 1) for key in turn}
    whole, _ = beginnings.popitem()
    # A person may say hello in many conversations: a first turn without an answer is only an
    # earlier call of the next.
    if len(hashes) > TWO_EXCHANGES and not are_of_one_id:
        for key in hashes[0]:
            del beginnings[key]
    kept = [*(keys[-1] for keys in hashes[:-1]), *hashes[-1]]
    kept = [key for key in kept if key in beginnings]
    return _History(whole, asked, beginnings, kept)


def _facts_before(
    facts: Mapping[_Key, Conversation], conversation: Conversation
) -> list[Conversation]:
    """Return what is known of the earlier calls of a conversation, the latest first."""
    histories = reversed(_history(conversation).beginnings)
    keys = chain.from_iterable(((key, conversation.id), (key, "")) for key in histories)
    return [facts[key] for key in keys if key in facts]


def _beginning(answer: str, length: int) -> _Answer:
    return length, hash(answer.strip()[:length])


def _hashes(conversation: Conversation, whose: object) -> list[list[int]]:
    """Return for each turn hashes of the conversation up to each of its paragraphs: the first may
    have been all of the turn when an earlier call was logged, before its side went on. White space
    around them is ignored."""
    key = hash(whose)
    hashes: list[list[int]] = []
    for turn in conversation.turns:
        hashes.append([])
        key = hash((key, turn.role))
        said = turn.text.replace("\r\n", "\n")  # as a browser sent it
        paragraphs = [text.strip() for text in said.split("\n\n")]
        for paragraph in [*filter(None, paragraphs)] or [""]:
            key = hash((key, paragraph))
            hashes[-1].append(key)
    return hashes


def _count(pieces: Sequence[_Piece]) -> bool:
    """Return whether the numbers count conversations and not messages: pieces would overlap."""
    ordered = sorted(pieces)
    return any(
        start + length > later
        for (start, length, _), (later, _, _) in pairwise(ordered)
    )


def _segments(name: str, pieces: Sequence[_Piece]) -> list[Segment]:
    """Return the segments of sorted pieces; none if they are no pieces."""
    if len(pieces) < 2 or any(length < 2 for _, length, _ in pieces):
        return []
    segments: list[list[int]] = []
    end = 0
    is_odd = False
    for start, length, place in pieces:
        # Each piece begins with the user: one of odd length has no answer to join the next to.
        if not segments or start > end or is_odd:
            segments.append([])
        segments[-1].append(place)
        end = start + length
        is_odd = length % 2 == 1
    shared = name if len(segments) > 1 else None
    return [Segment(each, each is segments[-1], shared) for each in segments]


def _joined(pieces: Sequence[Conversation], segment: Segment) -> Conversation:
    """Return the conversation of a segment, under the id of its last piece; of calls, see
    `windows.join`."""
    if segment.shared:
        return join(pieces, segment.shared)
    meta = dict(chain.from_iterable(piece.meta.items() for piece in reversed(pieces)))
    if segment.name is not None:
        meta["tree"] = segment.name
    turns = tuple(chain.from_iterable(piece.turns for piece in pieces))
    ended = segment.is_last and pieces[-1].ended
    return with_facts(replace(pieces[-1], turns=turns, ended=ended, meta=meta), pieces)

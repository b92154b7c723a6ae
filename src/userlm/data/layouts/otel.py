"""Calls to language models that tracing tools export as spans (`layouts.spans` reads one),
gathered into conversations.

A chat app sends the whole history with each call. So the span with the longest history is kept for
each conversation, with its answer; spans whose messages are the beginning of that history are
merged into it, and those of which an app sent only the last messages are joined.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from userlm.data.layouts.common import Found, Imported, Layout, Place, assemble
from userlm.data.layouts.fields import Rejected, Row
from userlm.data.layouts.otlp import attributes_of
from userlm.data.layouts.spans import (
    Owner,
    Span,
    field_in,
    is_cut,
    owner_in,
    read_span,
    spans_in,
)
from userlm.data.windows import EXCHANGE, TWO_EXCHANGES, Entry, Windows, join
from userlm.json_files import dump, loads
from userlm.lines import Line

_MOST_WAITING = 1_000
"""Spans that wait for the first one of their trace, which mostly comes last."""


class Spans:
    """Spans of one or several files, gathered into conversations.

    An id (`gen_ai.conversation.id`, else `session.id`) identifies a conversation. Without an id,
    spans of one person belong together if their histories continue each other, in one trace or, if
    each request is a separate trace, in several. Otherwise each prefix of a conversation would
    count as a conversation that ended there.

    An app may set the id and the person on the first span of a trace alone. So spans without them
    wait for it, as long as these are not too many.

    If a history starts again, a new conversation starts; of those with the same id only the last
    has an observed end. Under an id, an answer that was generated again replaces the earlier one.

    An id may be shared: by people who write in one conversation, or by all of an app. So a span of
    somebody else belongs to a conversation only if one of both begins with all of the other.
    """

    def __init__(self) -> None:
        self._kept: list[Span] = []
        # The digests of each prefix, and of each tip, to its index in `_kept`.
        self._by_prefix: dict[bytes, int] = {}
        self._by_tip: dict[bytes, int] = {}
        self._roots: dict[str, Owner] = {}  # by trace
        self._waiting: dict[str, list[Span]] = {}  # by trace
        self._waiting_count = 0
        self._wrappers: list[Span] = []
        self._people: dict[str, str] = {}  # the first one of each id
        self._of_several: set[str] = set()  # ids
        self._traces: set[str] = set()  # traces with a call that has messages
        self._lines = 0
        # Lines, as long as none has messages; packed, since it may be all of a large log.
        self._silent: list[tuple[Place, bytes]] = []
        self._notes: Counter[str] = Counter()

    def add(self, line: Row, place: Place) -> None:
        """Add the spans of a line; raise `Rejected` if none with messages can be used."""
        # And whether each is the first of its trace.
        usable: list[tuple[Span, bool]] = []
        errors: list[Rejected] = []
        for row in spans_in(line):
            try:
                attributes = attributes_of(field_in(row, "attributes"), "attributes")
                root = owner_in(row, attributes)
                if root:
                    self._note_root(*root)
                span = read_span(row, place, attributes)
            except Rejected as error:
                errors.append(error)
                continue
            if span is None:
                self._notes["spans without messages"] += 1
            else:
                self._notes["spans cut at a limit"] += is_cut(row)
                usable.append((span, root is not None))
        if errors and not usable:
            raise errors[0]
        self._notes["spans left out"] += len(errors)
        self._lines += 1
        if usable:
            self._silent.clear()
        elif not (self._kept or self._wrappers or self._waiting):
            self._silent.append((place, zlib.compress(dump(line), level=1)))
        for span, is_first in usable:
            says_all = span.name and span.user
            # An export may lack the field of the parent: then each span is a first one.
            if says_all or not span.trace or (is_first and (span.name or span.user)):
                self._take(span)
            elif span.trace in self._roots:
                self._take(self._owned(span))
            else:
                self._wait(span)

    def _note_root(self, trace: str, owner: Owner) -> None:
        before = self._roots.get(trace, owner)
        name, user = before.name or owner.name, before.user or owner.user
        self._roots[trace] = Owner(name, user)
        self._release(trace)

    def _wait(self, span: Span) -> None:
        """Keep a span until the first one of its trace says whose it is."""
        self._waiting.setdefault(span.trace, []).append(span)
        self._waiting_count += 1
        if self._waiting_count > _MOST_WAITING:
            self._release(next(iter(self._waiting)))

    def _release(self, trace: str) -> None:
        waiting = self._waiting.pop(trace, [])
        self._waiting_count -= len(waiting)
        for span in waiting:
            self._take(self._owned(span))

    def _owned(self, span: Span) -> Span:
        """Return a span with what the first one of its trace says, where it says nothing itself."""
        name, user = self._roots.get(span.trace, (None, None))
        if (name and not span.name) or (user and not span.user):
            return span.of(span.name or name, span.user or user)
        return span

    def _take(self, span: Span) -> None:
        user = span.user
        if span.name and user and self._people.setdefault(span.name, user) != user:
            self._of_several.add(span.name)
        if span.wraps:
            self._wrappers.append(span)
        else:
            self._traces.add(span.trace)
            self._gather(span)

    def _gather(self, span: Span) -> None:
        """Merge a span into the conversation that it continues or repeats, or start one."""
        index = self._conversation_of(span)
        if index is None:
            index = len(self._kept)
            self._kept.append(span)
        else:
            self._notes["merged spans"] += 1
            before = self._kept[index]
            is_longer = span.length > before.length or (
                span.length == before.length and span.is_later(before)
            )
            longer = span if is_longer else before
            self._kept[index] = replace(
                longer,
                place=min(before.place, span.place),
                last=max(before.last, span.place),
                user=longer.user or span.user or before.user,
            )
            if longer is before:
                if span.user != before.user:  # earlier calls of this person may follow
                    self._by_prefix.update(dict.fromkeys(span.prefixes, index))
                return
            for prefixes in (before.prefixes, before.guest_prefixes):
                for tip in prefixes[-before.tips :]:
                    if self._by_tip.get(tip) == index:
                        del self._by_tip[tip]
        for known, first in (self._by_prefix, 0), (self._by_tip, -span.tips):
            known.update(dict.fromkeys(span.prefixes[first:], index))
            for prefix in span.guest_prefixes[first:]:
                known.setdefault(prefix, index)  # what is a guest's own stays so

    def _conversation_of(self, span: Span) -> int | None:
        """Return the index of the conversation that a span is a part of, or goes on from."""
        turns = len(span.prefixes)
        for length in range(turns, turns - span.tips, -1):
            if (index := self._match(self._by_prefix, span, length)) is not None:
                return index
        for length in range(turns, 0, -1):
            if (index := self._match(self._by_tip, span, length)) is not None:
                return index
        return None

    def _match(self, known: Mapping[bytes, int], span: Span, length: int) -> int | None:
        """Return the index of the conversation with the first messages of a span: one of its
        person, or of a guest. Several people may write in one conversation, so it may be another
        person's, if one of both is a beginning of the other and not what many begin with."""
        if (index := known.get(span.prefixes[length - 1])) is not None:
            return index
        if not span.guest_prefixes:
            return None
        index = known.get(span.guest_prefixes[length - 1])
        if index is None or self._kept[index].user is None:
            return index
        shorter, longer = sorted((len(span.prefixes), len(self._kept[index].prefixes)))
        is_beginning = length == shorter < longer
        return index if is_beginning and length >= TWO_EXCHANGES else None

    def found(self) -> Iterator[Found]:
        """Return the conversations in the order of their first lines; the first carries all notes.

        A conversation without id and trace is named after its location.
        """
        for trace in list(self._waiting):
            self._release(trace)
        for span in self._wrappers:
            if span.trace in self._traces:
                self._notes["merged spans"] += 1
            else:
                self._gather(span)
        kept = sorted(_without_first_calls(self._kept), key=lambda span: span.place)
        self._notes["merged spans"] += len(self._kept) - len(kept)
        if not kept:
            detail = (
                "no span has messages; enable content capture in the instrumentation"
            )
            for (_, file, number), packed in self._silent:
                line = Line(number, loads(zlib.decompress(packed)))
                yield Found(file, line, None, Rejected("no messages", detail))
            return
        joined = _joined(kept)
        self._notes["merged spans"] += len(kept) - len(joined)
        first_lines = {min(span.place for span in spans) for spans, _ in joined}
        self._notes["merged lines"] = self._lines - len(first_lines)
        self._notes["ids of several people"] = len(self._of_several)
        latest = _latest(kept)
        times = Counter(spans[0].name for spans, _ in joined)
        seen: Counter[str] = Counter()
        for spans, imported in joined:
            first = spans[0]
            _, file, number = min(span.place for span in spans)
            name = first.name or first.trace or f"{file}-{number}"
            seen[name] += 1
            if seen[name] > 1:
                name = f"{name}/{seen[name]}"
            is_last = not first.name or latest[first.name] in spans
            conversation = imported.conversation
            tree = {}
            if first.name and times[first.name] > 1 and conversation.user is None:
                tree = {"tree": first.name}  # for one split
            conversation = replace(
                conversation,
                id=name,
                ended=conversation.ended and is_last,
                meta={**conversation.meta, **tree},
            )
            found = replace(imported, conversation=conversation)
            yield Found(file, Line(number), found.with_notes(self._notes), None)
            self._notes.clear()


def _without_first_calls(kept: Sequence[Span]) -> list[Span]:
    """Return the conversations without those of one exchange with which those of one other person
    under the same id begin: who logged in after it, or another one, goes on there. Where several
    people begin so, it is a greeting."""
    beginnings: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, span in enumerate(kept):
        for prefix in span.guest_prefixes[EXCHANGE - 1 : EXCHANGE]:
            beginnings[prefix].append(index)
    firsts = set()
    for found in beginnings.values():
        first, *others = sorted(found, key=lambda index: kept[index].length)
        lengths = [len(kept[index].prefixes) for index in (first, *others)]
        people = {kept[index].user for index in others}
        if lengths.count(EXCHANGE) != 1 or len(people) != 1:
            continue
        if not any(kept[first].is_later(kept[index]) for index in others):
            firsts.add(first)
    return [span for index, span in enumerate(kept) if index not in firsts]


def _latest(kept: Sequence[Span]) -> dict[str, Span]:
    """Return the last span of each id."""
    return {span.name: span for span in _in_order(kept)}


def _in_order(kept: Sequence[Span]) -> list[Span]:
    """Return spans in the order in which the calls of each conversation were made: of their times,
    since many tools export the newest first; of their places, if one of them has no time."""
    timed = [(span.moment(), span) for span in kept]
    untimed = {_whose(span) for time, span in timed if time is None}

    def order(each: tuple[float | None, Span]) -> tuple[float, Place]:
        time, span = each
        return 0.0 if time is None or _whose(span) in untimed else time, span.last

    return [span for _, span in sorted(timed, key=order)]


def _whose(span: Span) -> tuple[str, str | None]:
    """Return of which conversations a span may be a part: those of its id, else of its person."""
    return span.name, None if span.name else span.user


def _joined(kept: Sequence[Span]) -> list[tuple[list[Span], Imported]]:
    """Return the conversations of spans, in the order of the first of each. An app may send only
    the last messages: then under one id each span begins with the last turns of the one before."""
    windows = Windows()
    found = []
    kept = _in_order(kept)
    for span in kept:
        imported = assemble(
            span.messages,
            id=span.name,
            user=span.user,
            intent=span.intent,
            meta=span.meta,
            whole=span.ended,
        )
        whose = None if _whose(span) == ("", None) else repr(_whose(span))
        windows.add(imported.conversation, whose)
        found.append(([span], imported))
    later: set[int] = set()
    users = [span.user for span in kept]
    parts_of_chains = (_by_person(calls, users) for calls in windows.chains())
    for calls in chain.from_iterable(parts_of_chains):
        places, shared = zip(*calls, strict=True)
        parts = [found[place][1] for place in places]
        whole = join([part.conversation for part in parts], shared)
        notes = sum((Counter(part.notes) for part in parts), Counter[str]())
        spans = [kept[place] for place in places]
        found[places[0]] = spans, replace(parts[-1], conversation=whole, notes=notes)
        later.update(places[1:])
    whole_ones = [each for place, each in enumerate(found) if place not in later]
    return sorted(whole_ones, key=lambda each: min(span.place for span in each[0]))


def _by_person(
    calls: Sequence[Entry], users: Sequence[str | None]
) -> Iterator[list[Entry]]:
    """Yield the calls of a conversation up to each at which another person goes on.

    Args:
        users: by place; of an unknown person, that of the call before goes on.
    """
    part: list[Entry] = []
    user = None
    for place, shared in calls:
        if user and users[place] not in (user, None):
            yield part
            part, shared, user = [], 0, None
        user = user or users[place]
        part.append((place, shared))
    yield part


LAYOUT = Layout(
    "otel",
    [
        {"resourceSpans"},
        {"resource_spans"},
        {"attributes", "context"},
        {"attributes", "traceId"},
        {"attributes", "trace_id"},
        {"context.trace_id"},
    ],
    None,
)

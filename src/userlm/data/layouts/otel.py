"""Spans of calls to language models, as tracing tools export them.

A line holds an OpenTelemetry export (OTLP as JSON: `resourceSpans`), or one span, in OTLP form or
as the SDK writes it (`span.to_json()`). These conventions for messages are supported:
the semantic conventions (`gen_ai.input.messages`), the events of their earlier versions
(`gen_ai.user.message`, `gen_ai.choice`), OpenInference (`llm.input_messages.0.message.content`),
OpenLLMetry (`gen_ai.prompt.0.content`). Phoenix nests these names, or exports a table of them.

A chat app sends the whole history with each call. So the span with the longest history is kept for
each conversation, with its answer; spans whose messages are the beginning of that history are
merged into it, and those of which an app sent only the last messages are joined.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

from userlm.content import read_parts
from userlm.data.layouts.common import (
    CUT_REASONS,
    Found,
    Imported,
    Layout,
    Messages,
    Place,
    assemble,
    read_messages,
)
from userlm.data.layouts.fields import (
    Rejected,
    Row,
    need,
    parse_json,
    plain_number,
    utc_time,
)
from userlm.data.layouts.otlp import attributes_of, list_in
from userlm.data.windows import Entry, Windows, join
from userlm.json_files import dump, loads
from userlm.lines import Line
from userlm.types import OTHER_ROLE

_CONVERSATION = (
    "gen_ai.conversation.id",
    "session.id",
    "traceloop.association.properties.session_id",
)
_PERSON = ("user.id", "enduser.id", "traceloop.association.properties.user_id")
_PARENT = ("parentSpanId", "parent_span_id", "parent_id")
_STARTS = ("startTimeUnixNano", "start_time_unix_nano", "start_time")
_UNITS = ((11, 1), (14, 1e3), (17, 1e6))
"""Up to so many digits a time has so many units a second; with more it is in nanoseconds."""
_DROPPED = ("droppedAttributesCount", "dropped_attributes_count")
_MODEL = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name")
_MOST_WAITING = 1_000
"""Spans that wait for the first one of their trace, which mostly comes last."""
_TWO_EXCHANGES = 4  # turns
_RESOURCES = ("resourceSpans", "resource_spans")
_SCOPES = ("scopeSpans", "scope_spans", "instrumentationLibrarySpans")
_WRAPPERS = {
    "gen_ai.operation.name": ("invoke_agent", "create_agent", "invoke_workflow"),
    "openinference.span.kind": ("AGENT", "CHAIN"),
    "traceloop.span.kind": ("agent", "workflow", "task"),
}
"""Spans around calls; they repeat all or a part of what the calls inside them contain."""
_CONVENTIONS = (
    ("gen_ai.input.messages", "gen_ai.output.messages", False),
    ("llm.input_messages", "llm.output_messages", False),
    ("gen_ai.prompt", "gen_ai.completion", True),
)
"""The attributes with the messages before a call and with its answers, and whether they may hold a
plain text in place of messages."""
_DETAILS = (
    "gen_ai.client.inference.operation.details",
    "gen_ai.content.prompt",
    "gen_ai.content.completion",
)
"""Events that hold such attributes for their span."""
_NO_TEXT = {"role": "system", "content": [{}]}
"""A message with one part without text: it adds no text, and the part is counted."""

_Located = list[tuple[str, Any]]
"""Messages, each as the name of its location and the message."""
_Event = tuple[str, str, Row]
"""The location of an event, its name and its attributes."""


@dataclass(frozen=True, slots=True)
class _Span:
    """The fields of a span that are needed.

    Attributes:
        place: its location; for a conversation, that of its first span.
        last: the place of the last span that was merged into it.
        name: the id of the conversation; empty if it has none.
        wraps: whether it only wraps calls; see `_WRAPPERS`.
        intent, ended: what an export of ours says; `ended` is false only if it says so.
        prefixes: a digest of each prefix of the user and assistant messages, and of the person; the
            last one covers all.
        guest_prefixes: under an id, the same of somebody who is not known, since a guest may log
            in; none of a guest.
        tips: how many last prefixes there are from which the conversation may continue.
    """

    place: Place
    last: Place
    name: str
    trace: str
    wraps: bool
    user: str | None
    intent: str | None
    ended: bool
    meta: Row
    messages: Messages
    prefixes: Sequence[bytes] = ()
    guest_prefixes: Sequence[bytes] = ()
    tips: int = 1

    @property
    def length(self) -> tuple[int, int]:
        return len(self.prefixes), len(self.messages.said)

    def is_later(self, other: _Span) -> bool:
        """Return whether this call was made after another one: by their times, since many tools
        export the newest first; by their places, if one has no time."""
        own, others = _moment(self), _moment(other)
        if own is None or others is None or own == others:
            return self.place >= other.last
        return own > others

    def of(self, name: str | None, user: str | None) -> _Span:
        """Return a copy with the id of its conversation and the person, if they are known."""
        spoken = [
            (side, text) for side, text in self.messages.said if side in OTHER_ROLE
        ]
        prefixes = _prefixes((name, user), spoken)
        guest_prefixes = _prefixes((name, None), spoken) if name and user else []
        last_side, _ = spoken[-1]
        # Under an id, the last answer may be generated again: so the question before it is also a
        # tip.
        tips = 2 if name and last_side == "assistant" else 1
        return replace(
            self,
            name=name or "",
            user=user,
            prefixes=prefixes,
            guest_prefixes=guest_prefixes,
            tips=tips,
        )


class _Owner(NamedTuple):
    """Whose a trace is, as its first span says: the id of the conversation and the person."""

    name: str | None
    user: str | None


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
    """

    def __init__(self) -> None:
        self._kept: list[_Span] = []
        # The digests of each prefix, and of each tip, to its index in `_kept`.
        self._by_prefix: dict[bytes, int] = {}
        self._by_tip: dict[bytes, int] = {}
        self._roots: dict[str, _Owner] = {}  # by trace
        self._waiting: dict[str, list[_Span]] = {}  # by trace
        self._waiting_count = 0
        self._wrappers: list[_Span] = []
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
        usable: list[tuple[_Span, bool]] = []
        errors: list[Rejected] = []
        for row in _spans(line):
            try:
                attributes = attributes_of(_field(row, "attributes"), "attributes")
                root = _root(row, attributes)
                if root:
                    self._note_root(*root)
                span = _read(row, place, attributes)
            except Rejected as error:
                errors.append(error)
                continue
            if span is None:
                self._notes["spans without messages"] += 1
            else:
                self._notes["spans cut at a limit"] += _is_cut(row)
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

    def _note_root(self, trace: str, owner: _Owner) -> None:
        before = self._roots.get(trace, owner)
        name, user = before.name or owner.name, before.user or owner.user
        self._roots[trace] = _Owner(name, user)
        self._release(trace)

    def _wait(self, span: _Span) -> None:
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

    def _owned(self, span: _Span) -> _Span:
        """Return a span with what the first one of its trace says, where it says nothing itself."""
        name, user = self._roots.get(span.trace, (None, None))
        if (name and not span.name) or (user and not span.user):
            return span.of(span.name or name, span.user or user)
        return span

    def _take(self, span: _Span) -> None:
        user = span.user
        if span.name and user and self._people.setdefault(span.name, user) != user:
            self._of_several.add(span.name)
        if span.wraps:
            self._wrappers.append(span)
        else:
            self._traces.add(span.trace)
            self._gather(span)

    def _gather(self, span: _Span) -> None:
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

    def _conversation_of(self, span: _Span) -> int | None:
        """Return the index of the conversation that a span is a part of, or goes on from."""
        turns = len(span.prefixes)
        for length in range(turns, turns - span.tips, -1):
            if (index := self._match(self._by_prefix, span, length)) is not None:
                return index
        for length in range(turns, 0, -1):
            if (index := self._match(self._by_tip, span, length)) is not None:
                return index
        return None

    def _match(
        self, known: Mapping[bytes, int], span: _Span, length: int
    ) -> int | None:
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
        return index if is_beginning and length >= _TWO_EXCHANGES else None

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
        kept = sorted(self._kept, key=lambda span: span.place)
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


def _latest(kept: Sequence[_Span]) -> dict[str, _Span]:
    """Return the last span of each id."""
    return {span.name: span for span in _in_order(kept)}


def _in_order(kept: Sequence[_Span]) -> list[_Span]:
    """Return spans in the order in which the calls of each conversation were made: of their times,
    since many tools export the newest first; of their places, if one of them has no time."""
    timed = [(_moment(span), span) for span in kept]
    untimed = {_whose(span) for time, span in timed if time is None}

    def order(each: tuple[float | None, _Span]) -> tuple[float, Place]:
        time, span = each
        return 0.0 if time is None or _whose(span) in untimed else time, span.last

    return [span for _, span in sorted(timed, key=order)]


def _whose(span: _Span) -> tuple[str, str | None]:
    """Return of which conversations a span may be a part: those of its id, else of its person."""
    return span.name, None if span.name else span.user


def _moment(span: _Span) -> float | None:
    """Return when a call began, in seconds since 1970; `None` if it is not known."""
    try:
        time = datetime.fromisoformat(span.meta["timestamp"] or "")
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _joined(kept: Sequence[_Span]) -> list[tuple[list[_Span], Imported]]:
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


# --- spans ----------------------------------------------------------------------------------------


def _spans(row: Row) -> Iterator[Row]:
    if row.keys().isdisjoint(_RESOURCES):
        yield row
        return
    for resource, where in _objects(row, _RESOURCES):
        for scope, place in _objects(resource, _SCOPES, where):
            for span, _ in _objects(scope, ("spans",), place):
                yield span


def _objects(
    row: Row, names: Sequence[str], where: str = ""
) -> Iterator[tuple[Row, str]]:
    """Return the objects in the list with one of these names, each with its location."""
    name = next((name for name in names if name in row), names[0])
    items = row.get(name) or []
    for i, item in enumerate(need(items, list, f"{where}{name}")):
        place = f"{where}{name}[{i}]"
        yield need(item, dict, place), f"{place}."


def _read(row: Row, place: Place, attributes: Row) -> _Span | None:
    """Return the needed fields of a span with these attributes; `None` if it has no messages.

    Raises:
        Rejected: its messages are broken.
    """
    if kind := row.get("span_kind"):  # where Phoenix writes it
        attributes = {"openinference.span.kind": kind, **attributes}
    events: list[_Event] = []
    for event, where in _objects(row, ("events",)):
        details = attributes_of(event.get("attributes"), f"{where}attributes")
        event_name = event.get("name")
        if event_name in _DETAILS:
            attributes = {**details, **attributes}
        elif isinstance(event_name, str) and event_name.startswith("gen_ai."):
            events.append((where.rstrip("."), event_name, details))
    found = _messages(attributes, events)
    if found is None:
        return None
    messages, is_answer_cut = found
    if all(side not in OTHER_ROLE or side == "assistant" for side, _ in messages.said):
        raise Rejected(
            "no user turn", "none of the messages of the span is from the user"
        )
    span = _Span(
        place=place,
        last=place,
        name="",
        trace=_trace(row),
        wraps=any(attributes.get(key) in kinds for key, kinds in _WRAPPERS.items()),
        user=None,
        intent=_first(attributes, ("userlm.intent",)),
        ended=attributes.get("userlm.ended") is not False
        and not (_is_cut(row) or is_answer_cut),
        meta={
            "source": "otel",
            "model": _first(attributes, _MODEL),
            "timestamp": _start(row),
        },
        messages=messages,
    )
    return span.of(_first(attributes, _CONVERSATION), _first(attributes, _PERSON))


def _is_cut(row: Row) -> bool:
    """Return whether attributes of a span were dropped: an SDK keeps 128, and the last messages may
    be in the others."""
    return _first(row, _DROPPED) not in (None, "0")


def _root(row: Row, attributes: Row) -> tuple[str, _Owner] | None:
    """Return the trace that a span is the first of, and whose it is; `None` if it is not the
    first."""
    trace = _trace(row)
    parent = _first(row, _PARENT) or ""
    if not trace or parent.strip("0x"):
        return None
    name, user = (_first(attributes, names) for names in (_CONVERSATION, _PERSON))
    return trace, _Owner(name, user)


def _trace(row: Row) -> str:
    context = _field(row, "context")
    ids = context if isinstance(context, dict) else row
    return _first(ids, ("traceId", "trace_id")) or ""


def _field(row: Row, name: str) -> Any:
    """Return a field, or the columns of a table that stand for it: `context.trace_id`, ..."""
    if name in row:
        return row[name]
    prefix = f"{name}."
    columns = [column for column in row if column.startswith(prefix)]
    return {column.removeprefix(prefix): row[column] for column in columns} or None


def _prefixes(key: object, spoken: Sequence[tuple[str, str]]) -> list[bytes]:
    """Return a digest of each prefix of these messages; white space does not count."""
    digest = blake2b(repr(key).encode("utf-8", "replace"), digest_size=16)
    prefixes = []
    for side, text in spoken:
        digest.update(f"{side}\0{' '.join(text.split())}\0".encode("utf-8", "replace"))
        prefixes.append(digest.digest())
    return prefixes


def _first(attributes: Row, names: Sequence[str]) -> str | None:
    for name in names:
        value = plain_number(attributes.get(name))
        if value is not None and value != "":
            return str(value) if isinstance(value, str | int | float) else None
    return None


def _start(span: Row) -> str | None:
    """Return when a call began: in OTLP nanoseconds since 1970, elsewhere ISO text, in tables also
    milliseconds or a time."""
    value = next(filter(None, map(span.get, _STARTS)), None)
    if isinstance(value, datetime):
        return value.isoformat()
    start = _first(span, _STARTS)
    if start is None or not start.isdecimal():
        return start
    unit = next((unit for digits, unit in _UNITS if len(start) <= digits), 1e9)
    return utc_time(start, unit)


# --- messages -------------------------------------------------------------------------------------


def _messages(
    attributes: Row, events: Sequence[_Event]
) -> tuple[Messages, bool] | None:
    """Return the messages of a call, the answer last, and whether the model reached a limit in it;
    `None` if the span does not have them."""
    found: _Located = []
    may_be_typed = False
    for asked, answer, may_be_text in _CONVENTIONS:
        if not found:
            found = _in_attributes(attributes, asked, answer, may_be_text)
            may_be_typed = may_be_text and _may_be_typed(attributes, asked, answer)
    found = found or _in_events(events)
    if not found:
        return None
    if instructions := list_in(attributes, "gen_ai.system_instructions"):
        system = {"role": "system", "parts": instructions}
        found.insert(0, ("gen_ai.system_instructions", system))
    readable = ((where, _readable(message)) for where, message in found)
    messages = read_messages(readable, "messages")
    _, answer = found[-1]
    reasons = parse_json(attributes.get("gen_ai.response.finish_reasons"))
    reasons = [*reasons] if isinstance(reasons, list) else [reasons]
    if isinstance(answer, dict):
        reasons.append(answer.get("finish_reason"))
    is_cut = not CUT_REASONS.isdisjoint(str(reason).lower() for reason in reasons)
    return replace(messages, may_be_typed=may_be_typed), is_cut


def _in_attributes(
    attributes: Row, asked: str, answer: str, may_be_text: bool
) -> _Located:
    """Return the messages in two attributes; only the first of several choices is used."""
    choices = plain_number(attributes.get("gen_ai.request.choice.count"))
    several = isinstance(choices, int) and choices > 1
    found: _Located = []
    for name, role in ((asked, "user"), (answer, "assistant")):
        text_role = role if may_be_text else None
        for i, message in enumerate(list_in(attributes, name, text_role)):
            if name == answer:
                message = _answer(message, is_other=several and i > 0)
            found.append((f"{name}.{i}", message))
    return found


def _may_be_typed(attributes: Row, asked: str, answer: str) -> bool:
    """Return whether a person may have typed the list of messages in an attribute.

    The conventions recommend such a list as JSON for prompts and answers, and many apps write it
    for prompts alone. But an app that writes what was typed, as the answer is a text, writes a list
    with answers too, if a person typed one.
    """
    prompt = attributes.get(asked)
    if not isinstance(prompt, str) or isinstance(parse_json(prompt), str):
        return False
    is_several = len(list_in(attributes, asked)) > 1
    return is_several and isinstance(parse_json(attributes.get(answer, "")), str)


def _in_events(events: Sequence[_Event]) -> _Located:
    """Return the messages in events; only the first of several choices is used."""
    found: _Located = []
    for where, name, attributes in events:
        body = parse_json(attributes.get("gen_ai.event.content", attributes))
        if not isinstance(body, dict):
            body = {"content": body}
        if name == "gen_ai.choice":
            message = parse_json(body.get("message", body))
            if not isinstance(message, dict):
                message = {"content": message}
            message = _answer(message, is_other=bool(body.get("index")))
            found.append((where, message))
        elif name.endswith(".message"):
            _, role, *_ = name.split(".")
            found.append((where, {**body, "role": body.get("role") or role}))
    return found


def _answer(message: Any, is_other: bool) -> Any:
    """Return an answer, with a role if it has none; one without text if it is another choice."""
    if is_other:
        return _NO_TEXT
    if not isinstance(message, dict):
        return message
    return {**message, "role": message.get("role") or "assistant"}


def _readable(message: Any) -> Any:
    """Return a message whose content is no longer JSON in a text."""
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if isinstance(content, str) and content.startswith("[{"):
        found = parse_json(content)
        # A user may paste JSON that is no list of parts.
        if all(part.kind != "other" for part in read_parts(found)):
            return {**message, "content": found}
    return message


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

"""One span of a call to a language model, as tracing tools export it.

A line holds an OpenTelemetry export (OTLP as JSON: `resourceSpans`), or one span, in OTLP form or
as the SDK writes it (`span.to_json()`). These conventions for messages are supported:
the semantic conventions (`gen_ai.input.messages`), the events of their earlier versions
(`gen_ai.user.message`, `gen_ai.choice`), OpenInference (`llm.input_messages.0.message.content`),
OpenLLMetry (`gen_ai.prompt.0.content`). Phoenix nests these names, or exports a table of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

from userlm.content import are_parts
from userlm.data.layouts.common import Messages, Place, are_of_cut, read_messages
from userlm.data.layouts.fields import (
    Rejected,
    Row,
    need,
    parse_json,
    plain_number,
    utc_time,
)
from userlm.data.layouts.otlp import attributes_of, list_in
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
class Span:
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

    def moment(self) -> float | None:
        """Return when the call began, in seconds since 1970; `None` if it is not known."""
        try:
            time = datetime.fromisoformat(self.meta["timestamp"] or "")
        except ValueError:
            return None
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()

    def is_later(self, other: Span) -> bool:
        """Return whether this call was made after another one: by their times, since many tools
        export the newest first; by their places, if one has no time."""
        own, others = self.moment(), other.moment()
        if own is None or others is None or own == others:
            return self.place >= other.last
        return own > others

    def of(self, name: str | None, user: str | None) -> Span:
        """Return a copy with the id of its conversation and the person, if they are known."""
        spoken = [
            (side, text) for side, text in self.messages.said if side in OTHER_ROLE
        ]
        said = [_digest(side, text) for side, text in spoken]
        prefixes = _prefixes((name, user), said)
        guest_prefixes = _prefixes((name, None), said) if name and user else []
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


class Owner(NamedTuple):
    """Whose a trace is, as its first span says: the id of the conversation and the person."""

    name: str | None
    user: str | None


def spans_in(row: Row) -> Iterator[Row]:
    """Yield the spans of a line, which may be one itself."""
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


def read_span(row: Row, place: Place, attributes: Row) -> Span | None:
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
    span = Span(
        place=place,
        last=place,
        name="",
        trace=_trace(row),
        wraps=any(attributes.get(key) in kinds for key, kinds in _WRAPPERS.items()),
        user=None,
        intent=_first(attributes, ("userlm.intent",)),
        ended=attributes.get("userlm.ended") is not False
        and not (is_cut(row) or is_answer_cut),
        meta={
            "source": "otel",
            "model": _first(attributes, _MODEL),
            "timestamp": _start(row),
        },
        messages=messages,
    )
    return span.of(_first(attributes, _CONVERSATION), _first(attributes, _PERSON))


def is_cut(row: Row) -> bool:
    """Return whether attributes of a span were dropped: an SDK keeps 128, and the last messages may
    be in the others."""
    return _first(row, _DROPPED) not in (None, "0")


def owner_in(row: Row, attributes: Row) -> tuple[str, Owner] | None:
    """Return the trace that a span is the first of, and whose it is; `None` if it is not the
    first."""
    trace = _trace(row)
    parent = _first(row, _PARENT) or ""
    if not trace or parent.strip("0x"):
        return None
    name, user = (_first(attributes, names) for names in (_CONVERSATION, _PERSON))
    return trace, Owner(name, user)


def _trace(row: Row) -> str:
    context = field_in(row, "context")
    ids = context if isinstance(context, dict) else row
    return _first(ids, ("traceId", "trace_id")) or ""


def field_in(row: Row, name: str) -> Any:
    """Return a field of a span, or the columns of a table that stand for it: `context.trace_id`."""
    if name in row:
        return row[name]
    prefix = f"{name}."
    columns = [column for column in row if column.startswith(prefix)]
    return {column.removeprefix(prefix): row[column] for column in columns} or None


def _digest(side: str, text: str) -> bytes:
    """Return a digest of a message; white space does not count."""
    said = f"{side}\0{' '.join(text.split())}".encode("utf-8", "replace")
    return blake2b(said, digest_size=16).digest()


def _prefixes(key: object, said: Sequence[bytes]) -> list[bytes]:
    """Return a digest of each prefix of messages, which are given by theirs."""
    digest = blake2b(repr(key).encode("utf-8", "replace"), digest_size=16)
    prefixes = []
    for each in said:
        digest.update(each)
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
    given = parse_json(attributes.get("gen_ai.response.finish_reasons"))
    reasons = given[:1] if isinstance(given, list) else [given]  # of the first choice
    if isinstance(answer, dict):
        reasons.append(answer.get("finish_reason"))
    return replace(messages, may_be_typed=may_be_typed), are_of_cut(reasons)


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
            reason = {name: body[name] for name in ("finish_reason",) if name in body}
            answer = _answer({**reason, **message}, is_other=bool(body.get("index")))
            found.append((where, answer))
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
        if are_parts(found):  # a user may paste other JSON, and a model answer in it
            return {**message, "content": found}
    return message

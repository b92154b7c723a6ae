"""Spans of calls to language models, as tracing tools export them, to conversations. `userlm
import` runs this.

A line holds an export of OpenTelemetry (OTLP as JSON: `resourceSpans`), or one span, in the form of
OTLP or in that of the SDK (`span.to_json()`). The messages are looked for in the conventions that
are in use: the semantic conventions (`gen_ai.input.messages`), the events of their earlier versions
(`gen_ai.user.message`, `gen_ai.choice`), OpenInference (`llm.input_messages.0.message.content`),
OpenLLMetry (`gen_ai.prompt.0.content`).

A chat app sends the whole history with each call, so of a conversation the span with the longest
history is kept, and its answer; a span whose messages begin a longer history is merged into it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from userlm.data.rows import (
    CHAT_ROLES,
    Found,
    Messages,
    Place,
    Rejected,
    Row,
    Side,
    conversation,
    parsed,
    read,
    time_of,
)
from userlm.rows import Line

_ROLES: Mapping[str, Side] = {
    **CHAT_ROLES,
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
}
_CONVERSATION = (
    "gen_ai.conversation.id",
    "session.id",
    "traceloop.association.properties.session_id",
)
_PERSON = ("user.id", "enduser.id", "traceloop.association.properties.user_id")
_MODEL = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name")
_AROUND = {
    "gen_ai.operation.name": ("invoke_agent", "create_agent", "invoke_workflow"),
    "openinference.span.kind": ("AGENT", "CHAIN"),
    "traceloop.span.kind": ("agent", "workflow", "task"),
}
"""Spans around calls: they repeat, perhaps in part, what the calls in them say in full."""
_CONVENTIONS = (
    ("gen_ai.input.messages", "gen_ai.output.messages"),
    ("llm.input_messages", "llm.output_messages"),
    ("gen_ai.prompt", "gen_ai.completion"),
)
_PLAIN = {"gen_ai.prompt": "user", "gen_ai.completion": "assistant"}
"""Attributes in which a plain text may stand in place of messages."""
_DETAILS = (
    "gen_ai.client.inference.operation.details",
    "gen_ai.content.prompt",
    "gen_ai.content.completion",
)
"""Events that hold such attributes for their span."""
_TEXTS = ("text", "input_text", "output_text")
_CALLS = ("tool_call", "tool_use", "toolUse", "function_call")
_RESULTS = ("tool_call_response", "tool_result", "toolResult", "function_call_output")
_THOUGHTS = ("thinking", "reasoning")
_NO_TEXT = {"role": "system", "content": [{}]}
"""A message of one part that is no text: it says nothing, and is counted."""

_Event = tuple[str, str, dict[str, Any]]
"""Where it is, its name, and its attributes."""


@dataclass(frozen=True, slots=True)
class _Span:
    """What is needed of a span.

    Attributes:
        place: where it stands; of a conversation, where its first span does.
        last: where the last span stands that was merged into it.
        name: of the conversation; empty if nobody gave it one.
        prefixes: a digest of each beginning of what user and assistant said, the last one of all of
            it.
        tips: those of `prefixes` at which the conversation may go on.
    """

    place: Place
    last: Place
    name: str
    trace: str
    around: bool
    user: str | None
    model: str | None
    timestamp: str | None
    messages: Messages
    prefixes: tuple[bytes, ...]
    tips: tuple[bytes, ...]


class Spans:
    """Spans of one file or several, gathered to conversations.

    What belongs together is told by an id (`gen_ai.conversation.id`, else `session.id`). Without
    one, spans of the same person whose histories continue each other belong together, be it in one
    trace or, as when each request is a trace of its own, in several: else each beginning of a
    conversation would stand as one that ended there.

    Where a history begins anew, so does a conversation; of those with the same id only the last has
    an observed ending. Under an id, an answer that was made again replaces the earlier one.
    """

    def __init__(self) -> None:
        self._kept: list[_Span] = []
        self._begun: dict[
            bytes, int
        ] = {}  # each beginning of a conversation to its place in `_kept`
        self._tips: dict[bytes, int] = {}  # where a conversation may go on, likewise
        self._around: list[_Span] = []
        self._traces: set[str] = set()  # those with a call that shows its messages
        self._places: list[Place] = []
        self._notes: Counter[str] = Counter()

    def add(self, line: Line, file: str) -> None:
        """Take in the spans of a line; raises `Rejected` if none of those with messages can be
        used."""
        place = Place(len(self._places), file, line.number)
        usable, wrong = [], []
        for span in _spans(line.row):
            try:
                one = _read(span, place)
            except Rejected as error:
                wrong.append(error)
                continue
            if one:
                usable.append(one)
            else:
                self._notes["spans without messages"] += 1
        if wrong and not usable:
            raise wrong[0]
        self._notes["spans left out"] += len(wrong)
        self._places.append(place)
        for one in usable:
            if one.around:
                self._around.append(one)
            else:
                self._traces.add(one.trace)
                self._gather(one)

    def _gather(self, span: _Span) -> None:
        """Merge a span with the conversation that it continues or repeats, or begin one."""
        place = next((self._begun[tip] for tip in span.tips if tip in self._begun), None)
        if place is None:
            place = next(
                (self._tips[prefix] for prefix in span.prefixes if prefix in self._tips), None
            )
        if place is None:
            place = len(self._kept)
            self._kept.append(span)
        else:
            self._notes["merged spans"] += 1
            before = self._kept[place]
            longer = span if _length(span) >= _length(before) else before
            user = longer.user or span.user or before.user
            first, last = min(before.place, span.place), max(before.last, span.place)
            self._kept[place] = replace(longer, place=first, last=last, user=user)
            if longer is before:
                return
            for tip in before.tips:
                self._tips.pop(tip, None)
        self._begun.update(dict.fromkeys(span.prefixes, place))
        self._tips.update(dict.fromkeys(span.tips, place))

    def found(self) -> Iterator[Found]:
        """The conversations, in the order of their first lines; the first one carries the counts of
        all. One that has neither an id nor a trace is named by where it stands."""
        for span in self._around:
            if span.trace in self._traces:
                self._notes["merged spans"] += 1
            else:
                self._gather(span)
        kept = sorted(self._kept, key=lambda span: span.place)
        if not kept:
            why = "no span holds messages; let the instrumentation capture their content"
            for _, file, number in self._places:
                yield Found(file, Line(number), None, Rejected("no messages", why))
            return
        self._notes["merged lines"] = len(self._places) - len({span.place for span in kept})
        latest = {span.name: span for span in sorted(kept, key=lambda span: span.last)}
        seen: Counter[str] = Counter()
        for span in kept:
            _, file, number = span.place
            name = span.name or span.trace or f"{file}-{number}"
            seen[name] += 1
            imported = conversation(
                span.messages,
                id=name if seen[name] == 1 else f"{name}/{seen[name]}",
                user=span.user,
                meta={"source": "otel", "model": span.model, "timestamp": span.timestamp},
                whole=not span.name or latest[span.name] is span,
            )
            notes = dict(+(self._notes + Counter(imported.notes)))
            self._notes.clear()
            yield Found(file, Line(number), replace(imported, notes=notes), None)


def _length(span: _Span) -> tuple[int, int]:
    return len(span.prefixes), len(span.messages.said)


# --- spans ----------------------------------------------------------------------------------------


def _spans(row: Row) -> Iterator[dict[str, Any]]:
    """The spans of a line."""
    if "resourceSpans" not in row and "resource_spans" not in row:
        yield dict(row)
        return
    for resource, where in _inside(row, ("resourceSpans", "resource_spans"), ""):
        for scope, place in _inside(
            resource, ("scopeSpans", "scope_spans", "instrumentationLibrarySpans"), where
        ):
            yield from (span for span, _ in _inside(scope, ("spans",), place))


def _inside(row: Row, names: tuple[str, ...], where: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects in the list that has one of the names, and where each is."""
    name = next((name for name in names if name in row), names[0])
    found = row.get(name) or []
    if not isinstance(found, list):
        raise Rejected("wrong type", f"{where}{name} must be a list, not {type(found).__name__}")
    for i, item in enumerate(found):
        if not isinstance(item, dict):
            raise Rejected(
                "wrong type", f"{where}{name}[{i}] must be an object, not {type(item).__name__}"
            )
        yield item, f"{where}{name}[{i}]."


def _read(span: Row, place: Place) -> _Span | None:
    """What is needed of a span; `None` if it holds no messages. Raises `Rejected` if they are
    broken."""
    attributes = _attributes(span.get("attributes"), "attributes")
    events: list[_Event] = []
    for event, where in _inside(span, ("events",), ""):
        told, name = _attributes(event.get("attributes"), f"{where}attributes"), event.get("name")
        if name in _DETAILS:
            attributes = {**told, **attributes}
        elif isinstance(name, str) and name.startswith("gen_ai."):
            events.append((where.rstrip("."), name, told))
    messages = _messages(attributes, events)
    if messages is None:
        return None
    name, user = _first(attributes, _CONVERSATION), _first(attributes, _PERSON)
    context = span.get("context")
    ids = context if isinstance(context, dict) else span
    digest = blake2b(
        repr((name, user if not name else None)).encode("utf-8", "replace"), digest_size=16
    )
    prefixes, spoken = [], []
    for side, text in messages.said:
        if side in ("user", "assistant"):
            spoken.append(side)
            digest.update(f"{side}\0{' '.join(text.split())}\0".encode("utf-8", "replace"))
            prefixes.append(digest.digest())
    if "user" not in spoken:
        raise Rejected("no user turn", "none of the messages of the span is of the user")
    answered_again = bool(name) and spoken[-1] == "assistant" and len(prefixes) > 1
    return _Span(
        place=place,
        last=place,
        name=name or "",
        trace=str(ids.get("traceId") or ids.get("trace_id") or ""),
        around=any(attributes.get(key) in kinds for key, kinds in _AROUND.items()),
        user=user,
        model=_first(attributes, _MODEL),
        timestamp=_start(span),
        messages=messages,
        prefixes=tuple(prefixes),
        tips=tuple(prefixes[-2:] if answered_again else prefixes[-1:]),
    )


def _first(attributes: Row, names: tuple[str, ...]) -> str | None:
    found = next((attributes[name] for name in names if attributes.get(name)), None)
    return str(found) if isinstance(found, str | int) else None


def _start(span: Row) -> str | None:
    """When a call began: nanoseconds since 1970 in OTLP, a time stamp elsewhere."""
    start = (
        span.get("startTimeUnixNano") or span.get("start_time_unix_nano") or span.get("start_time")
    )
    if isinstance(start, str) and not start.isdecimal():
        return start
    return time_of(start, 1e9) if isinstance(start, str | int) else None


# --- messages -------------------------------------------------------------------------------------


def _messages(attributes: Row, events: Sequence[_Event]) -> Messages | None:
    """What was said in a call, the answer last; `None` if the span does not show it."""
    told = next((told for told in _told(attributes, events) if told), None)
    if told is None:
        return None
    if instructions := _list_in(attributes, "gen_ai.system_instructions"):
        told.insert(0, ("gen_ai.system_instructions", {"role": "system", "parts": instructions}))
    return read(
        ((where, item) for where, message in told for item in _items(message)), "messages", _ROLES
    )


def _told(attributes: Row, events: Sequence[_Event]) -> Iterator[list[tuple[str, Any]]]:
    """Where each message is, and the message, by each of the conventions; empty for those that were
    not used.

    Of several answers among which the app could choose, the others count as parts without text.
    """
    choices = attributes.get("gen_ai.request.choice.count")
    for asked, answer in _CONVENTIONS:
        told = [(f"{asked}.{i}", message) for i, message in enumerate(_list_in(attributes, asked))]
        for i, message in enumerate(_list_in(attributes, answer)):
            other = i > 0 and isinstance(choices, int) and choices > 1
            told.append((f"{answer}.{i}", _NO_TEXT if other else _by(message, "assistant")))
        yield told
    told = []
    for where, name, attributes in events:
        body = parsed(attributes.get("gen_ai.event.content", attributes))
        if not isinstance(body, dict):
            body = {"content": body}
        if name == "gen_ai.choice":
            message = parsed(body.get("message", body))
            message = _by(
                message if isinstance(message, dict) else {"content": message}, "assistant"
            )
            told.append((where, _NO_TEXT if body.get("index") else message))
        elif name.endswith(".message"):
            told.append((where, _by(body, name.split(".")[1])))
    yield told


def _by(message: Any, role: str) -> Any:
    """The message, said by `role` if nobody says who said it."""
    return (
        {**message, "role": message.get("role") or role} if isinstance(message, dict) else message
    )


def _items(message: Any) -> list[Any]:
    """A message in the form of the OpenAI API; the results of tools that it holds become messages
    of their own."""
    if not isinstance(message, dict):
        return [message]
    if message.get("role") in _THOUGHTS:
        return [_NO_TEXT]
    content = message.get("parts") or message.get("contents") or message.get("content")
    if (
        isinstance(content, str)
        and content.startswith("[{")
        and _is_parts(parts_in := parsed(content))
    ):
        content = parts_in
    calls = parsed(message.get("tool_calls")) or []
    calls = list(calls) if isinstance(calls, list) else [calls]
    if not isinstance(content, list):
        return [{"role": message.get("role"), "content": content, "tool_calls": calls}]
    parts: list[Any] = []
    items: list[Any] = []
    for part in content:
        kind = _kind(part)
        if kind in _TEXTS:
            parts.append({"text": part.get("text", part.get("content"))})
        elif kind in _CALLS:
            calls.append(part)
        elif kind in _RESULTS:
            named = (
                part[name] for name in ("response", "result", "content", "output") if name in part
            )
            result = next(named, part)
            text = (
                result
                if isinstance(result, str)
                else json.dumps(result, ensure_ascii=False, default=str)
            )
            items.append({"role": "tool", "content": text})
        else:
            parts.append(part if isinstance(part, str) else {})
    if parts or calls or not items:
        items.append({"role": message.get("role"), "content": parts, "tool_calls": calls})
    return items


def _kind(part: Any) -> str | None:
    """The type of a part; Bedrock's parts have no type but a field of its name."""
    return part.get("type") or next(iter(part), None) if isinstance(part, dict) else None


def _is_parts(value: Any) -> bool:
    return isinstance(value, list) and all(
        _kind(part) in (*_TEXTS, *_CALLS, *_RESULTS) for part in value
    )


# --- values ---------------------------------------------------------------------------------------


def _attributes(found: Any, where: str) -> dict[str, Any]:
    """Attributes as an object, be they one or, as in OTLP, a list of `{key, value: {stringValue:
    ...}}`."""
    if found is None or isinstance(found, dict):
        return found or {}
    if not isinstance(found, list):
        raise Rejected(
            "wrong type", f"{where} must be an object or a list, not {type(found).__name__}"
        )
    for i, pair in enumerate(found):
        if not isinstance(pair, dict) or not isinstance(pair.get("key"), str):
            raise Rejected("wrong type", f"{where}[{i}].key must be a text")
    return {pair["key"]: _value(pair.get("value")) for pair in found}


def _value(value: Any) -> Any:
    """A value of OTLP: `{stringValue: "x"}`, `{intValue: "5"}`, `{arrayValue: {values: [...]}}`;
    else `None`."""
    if not isinstance(value, dict) or not value:
        return None
    kind, inner = next(iter(value.items()))
    if kind in ("intValue", "int_value"):
        return (
            int(inner)
            if isinstance(inner, str) and inner.isdecimal() and len(inner) < 20
            else inner
        )
    if kind not in ("arrayValue", "array_value", "kvlistValue", "kvlist_value"):
        return inner
    values = inner.get("values") if isinstance(inner, dict) else None
    items = values if isinstance(values, list) else []
    if kind in ("arrayValue", "array_value"):
        return [_value(item) for item in items]
    return {
        item["key"]: _value(item.get("value"))
        for item in items
        if isinstance(item, dict) and "key" in item
    }


def _list_in(attributes: Row, name: str) -> list[Any]:
    """The list in an attribute, as it is or as JSON, or in many: `name.0.role`, `name.0.content`
    and so on."""
    value = attributes.get(name)
    if value is None:
        return _indexed(attributes, f"{name}.")
    found = parsed(value)
    if isinstance(found, list):
        return [parsed(item) for item in found]
    if not isinstance(found, str):
        raise Rejected(
            "wrong type", f"attribute {name!r} must be a list, not {type(found).__name__}"
        )
    if name not in _PLAIN:
        raise Rejected("wrong type", f"attribute {name!r} is no JSON; was it cut off?")
    return [{"role": _PLAIN[name], "content": found}]


def _indexed(attributes: Row, prefix: str) -> list[Any]:
    nested: dict[str, Any] = {}
    for key, value in attributes.items():
        number, _, rest = key.removeprefix(prefix).partition(".")
        if not (key.startswith(prefix) and number.isdecimal() and rest):
            continue
        *path, last = rest.split(".")
        place: Any = nested.setdefault(number, {})
        for name in path:
            place = place.setdefault(name, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
    return _tidy(nested) or []


def _tidy(value: Any) -> Any:
    """Lists in place of objects whose fields are numbers, and no object around a single field of
    OpenInference."""
    if not isinstance(value, dict):
        return value
    if value and all(name.isdecimal() for name in value):
        return [_tidy(value[name]) for name in sorted(value, key=lambda name: (len(name), name))]
    if len(value) == 1 and (only := next(iter(value))) in (
        "message",
        "message_content",
        "tool_call",
    ):
        return _tidy(value[only])
    return {name: _tidy(inner) for name, inner in value.items()}

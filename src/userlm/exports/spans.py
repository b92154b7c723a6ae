"""Spans of OpenTelemetry in its semantic conventions for generative AI: a trace for each
conversation, a call of the assistant in it for each answer.

Runs do not record when a turn was said, so the time of a span is that of the file, and the turns
follow each other in milliseconds. The ids of a trace are made from those of run and conversation:
the same conversation is the same trace, however often it is exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from userlm.exports.training import Talk
from userlm.json_files import dumps
from userlm.types import Conversation, Turn

_MILLISECOND = 1_000_000  # nanoseconds
_INTERNAL, _CLIENT = 1, 3  # kinds of spans


def export(talk: Talk) -> dict[str, Any]:
    """Return the spans of a conversation as OTLP writes them in JSON: `resourceSpans`."""
    user, assistant = talk.source.speakers
    about = {
        "service.name": "userlm",
        "userlm.run": talk.source.key,
        "userlm.user": user,
        "userlm.assistant": assistant,
        "userlm.lineage": dumps(talk.source.lineage),
    }
    scope = {"name": "userlm"}
    spans = list(_spans(talk))
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(about)},
                "scopeSpans": [{"scope": scope, "spans": spans}],
            }
        ]
    }


def _spans(talk: Talk) -> Iterator[dict[str, Any]]:
    conversation = talk.conversation
    start = talk.source.path.stat().st_mtime_ns
    trace = _id(16, talk.source.key, conversation.id)
    root = _id(8, trace, "root")
    shared = _shared(talk)
    end = start + _MILLISECOND * len(conversation.turns)
    around = {
        "gen_ai.operation.name": "invoke_agent",
        "userlm.stop": conversation.stop or "",
    }
    first, last = conversation.turns[:1], conversation.turns[-1:]
    # OpenInference's names: Phoenix shows only these in its lists.
    around |= {"input.value": first[0].text, "output.value": last[0].text}
    around |= _said(first, last)
    names = {"traceId": trace, "spanId": root}
    yield _span(names, "conversation", _INTERNAL, (start, end), shared | around)
    for place in _calls(conversation):
        names = {
            "traceId": trace,
            "spanId": _id(8, trace, str(place)),
            "parentSpanId": root,
        }
        times = (start + _MILLISECOND * place, start + _MILLISECOND * (place + 1))
        said = _said(conversation.turns[:place], conversation.turns[place : place + 1])
        call = {"gen_ai.operation.name": "chat", **said}
        yield _span(names, "chat", _CLIENT, times, shared | call)


def _calls(conversation: Conversation) -> list[int]:
    """Return the places of the answers, and that of one that never came."""
    turns = conversation.turns
    places = [
        place for place, turn in enumerate(turns) if turn.role == "assistant" and place
    ]
    if turns[-1].role == "user":
        places.append(len(turns))
    return places


def _shared(talk: Talk) -> dict[str, Any]:
    """Return the attributes of each span of a conversation."""
    conversation = talk.conversation
    _, assistant = talk.source.speakers
    found = {
        "gen_ai.provider.name": "userlm",
        "gen_ai.conversation.id": talk.id,
        "session.id": f"{talk.source.key}:{conversation.id}",
        "gen_ai.request.model": assistant,
        "userlm.ended": conversation.ended,
        "userlm.intent": conversation.intent or "",
    }
    return {name: value for name, value in found.items() if value != ""}


def _said(asked: Sequence[Turn], answer: Sequence[Turn]) -> dict[str, str]:
    said = {"gen_ai.input.messages": _parts(asked)}
    if answer:
        said["gen_ai.output.messages"] = _parts(answer)
    return said


def _parts(turns: Sequence[Turn]) -> str:
    found = []
    for turn in turns:
        part = {"type": "text", "content": turn.text}
        message: dict[str, Any] = {"role": turn.role, "parts": [part]}
        if turn.role == "assistant":
            message["finish_reason"] = "stop"
        found.append(message)
    return dumps(found)


def _span(
    ids: Mapping[str, str],
    name: str,
    kind: int,
    times: tuple[int, int],
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    start, end = times
    return {
        **ids,
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(end),
        "attributes": _attributes(attributes),
    }


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for key, value in values.items():
        kind = "boolValue" if isinstance(value, bool) else "stringValue"
        found.append({"key": key, "value": {kind: value}})
    return found


def _id(length: int, *names: str) -> str:
    text = "\0".join(names).encode("utf-8", "replace")
    return blake2b(text, digest_size=length).hexdigest()

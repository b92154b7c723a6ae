"""Answers that were logged as the chunks in which they came."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from userlm.data.layouts.fields import Row, parse_json

_EVENT = re.compile(r"\s*(data|event):")
_EVENTS = re.compile(r"(message|content_block)_(start|delta|stop)|ping|response\..+")
"""The types of chunks of Anthropic, and of OpenAI's Responses."""


def unstreamed(answer: Any) -> Any:
    """Return the answer that chunks make together, as one that came whole; anything else as it is.

    Read are chunks of OpenAI (chat and Responses) and Anthropic, in a list, or as the server-sent
    events that a proxy saw. Of calls of tools in chunks nothing is kept.
    """
    chunks = parse_json(answer)
    if isinstance(answer, str) and _EVENT.match(answer):
        fields = (line.partition(":") for line in answer.splitlines())
        data = (
            parse_json(value.strip()) for name, _, value in fields if name == "data"
        )
        chunks = [
            each for each in data if isinstance(each, Mapping)
        ]  # the last is [DONE]
    if not isinstance(chunks, list) or not chunks or not all(map(_is_chunk, chunks)):
        return answer
    text = "".join(map(_words, chunks))
    reasons = [reason for chunk in chunks for reason in _reasons(chunk)]
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": (reasons or [None])[-1]}]}


def _is_chunk(item: Any) -> bool:
    if not isinstance(item, Mapping):
        return False
    is_event = _EVENTS.fullmatch(str(item.get("type"))) is not None
    return is_event or item.get("object") == "chat.completion.chunk"


def _words(chunk: Row) -> str:
    """Return the words of the answer in a chunk."""
    delta = _first(chunk).get("delta", chunk.get("delta"))
    if isinstance(delta, Mapping):
        delta = delta.get("content") or delta.get("text")
    elif chunk.get("type") != "response.output_text.delta":
        return ""
    return delta if isinstance(delta, str) else ""


def _reasons(chunk: Row) -> Sequence[Any]:
    """Return why the answer ended, if a chunk says so."""
    delta, whole = chunk.get("delta"), chunk.get("response")
    found = [_first(chunk).get("finish_reason")]
    found += [delta.get("stop_reason")] if isinstance(delta, Mapping) else []
    found += [whole.get("status")] if isinstance(whole, Mapping) else []
    return [reason for reason in found if reason]


def _first(chunk: Row) -> Row:
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, Mapping) else {}

"""Answers that were logged as the chunks in which they came."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from userlm.content import THOUGHT_FIELDS, read_parts
from userlm.data.layouts.fields import Row, parse_json

_LINE_END = re.compile(r"\r\n|\r|\n")
"""The line ends of server-sent events. JSON may hold others, which Python knows, too."""
_FIELD = re.compile("(data|event|id|retry)?:")
_CUT = re.compile(
    r"d(ata?)?|da|e(v(e(nt?)?)?)?|id?|r(e(t(ry?)?)?)?|\W*truncated\W*|\.{3}|…"
)
"""The last line where a log cut a stream: the half of the name of a field, or a mark."""
_LINE = re.compile(r'\{"|[0-9a-f]:["{[]')
"""How lines begin of streams that are no events."""
_DONE = "[DONE]"
_EVENTS = re.compile(r"(message|content_block)_(start|delta|stop)|ping|response\..+")
"""The types of chunks of Anthropic, and of OpenAI's Responses."""
_LAST = ("message_stop", "response.completed")
_GOING_ON = ("in_progress", "queued")
_OF_TEXT = ("response.output_text.delta", "response.refusal.delta")
_OF_THOUGHT = ("response.reasoning_text.delta", "response.reasoning_summary_text.delta")
_REASON = "finish_reason"
_OF_ARGUMENTS = "response.function_call_arguments.delta"
_BROKEN_OFF = "incomplete"
"""Why a stream ended that does not say so."""


class _Piece(NamedTuple):
    """A piece of an answer: of its words, a thought or a call of a tool, with the part to which it
    belongs, and the name of the tool where it begins."""

    kind: str
    text: str
    part: Any = None
    tool: str = ""


def unstreamed(answer: Any) -> Any:
    """Return the answer that chunks make together, as one that came whole; anything else as it is.

    Read are chunks of OpenAI (chat, completions and Responses), Anthropic, Gemini, Mistral, Ollama
    and LangChain, in a list, or as the lines or server-sent events that a proxy saw. Of several
    samples only the first is read. A stream that does not say that it ended was broken off; one
    with events of another kind is returned as an object that is no answer, so that it is counted.
    """
    events = _events(answer) if isinstance(answer, str) else None
    chunks = parse_json(answer) if events is None else events
    if not isinstance(chunks, list) or not chunks:
        return answer
    is_done = chunks[-1] == _DONE
    # Of a log that was cut the last event is only half there.
    is_cut = not is_done and events is not None and isinstance(chunks[-1], str)
    chunks = chunks[:-1] if is_done or is_cut else chunks
    if len(chunks) == 1 and _is_of_langchain(chunks[0]):
        return chunks[0]  # LangChain puts chunks together itself
    are_known = all(_is_chunk(each) or _is_error(each) for each in chunks)
    if not (are_known and any(map(_is_chunk, chunks))):
        return answer if events is None else {"events": events}
    pieces: list[_Piece] = []
    reason, has_ended = None, False
    for chunk in chunks:
        more = [*_pieces(chunk)]
        if has_ended and any(piece.kind == "speech" and piece.text for piece in more):
            return {"events": chunks}  # answers, and no chunks of one
        pieces += more
        reason = _reason(chunk) or reason
        has_ended |= reason is not None or chunk.get("type") in _LAST
    if is_cut or not (has_ended or is_done):
        reason = _BROKEN_OFF
    message = {"role": "assistant", "content": _parts(pieces)}
    return {"choices": [{"message": message, "finish_reason": reason}]}


def _events(text: str) -> list[Any] | None:
    """Return the data of server-sent events, or the lines of Ollama's and Vercel's streams, as far
    as it is JSON; `None` if the text is none of these."""
    lines = [line for line in _LINE_END.split(text) if line.strip()]
    if len(lines) > 1 and all(map(_LINE.match, lines)):
        found = [parse_json(line) for line in lines]
        are_known = _is_of_ollama(found[0]) or isinstance(found[0], str)
        return found if are_known else None
    is_cut = len(lines) > 1 and _CUT.fullmatch(lines[-1]) is not None
    if not lines or not all(map(_FIELD.match, lines[:-1] if is_cut else lines)):
        return None
    fields = (line.partition(":") for line in lines)
    data = [value.strip() for name, _, value in fields if name == "data"]
    found = [parse_json(value) for value in data if value]
    found += lines[-1:] if is_cut else []
    return found if any(isinstance(each, Mapping) for each in found) else None


def _is_chunk(item: Any) -> bool:
    """Return whether this is a chunk for sure, and no JSON that was asked for, as the choices of a
    quiz."""
    if not isinstance(item, Mapping):
        return False
    choices, candidates = item.get("choices"), item.get("candidates")
    if _is_of_ollama(item):
        return True
    if isinstance(choices, list) and choices:
        return all(
            _has(each, "delta") or _has(each, "text", _REASON) for each in choices
        )
    if isinstance(candidates, list) and candidates:
        return all(
            _has(each, "content") or _has(each, "finishReason") for each in candidates
        )
    # The first chunk of Azure and the last one of others have no choices.
    is_bare = not choices and (
        _has(item, "choices", "object") or "usageMetadata" in item
    )
    is_event = _EVENTS.fullmatch(str(item.get("type"))) is not None
    return is_bare or is_event or _is_of_langchain(item)


def _has(item: Any, *names: str) -> bool:
    return isinstance(item, Mapping) and all(name in item for name in names)


def _is_of_ollama(item: Any) -> bool:
    return _has(item, "model", "done") and (
        _has(item, "message") or _has(item, "response")
    )


def _is_error(item: Any) -> bool:
    return isinstance(item, Mapping) and bool(item.get("error"))


def _is_of_langchain(item: Any) -> bool:
    return isinstance(item, Mapping) and str(item.get("type")) == "AIMessageChunk"


def _pieces(chunk: Row) -> Iterator[_Piece]:
    """Return the pieces of the answer in a chunk."""
    kind, delta = str(chunk.get("type")), chunk.get("delta")
    choice, candidate = _first(chunk, "choices"), _first(chunk, "candidates")
    block = chunk.get("content_block", chunk.get("item"))
    at = chunk.get("index", chunk.get("output_index"))
    if _is_of_ollama(chunk):
        yield from _of_message(chunk.get("message", {"content": chunk.get("response")}))
    elif choice:
        yield from _of_message(choice.get("delta", choice))
    elif candidate:
        content = candidate.get("content")
        yield from _of_content(content if isinstance(content, Mapping) else None)
    elif _is_of_langchain(chunk):
        yield from _of_message(chunk)
    elif kind in _OF_TEXT:
        yield _Piece("speech", str(delta or ""), at)
    elif kind in _OF_THOUGHT:
        yield _Piece("thought", str(delta or ""), at)
    elif kind == _OF_ARGUMENTS:
        yield _Piece("call", str(delta or ""), at)
    elif isinstance(block, Mapping) and block.get("name"):
        yield _Piece("call", "", at, str(block["name"]))
    elif isinstance(block, Mapping) and kind.startswith("content_block"):
        yield from (_Piece(p.kind, p.text, at) for p in read_parts([block]))
    elif isinstance(delta, Mapping):
        for name, of in (("text", "speech"), ("thinking", "thought")):
            yield _Piece(of, str(delta.get(name) or ""), at)
        yield _Piece("call", str(delta.get("partial_json") or ""), at)


def _of_message(delta: Any) -> Iterator[_Piece]:
    """Return the pieces in the `delta` of OpenAI, or in a message of LangChain."""
    if not isinstance(delta, Mapping):
        return
    thoughts = (delta.get(name) for name in THOUGHT_FIELDS)
    thought = next((each for each in thoughts if isinstance(each, str) and each), "")
    yield _Piece("thought", thought)
    yield from _of_content(delta.get("content", delta.get("text")))
    yield _Piece("speech", str(delta.get("refusal") or ""))
    calls = delta.get("tool_calls") or delta.get("tool_call_chunks") or []
    for call in calls if isinstance(calls, list) else []:
        if isinstance(call, Mapping):
            said = call.get("function")
            said = said if isinstance(said, Mapping) else call
            arguments = said.get("arguments", said.get("args"))
            given = arguments if isinstance(arguments, str) else json.dumps(arguments)
            name = str(said.get("name") or "")
            yield _Piece("call", given if arguments else "", call.get("index"), name)


def _of_content(content: Any) -> Iterator[_Piece]:
    for part in read_parts(content):
        yield _Piece(part.kind, part.text)


def _parts(pieces: Sequence[_Piece]) -> list[dict[str, Any]]:
    """Return the parts that pieces make together. What is said after a call is another part."""
    parts: list[dict[str, Any]] = []
    begun: dict[tuple[str, Any], dict[str, Any]] = {}
    for kind, text, part, tool in pieces:
        if not (text or tool) or kind == "other":
            continue
        if tool:
            begun.clear()
        part = str(part)
        if (kind, part) not in begun:
            parts.append({**_KINDS[kind], **({"name": tool} if tool else {})})
            begun[kind, part] = parts[-1]
        field = "arguments" if kind == "call" else "text"
        begun[kind, part][field] = begun[kind, part].get(field, "") + text
    return parts


_KINDS: Mapping[str, Mapping[str, Any]] = {
    "speech": {"type": "text"},
    "thought": {"type": "thinking"},
    "call": {"type": "tool_call"},
    "result": {"type": "tool_result"},
}


def _reason(chunk: Row) -> Any:
    """Return why the answer ended; `None` if the chunk does not say so."""
    delta, whole = chunk.get("delta"), chunk.get("response")
    candidate, told = _first(chunk, "candidates"), chunk.get("response_metadata")
    found = [
        _first(chunk, "choices").get(_REASON),
        chunk.get("done_reason") or ("stop" if chunk.get("done") is True else None),
        candidate.get("finishReason", candidate.get("finish_reason")),
        "error" if chunk.get("error") else None,
    ]
    found += [delta.get("stop_reason")] if isinstance(delta, Mapping) else []
    if isinstance(told, Mapping):
        found += [told.get("finish_reason"), told.get("stop_reason")]
    if isinstance(whole, Mapping) and whole.get("status") not in _GOING_ON:
        found.append(whole.get("status"))
    return next(filter(None, reversed(found)), None)


def _first(chunk: Row, name: str) -> Row:
    """Return what a chunk has of the first sample."""
    samples = chunk.get(name)
    for sample in samples if isinstance(samples, list) else ():
        if isinstance(sample, Mapping) and not sample.get("index"):
            return sample
    return {}

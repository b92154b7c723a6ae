"""The content of a message, in any of its shapes: what was said, what was only thought, and tools.

The content is a text, or a list of texts and parts. Read are the parts of OpenAI (chat, responses
and assistants), Anthropic, Gemini, Bedrock, Mistral, LangChain, the Vercel AI SDK and the semantic
conventions of OpenTelemetry. Not all of them give a part a `type`: Gemini's and Bedrock's have a
field with the name of the type instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from userlm.text import has_words

_LONGEST_NAME = (
    100  # characters; the patterns take time that grows with the square of it
)
# Types are compared in snake case. New ones appear every month, but their names are alike.
_RESULT = re.compile("(tool|function|call|execution).*_(result|response|output)")
_CALL = re.compile("tool|function|_call$|executable_code|^mcp_")
_THOUGHT = re.compile("thinking|reasoning|^thoughts?$|^summary_text$")
_TEXT = re.compile("^$|text$|^refusal$")

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""The fields of a message for what the model thought, in the APIs that have one. Servers that fill
several write the same into them."""

_SPEECH_FIELDS = ("text", "refusal", "transcript", "value", "content", "audio")
_GOES_ON = re.compile(r"\s|[.,;:!?)]+(\s|$)")
"""How a text begins that goes on with the sentence before it; `.env` is a word."""
_LEVELS = 8
"""How deep a text may be nested in a part; real ones take two or three."""
_ANSWERED = ("result", "output-available", "output-error")
_RESULT_FIELDS = ("response", "result", "content", "output")
_THOUGHT_FIELDS = (
    "thinking",
    "reasoning",
    "reasoning_content",
    "reasoningContent",
    "reasoning_text",
    "reasoningText",
    "thoughts",
    "text",
    "content",
    "summary",
)
_WORD_FIELDS = tuple(dict.fromkeys(_SPEECH_FIELDS + _THOUGHT_FIELDS))


UNTYPED = {
    "text",
    *("thought", "thoughtSignature", "inlineData", "functionCall", "functionResponse"),
    *("thought_signature", "inline_data", "function_call", "function_response"),
    *("video_metadata", "file_data", "code_execution_result", "executable_code"),
    *("toolUse", "toolResult", "reasoningContent"),
}
"""The fields of parts without a `type`: of Gemini and Bedrock."""
_OF_A_TEXT = {
    *("type", "text", "id", "index", "state", "annotations", "citations"),
    *("logprobs", "signature", "thought_signature", "thoughtSignature"),
    *("cache_control", "cacheControl", "providerMetadata", "providerOptions", "extras"),
    *("provider_options", "provider_metadata", "isReasoning", "prompt_cache"),
}
"""The fields of a text, and its options."""
_MEDIA = re.compile(
    "(input_|output_)?(image|audio|video|media|file|document|source)(_url|_file)?"
)
_OF_MEDIA = {
    *("source", "sourceType", "data", "url", "image_url", "audio_url", "video_url"),
    *("image", "audio", "input_audio", "image_file", "file", "filename", "file_data"),
    *("file_id", "fileId", "mediaType", "media_type", "mimeType", "mime_type"),
}
_PART_TYPE = re.compile(
    r"((output|input|summary|reasoning)_)?text|refusal|(redacted_)?thinking|reasoning(_content)?"
    r"|(server_|mcp_)?tool_(use|result|reference)|.+_tool_result|(dynamic-)?tool-.+|dynamic-tool"
    r"|.+[_-]call([_-](result|output))?|function_(response|result)|step-.*|source-(url|document)"
    r"|search_result|citation|executable_code|code_execution_result"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a message.

    Attributes:
        kind: `speech` was shown to the other side, a refusal too; `thought` was not; `call` and
            `result` are those of a tool; `other` has no words, such as an image.
        text: the words; the JSON of a call.
    """

    kind: Literal["speech", "thought", "call", "result", "other"]
    text: str


def split_content(content: Any) -> tuple[str, str]:
    """Return what was said in the content of a message, and what was only thought.

    Parts are `joined`. Tool calls, their results, and parts without
    words are skipped; a content that is a text is returned as it is.
    """
    parts = read_parts(content)
    return joined(parts, "speech"), joined(parts, "thought")


def joined(parts: Sequence[Part], kind: str) -> str:
    """Return the text of the parts of one kind, with an empty line between them, but none within a
    sentence: of an answer with citations, each of its pieces is a part."""
    whole = ""
    for part in parts:
        if part.kind != kind or not (part.text if whole else part.text.strip()):
            continue
        goes_on = not whole or whole[-1].isspace() or _GOES_ON.match(part.text)
        whole += part.text if goes_on else f"\n\n{part.text}"
    return whole


def read_parts(content: Any) -> list[Part]:
    """Return the parts of the content of a message, in order; none if it is `None`."""
    if isinstance(content, str):
        return [Part("speech", content)]
    if content is None:
        return []
    if isinstance(content, Mapping) and isinstance(content.get("parts"), list):
        parts = read_parts(content["parts"])  # the exports of ChatGPT
        return parts + _unread(content, joined(parts, "speech"))
    parts = []
    for item in content if isinstance(content, list | tuple) else [content]:
        part = read_part(item)
        parts.append(part)
        if isinstance(item, Mapping) and part.kind in ("speech", "thought"):
            parts += _unread(item, part.text)
    return parts


def _unread(part: Mapping[str, Any], read: str) -> list[Part]:
    """Return a part without words for each field of a part whose words are not in what was read, so
    that it is counted."""
    names = [name for name in _WORD_FIELDS if name in part]
    texts = [_text_in(part[name], _WORD_FIELDS) for name in names]
    return [Part("other", "") for text in texts if text and not has_said(read, text)]


def are_parts(items: Any) -> bool:
    """Return whether these are the parts of a message, as an API takes or returns them, and no
    objects that have such fields among others: these may be words in JSON."""
    return isinstance(items, list) and bool(items) and all(map(_is_known, items))


def _is_known(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    given = {name for name, value in part.items() if value is not None}
    if "type" not in given:
        return bool(given) and given <= UNTYPED
    name = str(part["type"])
    if name == "text":
        return "text" in given <= _OF_A_TEXT
    if is_media_type(name):
        return not given.isdisjoint(_OF_MEDIA)
    return _PART_TYPE.fullmatch(name) is not None


def is_media_type(name: Any) -> bool:
    """Return whether a type is one of pictures, sounds or files."""
    return isinstance(name, str) and _MEDIA.fullmatch(name) is not None


def has_said(said: str, words: str) -> bool:
    """Return whether a text has these words, whatever the white space; some logs join the parts of
    a message without any."""
    texts, wanted = said.split(), words.split()
    is_part = f" {' '.join(wanted)} " in f" {' '.join(texts)} "
    return not has_words(words) or is_part or "".join(wanted) == "".join(texts)


def read_part(part: Any) -> Part:
    """Return what a part is, and its words."""
    if isinstance(part, str):
        return Part("speech", part)
    if not isinstance(part, Mapping):
        return Part("other", "")
    name = _type_name(part)
    if part.get("thought") is True or _THOUGHT.search(name):
        return Part("thought", _text_in(part, _THOUGHT_FIELDS) or "")
    if _RESULT.search(name):
        return Part("result", _result(part))
    if _CALL.search(name):
        return Part("result" if is_answered(part) else "call", _json(part))
    # An unknown part may hold base64 in `content`, but its `text` is text.
    fields = _SPEECH_FIELDS if _TEXT.search(name) else ("text", "transcript", "audio")
    text = _text_in(part, fields)
    return Part("other", "") if text is None else Part("speech", text)


def is_answered(call: Any) -> bool:
    """Return whether a call of a tool has its result with it, as in messages of Vercel's SDK."""
    if not isinstance(call, Mapping):
        return False
    inner = call.get("toolInvocation")
    state = (inner if isinstance(inner, Mapping) else call).get("state")
    return state in _ANSWERED


def _type_name(part: Mapping[str, Any]) -> str:
    """Return the name of the type of a part, in snake case; empty if it only has the fields of a
    text."""
    named = part.get("type") or part.get("content_type")
    if isinstance(named, str):
        return _snake(named)
    # Gemini's `thought` is true or false; only the former makes a part a thought.
    # Where a table or a dump has a field for each type, all but one are null.
    given = (name for name, value in part.items() if value is not None)
    names = [_snake(str(name)) for name in given if name != "thought"]
    patterns = (_RESULT, _CALL, _THOUGHT)
    special = (name for name in names if any(each.search(name) for each in patterns))
    return next(special, "")


def _snake(name: str) -> str:
    name = name[:_LONGEST_NAME]
    return re.sub("(?<=[a-z])(?=[A-Z])|-", "_", name).lower()


def _text_in(value: Any, fields: Sequence[str], levels: int = _LEVELS) -> str | None:
    """Return the text in a value: itself, that of its items, or that in these fields, each text
    once; `None` if there is none. Audio counts only without a text: it may be base64."""
    if isinstance(value, str):
        return value
    if not levels:
        return None
    within = partial(_text_in, fields=fields, levels=levels - 1)
    if isinstance(value, list):
        found = [within(item) for item in value]
        return "\n\n".join(filter(None, found)) or None
    if isinstance(value, Mapping):
        named = [name for name in fields if name != "audio"]
        inside = [within(value.get(name)) for name in named]
        texts = [text for text in inside if text is not None]
        if texts:
            return "\n\n".join(dict.fromkeys(filter(None, texts)))
        return within(value.get("audio")) if "audio" in fields else None
    return None


def _result(part: Mapping[str, Any]) -> str:
    found = [part[field] for field in _RESULT_FIELDS if part.get(field)]
    result = found[0] if len(found) == 1 else part
    return result if isinstance(result, str) else _json(result)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)

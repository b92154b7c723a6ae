"""The answer that a row holds beside its `messages`, as where an app logs each call to a model: a
text, messages, or what an API returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from userlm.content import read_parts
from userlm.data.layouts.common import (
    CUT_REASONS,
    ROLES,
    Messages,
    Side,
    read_messages,
)
from userlm.data.layouts.fields import Rejected, Row, parse_json
from userlm.text import has_words
from userlm.types import OTHER_ROLE

_FIELDS = ("response", "completion", "choices", "output")
_STOP_REASONS = (
    "finish_reason",
    "finishReason",
    "stop_reason",
    "stopReason",
    "done_reason",
    "status",
)
_OF_A_CHOICE = {"message", "delta", "finish_reason", "finishReason"}
_INNER = ("message", "output")
"""Fields in which an API returns the answer, besides its choices."""


def with_answer(
    request: Messages, items: Sequence[Any], name: str, row: Row
) -> tuple[Messages, str, bool]:
    """Return the messages of a call with the answer to them; the name of the field that has it,
    empty if none has; and whether it was cut at a limit.

    Args:
        request: the messages `items` in the list `name`, as they were read.
    """
    asked = next(_plain(text) for side, text in request.said[::-1] if side == "user")
    for field in _FIELDS:
        given = row.get(field)
        content = parse_json(given)
        if field == "choices":
            content = {field: content}
        elif isinstance(given, str) and not _is_returned(content, asked):
            content = given  # perhaps JSON that was asked for
        found = _read_both(request, items, _messages_in(content), name, asked)
        if found and len(found.said) > len(request.said) and not found.cut:
            return found, field, is_cut(content)
    return request, "", False


def is_cut(answer: Any) -> bool:
    """Return whether an API says that it cut an answer at a limit."""
    found = answer if isinstance(answer, list) else [answer]
    said = []
    for each in filter(lambda one: isinstance(one, Mapping), found):
        for part in (each, *(_choices(each) or ())[:1]):
            said += [str(part.get(name)).lower() for name in _STOP_REASONS]
    return not CUT_REASONS.isdisjoint(said)


def _read_both(
    request: Messages, items: Sequence[Any], answer: list[Any], name: str, asked: str
) -> Messages | None:
    """Return the messages of a request and its answer, which may hold the request again, or the
    whole conversation up to there; `None` if there is no answer that can be read.

    Args:
        asked: the last words of the user.
    """
    if not answer:
        return None
    said = [_said(each) for each in answer]
    ends = [n for n, each in enumerate(said, 1) if ("user", asked) in each]
    if ends:
        end = ends[-1]
        before = [side for each in said[:end] for side, _ in each if side in OTHER_ROLE]
        turns = [side for side, _ in request.said if side in OTHER_ROLE]
        if len(before) > len(turns):
            items = answer[:end]
    else:
        # Nobody but the assistant begins an answer.
        ours = ({side for side, _ in each} - {"user", "system"} for each in said)
        end = next((n for n, each in enumerate(ours) if each), len(answer))
    try:
        return read_messages(enumerate([*items, *answer[end:]]), name)
    except Rejected:
        return None


def _said(message: Any) -> list[tuple[Side, str]]:
    """Return what a message says; nothing if it cannot be read."""
    try:
        said = read_messages([(0, message)], "messages").said
    except Rejected:
        return []
    return [(side, _plain(text)) for side, text in said]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _messages_in(answer: Any) -> list[Any]:
    """Return the messages in an answer."""
    if isinstance(answer, str):
        is_said = has_words(answer) and answer != "null"
        return [{"role": "assistant", "content": answer}] if is_said else []
    if isinstance(answer, list):
        are_some = all(isinstance(each, Mapping) for each in answer)
        if are_some and any(map(_side, answer)):
            return answer
        parts = read_parts(answer) if are_some and answer else []
        are_parts = bool(parts) and all(part.kind != "other" for part in parts)
        return [{"role": "assistant", "content": answer}] if are_parts else []
    if not isinstance(answer, Mapping):
        return []
    for first in (_choices(answer) or ())[:1]:
        text = first.get("text") if "finish_reason" in first else None
        return _messages_in(first.get("message") or first.get("content") or text)
    for inner in map(answer.get, _INNER):
        if isinstance(inner, Mapping | list):
            return _messages_in(inner)
    return [answer] if _side(answer) else []


def _is_returned(content: Any, asked: str) -> bool:
    """Return whether the JSON in a text is what an API returned, perhaps without an answer; else it
    may be the answer itself, since JSON was asked for."""
    if isinstance(content, list):
        users = [
            text
            for message in _messages_in(content)
            for side, text in _said(message)
            if side == "user"
        ]
        # A dialogue with others may have been asked for.
        return asked in users or not (users or (content and not _messages_in(content)))
    if not isinstance(content, Mapping):
        return False
    inner = (content.get(name) for name in _INNER)
    return (
        _choices(content) is not None
        or isinstance(content.get("error"), Mapping)
        or "promptFeedback" in content
        or _side(content) == "assistant"
        or any(_is_returned(each, asked) for each in inner if each)
    )


def _choices(answer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """Return the choices of OpenAI or the candidates of Gemini; `None` if it has none of these, as
    an answer in JSON with the choices of a quiz."""
    for name in ("choices", "candidates"):
        choices = answer.get(name)
        if isinstance(choices, list) and all(map(_is_choice, choices)):
            return choices
    return None


def _is_choice(item: Any) -> bool:
    if not isinstance(item, Mapping):
        return False
    return not _OF_A_CHOICE.isdisjoint(item) or isinstance(item.get("content"), Mapping)


def _side(message: Any) -> Side | None:
    if not isinstance(message, Mapping):
        return None
    named = (message.get(field) for field in ("role", "from", "type"))
    return ROLES.get(str(next(filter(None, named), "")).lower())

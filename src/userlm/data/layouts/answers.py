"""The answer that a row holds beside its `messages`, as where an app logs each call to a model: a
text, messages, or what an API returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import dropwhile, takewhile
from typing import Any

from userlm.content import UNTYPED, are_parts, has_said, read_part, read_parts
from userlm.data.layouts.common import (
    FAILED,
    ROLES,
    Messages,
    Side,
    are_of_cut,
    read_messages,
)
from userlm.data.layouts.fields import GAPS, Rejected, Row, parse_json
from userlm.data.layouts.streams import unstreamed
from userlm.text import has_words
from userlm.types import OTHER_ROLE

_FIELDS = ("response", "completion", "choices", "output", "response_body")
_STOP_REASONS = (
    "finish_reason",
    "finish_reasons",
    "finishReason",
    "stop_reason",
    "stopReason",
    "done_reason",
    "status",
)
_STATUSES = ("status", "statusCode", "status_code")
_TOLD = ("response_metadata", "generation_info")
"""Fields of LangChain in which the reason stands."""
_OF_A_CHOICE = {"message", "delta", "finish_reason", "finishReason"}
_OF_AN_API = {"id", "object", "model", "usage", "usageMetadata", "modelVersion"}
"""Fields of what an API returns, of which an answer in JSON has none."""
_CONTENTS = {
    *("content", "parts", "tool_calls", "function_call", "refusal", "data", "value"),
    *("reasoning_content", "arguments", "output"),
}
_NOTHING = (*GAPS, "{}")
"""What a logger or a table writes where there was no answer."""
Turn = tuple[Side, str]
"""The side and the words of a message."""
_INNER = ("message", "output", "messages", "generations")
"""Fields in which an API returns the answer, besides its choices."""
_TEXTS = ("text", "generated_text", "output_text", "response", "content")
"""Fields in which an API returns the answer as a text, such as those of Vercel's SDK, TGI, Cohere
and Ollama."""


def with_answer(
    request: Messages, items: Sequence[Any], name: str, row: Row
) -> tuple[Messages, str | None, bool]:
    """Return the messages of a call with the answer to them; the name of the field that has it,
    empty if none has, or `None` if there is an object that was not read; and whether it was cut at
    a limit.

    Args:
        request: the messages `items` in the list `name`, as they were read.
    """
    sides = [side for side, _ in request.said if side not in ("system", "thought")]
    if sides[-1:] == ["assistant"]:
        return _with_rest(request, row)
    if sides[-1:] not in (["user"], ["tool"]):
        return request, "", False
    is_unread = False
    for field in _FIELDS:
        given = unstreamed(row.get(field))
        content = _unwrapped(parse_json(given))
        # Some log the numbers of tokens there.
        may_be_answer = bool(content) and not isinstance(content, str | bool)
        if field == "choices":
            content = {field: content}
        elif isinstance(given, str) and not _is_returned(content, request):
            content = given  # perhaps JSON that was asked for
        before, answer = _divided(_messages_in(content), items, request)
        is_unread |= may_be_answer
        if not answer:
            continue
        with suppress(Rejected):
            found = read_messages(enumerate([*before, *answer]), name)
            if len(found.said) > len(request.said) and not found.cut:
                return found, field, is_cut(content) or any(map(is_cut, answer))
    return request, None if is_unread else "", False


def _with_rest(request: Messages, row: Row) -> tuple[Messages, str, bool]:
    """Return the messages of a call that ends with the beginning of an answer, with the rest, which
    Anthropic's API returns; see `with_answer`. Elsewhere the answer stands in both."""
    for field in _FIELDS:
        answer = _unwrapped(parse_json(row.get(field)))
        if not (isinstance(answer, Mapping) and answer.get("type") == "message"):
            continue
        (side, begun), rest = request.said[-1], _said(answer)
        if not ("stop_reason" in answer and rest and side == rest[0][0] == "assistant"):
            continue
        first, *more = read_messages([(0, answer)], field).said
        if not has_said(begun, first[1]):
            said = [*request.said[:-1], (side, begun + first[1]), *more]
            return replace(request, said=said), field, is_cut(answer)
    return request, "", False


def _unwrapped(answer: Any) -> Any:
    """Return the body of a response of HTTP that is logged with its status, as in OpenAI's batches;
    anything else, and one that failed, as it is."""
    if not isinstance(answer, Mapping) or _has_failed(answer):
        return answer
    body = parse_json(unstreamed(answer.get("body")))
    has_status = any(name in answer for name in _STATUSES)
    return body if has_status and isinstance(body, Mapping) else answer


def is_cut(answer: Any) -> bool:
    """Return whether an API says that it cut an answer at a limit, or failed."""
    if not isinstance(answer, Mapping):
        return False
    parts = (answer, *(_choices(answer) or ())[:1])
    told = [part.get(field) for part in parts for field in _TOLD]
    parts += tuple(each for each in told if isinstance(each, Mapping))
    reasons = [part.get(name) for part in parts for name in _STOP_REASONS]
    several = [
        each for reason in reasons if isinstance(reason, list) for each in reason
    ]
    return are_of_cut([*reasons, *several])


def _divided(
    answer: list[Any], items: Sequence[Any], request: Messages
) -> tuple[Sequence[Any], list[Any]]:
    """Return the messages before an answer, and the answer without them: some APIs return the
    request, too, in a form of their own, or the whole thread of which it is the end."""
    spoken = [
        (n, each)
        for n, message in enumerate(answer)
        for each in _said(message)
        if each[0] in OTHER_ROLE
    ]
    asked = _turns(request)
    start, count = _last_run([each for _, each in spoken], asked)
    # An assistant may say the same again without returning anything.
    if "user" in {side for side, _ in asked[len(asked) - count :]}:
        end, _ = spoken[start + count - 1]
        new = answer[end + 1 :]
        # The calls and results with which the request ends stand in the answer, too.
        for _ in takewhile(_is_of_tool, reversed(items)):
            new = new[1:] if new and _is_of_tool(new[0]) else new
        if start + count > len(asked):
            system = [each for each in items if side_in(each) == "system"]
            has_system = any(side_in(each) == "system" for each in answer)
            return [*([] if has_system else system), *answer[: end + 1]], new
        return items, new
    users = [n for n, (side, _) in spoken if side == "user"]
    begins = spoken[0][1] if spoken else None
    if users and begins is not None and (begins[0] == "user" or begins in asked[:1]):
        # A thread in which the last words of the user are others, as before a template.
        return items, answer[users[-1] + 1 :]
    return items, [*dropwhile(lambda each: side_in(each) == "system", answer)]


def _last_run(returned: Sequence[Turn], asked: Sequence[Turn]) -> tuple[int, int]:
    """Return where the most last turns of those that were asked stand among the returned ones, the
    last time; and how many."""
    best = (0, 0)
    for end in range(1, len(returned) + 1):
        most, count = min(end, len(asked)), 0
        while count < most and returned[end - 1 - count] == asked[-1 - count]:
            count += 1
        if count >= best[1]:
            best = (end - count, count)
    return best


def _turns(messages: Messages) -> list[Turn]:
    said = ((side, _plain(text)) for side, text in messages.said)
    return [each for each in said if each[0] in OTHER_ROLE]


def _is_of_tool(message: Any) -> bool:
    """Return whether a message holds calls, their results or thought alone."""
    sides = {side for side, _ in _said(message)}
    return bool(sides) and sides <= {"tool", "thought"}


def _said(message: Any) -> list[Turn]:
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
        is_said = has_words(answer) and answer not in _NOTHING
        return [{"role": "assistant", "content": answer}] if is_said else []
    if isinstance(answer, list):
        if len(answer) == 1 and (found := _messages_in(answer[0])):
            return found  # one prompt, sample or part
        if not all(isinstance(each, Mapping) for each in answer):
            return []
        if any(map(side_in, answer)):
            return answer
        # One message of parts, of which some may have no words.
        is_read = any(part.kind != "other" for part in read_parts(answer))
        is_one = is_read and are_parts(answer)
        return [{"role": "assistant", "content": answer}] if is_one else []
    if not isinstance(answer, Mapping):
        return []
    for first in (_choices(answer) or ())[:1]:
        if side_in(first):
            return [first]
        text = first.get("text") if "finish_reason" in first else None
        return _messages_in(first.get("message") or first.get("content") or text)
    for inner in map(answer.get, _INNER):
        if isinstance(inner, Mapping | list) and (found := _messages_in(inner)):
            return found
    if side_in(answer):
        return [answer]
    if read_part(answer).kind not in ("speech", "other") or _has_failed(answer):
        return []
    texts = (answer.get(name) for name in _TEXTS)
    return _messages_in(
        next((each for each in texts if isinstance(each, str | list)), None)
    )


def _has_failed(answer: Row) -> bool:
    """Return whether an object is what a call returned that failed: its text is no answer."""
    codes = [str(answer.get(name)).lower() for name in _STATUSES]
    is_refused = any(code.isdecimal() and int(code) >= 400 for code in codes)
    return bool(answer.get("error")) or is_refused or not FAILED.isdisjoint(codes)


def _is_returned(content: Any, request: Messages) -> bool:
    """Return whether the JSON in a text is what an API returned, perhaps without an answer; else it
    may be the answer itself, since JSON was asked for."""
    if isinstance(content, list):
        said = [each for item in content for each in _said(item)]
        users = [each for each in said if each[0] == "user"]
        # A dialogue with others may have been asked for.
        is_ours = not users or not {*users}.isdisjoint(_turns(request))
        has_others = any(not side_in(each) for each in content if _has_role(each))
        return (
            is_ours
            and not has_others
            and (_are_messages(content) or are_parts(content))
        )
    if not isinstance(content, Mapping):
        return False
    error = content.get("error")
    inner = [content.get(name) for name in _INNER]
    return (
        _choices(content) is not None
        or content.get("object") == "response"
        or (isinstance(error, Mapping) and "message" in error)
        or "promptFeedback" in content
        or (_are_messages([content]) and side_in(content) == "assistant")
        or any(
            _is_returned(each, request)
            for each in inner
            # Objects with a text alone may have been asked for.
            if isinstance(each, Mapping) or not _are_texts(each)
        )
    )


def _are_texts(items: Any) -> bool:
    return isinstance(items, list) and all(
        isinstance(each, Mapping) and UNTYPED.issuperset(each) for each in items
    )


def _are_messages(items: Sequence[Any]) -> bool:
    """Return whether some of these say whose they are, and have the content of a message, too."""
    return any(side_in(each) and not _CONTENTS.isdisjoint(each) for each in items)


def _has_role(item: Any) -> bool:
    return isinstance(item, Mapping) and bool(item.get("role"))


def _choices(answer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """Return the choices of OpenAI or the candidates of Gemini; `None` if it has none of these, as
    an answer in JSON with the choices of a quiz."""
    for name in ("choices", "candidates"):
        choices = answer.get(name)
        if not isinstance(choices, list) or not all(map(_is_choice, choices)):
            continue
        if choices or not _OF_AN_API.isdisjoint(answer):
            return choices
    return None


def _is_choice(item: Any) -> bool:
    if not isinstance(item, Mapping):
        return False
    content = item.get("content")
    is_content = isinstance(content, Mapping) and "parts" in content
    message = item.get("message", {})
    is_message = isinstance(message, Mapping) and not _OF_A_CHOICE.isdisjoint(item)
    return is_content or _are_messages([item]) or is_message


def side_in(message: Any) -> Side | None:
    """Return whose message it is; `None` if it does not say so."""
    if not isinstance(message, Mapping):
        return None
    named = (message.get(field) for field in ("role", "from", "type"))
    return ROLES.get(str(next(filter(None, named), "")).lower())

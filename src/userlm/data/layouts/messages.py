"""`messages` of `{role, content}`, as in the OpenAI API, with any other fields next to them; Gemini
calls them `contents`, and some logs `conversation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import date
from typing import Any

from userlm.data.layouts.common import (
    CUT_REASONS,
    ROLES,
    Imported,
    Layout,
    Messages,
    Side,
    assemble,
    is_whole,
    read_messages,
)
from userlm.data.layouts.fields import (
    SCALARS,
    Rejected,
    Row,
    id_of,
    list_of,
    parse_json,
    plain_number,
)
from userlm.text import has_words

_NAMES = ("messages", "contents", "conversation")
_ANSWERS = ("response", "completion", "choices", "output")
_STOP_REASONS = (
    "finish_reason",
    "finishReason",
    "stop_reason",
    "stopReason",
    "done_reason",
    "status",
)
_RETURNED = ("choices", "candidates", "promptFeedback")
"""Fields of what an API returned, if it has an answer or none."""
_IDS = ("conversation_id", "thread_id", "session_id", "chat_id")
_OWN_FIELDS = ("id", "user_id", "user", "intent")


def convert(row: Row) -> Imported:
    """Return the conversation of a row.

    Other scalar fields go to `meta`. Our own export for the Hub is read back without loss: `meta`
    is JSON in a string, and `ended` is used, except after a user turn.
    """
    name = next(name for name in _NAMES if name in row)
    items = list_of(row, name)
    _check_is_one(items, name)
    messages = read_messages(enumerate(items), name)
    beside, is_cut = "", False
    sides = [side for side, _ in messages.said if side not in ("system", "thought")]
    if sides[-1:] in (["user"], ["tool"]):
        messages, beside, is_cut = _with_answer(messages, items, name, row)
    meta, lost_fields = _extras(row, {name, beside})
    whole = is_whole(row) and not is_cut and not _is_cut(row)
    if isinstance(ended := meta.get("ended"), bool):
        whole = ended
        del meta["ended"]
    if isinstance(exported := parse_json(meta.get("meta")), dict):
        del meta["meta"]
        meta = {**exported, **meta}
    intent = row.get("intent")
    if intent is not None and not isinstance(intent, str):
        intent = None
        lost_fields += 1
    return assemble(
        messages,
        id=id_of(row, "id") or (id_of(row, _IDS[0]) if name == _NAMES[-1] else ""),
        user=id_of(row, "user_id") or id_of(row, "user") or None,
        intent=intent or None,
        meta=meta,
        whole=whole,
        lost_fields=lost_fields,
    )


def _check_is_one(items: Sequence[Any], name: str) -> None:
    """Raise `Rejected` if the messages say that they are of several conversations, as those of a
    whole table are."""
    rows = [item for item in items if isinstance(item, Mapping)]
    for field in _IDS:
        ids = {str(row[field]) for row in rows if row.get(field) is not None}
        if len(ids) > 1:
            raise Rejected(
                "unknown layout",
                f"the messages in {name!r} are of {len(ids)} conversations, as their field "
                f"{field!r} says; write one message a line, and import them with --map "
                f"role=FIELD,text=FIELD,id={field}",
            )


def _with_answer(
    request: Messages, items: Sequence[Any], name: str, row: Row
) -> tuple[Messages, str, bool]:
    """Return the messages with the answer to them, where it stands beside them, as where a call is
    logged; the name of its field, empty if there is none; and whether it was cut at a limit."""
    for field in _ANSWERS:
        given = row.get(field)
        content = parse_json(given)
        answer = _messages_in({field: content} if field == "choices" else content)
        found = _read_both(items, answer, name)
        may_be_text = isinstance(given, str) and field != "choices"
        if found is None and may_be_text and _is_asked_for(content):
            found = _read_both(items, _messages_in(given), name)
        if found and len(found.said) > len(request.said) and not found.cut:
            return found, field, _is_cut(content)
    return request, "", False


def _read_both(items: Sequence[Any], answer: list[Any], name: str) -> Messages | None:
    """Return the messages of a request and its answer; `None` if that has none that are read."""
    if not answer:
        return None
    try:
        return read_messages(
            [*enumerate([*items, *_without_request(answer, items)])], name
        )
    except Rejected:
        return None


def _messages_in(answer: Any) -> list[Any]:
    """Return the messages in an answer: a text, messages, or what an API returned."""
    if isinstance(answer, str):
        is_said = has_words(answer) and answer != "null"
        return [{"role": "assistant", "content": answer}] if is_said else []
    if isinstance(answer, list):
        if not all(map(_is_message, answer)):
            return []
        are_parts = not any("role" in each or _side(each) for each in answer)
        return [{"role": "assistant", "content": answer}] if are_parts else answer
    if not isinstance(answer, Mapping):
        return []
    if first := _first_choice(answer):
        text = first.get("text") if "finish_reason" in first else None
        return _messages_in(first.get("message") or first.get("content") or text)
    for inner in (answer.get("message"), answer.get("output")):
        if isinstance(inner, Mapping | list):
            return _messages_in(inner)
    return [answer] if _is_message(answer) else []


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and not {"role", "type"}.isdisjoint(item)


def _is_asked_for(content: Any) -> bool:
    """Return whether the JSON in a text may be the words of an answer, which were asked for: not if
    it is what an API returned, perhaps an error."""
    if not isinstance(content, Mapping):
        return isinstance(content, list) and bool(content)
    is_returned = "role" in content or isinstance(content.get("error"), Mapping)
    return not (is_returned or any(name in content for name in _RETURNED))


def _without_request(answer: list[Any], items: Sequence[Any]) -> list[Any]:
    """Return the messages of an answer without those before them, since some return the request,
    or the end of it, too. (Other messages of the user are results of tools, or what came next.)"""
    spoken = [n for n, each in enumerate(answer) if _side(each) != "system"]
    asked = [_said(each) for each in items if _side(each) != "system"]
    returned = [_said(answer[n]) for n in spoken]
    for count in range(min(len(asked), len(returned)), 0, -1):
        if asked[-count:] == returned[:count]:
            return answer[spoken[count - 1] + 1 :]
    return answer


def _said(message: Any) -> Any:
    """Return the side and the words of a message, of which a copy may have other fields beside."""
    if not isinstance(message, Mapping):
        return message
    words = message.get("content") or message.get("parts")
    return (_side(message), words) if words else message


def _side(message: Any) -> Side | None:
    if not isinstance(message, Mapping):
        return None
    return ROLES.get(str(message.get("role") or message.get("type")).lower())


def _first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("choices", "candidates"):  # of OpenAI, of Gemini
        choices = answer.get(name)
        if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
            first: Mapping[str, Any] = choices[0]
            return first
    return {}


def _is_cut(answer: Any) -> bool:
    """Return whether an API says that it cut an answer at a limit."""
    found = answer[:1] if isinstance(answer, list) else [answer]
    said = []
    for each in filter(lambda one: isinstance(one, Mapping), found):
        for part in (each, _first_choice(each)):
            said += [str(part.get(name)).lower() for name in _STOP_REASONS]
    return not CUT_REASONS.isdisjoint(said)


def _extras(row: Row, used: Set[str]) -> tuple[dict[str, Any], int]:
    """Return the scalar fields next to those that were used, and the number of other fields."""
    meta: dict[str, Any] = {}
    lost_fields = 0
    for key, value in row.items():
        value = plain_number(value)
        if value is None or key in used or key in _OWN_FIELDS:
            continue
        if isinstance(value, date):
            value = value.isoformat()
        # `condition` in `meta` is part of a user model's system text; a log cannot set it.
        if isinstance(value, SCALARS) and key != "condition":
            meta[key] = value
        else:
            lost_fields += 1
    return meta, lost_fields


LAYOUT = Layout("messages", [{"messages"}, {"contents"}], convert)
OF_CONVERSATION = Layout("messages", [{"conversation"}], convert)
"""What is neither of WildChat nor of LMSYS, which have this field, too."""

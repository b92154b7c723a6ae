"""`messages` of `{role, content}`, as in the OpenAI API, with any other fields next to them; Gemini
calls them `contents`, and some logs `conversation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import date
from typing import Any

from userlm.data.layouts.common import (
    ROLES,
    Imported,
    Layout,
    Messages,
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
    "done_reason",
    "status",
)
_CUT = {"length", "max_tokens", "incomplete"}
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
    whole = is_whole(row) and not is_cut
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
        answers = [_messages_in({field: content} if field == "choices" else content)]
        if isinstance(given, str) and not isinstance(content, str):
            answers.append(_messages_in(given))  # JSON that was asked for
        for answer in filter(None, answers):
            try:
                found = read_messages(enumerate([*items, *answer]), name)
            except Rejected:
                continue
            if len(found.said) > len(request.said) and not found.cut:
                return found, field, _is_cut(row) or _is_cut(content)
    return request, "", False


def _messages_in(answer: Any) -> list[Any]:
    """Return the messages in an answer: a text, messages, or what an API returned."""
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}] if has_words(answer) else []
    if isinstance(answer, list):
        return _after_request(answer)
    if not isinstance(answer, Mapping):
        return []
    if first := _first_choice(answer):
        text = first.get("text") if "finish_reason" in first else None
        return _messages_in(first.get("message") or first.get("content") or text)
    for inner in (answer.get("message"), answer.get("output")):
        if isinstance(inner, Mapping | list):
            return _messages_in(inner)
    return _after_request([answer]) if "role" in answer else []


def _after_request(messages: list[Any]) -> list[Any]:
    """Return the messages behind the last one of the user: some return the request, too. None, if
    they are no messages."""
    answer: list[Any] = []
    for message in messages:
        if not isinstance(message, Mapping) or {"role", "type"}.isdisjoint(message):
            return []
        side = ROLES.get(str(message.get("role")).lower())
        answer = [] if side in ("user", "system") else [*answer, message]
    return answer


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
    return not _CUT.isdisjoint(said)


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

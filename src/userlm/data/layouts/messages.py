"""`messages` of `{role, content}`, as in the OpenAI API, with any other fields next to them; Gemini
calls them `contents`, and some logs `conversation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from datetime import date
from typing import Any, NamedTuple

from userlm.data.layouts.common import (
    Imported,
    Layout,
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
_CUT = ("length", "max_tokens")
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
    beside, answer = "", _Answer([])
    sides = [side for side, _ in messages.said if side not in ("system", "thought")]
    if sides[-1:] in (["user"], ["tool"]):
        beside, answer = _answer_beside(row)
        with suppress(Rejected):  # an answer that is empty or odd leaves the request
            messages = read_messages(enumerate([*items, *answer.messages]), name)
    meta, lost_fields = _extras(row, {name, beside})
    whole = is_whole(row) and not answer.is_cut
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


class _Answer(NamedTuple):
    """The messages of an answer, and whether it was cut at a limit."""

    messages: Sequence[Any]
    is_cut: bool = False


def _answer_beside(row: Row) -> tuple[str, _Answer]:
    """Return the field with the answer to the last message, and the answer: where a call is logged,
    the messages are its request. Empty if there is none."""
    for name in _ANSWERS:
        said = row.get(name)
        given = parse_json(said)
        answer = _answer_in({name: given} if name == "choices" else given)
        if not answer.messages and isinstance(said, str):
            answer = _answer_in(said)  # JSON that was asked for
        if answer.messages:
            return name, answer
    return "", _Answer([])


def _answer_in(answer: Any) -> _Answer:
    """Return the answer in a text, in messages, or in what an API returned."""
    if isinstance(answer, str) and has_words(answer):
        return _Answer([{"role": "assistant", "content": answer}])
    if isinstance(answer, list) and answer:
        are_messages = all(isinstance(each, Mapping) for each in answer)
        are_messages = are_messages and not {"role", "type"}.isdisjoint(answer[0])
        return _Answer(answer if are_messages else [])
    if not isinstance(answer, Mapping):
        return _Answer([])
    for name in ("choices", "candidates"):  # of OpenAI, of Gemini
        first = next(iter(answer.get(name) or ()), None)
        if isinstance(first, Mapping):
            reason = str(first.get("finish_reason") or first.get("finishReason"))
            text = first.get("text") if "finish_reason" in first else None
            found = _answer_in(first.get("message") or first.get("content") or text)
            return _Answer(found.messages, reason.lower() in _CUT)
    for inner in (answer.get("message"), answer.get("output")):
        if isinstance(inner, Mapping | list):
            return _answer_in(inner)
    return _Answer([answer] if "role" in answer else [])


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

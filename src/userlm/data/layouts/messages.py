"""`messages` of `{role, content}`, as in the OpenAI API, with any other fields next to them; Gemini
calls them `contents`, and some logs `conversation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import date
from typing import Any

from userlm.data.layouts.answers import is_cut, side_in, with_answer
from userlm.data.layouts.common import (
    PERSON_FIELDS,
    Imported,
    Layout,
    assemble,
    is_whole,
    person_of,
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
from userlm.data.layouts.order import oldest_first, one_branch

_NAMES = ("messages", "contents", "conversation")
_IDS = ("conversation_id", "thread_id", "session_id", "chat_id")
_IS_OURS = {"id", "user", "intent", "messages", "ended", "meta"}
"""The columns of an export of ours."""
_OWN_FIELDS = ("id", *PERSON_FIELDS, "intent")


def convert(row: Row) -> Imported:
    """Return the conversation of a row.

    Other scalar fields go to `meta`. Our own export for the Hub is read back without loss: `meta`
    is JSON in a string, and `ended` is used, except after a user turn.
    """
    name = next(name for name in _NAMES if name in row)
    items = list_of(
        {name: parse_json(row[name])}, name
    )  # in tables it is JSON in a text
    _check_is_one(items, name)
    items, turned = oldest_first(items, side_in)
    items, branches = one_branch(items, name, side_in)
    messages = read_messages(enumerate(items), name)
    messages, beside, was_cut = with_answer(messages, items, name, row)
    meta, lost_fields = _extras(row, {name, beside or name})
    whole = is_whole(row) and not was_cut and not is_cut(row)
    if isinstance(ended := meta.get("ended"), bool):
        whole = ended
        del meta["ended"]
    if isinstance(exported := parse_json(meta.get("meta")), dict):
        del meta["meta"]
        if not _IS_OURS.issubset(row):
            lost_fields += "condition" in exported
            exported.pop("condition", None)
        meta = {**exported, **meta}
    intent = row.get("intent")
    if intent is not None and not isinstance(intent, str):
        intent = None
        lost_fields += 1
    return assemble(
        messages,
        id=id_of(row, "id") or (id_of(row, _IDS[0]) if name == _NAMES[-1] else ""),
        user=person_of(row),
        intent=intent or None,
        meta=meta,
        whole=whole,
        lost_fields=lost_fields,
    ).with_notes({**turned, **branches, "answers not read": int(beside is None)})


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

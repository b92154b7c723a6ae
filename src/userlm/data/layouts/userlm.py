"""Our own records, such as an earlier `conversations.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from userlm.data.layouts.common import Imported, Layout, Side, side_of
from userlm.data.layouts.fields import Rejected, Row, id_of
from userlm.rows import from_record
from userlm.text import has_words
from userlm.thought import without_thought
from userlm.types import Turn

_ROLES: Mapping[str, Side] = {"user": "user", "assistant": "assistant"}


def convert(row: Row) -> Imported:
    """Return the conversation of a record."""
    turns = row.get("turns")
    for i, turn in enumerate(turns if isinstance(turns, list) else ()):
        if not isinstance(turn, dict):
            continue
        side_of(turn.get("role"), f"turns[{i}].role", _ROLES)
        text = turn.get("text")
        if isinstance(text, str) and not has_words(text):
            raise Rejected("empty turn", f"turns[{i}].text has no words")
    try:
        conversation = from_record(
            {**row, "id": id_of(row, "id"), "user": id_of(row, "user")}
        )
    except ValueError as error:
        raise Rejected("wrong type", str(error)) from None
    if not conversation.turns:
        raise Rejected("no messages", "the list 'turns' is empty")
    if not conversation.user_turns:
        raise Rejected("no user turn", "none of the turns is from the user")
    spoken = tuple(map(_spoken, conversation.turns))
    for i, turn in enumerate(spoken):
        if not has_words(turn.text):
            raise Rejected("empty turn", f"turns[{i}].text is only a thought")
    thoughts = sum(map(Turn.__ne__, spoken, conversation.turns))
    if thoughts:
        conversation = replace(conversation, turns=spoken)
    return Imported(conversation).with_notes({"thought to meta": thoughts})


def _spoken(turn: Turn) -> Turn:
    """Return the turn with the thoughts in its text in `meta`; people do not think in tags."""
    return without_thought(turn) if turn.role == "assistant" else turn


# Elsewhere `turns` may be their number.
LAYOUT = Layout(
    "userlm",
    [{"turns"}],
    convert,
    lacks={"messages", "contents", "conversation", "conversations"},
)

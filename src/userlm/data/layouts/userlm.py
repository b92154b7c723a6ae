"""Our own records, such as an earlier `conversations.jsonl`."""

from __future__ import annotations

from userlm.data.layouts.common import Imported, Layout, Rejected, Row, has_words, id_of
from userlm.rows import from_record


def convert(row: Row) -> Imported:
    """Return the conversation of a record."""
    turns = row.get("turns")
    for i, turn in enumerate(turns if isinstance(turns, list) else ()):
        if not isinstance(turn, dict):
            continue
        role, text = turn.get("role"), turn.get("text")
        if role not in ("user", "assistant"):
            known = "known are user, assistant"
            raise Rejected("unknown role", f"turns[{i}].role is {role!r}; {known}")
        if isinstance(text, str) and not has_words(text):
            raise Rejected("empty turn", f"turns[{i}].text has no words")
    try:
        conversation = from_record({**row, "id": id_of(row, "id")})
    except ValueError as error:
        raise Rejected("wrong type", str(error)) from None
    if not conversation.turns:
        raise Rejected("no messages", "the list 'turns' is empty")
    if not conversation.user_turns:
        raise Rejected("no user turn", "none of the turns is from the user")
    return Imported(conversation)


LAYOUT = Layout("userlm", [{"turns"}], convert)

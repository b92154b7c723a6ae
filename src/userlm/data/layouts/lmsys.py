"""LMSYS-Chat-1M."""

from __future__ import annotations

from userlm.data.layouts.common import Imported, Layout, assemble, read_messages
from userlm.data.layouts.fields import (
    Row,
    any_flagged,
    flag_of,
    id_of,
    list_of,
    scalars,
)


def convert(row: Row) -> Imported:
    """Return the conversation of a row. `toxic`: a message was flagged by OpenAI's moderation."""
    messages = read_messages(enumerate(list_of(row, "conversation")), "conversation")
    meta = {
        "source": "lmsys",
        **scalars(row, "language", "model", "timestamp"),
        "redacted": flag_of(row, "redacted"),
        "toxic": any_flagged(row.get("openai_moderation")),
    }
    return assemble(messages, id=id_of(row, "conversation_id"), meta=meta)


LAYOUT = Layout("lmsys", [{"conversation"}], convert)

"""ShareGPT: `conversations` (in some copies `items`) of `{from, value}`."""

from __future__ import annotations

from collections.abc import Mapping

from userlm.data.layouts.common import (
    CHAT_ROLES,
    Imported,
    Layout,
    Row,
    Side,
    assemble,
    id_of,
    is_whole,
    list_of,
    read_messages,
    scalars,
)

_ROLES: Mapping[str, Side] = {
    **CHAT_ROLES,
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "tool",
    "function_response": "tool",
    "observation": "tool",
}


def convert(row: Row) -> Imported:
    """Return the conversation of a row."""
    name = "conversations" if "conversations" in row else "items"
    messages = read_messages(
        enumerate(list_of(row, name)), name, _ROLES, "from", "value"
    )
    meta = {"source": "sharegpt", **scalars(row, "language", "model")}
    return assemble(messages, id=id_of(row, "id"), meta=meta, whole=is_whole(row))


LAYOUT = Layout("sharegpt", [{"conversations"}, {"items"}], convert)

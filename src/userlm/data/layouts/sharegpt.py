"""ShareGPT: `conversations` (in some copies `items`) of `{from, value}`."""

from __future__ import annotations

from userlm.data.layouts.common import (
    Imported,
    Layout,
    assemble,
    is_whole,
    read_messages,
)
from userlm.data.layouts.fields import Row, id_of, list_of, scalars


def convert(row: Row) -> Imported:
    """Return the conversation of a row."""
    name = "conversations" if "conversations" in row else "items"
    messages = read_messages(enumerate(list_of(row, name)), name)
    meta = {"source": "sharegpt", **scalars(row, "language", "model")}
    if isinstance(system := row.get("system"), str):  # where some copies keep it
        meta["system"] = system
    return assemble(
        messages,
        id=id_of(row, "id"),
        user=id_of(row, "user_id") or id_of(row, "user") or None,
        meta=meta,
        whole=is_whole(row),
    )


LAYOUT = Layout("sharegpt", [{"conversations"}, {"items"}], convert)

"""ShareGPT: `conversations` (in some copies `items`) of `{from, value}`."""

from __future__ import annotations

from userlm.data.layouts.common import (
    PERSON_FIELDS,
    Imported,
    Layout,
    assemble,
    is_whole,
    person_of,
    read_messages,
)
from userlm.data.layouts.fields import Row, count_others, id_of, list_of, scalars

_FIELDS = {"id", *PERSON_FIELDS, "language", "model"}
_MARKS = {"fragment", "truncated", "complete", "tree"}  # as in `is_whole`


def convert(row: Row) -> Imported:
    """Return the conversation of a row."""
    name = "conversations" if "conversations" in row else "items"
    messages = read_messages(enumerate(list_of(row, name)), name)
    meta = {"source": "sharegpt", **scalars(row, "language", "model")}
    known = {name, *_FIELDS, *_MARKS}
    if isinstance(system := row.get("system"), str):  # where some copies keep it
        meta["system"] = system
        known.add("system")
    return assemble(
        messages,
        id=id_of(row, "id"),
        user=person_of(row),
        meta=meta,
        whole=is_whole(row),
        lost_fields=count_others(row, known),
    )


LAYOUT = Layout("sharegpt", [{"conversations"}, {"items"}], convert)

"""LMSYS-Chat-1M."""

from __future__ import annotations

from userlm.data.layouts.common import (
    PERSON_FIELDS,
    Imported,
    Layout,
    assemble,
    person_of,
    read_messages,
)
from userlm.data.layouts.fields import (
    Row,
    any_flagged,
    count_others,
    flag_of,
    id_of,
    list_of,
    scalars,
)

_FIELDS = {"conversation", "conversation_id", "language", "model", "timestamp"}
_FLAGS = {"redacted", "openai_moderation"}


def convert(row: Row) -> Imported:
    """Return the conversation of a row. `toxic`: a message was flagged by OpenAI's moderation."""
    messages = read_messages(enumerate(list_of(row, "conversation")), "conversation")
    meta = {
        "source": "lmsys",
        **scalars(row, "language", "model", "timestamp"),
        "redacted": flag_of(row, "redacted"),
        "toxic": any_flagged(row.get("openai_moderation")),
    }
    return assemble(
        messages,
        id=id_of(row, "conversation_id"),
        user=person_of(row),  # in logs of one's own of this form
        meta=meta,
        lost_fields=count_others(row, {*_FIELDS, *_FLAGS, *PERSON_FIELDS}),
    )


_NAMED = {"conversation", "conversation_id"}
LAYOUT = Layout("lmsys", [_NAMED | {"openai_moderation"}], convert)
# A log of one's own may have the two names, too.
_ABOUT = ({"redacted"}, {"model", "turn"}, {"model", "language"})
WITHOUT_MODERATION = Layout(
    "lmsys", [_NAMED | each for each in _ABOUT], convert, lacks=frozenset(PERSON_FIELDS)
)

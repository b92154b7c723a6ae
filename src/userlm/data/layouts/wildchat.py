"""WildChat (first release, 1M, 4.8M). A person is an IP address in a country, as in the paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from userlm.data.layouts.common import (
    PERSON_FIELDS,
    Imported,
    Layout,
    assemble,
    read_messages,
)
from userlm.data.layouts.fields import Row, flag_of, id_of, list_of, scalars


def convert(row: Row) -> Imported:
    """Return the conversation of a row.

    The hash of a conversation is not unique, so the id also holds the first `turn_identifier`. If a
    field is missing, it is computed from the messages: the most frequent language, and whether any
        of them is toxic or redacted.
    """
    items = list_of(row, "conversation")
    messages = read_messages(enumerate(items), "conversation")
    # Messages after an empty turn are not checked.
    items = [item for item in items if isinstance(item, dict)]
    of_user = (item for item in items if item.get("role") == "user")
    first: Row = next(of_user, {})
    country = id_of(row, "country") or id_of(first, "country") or None
    address = id_of(row, "hashed_ip") or id_of(first, "hashed_ip")
    name = id_of(row, "conversation_hash") or id_of(row, "conversation_id")
    number = id_of(first, "turn_identifier")
    if name and number:
        name = f"{name}-{number}"
    known: dict[str, Any] = {**scalars(row, "language", "model", "timestamp")}
    if "language" not in known:
        known["language"] = _usual_language(items)
    return assemble(
        messages,
        id=name,
        user=f"{address}/{country or ''}" if address else None,
        meta={
            "source": "wildchat",
            "country": country,
            "state": id_of(row, "state") or id_of(first, "state") or None,
            **known,
            "toxic": _any_flag(row, items, "toxic"),
            "redacted": _any_flag(row, items, "redacted"),
        },
    )


def _usual_language(items: Iterable[Row]) -> str | None:
    languages = (item.get("language") for item in items)
    counts = Counter(language for language in languages if isinstance(language, str))
    # the first of equals.
    return max(counts, key=lambda language: counts[language], default=None)


def _any_flag(row: Row, items: Sequence[Row], field: str) -> bool | None:
    flag = flag_of(row, field)
    if flag is not None:
        return flag
    flags = [item[field] for item in items if isinstance(item.get(field), bool)]
    return any(flags) if flags else None


# LMSYS-Chat-1M also has `conversation`; the first release of WildChat has no hash, but has `toxic`.
LAYOUT = Layout("wildchat", [{"conversation", "conversation_hash"}], convert)
FIRST_RELEASE = Layout(
    "wildchat",
    [{"conversation", "conversation_id", "toxic"}],
    convert,
    lacks=frozenset(PERSON_FIELDS),
)

"""The fields of the rows of logs: their values, checked, or why a row is rejected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from datetime import UTC, date, datetime
from math import isfinite
from typing import Any

from userlm.json_files import given_twice
from userlm.lines import DEEPEST, is_deep

Row = Mapping[str, Any]

REASONS = (
    "unknown layout",
    "no messages",
    "wrong type",
    "unknown role",
    "empty turn",
    "no user turn",
    "no chosen answer",
    "deleted",
    "orphan",
    "too long",
    "duplicate row",
    "duplicate id",
    "fault in userlm",
)
"""Why a row is rejected. PRISM alone has `no chosen answer`; OASST alone has `deleted`, `orphan`
(a message whose parents are missing or form a cycle) and `too long` (which `userlm.lines` has too).
`duplicate row` is a message that two files have. `duplicate id` also comes from `userlm import`,
which sees all files. `fault in userlm` is an exception that no layout foresees (`unexpected`)."""

DETAIL_LENGTH = 500  # maximum length of an error's detail, which may quote the log

GAPS = ("NULL", "null", r"\N", "NaN", "nan", "<NA>")
"""What programs write where a value is missing."""


class Rejected(ValueError):
    """A row that cannot become a conversation.

    Attributes:
        reason: one of `REASONS`, for counting. `str()` adds the field and what is wrong with it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if len(detail) > DETAIL_LENGTH:
            detail = detail[: DETAIL_LENGTH - 3] + "..."
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def unexpected(error: Exception) -> Rejected:
    """Return why a row is set aside that a layout fails on; no test may see this."""
    detail = (
        f"{type(error).__name__}: {error}; please report it with a row like this one"
    )
    return Rejected("fault in userlm", detail)


# Built once, since each call would build the union type again.
SCALARS = (str, int, float)
_WANTED = {str: "a text", list: "a list", dict: "an object", bool: "true or false"}


def wrong_type(where: str, wanted: str, value: Any) -> Rejected:
    """Return the error for a value of the wrong type."""
    return Rejected(
        "wrong type", f"{where} must be {wanted}, not {type(value).__name__}"
    )


def need(value: Any, kind: Any, where: str) -> Any:
    """Return the value; raise `Rejected` if it is not of this type. `True` is not a number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise wrong_type(where, _WANTED.get(kind, "a number"), value)
    return value


def list_of(row: Row, field: str) -> list[Any]:
    """Return the list in a field; raise `Rejected` if it is missing or empty."""
    if row.get(field) is None:
        raise Rejected("no messages", f"field {field!r} is missing")
    found: list[Any] = need(row[field], list, f"field {field!r}")
    if not found:
        raise Rejected("no messages", f"the list {field!r} is empty")
    return found


def plain_number(value: Any) -> Any:
    """Return the whole number for 12.0, which is what tables write for 12 in a column with gaps,
    and `None` for NaN and infinity; anything else is returned unchanged."""
    if not isinstance(value, float):
        return value
    if not isfinite(value):
        return None
    return int(value) if value.is_integer() else value


def plain_flag(value: Any) -> Any:
    """Return true and false for 1.0 and 0.0, which is what tables write in a column with gaps, and
    `None` for NaN and infinity; anything else is returned unchanged."""
    if not isinstance(value, float):
        return value
    return {0.0: False, 1.0: True}.get(value, plain_number(value))


def text_of(row: Row, field: str) -> str | None:
    """Return the text in a field; `None` if it is missing or empty."""
    value = row.get(field)
    return None if value is None else need(value, str, f"field {field!r}") or None


def flag_of(row: Row, field: str) -> bool | None:
    """Return the boolean in a field; `None` if it is missing."""
    value = plain_flag(row.get(field))
    return None if value is None else bool(need(value, bool, f"field {field!r}"))


def id_of(row: Row, field: str) -> str:
    """Return an id or a label, which is a number in some logs; empty if it is missing."""
    value = plain_number(row.get(field))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return (text_of({field: value}, field) or "").strip()


def scalars(row: Row, *fields: str) -> dict[str, str | int | float]:
    """Return the texts, numbers and booleans in some fields; dates and times become ISO text."""
    found: dict[str, str | int | float] = {}
    for name in fields:
        value = plain_number(row.get(name))
        if isinstance(value, date):  # a `datetime` is also a `date`
            found[name] = value.isoformat()
        elif isinstance(value, SCALARS):
            found[name] = value
        elif value is not None:
            raise wrong_type(f"field {name!r}", "a text or a number", value)
    return found


def count_others(row: Row, known: Set[str]) -> int:
    """Return how many other fields of a row hold texts, lists or objects."""
    others = [value for name, value in row.items() if name not in known]
    return sum(isinstance(value, str | list | dict) and bool(value) for value in others)


def parse_json(value: Any) -> Any:
    """Return the list or object in a JSON string; anything else is returned unchanged, so that an
    answer `42` stays a text, and so is JSON with a field twice, which would lose one."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value, parse_constant=lambda name: None)  # NaN
    except (ValueError, RecursionError):
        return value
    # half the depth, since it will be nested inside another object.
    is_usable = isinstance(found, dict | list) and not is_deep(found, DEEPEST // 2)
    if not is_usable or given_twice(found, value.encode("utf-8", "surrogatepass")):
        return value
    return found


def utc_time(ticks: str | int | float, per_second: float = 1) -> str | None:
    """Return a Unix time as ISO text in UTC; `None` for a number that is not a time."""
    try:
        return datetime.fromtimestamp(float(ticks) / per_second, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def any_flagged(*moderations: Any) -> bool | None:
    """Return whether OpenAI's moderation flagged any message; `None` if there are no results.

    Args:
        moderations: results (`{"flagged": ...}`) or lists of them; anything else is skipped.
    """
    flags = []
    for moderation in moderations:
        items = moderation if isinstance(moderation, list) else [moderation]
        flags += [item.get("flagged") for item in items if isinstance(item, dict)]
    return any(flags) if flags else None

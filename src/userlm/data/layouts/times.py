"""When a message was written, as the fields of a log say it."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from math import isfinite
from typing import Any

from userlm.data.layouts.fields import plain_number

_TIME_IN_SECONDS = re.compile(r"(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE]\+?\d+)?")
_ROUNDED = re.compile(r"\d\.?(\d*)[eE]\+?(\d+)")
"""A number as Excel shows and saves it, of which digits are lost."""
_YEAR_FIRST = re.compile(r"(?:19|20|21)\d\d[01]\d[0-3]\d")
_MOST_DIGITS = 10
"""Digits behind the point that say a time to the second."""
LEAST_EPOCH = 1e8
"""Seconds since 1970, in March 1973. A text with a smaller number that is not whole may be a day of
a month, or a time of day."""


def read_time(value: Any) -> datetime | float:
    """Return a time as a value that can be compared: a number, or a date with a time.

    Raises:
        ValueError, TypeError: it is none, or a time of day, which starts again at midnight.
    """
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, str):
        value = value.strip()
        if not _TIME_IN_SECONDS.fullmatch(value):
            return datetime.fromisoformat(value.replace(" UTC", "Z"))
        rounded = _ROUNDED.fullmatch(value)
        if rounded and len(rounded[1]) < min(int(rounded[2]), _MOST_DIGITS):
            raise ValueError
        is_day = len(value) == 8 and value.isdigit() and not _YEAR_FIRST.match(value)
        is_part = not float(value).is_integer() and float(value) < LEAST_EPOCH
        if is_day or is_part:
            raise ValueError
        value = int(value) if value.isdigit() else float(value)
    if not isinstance(value, int | float) or not isfinite(value):
        raise ValueError
    return value  # a float has no nanoseconds


def comparable_time(value: Any) -> Any:
    """Return a time as all exports of a row write it: to the second, since they write more or fewer
    digits of what is less."""
    try:
        time = read_time(value)
    except (ValueError, TypeError, OverflowError):
        return value
    if isinstance(time, datetime):
        whole = time.replace(microsecond=0)
        return whole.astimezone(UTC) if whole.tzinfo else whole
    # A smaller number may be one of days.
    return int(time) if abs(time) >= LEAST_EPOCH else plain_number(time)

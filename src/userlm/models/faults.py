"""Why a try of a server gave no answer, and whether another try may help."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import mktime_tz, parsedate_tz
from math import isfinite

import openai

from userlm.address import place
from userlm.models.budget import LONG_WAIT
from userlm.types import TOO_LONG

LONGEST_PAUSE = 120.0
"""Seconds. If the server asks for a longer wait, the call ends at once."""
MINUTES_PER_YEAR = 525_600
POSSIBLY_BILLED = (
    "timed out",
    "connection cut",
    "broken answer",
    "empty answer",
    "refused",
)
"""Faults of tries that may have been billed. A busy or unavailable server generated nothing."""
UNREADABLE = (
    openai.OpenAIError,
    ValueError,
    ArithmeticError,
    TypeError,
    AttributeError,
    LookupError,
    RecursionError,
)
"""What the reading of an answer may raise: it can be any JSON."""
SHOULD_RETRY = "x-should-retry"
"""The header with which OpenAI, and `userlm serve`, say whether another try may help."""
CONTEXT_EXCEEDED = "context_length_exceeded"
"""The code of OpenAI, and of `userlm serve`, for a prompt that is too long."""
NOT_OFFERED = ("not found", "bad request")
"""Faults with which a server answers a request that it does not support."""

BAD_REQUEST = ("bad request", "the server does not accept this request")
NOT_FOUND = (
    "not found",
    "the server knows no such model or path (check the model's name, and that the URL ends in /v1)",
)
SERVER_ERROR = ("server error", "the server failed")
TIMED_OUT = ("timed out", "the server timed out")
STATUS_FAULTS = {
    402: ("no credit", "the account has no credit left"),
    403: ("not allowed", "this key has no access to the model"),
    404: NOT_FOUND,
    405: NOT_FOUND,
    408: TIMED_OUT,
    409: SERVER_ERROR,
    429: ("rate limited", "too many requests"),
    504: TIMED_OUT,  # a gateway timed out; the model behind it may have continued
    524: TIMED_OUT,
}
"""For each HTTP status the fault, and the start of its message."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a try gave no answer.

    Attributes:
        kind: a short name of the reason, for counting.
        message: the reason as a sentence.
        passing: whether another try may succeed.
        permanent: whether all other calls would fail too.
        adapted: whether the next try is sent with other parameters.
        wait: seconds that the server asks to wait; `None` if it does not.
        excess_tokens: how many tokens beyond `Sampling.max_tokens` the server counted.
    """

    kind: str
    message: str
    passing: bool = False
    permanent: bool = False
    adapted: bool = False
    wait: float | None = None
    excess_tokens: int = 0


def possibly_billed(faults: Sequence[str]) -> int:
    """How many tries with these faults may have been billed."""
    return sum(fault in POSSIBLY_BILLED for fault in faults)


def status_fault(
    error: openai.APIStatusError, has_key: bool, key_variable: str
) -> Fault:
    """Return the fault for an HTTP error status.

    Args:
        has_key: whether a key was sent.
        key_variable: the environment variable of the key.
    """
    status = error.status_code
    message = f"{error_message(error)} (HTTP {status})"
    if error.code == "content_filter" or _is_flagged(error):
        return Fault("refused", f"refused: {message}")
    if error.code == CONTEXT_EXCEEDED:
        return Fault(TOO_LONG, f"the prompt does not fit the model: {message}")
    if error.code == "insufficient_quota":
        status = 402
    if status == 401:  # the server's own message may contain a part of the key
        problem = "refused the key" if has_key else "wants a key"
        message = (
            f"the server {problem} (HTTP 401); put the right one into the environment variable "
            f"{key_variable}"
        )
        return Fault("key refused", message, permanent=True)
    if 300 <= status < 400:  # another request, with the prompt, and perhaps elsewhere
        where = place(error.response.headers.get("location", ""))
        message = (
            f"the server redirects to {where} (HTTP {status}); give the right address"
        )
        return Fault("redirected", message, permanent=True)
    kind, reason = STATUS_FAULTS.get(
        status, SERVER_ERROR if status >= 500 else BAD_REQUEST
    )
    may_help = error.response.headers.get(SHOULD_RETRY) != "false"
    passing = may_help and kind in ("timed out", "rate limited", "server error")
    wait = wait_of(error.response.headers)
    if passing and wait is not None and wait > LONGEST_PAUSE:
        return Fault(
            LONG_WAIT,
            f"{come_back(wait, datetime.now())}: {reason}: {message}",
            permanent=True,
        )
    return Fault(
        kind,
        f"{reason}: {message}",
        passing=passing,
        permanent=status in (402, 403, 404, 405),
        wait=wait,
    )


def _is_flagged(error: openai.APIStatusError) -> bool:
    """Return whether OpenRouter's moderation refused this input; its status is that of a key
    without access."""
    metadata = error.body.get("metadata") if isinstance(error.body, Mapping) else None
    return isinstance(metadata, Mapping) and "flagged_input" in metadata


def error_message(error: openai.APIStatusError) -> str:
    """The server's own message, if it gave one."""
    message = error.body.get("message") if isinstance(error.body, Mapping) else None
    return message if isinstance(message, str) else error.message


def wait_of(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a
    date."""
    for name, divisor in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        return seconds if seconds >= 0 and isfinite(seconds) else None
    try:
        date = parsedate_tz(headers.get("retry-after"))
        return max(0.0, mktime_tz(date) - time.time()) if date else None
    except (ValueError, OverflowError):
        return None


def come_back(wait: float, now: datetime) -> str:
    """Return when the server asks to come back, in the time zone of `now`, and how long that is.

    Args:
        wait: in seconds.
    """
    minutes = round(wait / 60)
    if minutes > MINUTES_PER_YEAR:
        return "the server asks to come back in more than a year"
    at = now + timedelta(minutes=minutes)
    hours, minutes_left = divmod(minutes, 60)
    duration = f"{hours} h {minutes_left} min" if hours else f"{minutes_left} min"
    return f"the server asks to come back at {at:%Y-%m-%d %H:%M}, in {duration}"

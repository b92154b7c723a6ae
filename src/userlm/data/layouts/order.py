"""The messages of a row in the order in which they were said, on one branch of the talk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from operator import itemgetter
from typing import Any

from userlm.data.layouts.common import Side, first_field
from userlm.data.layouts.fields import Rejected, Row
from userlm.data.layouts.times import LEAST_EPOCH, read_time
from userlm.types import OTHER_ROLE

_TIMES = ("created_at", "createdAt", "create_time", "timestamp", "time")
_IDS = ("id", "messageId", "message_id", "uuid")
_PARENTS = (
    *("parentMessageId", "parent_message_id", "parent_message_uuid"),
    *("parentId", "parent_id", "parent"),
)
_REPLIES = ("children", "replies")
_SENDERS = ("role", "from", "sender", "speaker", "author")
_WORDS = ("text", "content", "parts", "value", "message")
Ordered = tuple[list[Any], Mapping[str, int]]
"""The messages, and the notes on them."""


def oldest_first(items: list[Any], side_of: Callable[[Row], Side | None]) -> Ordered:
    """Return messages in the order of their times, if these only fall, as APIs list them: then the
    newest are first. The clocks of two messages may differ."""
    rows = [item for item in items if isinstance(item, Mapping)]
    times = _times(rows)
    is_falling = len(rows) == len(items) and len({*times}) > 1
    is_falling = is_falling and all(first >= then for first, then in pairwise(times))
    if not is_falling:
        return items, {}
    is_answer_first = (side_of(rows[0]), side_of(rows[-1])) == ("assistant", "user")
    if len({*times}) < 3 and not is_answer_first:
        return items, {}
    turned = items[::-1]
    if len({*times}) < len(times) and side_of(turned[0]) == "assistant":
        # Of two with one time, the question comes first.
        by_time = sorted(zip(times, items, strict=True), key=itemgetter(0))
        turned = [item for _, item in by_time]
        if side_of(turned[0]) == "assistant":
            return items, {}
    return turned, {"newest first": 1}


def one_branch(
    items: list[Any], name: str, side_of: Callable[[Row], Side | None]
) -> Ordered:
    """Return the messages of the branch that ends last, if they say to which message each of them
    replies: one that was edited or answered again begins another branch. Where both sides reply to
    the same message, it is a thread, and goes on.

    Raises:
        Rejected: if replies stand in the messages of the list `name` themselves.
    """
    rows = [item for item in items if isinstance(item, Mapping)]
    for field in _REPLIES:
        if any(_are_messages(row.get(field)) for row in rows):
            raise Rejected(
                "unknown layout",
                f"the messages in {name!r} have replies in their field {field!r}; export one "
                "branch as a flat list, or write a row for each branch",
            )
    replied = _replied(rows) if len(rows) == len(items) else {}
    answered = Counter(replied.values())
    sides = dict(zip(replied, map(side_of, rows), strict=False))
    several = {(p, sides[id]) for id, p in replied.items() if answered[p] > 1}
    is_thread = len(several) > len({parent for parent, _ in several})
    if is_thread or any(side not in OTHER_ROLE for _, side in several):
        return items, {}
    leaves = (id for id in reversed(replied) if id not in answered)
    at = next((id for id in leaves if sides[id] in OTHER_ROLE), None)
    if at is None:
        return items, {}
    branch: list[Any] = []
    message_of = dict(zip(replied, rows, strict=False))
    while at in message_of:
        branch.append(message_of.pop(at))
        at = replied[at]
    is_circle = at in replied
    # A person who goes back writes in place of what they wrote, and not after it.
    if is_circle or (message_of and ("user", "user") in pairwise(map(side_of, branch))):
        return items, {}
    return branch[::-1], {"messages of other branches": len(message_of)}


def _times(rows: Sequence[Row]) -> Sequence[Any]:
    """Return when the messages were written; nothing if one does not surely say so."""
    for name in _TIMES:
        try:
            times: list[Any] = [read_time(row[name]) for row in rows]
            smallest = min(times, default=0)  # some cannot be compared
            # A smaller number may be the seconds that an answer took.
            if isinstance(smallest, datetime) or smallest >= LEAST_EPOCH:
                return times
        except (KeyError, ValueError, TypeError, OverflowError):
            continue
    return ()


def _are_messages(value: Any) -> bool:
    """Return whether these are messages with words, and whose they are; elsewhere they are names of
    replies, buttons, or the parts of a text."""
    items = value if isinstance(value, list) else []
    rows = (item for item in items if isinstance(item, Mapping))
    return any(first_field(row, _WORDS) and first_field(row, _SENDERS) for row in rows)


def _replied(rows: Sequence[Row]) -> dict[Any, Any]:
    """Return the id of each message with that of the one to which it replies; nothing if some do
    not say so. Only the first replies to none: elsewhere a reply may be a quote, or the parent of a
    question the conversation."""
    ids = next((name for name in _IDS if all(row.get(name) for row in rows)), "")
    parents = next((name for name in _PARENTS if all(name in row for row in rows)), "")
    if not (rows and ids and parents):
        return {}
    found = {str(row[ids]): str(row[parents] or "") for row in rows}
    if not all(isinstance(row[parents], str | int | None) for row in rows):
        return {}
    is_tree = sum(parent not in found for parent in found.values()) == 1
    return found if is_tree and len(found) == len(rows) else {}

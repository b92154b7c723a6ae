"""What the layouts of logs share: messages that become turns, and the fields that stand beside
them.

`sources` has the layouts in which a row is a conversation, `trees` and `spans` those in which it is
not; `userlm import` runs them. What can be mended without guessing is mended and counted: turns of
one side in a row are joined, what neither side said aloud (system prompts, tool calls and their
results) goes to `meta`, an opening turn of the assistant stays where it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Literal, NamedTuple

from userlm.rows import DEEPEST, Line, is_deep
from userlm.types import OUTCOME_KEYS, Conversation, Turn, without_outcome

Row = Mapping[str, Any]
Side = Literal["user", "assistant", "system", "tool"]

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
    "duplicate id",
)
"""Why a row is rejected. `no chosen answer` is of PRISM; `deleted` and `orphan` (a message whose
parents are missing, or lead in a circle) are of OASST. `duplicate id` is also for whoever sees the
rows of all files."""

NOTES = (
    "joined turns",
    "opening assistant turn",
    "system to meta",
    "tool to meta",
    "parts left out",
    "fields left out",
    "cut at an empty turn",
    "paths left out",
    "merged lines",
    "merged spans",
    "spans left out",
    "spans without messages",
)
"""What is counted while a row is mended.

`parts` are pictures and other parts of a message that are no text; `fields` are lists and objects
beside the messages; `paths` are those through a tree that add no words of a user. `merged lines`
gave no conversation of their own: the messages of a tree after its first, spans whose messages
stand in a longer one or that hold none. With it the books balance: a line that was read is one that
gave conversations, or was rejected, or was merged.
"""


_LONGEST = 500  # characters of a detail: what it quotes may be anything


class Rejected(ValueError):
    """A row that cannot become a conversation.

    Attributes:
        reason: one of `REASONS`, for counting. `str()` gives it with the field and what is wrong
            there.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(
            f"{reason}: {detail if len(detail) <= _LONGEST else detail[: _LONGEST - 3] + '...'}"
        )
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Imported:
    """A conversation, and how often something was mended in it, by the words of `NOTES`."""

    conversation: Conversation
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """A conversation that stands on a line of a log, or why that line gave none.

    Attributes:
        file: the name of the file.
        line: where it stands there; the first line of what was gathered from several, then without
            its row.
        imported, rejected: exactly one of them is set.
    """

    file: str
    line: Line
    imported: Imported | None
    rejected: Rejected | None


class Place(NamedTuple):
    """Where something stands that is gathered: its line among all that were, the file, the line
    there."""

    order: int
    file: str
    number: int


# --- messages -------------------------------------------------------------------------------------

CHAT_ROLES: Mapping[str, Side] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}

# White space, and the invisible marks that ChatGPT leaves where an answer was stopped, are no
# words.
_has_words = re.compile("[^\\s\u200b\u200c\u200d\u2060\ufeff]").search


def has_words(text: str) -> bool:
    """Whether there is anything to be seen in a text."""
    return _has_words(text) is not None


@dataclass(frozen=True, slots=True)
class Messages:
    """What was said and done, in order.

    Attributes:
        said: each side and its words.
        truncated_tokens: how many parts of messages are no text.
        cut: it went on after a turn without words, where it was cut.
    """

    said: Sequence[tuple[Side, str]]
    truncated_tokens: int = 0
    cut: bool = False


def listed(row: Row, name: str) -> list[Any]:
    """The list in a field, which has to hold something."""
    found = row.get(name)
    if found is None:
        raise Rejected("no messages", f"field {name!r} is missing")
    if not isinstance(found, list):
        raise Rejected("wrong type", f"field {name!r} must be a list, not {type(found).__name__}")
    if not found:
        raise Rejected("no messages", f"the list {name!r} is empty")
    return found


def read(
    numbered: Iterable[tuple[int | str, Any]],
    name: str,
    roles: Mapping[str, Side] = CHAT_ROLES,
    role_field: str = "role",
    text_field: str = "content",
) -> Messages:
    """The messages among the items of the list `name`; one that speaks and calls a tool counts as
    two.

    A message without words, such as an answer that was stopped, ends what can be used. If the user
    had an answer before it, everything before it is kept: one blank answer does not cost a long
    conversation.

    Args:
        numbered: the items, each with its place in that list.
        roles: the words for the sides; upper case and white space around them do not matter.
    """
    said: list[tuple[Side, str]] = []
    truncated_tokens = 0
    for i, message in numbered:
        if not isinstance(message, dict):
            raise Rejected(
                "wrong type", f"{name}[{i}] must be an object, not {type(message).__name__}"
            )
        told = message.get(role_field)
        side = (
            (roles.get(told) or roles.get(told.strip().lower())) if isinstance(told, str) else None
        )
        if side is None:
            known = ", ".join(roles)
            raise Rejected(
                "unknown role", f"{name}[{i}].{role_field} is {told!r}; known are {known}"
            )
        text = message.get(text_field)
        if not isinstance(text, str):
            text, parts = _text(text, f"{name}[{i}].{text_field}")
            truncated_tokens += parts
        calls = message.get("tool_calls") or message.get("function_call")
        if _has_words(text) or side == "tool":
            said.append((side, text))
        elif side != "system" and not calls:
            if not _answered(said):
                raise Rejected("empty turn", f"{name}[{i}].{text_field} has no words")
            return Messages(said, truncated_tokens, cut=True)
        if calls:
            said.append(("tool", json.dumps(calls, ensure_ascii=False, default=str)))
    return Messages(said, truncated_tokens)


def _text(content: Any, where: str) -> tuple[str, int]:
    """The text of a message in parts, and how many of its parts are none."""
    if content is None:
        return "", 0
    if not isinstance(content, list):
        raise Rejected(
            "wrong type", f"{where} must be a text or a list, not {type(content).__name__}"
        )
    found = (part.get("text") if isinstance(part, dict) else part for part in content)
    texts = [text for text in found if isinstance(text, str)]
    return "\n\n".join(texts), len(content) - len(texts)


def _answered(said: Sequence[tuple[Side, str]]) -> bool:
    sides = [side for side, _ in said]
    return "user" in sides and "assistant" in sides[sides.index("user") :]


def conversation(
    messages: Messages,
    *,
    id: str,
    meta: Row,
    user: str | None = None,
    intent: str | None = None,
    whole: bool = True,
) -> Imported:
    """Join, move and count.

    Args:
        meta: what is `None` in it is unknown, and left out.
        whole: the log does not say that there was more. Then an answer at the end is an observed
            ending.
    """
    turns: list[Turn] = []
    texts: list[str] = []  # of the turn that is being joined
    last: Literal["user", "assistant"] | None = None
    joined = 0
    aside: dict[str, list[str]] = {}
    for side, text in messages.said:
        if side == last:
            texts.append(text)
            joined += 1
        elif side == "user" or side == "assistant":
            if last:
                turns.append(Turn(last, "\n\n".join(texts)))
            last, texts = side, [text]
        else:
            aside.setdefault(side, []).append(text)
    if last:
        turns.append(Turn(last, "\n\n".join(texts)))
    if not turns or (turns[0].role == "assistant" and len(turns) == 1):
        raise Rejected("no user turn", "none of the messages is of the user")
    notes = {
        "joined turns": joined,
        "opening assistant turn": int(turns[0].role == "assistant"),
        "parts left out": messages.truncated_tokens,
        "fields left out": 0,
        "cut at an empty turn": int(messages.cut),
    }
    if not OUTCOME_KEYS.isdisjoint(meta):  # their names mean something else here
        notes["fields left out"] = len(OUTCOME_KEYS.intersection(meta))
        meta = without_outcome(meta)
    known = {key: value for key, value in meta.items() if value is not None}
    for unsaid, texts in aside.items():
        known[unsaid] = "\n\n".join(texts)
        notes[f"{unsaid} to meta"] = len(texts)
    ended = (
        whole and not messages.cut and messages.said[-1][0] == "assistant"
    )  # a pending call is no ending
    return Imported(
        Conversation(id, tuple(turns), intent, user, None, ended, known),
        {note: count for note, count in notes.items() if count} if any(notes.values()) else {},
    )


# --- fields beside the messages -------------------------------------------------------------------


PLAIN = (str, int, float)  # a union would be built anew in each call


def text_of(row: Row, field: str) -> str | None:
    """A text; `None` if there is none or it is empty."""
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise Rejected("wrong type", f"field {field!r} must be a text, not {type(value).__name__}")
    return value or None


def name_of(row: Row, field: str) -> str:
    """An id, which some logs give as a number; empty when there is none."""
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Rejected("wrong type", f"field {field!r} must be a text, not {type(value).__name__}")
    return str(value)


def flag_of(row: Row, field: str) -> bool | None:
    """A boolean; `None` if there is none."""
    value = row.get(field)
    if value is not None and not isinstance(value, bool):
        raise Rejected(
            "wrong type", f"field {field!r} must be true or false, not {type(value).__name__}"
        )
    return value


def facts(row: Row, *fields: str) -> dict[str, str | int | float]:
    """The texts, numbers and booleans in some fields; a time stamp, as parquet has them, becomes a
    text."""
    found: dict[str, str | int | float] = {}
    for name in fields:
        value = row.get(name)
        if isinstance(value, PLAIN):
            found[name] = value
        elif isinstance(value, date):  # or a time, which is one, too
            found[name] = value.isoformat()
        elif value is not None:
            raise Rejected(
                "wrong type",
                f"field {name!r} must be a text or a number, not {type(value).__name__}",
            )
    return found


def parsed(value: Any) -> Any:
    """What a text says as JSON; what is no text, or no JSON, stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return value if is_deep(found, DEEPEST // 2) else found  # it must fit where it is written


def time_of(ticks: str | int | float, per_second: float = 1) -> str | None:
    """What a clock showed that began in 1970, as a time stamp in UTC; `None` for a number that is
    no time."""
    try:
        return datetime.fromtimestamp(float(ticks) / per_second, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def flagged(moderation: Any) -> bool | None:
    """Whether OpenAI's moderation flagged the message, or any of a list; `None` where it was not
    asked."""
    items = moderation if isinstance(moderation, list) else [moderation]
    flags = [item.get("flagged") for item in items if isinstance(item, dict)]
    return any(flags) if flags else None

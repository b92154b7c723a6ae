"""Rows of raw logs to conversations: one plain function for each layout. `userlm import` runs this.

A row becomes a conversation, or is rejected with a reason. What can be mended without guessing is mended and
counted: turns of one side in a row are joined, what neither side said aloud (system prompts, tool calls and
their results) goes to `meta`, an opening turn of the assistant stays where it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from userlm.store import from_record
from userlm.types import RUN_KEYS, Conversation, InputError, Role, Turn, without_run

Row = Mapping[str, Any]

REASONS = (
    "unknown layout",
    "no messages",
    "wrong type",
    "unknown role",
    "empty turn",
    "no user turn",
    "duplicate id",
)
"""Why a row is rejected. `duplicate id` is for whoever sees all the rows of a file."""

NOTES = (
    "joined turns",
    "opening assistant turn",
    "system to meta",
    "tool to meta",
    "parts left out",
    "fields left out",
)
"""What is counted while a row is mended. `parts` are pictures and other parts of a message that are no text;
`fields` are lists and objects beside the messages."""


class Rejected(ValueError):
    """A row that cannot become a conversation.

    Attributes:
        reason: one of `REASONS`, for counting. `str()` gives it with the field and what is wrong there.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Imported:
    """A conversation, and how often something was mended in it, by the words of `NOTES`."""

    conversation: Conversation
    notes: Mapping[str, int] = field(default_factory=dict)


def convert(row: Row, source: str | None, fallback_id: str) -> Imported:
    """The conversation in a row.

    Args:
        source: a name of `SOURCES`; `None`: guess it from the fields.
        fallback_id: the id for a row that carries none, such as the name of the file and the line.

    Raises:
        Rejected: the row cannot become a conversation.
        InputError: there is no such source.
    """
    name = guess(row) if source is None else source
    if name not in SOURCES:
        near = get_close_matches(name, SOURCES, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"source {name!r} is unknown; {meant}known are {', '.join(SOURCES)}")
    imported = SOURCES[name](row)
    if imported.conversation.id:
        return imported
    return replace(imported, conversation=replace(imported.conversation, id=fallback_id))


def guess(row: Row) -> str:
    """The name of the layout that the fields of a row speak for; raises `Rejected` when there is none."""
    if "turns" in row:
        return "userlm"
    if "messages" in row:
        return "messages"
    if "conversations" in row or "items" in row:
        return "sharegpt"
    if "conversation" in row:  # the first release of WildChat has no hash, LMSYS-Chat-1M no `toxic`
        return "wildchat" if "conversation_hash" in row or "toxic" in row else "lmsys"
    seen = ", ".join(sorted(map(str, row))) or "none"
    layouts = "; ".join(f"{name} has {fields}" for name, fields in _FIELDS.items())
    raise Rejected("unknown layout", f"the fields are {seen}; of the known layouts {layouts}")


# --- the layouts -----------------------------------------------------------------------------------------


def messages(row: Row) -> Imported:
    """`messages` of `{role, content}`, as the OpenAI API has them, and whatever else stands beside them.

    `content` may be a list of `{type: "text", text}`. Scalar extras go to `meta`.
    """
    said = _messages(row, "messages", _CHAT_ROLES, "role", "content")
    known = {"id", "user_id", "user", "messages", "intent"}
    extras = {key: _plain(value) for key, value in row.items() if key not in known}
    meta = {key: value for key, value in extras.items() if isinstance(value, str | int | float)}
    left_out = sum(value is not None for value in extras.values()) - len(meta)
    imported = _imported(
        said,
        id=_name(row, "id"),
        user=_name(row, "user_id") or _name(row, "user") or None,
        intent=row["intent"] if isinstance(row.get("intent"), str) else None,
        meta=meta,
        whole=_is_whole(row),
    )
    notes = {**imported.notes, "fields left out": left_out} if left_out else imported.notes
    return replace(imported, notes=notes)


def wildchat(row: Row) -> Imported:
    """WildChat (first release, 1M and 4.8M). A person is an address in a country, as in the paper.

    The hash of a conversation is not unique, so the id also holds the first `turn_identifier`.
    """
    said = _messages(row, "conversation", _CHAT_ROLES, "role", "content")
    items: list[Row] = row["conversation"]
    first: Row = next((item for item in items if item.get("role") == "user"), {})
    country = _text_or_none(row, "country") or _text_or_none(first, "country")
    person = _text_or_none(row, "hashed_ip") or _text_or_none(first, "hashed_ip")
    number = items[0].get("turn_identifier")
    name = _name(row, "conversation_hash") or _name(row, "conversation_id")
    scalars = ("language", "model", "timestamp", "state", "toxic", "redacted")
    return _imported(
        said,
        id=f"{name}-{number}" if name and number is not None else name,
        user=f"{person}/{country or ''}" if person else None,
        meta={"source": "wildchat", "country": country, **{key: _plain(row.get(key)) for key in scalars}},
    )


def lmsys(row: Row) -> Imported:
    """LMSYS-Chat-1M. `toxic` is true where OpenAI's moderation flagged any of the messages."""
    said = _messages(row, "conversation", _CHAT_ROLES, "role", "content")
    moderation = row.get("openai_moderation")
    items = moderation if isinstance(moderation, list) else []
    flags = [item.get("flagged") for item in items if isinstance(item, dict)]
    scalars = ("language", "model", "redacted", "timestamp")
    meta = {"source": "lmsys", **{key: _plain(row.get(key)) for key in scalars}}
    return _imported(said, id=_name(row, "conversation_id"), meta={**meta, "toxic": any(flags) if flags else None})


def sharegpt(row: Row) -> Imported:
    """ShareGPT: `conversations` (in some copies `items`) of `{from, value}`."""
    name = "conversations" if "conversations" in row else "items"
    said = _messages(row, name, _SHAREGPT_ROLES, "from", "value")
    meta = {key: _plain(row.get(key)) for key in ("language", "model")}
    return _imported(said, id=_name(row, "id"), meta={"source": "sharegpt", **meta}, whole=_is_whole(row))


def userlm(row: Row) -> Imported:
    """Our own records, such as an earlier `conversations.jsonl`."""
    turns = row.get("turns")
    for i, turn in enumerate(turns if isinstance(turns, list) else ()):
        if isinstance(turn, dict) and turn.get("role") not in ("user", "assistant"):
            raise Rejected("unknown role", f"turns[{i}].role is {turn.get('role')!r}; {_known(_OUR_ROLES)}")
        if isinstance(turn, dict) and isinstance(turn.get("text"), str) and not _has_words(turn["text"]):
            raise Rejected("empty turn", f"turns[{i}].text has no words")
    try:
        conversation = from_record({**row, "id": _name(row, "id")})
    except ValueError as error:
        raise Rejected("wrong type", str(error)) from None
    if not conversation.turns:
        raise Rejected("no messages", "the list 'turns' is empty")
    if not conversation.user_turns:
        raise Rejected("no user turn", "none of the turns is of the user")
    return Imported(conversation)


SOURCES: dict[str, Callable[[Row], Imported]] = {
    "messages": messages,
    "wildchat": wildchat,
    "lmsys": lmsys,
    "sharegpt": sharegpt,
    "userlm": userlm,
}

_FIELDS = {
    "messages": "'messages'",
    "wildchat": "'conversation_hash' and 'conversation'",
    "lmsys": "'conversation_id' and 'conversation'",
    "sharegpt": "'conversations' or 'items'",
    "userlm": "'turns'",
}


# --- what they share -------------------------------------------------------------------------------------

_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_OUR_ROLES = {"user": "user", "assistant": "assistant"}
_CHAT_ROLES = _OUR_ROLES | {"system": "system", "developer": "system", "tool": "tool", "function": "tool"}
_SHAREGPT_ROLES = {
    **_CHAT_ROLES,
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "tool",
    "function_response": "tool",
    "observation": "tool",
}


@dataclass(frozen=True, slots=True)
class _Said:
    """A message: `role` is `user`, `assistant`, `system` or `tool`; `left_out` counts parts without text."""

    role: str
    text: str
    left_out: int = 0


def _messages(row: Row, name: str, roles: Mapping[str, str], role_field: str, text_field: str) -> list[_Said]:
    """The messages in the list `name` of a row; a message that speaks and calls a tool gives two."""
    found = row.get(name)
    if found is None:
        raise Rejected("no messages", f"field {name!r} is missing")
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise Rejected("wrong type", f"field {name!r} must be a list, not {type(found).__name__}")
    if not found:
        raise Rejected("no messages", f"the list {name!r} is empty")
    said = []
    for i, message in enumerate(found):
        where = f"{name}[{i}]"
        if not isinstance(message, dict):
            raise Rejected("wrong type", f"{where} must be an object, not {type(message).__name__}")
        told = message.get(role_field)
        role = roles.get(told.strip().lower()) if isinstance(told, str) else None
        if role is None:
            raise Rejected("unknown role", f"{where}.{role_field} is {told!r}; {_known(roles)}")
        text, left_out = _text(message.get(text_field), f"{where}.{text_field}")
        calls = message.get("tool_calls") or message.get("function_call")
        if _has_words(text) or role == "tool":
            said.append(_Said(role, text, left_out))
        elif role != "system" and not calls:
            raise Rejected("empty turn", f"{where}.{text_field} has no words")
        if calls:
            said.append(_Said("tool", json.dumps(calls, ensure_ascii=False, default=str)))
    return said


def _imported(
    said: Sequence[_Said],
    *,
    id: str,
    meta: Row,
    user: str | None = None,
    intent: str | None = None,
    whole: bool = True,
) -> Imported:
    """Join, move and count. `whole`: the log does not say that there was more."""
    notes: Counter[str] = Counter()
    aside: dict[str, list[str]] = {}
    turns: list[Turn] = []
    sides: dict[str, Role] = {"user": "user", "assistant": "assistant"}
    for message in said:
        notes["parts left out"] += message.left_out
        side = sides.get(message.role)
        if side is None:
            aside.setdefault(message.role, []).append(message.text)
            notes[f"{message.role} to meta"] += 1
        elif turns and turns[-1].role == side:
            turns[-1] = Turn(side, f"{turns[-1].text}\n\n{message.text}")
            notes["joined turns"] += 1
        else:
            turns.append(Turn(side, message.text))
    if not any(turn.role == "user" for turn in turns):
        raise Rejected("no user turn", "none of the messages is of the user")
    notes["opening assistant turn"] += turns[0].role == "assistant"
    everything = {**meta, **{role: "\n\n".join(texts) for role, texts in aside.items()}}
    notes["fields left out"] += len(RUN_KEYS & everything.keys())  # their names mean something else here
    conversation = Conversation(
        id=id,
        turns=tuple(turns),
        intent=intent,
        user=user,
        ended=whole and said[-1].role == "assistant",  # a pending tool call is no ending
        meta={key: value for key, value in without_run(everything).items() if value is not None},
    )
    return Imported(conversation, dict(+notes))


def _is_whole(row: Row) -> bool:
    """False where a row is marked as a piece, or is a path in a tree of replies (OASST): a leaf there only
    means that nobody was asked to go on."""
    cut = row.get("fragment") or row.get("truncated") or row.get("complete") is False
    return not cut and row.get("tree") is None


def _text(content: Any, where: str) -> tuple[str, int]:
    """The text of a message, and how many of its parts are none."""
    if content is None or isinstance(content, str):
        return content or "", 0
    if not isinstance(content, list):
        raise Rejected("wrong type", f"{where} must be a text or a list, not {type(content).__name__}")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            texts.append(text)
    return "\n\n".join(texts), len(content) - len(texts)


def _has_words(text: str) -> bool:
    """False for white space, and for the invisible marks that ChatGPT leaves where an answer was stopped."""
    return any(not letter.isspace() and letter not in _INVISIBLE for letter in text)


def _name(row: Row, field: str) -> str:
    """An id, which some logs give as a number; empty when there is none."""
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Rejected("wrong type", f"field {field!r} must be a text, not {type(value).__name__}")
    return str(value)


def _text_or_none(row: Row, field: str) -> str | None:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise Rejected("wrong type", f"field {field!r} must be a text, not {type(value).__name__}")
    return value or None


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value  # a time stamp read from parquet


def _known(roles: Mapping[str, str]) -> str:
    return f"known are {', '.join(roles)}"

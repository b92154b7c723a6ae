"""What the layouts of logs share: messages become turns.

What can be repaired without guessing is repaired and counted: consecutive turns of one role are
joined; system prompts, tool calls and their results go to `meta`; an opening turn of the assistant
is kept.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from userlm import items
from userlm.content import (
    THOUGHT_FIELDS,
    Part,
    has_said,
    is_answered,
    is_media_type,
    joined,
    read_part,
    read_parts,
)
from userlm.data.layouts.fields import (
    Rejected,
    Row,
    id_of,
    need,
    parse_json,
    plain_number,
    wrong_type,
)
from userlm.lines import Line
from userlm.rows import OLDER_KEYS
from userlm.text import has_words
from userlm.thought import split_thought
from userlm.types import OTHER_ROLE, OUTCOME_KEYS, Conversation, Role, Turn

Side = Literal["user", "assistant", "system", "tool", "thought"]

NOTES = (
    "joined turns",
    "opening assistant turn",
    "system to meta",
    "tool to meta",
    "thought to meta",
    "parts left out",
    "fields left out",
    "answers not read",
    "cut at an empty turn",
    "paths left out",
    "merged lines",
    "rows in several files",
    "rows of several people",
    "times not read",
    "newest first",
    "messages of other branches",
    "merged spans",
    "spans left out",
    "spans without messages",
    "spans cut at a limit",
    "ids of several people",
    "messages that may be typed",
)
"""What is counted while a row is repaired.

`parts` are images and other message parts without text; `fields` are lists and objects beside the
messages; `answers not read` are objects there that may be the last answer; `paths` are those
through a tree that add no user turn; `rows in several files` counts conversations of rows that are
messages, `rows of several people` those in which several users speak, perhaps since ids are used
twice, `times not read` those whose rows are not in the order of their times, and `newest first`
those whose messages were turned round. `messages of other branches` are those before which
somebody went back, to ask or to answer again. `ids of several
people` counts the ids of spans under which several are known: turns of some may stand in
conversations of others. `messages that may be typed` counts those of spans in which a person may
have typed the JSON of several messages. `merged lines` have no conversation of their own: later
messages of a tree, spans whose messages are part of a longer span or that have none, and rows that
are a part of the conversation of another (`data.joining`). So every line that was read is counted
once: as conversations, as rejected, or as merged.
"""

RUN_KEYS = OUTCOME_KEYS | OLDER_KEYS
"""The keys that only a run may write to `meta`, now or in version 0.1; in a log they mean something
else."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A conversation, and the count of each of its `NOTES`."""

    conversation: Conversation
    notes: Mapping[str, int] = field(default_factory=dict)

    def with_notes(self, notes: Mapping[str, int]) -> Imported:
        """Return a copy with more notes; notes with a count of 0 are dropped."""
        kept = {note: count for note, count in notes.items() if count}
        return replace(self, notes={**self.notes, **kept})


@dataclass(frozen=True, slots=True)
class Found:
    """The conversation of a line of a log, or the reason why it was rejected.

    Attributes:
        file: the name of the file.
        line: its line there; for a conversation from several lines the first one, without its row.
        imported, rejected: exactly one of them is set.
    """

    file: str
    line: Line
    imported: Imported | None
    rejected: Rejected | None


class Place(NamedTuple):
    """Where a gathered message or span was found: the rank of its line, the file, and the line in
    it."""

    order: int
    file: str
    number: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A format of logs.

    Attributes:
        name: its value for `--source`.
        fields: groups of fields; a row with all fields of any group has this layout.
        convert: turns a row into a conversation; `None` if a conversation may span several rows.
        lacks: fields that no row of this layout has.
    """

    name: str
    fields: Sequence[Set[str]]
    convert: Callable[[Row], Imported] | None
    lacks: Set[str] = frozenset()

    def matches(self, row: Row) -> bool:
        """Return whether the fields of a row are those of this layout."""
        has_all = any(row.keys() >= group for group in self.fields)
        return has_all and self.lacks.isdisjoint(row)

    def described(self) -> str:
        """Return its fields as text for a message."""
        return " or ".join(
            " and ".join(map(repr, sorted(group))) for group in self.fields
        )


PERSON_FIELDS = ("user_id", "userId", "end_user", "user")
"""Where logs of one's own name the person. In LiteLLM `user` is the owner of the key."""


def person_of(row: Row) -> str | None:
    """Return the person in `PERSON_FIELDS`."""
    return next(filter(None, (id_of(row, name) for name in PERSON_FIELDS)), None)


# --- messages -------------------------------------------------------------------------------------

ROLES: Mapping[str, Side] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "ai", "bot", "chatbot", "model"), "assistant"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    # the names of LangChain's classes
    **dict.fromkeys(("aimessage", "aimessagechunk"), "assistant"),
    "humanmessage": "user",
    "systemmessage": "system",
    "toolmessage": "tool",
    **dict.fromkeys(("tool", "tool_call", "tool_response", "observation"), "tool"),
    **dict.fromkeys(("function", "function_call", "function_response"), "tool"),
}
"""The names of the roles in the layouts that name them freely."""

FAILED = {"failed", "failure", "error"}
"""What a call says that failed."""
_CUT_REASONS = {"length", "max_tokens", "incomplete", "content_filter", "safety"}
_CUT_REASONS |= FAILED

_ROLE_FIELDS = ("role", "from", "sender", "speaker", "type")
_CONTENT_FIELDS = ("parts", "contents", "content", "value", "text", "message", "data")
_CALL_FIELDS = ("tool_calls", "function_call", "toolInvocations")
BESIDE_FIELDS = (*_CALL_FIELDS, *THOUGHT_FIELDS, "refusal")
"""What a message may hold beside its content."""
_THOUGHT_ROLES = ("thinking", "reasoning")
_SPEECH_FIELDS = (*_CONTENT_FIELDS, "refusal", "audio")
_OF_MEDIA = ("data", "value")
"""Where a picture or a sound stands, or its place."""
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+[;,]")
_NOT_PLAIN = {*_CALL_FIELDS, *THOUGHT_FIELDS, *_SPEECH_FIELDS} - {"content"}
_CONTENTS = (str, list, dict, type(None))


@dataclass(frozen=True, slots=True)
class Messages:
    """The messages of a conversation, in order.

    Attributes:
        said: the role and the text of each.
        lost_parts: how many message parts are not text.
        cut: whether it was cut at an empty turn although it went on.
        may_be_typed: whether they may be the text of one turn.
    """

    said: Sequence[tuple[Side, str]]
    lost_parts: int = 0
    cut: bool = False
    may_be_typed: bool = False


def are_of_cut(reasons: Iterable[Any]) -> bool:
    """Return whether one of the reasons why an API ended an answer is that it cut it at a limit, or
    failed: then nobody saw the conversation end."""
    return not _CUT_REASONS.isdisjoint(str(reason).lower() for reason in reasons)


def read_messages(
    numbered: Iterable[tuple[int | str, Any]],
    name: str,
    roles: Mapping[str, Side] = ROLES,
) -> Messages:
    """Return the messages in the list `name`; one with text and a tool call counts as two.

    The role may be in `role` or `from`, the text in `content`, `value` or `parts`, and the content
    in any shape that `content.read_parts` knows. A refusal is text. A message that holds only tool
    calls, their results or thought was not shown to the other side, so it is no turn.

    The messages are cut at an empty one, such as a stopped answer. What comes before it is kept if
    it includes an answer, so that one empty message does not cost a long conversation.

    Args:
        numbered: the items, each with its index in that list.
        roles: the log's names of the roles; case and surrounding white space do not matter.

    Raises:
        Rejected: an item has the wrong type or an unknown role, or is empty before the first
        answer.
    """
    said: list[tuple[Side, str]] = []
    lost_parts = 0
    for i, item in numbered:
        where = f"{name}[{i}]"
        message = need(item, dict, where)
        if plain := _plain(message, roles):
            said.append(plain)
            continue
        message = _with_role(message)
        side = _side(message, where, roles)
        field = first_field(message, _CONTENT_FIELDS) or "content"
        parts = _parts(message, field, where)
        lost_parts += sum(part.kind == "other" for part in parts)
        text, thoughts = _split(side, joined(parts, "speech"))
        thoughts = [*_thoughts(message, parts), *thoughts]
        said += thoughts
        calls = _aside(parts, "call")
        results = _aside(parts, "result")
        kinds = [part.kind for part in parts if part.kind != "other"]
        is_last = kinds[-1:] == ["result"] and side == "assistant"
        if results and not is_last:  # of tools on the server, or only returned
            said += calls + results
        if has_words(text) or (side == "tool" and not results):
            said.append((side, text))
        elif side in OTHER_ROLE and not (results or calls or thoughts):
            if not _answered(said):
                raise Rejected("empty turn", f"{where}.{field} has no words")
            return Messages(said, lost_parts, cut=True)
        if not results:  # they are pending
            said += calls
        elif is_last:
            said += calls + results
    return Messages(said, lost_parts)


def _plain(message: Row, roles: Mapping[str, Side]) -> tuple[Side, str] | None:
    """Return a message of nothing but speech, as nearly all are, without a look at its other
    fields."""
    role, content = message.get("role"), message.get("content")
    if not (isinstance(role, str) and isinstance(content, str)):
        return None
    side = roles.get(role)
    is_plain = message.keys().isdisjoint(_NOT_PLAIN) and has_words(content)
    if not (side and is_plain) or _split(side, content)[0] != content:
        return None
    return side, content


def first_field(row: Row, names: Sequence[str]) -> str | None:
    """Return the first of these fields with a value; if none has one, the first that is there."""
    for name in names:
        if row.get(name):
            return name
    return next((name for name in names if name in row), None)


def _with_role(message: Row) -> Row:
    """Return a message; that in the `data` of LangChain's dicts; and one that is a part by itself
    (a thought, or an item of OpenAI's responses such as a tool call) as a message of the
    assistant."""
    data = message.get("data")
    own = first_field(message, _CONTENT_FIELDS) or "data"
    if own == "data" and isinstance(data, Mapping) and "content" in data:
        return {**data, **{name: message[name] for name in message if name != "data"}}
    if message.get("role") in _THOUGHT_ROLES:
        return {"role": "assistant", "content": [{**message, "thought": True}]}
    is_typed = first_field(message, _ROLE_FIELDS) == "type"
    if is_typed and read_part(message).kind in ("thought", "call", "result"):
        return {"role": "assistant", "content": [message]}
    return message


def _side(message: Row, where: str, roles: Mapping[str, Side]) -> Side:
    field = first_field(message, _ROLE_FIELDS) or "role"
    return side_of(message.get(field), f"{where}.{field}", roles)


def side_of(role: Any, where: str, roles: Mapping[str, Side]) -> Side:
    """Return the side of a role; raise `Rejected` if the layout does not have the role."""
    side: Side | None = None
    if isinstance(role, str):
        side = roles.get(role.strip().lower())
    if side is None:
        known = ", ".join(roles)
        how = ""
        if isinstance(role, str) and has_words(role):
            example = shlex.quote(f"{role.strip()}=user")
            how = f"--roles {example} (or assistant), with --map, says who that is; "
        raise Rejected("unknown role", f"{where} is {role!r}; {how}known are {known}")
    return side


def _parts(message: Row, field: str, where: str) -> list[Part]:
    """Return the parts of a message, and its tool calls.

    Other fields may hold its words too: the same again, or all of them beside a content of files
    and calls. A refusal is shown beside the content; other words beside it are left out.
    """
    content = plain_number(message.get(field))
    if isinstance(content, int | float) and not isinstance(content, bool):
        content = str(content)  # the choice in a menu
    if not isinstance(content, _CONTENTS):
        raise wrong_type(f"{where}.{field}", "a text or a list", content)
    parts = read_parts(content)
    if _is_media(message, field):
        parts = [Part("other", "")]
    for name in _SPEECH_FIELDS:
        words = joined(read_parts(message.get(name)), "speech")
        said = joined(parts, "speech")
        if name == field or has_said(said, words):
            continue
        is_shown = name == "refusal" or not has_words(said)
        is_shown = is_shown and not _is_media(message, name)
        parts.append(Part("speech", words) if is_shown else Part("other", ""))
    for name in _CALL_FIELDS:
        if calls := parse_json(message.get(name)):
            text = json.dumps(calls, ensure_ascii=False, default=str)
            each = calls if isinstance(calls, list) else [calls]
            if all(map(is_answered, each)):  # before what is said about it
                parts.insert(0, Part("result", text))
            else:
                parts.append(Part("call", text))
    return parts


def _is_media(message: Row, name: str) -> bool:
    """Return whether a field holds a picture, a sound or a file, or its place."""
    value = message.get(name)
    is_url = isinstance(value, str) and _DATA_URL.match(value) is not None
    return name in _OF_MEDIA and (is_url or is_media_type(message.get("type")))


def _aside(parts: Sequence[Part], kind: str) -> list[tuple[Side, str]]:
    return [("tool", part.text) for part in parts if part.kind == kind]


def _thoughts(message: Row, parts: Sequence[Part]) -> list[tuple[Side, str]]:
    """Return the thoughts in the parts of a message and in fields of their own, each once."""
    texts = [part.text for part in parts if part.kind == "thought"]
    for name in THOUGHT_FIELDS:
        if not message.get(name):
            continue
        text = joined([read_part({name: message[name]})], "thought")
        if not (texts and has_said("\n\n".join(texts), text)):
            texts.append(text)
    return [("thought", text) for text in texts]


def _split(side: Side, text: str) -> tuple[str, list[tuple[Side, str]]]:
    """Return the speech in a text, and the thoughts between tags; people do not think in tags."""
    if side != "assistant":
        return text, []
    speech, thought = split_thought(text)
    return speech, [("thought", thought)] if thought else []


def _answered(said: Sequence[tuple[Side, str]]) -> bool:
    sides = [side for side, _ in said]
    return "user" in sides and "assistant" in sides[sides.index("user") :]


def assemble(
    messages: Messages,
    *,
    id: str,
    meta: Row,
    user: str | None = None,
    intent: str | None = None,
    whole: bool = True,
    lost_fields: int = 0,
) -> Imported:
    """Return the conversation that these messages form, and the notes on it.

    Args:
        meta: `None` in it means unknown and is left out.
        whole: whether the log is complete, as far as it says. Then an answer at the end is an
            observed end.
        lost_fields: the number of fields of the row that could not be kept.
    """
    spoken: list[tuple[Role, str]] = []
    aside: dict[str, list[str]] = {}
    for side, text in messages.said:
        if side == "user" or side == "assistant":
            spoken.append((side, text))
        elif has_words(text):  # of a thought, an API may return the place alone
            aside.setdefault(side, []).append(text)
    turns = []
    for role, group in groupby(spoken, key=itemgetter(0)):
        turns.append(Turn(role, "\n\n".join(text for _, text in group)))
    if all(turn.role == "assistant" for turn in turns):
        raise Rejected("no user turn", "none of the messages is from the user")
    known = {
        key: value
        for key, value in meta.items()
        if value is not None and key not in RUN_KEYS
    }
    for name, parts in aside.items():
        beside = str(known.get(name, ""))  # a field of the row with this name
        if not has_said("\n\n".join(parts), beside):
            parts = [beside, *parts]
        known[name] = "\n\n".join(parts)
    # A pending tool call is not an end; that the system says it, as help desks do, is none less.
    sides = (side for side, _ in reversed(messages.said))
    last_side = next(side for side in sides if side not in ("system", "thought"))
    ended = whole and not messages.cut and last_side == "assistant"
    conversation = Conversation(id, tuple(turns), intent, user, None, ended, known)
    try:
        items.check(conversation)
    except ValueError:  # the field `item` of this log means something else
        del known["item"]
        lost_fields += 1
    notes = {
        "joined turns": len(spoken) - len(turns),
        "opening assistant turn": int(turns[0].role == "assistant"),
        "parts left out": messages.lost_parts,
        "fields left out": lost_fields + len(RUN_KEYS.intersection(meta)),
        "cut at an empty turn": int(messages.cut),
        "system to meta": len(aside.get("system", ())),
        "tool to meta": len(aside.get("tool", ())),
        "thought to meta": len(aside.get("thought", ())),
        "messages that may be typed": int(messages.may_be_typed),
    }
    return Imported(conversation).with_notes(notes)


def is_whole(row: Row) -> bool:
    """Return false for a row marked as a fragment, or as a path in a tree of replies (OASST).

    A leaf there only means that no one was asked to continue.
    """
    cut = row.get("fragment") or row.get("truncated") or row.get("complete") is False
    return not cut and row.get("tree") is None

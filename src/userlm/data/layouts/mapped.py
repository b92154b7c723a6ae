"""Rows of a shape of their own, whose fields `--map` names.

A row is a conversation, if the map says where its `messages` are; else it is one message, of which
`message_rows` makes conversations.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from operator import itemgetter
from typing import Any
from uuid import UUID

from userlm.content import THOUGHT_FIELDS
from userlm.data.filters import FLAGS, is_set
from userlm.data.layouts.answers import with_answer
from userlm.data.layouts.common import (
    BESIDE_FIELDS,
    ROLES,
    Imported,
    Messages,
    Side,
    assemble,
    first_field,
    read_messages,
)
from userlm.data.layouts.fields import (
    GAPS,
    Rejected,
    Row,
    count_others,
    id_of,
    list_of,
    parse_json,
    plain_number,
)
from userlm.data.layouts.order import oldest_first, one_branch
from userlm.data.layouts.times import read_time
from userlm.json_files import at_path
from userlm.types import InputError

FIELDS = ("role", "text", "messages", "id", "user", "intent", "time")
_NUMBER_WITH_GAPS = re.compile(r"([0-9]{1,18})[.,]0")
_ROUNDED = re.compile(r"[0-9][.,][0-9]+[Ee]\+[0-9]{2}")
"""A long id, as Excel shows and saves it."""
_YES = {"true", "t", "1", "1.0", "yes"}
_NO = {"false", "f", "0", "0.0", "no"}
_MARKS_OF_NOTES: Mapping[str, Set[str]] = {
    **dict.fromkeys(("public", "is_public"), _NO),
    **dict.fromkeys(("private", "is_private", "internal", "is_internal"), _YES),
    "part_type": {"note"},
}
"""The fields by which Zendesk, Freshdesk, Intercom and others mark notes of the agents, and their
values for a note."""
_LABELS = ("language", "kind", "model")
SIDES: tuple[Side, ...] = ("user", "assistant", "system", "tool")


@dataclass(frozen=True, slots=True)
class Map:
    """Where the parts of a conversation are in a row, as paths such as `ticket.messages`.

    Attributes:
        role, text: in a message, which is the row itself if there are no `messages`.
        messages, id, user, intent: in a row; empty if it has none.
        time: in a message; empty if it has none.
        roles: the side of each name of a role.
    """

    role: str
    text: str
    messages: str = ""
    id: str = ""
    user: str = ""
    intent: str = ""
    time: str = ""
    roles: Mapping[str, Side] = field(default_factory=lambda: ROLES)

    @classmethod
    def parse(cls, fields: str, roles: str | None = None) -> Map:
        """Return what `--map role=FIELD,text=FIELD,...` and `--roles NAME=SIDE,...` say.

        Raises:
            InputError: if they cannot be read, or a field is missing.
        """
        named = _pairs("--map", fields)
        for name in named:
            if name not in FIELDS:
                raise InputError(
                    f"--map {fields}: {name!r} is none of {', '.join(FIELDS)}; write for instance "
                    "role=from,text=body"
                )
        for name in ("role", "text"):
            if name not in named:
                raise InputError(
                    f"--map {fields}: which field is the {name}? add {name}=FIELD"
                )
        if not {"messages", "id"} & named.keys():
            raise InputError(
                f"--map {fields}: add id=FIELD if each row is a message, the same in all of a "
                "conversation; add messages=FIELD if each row has a list of them"
            )
        sides = dict(ROLES)
        for name, side in _pairs("--roles", roles or "").items():
            known = {each: each for each in SIDES}
            if side not in known:
                raise InputError(
                    f"--roles {roles}: {name!r} is one of {', '.join(SIDES)}, not {side!r}"
                )
            sides[name.lower()] = known[side]
        return cls(**named, roles=sides)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise `InputError` if a field of the rows is in none of these columns."""
        in_messages = ("role", "text", "time") if self.messages else ()
        for name in FIELDS:
            path = getattr(self, name)
            column = path.split(".")[0]
            is_there = path in columns or column in columns
            if not path or name in in_messages or is_there:
                continue
            near = get_close_matches(column, columns, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"--map {name}={path}: no column is called {column!r}; {meant}the columns are "
                f"{', '.join(columns)}"
            )

    def explained(self, rejected: Rejected, messages: Iterable[Any]) -> Rejected:
        """Return why messages are rejected; if for roles that are not known, how to name these."""
        if rejected.reason != "unknown role":
            return rejected
        rows = [each for each in messages if isinstance(each, Mapping)]
        roles = [self._role_in(row) for row in rows]
        if rows and all(role in (None, "") for role in roles):
            detail = f"field {self.role!r} is missing; there are {', '.join(map(str, rows[0]))}"
            return Rejected(rejected.reason, detail)
        named = [role.strip() for role in roles if isinstance(role, str)]
        unknown = [
            role for role in dict.fromkeys(named) if role.lower() not in self.roles
        ]
        if not unknown:
            return rejected
        sides = {name: side for name, side in self.roles.items() if name not in ROLES}
        known = {*sides.values(), *(self.roles.get(role.lower()) for role in named)}
        sides |= dict.fromkeys(unknown, "assistant")
        if "" in sides:
            sides[""] = "system"
        people = [role for role in unknown if role]
        if "user" not in known and people:
            sides[people[0]] = "user"
        # What cannot be written as a role has to be changed in the log.
        named_sides = (
            f"{name}={side}" for name, side in sides.items() if not {*",="} & {*name}
        )
        example = shlex.quote(",".join(named_sides))
        shown = ", ".join(map(repr, unknown))
        detail = (
            f"no known role is called {shown}; say which is who, such as --roles {example} (or "
            "system, tool)"
        )
        return Rejected(rejected.reason, detail)

    def convert(self, row: Row) -> Imported:
        """Return the conversation of a row that has messages."""
        given = parse_json(
            value_at(row, self.messages)
        )  # in tables it is JSON in a text
        messages = list_of({self.messages: given}, self.messages)
        is_ordered = True
        turned: Mapping[str, int] = {}
        if self.time:
            messages, is_ordered = self._by_time(messages)
        else:
            messages, turned = oldest_first(messages, self.side_in)
        messages, branches = one_branch(messages, self.messages, self.side_in)
        numbered = [(i, self._whole_message(each)) for i, each in enumerate(messages)]
        try:
            read = read_messages(numbered, self.messages, self.roles)
        except Rejected as rejected:
            raise self.explained(rejected, messages) from None
        request = [self._with_side(message) for _, message in numbered]
        # A field with a name here has its meaning, and is no answer.
        others = {name: row[name] for name in row if name not in self._fields()}
        read, beside, was_cut = with_answer(read, request, self.messages, others)
        person = self.person_in(row)
        found = self.assembled([row], person, read, not was_cut, beside or "")
        return found.with_notes(
            {
                **turned,
                **branches,
                "times not read": int(not is_ordered),
                "answers not read": int(beside is None),
            }
        )

    def _with_side(self, message: Any) -> Any:
        """Return a message in the form of OpenAI with the name of its side as its role."""
        if not isinstance(message, Mapping):
            return message
        role = message["role"]
        side = self.roles.get(role.strip().lower()) if isinstance(role, str) else None
        return {**message, "role": side or role}

    def _by_time(self, messages: list[Any]) -> tuple[list[Any], bool]:
        """Return messages in the order of their times, and whether it is known: if the newest are
        first, those of one time may be so, or not."""
        try:
            times = [read_time(self.time_in(message)) for message in messages]
            is_reversed = times[0] > times[-1]  # type: ignore[operator]
            step = -1 if is_reversed else 1
            timed = [*zip(times, messages, strict=True)][::step]
            is_known = not is_reversed or len(set(times)) == len(times)
            return [each for _, each in sorted(timed, key=itemgetter(0))], is_known
        except (ValueError, TypeError, OverflowError, AttributeError):
            return messages, False

    def _whole_message(self, message: Any) -> Any:
        """Return a message in the form of OpenAI, with what it holds beside its text."""
        if not isinstance(message, Mapping):
            return message
        read = self.message(message)
        beside = {name: parse_json(message.get(name)) for name in BESIDE_FIELDS}
        kept = {
            name: value
            for name, value in beside.items()
            # Elsewhere such a field is a number, or the label of a classifier.
            if isinstance(value, list | dict)
            or (
                isinstance(value, str)
                and (name in THOUGHT_FIELDS or not read["content"])
            )
        }
        return {**kept, **read}

    def message(self, message: Row) -> dict[str, Any]:
        """Return the role and the text of a message, in the form of OpenAI. `None` may be what
        somebody answered, but no other mark of a gap."""
        text = value_at(message, self.text)
        is_gap = isinstance(text, str) and text.strip() in GAPS
        return {"role": self._role_in(message), "content": "" if is_gap else text}

    def _role_in(self, message: Row) -> Any:
        """Return the role of a message; as a text, if it is a number or whether it is of a bot. A
        note within a help desk was not said to anybody."""
        if _is_internal(message):
            return "system"
        role = plain_number(value_at(message, self.role))
        if role is None and "" in self.roles:
            return ""
        return str(role) if isinstance(role, bool | int) else role

    def assembled(
        self,
        rows: Sequence[Row],
        person: str,
        messages: Messages,
        whole: bool = True,
        beside: str = "",
    ) -> Imported:
        """Return the conversation of these messages of a person (empty: unknown), with what the
        first row says about it, and the labels of all. `beside` is a field that is among the
        messages."""
        row = rows[0]
        used = {beside, *self._fields()}
        intent = value_at(row, self.intent)
        return assemble(
            messages,
            id=self.id_in(row),
            user=person or None,
            intent=intent if isinstance(intent, str) and intent else None,
            meta=_labels(rows),
            whole=whole,
            lost_fields=count_others(row, used),
        )

    def _fields(self) -> set[str]:
        """Return the fields of a row that are named."""
        paths = [getattr(self, each) for each in FIELDS]
        return {*paths, *(path.split(".")[0] for path in paths)}

    def side_in(self, row: Row) -> Side | None:
        """Return the side of a row that is a message; `None` if its role is not known."""
        role = self._role_in(row)
        return self.roles.get(role.strip().lower()) if isinstance(role, str) else None

    def id_in(self, row: Row) -> str:
        """Return the id of the conversation of a row; empty if it has none."""
        return id_at(row, self.id)

    def person_in(self, row: Row) -> str:
        """Return the person of a row; empty if it names none."""
        return id_at(row, self.user)

    def time_in(self, row: Row) -> Any:
        """Return when a row was written, as it stands there; `None` if it does not say so."""
        value = plain_number(value_at(row, self.time))
        return None if value == "" else value


def suggested_map(row: Row) -> str | None:
    """Return a `--map` for the first list of messages that is found in a row; `None` if there is
    none that a map can name."""
    lists = [("", row)]
    for path, part in lists:
        if not isinstance(part, Mapping):
            continue
        for name, value in part.items():
            inner = f"{path}.{name}" if path else str(name)
            if {*",.= "} & {*str(name)}:
                continue
            if isinstance(value, Mapping) and inner.count(".") < _DEEPEST:
                lists.append((inner, value))
            first = value[0] if isinstance(value, list) and value else None
            if isinstance(first, Mapping):
                role, text = first_field(first, _SENDERS), first_field(first, _TEXTS)
                # What has a type need not be a message.
                is_one = role != "type" or str(first[role]).lower() in ROLES
                if role and text and is_one and isinstance(first[role], str | int):
                    return f"messages={inner},role={role},text={text}"
    return None


_DEEPEST = 3
"""Points in a path that is suggested."""
_SENDERS = ("role", "from", "sender", "speaker", "author", "type")
_TEXTS = ("content", "text", "body", "value", "message", "utterance", "parts")


def _is_internal(message: Row) -> bool:
    """Return whether a help desk says that the customer does not see a message."""
    return any(
        str(message.get(name)).lower() in marks
        for name, marks in _MARKS_OF_NOTES.items()
    )


def _labels(rows: Iterable[Row]) -> dict[str, Any]:
    """Return what a log says about a conversation that `clean` and `score` look at: flags that any
    of its rows has, and the first of each label."""
    found: dict[str, Any] = {}
    for row in rows:
        for name in FLAGS:
            if is_set(row.get(name)):
                found[name] = True
        for name in _LABELS:
            if isinstance(value := row.get(name), str) and value:
                found.setdefault(name, value)
    return found


def _pairs(option: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        name, _, value = (part.strip() for part in pair.partition("="))
        if not (value and (name or option == "--roles")):
            raise InputError(
                f"{option} {text}: write NAME=VALUE, with commas between them"
            )
        found[name] = value
    return found


def id_at(row: Row, path: str) -> str:
    """Return the id at a path, empty if there is none. In a table it is a text: in a column with
    gaps, `12.0` stands for 12, and `NaN` for a gap."""
    value = value_at(row, path)
    if isinstance(value, Decimal):
        value = str(value)
    if isinstance(value, bytes):  # of DuckDB
        value = str(UUID(bytes=value)) if len(value) == 16 else value.hex()
    if isinstance(value, str) and value.strip() in (*GAPS, "None"):
        value = None
    if isinstance(value, str) and (
        number := _NUMBER_WITH_GAPS.fullmatch(value.strip())
    ):
        value = int(number[1])
    if isinstance(value, str) and _ROUNDED.fullmatch(value.strip()):
        detail = (
            f"field {path!r} is {value!r}, a number of which digits are lost; make the column one "
            "of texts, and export again"
        )
        raise Rejected("wrong type", detail)
    return id_of({path: value}, path)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path; `None` if there is none. Tables may have names with dots."""
    if not path:
        return None
    return row[path] if path in row else at_path(row, path, None)

"""Rows of a shape of their own, whose fields `--map` names.

A row is a conversation, if the map says where its `messages` are; else it is one message, and the
rows with the same `id` are a conversation, in their order, or in that of their `time`.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from difflib import get_close_matches
from itertools import groupby, pairwise
from math import isfinite
from operator import itemgetter
from typing import Any
from uuid import UUID

from userlm.content import THOUGHT_FIELDS
from userlm.data.filters import FLAGS, is_set
from userlm.data.layouts.common import (
    BESIDE_FIELDS,
    ROLES,
    Found,
    Imported,
    Messages,
    Place,
    Side,
    assemble,
    read_messages,
)
from userlm.data.layouts.fields import (
    Rejected,
    Row,
    count_others,
    id_of,
    list_of,
    parse_json,
    plain_number,
)
from userlm.json_files import at_path
from userlm.lines import Line
from userlm.types import InputError

FIELDS = ("role", "text", "messages", "id", "user", "intent", "time")
_TIME_IN_SECONDS = re.compile(r"(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE]\+?\d+)?")
_YEAR_FIRST = re.compile(r"(?:19|20|21)\d\d[01]\d[0-3]\d")
LEAST_EPOCH = 1e8
"""Seconds since 1970, in March 1973. A text with a smaller number that is not whole may be a day of
a month, or a time of day."""
_NUMBER_WITH_GAPS = re.compile(r"([0-9]{1,18})[.,]0")
_GAPS = ("NULL", "null", "None", "<NA>", "nan", "NaN")
"""What programs write where an id is missing."""
_ROUNDED = re.compile(r"[0-9][.,][0-9]+[Ee]\+[0-9]{2}")
"""A long id, as Excel shows and saves it."""
_LABELS = ("language", "kind", "model")
_LINE_END = re.compile(r"\r*\n|\r")
SIDES: tuple[Side, ...] = ("user", "assistant", "system", "tool")


@dataclass(frozen=True, slots=True)
class Map:
    """Where the parts of a conversation are in a row, as paths such as `ticket.messages`.

    Attributes:
        role, text: in a message, which is the row itself if there are no `messages`.
        messages, id, user, intent: in a row; empty if it has none.
        time: in a row that is a message; empty if it has none.
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
        given = parse_json(_at(row, self.messages))  # in tables it is JSON in a text
        messages = list_of({self.messages: given}, self.messages)
        is_ordered = True
        if self.time:
            messages, is_ordered = self._by_time(messages)
        numbered = [(i, self._whole_message(each)) for i, each in enumerate(messages)]
        try:
            read = read_messages(numbered, self.messages, self.roles)
        except Rejected as rejected:
            raise self.explained(rejected, messages) from None
        found = self.assembled([row], self.person_in(row), read)
        return found.with_notes({"times not read": int(not is_ordered)})

    def _by_time(self, messages: list[Any]) -> tuple[list[Any], bool]:
        """Return messages in the order of their times, and whether it is known: if the newest are
        first, those of one time may be so, or not."""
        try:
            times = [_time(self.time_in(message)) for message in messages]
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
        """Return the role and the text of a message, in the form of OpenAI."""
        return {"role": self._role_in(message), "content": _at(message, self.text)}

    def _role_in(self, message: Row) -> Any:
        """Return the role of a message; as a text, if it is a number or whether it is of a bot."""
        role = plain_number(_at(message, self.role))
        if role is None and "" in self.roles:
            return ""
        return str(role) if isinstance(role, bool | int) else role

    def assembled(
        self,
        rows: Sequence[Row],
        person: str,
        messages: Messages,
        whole: bool = True,
    ) -> Imported:
        """Return the conversation of these messages of a person (empty: unknown), with what the
        first row says about it, and the labels of all."""
        row = rows[0]
        paths = [getattr(self, each) for each in FIELDS]
        used = {*paths, *(path.split(".")[0] for path in paths)}
        intent = _at(row, self.intent)
        return assemble(
            messages,
            id=self.id_in(row),
            user=person or None,
            intent=intent if isinstance(intent, str) and intent else None,
            meta=_labels(rows),
            whole=whole,
            lost_fields=count_others(row, used),
        )

    def side_in(self, row: Row) -> Side | None:
        """Return the side of a row that is a message; `None` if its role is not known."""
        role = self._role_in(row)
        return self.roles.get(role.strip().lower()) if isinstance(role, str) else None

    def id_in(self, row: Row) -> str:
        """Return the id of the conversation of a row; empty if it has none."""
        return _id_at(row, self.id)

    def person_in(self, row: Row) -> str:
        """Return the person of a row; empty if it names none."""
        return _id_at(row, self.user)

    def time_in(self, row: Row) -> Any:
        """Return when a row was written, as it stands there; `None` if it does not say so."""
        value = plain_number(_at(row, self.time))
        return None if value == "" else value


_Placed = tuple[Row, Place]
_Compared = tuple[Row, _Placed]
"""A row as all exports of it write it, and as it stands there."""
_Node = tuple[_Placed, list["_Node"]]
"""A row, and new ones of later files that stand before it."""


class Rows:
    """Rows that are one message each."""

    def __init__(self, mapped: Map) -> None:
        self._map = mapped
        self._rows: defaultdict[str, list[_Placed]] = defaultdict(list)
        # The last time that was read of each file, and of each conversation of it.
        self._latest: dict[tuple[str, str], Any] = {}
        # Whether the next time was later: what occurs in each file, and within its conversations.
        self._steps: defaultdict[str, set[bool]] = defaultdict(set)
        self._steps_within: defaultdict[str, set[bool]] = defaultdict(set)

    def add(self, row: Row, place: Place) -> None:
        """Add a message; raise `Rejected` if it does not say of which conversation it is."""
        name = self._map.id_in(row)
        if not name:
            raise Rejected("no messages", f"field {self._map.id!r} is missing")
        self._rows[name].append((row, place))
        if self._map.time:
            self._note_order(row, place.file, name)

    def _note_order(self, row: Row, file: str, name: str) -> None:
        with suppress(ValueError, TypeError, OverflowError):
            time = _time(self._map.time_in(row))
            for of, steps in ("", self._steps), (name, self._steps_within):
                before = self._latest.get((file, of), time)
                self._latest[file, of] = time
                if before != time:
                    steps[file].add(before < time)

    def no_time(self) -> str:
        """Return the field of the time if no row has a time there; else an empty text."""
        return "" if self._latest or not self._rows else self._map.time

    def _is_newest_first(self, file: str) -> bool | None:
        """Return whether the rows of a conversation are so; `None` if nobody knows: the newest
        conversations may be first, each from its beginning to its end."""
        if True in self._steps_within[file] or False not in self._steps[file]:
            return False
        if self._steps[file] == {False}:
            return True if self._steps_within[file] else None
        return None if self._steps_within[file] else False

    def found(self) -> Iterator[Found]:
        """Return the conversations, in the order of their first rows, and the rows left out."""
        in_both = Rejected("duplicate row", "an earlier file has it, too")
        no_words = Rejected("empty turn", f"field {self._map.text!r} has no words")
        for placed in self._rows.values():
            rows, repeated, is_ordered = self._in_order(placed)
            yield from _left_out(repeated, in_both)
            try:
                found, empty = self._conversation(rows, is_ordered)
            except Rejected as rejected:
                why = self._map.explained(rejected, [row for row, _ in rows])
                yield from _left_out(rows, why)
                continue
            yield found
            yield from _left_out(empty, no_words)

    def _in_order(
        self, placed: Sequence[_Placed]
    ) -> tuple[Sequence[_Placed], Sequence[_Placed], bool]:
        """Return the rows of a conversation without those that several files have, these, and
        whether the order is known where rows have a time."""
        times = [self._map.time_in(row) for row, _ in placed]
        if not self._map.time or None in times:
            return *_merged(placed, self._comparable), not self._map.time

        def key(row: Row) -> str:
            said = _with_plain_ends(self._map.message(row))
            return repr(
                (said, self._ids(row), _comparable_time(self._map.time_in(row)))
            )

        def time(placed: _Placed) -> datetime | float:
            row, _ = placed
            return _time(self._map.time_in(row))

        def is_known(rows: Sequence[_Placed]) -> bool:
            is_newest_first = self._is_newest_first(rows[0][1].file)
            return is_newest_first is not None or len({*map(time, rows)}) == len(rows)

        try:
            files = [
                _oldest_first(each, time, bool(self._is_newest_first(each[0][1].file)))
                for each in _by_file(placed)
            ]
            rows, repeated = _united(files, key)
            return sorted(rows, key=time), repeated, all(map(is_known, files))
        # No times, or such as cannot be compared.
        except (ValueError, TypeError, OverflowError):
            return *_united(_by_file(placed), key), False

    def _comparable(self, row: Row) -> Row:
        """Return a row as all exports of it write it."""
        return {**_with_plain_ends(row), **self._ids(row)}

    def _ids(self, row: Row) -> dict[str, Any]:
        """Return the ids of a row by their fields: one export has 12, another 12.0 or "12"."""
        found = {}
        for path in filter(None, (self._map.id, self._map.user)):
            try:
                found[path] = _id_at(row, path)
            except Rejected:
                found[path] = _at(row, path)
        return found

    def _conversation(
        self, rows: Sequence[_Placed], is_ordered: bool
    ) -> tuple[Found, list[_Placed]]:
        """Return the conversation of some rows, and those of them without words. In a table these
        are attachments or changes of status, and it goes on after them."""
        said: list[tuple[Side, str]] = []
        lost_parts = 0
        kept: list[_Placed] = []
        empty: list[_Placed] = []
        whole = True
        for each in rows:
            messages = self._messages(each)
            said += messages.said
            lost_parts += messages.lost_parts
            if messages.said:
                kept.append(each)
                whole = True
            else:
                empty.append(each)
                # Who sends a picture after an answer does not end there.
                whole = whole and self._map.side_in(each[0]) != "user"
        if not kept:
            where = f"field {self._map.text!r}"
            raise Rejected("empty turn", f"none of its rows has words in {where}")
        # Answers may name another person: who gave them. A guest may log in later.
        of_user = [row for row, _ in rows if self._map.side_in(row) == "user"]
        people = [*filter(None, map(self._map.person_in, of_user)), ""]
        ordered = [*of_user, *(row for row, _ in rows)]
        found = self._map.assembled(
            ordered, people[0], Messages(said, lost_parts), whole
        )
        _, first = kept[0]
        files = {place.file for _, place in kept}
        notes = {
            "merged lines": len(kept) - 1,
            "rows in several files": int(len(files) > 1),
            "rows of several people": int(len({*people}) > 2),
            "times not read": int(not is_ordered),
        }
        found = found.with_notes(notes)
        return Found(first.file, Line(first.number), found, None), empty

    def _messages(self, placed: _Placed) -> Messages:
        """Return what a row says: nothing, if it has no words."""
        row, place = placed
        message = self._map.message(row)
        # A change of status may have no author, either.
        if not message["content"] and self._map.side_in(row) is None:
            return Messages([])
        numbered = [(place.number, message)]
        try:
            return read_messages(numbered, "line", self._map.roles)
        except Rejected as rejected:
            if rejected.reason != "empty turn":
                raise
            return Messages([])


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


def _with_plain_ends(row: Row) -> dict[str, Any]:
    """Return a row with LF alone at the ends of lines within its texts: a program on Windows writes
    others."""
    return {
        name: _LINE_END.sub("\n", value) if isinstance(value, str) else value
        for name, value in row.items()
    }


def _left_out(rows: Iterable[_Placed], rejected: Rejected) -> Iterator[Found]:
    for row, place in rows:
        yield Found(place.file, Line(place.number, dict(row)), None, rejected)


def _by_file(rows: Iterable[_Placed]) -> list[list[_Placed]]:
    return [list(each) for _, each in groupby(rows, lambda placed: placed[1].file)]


def _time(value: Any) -> datetime | float:
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
        is_day = len(value) == 8 and value.isdigit() and not _YEAR_FIRST.match(value)
        is_part = not float(value).is_integer() and float(value) < LEAST_EPOCH
        if is_day or is_part:
            raise ValueError
        value = int(value) if value.isdigit() else float(value)
    if not isinstance(value, int | float) or not isfinite(value):
        raise ValueError
    return value  # a float has no nanoseconds


def _comparable_time(value: Any) -> Any:
    """Return a time as all exports of a row write it: to the second, since they write more or fewer
    digits of what is less."""
    try:
        time = _time(value)
    except (ValueError, TypeError, OverflowError):
        return value
    if isinstance(time, datetime):
        whole = time.replace(microsecond=0)
        return whole.astimezone(UTC) if whole.tzinfo else whole
    # A smaller number may be one of days.
    return int(time) if abs(time) >= LEAST_EPOCH else plain_number(time)


def _oldest_first(
    rows: list[_Placed], time: Callable[[_Placed], Any], newest_first: bool
) -> list[_Placed]:
    """Return the rows of a file; reversed, if it has the newest ones first.

    Args:
        newest_first: whether the whole file has them so, which counts if these have one time.
    """
    first, last = time(rows[0]), time(rows[-1])
    is_reversed = first > last or (first == last and newest_first)
    for newer, older in pairwise(rows):
        is_reversed = is_reversed and time(newer) >= time(older)
    return rows[::-1] if is_reversed else rows


def _united(
    files: Sequence[Sequence[_Placed]], key: Callable[[Row], str]
) -> tuple[list[_Placed], list[_Placed]]:
    """Return each row of some files as often as the file that has it most often, and the others.

    New rows of a later file stand before the next row that earlier ones have, too.
    """
    known: defaultdict[str, list[_Node]] = defaultdict(list)
    repeated: list[_Placed] = []
    rest: list[_Node] = []  # what stands before no other row
    for later in files:
        matched: Counter[str] = Counter()
        own: list[tuple[str, _Node]] = []
        new: list[_Node] = []
        for placed in later:
            name = key(placed[0])
            if matched[name] == len(known[name]):
                new.append((placed, []))
                own.append((name, new[-1]))
                continue
            _, before = known[name][matched[name]]
            before += new
            new = []
            matched[name] += 1
            repeated.append(placed)
        rest += new
        for name, node in own:
            known[name].append(node)
    return _flat(rest), repeated


def _flat(nodes: Sequence[_Node]) -> list[_Placed]:
    """Return the rows of some nodes, each after those that stand before it."""
    flat: list[_Placed] = []
    ahead = list(reversed(nodes))
    while ahead:
        placed, before = ahead.pop()
        if before:
            ahead += [(placed, []), *reversed(before)]
        else:
            flat.append(placed)
    return flat


def _merged(
    rows: Sequence[_Placed], comparable: Callable[[Row], Row]
) -> tuple[Sequence[_Placed], Sequence[_Placed]]:
    """Return the rows of a conversation without those that a later file has again, and these.

    Exports of overlapping times both have the rows between, one at its end and the other at its
    beginning; or one has all rows of the other.
    """
    first, *others = _by_file(rows)
    if not others:
        return first, []
    repeated: list[_Compared] = []
    merged = _compared(first, comparable)
    for file in others:
        later = _compared(file, comparable)
        _, count = _beginning(later, merged)
        start, count_before = _beginning(merged, later)
        # Files may be given in any order; but one row alone may be a second "thanks".
        if count_before > max(count, 1):
            end = start + count_before
            repeated += later[start:end]
            merged = [*later[:start], *merged, *later[end:]]
        else:
            repeated += later[:count]
            merged += later[count:]
    return [placed for _, placed in merged], [placed for _, placed in repeated]


def _compared(
    rows: Sequence[_Placed], comparable: Callable[[Row], Row]
) -> list[_Compared]:
    return [(comparable(row), (row, place)) for row, place in rows]


def _beginning(
    rows: Sequence[_Compared], others: Sequence[_Compared]
) -> tuple[int, int]:
    """Return where others have all of these rows, or else end with the first of them, and how many
    they have. Thousands of equal rows take no longer (search of Knuth, Morris and Pratt)."""
    wanted = [row for row, _ in rows]
    borders = [0]  # for each row: how many first ones the rows up to it end with

    def matched_with(row: Row, matched: int) -> int:
        while matched and row != wanted[matched]:
            matched = borders[matched - 1]
        return matched + (row == wanted[matched])

    for row in wanted[1:]:
        borders.append(matched_with(row, borders[-1]))
    matched = 0
    for end, (row, _) in enumerate(others, 1):
        matched = matched_with(row, matched)
        if matched == len(wanted):
            return end - matched, matched
    return len(others) - matched, matched


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


def _id_at(row: Row, path: str) -> str:
    """Return the id at a path, empty if there is none. In a table it is a text: in a column with
    gaps, `12.0` stands for 12, and `NaN` for a gap."""
    value = _at(row, path)
    if isinstance(value, Decimal):
        value = str(value)
    if isinstance(value, bytes):  # of DuckDB
        value = str(UUID(bytes=value)) if len(value) == 16 else value.hex()
    if isinstance(value, str) and value.strip() in _GAPS:
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


def _at(row: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path; `None` if there is none. Tables may have names with dots."""
    if not path:
        return None
    return row[path] if path in row else at_path(row, path, None)

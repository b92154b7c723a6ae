"""Rows that are one message each, as tickets in a table: those with the same `id` are a
conversation, in their order, or in that of their `time`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from userlm.data.layouts.common import Found, Messages, Place, Side, read_messages
from userlm.data.layouts.fields import Rejected, Row
from userlm.data.layouts.mapped import Map, id_at, value_at
from userlm.data.layouts.overlaps import Placed, by_file, merged, oldest_first, united
from userlm.data.layouts.times import comparable_time, read_time
from userlm.lines import Line

_LINE_END = re.compile(r"\r*\n|\r")


class Rows:
    """Rows that are one message each."""

    def __init__(self, mapped: Map) -> None:
        self._map = mapped
        self._rows: defaultdict[str, list[Placed]] = defaultdict(list)
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
            time = read_time(self._map.time_in(row))
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
        self, placed: Sequence[Placed]
    ) -> tuple[Sequence[Placed], Sequence[Placed], bool]:
        """Return the rows of a conversation without those that several files have, these, and
        whether the order is known where rows have a time."""
        times = [self._map.time_in(row) for row, _ in placed]
        if not self._map.time or None in times:
            return *merged(placed, self._comparable), not self._map.time

        def key(row: Row) -> str:
            said = _with_plain_ends(self._map.message(row))
            return repr((said, self._ids(row), comparable_time(self._map.time_in(row))))

        def time(placed: Placed) -> datetime | float:
            row, _ = placed
            return read_time(self._map.time_in(row))

        def is_known(rows: Sequence[Placed]) -> bool:
            is_newest_first = self._is_newest_first(rows[0][1].file)
            return is_newest_first is not None or len({*map(time, rows)}) == len(rows)

        try:
            files = [
                oldest_first(each, time, bool(self._is_newest_first(each[0][1].file)))
                for each in by_file(placed)
            ]
            rows, repeated = united(files, key)
            return sorted(rows, key=time), repeated, all(map(is_known, files))
        # No times, or such as cannot be compared.
        except (ValueError, TypeError, OverflowError):
            return *united(by_file(placed), key), False

    def _comparable(self, row: Row) -> Row:
        """Return a row as all exports of it write it."""
        return {**_with_plain_ends(row), **self._ids(row)}

    def _ids(self, row: Row) -> dict[str, Any]:
        """Return the ids of a row by their fields: one export has 12, another 12.0 or "12"."""
        found = {}
        for path in filter(None, (self._map.id, self._map.user)):
            try:
                found[path] = id_at(row, path)
            except Rejected:
                found[path] = value_at(row, path)
        return found

    def _conversation(
        self, rows: Sequence[Placed], is_ordered: bool
    ) -> tuple[Found, list[Placed]]:
        """Return the conversation of some rows, and those of them without words. In a table these
        are attachments or changes of status, and it goes on after them."""
        said: list[tuple[Side, str]] = []
        lost_parts = 0
        kept: list[Placed] = []
        empty: list[Placed] = []
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

    def _messages(self, placed: Placed) -> Messages:
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


def _with_plain_ends(row: Row) -> dict[str, Any]:
    """Return a row with LF alone at the ends of lines within its texts: a program on Windows writes
    others."""
    return {
        name: _LINE_END.sub("\n", value) if isinstance(value, str) else value
        for name, value in row.items()
    }


def _left_out(rows: Iterable[Placed], rejected: Rejected) -> Iterator[Found]:
    for row, place in rows:
        yield Found(place.file, Line(place.number, dict(row)), None, rejected)

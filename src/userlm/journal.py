"""Journals: a line for each answered call, so that a run resumes where it stopped."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from userlm.json_files import dump, naming, replacing, take
from userlm.lines import BUFFER, DEEPEST, is_deep, parse_line
from userlm.text import has_words
from userlm.types import Conversation, InputError, ModelError, Reply, Speaker

T = TypeVar("T")


def append(file: FileIO, line: bytes) -> int:
    """Write a line at the end of a file, and return its offset in bytes. If the disk is full,
    nothing of it stays: half a line would be damage to whoever reads it next."""
    begun = os.fstat(file.fileno()).st_size
    try:
        while line:
            line = line[file.write(line) :]
    except OSError:
        os.truncate(file.fileno(), begun)
        raise
    return begun


class Journal:
    """A line file that threads append to. An incomplete last line from a crash is removed on
    opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.touch()
        self._whole_bytes, is_ended = _whole_lines(path)
        os.truncate(path, self._whole_bytes)
        self._file = path.open("ab", buffering=0)
        if not is_ended:
            self._whole_bytes += self._file.write(b"\n")

    def read(self, parse: Callable[[dict[str, Any]], T]) -> Iterator[T]:
        """Yield the parsed lines of an earlier attempt; see `lines`."""
        for _, parsed in self.lines(parse):
            yield parsed

    def lines(self, parse: Callable[[dict[str, Any]], T]) -> Iterator[tuple[int, T]]:
        """Yield the parsed lines of an earlier attempt, each with its offset in bytes.

        Args:
            parse: raises `ValueError` for a line that this program did not write, as `take` does.

        Raises:
            InputError: if `parse` does; it names the line.
        """
        lines = _lines_with_offsets(self.path)
        for number, (offset, _, row) in enumerate(lines, 1):
            if offset >= self._whole_bytes:
                return
            try:
                parsed = parse(row)
            except (ValueError, TypeError) as error:
                raise _damaged(self.path, number, f": {error}") from None
            yield offset, parsed

    def line(self, offset: int) -> dict[str, Any]:
        """The line at an offset in bytes."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return parse_line(0, file.readline()).row

    def add(self, row: Mapping[str, Any]) -> int:
        """Append a line, hand it to the operating system, and return its offset in bytes.

        Raises:
            ModelError: if the line could not be read again; nothing is written.
        """
        line = dump(row)
        if problem := parse_line(0, line).error:
            raise ModelError(f"{self.path.name}: it cannot be kept: the line {problem}")
        with self._lock, naming(self.path):
            return append(self._file, line + b"\n")

    def close(self, order: Callable[[Mapping[str, Any]], Any] | None = None) -> None:
        """Close it. With an `order` its lines are sorted by it, so that the file does not depend on
        the order of threads."""
        self._file.close()
        if order is None:
            return
        lines = _lines_with_offsets(self.path)
        places = sorted((order(row), offset, size) for offset, size, row in lines)
        with (
            self.path.open("rb") as file,
            replacing(self.path) as partial,
            partial.open("wb", BUFFER) as ordered,
        ):
            for _, offset, size in places:
                file.seek(offset)
                ordered.write(file.read(size))


def is_whole(path: Path) -> bool:
    """Return whether the last line of a journal is whole; it is not after a crash."""
    return _whole_lines(path)[0] == path.stat().st_size


def _whole_lines(path: Path) -> tuple[int, bool]:
    """The number of bytes up to the end of the last whole line, and whether a newline ends it: an
    editor may have left it out."""
    size, is_ended = 0, True
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if parse_line(0, raw).error:
                if file.read(1):  # a crash damages only the last line
                    raise _damaged(path, number)
                break
            size, is_ended = size + len(raw), raw.endswith(b"\n")
    return size, is_ended


def _damaged(path: Path, number: int, why: str = "") -> InputError:
    return InputError(
        f"{path}, line {number} is damaged{why}; repair it, or choose another --out"
    )


def _lines_with_offsets(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield each line of a journal: its offset and its size in bytes, and its row."""
    offset = 0
    with path.open("rb", buffering=BUFFER) as file:
        for raw in file:
            yield offset, len(raw), parse_line(0, raw).row
            offset += len(raw)


def _answer_key(row: Mapping[str, Any]) -> tuple[str, int]:
    """The conversation and the turn of a line of `Answers`; `ValueError` if it is none."""
    for name, kind in (("text", str), ("stop", str), ("meta", dict)):
        take(row, name, kind, default=None)
    return take(row, "id", str), take(row, "n", int)


DEEPEST_META = DEEPEST // 2
"""Maximum nesting of the `meta` of a reply, so that whatever holds it can still be read."""


def check_depth(meta: Mapping[str, Any]) -> None:
    """Raise `ModelError` if the `meta` of a reply is nested too deep."""
    if is_deep(meta, DEEPEST_META):
        raise ModelError(
            f"the meta of the answer is nested more than {DEEPEST_META} levels deep"
        )


class Answers:
    """The answered turns of a run, one line of a journal each. Only offsets are kept in memory."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._offsets = {key: offset for offset, key in journal.lines(_answer_key)}

    def find(self, id: str, n: int) -> Reply | None:
        """The recorded reply at turn `n` of a conversation, or `None`."""
        offset = self._offsets.get((id, n))
        if offset is None:
            return None
        row = self._journal.line(offset)
        return Reply(row.get("text") or "", row.get("stop"), row.get("meta") or {})

    def add(self, conversation: Conversation, reply: Reply) -> None:
        """Record the reply to a conversation; raise `ModelError` if it could not be read again."""
        check_depth(reply.meta)
        row: dict[str, Any] = {
            "id": conversation.id,
            "n": len(conversation.turns),
            "role": conversation.next_role,
            "text": reply.text,
        }
        if reply.stop:
            row["stop"] = reply.stop
        if reply.meta:
            row["meta"] = dict(reply.meta)
        self._journal.add(row)


class Recorded:
    """A speaker whose replies are recorded. A recorded reply is not generated again."""

    def __init__(self, speaker: Speaker, answers: Answers) -> None:
        self._speaker = speaker
        self._answers = answers

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the recorded reply, or get and record the speaker's reply."""
        recorded = self._answers.find(conversation.id, len(conversation.turns))
        if recorded:
            return recorded
        reply = self._speaker.reply(conversation)
        # other types are errors, which the caller reports
        if isinstance(reply, Reply) and (has_words(reply.text) or reply.stop):
            self._answers.add(conversation, reply)
        return reply

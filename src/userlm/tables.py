"""Rows of tables in text files: CSV and TSV, packed or not, with a header."""

from __future__ import annotations

import csv
import io
import re
import sys
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from userlm.lines import (
    BEGINNING,
    BUFFER,
    LONGEST,
    Line,
    Readable,
    bad_line,
    long_line,
    opened,
    read_error,
)
from userlm.types import InputError

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
DELIMITERS = ",;\t"
"""What may separate the values of a `.csv` file: Excel writes semicolons in many countries."""
Quotes = Literal["auto", "csv", "backslash", "text"]
"""How a table is quoted. `csv`: quotes stand around values, and are doubled within them;
`backslash`: they have a backslash before them instead; `text`: quotes are text, and a line is a
row, as in TSV by its definition. `auto`: csv, if it surely is."""
NOT_CSV = "not CSV"
"""Why a line is set aside that is no row, or of which nobody knows whether it is one."""
_LINE = 64  # bytes that a line in memory takes beside its text
_ESCAPED = re.compile(r'\\[\\"]')
_LONE = re.compile(r'\\([\\"\r\n]?)')

_IF_TEXT = "if quotes are plain text in this table, import it with --quotes text"
_PLAIN_QUOTES = (
    "a quote at the beginning of a value, and a later line has one at the end of a value; those "
    f"between look like rows; {_IF_TEXT}; if they are a text, with --quotes csv"
)


def read_table(
    path: Path,
    size: int,
    longest: int = LONGEST,
    most_values: int = LONGEST,
    quotes: Quotes = "auto",
) -> Iterator[Line]:
    """Yield the rows in the first `size` bytes of a table, including bad ones: objects of texts,
    by the names of the columns. A value may have line breaks; the number of a row is that of its
    first line.

    Args:
        longest: set aside lines of more bytes than this, and rows that may be so long.
        most_values: set aside rows with more delimiters than this.

    Raises:
        InputError: if it is damaged or not UTF-8, or its header is not CSV or has a name twice, or
            nobody can tell how it is quoted.
    """
    csv.field_size_limit(min(longest, sys.maxsize))
    number = 0
    try:
        if quotes == "auto" and _has_escaped(path, size):
            _check_is_csv(path, size, longest, most_values)
        with opened(path, size) as file:
            lines = _lines(path, file, size, longest)
            table = _Table(path, lines, longest, most_values, quotes)
            for line in table.rows():
                number = line.number
                yield _without_missing(line, quotes)
    except (EOFError, zlib.error, OSError) as error:
        raise read_error(path, number, error) from None


def _without_missing(line: Line, quotes: Quotes) -> Line:
    """Return a row with an empty text for a missing value: MySQL and COPY of Postgres write `\\N`,
    and `mysql -B` writes `NULL`."""
    missing = {r"\N", "NULL"} if quotes == "text" else {r"\N"}
    if missing.isdisjoint(line.row.values()):
        return line
    known = {
        name: "" if value in missing else value for name, value in line.row.items()
    }
    return replace(line, row=known)


def _has_escaped(path: Path, size: int) -> bool:
    """Return whether a quote stands after a backslash anywhere in a table."""
    before = b""
    with opened(path, size) as file:
        while block := file.read(BUFFER):
            if b'\\"' in before + block:
                return True
            before = block[-1:]
    return False


def _check_is_csv(path: Path, size: int, longest: int, most_values: int) -> None:
    """Check that a table with quotes after backslashes is CSV, where these are text.

    It is if all rows are right as a program writes CSV, and would not be other rows if a backslash
    escaped a quote. Elsewhere a guess could make rows out of a text that is written to look so.

    Raises:
        InputError: if it may be no CSV.
    """

    def reading(quotes: Quotes) -> _Reading:
        with opened(path, size) as file:
            lines = _lines(path, file, size, longest)
            return _Table(path, lines, longest, most_values, quotes).reading()

    as_csv, other = reading("csv"), reading("backslash")
    if not as_csv.error and as_csv.values == other.values:
        return
    if other.error and not (as_csv.error or as_csv.unusual):
        return
    raise InputError(
        f"{path}: has quotes after backslashes, so it may be no CSV: with --quotes csv "
        f"{as_csv.error or as_csv.unusual or 'all rows are right'}; with --quotes backslash "
        f"{other.error or 'all rows are right'}. Import it with --quotes backslash if each quote "
        "in a text has a backslash before it, with --quotes csv if it is doubled, or with --quotes "
        "text if quotes stand around no value; rows that are not right then are set aside"
    )


class _Text(NamedTuple):
    """A line of the file; of one that is too long, what is needed to set it aside.

    Attributes:
        text: only the beginning of a line that is too long.
        length: its bytes, if it is too long; else 0.
        end: where its last quote stands, if it is too long; empty if it has none.
    """

    text: str
    length: int = 0
    end: str = ""


class _Reading(NamedTuple):
    """What a table is if it is quoted in one way.

    Attributes:
        error: the first that is not right; empty if all rows are.
        unusual: the first row that can be read as CSV, but that no program writes so.
        values: a hash of all values without their quotes and backslashes, if all rows are right.
    """

    error: str
    unusual: str
    values: int | None = None


class _TooLong(Exception):
    """A row that goes on for too long to be read."""


class _Table:
    """The rows in the lines of a table.

    A row that Python's `csv` reads strictly, with as many values as the header, is one, whatever
    its text. Where a quote is not closed nobody knows which of the next lines are rows, and which
    are in a text, where anyone may have written what looks like rows of others. So all are set
    aside, up to a line that surely ends outside quotes (`_closes`).
    """

    def __init__(
        self,
        path: Path,
        lines: Iterator[_Text],
        longest: int,
        most_values: int,
        quotes: Quotes,
    ) -> None:
        first = next(lines, _Text(""))
        self._path = path
        self._lines = lines
        self._ahead = deque([first])  # lines that were read, and belong to no row yet
        self._longest = longest
        self._most_values = most_values
        self._delimiter = max(DELIMITERS, key=first.text.count)
        if ".tsv" in map(str.lower, path.suffixes):
            self._delimiter = "\t"
        self._are_text = quotes == "text"
        self._are_escaped = quotes == "backslash"
        # Where no commas separate the values, quotes are often text. Not where the names have
        # them, which no person of the log wrote.
        self._may_be_text = (
            quotes == "auto" and self._delimiter != "," and '"' not in first.text
        )
        self._cell = re.compile(f"[^{self._delimiter}]+")
        value = rf'(?:"(?:[^"\\]|\\.)*+"|(?!")(?:[^\\{self._delimiter}]|\\.)*+)'
        self._escaped_row = re.compile(
            rf"{value}(?:{self._delimiter}{value})*+[\r\n]*", re.DOTALL
        )
        self._taken: list[_Text] = []  # the lines of this row
        self._number = 1  # of the first of them

    def rows(self) -> Iterator[Line]:
        """Yield the rows after the header, including bad ones."""
        names = self._header()
        while True:
            self._number += len(self._taken)
            self._taken = []
            values: list[str] = []
            error = ""
            try:
                values = self._row()
            except (csv.Error, _TooLong) as caught:
                error = f"is not CSV: {caught}"
            if not self._taken:
                return
            if values and len(values) != len(names):
                error = f"has {len(values)} values, and the header {len(names)}"
            if error:
                yield from self._set_aside(error, bool(values), len(names))
            elif values and self._may_be_text and self._may_be_rows(len(values)):
                yield from self._each_aside(f"has {_PLAIN_QUOTES}")
            elif values:
                yield Line(self._number, dict(zip(names, values, strict=True)))

    def reading(self) -> _Reading:
        """Read all rows, up to the first one that is not right."""
        values = 0
        unusual = ""
        try:
            for line in self.rows():
                if line.error:
                    return _Reading(f"line {line.number} {line.error}", unusual)
                if not unusual and self._has_plain_quote(line.row.values()):
                    unusual = f"line {line.number} has a quote in a value that has none around it"
                texts = (re.sub(r'[\\"]', "", text) for text in line.row.values())
                values = hash((values, *texts))
        except InputError as error:  # of its header
            return _Reading(str(error), unusual)
        return _Reading("", unusual, values)

    def _has_plain_quote(self, values: Iterable[str]) -> bool:
        """Return whether a value of the lines taken has a quote, and none around it. No program
        writes CSV so."""
        text = self._text()
        start = 0
        for value in values:
            cell = '"' + value.replace('"', '""') + '"'
            if not text.startswith(cell, start):
                cell = value
                if '"' in value:
                    return True
            start += len(cell) + 1
        return False

    def _row(self) -> list[str]:
        """Return the values of the next row; take its lines.

        Raises:
            csv.Error: it is not CSV.
            _TooLong: it goes on for too long.
        """
        lines = self._taking()
        if self._are_text:
            text = next(lines, "").rstrip("\r\n")
            return text.split(self._delimiter) if text else []
        values = next(self._read(lines), [])
        if self._are_escaped and not self._escaped_row.fullmatch(self._text()):
            raise csv.Error("a quote in a value has no backslash before it")
        return values

    def _text(self) -> str:
        return "".join(line.text for line in self._taken)

    def _read(
        self, lines: Iterable[str], *, strict: bool = True
    ) -> Iterator[list[str]]:
        if self._are_escaped:
            # Any other character after a backslash would lose it.
            lines = (
                _LONE.sub(lambda at: at[0] if at[1] else "\\\\", line) for line in lines
            )
        return csv.reader(
            lines,
            delimiter=self._delimiter,
            strict=strict,
            escapechar="\\" if self._are_escaped else None,
        )

    def _taking(self) -> Iterator[str]:
        size = delimiters = 0
        while line := self._next():
            self._taken.append(line)
            size += len(line.text) + _LINE
            delimiters += line.text.count(self._delimiter)
            if self._are_escaped:  # each takes memory, too
                delimiters += line.text.count("\\")
            if line.length or size > self._longest + _LINE:
                raise _TooLong(f"it goes on for more than {self._longest:,} bytes")
            if delimiters > self._most_values:
                raise _TooLong(f"it has more than {self._most_values:,} delimiters")
            yield line.text

    def _next(self) -> _Text | None:
        return self._ahead.popleft() if self._ahead else next(self._lines, None)

    def _header(self) -> list[str]:
        try:
            values = self._row()
        except (csv.Error, _TooLong) as error:
            raise InputError(
                f"{self._path}: its header is not CSV: {error}; close the quotes in it"
            ) from None
        names = [
            name.strip() or f"column {number}" for number, name in enumerate(values, 1)
        ]
        for name, count in Counter(names).items():
            if count > 1:
                raise InputError(
                    f"{self._path}: its header has two columns of the name {name!r}; rename one"
                )
        return names

    def _may_be_rows(self, columns: int) -> bool:
        """Return whether lines within the quotes may be rows: two quotes that people wrote may
        stand around the rows of others. In a text many tabs or semicolons in a line are rare."""
        if len(self._taken) == 1:
            return False
        counts = [line.text.count(self._delimiter) for line in self._taken]
        may_be = [count >= columns - 1 for count in counts]
        return any(may_be[1:-1]) or (may_be[0] and may_be[-1])

    def _set_aside(self, error: str, is_read: bool, columns: int) -> Iterator[Line]:
        """Yield the lines taken as a bad row; each by itself, with those after them that may be in
        the same quotes, if it is not known where the row ends.

        Args:
            is_read: whether `csv` could read the row.
        """
        if self._are_text:
            yield self._bad(self._number, self._taken[0], error)
            return
        if self._is_whole(is_read, columns):
            first, *others = self._taken
            text = first.text + "".join(line.text for line in others)
            yield self._bad(self._number, first._replace(text=text), error)
        else:
            error += f"; a quote in it is not closed; {_IF_TEXT}"
            yield from self._each_aside(error)

    def _each_aside(self, error: str) -> Iterator[Line]:
        first = self._number
        for number, line in enumerate(self._doubtful(), first):
            yield self._bad(number, line, error)
            error = f"may be within a quote that line {first} opens and does not close"

    def _bad(self, number: int, line: _Text, error: str) -> Line:
        raw = line.text.rstrip("\r\n").encode()
        if line.length:
            return long_line(number, raw, line.length, self._longest)
        return bad_line(number, raw, NOT_CSV, error)

    def _is_whole(self, is_read: bool, columns: int) -> bool:
        """Return whether the lines taken are a row, if a bad one."""
        *earlier, last = self._taken
        if earlier:
            return is_read and self._closes(last)
        if last.length:
            return not last.end or self._closes(last)
        return self._is_row(last.text, columns)

    def _is_row(self, text: str, columns: int) -> bool:
        """Return whether a line alone is a row, if a bad one."""
        plain = self._plain(text)
        if all(cell[0].count('"') % 2 == 0 for cell in self._cell.finditer(plain)):
            return True
        if text.count(self._delimiter) > self._most_values:
            return False
        try:
            next(self._read([text]))
            return True
        except csv.Error:
            pass
        try:
            # Within quotes a single one was not doubled, as that of 5" in "a 5" pipe".
            [values] = self._read([text], strict=False)
        except csv.Error:  # a CR outside quotes
            return False
        return self._ends_value(plain) and len(values) == columns

    def _doubtful(self) -> Iterator[_Text]:
        """Yield the lines taken, and others, up to one that surely ends outside quotes."""
        yield from self._taken
        is_closed = len(self._taken) > 1 and self._closes(self._taken[-1])
        while not is_closed and (line := self._next()):
            self._number += 1
            yield line
            is_closed = self._closes(line)

    def _closes(self, line: _Text) -> bool:
        """Return whether the last quote of a line closes a value."""
        return self._ends_value(self._plain(line.end or line.text))

    def _plain(self, text: str) -> str:
        """Return a text without escaped quotes, which neither open nor close a value."""
        return _ESCAPED.sub("", text) if self._are_escaped else text

    def _ends_value(self, line: str) -> bool:
        """Return whether the last quote of a line closes a value.

        Within a value quotes are doubled, so only where it ends does an odd number of them stand
        before a delimiter; the one that opens a value has a delimiter before it.
        """
        line = line.rstrip("\r\n")
        start = len(line)
        while (last := line.rfind('"', 0, start)) >= 0:
            start = line.rfind(self._delimiter, 0, last) + 1
            after = line.find(self._delimiter, last)
            cell = line[start:] if after < 0 else line[start:after]
            if cell != '""':
                before = cell.rstrip('"')
                return before != "" and (len(cell) - len(before)) % 2 == 1
        return False


# --- lines ----------------------------------------------------------------------------------------

_SWAP = bytes.maketrans(b"\r\n", b"\n\r")


class _Unread(io.RawIOBase):
    """A file of which something was read already, with each byte as a table says."""

    def __init__(self, begun: bytes, file: Readable, table: bytes | None) -> None:
        self._begun = begun
        self._file = file
        self._table = table

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._begun or self._file.read(len(buffer))
        self._begun = block[len(buffer) :]
        block = block[: len(buffer)]
        buffer[: len(block)] = block.translate(self._table)
        return len(block)


def _lines(path: Path, file: Readable, size: int, longest: int) -> Iterator[_Text]:
    """Yield the lines. They end as the header does: with LF, perhaps after CR (two of them, if
    Python wrote it on Windows without `newline=""`), or with CR alone, as in old files of Excel for
    Mac. The other one may stand in a text, so it ends no line. A last line without an end is left
    out if the file goes on by now: it was being written when reading began."""
    begun = file.readline(BUFFER)
    is_mac = re.match(rb"[^\r\n]*\r(?!\r*\n)", begun)
    swap = _SWAP if is_mac else None
    content = io.BufferedReader(_Unread(begun, file, swap), BUFFER)
    # Then each LF of the table was made CRLF, also within texts.
    are_translated = not is_mac and begun.endswith(b"\r\r\n")
    number = 0
    while raw := content.readline(longest + len(b"\n")):
        number += 1
        if are_translated and raw.endswith(b"\r\n"):
            raw = raw[: -len(b"\r\n")] + b"\n"
        if len(raw.rstrip(b"\n")) > longest:
            yield _long_text(raw, content, swap)
            continue
        try:
            text = raw.translate(swap).decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"{path}, line {number} is not UTF-8; save the file as CSV in UTF-8, or convert "
                "it, for instance: iconv -f WINDOWS-1252 -t UTF-8"
            ) from None
        if not text.endswith("\n") and path.stat().st_size > size:
            return
        yield _Text(text)


def _long_text(
    raw: bytes, content: io.BufferedReader[_Unread], swap: bytes | None
) -> _Text:
    """Return a line that begins so and is too long, and read its rest."""
    beginning = raw[:BEGINNING]
    end = b""
    length = quotes = 0
    while raw:
        length += len(raw.rstrip(b"\n"))
        quotes += raw.count(b'"')
        end = (end + raw)[-BUFFER:]
        raw = b"" if raw.endswith(b"\n") else content.readline(BUFFER)
    if b'"' not in end:
        end = b'"' if quotes else b""  # not known to close anything
    text, last = (
        each.translate(swap).decode("utf-8", "replace") for each in (beginning, end)
    )
    return _Text(text, length, last)

"""Rows of tables in text files: CSV and TSV, packed or not, with a header."""

from __future__ import annotations

import csv
import io
import re
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
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
Quotes = Literal["csv", "text"]
"""Whether quotes stand around values, or are text as in TSV by its definition, where a line is a
row."""
NOT_CSV = "not CSV"
"""Why a line is set aside that is no row, or of which nobody knows whether it is one."""
MOST_LOOKED = 1 << 26
"""Characters of a table that are read again, to see what rows would be if backslashes escaped
quotes. After that a row with such quotes is set aside."""
_LINE = 64  # bytes that a line in memory takes beside its text
_ESCAPED = (re.compile(r'\\"'), re.compile(r'(?<!\\)(?:\\\\)*\\"'))
"""A quote after a backslash, which some exports write for a quote in a text, where CSV doubles it;
and one where a backslash is written twice, too."""
_NOT_DOUBLED = (
    "backslashes before quotes, which then may be a part of the text or close it; export it again "
    "with quotes doubled: FIELDS ESCAPED BY '\"' in MySQL, .option('escape', '\"') in Spark, no "
    "`escapechar` in Python; or, if a text ends in a backslash, as JSON lines"
)

_IF_TEXT = "if quotes are plain text in this table, import it with --quotes text"
_PLAIN_QUOTES = (
    "a quote at the beginning of a value, and a later line has one at the end of a value; those "
    f"between look like rows; {_IF_TEXT}; else delete these quotes, or export it as .csv"
)


def read_table(
    path: Path,
    size: int,
    longest: int = LONGEST,
    most_values: int = LONGEST,
    quotes: Quotes = "csv",
) -> Iterator[Line]:
    """Yield the rows in the first `size` bytes of a table, including bad ones: objects of texts,
    by the names of the columns. A value may have line breaks; the number of a row is that of its
    first line.

    Args:
        longest: set aside lines of more bytes than this, and rows that may be so long.
        most_values: set aside rows with more delimiters than this.

    Raises:
        InputError: if it is damaged or not UTF-8, or its header is not CSV or has a name twice.
    """
    csv.field_size_limit(min(longest, sys.maxsize))
    number = 0
    try:
        with opened(path, size) as file:
            lines = _lines(path, file, longest)
            table = _Table(path, lines, longest, most_values, quotes)
            for line in table.rows():
                number = line.number
                yield line
    except (EOFError, zlib.error, OSError) as error:
        raise read_error(path, number, error) from None


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


class _TooLong(Exception):
    """A row that goes on for too long to be read."""


class _Table:
    """The rows in the lines of a table.

    A row that Python's `csv` reads strictly, with as many values as the header, is one, whatever
    its text; unless it would be another row if backslashes escaped the quotes after them. Where a
    quote is not closed, or may be escaped, nobody knows which of the next lines are rows, and which
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
        if ".tsv" in path.suffixes:
            self._delimiter = "\t"
        self._are_text = quotes == "text"
        # Rows with quotes around all values, the header too, unless one has others.
        self._quoted_rows = 0
        self._may_be_escaped = False  # a quote of a row that was set aside
        self._looked = 0  # characters that were read again for what they may be
        self._cell = re.compile(f"[^{self._delimiter}]+")
        # a value that a quote after a backslash closes
        self._closed = re.compile(rf'\\"({self._delimiter}|[\r\n]|$)')
        # the beginning of a value in quotes, which is not the end of one
        self._opened = re.compile(f'"[^{self._delimiter}\\r\\n]')
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
            elif values and (doubt := self._doubt(values)):
                yield from self._each_aside(f"has {doubt}")
            elif values:
                yield Line(self._number, dict(zip(names, values, strict=True)))

    def _row(self, escaped: re.Pattern[str] | None = None) -> list[str]:
        """Return the values of the next row, without escaped quotes; take its lines.

        Raises:
            csv.Error: it is not CSV.
            _TooLong: it goes on for too long.
        """
        lines = self._taking()
        if self._are_text:
            text = next(lines, "").rstrip("\r\n")
            return text.split(self._delimiter) if text else []
        texts = (escaped.sub("", text) for text in lines) if escaped else lines
        return next(csv.reader(texts, delimiter=self._delimiter, strict=True), [])

    def _taking(self) -> Iterator[str]:
        size = delimiters = 0
        while line := self._next():
            self._taken.append(line)
            size += len(line.text) + _LINE
            delimiters += line.text.count(self._delimiter)
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
        self._quoted_rows = int(self._is_all_quoted(values))
        names = [name.strip() for name in values]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise InputError(
                f"{self._path}: its header has two columns of the name {repeated[0]!r}; rename one"
            )
        return names

    def _doubt(self, values: Sequence[str]) -> str:
        """Return why the lines taken may not be this row; empty if they surely are."""
        if self._are_text:
            return ""
        is_quoted = self._quoted_rows > 0 and self._is_all_quoted(values)
        if is_quoted and self._is_next_opened():
            self._quoted_rows += 1
            return ""
        if self._may_be_other(values):
            self._may_be_escaped = True
            return _NOT_DOUBLED
        if not is_quoted:
            if self._quoted_rows > 1 and self._may_be_escaped:
                return _NOT_DOUBLED  # it may be a line of a text
            self._quoted_rows = 0
        if self._may_be_rows(len(values)) and not self._is_all_quoted(values):
            return _PLAIN_QUOTES
        return ""

    def _is_all_quoted(self, values: Sequence[str]) -> bool:
        """Return whether the lines taken have quotes around each value, and double those in it.

        In a table of such rows a quote after a backslash closes a value only where a delimiter and
        another quote follow. If backslashes escape quotes, a text cannot have that: its own quotes
        all have a backslash before them.
        """
        text = "".join(line.text for line in self._taken).rstrip("\r\n")
        doubled = (value.replace('"', '""') for value in values)
        return text == self._delimiter.join(f'"{value}"' for value in doubled)

    def _is_next_opened(self) -> bool:
        """Return whether the next line, if any, surely begins with a value in quotes: then these
        do not end in the middle of a text."""
        following = self._next()
        if following is None:
            return True
        self._ahead.appendleft(following)
        return self._opened.match(following.text) is not None

    def _may_be_other(self, values: Sequence[str]) -> bool:
        """Return whether the lines taken may begin another row, since a quote after a backslash
        may be text: if one closes a value, or if without such quotes they are a row."""
        taken = self._taken
        if not any('\\"' in line.text for line in taken):
            return False
        # Not all exports double a backslash at the end of a text, so it cannot be told from one
        # before a quote in the text.
        is_other = any(value.endswith("\\") for value in values) and any(
            self._closed.search(line.text) for line in taken
        )
        for escaped in _ESCAPED:
            if (
                self._looked > MOST_LOOKED
            ):  # each such row may read up to the end of the file
                return True
            self._ahead.extendleft(reversed(self._taken))
            self._taken = []
            try:
                others = self._row(escaped)
                is_row = len(others) == len(values)
                is_same = others == [escaped.sub("", value) for value in values]
                is_other |= is_row and not (is_same and len(self._taken) == len(taken))
            except csv.Error:
                pass
            except _TooLong:
                is_other = True
            self._looked += sum(len(line.text) for line in self._taken)
        self._ahead.extendleft(reversed(self._taken))
        self._taken = [self._ahead.popleft() for _ in taken]
        return is_other

    def _may_be_rows(self, columns: int) -> bool:
        """Return whether lines within the quotes may be rows: where no commas separate the values
        quotes are often text, so two that people wrote may stand around the rows of others. In a
        text many commas mean nothing, and many tabs or semicolons in a line are rare."""
        if self._delimiter == "," or len(self._taken) == 1:
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
        if any('\\"' in line.text for line in self._taken):
            self._may_be_escaped = True
            error += f"; it has {_NOT_DOUBLED}"
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
        return all(self._is_row(text, columns) for text in _readings(last.text))

    def _is_row(self, text: str, columns: int) -> bool:
        """Return whether a line alone is a row, if a bad one."""
        if all(cell[0].count('"') % 2 == 0 for cell in self._cell.finditer(text)):
            return True
        if text.count(self._delimiter) > self._most_values:
            return False
        try:
            next(csv.reader([text], delimiter=self._delimiter, strict=True))
            return True
        except csv.Error:
            pass
        try:
            # Within quotes a single one was not doubled, as that of 5" in "a 5" pipe".
            [values] = csv.reader([text], delimiter=self._delimiter)
        except csv.Error:  # a CR outside quotes
            return False
        return self._ends_value(text) and len(values) == columns

    def _doubtful(self) -> Iterator[_Text]:
        """Yield the lines taken, and others, up to one that surely ends outside quotes."""
        yield from self._taken
        is_closed = len(self._taken) > 1 and self._closes(self._taken[-1])
        while not is_closed and (line := self._next()):
            self._number += 1
            yield line
            is_closed = self._closes(line)

    def _closes(self, line: _Text) -> bool:
        """Return whether the last quote of a line closes a value, escaped or not."""
        text = line.end or line.text
        return '"' in text and all(map(self._ends_value, _readings(text)))

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


def _readings(text: str) -> list[str]:
    """Return a text as it is, and without quotes that a backslash may escape."""
    if '\\"' not in text:
        return [text]
    return [text, *(escaped.sub("", text) for escaped in _ESCAPED)]


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


def _lines(path: Path, file: Readable, longest: int) -> Iterator[_Text]:
    """Yield the lines. They end as the header does: with LF, perhaps after CR (two of them, if
    Python wrote it on Windows without `newline=""`), or with CR alone, as in old files of Excel for
    Mac. The other one may stand in a text, so it ends no line."""
    begun = file.readline(BUFFER)
    is_mac = re.match(rb"[^\r\n]*\r(?!\r*\n)", begun)
    swap = _SWAP if is_mac else None
    content = io.BufferedReader(_Unread(begun, file, swap), BUFFER)
    number = 0
    while raw := content.readline(longest + len(b"\n")):
        number += 1
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

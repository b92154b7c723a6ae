"""Rows of tables in text files: CSV and TSV, packed or not, with a header."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from userlm.lines import BUFFER, LONGEST, Line, Readable, bad_line, opened, read_error
from userlm.types import InputError

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
DELIMITERS = ",;\t"
"""What may separate the values of a `.csv` file: Excel writes semicolons in many countries."""


def read_table(path: Path, size: int, longest: int = LONGEST) -> Iterator[Line]:
    """Yield the rows in the first `size` bytes of a table, including bad ones: objects of texts,
    by the names of the columns. A value may have line breaks; the number of a row is that of its
    first line.

    Args:
        longest: set aside rows with a value of more characters than this.

    Raises:
        InputError: if it is damaged or not UTF-8, or its header is not CSV or has a name twice.
    """
    csv.field_size_limit(longest)
    number = 0
    try:
        with opened(path, size) as file:
            for line in _Table(path, _decoded(path, _lines(file))).rows():
                number = line.number
                yield line
    except (EOFError, zlib.error, OSError) as error:
        raise read_error(path, number, error) from None


class _Table:
    """The rows in the lines of a table.

    A row that Python's `csv` reads strictly, with as many values as the header, is one, whatever
    its text. Where a quote is not closed, nobody knows which of the next lines are rows, and which
    are in a text, where anyone may have written what looks like rows of others. So all are set
    aside, up to a line that surely ends outside quotes (`_closes`).
    """

    def __init__(self, path: Path, lines: Iterator[str]) -> None:
        first = next(lines, "")
        self._path = path
        self._lines = chain([first], lines)
        self._delimiter = max(DELIMITERS, key=first.count)
        if ".tsv" in path.suffixes:
            self._delimiter = "\t"
        self._taken: list[str] = []  # the lines of this row
        self._number = 1  # of the first of them

    def rows(self) -> Iterator[Line]:
        """Yield the rows after the header, including bad ones."""
        rows = self._reader()
        names = self._header(rows)
        while True:
            self._number += len(self._taken)
            self._taken.clear()
            values: list[str] = []
            error = ""
            try:
                values = next(rows, values)
            except csv.Error as caught:
                error = f"is not CSV: {caught}"
                rows = self._reader()
            if not self._taken:
                return
            if values and len(values) != len(names):
                error = f"has {len(values)} values, and the header {len(names)}"
            if error:
                yield from self._set_aside(error, bool(values), len(names))
            elif values:
                yield Line(self._number, dict(zip(names, values, strict=True)))

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(self._taking(), delimiter=self._delimiter, strict=True)

    def _taking(self) -> Iterator[str]:
        for line in self._lines:
            self._taken.append(line)
            yield line

    def _header(self, rows: Iterator[list[str]]) -> list[str]:
        try:
            names = [name.strip() for name in next(rows, [])]
        except csv.Error as error:
            raise InputError(
                f"{self._path}: its header is not CSV: {error}; close the quotes in it"
            ) from None
        if repeated := [name for name in names if names.count(name) > 1]:
            raise InputError(
                f"{self._path}: its header has two columns of the name {repeated[0]!r}; rename one"
            )
        return names

    def _set_aside(self, error: str, is_read: bool, columns: int) -> Iterator[Line]:
        """Yield the lines taken as a bad row; each by itself, with those after them that may be in
        the same quotes, if it is not known where the row ends.

        Args:
            is_read: whether `csv` could read the row.
        """
        if self._is_whole(is_read, columns):
            yield self._bad(self._number, "".join(self._taken), error)
            return
        first = self._number
        error += "; a quote in it is not closed"
        for number, line in enumerate(self._doubtful(), first):
            yield self._bad(number, line, error)
            error = f"may be within a quote that line {first} opens and does not close"

    def _bad(self, number: int, text: str, error: str) -> Line:
        return bad_line(number, text.rstrip("\r\n").encode(), "not CSV", error)

    def _is_whole(self, is_read: bool, columns: int) -> bool:
        """Return whether the lines taken are a row, if a bad one."""
        *earlier, last = self._taken
        if earlier:
            return is_read and self._closes(last)
        if is_read or all(cell.count('"') % 2 == 0 for cell in self._cells(last)):
            return True
        # Within quotes a single one was not doubled, as that of 5" in "a 5" pipe".
        [values] = csv.reader([last], delimiter=self._delimiter)
        return self._closes(last) and len(values) == columns

    def _doubtful(self) -> Iterator[str]:
        """Yield the lines taken, and others, up to one that surely ends outside quotes."""
        yield from self._taken
        is_closed = len(self._taken) > 1 and self._closes(self._taken[-1])
        while not is_closed and (line := next(self._lines, "")):
            self._number += 1
            yield line
            is_closed = self._closes(line)

    def _cells(self, line: str) -> list[str]:
        """Return what stands between the delimiters of a line, within quotes or not."""
        return line.rstrip("\r\n").split(self._delimiter)

    def _closes(self, line: str) -> bool:
        """Return whether the last quote of a line closes a value.

        Within a value quotes are doubled, so only where it ends does an odd number of them stand
        before a delimiter; the one that opens a value has a delimiter before it.
        """
        for cell in reversed(self._cells(line)):
            if '"' in cell and cell != '""':
                before = cell.rstrip('"')
                return before != "" and (len(cell) - len(before)) % 2 == 1
        return False


def _lines(file: Readable) -> Iterator[bytes]:
    """Yield the lines. They end as the header does: with LF, perhaps after CR, or with CR alone, as
    in old files of Excel for Mac. The other one may stand in a text, so it ends no line."""
    rest = file.readline(BUFFER)
    if not re.match(rb"[^\r\n]*\r(?!\n)", rest):
        yield rest if rest.endswith(b"\n") else rest + file.readline()
        yield from iter(file.readline, b"")
        return
    more = True
    while more:
        *whole, rest = rest.split(b"\r")
        for line in whole:
            yield line + b"\r"
        block = file.read(max(BUFFER, len(rest)))
        more = bool(block)
        rest += block
    if rest:
        yield rest


def _decoded(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"{path}, line {number} is not UTF-8; save the file as CSV in UTF-8, or convert "
                "it, for instance: iconv -f WINDOWS-1252 -t UTF-8"
            ) from None

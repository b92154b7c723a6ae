"""Rows of tables in text files: CSV and TSV, packed or not, with a header."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from userlm.lines import LONGEST, Line, bad_line, opened
from userlm.types import InputError

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
DELIMITERS = ",;\t"
"""What may separate the values of a `.csv` file: Excel writes semicolons in many countries."""

LINES_OF_ROWS = 4
COLUMNS_OF_A_LIST = 2
"""A value with fewer lines, or with so few delimiters in each, is taken for a text."""


def read_table(path: Path, size: int, longest: int = LONGEST) -> Iterator[Line]:
    """Yield the rows in the first `size` bytes of a table, including bad ones: objects of texts,
    by the names of the columns. A value may have line breaks; the number of a row is that of its
    first line.

    Args:
        longest: set aside rows with a value of more characters than this.

    Raises:
        InputError: if it is not UTF-8, or its header has a name twice.
    """
    csv.field_size_limit(longest)
    with opened(path, size) as file:
        lines = _decoded(path, iter(file.readline, b""))
        header = next(lines, "")
        delimiter = max(DELIMITERS, key=header.count)
        if ".tsv" in path.suffixes:
            delimiter = "\t"
        [names] = csv.reader([header], delimiter=delimiter)
        names = [name.strip() for name in names]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise InputError(
                f"{path}: its header has two columns of the name {repeated[0]!r}; rename one"
            )
        yield from _rows(lines, names, delimiter)


def _rows(lines: Iterator[str], names: list[str], delimiter: str) -> Iterator[Line]:
    """Yield the rows after the header.

    A quote that is not closed would take all lines up to the next quote, or the end of the file,
    into its value. So of a bad row over several lines only the first is set aside.
    """
    waiting: deque[str] = deque()
    taken: list[str] = []  # the lines of this row

    def reader() -> Iterator[list[str]]:
        source = _taking(waiting, lines, taken)
        return csv.reader(source, delimiter=delimiter, strict=True)

    rows = reader()
    number = 2
    while True:
        number += len(taken)
        taken.clear()
        values: list[str] = []
        try:
            values = next(rows, values)
            problem = _problem(values, taken, len(names), delimiter)
        except csv.Error as error:
            problem = f"is not CSV: {error}"
        if not taken:
            return
        if not problem:
            if values:
                yield Line(number, dict(zip(names, values, strict=True)))
            continue
        if len(taken) > 1:
            problem += "; a quote in it is not closed, or its lines are damaged"
            waiting.extendleft(reversed(taken[1:]))
            del taken[1:]
            rows = reader()
        yield bad_line(number, taken[0].encode(), "not CSV", problem)


def _taking(
    waiting: deque[str], lines: Iterator[str], taken: list[str]
) -> Iterator[str]:
    """Yield the lines that wait, then the others, and note which were taken."""
    while line := waiting.popleft() if waiting else next(lines, ""):
        taken.append(line)
        yield line


def _problem(values: list[str], taken: list[str], count: int, delimiter: str) -> str:
    """Return why the values of a row cannot be used; empty if they can."""
    if values and len(values) != count:
        return f"has {len(values)} values, and the header {count}"
    # Texts of several lines are common; few have lines with as many delimiters as a row.
    is_long = len(taken) >= LINES_OF_ROWS and count > COLUMNS_OF_A_LIST
    if is_long and all(line.count(delimiter) == count - 1 for line in taken):
        return f"has {len(taken)} lines that are rows themselves"
    return ""


def _decoded(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"{path}, line {number} is not UTF-8; save the file as CSV in UTF-8, or convert "
                "it, for instance: iconv -f WINDOWS-1252 -t UTF-8"
            ) from None

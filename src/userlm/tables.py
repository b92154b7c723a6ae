"""Rows of tables in text files: CSV and TSV, packed or not, with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from userlm.lines import LONGEST, Line, bad_line, opened
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
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            number = rows.line_num + 2  # after the header
            try:
                values = next(rows, None)
            except csv.Error as error:
                yield bad_line(number, b"", "not CSV", f"is not CSV: {error}")
                continue
            if values is None:
                return
            if len(values) == len(names):
                yield Line(number, dict(zip(names, values, strict=True)))
            elif values:
                problem = f"has {len(values)} values, and the header {len(names)}"
                raw = delimiter.join(values).encode()
                yield bad_line(number, raw, "not CSV", problem)


def _decoded(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"{path}, line {number} is not UTF-8; save the file as CSV in UTF-8, or convert "
                "it, for instance: iconv -f WINDOWS-1252 -t UTF-8"
            ) from None

"""The lines of text files: JSON lines, packed or not, and JSON."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from userlm.json_files import dump, loads
from userlm.types import InputError

BUFFER = 1 << 20  # bytes; a single conversation would fill the default buffer


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file: its object, or its text and the error, as a short reason and as a
    sentence."""

    number: int
    row: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    error: str = ""
    raw: str = ""


def read_lines(path: Path, size: int) -> Iterator[Line]:
    """Yield the lines in the first `size` bytes of a text file, including bad ones.

    Raises:
        InputError: if the file is damaged, or is UTF-16.
    """
    number = 0
    try:
        with path.open("rb", buffering=BUFFER) as file:
            zipped: gzip.GzipFile | None = None
            if path.suffix == ".gz":
                zipped = gzip.GzipFile(fileobj=_Upto(file, size))  # type: ignore[call-overload]
            if path.name.endswith((".json", ".json.gz")):
                yield from _read_json(path, (zipped or file).read())
                return
            for number, raw in enumerate(zipped or _lines_upto(file, size), 1):
                if number == 1:
                    raw = _without_byte_order_mark(path, raw)
                if not raw.isspace():
                    yield parse_line(number, raw)
    except (EOFError, zlib.error, OSError) as error:
        raise _read_error(path, number, error) from None


def _lines_upto(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield the lines of the first `size` bytes of a file that may grow."""
    for raw in file:
        size -= len(raw)
        if size >= 0:
            yield raw
            continue
        rest = raw[:size]  # a line that has grown since, perhaps from an incomplete one
        if rest.strip() and not parse_line(0, rest).error:
            yield rest
        return


class _Upto:
    """The first bytes of a file that may grow, for `GzipFile`."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes; by default all remaining ones."""
        found = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(found)
        return found


def _without_byte_order_mark(path: Path, first_line: bytes) -> bytes:
    if first_line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(
            f"{path} is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8"
        )
    return first_line.removeprefix(b"\xef\xbb\xbf")


def _read_error(path: Path, number: int, error: Exception) -> InputError:
    """Return the error after line `number`."""
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return InputError(f"{path} cannot be read: {error.strerror or error}")
    problem = f"is cut short or damaged after line {number}"
    if number == 0 and isinstance(error, gzip.BadGzipFile):
        problem = "is not a gzip file"
    return InputError(
        f"{path} {problem}; download it again, or unpack the readable part with `gzip -dc`"
    )


def _read_json(path: Path, raw: bytes) -> Iterator[Line]:
    try:
        value = loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); download it again") from None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise InputError(
            f"{path} is neither an array nor an object; give an array with one conversation per "
            f"item"
        )
    for number, row in enumerate(value, 1):
        yield make_line(number, row)


def parse_line(number: int, raw: bytes) -> Line:
    """Parse one line of a file of JSON lines."""
    try:
        return make_line(number, loads(raw, "utf-8"), raw)
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"
        return bad_line(number, raw, "not UTF-8", problem)
    except RecursionError:
        return bad_line(number, raw, *_TOO_DEEP)
    except ValueError as error:
        where = ""
        if isinstance(error, json.JSONDecodeError):
            where = f" (column {error.colno}: {error.msg})"
        problem = f"is not JSON{where}; write one JSON object per line"
        return bad_line(number, raw, "not JSON", problem)


def bad_line(number: int, raw: bytes, reason: str, problem: str) -> Line:
    """Return a line that cannot be used, with its text."""
    text = raw.decode("utf-8", "backslashreplace").rstrip("\n")
    return Line(number, {}, reason, problem, text)


DEEPEST = 200
"""Maximum nesting of lists and objects in a row: a deeper one is not a log, and cannot be
written."""

_TOO_DEEP = ("nested too deep", f"is nested more than {DEEPEST} levels deep")


def make_line(number: int, value: Any, raw: bytes = b"") -> Line:
    """Return the line of a value, parsed from this text, if any: it must be an object."""
    # Counting is faster than parsing.
    may_be_deep = not raw or raw.count(b"[") + raw.count(b"{") > DEEPEST
    if may_be_deep and isinstance(value, dict | list) and is_deep(value):
        return bad_line(number, raw, *_TOO_DEEP)
    if isinstance(value, dict):
        return Line(number, value)
    kinds = {list: "an array", str: "a string", type(None): "null"}
    kind = kinds.get(type(value), "a number or boolean")
    problem = f"is {kind}, not a JSON object"
    return bad_line(number, raw or dump(value), "not an object", problem)


def is_deep(value: Any, levels: int = DEEPEST) -> bool:
    """Return whether lists and objects are nested deeper than this."""
    level = [value]
    for _ in range(levels):
        inner = []
        for one in level:
            items = one.values() if isinstance(one, dict) else one
            inner += [item for item in items if isinstance(item, dict | list)]
        if not inner:
            return False
        level = inner
    return True

"""Rows in text files: the lines of JSON lines, and the items of a JSON array, packed or not."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from userlm.json_files import dump, given_twice, loads
from userlm.types import InputError

BUFFER = 1 << 20  # bytes; a single conversation would fill the default buffer


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a file: its object, or its text and the error, as a short reason and as a
    sentence.

    Attributes:
        number: of the line, or of the item in an array, from 1.
        raw: the text of a bad one; only its beginning if it is too long.
    """

    number: int
    row: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    error: str = ""
    raw: str = ""


LONGEST = 1 << 30
"""Bytes: the longest row that is read if nothing else is asked for; a longer one might not fit into
memory."""
LONGEST_LOG = 64 << 20
"""Bytes: the same for the logs of others. A longer row is no conversation."""
MOST_VALUES = 2_000_000
"""Brackets and commas of a row of the logs of others: each value in memory takes many times as much
as in the file. Those within texts count too, so our own rows may have any number."""


def read_lines(
    path: Path, size: int, longest: int = LONGEST, most_values: int = LONGEST
) -> Iterator[Line]:
    """Yield the rows of a text file, including bad ones; of JSON lines those in the first `size`
    bytes.

    The content decides what a row is, not the name of the file: a line of JSON lines, an item of an
    array, or the only object. Memory use is constant, except for the longest row.

    Args:
        longest: set aside rows of more bytes than this.
        most_values: set aside rows with more brackets and commas than this.

    Raises:
        InputError: if the file is damaged, is UTF-16, or is named `.json` and is not JSON.
    """
    number = 0
    try:
        size_now = path.stat().st_size
        form = _form(path, size_now)
        if form != "lines":
            size = size_now  # it cannot grow: it was written anew
        with opened(path, size) as file:
            for number, (raw, length) in enumerate(_ROWS[form](file, longest), 1):
                text = raw.removeprefix(_BYTE_ORDER_MARK)
                if not text.strip():
                    continue
                if length > longest:
                    yield long_line(number, text, length, longest)
                    continue
                if _has_more_values(text, most_values):
                    problem = f"has more than {most_values:,} brackets and commas"
                    yield bad_line(number, text, "too many values", problem)
                    continue
                line = parse_line(number, text)
                is_half = form == "lines" and not raw.endswith(b"\n")
                if is_half and line.error and path.stat().st_size > size:
                    return  # it was being written when reading began
                yield line
    except (EOFError, zlib.error, OSError) as error:
        raise read_error(path, number, error) from None


class _Upto:
    """The first bytes of a file that may grow, also for `GzipFile`."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes; by default all remaining ones."""
        return self._count(self._file.read(self._most(size)))

    def readline(self, size: int = -1) -> bytes:
        """Read to the end of the line, but at most `size` bytes."""
        return self._count(self._file.readline(self._most(size)))

    def _most(self, size: int) -> int:
        return self._left if size < 0 else min(size, self._left)

    def _count(self, found: bytes) -> bytes:
        self._left -= len(found)
        return found


Readable = _Upto | gzip.GzipFile


@contextmanager
def opened(path: Path, size: int) -> Iterator[Readable]:
    """Open the first `size` bytes of a file, unpacked if its name ends in `.gz`."""
    with path.open("rb", buffering=BUFFER) as file:
        content = _Upto(file, size)
        if path.suffix.lower() == ".gz":
            yield gzip.GzipFile(fileobj=content)  # type: ignore[call-overload]
        else:
            yield content


def read_error(path: Path, number: int, error: Exception) -> InputError:
    """Return the error of reading a file, after row `number`."""
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return InputError(f"{path} cannot be read: {error.strerror or error}")
    problem = "is cut short or damaged"
    if number:
        problem += f" after line {number}"
    remedy = "download it again"
    if path.suffix.lower() == ".gz":
        remedy += ", or unpack the readable part with `gzip -dc`"
    if number == 0 and isinstance(error, gzip.BadGzipFile):
        problem = "is not a gzip file"
    return InputError(f"{path} {problem}; {remedy}")


# --- where rows begin and end ---------------------------------------------------------------------

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BEGINNING = 1000  # bytes that are kept of a row that is too long

_Raw = tuple[bytes, int]
"""The text of a row, or the beginning of one that is too long, and its length in bytes."""


def _form(path: Path, size: int) -> str:
    """Return what the rows of a file are, a key of `_ROWS`, from its first line with text."""
    with opened(path, size) as file:
        first = b"\n"
        while first and not first.removeprefix(_BYTE_ORDER_MARK).strip():
            first = file.readline(BUFFER)
        if first.startswith(_UTF16_MARKS):
            raise InputError(
                f"{path} is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8"
            )
        first = first.removeprefix(_BYTE_ORDER_MARK).lstrip()
        is_whole = _is_json(first)
        if first.startswith(b"["):
            return "lines" if _is_bad_line(first, is_whole, file) else "array"
        # Of an object over several lines, which tools print for people, the first is short.
        is_long = len(first) >= BUFFER
        if is_whole or is_long or not first:
            return "lines"
        if first.startswith(b"{") and _is_json(first + file.read(LONGEST_LOG)):
            return "object"
    if ".json" in map(str.lower, path.suffixes):
        raise InputError(
            f"{path} is not JSON; download it again, or if it has one JSON object per line, rename "
            f"it to .jsonl"
        )
    return "lines"


def _is_json(raw: bytes) -> bool:
    if _has_more_values(raw, MOST_VALUES):
        return True
    try:
        loads(raw)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _is_bad_line(first: bytes, is_whole: bool, file: Readable) -> bool:
    """Return whether a line that begins with a bracket begins no array of rows but is a bad line of
    JSON lines: the time stamp of a log, as in `[12:00] start`, or the end of a row that was cut."""
    item = first[1:].lstrip()
    if item and item[:1] not in b"{[]":
        return True
    if not is_whole:
        try:
            json.loads(first.decode("utf-8", "replace"), strict=False)
        except (ValueError, RecursionError) as error:
            is_whole = str(error).startswith("Extra data")
    return is_whole and file.readline(BUFFER).startswith(b"{")


def _lines(file: Readable, longest: int) -> Iterator[_Raw]:
    while raw := file.readline(longest + len(b"\n")):
        length = len(raw.rstrip(b"\n"))
        if length > longest:
            raw = raw[:BEGINNING]
            more = b" "
            while more and not more.endswith(b"\n"):
                more = file.readline(BUFFER)
                length += len(more.rstrip(b"\n"))
        yield raw, length


def _items(file: Readable, longest: int) -> Iterator[_Raw]:
    item = bytearray()
    lost = 0  # bytes of this item that were not kept
    for piece, is_last in _pieces(file):
        item += piece
        if len(item) > longest:
            lost += len(item[BEGINNING:])
            del item[BEGINNING:]
        if not is_last:
            continue
        if text := item.strip():
            yield bytes(text), len(text) + lost
        item.clear()
        lost = 0


_MARK = re.compile(rb'["\[\]{},]')
_QUOTE, _BACKSLASH, _COMMA, _BRACE = b'"\\,}'
_LEVELS = {ord("["): 1, ord("{"): 1, ord(","): 0, ord("]"): -1, ord("}"): -1}


def _pieces(file: Readable) -> Iterator[tuple[bytes, bool]]:
    """Yield the pieces of the items of an array, and whether the item ends with it.

    Raises:
        EOFError: the array does not end.
    """
    depth = 0
    in_text = False
    rest = b""
    while block := file.read(BUFFER):
        block = rest + block
        end = len(block) - _backslashes(block, len(block)) % 2
        rest = block[end:]  # it escapes what follows
        position = start = 0
        while position < end:
            if in_text:
                # Nearly all of a log is text, and `find` is many times as fast as a pattern.
                quote = block.find(b'"', position, end)
                position = end if quote < 0 else quote + 1
                in_text = quote < 0 or _backslashes(block, quote) % 2 == 1
                continue
            token = _MARK.search(block, position, end)
            if token is None:
                break
            position = token.end()
            mark = block[position - 1]
            if mark == _QUOTE:
                in_text = True
                continue
            before = depth
            if mark == _COMMA and depth == 0:
                depth = 1  # it goes on: a bracket too many closed it
            elif mark != _BRACE or depth > 1:  # no brace closes an array
                depth = max(depth + _LEVELS[mark], 0)
            # A mark of the array itself: it opens, closes, or separates two items.
            if before <= 1 and depth <= 1 and before + depth:
                yield block[start : position - 1], True
                start = position
        yield block[start:end], False
    if depth or in_text:
        raise EOFError
    yield rest, True  # text after the array, if any


def _backslashes(block: bytes, end: int) -> int:
    """Return how many backslashes stand before this position."""
    start = end
    while start and block[start - 1] == _BACKSLASH:
        start -= 1
    return end - start


def _object(file: Readable, longest: int) -> Iterator[_Raw]:
    raw = file.read(longest + 1)
    read = len(raw)
    length = len(raw.rstrip())  # blanks after it, perhaps gigabytes, do not count
    while more := file.read(BUFFER):
        if text := more.rstrip():
            length = read + len(text)
        read += len(more)
    yield raw, length


_ROWS = {"lines": _lines, "array": _items, "object": _object}


# --- rows -----------------------------------------------------------------------------------------


def parse_line(number: int, raw: bytes) -> Line:
    """Parse one line of a file of JSON lines."""
    try:
        value = loads(raw)
        if name := given_twice(value, raw):
            return bad_line(number, raw, "not JSON", f"has the field {name!r} twice")
        return make_line(number, value, raw)
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


def _has_more_values(raw: bytes, most: int) -> bool:
    # Nearly all rows are shorter, and need not be counted.
    return len(raw) > most and sum(map(raw.count, b"[{,")) > most


def long_line(number: int, raw: bytes, length: int, longest: int) -> Line:
    """Return a line that is too long to be used, with its beginning."""
    problem = f"is {length:,} bytes long; the longest that is read is {longest:,}"
    return bad_line(number, raw[:BEGINNING], "too long", problem)


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
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inner = []
        for one in level:
            items = one.values() if isinstance(one, dict) else one
            inner += [item for item in items if isinstance(item, dict | list)]
        if not inner:
            return False
        level = inner
    return True

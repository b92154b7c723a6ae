"""Conversations and other rows in files: JSON lines (`.jsonl` or `.ndjson`) and `.json`, packed as
`.gz` or not, `.parquet`, and tables (`.csv`, `.tsv`)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from os import SEEK_END
from pathlib import Path
from typing import Any, TypeVar

from userlm import items
from userlm.json_files import dump, dumps, take, write_lines, write_parquet
from userlm.lines import LONGEST, Line, bad_line, long_line, make_line, read_lines
from userlm.tables import TABLES, Quotes, read_table
from userlm.text import has_words
from userlm.types import Conversation, InputError, Origin, Turn

T = TypeVar("T")

SPLITS = ("train", "valid", "test")


# --- conversations --------------------------------------------------------------------------------


_FIELDS = frozenset(
    ("id", "turns", "intent", "user", "stop", "ended", "meta", "origin")
)
OLDER_KEYS = frozenset(("conversation", "own_from", "target", "repeat", "last"))
"""The keys in `meta` in which version 0.1 recorded where a conversation comes from. `import` skips
fields with these names, so that a log is not mistaken for a run of that version."""

_OLDER = ({"own_from"}, {"conversation", "repeat"}, {"task", "repeat"})
"""The `meta` of every conversation that version 0.1 simulated has all keys of one of these sets."""


def to_record(conversation: Conversation) -> dict[str, Any]:
    """Return a conversation as a JSON object; empty fields are left out."""
    turns: list[dict[str, Any]] = []
    for turn in conversation.turns:
        record: dict[str, Any] = {"role": turn.role, "text": turn.text}
        if turn.meta:
            record["meta"] = dict(turn.meta)
        turns.append(record)
    optional = {
        "intent": conversation.intent,
        "user": conversation.user,
        "stop": conversation.stop,
        "ended": conversation.ended,
        "meta": dict(conversation.meta),
    }
    if conversation.origin:
        origin = asdict(conversation.origin)
        optional["origin"] = {
            name: value for name, value in origin.items() if value is not None
        }
    filled = {name: value for name, value in optional.items() if value}
    return {"id": conversation.id, "turns": turns, **filled}


def from_record(record: Mapping[str, Any]) -> Conversation:
    """Return the conversation that `to_record` wrote.

    Raises:
        ValueError: if a field is wrong; the message names it.
    """
    if unknown := record.keys() - _FIELDS:
        name = sorted(unknown)[0]
        raise ValueError(
            f"unknown field {name!r}; if this is a log, run `userlm import` first"
        )
    turns = take(record, "turns", list)
    meta = take(record, "meta", dict, default={})
    if any(keys <= meta.keys() for keys in _OLDER):
        raise ValueError(
            "an older version of userlm wrote this conversation; run the command that made it again"
        )
    conversation = Conversation(
        id=take(record, "id", str),
        turns=tuple(_turn(turn, f"turns[{i}]") for i, turn in enumerate(turns)),
        intent=take(record, "intent", str, default=None) or None,
        user=take(record, "user", str, default=None) or None,
        stop=take(record, "stop", str, default=None),
        ended=take(record, "ended", bool, default=False),
        meta=meta,
        origin=_origin(take(record, "origin", dict, default=None)),
    )
    turns_of_user = len(conversation.user_turns)
    if not 0 <= conversation.first_own_turn <= turns_of_user:
        raise ValueError(
            f"origin.first_own_turn is {conversation.first_own_turn}; it must be from 0 to "
            f"{turns_of_user}, the number of user turns"
        )
    items.check(conversation)
    return conversation


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise ValueError(f"{where} is not an object")
    text = take(turn, "text", str, where)
    meta = take(turn, "meta", dict, where, default={})
    return Turn(turn.get("role", ""), text, meta)


_ORIGIN_FIELDS = {
    "conversation": str,
    "first_own_turn": int,
    "target": str,
    "person_ended": bool,
    "repeat": int,
    "task": str,
}


def _origin(record: Mapping[str, Any] | None) -> Origin | None:
    if record is None:
        return None
    if unknown := record.keys() - _ORIGIN_FIELDS.keys():
        raise ValueError(f"unknown field 'origin.{sorted(unknown)[0]}'")
    values = {
        name: take(record, name, kind, "origin")
        for name, kind in _ORIGIN_FIELDS.items()
        if name in record
    }
    origin = Origin(**values)
    if not 0 <= origin.repeat < 2**31:
        raise ValueError(f"origin.repeat is {origin.repeat}; it must be a small number")
    return origin


def read_conversations(
    path: str | Path, may_be_empty: bool = False, kind: items.Kind | None = None
) -> Iterator[Conversation]:
    """Yield the conversations of a `.jsonl`, `.jsonl.gz` or `.parquet` file of this package.

    Args:
        may_be_empty: see `read_rows`.
        kind: all of them must be test items of this kind.

    Raises:
        InputError: the message names the file, line and field.
    """
    seen: set[int] = set()  # hashes of ids, since a file may have millions
    for line in read_rows(path, may_be_empty):
        try:
            if line.error:
                raise ValueError(line.error)
            conversation = from_record(line.row)
            items.check(conversation, kind)
        except ValueError as error:
            raise InputError(f"{path}, line {line.number}: {error}") from None
        if hash(conversation.id) in seen:
            same_id = (
                one for one in read_rows(path) if one.row.get("id") == conversation.id
            )
            raise InputError(
                f"{path}, line {line.number}: id {conversation.id!r} was already used on line "
                f"{next(same_id).number}; ids must be unique"
            )
        seen.add(hash(conversation.id))
        yield conversation


def read_parsed(
    path: Path,
    parse: Callable[[Line], T],
    advice: str = "",
    may_be_empty: bool = False,
) -> Iterator[T]:
    """Yield what `parse` makes of each line of a file.

    Args:
        parse: raises `ValueError` for a row that cannot be used.
        advice: ends the message.
        may_be_empty: see `read_rows`.

    Raises:
        InputError: the message names the file, line and what is wrong.
    """
    yield from parsed(path, read_rows(path, may_be_empty), parse, advice)


def parsed(
    path: Path, lines: Iterable[Line], parse: Callable[[Line], T], advice: str = ""
) -> Iterator[T]:
    """Yield what `parse` makes of some lines of a file; see `read_parsed`."""
    for line in lines:
        try:
            if line.error:
                raise ValueError(line.error)
            found = parse(line)
        except ValueError as error:
            raise InputError(f"{path}, line {line.number}: {error}{advice}") from None
        yield found


def read_starts(path: Path) -> Iterator[Conversation]:
    """Yield the conversations of a file, or one without turns for each intent of a file that has
    only these: lines of text (`.txt`), or rows with `intent` and perhaps `id`.

    Raises:
        InputError: the message names the file, line and field.
    """
    if path.suffix == ".txt":
        yield from _text_intents(path)
        return
    if not has_only_intents(path):
        yield from read_conversations(path)
        return
    seen: set[str] = set()

    def parse(line: Line) -> Conversation:
        if unknown := line.row.keys() - {"id", "intent"}:
            raise ValueError(
                f"unknown field {min(unknown)!r}; beside intents without turns there may be only "
                "ids"
            )
        intent = take(line.row, "intent", str)
        if not has_words(intent):
            raise ValueError("field 'intent' is empty")
        id = take(line.row, "id", str, default=f"intent-{line.number}")
        if id in seen:
            raise ValueError(f"id {id!r} was used before; ids must be unique")
        seen.add(id)
        return Conversation(id, intent=intent)

    yield from read_parsed(path, parse)


def has_only_intents(path: Path) -> bool:
    """Return whether a file has intents alone, which somebody wrote for `read_starts`."""
    if path.suffix == ".txt":
        return True
    first = next(read_rows(path))
    return not first.error and "turns" not in first.row and "intent" in first.row


def _text_intents(path: Path) -> Iterator[Conversation]:
    try:
        # `splitlines` would also split at U+2028 and the like, which people paste.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read its intents: {error}") from None
    if not any(map(has_words, lines)):
        raise InputError(f"{path} is empty; write one intent a line")
    for number, line in enumerate(lines, 1):
        if has_words(line):
            yield Conversation(f"intent-{number}", intent=line.strip())


def write_conversations(path: str | Path, conversations: Iterable[Conversation]) -> int:
    """Write a `.jsonl`, `.jsonl.gz` or `.parquet` file atomically, and return the number of
    conversations."""
    path = Path(path)
    if path.suffix == ".parquet":
        rows = [_parquet_row(conversation) for conversation in conversations]
        write_parquet(path, rows, _parquet_columns())
        return len(rows)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(
            f"{path}: its kind is unknown; give a .jsonl, .jsonl.gz or .parquet file"
        )
    return write_lines(path, map(to_record, conversations))


def _parquet_row(conversation: Conversation) -> dict[str, Any]:
    """A conversation as a row of parquet; `meta` and `origin` are JSON texts."""
    record = to_record(conversation)
    turns = [{**turn, "meta": dumps(turn.get("meta", {}))} for turn in record["turns"]]
    return {
        **record,
        "turns": turns,
        "ended": conversation.ended,
        "meta": dumps(record.get("meta", {})),
        "origin": dumps(record.get("origin")),
    }


def _parquet_columns() -> dict[str, Any]:
    import polars as pl

    text = pl.String()
    turn = pl.Struct({"role": text, "text": text, "meta": text})
    columns = dict.fromkeys(("id", "intent", "user", "stop", "meta", "origin"), text)
    return {**columns, "turns": pl.List(turn), "ended": pl.Boolean()}


# --- rows of any file -----------------------------------------------------------------------------


LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
KINDS = (*LINES, ".json", ".json.gz", ".parquet")
"""The files that `read_rows` reads, beside tables (`TABLES`)."""
READABLE = (*KINDS, *TABLES)


def kind_of(name: str) -> str:
    """Return which of `READABLE` a file is by its name, in capitals or not; empty if it is none."""
    return next((kind for kind in READABLE if name.lower().endswith(kind)), "")


NO_COLUMNS: Collection[str] = ()


def read_rows(
    path: str | Path,
    may_be_empty: bool = False,
    unread: Callable[[Collection[str]], Collection[str]] = lambda columns: NO_COLUMNS,
    upto: int | None = None,
    longest: int = LONGEST,
    most_values: int = LONGEST,
    quotes: Quotes = "auto",
) -> Iterator[Line]:
    """Yield the rows of a file of one of the `READABLE` kinds, including bad lines.

    If the file grows meanwhile, only its content at the start is read. Memory use is constant.

    Args:
        may_be_empty: whether a file may have no rows, as in a run folder; otherwise that is an
            error.
        unread: returns which of the columns of a parquet file to skip.
        upto: read at most this many bytes of a text file, such as its earlier size.
        longest: set aside rows of more bytes than this; in parquet, each value counts 8 more
            than its text.
        most_values: set aside rows of a text file with more brackets and commas, or those of a
            table with more delimiters, than this.
        quotes: how tables are quoted.

    Raises:
        InputError: if the file is missing, empty, cut short or of an unknown kind.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} {problem}; give a file of a known kind ({', '.join(READABLE)})"
        )
    size = path.stat().st_size
    if size == 0:
        if may_be_empty:
            return
        raise InputError(f"{path} is empty; give a file with one conversation per line")
    kind = kind_of(path.name)
    if not kind:
        raise InputError(
            f"{path}: its kind is unknown; known are {', '.join(READABLE)}"
        )
    if kind == ".parquet":
        lines = _read_parquet(path, unread, longest)
    else:
        size = size if upto is None else min(size, upto)
        if kind in TABLES:
            lines = read_table(path, size, longest, most_values, quotes)
        else:
            lines = read_lines(path, size, longest, most_values)
    has_rows = False
    for line in lines:
        has_rows = True
        yield line
    if not has_rows and not may_be_empty:
        raise InputError(
            f"{path} has no lines; give a file with one conversation per line"
        )


def _read_parquet(
    path: Path, unread: Callable[[Collection[str]], Collection[str]], longest: int
) -> Iterator[Line]:
    import polars as pl

    number = 0
    try:
        frame = pl.scan_parquet(path, glob=False)
        schema = frame.collect_schema()
        columns = _parquet_columns()
        del columns["origin"]  # which version 0.1 did not write
        is_ours = all(schema.get(name) == kind for name, kind in columns.items())
        frame = frame.drop(unread(schema.names()))
        frame = frame.with_columns(pl.selectors.float().fill_nan(None))  # as in JSON
        parts = (frame.slice(*part).collect() for part in _parts(path))
        batches = chain.from_iterable(part.iter_slices(500) for part in parts)
        rows = chain.from_iterable(_sized_rows(batch, longest) for batch in batches)
        most = max(_MOST, _MOST_PER_BYTE * path.stat().st_size)
        for number, (row, size) in enumerate(rows, 1):
            most -= size
            if most < 0:
                raise InputError(
                    f"{path} unpacks to more than {_MOST_PER_BYTE:,} times its size, up to row "
                    f"{number:,}; its rows would fill the disk: leave out columns that repeat"
                )
            if size > longest:
                yield long_line(number, b"", size, longest)
            else:
                yield _parse_parquet_row(number, row) if is_ours else Line(number, row)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable parquet file: {reason}") from None
    # Of some damaged files polars reads fewer rows and says nothing.
    if number != (count := _count_parquet(path)):
        raise InputError(
            f"{path} is damaged: it has {number} rows, but says that it has {count}; download it "
            f"again"
        )


_MOST = 1 << 30
"""Bytes to which the smallest file may unpack."""
_MOST_PER_BYTE = 1_000
"""As gzip at most; but a text that rows share is written once in parquet, whatever its length."""
_PART = 512 << 20
"""Bytes of parquet that are unpacked at once; more only if a row has more, or if its neighbours are
much shorter."""
_VALUE = 16
"""Bytes that polars keeps for each value beside its content; in the file, millions of equal ones
take a few bytes together."""
_LARGEST_GROUP = 8 << 30
"""Bytes: to read a part of a row group, polars goes through all of it, so a larger one would take
hours."""


def _parts(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the first row and the number of rows of each part that is unpacked at once: some row
    groups, or a part of one."""
    start = rows = size = 0
    for more, bytes_more in _row_groups(path):
        if bytes_more > _LARGEST_GROUP:
            raise InputError(
                f"{path} has a row group of {bytes_more:,} bytes, unpacked; the largest that is "
                f"read is {_LARGEST_GROUP:,}; write it again with smaller ones"
            )
        if rows and size + bytes_more > _PART:
            yield start, rows
            start += rows
            rows = size = 0
        rows += more
        size += bytes_more
        length = max(1, rows * _PART // max(size, 1))
        while size > _PART and rows > length:
            yield start, length
            start += length
            size -= size * length // rows
            rows -= length
    yield start, rows


def _row_groups(path: Path) -> list[tuple[int, int]]:
    """Return the rows of each row group, and the bytes that they take in memory, from the end of
    the file.

    polars does not tell them. Source: github.com/apache/parquet-format, `FileMetaData`.
    """
    with path.open("rb") as file:
        file.seek(-8, SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, SEEK_END)
        footer = file.read(length)
    try:
        groups = _thrift_struct(iter(footer))[4]
        counts = []
        for group in groups:
            values = sum(chunk[3][5] for chunk in group[1])
            counts.append((group[3], group[2] + _VALUE * values))
        if min(map(min, counts), default=0) < 0:
            raise ValueError
        return counts
    # RuntimeError: nested too deep, or ended within a text.
    except (StopIteration, LookupError, TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{path} is not a readable parquet file: its end is damaged"
        ) from None


def _thrift_struct(data: Iterator[int]) -> dict[int, Any]:
    """Return the fields of a structure in Thrift's compact protocol, by number."""
    fields: dict[int, Any] = {}
    number = 0
    while head := next(data):
        number = number + (head >> 4) if head >> 4 else _thrift_integer(data)
        kind = head & 15
        # Of a field, the kind is the value of a boolean.
        fields[number] = kind == 1 if kind in (1, 2) else _thrift_value(data, kind)
    return fields


def _thrift_value(data: Iterator[int], kind: int) -> Any:
    if kind in (1, 2, 3):
        return next(data)
    if kind in (4, 5, 6):
        return _thrift_integer(data)
    if kind == 7:
        return bytes(next(data) for _ in range(8))
    if kind == 8:
        return bytes(next(data) for _ in range(_thrift_length(data)))
    if kind in (9, 10):
        head = next(data)
        count = head >> 4
        if count == 15:
            count = _thrift_length(data)
        return [_thrift_value(data, head & 15) for _ in range(count)]
    if kind == 12:
        return _thrift_struct(data)
    raise TypeError(kind)  # parquet has no maps


def _thrift_length(data: Iterator[int]) -> int:
    value = shift = 0
    byte = 128
    while byte & 128:
        byte = next(data)
        value |= (byte & 127) << shift
        shift += 7
    return value


def _thrift_integer(data: Iterator[int]) -> int:
    value = _thrift_length(data)
    return (value >> 1) ^ -(value & 1)


def _sized_rows(batch: Any, longest: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the rows of a data frame, each with its bytes; longer ones without their values. At
    most one row, or as much as this, becomes objects of Python, which are many times as large."""
    import polars as pl

    sizes = [_size(pl.col(name), kind) for name, kind in batch.schema.items()]
    lengths = batch.select(pl.sum_horizontal(sizes)).to_series().to_list()
    if sum(lengths) <= longest:
        yield from zip(batch.to_dicts(), lengths, strict=True)
        return
    for place, length in enumerate(lengths):
        row = batch[:0] if length > longest else batch[place : place + 1]
        yield next(iter(row.to_dicts()), {}), length


def _size(value: Any, kind: Any) -> Any:
    """Return the bytes of a column's values as an expression: those of texts, 4 for each null, and
    8 for any other value, list and object."""
    import polars as pl

    own = pl.when(value.is_null()).then(4).otherwise(8).cast(pl.Int64)
    if isinstance(kind, pl.String | pl.Categorical | pl.Enum):
        return own + value.cast(pl.String).str.len_bytes().fill_null(0)
    if isinstance(kind, pl.Binary):
        return own + value.bin.size().fill_null(0)
    if isinstance(kind, pl.Struct):
        fields = kind.to_schema().items()
        inner = [_size(value.struct.field(name), each) for name, each in fields]
        return pl.sum_horizontal(own, *inner)
    if isinstance(kind, pl.Array):
        return _size(value.arr.to_list(), pl.List(kind.inner))
    if isinstance(kind, pl.List):
        inner = value.list.eval(_size(pl.element(), kind.inner))
        return own + inner.list.sum().fill_null(0)
    return own


def _parse_parquet_row(number: int, row: dict[str, Any]) -> Line:
    """Return the line of a row from `_parquet_row`."""
    try:
        row["meta"] = json.loads(row["meta"] or "{}")
        row["origin"] = json.loads(row.get("origin") or "null")
        for turn in row["turns"] or ():
            if turn:
                turn["meta"] = json.loads(turn["meta"] or "{}")
    except (ValueError, RecursionError):
        problem = "has a field 'meta' or 'origin' that is not JSON"
        return bad_line(number, dump(row), "not JSON", problem)
    return make_line(number, row)


def count_rows(paths: Iterable[Path]) -> int | None:
    """Return the number of rows, for a progress bar; `None` if counting would take long."""
    count = 0
    for path in paths:
        try:
            kind = kind_of(path.name)
            if kind == ".parquet":
                count += _count_parquet(path)
                continue
            if kind not in LINES or path.stat().st_size > 1 << 30:
                return None
            opened = gzip.open if kind.endswith(".gz") else open
            with opened(path, "rb") as file:
                while block := file.read(1 << 20):
                    count += block.count(b"\n")
                    if file.tell() > 1 << 32:  # of what is unpacked
                        return None
        except (EOFError, zlib.error, OSError):
            return None  # reading it will say what is wrong
    return count


def _count_parquet(path: Path) -> int:
    import polars as pl

    try:
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise OSError from None

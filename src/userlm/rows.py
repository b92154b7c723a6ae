"""Conversations and other rows in files: `.jsonl`, `.jsonl.gz`, `.json`, `.json.gz` and
`.parquet`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BufferedIOBase, BytesIO
from itertools import chain
from pathlib import Path
from typing import IO, Any

from userlm.types import Conversation, InputError, Origin, Turn, encodable

try:
    import orjson
except ModuleNotFoundError:
    # it may be missing on a host for training only: slower, with the same result
    orjson = None  # type: ignore[assignment]

SPLITS = ("train", "valid", "test")
BUFFER = 1 << 20  # bytes; a single conversation would fill the default buffer


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
    return Conversation(
        id=take(record, "id", str),
        turns=tuple(_turn(turn, f"turns[{i}]") for i, turn in enumerate(turns)),
        intent=take(record, "intent", str, default=None) or None,
        user=take(record, "user", str, default=None) or None,
        stop=take(record, "stop", str, default=None),
        ended=take(record, "ended", bool, default=False),
        meta=meta,
        origin=_origin(take(record, "origin", dict, default=None)),
    )


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
    return Origin(**values)


def read_conversations(
    path: str | Path, may_be_empty: bool = False
) -> Iterator[Conversation]:
    """Yield the conversations of a `.jsonl`, `.jsonl.gz` or `.parquet` file of this package.

    Args:
        may_be_empty: see `read_rows`.

    Raises:
        InputError: the message names the file, line and field.
    """
    seen: set[int] = set()  # hashes of ids, since a file may have millions
    for line in read_rows(path, may_be_empty):
        try:
            if line.error:
                raise ValueError(line.error)
            conversation = from_record(line.row)
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


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file: its object, or its text and the error, as a short reason and as a
    sentence."""

    number: int
    row: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    error: str = ""
    raw: str = ""


KINDS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""The files that `read_rows` reads."""

NO_COLUMNS: Collection[str] = ()


def read_rows(
    path: str | Path,
    may_be_empty: bool = False,
    unread: Callable[[Collection[str]], Collection[str]] = lambda columns: NO_COLUMNS,
    upto: int | None = None,
) -> Iterator[Line]:
    """Yield the rows of a file of one of the `KINDS`, including bad lines.

    If the file grows meanwhile, only its content at the start is read. Memory use is constant,
    except for `.json` (an array, or one object), which is loaded as a whole.

    Args:
        may_be_empty: whether a file may have no rows, as in a run folder; otherwise that is an
            error.
        unread: returns which of the columns of a parquet file to skip.
        upto: read at most this many bytes of a JSON-lines file, such as its earlier size.

    Raises:
        InputError: if the file is missing, empty, cut short or of an unknown kind.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} {problem}; give a file of a known kind ({', '.join(KINDS)})"
        )
    size = path.stat().st_size
    if size == 0:
        if may_be_empty:
            return
        raise InputError(f"{path} is empty; give a file with one conversation per line")
    if not path.name.endswith(KINDS):
        raise InputError(f"{path}: its kind is unknown; known are {', '.join(KINDS)}")
    if path.suffix == ".parquet":
        lines = _read_parquet(path, unread)
    else:
        lines = _read_text(path, size if upto is None else min(size, upto))
    has_rows = False
    for line in lines:
        has_rows = True
        yield line
    if not has_rows and not may_be_empty:
        raise InputError(
            f"{path} has no lines; give a file with one conversation per line"
        )


def _read_text(path: Path, size: int) -> Iterator[Line]:
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
        value = _loads(raw)
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
        yield _line(number, row)


def _loads(raw: bytes, encoding: str | None = None) -> Any:
    """Parse JSON: with orjson, or with the standard library, which accepts more (NaN, lone
    surrogates) and has better errors.

    Args:
        encoding: `None` lets the standard library detect it.
    """
    if orjson is not None:
        try:
            return orjson.loads(raw)
        except ValueError:
            pass
    return json.loads(raw.decode(encoding) if encoding else raw)


def parse_line(number: int, raw: bytes) -> Line:
    """Parse one line of a file of JSON lines."""
    try:
        return _line(number, _loads(raw, "utf-8"), raw)
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"
        return _bad_line(number, raw, "not UTF-8", problem)
    except RecursionError:
        return _bad_line(number, raw, *_TOO_DEEP)
    except ValueError as error:
        where = ""
        if isinstance(error, json.JSONDecodeError):
            where = f" (column {error.colno}: {error.msg})"
        problem = f"is not JSON{where}; write one JSON object per line"
        return _bad_line(number, raw, "not JSON", problem)


def _bad_line(number: int, raw: bytes, reason: str, problem: str) -> Line:
    text = raw.decode("utf-8", "backslashreplace").rstrip("\n")
    return Line(number, {}, reason, problem, text)


DEEPEST = 200
"""Maximum nesting of lists and objects in a row: a deeper one is not a log, and cannot be
written."""

_TOO_DEEP = ("nested too deep", f"is nested more than {DEEPEST} levels deep")


def _line(number: int, value: Any, raw: bytes = b"") -> Line:
    """Return the line of a value, parsed from this text, if any: it must be an object."""
    # Counting is faster than parsing.
    may_be_deep = not raw or raw.count(b"[") + raw.count(b"{") > DEEPEST
    if may_be_deep and isinstance(value, dict | list) and is_deep(value):
        return _bad_line(number, raw, *_TOO_DEEP)
    if isinstance(value, dict):
        return Line(number, value)
    kinds = {list: "an array", str: "a string", type(None): "null"}
    kind = kinds.get(type(value), "a number or boolean")
    problem = f"is {kind}, not a JSON object"
    return _bad_line(number, raw or dump(value), "not an object", problem)


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


def _read_parquet(
    path: Path, unread: Callable[[Collection[str]], Collection[str]]
) -> Iterator[Line]:
    import polars as pl

    try:
        frame = pl.scan_parquet(path, glob=False)
        schema = frame.collect_schema()
        columns = _parquet_columns()
        del columns["origin"]  # which version 0.1 did not write
        is_ours = all(schema.get(name) == kind for name, kind in columns.items())
        frame = frame.drop(unread(schema.names()))
        batches = (batch.to_dicts() for batch in frame.collect_batches(chunk_size=500))
        for number, row in enumerate(chain.from_iterable(batches), 1):
            yield _parse_parquet_row(number, row) if is_ours else Line(number, row)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable parquet file: {reason}") from None


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
        return _bad_line(number, dump(row), "not JSON", problem)
    return _line(number, row)


def count_rows(paths: Iterable[Path]) -> int | None:
    """Return the number of rows, for a progress bar; `None` if counting would take long."""
    count = 0
    for path in paths:
        try:
            if path.suffix == ".parquet":
                count += _count_parquet(path)
                continue
            if (
                not path.name.endswith((".jsonl", ".jsonl.gz"))
                or path.stat().st_size > 1 << 30
            ):
                return None
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rb") as file:
                while block := file.read(1 << 20):
                    count += block.count(b"\n")
        except (EOFError, zlib.error, OSError):
            return None  # reading it will say what is wrong
    return count


def _count_parquet(path: Path) -> int:
    import polars as pl

    try:
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise OSError from None


# --- JSON and whole files -------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run folder; raise `InputError` if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read: {error}; delete the folder and run its command again"
        ) from None
    return value


def dumps(value: Any) -> str:
    """Return JSON on one line, the same text for the same value."""
    return dump(value).decode()


def dump(value: Any) -> bytes:
    """`dumps` in UTF-8."""
    if orjson is not None:
        try:
            return orjson.dumps(
                value, default=str, option=orjson.OPT_PASSTHROUGH_DATETIME
            )
        except (TypeError, ValueError):
            pass  # a lone surrogate, a key that is not a string, or a huge number
    text = json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))
    return encodable(text).encode()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as partial:
        text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
        partial.write_text(encodable(text) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a JSON-lines file atomically, packed if its name ends in `.gz`; return the number of
    lines."""
    count = 0
    with replacing(path) as partial, partial.open("wb") as raw:
        file: BufferedIOBase = raw
        if path.suffix == ".gz":
            # Without file name and time stamp, so that the same lines give the same bytes.
            file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0)
        with file:
            for row in rows:
                file.write(dump(row) + b"\n")
                count += 1
    return count


def write_parquet(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]
) -> None:
    """Write a parquet file atomically; `columns` has their types."""
    import polars as pl

    packed = BytesIO()  # polars raises its own errors for a full disk
    pl.DataFrame(rows, schema=columns).write_parquet(packed)
    with replacing(path) as partial:
        partial.write_bytes(packed.getbuffer())


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Add the file name to a write error: Python names it only in errors of opening."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to. It replaces `path` if there is no error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming(path):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


_REQUIRED = object()


def take(
    row: Mapping[str, Any],
    name: str,
    kind: type,
    inside: str = "",
    default: Any = _REQUIRED,
) -> Any:
    """Return a field of a JSON object; raise `ValueError` that names it if it is missing or of
    another type.

    Args:
        inside: where in the row the object is, such as `turns[0]`, for errors.
    """
    value = row.get(name)
    if isinstance(value, kind):
        return value
    if value is None and default is not _REQUIRED:
        return default
    shown = f"{inside}.{name}" if inside else name
    if value is None:
        raise ValueError(f"field {shown!r} is missing")
    raise ValueError(
        f"field {shown!r} must be a {kind.__name__}, not {type(value).__name__}"
    )

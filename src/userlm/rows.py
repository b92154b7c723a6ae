"""Conversations and other rows in files: `.jsonl`, `.jsonl.gz`, `.json`, `.json.gz` and
`.parquet`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from typing import IO, Any

from userlm.types import Conversation, InputError, Origin, Turn, encodable

try:
    import orjson
except ModuleNotFoundError:  # as on a host that only trains: slower, with the same result
    orjson = None  # type: ignore[assignment]

SPLITS = ("train", "valid", "test")
BUFFER = 1 << 20  # bytes: a conversation fills the usual buffer alone


# --- conversations --------------------------------------------------------------------------------


_FIELDS = frozenset(("id", "turns", "intent", "user", "stop", "ended", "meta", "origin"))
_OLDER_META = ("own_from", "stub")
"""Keys of `meta` that only versions before 0.2 wrote."""


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
        "origin": _origin_record(conversation.origin),
    }
    filled = {name: value for name, value in optional.items() if value}
    return {"id": conversation.id, "turns": turns, **filled}


def _origin_record(origin: Origin | None) -> dict[str, Any] | None:
    if origin is None:
        return None
    return {name: value for name, value in asdict(origin).items() if value is not None}


def from_record(record: Mapping[str, Any]) -> Conversation:
    """Return the conversation that `to_record` wrote.

    Raises:
        ValueError: names the field that is wrong.
    """
    if unknown := record.keys() - _FIELDS:
        name = sorted(unknown)[0]
        raise ValueError(f"unknown field {name!r}; if this is a log, run `userlm import` first")
    turns = take(record, "turns", list)
    meta = take(record, "meta", dict, default={})
    if not meta.keys().isdisjoint(_OLDER_META):
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
    text = turn.get("text")
    meta = turn.get("meta")
    if not isinstance(text, str) or (meta is not None and not isinstance(meta, dict)):
        text = take(turn, "text", str, f"{where}.text")  # says what is wrong
        meta = take(turn, "meta", dict, f"{where}.meta", default={})
    return Turn(turn.get("role", ""), text, meta or {})


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
    return Origin(
        **{name: take(record, name, _ORIGIN_FIELDS[name], f"origin.{name}") for name in record}
    )


def read_conversations(path: str | Path, may_be_empty: bool = False) -> Iterator[Conversation]:
    """Conversations from a `.jsonl`, `.jsonl.gz` or `.parquet` file, as this package writes them.

    Args:
        may_be_empty: see `read_rows`.

    Raises:
        InputError: naming file, line and field.
    """
    seen: set[int] = set()  # ids, by their hashes: a file may hold millions
    for line in read_rows(path, may_be_empty):
        if line.error:
            raise InputError(f"{path}, line {line.number}: {line.error}")
        try:
            conversation = from_record(line.row)
        except ValueError as error:
            raise InputError(f"{path}, line {line.number}: {error}") from None
        if hash(conversation.id) in seen:
            first = next(
                one.number for one in read_rows(path) if one.row.get("id") == conversation.id
            )
            raise InputError(
                f"{path}, line {line.number}: id {conversation.id!r} was already used on line "
                f"{first}; "
                "give each conversation its own"
            )
        seen.add(hash(conversation.id))
        yield conversation


def write_conversations(path: str | Path, conversations: Iterable[Conversation]) -> int:
    """Write them to a `.jsonl`, `.jsonl.gz` or `.parquet` file, all or nothing; how many there
    were."""
    path = Path(path)
    if path.suffix == ".parquet":
        return _write_parquet(path, conversations)
    count = 0
    with replacing(path) as partial, _open_write(partial, path) as file:
        for conversation in conversations:
            file.write(dump(to_record(conversation)) + b"\n")
            count += 1
    return count


def _write_parquet(path: Path, conversations: Iterable[Conversation]) -> int:
    import polars as pl

    rows = [
        {
            "id": c.id,
            "turns": [
                {"role": t.role, "text": t.text, "meta": dumps(dict(t.meta))} for t in c.turns
            ],
            "intent": c.intent,
            "user": c.user,
            "stop": c.stop,
            "ended": c.ended,
            "meta": dumps(dict(c.meta)),
            "origin": dumps(_origin_record(c.origin)),
        }
        for c in conversations
    ]
    with replacing(path) as partial:
        pl.DataFrame(rows, schema=_parquet_columns()).write_parquet(partial)
    return len(rows)


def _parquet_columns() -> dict[str, Any]:
    import polars as pl

    text = pl.String()
    turn = pl.Struct({"role": text, "text": text, "meta": text})
    columns = dict.fromkeys(("id", "intent", "user", "stop", "meta", "origin"), text)
    return {**columns, "turns": pl.List(turn), "ended": pl.Boolean()}


# --- rows of any file -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file: its object, or its text and what is wrong with it, in two words and in a
    sentence."""

    number: int
    row: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    error: str = ""
    raw: str = ""


KINDS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""The files that `read_rows` reads."""


def read_rows(
    path: str | Path,
    may_be_empty: bool = False,
    unread: Callable[[Collection[str]], Collection[str]] = lambda columns: (),
    upto: int | None = None,
) -> Iterator[Line]:
    """The objects of a file of one of the `KINDS`, bad lines among them, one by one; of a file that
    grows meanwhile those that it held when reading began. Only `.json` (an array, or one object) is
    read at once.

    Args:
        may_be_empty: a file without a row is fine, as in a run folder; else it is an error.
        unread: given the columns of a parquet file, those to leave out.
        upto: of a file of lines read at most so many bytes: what it held earlier.

    Raises:
        InputError: for a file that is missing, empty, cut short or of an unknown kind.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {kind}; give a file of a kind that is known ({', '.join(KINDS)})")
    if (size := path.stat().st_size) == 0:
        if may_be_empty:
            return
        raise InputError(f"{path} is empty; give a file with one conversation a line")
    if path.suffix == ".parquet":
        yield from _read_parquet(path, may_be_empty, unread)
        return
    if not path.name.endswith(KINDS):
        raise InputError(f"{path}: its kind is unknown; known are {', '.join(KINDS)}")
    number, any_text = 0, False
    packed, size = path.suffix == ".gz", size if upto is None else min(size, upto)
    try:
        with (
            path.open("rb", buffering=BUFFER) as whole,
            _unzipped(whole, size) if packed else whole as file,
        ):
            if path.name.endswith((".json", ".json.gz")):
                yield from _read_json(path, file.read())
                return
            for number, raw in enumerate(file, 1):
                if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise InputError(
                        f"{path} is UTF-16; turn it to UTF-8: iconv -f UTF-16 -t UTF-8"
                    )
                if not packed and (size := size - len(raw)) < 0:  # written since reading began
                    if raw[:size].strip() and not (line := parse_line(number, raw[:size])).error:
                        yield line
                    return
                if raw.isspace():
                    continue
                any_text = True
                yield parse_line(number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        no_gzip = number == 0 and isinstance(error, gzip.BadGzipFile)
        broken = "is no gzip file" if no_gzip else f"is cut short or damaged after line {number}"
        raise InputError(
            f"{path} {broken}; fetch it again, or unpack what is left with `gzip -dc`"
        ) from None
    if not any_text and not may_be_empty:
        raise InputError(f"{path} holds no lines; give a file with one conversation a line")


def _unzipped(file: IO[bytes], size: int) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=_Upto(file, size), mode="rb")  # type: ignore[call-overload, no-any-return]


class _Upto:
    """The first so many bytes of a file that may grow."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, most: int = -1) -> bytes:
        """At most so many of them."""
        found = self._file.read(self._left if most < 0 else min(most, self._left))
        self._left -= len(found)
        return found


def _read_json(path: Path, raw: bytes) -> Iterator[Line]:
    try:
        value = _loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(value, dict | list):
        raise InputError(
            f"{path} holds no array and no object; give an array with one conversation an item"
        )
    for number, row in enumerate([value] if isinstance(value, dict) else value, 1):
        if isinstance(row, dict | list) and is_deep(row):
            yield Line(number, reason="nested too deep", error=_DEEP)
        else:
            yield (
                Line(number, row) if isinstance(row, dict) else _no_object(number, row, dumps(row))
            )


def _loads(raw: bytes) -> Any:
    if orjson is not None:
        try:
            return orjson.loads(raw)  # which takes more levels
        except ValueError:
            pass  # as in `_parse`
    return json.loads(raw)


def parse_line(number: int, raw: bytes) -> Line:
    if orjson is not None:
        try:
            row = orjson.loads(raw)
        except ValueError:
            pass  # the slow way knows more forms (NaN, lone surrogates) and says what is wrong
        else:
            if isinstance(row, dict):
                if raw.count(b"[") + raw.count(b"{") > DEEPEST and is_deep(row):
                    return Line(
                        number, reason="nested too deep", error=_DEEP, raw=raw.decode().rstrip("\n")
                    )
                return Line(number, row)
            return _no_object(number, row, raw.decode().rstrip("\n"))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        kept = raw.decode("utf-8", "backslashreplace").rstrip("\n")
        where = f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"
        return Line(number, reason="not UTF-8", error=where, raw=kept)
    try:
        row = json.loads(text)
    except RecursionError:
        return Line(number, reason="nested too deep", error=_DEEP, raw=text.rstrip("\n"))
    except ValueError as error:
        where = (
            f" (column {error.colno}: {error.msg})"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        said = f"is not JSON{where}; write one JSON object a line"
        return Line(number, reason="not JSON", error=said, raw=text.rstrip("\n"))
    if isinstance(row, dict) and is_deep(row):
        return Line(number, reason="nested too deep", error=_DEEP, raw=text.rstrip("\n"))
    return (
        Line(number, row) if isinstance(row, dict) else _no_object(number, row, text.rstrip("\n"))
    )


DEEPEST = 200
"""Levels of lists and objects in a row; what is deeper is no log, and cannot be written again."""
_DEEP = f"is nested more than {DEEPEST} levels deep"


def is_deep(value: Any, levels: int = DEEPEST) -> bool:
    """Whether lists and objects lie deeper in each other."""
    level = [value]
    for _ in range(levels):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for several in inner for one in several if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _no_object(number: int, value: Any, raw: str) -> Line:
    kind = {list: "an array", str: "a string", type(None): "null"}.get(
        type(value), "a number or boolean"
    )
    return Line(number, reason="not an object", error=f"is {kind}, not a JSON object", raw=raw)


def _read_parquet(
    path: Path, may_be_empty: bool, unread: Callable[[Collection[str]], Collection[str]]
) -> Iterator[Line]:
    import polars as pl

    try:
        frame = pl.scan_parquet(path, glob=False)
        schema = frame.collect_schema()
        ours = all(schema.get(name) == kind for name, kind in _parquet_columns().items())
        frame = frame.drop(unread(schema.names()))
        batches = (batch.to_dicts() for batch in frame.collect_batches(chunk_size=500))
        i = 0
        for i, row in enumerate(chain.from_iterable(batches), 1):
            yield _unpack(i, row) if ours else Line(i, row)
        if not i and not may_be_empty:
            raise InputError(f"{path} holds no rows; give a file with one conversation a row")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is no readable parquet file: {reason}") from None


def _unpack(number: int, row: dict[str, Any]) -> Line:
    """A row of our own parquet files, in which `meta` and `origin` are JSON texts."""
    try:
        for holder in (row, *(turn for turn in row["turns"] or () if turn)):
            holder["meta"] = json.loads(holder["meta"] or "{}")
        row["origin"] = json.loads(row["origin"] or "null")
    except (ValueError, RecursionError):
        return Line(
            number,
            reason="not JSON",
            error="holds a field 'meta' or 'origin' that is not JSON",
            raw=dumps(row),
        )
    return (
        Line(number, reason="nested too deep", error=_DEEP) if is_deep(row) else Line(number, row)
    )


# --- small things ---------------------------------------------------------------------------------


def count_rows(paths: Iterable[Path]) -> int | None:
    """How many rows there are, for a progress bar; `None` where counting would itself take long."""
    count = 0
    for path in paths:
        try:
            if path.suffix == ".parquet":
                count += _count_parquet(path)
                continue
            if not path.name.endswith((".jsonl", ".jsonl.gz")) or path.stat().st_size > 1 << 30:
                return None
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
                while block := file.read(1 << 20):
                    count += block.count(b"\n")
        except (EOFError, zlib.error, OSError):
            return None  # whoever reads it will say what is wrong
    return count


def _count_parquet(path: Path) -> int:
    import polars as pl

    try:
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise OSError from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run folder; raises `InputError` if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read: {error}; delete the folder and run its command again"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is no JSON object; delete the folder and run its command again")
    return value


def dumps(value: Any) -> str:
    """JSON on one line, the same bytes for the same value."""
    return dump(value).decode()


def dump(value: Any) -> bytes:
    """`dumps` in UTF-8."""
    if orjson is not None:
        try:
            return orjson.dumps(value, default=str, option=orjson.OPT_PASSTHROUGH_DATETIME)
        except (TypeError, ValueError):
            pass  # a lone surrogate, a key that is no text, a huge number
    text = json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))
    return encodable(text).encode()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, all or nothing."""
    with replacing(path) as partial:
        partial.write_text(
            json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n", encoding="utf-8"
        )


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file, all or nothing."""
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(dump(row) + b"\n" for row in rows)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let a write that fails name its file; of Python's own errors only those of opening do."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming(path):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _open_write(partial: Path, path: Path) -> Iterator[BufferedIOBase]:
    if path.name.endswith(
        ".jsonl.gz"
    ):  # without name or time stamp: the same lines give the same bytes
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
            yield packed
    elif path.suffix == ".jsonl":
        with partial.open("wb") as plain:
            yield plain
    else:
        raise InputError(f"{path}: its kind is unknown; give a .jsonl, .jsonl.gz or .parquet file")


_REQUIRED = object()


def take(
    row: Mapping[str, Any], name: str, kind: type, shown: str = "", default: Any = _REQUIRED
) -> Any:
    """A field of a JSON object; raises `ValueError` that names it when it is missing or of another
    kind."""
    value = row.get(name)
    if value is None:
        if default is _REQUIRED:
            raise ValueError(f"field {shown or name!r} is missing")
        return default
    if not isinstance(value, kind):
        raise ValueError(
            f"field {shown or name!r} must be a {kind.__name__}, not {type(value).__name__}"
        )
    return value

"""JSON texts and their fields, and files that are written as a whole: a reader sees the old file or
the new one, never a part."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

from userlm.types import InputError, encodable

try:
    import orjson
except ModuleNotFoundError:
    # it may be missing on a host for training only: slower, with the same result
    orjson = None  # type: ignore[assignment]


# A number of more than 64 bits: orjson makes a float of it, so that different ids would become one.
_HUGE = re.compile(rb"[:,\[]\s*+(?:-[0-9]{19}|[0-9]{20})")


def loads(raw: bytes) -> Any:
    """Parse JSON in UTF-8: with orjson, or with the standard library, which accepts more (lone
    surrogates, huge numbers) and has better errors.

    `NaN` and `Infinity`, which Python writes for a missing number, are `None`.

    Raises:
        ValueError: it is not JSON, or not UTF-8 (`UnicodeDecodeError`).
    """
    if orjson is not None and not _HUGE.search(raw):
        try:
            return orjson.loads(raw)
        except ValueError:
            pass
    return json.loads(raw.decode(), parse_constant=lambda name: None)


def given_twice(value: Any, raw: bytes) -> str | None:
    """Return the name of a field that an object in a JSON text has twice, with two values: parsed,
    only the last one is left. Usually there is none.

    Args:
        value: what `loads` made of the text.
    """
    # A lost field has quotes. Nearly all texts are parsed without losing any.
    is_whole = raw.count(b'"') == dump(value).count(b'"')
    if is_whole and b"\\u0022" not in raw:  # a quote that is not counted
        return None
    names: list[str] = []

    def parsed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        names.extend(name for name, given in pairs if given != found[name])
        return found

    text = raw.decode("utf-8", "surrogatepass")
    json.loads(text, object_pairs_hook=parsed, parse_constant=lambda name: None)
    return names[0] if names else None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run folder; raise `InputError` if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, OSError, RecursionError) as error:
        # The results are made again from answers that were paid for.
        what = "that file" if path.name == "results.json" else "the folder"
        raise InputError(
            f"{path} cannot be read: {error}; delete {what} and run its command again"
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
    with replacing(path) as partial:
        return write_file(partial, rows, is_packed=path.suffix == ".gz")


def write_file(path: Path, rows: Iterable[Mapping[str, Any]], is_packed: bool) -> int:
    """Write a JSON-lines file and return the number of lines."""
    count = 0
    with path.open("wb") as raw:
        file: BufferedIOBase = raw
        if is_packed:
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
    for left in path.parent.glob(f".{escape(path.name)}.*.partial*"):
        if _is_left(left):
            is_folder = left.is_dir() and not left.is_symlink()
            shutil.rmtree(left) if is_folder else left.unlink(missing_ok=True)
    # Two processes that write one file must not write into each other's.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # it may be a link to another file
    try:
        with naming(path):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_left(partial: Path) -> bool:
    """Whether a file that a process began, or a folder of its parts, is not written any more."""
    found = re.search(r"\.([0-9]+)\.partial(\.parts)?$", partial.name)
    if not found:
        return False
    number = int(found[1])
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # of somebody else
        return False
    return number == os.getpid()


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


def at_path(value: Any, path: str, default: Any = _REQUIRED) -> Any:
    """Return the value at a path of names and indices, such as `choices.0.message.content`.

    Raises:
        ValueError: if it is not there, and there is no default; it names the first that is missing,
            and what is there.
    """
    for step in path.split("."):
        is_index = isinstance(value, list) and step.isdecimal()
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif is_index and int(step) < len(value):
            value = value[int(step)]
        elif default is not _REQUIRED:
            return default
        else:
            raise ValueError(f"there is no {step!r} of {path!r}, but {_inside(value)}")
    return value


def _inside(value: Any) -> str:
    """Return in short what a path can lead to from here."""
    match value:
        case Mapping():
            return ", ".join(map(str, value))[:200] or "an empty object"
        case list():
            return f"a list of {len(value)}"
    return dumps(value)[:100]

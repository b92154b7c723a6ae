"""Conversations as a table in parquet, for `datasets.load_dataset("parquet", ...)` and polars."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from userlm.exports.training import Talk, task_of
from userlm.json_files import dump
from userlm.types import messages_of

_BATCH = 4 << 20  # bytes of JSON that become a table at once
_ROWS = 1000  # in a row group, which is written and read as a whole


def write(path: Path, talks: Iterable[Talk]) -> int:
    """Write the table and return how many conversations it has.

    polars makes it from tables of some megabytes beside it, so that it needs the same memory
    however many there are.
    """
    import polars as pl

    text = pl.String()
    message = pl.Struct({"role": text, "content": text})
    schema: dict[str, Any] = {
        **dict.fromkeys(("id", "run"), text),
        "messages": pl.List(message),
        **dict.fromkeys(("intent", "stop", "task"), text),
        "ended": pl.Boolean(),
        "repeat": pl.Int64(),
        "solved": pl.Boolean(),
    }
    count = 0
    with _folder(path) as folder, _os_errors(path):
        parts = []
        for number, lines in enumerate(_batches(map(dump, map(_row, talks)))):
            parts.append(Path(folder, f"{number}.parquet"))
            table = pl.read_ndjson(BytesIO(b"\n".join(lines)), schema=schema)
            table.write_parquet(parts[-1])
            count += len(lines)
        if count:
            whole = pl.scan_parquet(parts, glob=False)
            whole.sink_parquet(path, row_group_size=_ROWS)
    return count


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Raise the error of the system in place of polars' own, as for a full disk."""
    import polars as pl

    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise OSError(f"{path}: {str(error).splitlines()[0]}") from None


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """Yield a folder for parts of a file, by whose name they can be deleted if we are killed."""
    folder = path.with_name(f"{path.name}.parts")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _batches(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _row(talk: Talk) -> dict[str, Any]:
    conversation = talk.conversation
    origin = conversation.origin
    return {
        "id": talk.id,
        "run": talk.source.key,
        "messages": messages_of(conversation.turns),
        "intent": conversation.intent,
        "stop": conversation.stop,
        "task": task_of(conversation) or None,
        "ended": conversation.ended,
        "repeat": origin.repeat if origin else None,
        "solved": talk.source.solved(conversation),
    }

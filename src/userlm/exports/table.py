"""Conversations as a table in parquet, for `datasets.load_dataset("parquet", ...)` and polars."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from userlm.exports.training import Talk, task_of
from userlm.json_files import write_lines
from userlm.types import messages_of


def write(path: Path, talks: Iterable[Talk]) -> int:
    """Write the table and return how many conversations it has.

    polars makes it from JSON lines beside it: rows as objects of Python would take many times as
    much memory.
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
    with TemporaryDirectory(dir=path.parent) as folder:
        lines = Path(folder, "rows.jsonl")
        count = write_lines(lines, map(_row, talks))
        if count:
            pl.scan_ndjson(lines, schema=schema).sink_parquet(path)
    return count


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

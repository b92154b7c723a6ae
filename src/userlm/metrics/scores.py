"""The lines of `scores.jsonl`, the same for all verbs: one for each column, metric and item.

column   a key of results.json: a run, or the system text of the model
metric   the name of the metric
key      the conversation or turn
cluster  what an interval leaves out as a whole: the person, the intent or the task
stats    the numbers that measures are computed from; null: could not be measured
why      the reason if `stats` is null
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from userlm.json_files import take
from userlm.types import MeasureRow

MEASURED = b'"stats":['
"""In the text of each line that `score_line` writes for what could be measured."""


def score_line(column: str, metric: str, row: MeasureRow) -> dict[str, Any]:
    """Return the line of a row."""
    # `asdict` would copy every row deeply: most of the time of writing them.
    return {
        "column": column,
        "metric": metric,
        "key": row.key,
        "cluster": row.cluster,
        "stats": row.stats,
        "why": row.why,
    }


def score_row(line: Mapping[str, Any]) -> MeasureRow:
    """Return the row of a line; raise `ValueError` or `TypeError` if a field is wrong."""
    stats = line.get("stats")
    found = None if stats is None else tuple(map(float, stats))
    key, cluster, why = (take(line, name, str) for name in ("key", "cluster", "why"))
    return MeasureRow(key, cluster, found, why)

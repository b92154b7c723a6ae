"""The tables that show our measures beside the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOT_MEASURED = "–"


def shown(measure: Mapping[str, Any] | None, digits: int = 2) -> str:
    """Return the value of a measure and, if there is one, its interval."""
    if measure is None or measure["value"] is None:
        return NOT_MEASURED
    value, low, high = (measure[key] for key in ("value", "low", "high"))
    if low is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column names the rows; the others are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

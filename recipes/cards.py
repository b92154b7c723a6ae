"""Tables of the cards that the recipes write for the models that they ship."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    shown = (
        [f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows
    )
    lines = [head, ["---"] * len(head), *shown]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def validations(
    log: Iterable[Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the validations in the log of a run, with the mean loss of the steps before each."""
    losses: list[float] = []
    for entry in log:
        losses += [entry["loss"]] if "loss" in entry else []
        if "valid_perplexity" in entry:
            yield entry, f"{sum(losses) / len(losses):.3f}" if losses else "–"
            losses = []

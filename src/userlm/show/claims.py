"""What the perplexities of a run say about intents, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from userlm.metrics.controls import GENERATED, HUMAN, OTHERS, OWN, SPECIFIC
from userlm.show.blocks import Quote, Text
from userlm.show.finished import Finished

CLAIMS = (
    ("the intent helps", OWN, "", True),
    ("on later turns", OWN, ", later turns", True),
    ("on words outside the intent", OWN, ", outside the intent", True),
    ("another's intent is worse than none", OTHERS, "", False),
    ("the person's own intent is better than another's", SPECIFIC, "", True),
)
"""Claims about intents: the text, the ratio that decides it (column and turns), and whether the
claim holds if that ratio is below 1 (else above 1)."""

Measure = Mapping[str, Any]
"""A measure in results.json."""


def blocks(runs: Sequence[Finished]) -> Iterator[Text]:
    """Yield a sentence for each run of `ppl` and each kind of intent."""
    for run in runs:
        if run.verb == "ppl":
            for kind in (HUMAN, GENERATED):
                if answers := claims(run.columns, kind):
                    yield Text((Quote(run.name), f", {kind}: {'; '.join(answers)}."))


def claims(columns: Mapping[str, Mapping[str, Measure]], kind: str) -> list[str]:
    """Return which claims hold for one kind of intent."""
    answers = []
    for claim, column, turns, is_below in CLAIMS:
        ratio = columns.get(column, {}).get(f"{kind}: perplexity ratio{turns}")
        if ratio is not None:
            answers.append(f"{claim}: {_holds(ratio, is_below)}")
    return answers


def _holds(ratio: Measure, is_below: bool) -> str:
    """Return whether the whole interval of a ratio is below 1, or above it."""
    if ratio["low"] is None or ratio["high"] is None:
        return "not known"
    if ratio["low"] <= 1 <= ratio["high"]:
        return "not clear"
    return "yes" if (ratio["high"] < 1) == is_below else "no"

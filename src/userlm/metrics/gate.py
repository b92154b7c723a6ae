"""What a measure must reach for a run to succeed, such as `score=0.7`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from userlm.stats import MIN_CLUSTERS
from userlm.types import InputError

GATED: Mapping[str, str] = {
    "score": "assistant score",
    "coverage": "intent coverage",
}
"""The measures that a gate may be of, by their short names."""
_GATE = re.compile(r"(\w+)=(0|1|0?\.\d+|[01]\.\d+)(?::(low|value))?")


@dataclass(frozen=True, slots=True)
class Gate:
    """A measure and the least that it must be.

    Attributes:
        name: one of `GATED`.
        least: a share, from 0 to 1.
        end: what must be at least that: the lower end of the 95 % interval, or the value.
    """

    name: str
    least: float
    end: Literal["low", "value"] = "low"

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read a gate such as `score=0.7`, `score=0.7:low` or `score=0.7:value`; raise `InputError`
        if it is none."""
        found = _GATE.fullmatch(text)
        if not found or found[1] not in GATED or float(found[2]) > 1:
            raise InputError(
                f"--fail-under {text}: write score=0.7 (or coverage=0.7; a share of 1), with "
                ":low for the lower end of the interval, the default, or :value for the value"
            )
        return cls(found[1], float(found[2]), "value" if found[3] == "value" else "low")

    def failure(self, value: float | None, low: float | None, n: int) -> str:
        """Return in a sentence why a measure does not pass; empty if it does.

        Args:
            value, low: the measure and the lower end of its interval, in percent.
            n: the number of conversations that it was measured on.
        """
        if value is None:
            return f"the {self.name} was not measured"
        least = 100 * self.least
        shown = f"the {self.name} of {n:,} conversations is {value:.1f} %"
        if self.end == "value":
            return "" if value >= least else f"{shown}, less than {least:g} %"
        if low is None:
            return (
                f"{shown}, and fewer than {MIN_CLUSTERS} tasks have no interval whose lower end "
                f"could be {least:g} %; give more tasks, or {self.name}={self.least:g}:value"
            )
        if low >= least:
            return ""
        return f"{shown}, and may be as low as {low:.1f} %, less than {least:g} %"

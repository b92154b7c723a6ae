"""How far two people, rules or models agree that label the same items, and how far beyond chance.

The stats of a row: whether both labels are the same (1 or 0), the label of the first one hot, the
label of the second one hot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from userlm.stats import Array, Statistic, measure, quotient
from userlm.types import Measure, MeasureRow


@dataclass(frozen=True, slots=True)
class Labelled:
    """An item with two labels.

    Attributes:
        cluster: see `MeasureRow`.
        label: the first one; `None` if it is not known.
        hand: the second one, such as that of a person.
        why: why there is no first label.
    """

    key: str
    cluster: str
    label: str | None
    hand: str
    why: str = ""


def agreement(items: Sequence[Labelled]) -> list[Measure]:
    """Return the raw agreement in percent, and Cohen's kappa. An item without a first label counts
    as missing."""
    rows = agreement_rows(items)
    raw = measure(rows, AGREEMENT, "raw agreement")
    beyond_chance = measure(rows, KAPPA, "Cohen's kappa")
    if beyond_chance.value is None and raw.value is not None:
        why = "all labels are the same"
        beyond_chance = replace(beyond_chance, why=why)
    return [
        replace(raw, better="higher", unit="%"),
        replace(beyond_chance, better="higher"),
    ]


def agreement_rows(items: Sequence[Labelled]) -> list[MeasureRow]:
    """Return a row for each item; see above."""
    names = {item.hand for item in items}
    names |= {item.label for item in items if item.label is not None}
    labels = sorted(names)
    rows = []
    for item in items:
        stats = None
        if item.label is not None:
            same = float(item.label == item.hand)
            hots = [float(each == item.label) for each in labels]
            hots += [float(each == item.hand) for each in labels]
            stats = (same, *hots)
        rows.append(MeasureRow(item.key, item.cluster, stats, item.why))
    return rows


def kappa(sums: Array) -> Array:
    """Return Cohen's kappa (1960), (observed - expected) / (1 - expected), from the sums of rows;
    not a number if all labels are the same. Expected is the agreement of two that give their labels
    at random, as often as these two do."""
    observed = sums[..., 0]
    first, second = np.split(sums[..., 1:], 2, axis=-1)
    n = first.sum(axis=-1)
    expected = quotient((first * second).sum(axis=-1), n)
    return quotient(observed - expected, n - expected)


def _percent(sums: Array) -> Array:
    """Return in percent how many of the labels are the same."""
    first, _ = np.split(sums[..., 1:], 2, axis=-1)
    return 100 * quotient(sums[..., 0], first.sum(axis=-1))


AGREEMENT = Statistic(_percent, 0, 100)
KAPPA = Statistic(kappa, -1, 1)

"""From rows to a value with an interval.

A statistic here is a function of the *column sums* of the rows' `stats`: a mean is (sum of x) /
(sum of 1), a perplexity exp(sum of NLL / sum of tokens), an F1 comes from the sums of TP, FP and
FN. So one function gives the value and every resampled value, and a bootstrap over thousands of
clusters is one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from userlm.types import Measure, MeasureRow

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Column sums of shape (..., columns) to values of shape (...)."""


def ratio(sums: Array) -> Array:
    """First column over second: a mean, when the second counts the items."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def percent(sums: Array) -> Array:
    """`ratio` in percent."""
    return 100 * ratio(sums)


def exp_ratio(sums: Array) -> Array:
    """exp of first over second column: perplexity from (negative log-likelihood in nats,
    tokens)."""
    return np.exp(ratio(sums))


def f1_percent(sums: Array) -> Array:
    """100 x 2TP / (2TP + FP + FN) from the columns (TP, FP, FN)."""
    tp, fp, fn = sums[..., 0], sums[..., 1], sums[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(100 * 2 * tp / (2 * tp + fp + fn))


def measure(
    name: str,
    rows: Sequence[MeasureRow],
    statistic: Statistic,
    *,
    better: Literal["higher", "lower", "neither"] = "neither",
    unit: str = "",
    resamples: int = 2000,
    seed: int = 0,
) -> Measure:
    """The statistic of the rows, with a 95 % percentile interval from a bootstrap over clusters.

    Clusters (people, intents) are resampled whole, since the turns of one person are not
    independent.
    """
    sums = _cluster_sums(rows)
    value = low = high = None
    if len(sums):
        value = _finite(statistic(sums.sum(axis=0)))
    if len(sums) > 1 and value is not None:
        low, high = _interval(statistic(_resampled(sums, resamples, seed)))
    return Measure(name, value, low, high, tuple(rows), better, unit)


def difference(
    a: Measure, b: Measure, statistic: Statistic, *, resamples: int = 2000, seed: int = 0
) -> tuple[float | None, float | None, float | None]:
    """Value and 95 % interval of a - b, both measured on the same clusters: a resample draws the
    same people (or intents) for both. Rows whose cluster is missing on one side are left out."""
    shared = {r.cluster for r in a.rows if r.stats} & {r.cluster for r in b.rows if r.stats}
    if not shared:
        return None, None, None
    left, right = (_cluster_sums([r for r in m.rows if r.cluster in shared]) for m in (a, b))
    value = _finite(statistic(left.sum(axis=0)) - statistic(right.sum(axis=0)))
    if len(left) < 2 or value is None:
        return value, None, None
    both = _resampled(np.concatenate([left, right], axis=1), resamples, seed)
    columns = left.shape[1]
    return value, *_interval(statistic(both[:, :columns]) - statistic(both[:, columns:]))


def jackknife(value: float, without: Sequence[float]) -> tuple[float, float]:
    """95 % interval from the values with one cluster left out each time (Efron and Stein, 1981).

    For pairwise measures, where a bootstrap would pair an item with its own copy.
    """
    truncated_tokens = np.asarray(without)
    n = len(truncated_tokens)
    error = float(np.sqrt((n - 1) / n * ((truncated_tokens - truncated_tokens.mean()) ** 2).sum()))
    return value - 1.96 * error, value + 1.96 * error


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Probability that a random positive scores above a random negative, ties counting half."""
    if not len(positives) or not len(negatives):
        return None
    ordered = np.sort(np.asarray(negatives, dtype=float))
    below = np.searchsorted(ordered, positives, side="left")
    not_above = np.searchsorted(ordered, positives, side="right")
    return float((below + not_above).mean() / 2 / len(ordered))


def _cluster_sums(rows: Sequence[MeasureRow]) -> Array:
    """The column sums of each cluster, in the order of the clusters' names: (clusters, columns)."""
    measured = [(row.cluster, row.stats) for row in rows if row.stats is not None]
    if not measured:
        return np.zeros((0, 0))
    names = {name: i for i, name in enumerate(sorted({cluster for cluster, _ in measured}))}
    stats = np.array([stats for _, stats in measured], dtype=np.float64)
    sums = np.zeros((len(names), stats.shape[1]))
    np.add.at(sums, np.array([names[cluster] for cluster, _ in measured]), stats)
    return sums


def _resampled(sums: Array, resamples: int, seed: int) -> Array:
    """Column sums of each resample, clusters drawn with replacement: (resamples, columns).

    In blocks: how often each of 20,000 clusters was drawn in 2,000 resamples would fill 320 MB. The
    draws do not depend on the size of a block.
    """
    rng, n = np.random.default_rng(seed), len(sums)
    found = np.empty((resamples, sums.shape[1]))
    block = max(1, 2_000_000 // n)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = (
            rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        )  # an own range for each resample
        found[start : start + size] = (
            np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n) @ sums
        )
    return found


def _interval(values: Array) -> tuple[float | None, float | None]:
    """The middle 95 % of what could be computed: a resample without any positive has no F1, for
    instance."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None, None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def _finite(value: Array) -> float | None:
    return float(value) if np.isfinite(value) else None

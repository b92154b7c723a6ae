"""Statistics of rows, with confidence intervals.

A statistic here is a function of the *column sums* of the rows' `stats`: a mean is (sum of x) /
(sum of 1), a perplexity exp(sum of NLL / sum of tokens), an F1 comes from the sums of TP, FP and
FN. So one function gives the value and every resampled value, and a bootstrap over thousands of
clusters is one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from userlm.types import Measure, MeasureRow

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Values = Sequence[float] | Array
Rows = Sequence[MeasureRow]
Stats = tuple[float, ...]
"""The numbers of one row."""
Found = Stats | str
"""The numbers of one row, or the reason why there are none."""
Statistic = Callable[[Array], Array]
"""Column sums of shape (..., columns) to values of shape (...)."""
Estimate = tuple[float | None, float | None, float | None]
"""A value and the two ends of its interval."""

TP, FP, FN = range(3)
"""The columns of a row that an F1 is computed from."""

RESAMPLES = 2000
Z_95 = 1.96
"""The 97.5th percentile of the standard normal distribution."""

BLOCK = 2_000_000
"""Number of cluster indices in one block of samples: 16 MB."""


# --- statistics -----------------------------------------------------------------------------------


def ratio(sums: Array) -> Array:
    """Return the first column over the second: a mean, if the second counts the items."""
    return _quotient(sums[..., 0], sums[..., 1])


def percent(sums: Array) -> Array:
    """Return `ratio` in percent."""
    return 100 * ratio(sums)


def exp_ratio(sums: Array) -> Array:
    """Return exp of `ratio`: perplexity, from negative log-likelihood in nats and tokens."""
    return np.exp(ratio(sums))


def f1_percent(sums: Array) -> Array:
    """Return 100 x 2TP / (2TP + FP + FN); not a number where there is nothing to find."""
    twice_tp = 2 * sums[..., TP]
    f1 = _quotient(100 * twice_tp, twice_tp + sums[..., FP] + sums[..., FN])
    return np.where(sums[..., TP] + sums[..., FN] > 0, f1, np.nan)


def _quotient(top: Array, bottom: Array) -> Array:
    """x / 0 is infinite or not a number: there is no such value."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(top / bottom)


# --- rows to measures -----------------------------------------------------------------------------


def measure_row(key: str, cluster: str, found: Found) -> MeasureRow:
    """Return a row of these numbers, or a missing row with the reason."""
    if isinstance(found, str):
        return MeasureRow(key, cluster, None, found)
    return MeasureRow(key, cluster, found)


def measure(
    rows: Rows,
    statistic: Statistic,
    name: str = "",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Measure:
    """Return the statistic of the rows, with a 95 % percentile interval from a cluster bootstrap.

    Clusters (people, intents) are resampled whole, since the turns of one person are not
    independent. Without `resamples` there is no interval. A metric of `metrics.catalog` gets its
    name, its unit and which values are better from there.
    """
    sums = np.array(list(_cluster_sums(rows).values()))
    estimate = _estimate(sums, statistic, resamples, seed)
    return Measure(name, *estimate, tuple(rows))


def difference(a: Measure, b: Measure, statistic: Statistic) -> Estimate:
    """Return a - b with its 95 % interval, both measured on the same clusters.

    A resample uses the same people (or intents) for both. Rows of a cluster that is missing on one
    side are left out.
    """
    a_sums = _cluster_sums(a.rows)
    b_sums = _cluster_sums(b.rows)
    shared = [cluster for cluster in a_sums if cluster in b_sums]
    # Side by side, so that a resample has the same clusters of both.
    both = [np.hstack([a_sums[cluster], b_sums[cluster]]) for cluster in shared]

    def a_minus_b(sums: Array) -> Array:
        of_a, of_b = np.split(sums, 2, axis=-1)
        return statistic(of_a) - statistic(of_b)

    return _estimate(np.array(both), a_minus_b)


def _estimate(
    sums: Array, statistic: Statistic, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The value of a statistic and its interval, from the column sums of each cluster.

    The interval is the middle 95 % of the finite values; a resample without positives, for example,
    has no F1.
    """
    if not len(sums):
        return None, None, None
    value = float(statistic(sums.sum(axis=0)))
    if not np.isfinite(value):
        return None, None, None
    if len(sums) < 2:
        return value, None, None
    resampled = statistic(_resample(sums, resamples, seed))
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return value, None, None
    low, high = np.percentile(finite, [2.5, 97.5])
    return value, float(low), float(high)


def jackknife(value: float, without: Values) -> tuple[float, float]:
    """Return a 95 % interval from the values with one cluster left out each time.

    The jackknife of Efron and Stein (1981), for measures over pairs: a bootstrap would pair an item
    with its own copy.
    """
    values = np.asarray(without)
    n = len(values)
    squares = (values - values.mean()) ** 2
    margin = Z_95 * float(np.sqrt((n - 1) / n * squares.sum()))
    return value - margin, value + margin


def auroc(positives: Values, negatives: Values) -> float | None:
    """Return the area under the ROC curve: the probability that a random positive scores above a
    random negative, with ties counting half (Mann and Whitney, 1947)."""
    if not len(positives) or not len(negatives):
        return None
    return float(wins(positives, negatives).mean() / len(negatives))


def wins(scores: Values, against: Values) -> Array:
    """Return for each score the number of `against` below it, with ties counting half."""
    ordered = np.sort(np.asarray(against, dtype=float))
    below = np.searchsorted(ordered, scores, side="left")
    not_above = np.searchsorted(ordered, scores, side="right")
    return np.asarray((below + not_above) / 2)


def numbered(clusters: Sequence[str]) -> tuple[list[str], Indices]:
    """Return the names of the clusters in order, and for each item the number of its cluster."""
    # As objects: an array of strings would give each the length of the longest.
    names, cluster_of = np.unique(np.array(clusters, object), return_inverse=True)
    return names.tolist(), cluster_of


def _cluster_sums(rows: Rows) -> dict[str, Array]:
    """The column sums of each cluster, in the order of the clusters' names."""
    sums: dict[str, Array] = {}
    for row in rows:
        if row.stats is not None:
            sums[row.cluster] = sums.get(row.cluster, 0.0) + np.array(row.stats)
    return dict(sorted(sums.items()))


def _resample(sums: Array, resamples: int, seed: int) -> Array:
    """The column sums of each resample, clusters sampled with replacement: (resamples, columns).

    It works in blocks: how often each of 20,000 clusters occurs in 2,000 resamples would fill
    320 MB. The size of a block does not change what is sampled.
    """
    rng = np.random.default_rng(seed)
    clusters = len(sums)
    found = np.empty((resamples, sums.shape[1]))
    block = max(1, BLOCK // clusters)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        sampled = rng.integers(clusters, size=(size, clusters))
        # Each resample has its own range of indices, so that one `bincount` counts them all.
        sampled += np.arange(size)[:, None] * clusters
        counts = np.bincount(sampled.ravel(), minlength=size * clusters)
        found[start : start + size] = counts.reshape(size, clusters) @ sums
    return found

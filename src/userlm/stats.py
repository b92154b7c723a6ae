"""Statistics of rows, with confidence intervals.

A statistic here is a function of the *column sums* of the rows' `stats`: a mean is (sum of x) /
(sum of 1), a perplexity exp(sum of NLL / sum of tokens), an F1 comes from the sums of TP, FP and
FN. So one function gives the value, and the value without each cluster (a person, an intent, a
task), from which all intervals come: the turns of one person are not independent, so whole clusters
are left out.

`bench/intervals.py` measures how often the intervals hold the truth; docs/metrics.md has its table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from userlm.types import Measure, MeasureRow

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]
Values = Sequence[float] | Array
Rows = Sequence[MeasureRow]
Stats = tuple[float, ...]
"""The numbers of one row."""
Found = Stats | str
"""The numbers of one row, or the reason why there are none."""
Interval = tuple[float | None, float | None]
"""The two ends of a 95 % interval, or neither."""

TP, FP, FN = range(3)
"""The columns of a row that an F1 is computed from."""

MIN_CLUSTERS = 5
"""Fewer clusters give no interval: their spread is not known."""

SKEW = 2.6
SKEW_BETWEEN_EDGES = 0.35
"""How much the skewness of the clusters stretches an interval to its side; less between two edges,
since the score interval is longer to the middle by itself. Chosen on `bench/intervals.py`."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """A function of column sums, with the range of its values, which shapes its interval.

    Attributes:
        of: column sums of shape (..., columns) to values of shape (...).
        least, most: the smallest and the largest possible value.
        cut: no interval goes further from 0.
    """

    of: Callable[[Array], Array]
    least: float
    most: float
    cut: float = inf


class Estimate(NamedTuple):
    """A value, the ends of its 95 % interval, and the number of clusters behind it."""

    value: float | None
    low: float | None
    high: float | None
    clusters: int


# --- statistics -----------------------------------------------------------------------------------


def ratio(sums: Array) -> Array:
    """Return the first column over the second: a mean, if the second counts the items."""
    return quotient(sums[..., 0], sums[..., 1])


def percent(sums: Array) -> Array:
    """Return `ratio` in percent."""
    return 100 * ratio(sums)


def exp_ratio(sums: Array) -> Array:
    """Return exp of `ratio`: perplexity, from negative log-likelihood in nats and tokens."""
    return np.exp(ratio(sums))


def f1_percent(sums: Array) -> Array:
    """Return 100 x 2TP / (2TP + FP + FN); not a number where there is nothing to find."""
    twice_tp = 2 * sums[..., TP]
    f1 = quotient(100 * twice_tp, twice_tp + sums[..., FP] + sums[..., FN])
    return np.where(sums[..., TP] + sums[..., FN] > 0, f1, np.nan)


def quotient(top: Array, bottom: Array) -> Array:
    """x / 0 is infinite or not a number: there is no such value."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(top / bottom)


MEAN = Statistic(ratio, 0, inf)
"""A mean of what is never negative: words, turns, bits."""
PERCENT = Statistic(percent, 0, 100)
FRACTION = Statistic(ratio, 0, 1)
SIGNED_PERCENT = Statistic(percent, -inf, inf, cut=100)
"""A difference of two shares: far from its edges, which shape nothing (between edges, too few
intervals hold the truth if clusters are skewed)."""
PERPLEXITY = Statistic(exp_ratio, 1, inf)
PERPLEXITY_RATIO = Statistic(exp_ratio, 0, inf)
F1 = Statistic(f1_percent, 0, 100)


# --- rows to measures -----------------------------------------------------------------------------


def measure_row(key: str, cluster: str, found: Found) -> MeasureRow:
    """Return a row of these numbers, or a missing row with the reason."""
    if isinstance(found, str):
        return MeasureRow(key, cluster, None, found)
    return MeasureRow(key, cluster, found)


def measure(rows: Rows, statistic: Statistic, name: str = "") -> Measure:
    """Return the statistic of the rows with its interval. A metric of `metrics.catalog` gets its
    name, its unit and which values are better from there."""
    sums = np.array(list(cluster_sums(rows).values()))
    value, low, high, _ = estimate(sums, statistic)
    return Measure(name, value, low, high, tuple(rows))


def estimate(sums: Array, statistic: Statistic) -> Estimate:
    """Return the value of a statistic and its interval, from the column sums of each cluster:
    (clusters, columns). A cluster with nothing but zeros is left out, since no statistic depends on
    it."""
    if len(sums):
        sums = sums[sums.any(axis=1)]
    if not len(sums):
        return Estimate(None, None, None, 0)
    value = float(statistic.of(sums.sum(axis=0)))
    if not np.isfinite(value):
        return Estimate(None, None, None, len(sums))
    left_out = _left_out(sums, statistic)
    low, high = interval(value, left_out, statistic.least, statistic.most)
    if low is not None and high is not None:
        low, high = max(low, -statistic.cut), min(high, statistic.cut)
    return Estimate(value, low, high, len(sums))


def difference(a: Measure, b: Measure, statistic: Statistic) -> Estimate:
    """Return a - b with its interval, both measured on the same clusters. Rows of a cluster that is
    missing on one side are left out."""
    a_sums = cluster_sums(a.rows)
    b_sums = cluster_sums(b.rows)
    shared = [cluster for cluster in a_sums if cluster in b_sums]
    of_a = np.array([a_sums[cluster] for cluster in shared])
    of_b = np.array([b_sums[cluster] for cluster in shared])
    return paired_difference(of_a, of_b, statistic)


def paired_difference(of_a: Array, of_b: Array, statistic: Statistic) -> Estimate:
    """Return the `difference` from the column sums of the same clusters: two of (clusters,
    columns).

    With no spread to measure, such as nothing solved on either side, it is that of an
    `independent_difference`.
    """
    if len(of_a):
        has_any = of_a.any(axis=1) | of_b.any(axis=1)
        of_a, of_b = of_a[has_any], of_b[has_any]
    a, b = (estimate(sums, statistic) for sums in (of_a, of_b))
    if a.value is None or b.value is None:
        return Estimate(None, None, None, len(of_a))
    value = a.value - b.value
    size = min(statistic.most - statistic.least, 2 * statistic.cut)
    left_out = _left_out(of_a, statistic) - _left_out(of_b, statistic)
    low, high = interval(value, left_out, -inf, inf)
    if low is None or high is None:
        low, high = independent_difference(a, b)
    if low is None or high is None:
        return Estimate(value, None, None, len(of_a))
    return Estimate(value, max(low, -size), min(high, size), len(of_a))


def independent_difference(a: Measure | Estimate, b: Measure | Estimate) -> Interval:
    """Return the interval of a - b from those of a and b, as if they were independent (Newcombe,
    1998); none if one of them has none."""
    ends = (a.value, a.low, a.high, b.value, b.low, b.high)
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return None, None
    value, low, high, less, less_low, less_high = known
    down = math.hypot(value - low, less_high - less)
    up = math.hypot(high - value, less - less_low)
    return value - less - down, value - less + up


def _left_out(sums: Array, statistic: Statistic) -> Array:
    """The values of the statistic with one cluster left out each time."""
    return statistic.of(sums.sum(axis=0) - sums)


# --- intervals ------------------------------------------------------------------------------------


def interval(value: float, left_out: Values, least: float, most: float) -> Interval:
    """Return the 95 % interval of a value from its values with one cluster left out each time.

    Its length is the jackknife standard error (Efron and Stein, 1981) times Student's t, changed in
    three ways, since the textbook's interval holds too rarely for people's turns:

    - Half the usual degrees of freedom: few clusters of unequal size do not show their spread well.
    - Longer to the side to which few clusters pull the value: a sample is more likely to miss such
      clusters than to hold too many.
    - The score interval (Wilson, 1927) between two edges, where each cluster is one observation if
      there is no spread to measure; the scale of logarithms above 0.

    Args:
        value: the value with all clusters.
        least, most: the smallest and the largest possible value.

    Returns:
        No interval below `MIN_CLUSTERS`, if the value rests on one cluster alone, or if neither
        edges nor a spread limit it.
    """
    values = np.asarray(left_out)
    n = len(values)
    if n < MIN_CLUSTERS or not np.isfinite(values).all():
        return None, None
    size = most - least
    is_open = math.isinf(size)
    error, skewness = _spread(values)
    lean = (SKEW if is_open else SKEW_BETWEEN_EDGES) * skewness / sqrt(n)
    t = students_t((n - 1) / 2)
    down = t * (1 + max(-lean, 0.0))
    up = t * (1 + max(lean, 0.0))
    if not is_open:
        share = (value - least) / size
        deviation = error / size
        observations = share * (1 - share) / deviation**2 if error else n
        low_share = _score_end(share, observations, -down)
        high_share = _score_end(share, observations, up)
        return least + size * low_share, least + size * high_share
    if not error:
        return None, None
    if not math.isinf(least):
        relative = error / value
        low = max(value * math.exp(-down * relative), least)
        return low, value * math.exp(up * relative)
    return value - down * error, value + up * error


def _spread(left_out: Array) -> tuple[float, float]:
    """Return the jackknife standard error, and the skewness of how much each cluster pulls the
    value up; zeros if that is no more than rounding."""
    n = len(left_out)
    pulls = left_out.mean() - left_out
    error = sqrt((n - 1) / n * float(pulls @ pulls))
    if error <= 1e-9 * float(np.abs(left_out).max()):
        return 0.0, 0.0
    return error, float((pulls**3).mean() / (pulls**2).mean() ** 1.5)


def _score_end(share: float, observations: float, z: float) -> float:
    """Return the end of the score interval of a share; the lower one if z < 0 (Wilson, 1927)."""
    weight = z * z / observations
    middle = share + weight / 2
    # Rounding may leave less than 0.
    variance = max(share * (1 - share), 0.0) / observations
    margin = z * sqrt(variance + weight / (4 * observations))
    return min(max((middle + margin) / (1 + weight), 0.0), 1.0)


def students_t(freedom: float) -> float:
    """Return the 97.5th percentile of Student's t, within 1 % from 2 degrees of freedom on
    (Abramowitz and Stegun, 26.7.5)."""
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**i for i, term in enumerate(terms, 1))


# --- pairs, clusters ------------------------------------------------------------------------------
def pair_estimate(
    totals: Array, inside: Array, cluster_of: Indices, pairs: Array, most: float
) -> Estimate:
    """Return `most` times a mean over pairs of items, from 0 to 1, with its interval.

    Args:
        totals: for each item, the sum over the pairs that it is in.
        inside: for each cluster, the sum over the pairs inside it.
        cluster_of: for each item, the number of its cluster.
        pairs: the number of pairs; then that without each cluster.
    """
    # The totals count each pair twice. Without a cluster, the pairs of its items are subtracted:
    # those inside it twice, so they are added back once.
    whole = totals.sum() / 2
    left = whole - np.bincount(cluster_of, totals) + inside
    value, *left_out = most * quotient(np.array([whole, *left]), pairs)
    if not np.isfinite(value):
        return Estimate(None, None, None, len(inside))
    low, high = interval(float(value), left_out, 0, most)
    return Estimate(float(value), low, high, len(inside))


def auroc_estimate(
    scores: Array,
    positive: Flags,
    cluster_of: Indices,
    stratum: Indices | None = None,
) -> Estimate:
    """Return the `auroc` of scores with its interval.

    Args:
        scores: for each item.
        positive: for each item, whether it is one.
        cluster_of: for each item, the number of its cluster, from 0 on without gaps.
        stratum: for each item, a number; only items with the same number are compared.
    """
    clusters = int(cluster_of.max()) + 1
    won = np.zeros(len(scores))
    inside = np.zeros(clusters)
    pairs = np.zeros(clusters + 1)
    strata = np.zeros(len(scores), int) if stratum is None else stratum
    for one in np.unique(strata):
        at = strata == one
        won[at] = _won(scores[at], positive[at])
        inside += _won_inside(scores[at], positive[at], cluster_of[at], clusters)
        positives = np.bincount(cluster_of[at & positive], minlength=clusters)
        negatives = np.bincount(cluster_of[at & ~positive], minlength=clusters)
        left = (positives.sum() - positives) * (negatives.sum() - negatives)
        pairs += np.array([positives.sum() * negatives.sum(), *left])
    return pair_estimate(won, inside, cluster_of, pairs, most=1)


def _won(scores: Array, positive: Flags) -> Array:
    """Return how many negatives each positive beats, and how many positives beat each negative."""
    won = np.empty(len(scores))
    won[positive] = wins(scores[positive], scores[~positive])
    won[~positive] = positive.sum() - wins(scores[~positive], scores[positive])
    return won


def _won_inside(
    scores: Array, positive: Flags, cluster_of: Indices, clusters: int
) -> Array:
    """Return for each cluster how many of its pairs its positives win."""
    inside = np.zeros(clusters)
    for cluster in np.unique(cluster_of):
        own = cluster_of == cluster
        inside[cluster] = wins(scores[own & positive], scores[own & ~positive]).sum()
    return inside


def auroc(positives: Values, negatives: Values) -> float | None:
    """Return the area under the ROC curve: the probability that a random positive scores above a
    random negative, with ties counting half (Mann and Whitney, 1947)."""
    if not len(positives) or not len(negatives):
        return None
    won = wins(positives, negatives).sum()
    return float(won / (len(positives) * len(negatives)))


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


def cluster_sums(rows: Rows) -> dict[str, Array]:
    """Return the column sums of each cluster, in the order of the clusters' names."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        if row.stats is not None:
            known = sums.setdefault(row.cluster, [0.0] * len(row.stats))
            for column, value in enumerate(row.stats):
                known[column] += value
    return {cluster: np.array(sums[cluster]) for cluster in sorted(sums)}

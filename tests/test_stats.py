"""Intervals, differences and AUROC."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userlm.stats import (
    auroc,
    difference,
    exp_ratio,
    f1_percent,
    jackknife,
    measure,
    percent,
    ratio,
)
from userlm.types import MeasureRow

VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


def rows(values: list[float], clusters: list[str] | None = None) -> list[MeasureRow]:
    names = clusters or [str(i) for i in range(len(values))]
    return [
        MeasureRow(str(i), c, (v, 1.0))
        for i, (v, c) in enumerate(zip(values, names, strict=True))
    ]


@given(VALUES, st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_the_value_is_the_statistic_of_the_pooled_rows_however_they_cluster(
    values: list[float], n: int
) -> None:
    clusters = [str(i % n) for i in range(len(values))]
    found = measure(rows(values, clusters), ratio, resamples=20)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.n == len(values)


def test_the_bootstrap_interval_of_a_mean_is_close_to_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(10, 2, size=400)
    found = measure(rows(list(values)), ratio)
    error = 1.96 * values.std(ddof=1) / np.sqrt(400)  # about 0.2
    assert found.low == pytest.approx(values.mean() - error, abs=0.03)
    assert found.high == pytest.approx(values.mean() + error, abs=0.03)


def test_clusters_are_resampled_whole() -> None:
    # 10 people with 40 equal rows each carry the information of 10 rows, not of 400
    values = [float(person) for person in range(10) for _ in range(40)]
    clusters = [str(person) for person in range(10) for _ in range(40)]
    whole, loose = (
        measure(rows(values, clusters), ratio),
        measure(rows(values), ratio),
    )
    assert (
        whole.low is not None
        and whole.high is not None
        and loose.low is not None
        and loose.high is not None
    )
    # the standard errors differ by sqrt(40) = 6.3
    assert (whole.high - whole.low) / (loose.high - loose.low) == pytest.approx(
        6.3, rel=0.15
    )


def test_what_could_not_be_measured_is_counted_and_changes_nothing() -> None:
    gap = MeasureRow("gap", "9", None, "no answer")
    without, with_gap = (
        measure(rows([1, 2]), ratio),
        measure([*rows([1, 2]), gap], ratio),
    )
    assert (with_gap.n, with_gap.missing) == (2, 1)
    assert (with_gap.value, with_gap.low, with_gap.high) == (
        without.value,
        without.low,
        without.high,
    )


def test_one_cluster_gives_a_value_and_no_interval() -> None:
    found = measure(rows([1, 3], ["a", "a"]), ratio)
    assert (found.value, found.low, found.high) == (2, None, None)


def test_nothing_measured_gives_no_value() -> None:
    for some in ([], [MeasureRow("a", "a", None, "why")]):
        found = measure(some, ratio)
        assert (found.value, found.low, found.high, found.n) == (None, None, None, 0)


def test_an_f1_without_any_positive_is_no_zero() -> None:
    negatives = [MeasureRow(str(i), str(i), (0.0, 0.0, 0.0)) for i in range(3)]
    assert measure(negatives, f1_percent).value is None
    false_alarms = [MeasureRow(str(i), str(i), (0.0, 1.0, 0.0)) for i in range(3)]
    found = measure(false_alarms, f1_percent)
    assert (found.value, found.low, found.high, found.n) == (None, None, None, 3)


def test_statistics_by_hand() -> None:
    assert ratio(np.array([6.0, 4.0])) == 1.5
    assert percent(np.array([1.0, 4.0])) == 25
    # Ln 2 nats a token.
    assert exp_ratio(np.array([np.log(2) * 4, 4.0])) == pytest.approx(2)
    assert f1_percent(np.array([2.0, 1.0, 1.0])) == pytest.approx(100 * 4 / 6)


def test_the_interval_does_not_depend_on_the_blocks_it_is_computed_in() -> None:
    # 3,000 clusters x 2,000 resamples go in several blocks; the draws are those of one call
    values = np.random.default_rng(0).normal(size=3000)
    found = measure(rows(list(values)), ratio, seed=5)
    order = np.argsort([str(i) for i in range(3000)])
    draws = np.random.default_rng(5).integers(3000, size=(2000, 3000))
    low, high = np.percentile(values[order][draws].mean(axis=1), [2.5, 97.5])
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_same_seed_gives_the_same_interval_and_another_does_not() -> None:
    values = [float(x) for x in range(30)]
    one, two, other = (measure(rows(values), ratio, seed=seed) for seed in (0, 0, 1))
    assert (one.low, one.high) == (two.low, two.high) != (other.low, other.high)


def test_a_difference_is_paired_over_the_clusters() -> None:
    # b = a - 1 for every person: there is no doubt about the difference, though a itself varies a
    # lot
    a, b = (
        measure(rows([5, 50, 500]), ratio),
        measure(rows([4, 49, 499]), ratio),
    )
    assert difference(a, b, ratio) == (
        pytest.approx(1),
        pytest.approx(1),
        pytest.approx(1),
    )


def test_a_difference_leaves_out_who_is_on_one_side_only() -> None:
    a = measure(rows([1, 2, 1000], ["p", "q", "only here"]), ratio)
    b = measure(rows([0, 0], ["p", "q"]), ratio)
    assert difference(a, b, ratio)[0] == 1.5
    assert difference(a, measure(rows([1], ["nobody"]), ratio), ratio) == (
        None,
        None,
        None,
    )


def test_a_difference_without_a_finite_resample_has_no_interval() -> None:
    # F1 of p alone is 0/0, so is every resample that misses q; with one shared cluster there is
    # none at all
    a = measure([MeasureRow("1", "p", (1.0, 0.0, 0.0))], f1_percent)
    assert difference(a, a, f1_percent) == (0, None, None)


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=20))
@settings(max_examples=50, deadline=None)
def test_the_jackknife_of_a_mean_is_its_textbook_standard_error(
    values: list[float],
) -> None:
    without = [float(np.mean(values[:i] + values[i + 1 :])) for i in range(len(values))]
    mean, error = (
        float(np.mean(values)),
        float(np.std(values, ddof=1) / np.sqrt(len(values))),
    )
    assert jackknife(mean, without) == (
        pytest.approx(mean - 1.96 * error, abs=1e-6),
        pytest.approx(mean + 1.96 * error, abs=1e-6),
    )


def test_auroc_counts_ties_half() -> None:
    # pairs (positive, negative): (2,1) won, (2,2) half, (3,1) won, (3,2) won: 3.5 of 4
    assert auroc([2, 3], [1, 2]) == 3.5 / 4
    assert auroc([1, 1], [1]) == 0.5
    assert auroc([], [1]) is None and auroc([1], []) is None


SCORES = st.lists(st.integers(0, 5), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_auroc_is_the_share_of_pairs_won_and_turns_round(
    positives: list[int], negatives: list[int]
) -> None:
    won = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    assert auroc(positives, negatives) == pytest.approx(
        won / len(positives) / len(negatives)
    )
    assert auroc(negatives, positives) == pytest.approx(
        1 - won / len(positives) / len(negatives)
    )


def test_auroc_agrees_with_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 50), rng.integers(0, 9, 70)
    u = scipy_stats.mannwhitneyu(a, b).statistic
    assert auroc(list(a), list(b)) == pytest.approx(u / 50 / 70)

"""Intervals, differences and AUROC."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userlm.stats import (
    F1,
    MEAN,
    PERCENT,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    SIGNED_PERCENT,
    Statistic,
    auroc,
    cluster_sums,
    difference,
    estimate,
    measure,
    ratio,
    students_t,
)
from userlm.types import MeasureRow

SIGNED = Statistic(ratio, -np.inf, np.inf)
VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


def rows(values: list[float], clusters: list[str] | None = None) -> list[MeasureRow]:
    names = clusters or [str(i) for i in range(len(values))]
    return [
        MeasureRow(str(i), c, (v, 1.0))
        for i, (v, c) in enumerate(zip(values, names, strict=True))
    ]


def sums_of(some: list[MeasureRow]) -> np.ndarray:
    return np.array(list(cluster_sums(some).values()))


@given(VALUES, st.integers(1, 5))
@settings(max_examples=50)
def test_the_value_is_the_statistic_of_the_pooled_rows_however_they_cluster(
    values: list[float], n: int
) -> None:
    clusters = [str(i % n) for i in range(len(values))]
    found = measure(rows(values, clusters), SIGNED)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.n == len(values)
    assert found.clusters == min(n, len(values))


def test_the_interval_of_a_mean_over_many_people_is_close_to_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(10, 2, size=400)
    found = measure(rows(list(values)), MEAN)
    error = 1.96 * values.std(ddof=1) / np.sqrt(400)  # about 0.2
    assert found.low == pytest.approx(values.mean() - error, abs=0.01)
    assert found.high == pytest.approx(values.mean() + error, abs=0.01)


def test_clusters_are_left_out_whole() -> None:
    # 10 people with 40 equal rows each carry the information of 10 rows, not of 400
    values = [float(person) for person in range(10) for _ in range(40)]
    clusters = [str(person) for person in range(10) for _ in range(40)]
    whole = estimate(sums_of(rows(values, clusters)), SIGNED)
    once = estimate(sums_of(rows([float(person) for person in range(10)])), SIGNED)
    assert whole == pytest.approx(once)
    assert whole.clusters == 10


def test_what_could_not_be_measured_is_counted_and_changes_nothing() -> None:
    gap = MeasureRow("gap", "9", None, "no answer")
    values = [1.0, 2.0, 4.0, 2.0, 1.0, 3.0]
    without = measure(rows(values), MEAN)
    with_gap = measure([*rows(values), gap], MEAN)
    assert (with_gap.n, with_gap.missing, with_gap.clusters) == (6, 1, 6)
    assert (with_gap.value, with_gap.low, with_gap.high) == (
        without.value,
        without.low,
        without.high,
    )


@pytest.mark.parametrize("statistic", [MEAN, PERCENT, PERPLEXITY])
def test_there_is_no_interval_below_five_clusters(statistic: Statistic) -> None:
    values = [0.1, 0.5, 0.3, 0.2]
    found = measure(rows(values), statistic)
    assert found.value is not None
    assert (found.low, found.high, found.clusters) == (None, None, 4)
    assert measure(rows([*values, 0.4]), statistic).low is not None


def test_nothing_measured_gives_no_value() -> None:
    for some in ([], [MeasureRow("a", "a", None, "why")]):
        found = measure(some, MEAN)
        assert (found.value, found.low, found.high, found.n) == (None, None, None, 0)


def test_an_f1_without_any_positive_is_no_zero() -> None:
    negatives = [MeasureRow(str(i), str(i), (0.0, 0.0, 0.0)) for i in range(3)]
    assert measure(negatives, F1).value is None
    false_alarms = [MeasureRow(str(i), str(i), (0.0, 1.0, 0.0)) for i in range(3)]
    found = measure(false_alarms, F1)
    assert (found.value, found.low, found.high, found.n) == (None, None, None, 3)


def test_statistics_by_hand() -> None:
    assert MEAN.of(np.array([6.0, 4.0])) == 1.5
    assert PERCENT.of(np.array([1.0, 4.0])) == 25
    # Ln 2 nats a token.
    assert PERPLEXITY.of(np.array([np.log(2) * 4, 4.0])) == pytest.approx(2)
    assert F1.of(np.array([2.0, 1.0, 1.0])) == pytest.approx(100 * 4 / 6)


# --- intervals ------------------------------------------------------------------------------------


def test_an_interval_by_hand() -> None:
    # 1, 2, 3, 4, 5 and 9: the mean is 4, the standard error sqrt(40 / 5 / 6) = 1.155, the skewness
    # (-27 - 8 - 1 + 0 + 1 + 125) / 6 / (40 / 6) ** 1.5 = 0.871; t with 2.5 degrees is 3.565
    found = measure(rows([1, 2, 3, 4, 5, 9]), SIGNED)
    error = (40 / 5 / 6) ** 0.5
    skewness = 90 / 6 / (40 / 6) ** 1.5
    t = students_t(2.5)
    assert t == pytest.approx(3.57, abs=0.02)
    assert found.low == pytest.approx(4 - t * error)
    assert found.high == pytest.approx(4 + t * error * (1 + 2.6 * skewness / 6**0.5))
    # of what is never negative, on the scale of logarithms
    found = measure(rows([1, 2, 3, 4, 5, 9]), MEAN)
    assert found.low == pytest.approx(4 * np.exp(-t * error / 4))


def test_students_t() -> None:
    # as in printed tables
    table = {2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}
    for freedom, value in table.items():
        assert students_t(freedom) == pytest.approx(value, rel=0.01)


def test_an_interval_at_an_edge_has_a_width() -> None:
    # none of 20: the score interval of 20 observations, with t of 9.5 degrees: t^2 / (20 + t^2)
    nothing = measure(rows([0.0] * 20), PERCENT)
    squared = students_t(9.5) ** 2
    assert nothing.low == 0
    assert nothing.high == pytest.approx(100 * squared / (20 + squared))
    everything = measure(rows([1.0] * 20), PERCENT)
    assert (everything.low, everything.high) == (
        pytest.approx(100 - nothing.high),
        pytest.approx(100),
    )
    # 400 equal turns of 20 people are not more certain than 20
    turns = [0.0] * 400
    people = [str(i % 20) for i in range(400)]
    assert measure(rows(turns, people), PERCENT).high == pytest.approx(nothing.high)


def test_what_rests_on_one_person_has_no_interval() -> None:
    # one of 8 people ended, and was found: without them there is no F1
    found = measure(
        [
            MeasureRow(str(i), str(i), (float(i == 0), float(i > 0), 0.0))
            for i in range(8)
        ],
        F1,
    )
    assert found.value == pytest.approx(100 * 2 / (2 + 7))
    assert (found.low, found.high) == (None, None)
    # people without an outcome add nothing
    alone = [MeasureRow(str(i), str(i), (float(i == 0), 0.0, 0.0)) for i in range(8)]
    found = measure(alone, F1)
    assert (found.value, found.low, found.high, found.clusters) == (100, None, None, 1)


def test_the_interval_of_a_difference_of_shares_ends_at_what_is_possible() -> None:
    # One of five people is far from the others: without ends it would be [-368, 208].
    found = measure(rows([0.9, 0.9, 0.9, 0.9, -0.9]), SIGNED_PERCENT)
    assert found.value == pytest.approx(54)
    assert (found.low, found.high) == (-100, 100)
    near = rows([0.1, 0.12, 0.15, 0.11, 0.13, 0.2])
    endless = Statistic(SIGNED_PERCENT.of, -np.inf, np.inf)
    assert measure(near, SIGNED_PERCENT) == measure(near, endless)


def test_equal_values_without_a_largest_limit_nothing() -> None:
    found = measure(rows([0.1] * 9), MEAN)
    assert (found.value, found.low, found.high) == (pytest.approx(0.1), None, None)


@given(st.lists(st.integers(0, 4), min_size=5, max_size=30))
@settings(max_examples=100)
def test_an_interval_holds_its_value_and_stays_within_the_range(
    counts: list[int],
) -> None:
    few = [MeasureRow(str(i), str(i), (n, 4.0)) for i, n in enumerate(counts)]
    found = measure(few, PERCENT)
    assert found.value is not None and found.low is not None and found.high is not None
    assert 0 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 100
    assert found.low < found.high


@pytest.mark.parametrize("people", [8, 30])
def test_intervals_over_few_unequal_people_hold_the_true_mean(people: int) -> None:
    # words of turns: log-normal, of people with log-normally many turns, correlated by 0.2
    rng = np.random.default_rng(0)
    truth = np.exp(2.32)
    held = 0
    for _ in range(400):
        turns = np.maximum(1, np.round(rng.lognormal(1.2, 0.9, people))).astype(int)
        of_person = np.repeat(rng.normal(size=people), turns)
        noise = rng.normal(size=len(of_person))
        said = np.exp(2 + 0.8 * (np.sqrt(0.2) * of_person + np.sqrt(0.8) * noise))
        starts = np.cumsum(turns) - turns
        sums = np.stack([np.add.reduceat(said, starts), turns], axis=1)
        _, low, high, _ = estimate(sums, MEAN)
        assert low is not None and high is not None
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.98


# --- differences ----------------------------------------------------------------------------------


def test_a_difference_is_paired_over_the_clusters() -> None:
    # b is about a - 1 for every person: there is little doubt about the difference, though a itself
    # varies a lot
    a = measure(rows([5, 50, 500, 20, 90, 30]), MEAN)
    b = measure(rows([4.1, 48.9, 499, 19, 89.1, 28.9]), MEAN)
    value, low, high, clusters = difference(a, b, MEAN)
    assert value == pytest.approx(1)
    assert low is not None and high is not None and a.low is not None
    assert 0.8 < low < 1 < high < 1.2
    assert clusters == 6


def test_a_difference_leaves_out_who_is_on_one_side_only() -> None:
    a = measure(rows([1, 2, 1000], ["p", "q", "only here"]), MEAN)
    b = measure(rows([0, 0], ["p", "q"]), MEAN)
    assert difference(a, b, MEAN)[0] == 1.5
    assert difference(a, measure(rows([1], ["nobody"]), MEAN), MEAN) == (
        None,
        None,
        None,
        0,
    )


def test_a_difference_keeps_who_has_no_outcome_on_one_side() -> None:
    # q never ended: `a` went on (no outcome), `b` ended. F1 is 100 against 2 / 3.
    a = measure(
        [MeasureRow("1", "p", (1.0, 0.0, 0.0)), MeasureRow("2", "q", (0, 0, 0))], F1
    )
    b = measure(
        [MeasureRow("1", "p", (1.0, 0.0, 0.0)), MeasureRow("2", "q", (0, 1, 0))], F1
    )
    value, *_, clusters = difference(a, b, F1)
    assert value == pytest.approx(100 - 200 / 3)
    assert clusters == 2


def test_a_difference_of_two_measures_at_an_edge_has_a_width() -> None:
    # as independent: each end is the root of the squared distances to the ends of both
    nothing = measure(rows([0.0] * 20), PERCENT)
    assert nothing.high is not None
    assert difference(nothing, nothing, PERCENT)[:3] == (
        0,
        pytest.approx(-nothing.high),
        pytest.approx(nothing.high),
    )
    everything = measure(rows([1.0] * 20), PERCENT)
    value, low, high, _ = difference(everything, nothing, PERCENT)
    assert (value, high) == (pytest.approx(100), pytest.approx(100))
    assert low == pytest.approx(100 - nothing.high * 2**0.5)


# --- AUROC ----------------------------------------------------------------------------------------


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


def test_no_interval_of_a_perplexity_goes_below_1():
    turns = [(40, 20), (3, 10), (2, 10), (1, 10), (30, 12), (2, 8)]
    rows = [MeasureRow(f"{i}", f"{i}", of) for i, of in enumerate(turns)]
    assert measure(rows, PERPLEXITY_RATIO, "").low < 1
    assert measure(rows, PERPLEXITY, "").low == 1

"""Comparisons of assistants and users on the same tasks, worked out by hand."""

import numpy as np
import pytest

from userlm.metrics.comparison import (
    Pair,
    Split,
    differences,
    errors,
    given,
    merged,
    paired,
    ranks,
    split,
    tasks_needed,
    unpaired,
    within_tasks,
)
from userlm.types import MeasureRow


def cell(**solved: list[float | None]) -> list[MeasureRow]:
    """The rows of one cell: by task, whether each repeat was solved."""
    return [
        MeasureRow(f"{task}#{repeat}", task, None if one is None else (one, 1.0))
        for task, repeats in solved.items()
        for repeat, one in enumerate(repeats)
    ]


# --- differences ----------------------------------------------------------------------------------


def test_a_difference_is_the_mean_over_tasks_of_what_one_solves_more() -> None:
    # A solves 100, 50, 100, 50, 100 % of five tasks, B 50, 50, 50, 0, 0 %: A solves 50, 0, 50, 50
    # and 100 points more, 50 in the mean.
    a = cell(v=[1, 1], w=[1, 0], x=[1, 1], y=[0, 1], z=[1, 1])
    b = cell(v=[1, 0], w=[0, 1], x=[0, 1], y=[0, 0], z=[0, 0])
    found = paired(a, b)
    assert (found.value, found.clusters) == (50, 5)
    # The jackknife error of five means is their standard error: sqrt(1250 / 5) = 15.81. Student's t
    # with half of 4 degrees of freedom is 4.30, and there is no skewness: 50 - 68 to 50 + 68, of
    # which more than 100 points is impossible.
    assert found.low == pytest.approx(50 - 4.30 * 15.81, abs=0.6)
    assert found.high == 100


def test_four_tasks_have_a_difference_and_no_interval() -> None:
    a = cell(w=[1], x=[1], y=[1], z=[0])
    b = cell(w=[0], x=[1], y=[0], z=[0])
    assert paired(a, b) == (50, None, None, 4)


def test_a_conversation_without_a_grade_leaves_out_its_partner_too() -> None:
    # Of x only the first repeat has both grades (0 points apart), y is 100 points apart.
    a = cell(x=[1, 1], y=[1, 1], z=[None, None])
    b = cell(x=[1, None], y=[0, 0], z=[0, 0])
    found = paired(a, b)
    assert found.value == pytest.approx(100 * 2 / 3)
    assert found.clusters == 2
    assert unpaired(a, b) == 3


def test_the_same_conversations_with_two_users_stay_apart_when_they_are_merged() -> (
    None
):
    a = merged({"u": cell(x=[1]), "v": cell(x=[0])})
    b = merged({"u": cell(x=[0]), "v": cell(x=[0])})
    assert paired(a, b).value == 50
    assert paired(a, b).clusters == 1


# --- the variance ---------------------------------------------------------------------------------


def test_the_variance_of_one_user_is_that_of_tasks_and_of_repeats() -> None:
    # Task means 100, 50, 0: variance 2500. Inside y: (50^2 + 50^2) / 3 degrees of freedom
    # = 1666.7, of which a mean of two repeats has half.
    found = split({"u": cell(x=[1, 1], y=[0, 1], z=[0, 0])})
    assert found is not None
    assert found.repeat == pytest.approx(5000 / 3)
    assert found.task == pytest.approx(2500 - 5000 / 6)
    assert (found.user, found.both) == (None, None)


def test_the_variance_of_two_users_is_split_by_the_means_of_tasks_and_users() -> None:
    # Means: u 100, 50; v 50, 0. Tasks 75, 25 and users 75, 25 explain all of it: 2 * 25^2 = 1250
    # each. Two of the four cells have 5000 inside, over 4 degrees of freedom.
    found = split({"u": cell(x=[1, 1], y=[0, 1]), "v": cell(x=[1, 0], y=[0, 0])})
    assert found == Split(task=1250, user=1250, both=0, repeat=2500)
    # Means: u 100, 0; v 0, 100. Tasks and users are alike, so all of it is both together: four
    # times 50^2 over one degree of freedom. Without repeats theirs is a part of it.
    found = split({"u": cell(x=[1], y=[0]), "v": cell(x=[0], y=[1])})
    assert found == Split(task=0, user=0, both=10_000, repeat=None)


def test_a_mean_of_fewer_repeats_has_more_of_their_variance() -> None:
    # 1 and 3 repeats: the mean of 1/1 and 1/3 is 2/3. Inside y: squares of 100, 0, 0 around 33.3
    # are 6666.7, over 2 degrees of freedom 3333.3. Means 100 and 33.3: variance 2222.2, and
    # 2/3 of 3333.3 is 2222.2.
    found = split({"u": cell(x=[1], y=[1, 0, 0])})
    assert found is not None
    assert found.repeat == pytest.approx(10_000 / 3)
    assert found.task == pytest.approx(0, abs=1e-9)


def test_one_task_has_no_split() -> None:
    assert split({"u": cell(x=[1, 0])}) is None
    assert split({"u": cell(x=[1], y=[0]), "v": cell(x=[1], z=[0])}) is None


def test_the_number_of_tasks_follows_from_the_split() -> None:
    apart = Split(task=1000, user=None, both=None, repeat=1000)
    # 1000 + 1000 / 10 = 1100; t of 44.5 degrees of freedom is 2.015, so 90 tasks give
    # (2.015 + 0.842)^2 * 1100 / 10^2 = 89.8, and 89 give 89.8 too.
    assert tasks_needed(apart, points=10, repeats=10) == 90
    # With one repeat 2000; t of 80.5 degrees of freedom is 1.990: 8.02 * 20 = 160.4.
    assert tasks_needed(apart, points=10, repeats=1) == 161


def test_no_number_of_tasks_is_made_up() -> None:
    assert tasks_needed(Split(0, None, None, 0), 10, 1) is None
    # Without repeats it is not known what more of them would do.
    assert tasks_needed(Split(1000, None, None, None), 10, 5) is None
    assert tasks_needed(Split(1000, None, None, None), 10, 1) is not None


@pytest.mark.slow
def test_with_the_number_of_tasks_that_it_says_a_difference_is_seen_in_four_of_five_runs() -> (
    None
):
    rng = np.random.default_rng(0)

    def runs(tasks: int, repeats: int, apart: float) -> tuple[list, list]:
        """A pair of cells: the tasks are of different difficulty, for each assistant too."""
        level = rng.beta(2, 2, tasks)
        rows = []
        for shift in (apart, 0.0):
            own = level * 0.5 + 0.4 * rng.random(tasks) * 0.5 + shift
            solved = rng.random((tasks, repeats)) < own[:, None]
            rows.append(
                cell(**{f"t{i}": list(map(float, one)) for i, one in enumerate(solved)})
            )
        return rows[0], rows[1]

    found = split({"u": differences(*runs(2000, 5, 0.15))})
    assert found is not None
    for repeats in (1, 5):
        needed = tasks_needed(found, 15, repeats)
        assert needed is not None
        seen = 0
        for _ in range(400):
            low = paired(*runs(needed, repeats, 0.15)).low
            seen += low is not None and low > 0
        assert 0.74 <= seen / 400 <= 0.88


# --- why it failed --------------------------------------------------------------------------------


def test_the_score_given_something_is_that_of_these_conversations_alone() -> None:
    found = given(cell(x=[1, 0], y=[1, None]), ["x#0", "y#0", "y#1"])
    assert (found.value, found.n, found.missing) == (100, 2, 1)


def test_what_goes_with_failure_is_measured_inside_each_task() -> None:
    # x: with it 0 of 1, without 2 of 2: -1, weight 1 * 2 / 3. y: 1 of 2 and 1 of 2: 0, weight
    # 2 * 2 / 4 = 1. z has it always and says nothing, though nothing in it was solved.
    # -(2/3) / (5/3) = -40 points.
    rows = cell(x=[0, 1, 1], y=[1, 0, 1, 0], z=[0, 0])
    has = {"x#0": True, "x#1": False, "x#2": False, "z#0": True, "z#1": True}
    has |= {"y#0": True, "y#1": True, "y#2": False, "y#3": False}
    found = within_tasks(rows, has)
    assert found.value == pytest.approx(-40)
    assert (found.low, found.clusters) == (None, 2)


def test_conversations_are_compared_with_those_of_the_same_user_alone() -> None:
    # u always repeats and never gets there, v never repeats and always does: that is the users'.
    both = merged({"u": cell(x=[0, 0]), "v": cell(x=[1, 1])})
    has = {"u/x#0": True, "u/x#1": True, "v/x#0": False, "v/x#1": False}
    assert within_tasks(both, has).value is None


# --- beside people --------------------------------------------------------------------------------


def test_rank_agreement_is_that_of_all_pairs_and_of_the_ranks() -> None:
    # Human 10, 20, 30, 40, simulated 12, 11, 33, 44: of 6 pairs 5 agree and 1 does not:
    # tau (5 - 1) / 6. Ranks 2, 1, 3, 4 are 1, 1, 0, 0 off: rho = 1 - 6 * 2 / (4 * 15) = 0.8.
    pairs = [Pair("a", 10, 12), Pair("b", 20, 11), Pair("c", 30, 33), Pair("d", 40, 44)]
    found = ranks(pairs)
    assert found["Kendall's tau"].value == pytest.approx(4 / 6)
    assert found["Spearman's rho"].value == pytest.approx(0.8)
    assert found["Kendall's tau"].low is None, "four assistants have no interval"
    # 2, 9, 3, 4 points off; 2 - 9 + 3 + 4 = 0.
    assert errors(pairs)["mean absolute error"].value == 4.5
    assert errors(pairs)["mean difference"].value == 0


def test_ties_count_as_no_agreement_and_lower_scores_are_no_better_ranking() -> None:
    # Human 1, 1, 2: one tie. Simulated 5, 6, 7 agrees on the 2 pairs without one:
    # tau-b = 2 / sqrt(2 * 3).
    pairs = [Pair("a", 1, 5), Pair("b", 1, 6), Pair("c", 2, 7)]
    assert ranks(pairs)["Kendall's tau"].value == pytest.approx(2 / 6**0.5)
    flat = [Pair("a", 1, 5), Pair("b", 2, 5)]
    assert ranks(flat)["Kendall's tau"].value is None
    assert ranks(flat)["Spearman's rho"].value is None


def test_five_tasks_have_an_interval_of_rank_agreement() -> None:
    pairs = [Pair(f"t{i}", 10 * i, 10 * (i ^ 1)) for i in range(6)]
    found = ranks(pairs)["Kendall's tau"]
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low < found.value < found.high <= 1

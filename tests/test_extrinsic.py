"""Coverage and score over tasks, worked out by hand."""

from dataclasses import replace

import pytest

from userlm.assistants import Clarifier, Oracle, Script
from userlm.grading import Grader
from userlm.metrics.extrinsic import (
    Graded,
    adds_demands,
    assistant_score,
    by_family,
    fewest_turns,
    intent_coverage,
    most_turns,
    repeats_required,
    sample_turn_variance,
    skips_not_required,
    spreads_required,
    turn_variance,
    unigram_difference,
)
from userlm.simulate import simulate
from userlm.stats import MEAN
from userlm.tasks import task_of
from userlm.types import (
    Conversation,
    Fact,
    Measure,
    NumberCheck,
    Origin,
    Task,
    TestsCheck,
    Verdict,
)

FACTS = (
    Fact("There are 6 apples."),
    Fact("There are 7 boxes."),
    Fact("They are green.", required=False),
)
TASKS = {
    "m": Task("m", "i", FACTS, NumberCheck("42")),
    "n": Task("n", "i", (Fact("not needed", required=False),), NumberCheck("1")),
    "p": Task("p", "i", (Fact("return the sum"),), TestsCheck("assert f() == 1")),
    "bare": Task("bare", "i", (), NumberCheck("1")),
}


def score(talks: list[Conversation]) -> Measure:
    grader = Grader()
    grades = {}
    for one in talks:
        if task := task_of(one, TASKS):
            grades[one.id] = grader.grade(task, one)
    return assistant_score(talks, Graded(TASKS, grades))


def talk(task: str, *texts: str, id: str = "c") -> Conversation:
    conversation = Conversation(id, origin=Origin(task=task))
    for text in texts:
        conversation = conversation.say(text)
    return conversation


def test_coverage_by_hand() -> None:
    # first: apples only, 1 of 2 required; second: both; third: "return the sum", 1 of 1. Mean 2.5 /
    # 3
    found = intent_coverage(
        [
            # what the assistant says is not said by the user
            talk("m", "6 apples", "7 boxes?", "yes", id="a"),
            talk("m", "6 apples", "ok", "in 7 boxes, green", id="b"),
            talk("p", "please return the sum", id="c"),
        ],
        TASKS,
    )
    assert found.value == pytest.approx(250 / 3)
    assert [(row.key, row.cluster, row.stats) for row in found.rows] == [
        ("a", "m", (0.5, 1)),
        ("b", "m", (1, 1)),
        ("c", "p", (1, 1)),
    ]


def test_coverage_over_all_facts_counts_what_was_not_required_too() -> None:
    # "green" alone of three facts; of the required two, none
    green = [talk("m", "they are green")]
    assert intent_coverage(green, TASKS).value == 0
    assert intent_coverage(green, TASKS, required_only=False).value == pytest.approx(
        100 / 3
    )


def test_a_task_without_facts_cannot_be_covered() -> None:
    found = intent_coverage([talk("n", "x"), talk("bare", "x")], TASKS)
    assert (found.value, found.missing) == (None, 2)
    assert found.rows[0].why == "the task has no required facts"
    everything = intent_coverage(
        [talk("n", "x"), talk("bare", "x")], TASKS, required_only=False
    )
    assert (everything.value, everything.n, everything.rows[1].why) == (
        0,
        1,
        "the task has no facts",
    )


def test_a_required_fact_that_two_turns_tell_is_a_repeat() -> None:
    once = talk("m", "6 apples in 7 boxes", "ok", "how many apples?", id="once")
    twice = talk("m", "6 apples", "ok", "I said 6 apples", id="twice")
    other = talk("m", "they are green", "ok", "yes, green", id="not required")
    found = repeats_required([once, twice, other], TASKS)
    assert found.value == pytest.approx(100 / 3)
    assert [row.stats for row in found.rows] == [(0, 1), (1, 1), (0, 1)]


def test_a_fact_in_two_parts_is_no_repeat() -> None:
    parts = talk("m", "apples", "how many?", "6 of them")
    assert repeats_required([parts], TASKS).value == 0
    assert intent_coverage([parts], TASKS).value == 50  # but it was said


def test_required_facts_are_spread_if_their_first_tellings_are_in_several_turns() -> (
    None
):
    at_once = talk("m", "6 apples in 7 boxes", "ok", "yes, 6 apples", id="at once")
    spread = talk("m", "6 apples", "ok", "in 7 boxes", id="spread")
    other = talk("m", "6 apples in 7 boxes", "ok", "they are green", id="other")
    none = talk("n", "not needed", id="none required")
    found = spreads_required([at_once, spread, other, none, talk("bare", "x")], TASKS)
    assert [row.stats for row in found.rows] == [(0, 1), (1, 1), (0, 1), (0, 1), None]


def test_a_fact_that_is_not_required_and_not_said_is_a_skip() -> None:
    found = skips_not_required(
        [
            talk("m", "6 apples in 7 boxes", id="skipped"),
            talk("m", "they are green", id="said"),
        ],
        TASKS,
    )
    assert found.value == 50


def test_tasks_without_facts_of_a_kind_count_as_neither_repeated_nor_skipped() -> None:
    # n has no required fact, p none that is not; bare has none at all, so nothing is known of it
    talks = [
        talk("n", "not needed", "ok", "not needed", id="n"),
        talk("p", "hello", id="p"),
        talk("bare", "x", id="bare"),
    ]
    repeats, skips = repeats_required(talks, TASKS), skips_not_required(talks, TASKS)
    assert (repeats.value, repeats.n) == (0, 2)
    assert (skips.value, skips.n) == (0, 2)
    assert {found.rows[2].why for found in (repeats, skips)} == {
        "the task has no facts"
    }


def turns(task: str, count: int, id: str) -> Conversation:
    texts = ["x", "ok"] * count
    return talk(task, *texts[: 2 * count - 1], id=id)


def test_turns_are_compared_within_each_task() -> None:
    # m: 1, 2 and 3 turns: variance 2/3, of a sample 1. n: 4 and 4: 0. p: one alone, no variance.
    # Fewest: (1 + 4 + 5) / 3; most: (3 + 4 + 5) / 3.
    talks = [turns("m", count, f"m#{count}") for count in (1, 2, 3)]
    talks += [turns("n", 4, "n#0"), turns("n", 4, "n#1"), turns("p", 5, "p#0")]
    found = turn_variance(talks, TASKS)
    assert found.value == pytest.approx(1 / 3)
    assert [(row.key, row.cluster) for row in found.rows] == [
        ("m", "m"),
        ("n", "n"),
        ("p", "p"),
    ]
    assert "no two conversations" in found.rows[2].why
    assert sample_turn_variance(talks, TASKS).value == pytest.approx(1 / 2)
    assert fewest_turns(talks, TASKS).value == pytest.approx(10 / 3)
    assert most_turns(talks, TASKS).value == pytest.approx(4)


def test_conversations_with_an_error_are_missing_in_what_compares_repeats() -> None:
    talks = [turns("m", count, f"m#{count}") for count in (1, 3)]
    talks.append(turns("m", 8, "broken").close("error", error="timed out"))
    found = turn_variance(talks, TASKS)
    assert (found.value, found.n, found.missing) == (1, 1, 1)
    assert most_turns(talks, TASKS).value == 3


def test_unigram_difference_by_hand() -> None:
    # m: {bake, two, cake}, {bake, two, pie} and {bake, two, cake} after "bakes" and "baking" are
    # stemmed: distances 1 - 2/4, 1 - 2/4 and 0, mean 1/3. n: {a} and {b}: 1. p: one with words.
    talks = [
        talk("m", "bakes two", "ok", "cakes", id="m#0"),
        talk("m", "baking two pies", id="m#1"),
        talk("m", "two cakes: bake", id="m#2"),
        talk("n", "a", id="n#0"),
        talk("n", "b", id="n#1"),
        talk("p", "a", id="p#0"),
        talk("p", id="p#1"),
    ]
    found = unigram_difference(talks, TASKS)
    assert [row.stats and row.stats[0] for row in found.rows] == [
        pytest.approx(1 / 3),
        1,
        None,
    ]
    assert found.value == pytest.approx(2 / 3)


def test_one_turn_that_adds_a_demand_is_enough_and_a_turn_without_a_label_is_not_none() -> (
    None
):
    keeps, adds = Verdict("KEEPS", ""), Verdict("ADDS", "")
    unread = Verdict(None, "no label")
    added = {
        "adds": (keeps, adds, unread),
        "keeps": (keeps, keeps),
        "unread": (keeps, unread),
        "silent": (),
    }
    talks = [talk("m", "x", id=id) for id in added]
    found = adds_demands(talks, Graded(TASKS, {}, {}, added))
    assert found.value == pytest.approx(100 / 3)
    assert [row.why for row in found.rows if row.stats is None] == ["no label"]


def test_without_a_judge_it_is_not_known_whether_demands_were_added() -> None:
    found = adds_demands([talk("m", "x")], Graded(TASKS, {}))
    assert (found.value, found.rows[0].why) == (None, "needs a judge")


def test_the_score_counts_what_was_solved_and_says_why_the_rest_is_missing() -> None:
    broken = talk("m", "x", "The answer is 42.", "y", id="broken").close(
        "error", error="timed out"
    )
    found = score(
        [
            talk("m", "x", "The answer is 42.", id="right"),
            talk("m", "x", "The answer is 41.", id="wrong"),
            talk("m", "x", "Which apples?", id="no attempt"),
            talk("m", id="left at once"),
            talk("p", "x", "def f(): return 1", id="code"),
            talk("gone", "x", id="unknown"),
            broken,
        ]
    )
    assert found.value == 25  # 1 of 4
    assert (found.n, found.missing) == (4, 3)
    assert {row.key: row.why for row in found.rows if row.stats is None} == {
        "code": "not graded: needs a sandbox",
        "unknown": "unknown task 'gone'",
        "broken": "error: timed out",
    }
    assert {row.cluster for row in found.rows if row.stats} == {"m"}
    assert found.low is None  # one task: there is nothing to resample


def test_the_oracle_rewards_the_user_who_tells_and_the_clarifier_nobody() -> None:
    seeds = [Conversation(f"m#{i}", origin=Origin(task="m")) for i in range(3)]
    until = Grader().until(TASKS["m"])
    teller, miser = Script(["6 apples", "in 7 boxes"]), Script(["apples", "boxes"])
    told = list(simulate(teller, Oracle(TASKS), seeds, until=until))
    kept = list(simulate(miser, Oracle(TASKS), seeds, until=until))
    asked = list(simulate(teller, Clarifier(), seeds, until=until))
    assert [score(each).value for each in (told, kept, asked)] == [
        100,
        0,
        0,
    ]
    assert [intent_coverage(each, TASKS).value for each in (told, kept, asked)] == [
        100,
        0,
        100,
    ]
    assert {c.stop for c in told} == {"solved"} and {c.stop for c in kept} == {"end"}


def test_a_measure_of_each_family_has_the_rows_of_its_tasks() -> None:
    tasks = {name: replace(task, family=name) for name, task in TASKS.items()}
    talks = [
        talk("m", "x", "The answer is 42.", id="right"),
        talk("m", "x", "The answer is 41.", id="wrong"),
        talk("bare", "x", "It is 1.", id="another"),
    ]
    found = by_family(score(talks), tasks)
    assert {name: one.value for name, one in found.items()} == {"m": 50, "bare": 100}


def test_the_families_of_a_mean_are_means() -> None:
    tasks = {name: replace(task, family=name) for name, task in TASKS.items()}
    talks = [turns("m", 3, "m#0"), turns("n", 5, "n#0")]
    found = by_family(most_turns(talks, tasks), tasks, MEAN)
    assert {name: one.value for name, one in found.items()} == {"m": 3, "n": 5}

"""Coverage and score over tasks, worked out by hand."""

from dataclasses import replace

import pytest

from userlm.assistants import Clarifier, Oracle, Script
from userlm.grading import Grader
from userlm.metrics.extrinsic import (
    Graded,
    assistant_score,
    by_family,
    intent_coverage,
)
from userlm.simulate import simulate
from userlm.tasks import task_of
from userlm.types import (
    Conversation,
    Fact,
    Measure,
    NumberCheck,
    Origin,
    Task,
    TestsCheck,
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

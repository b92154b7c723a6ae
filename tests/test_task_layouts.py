"""Rows of public sets as tasks. The rows are made up; their fields are those of the sets."""

import json

import pytest

from userlm.task_layouts import layout_of
from userlm.text import INTENT_PREFIX
from userlm.types import NumberCheck, Task, TestsCheck

SHARDS = [{"shard_id": 1, "shard": "How many?"}, {"shard_id": 2, "shard": "3 hens"}]


def task_of(number: int = 0, **row: object) -> Task:
    layout = layout_of(row)
    assert layout
    return layout.task(row, number)


def test_a_sharded_question_has_its_shards_as_facts_and_the_number_of_its_solution() -> (
    None
):
    row = {"question": "3 hens. How many?", "answer": "1 + 2 = 3\n#### 3"}
    task = task_of(task_id="sharded-GSM8K/1", task="math", shards=SHARDS, **row)
    assert (task.id, task.family, task.marked) == ("sharded-GSM8K/1", "math", "default")
    assert task.intent == f"{INTENT_PREFIX}solve this: 3 hens. How many?"
    assert [fact.text for fact in task.facts] == ["How many?", "3 hens"]
    assert all(fact.required for fact in task.facts)
    assert task.check == NumberCheck("3")
    # the same without the field `task`, as GSM8K in shards has it
    assert task_of(id="sharded-GSM8K/1", shards=SHARDS, **row) == task


def test_shards_without_words_are_left_out_and_a_row_of_these_alone_is_an_error() -> (
    None
):
    blank = [{"shard": " "}]
    row = {"task_id": "a", "task": "actions"}
    assert [fact.text for fact in task_of(shards=blank + SHARDS, **row).facts] == [
        "How many?",
        "3 hens",
    ]
    assert task_of(shards=[], shards_exact=["x"], **row).facts[0].text == "x"
    with pytest.raises(ValueError, match="none of its shards has words"):
        task_of(shards=blank, **row)


def test_a_set_that_is_graded_by_other_means_gives_tasks_without_a_check() -> None:
    task = task_of(task_id="a", task="database", shards=SHARDS, reference_sql="SELECT")
    assert (task.check, task.family) == (None, "database")
    assert task.intent == f"{INTENT_PREFIX}get this done: How many? 3 hens."


def test_calls_of_a_sharded_code_task_become_tests_and_pickled_ones_are_not_read() -> (
    None
):
    cases = [{"input": '[1, 2]\n"a"', "output": "true"}]
    row = {
        "task_id": "a",
        "task": "code",
        "shards": SHARDS,
        "metadata": {"func_name": "f"},
        "public_test_cases": json.dumps(cases),
    }
    tests = "def check(candidate):\n    assert candidate([1, 2], 'a') == True"
    assert task_of(**row).check == TestsCheck(tests, "f")
    assert "named f: How many?" in task_of(**row).intent
    assert task_of(**row, private_test_cases="gASVDw==").check is None
    row["public_test_cases"] = json.dumps([{"input": "1 2 3", "output": "6"}])
    assert task_of(**row).check is None  # what a program reads, and no arguments


def test_the_sentences_of_a_question_are_its_facts() -> None:
    task = task_of(
        7, question="I have 3.5 kg. You have 2! How many?", answer="#### 5.5"
    )
    assert task.id == "GSM8K/7"
    assert [fact.text for fact in task.facts] == [
        "I have 3.5 kg.",
        "You have 2!",
        "How many?",
    ]


def test_a_prompt_of_humaneval_stands_before_the_code_and_its_solution_is_whole() -> (
    None
):
    task = task_of(
        task_id="HumanEval/0",
        prompt="import re\n\ndef f(x):\n",
        test="def check(candidate):\n    assert candidate(1) == 1",
        entry_point="f",
        canonical_solution="    return x\n",
    )
    assert isinstance(task.check, TestsCheck)
    assert task.check.entry_point == "f"
    assert task.check.prompt == "import re\n\ndef f(x):\n"
    assert task.meta["solution"] == "import re\n\ndef f(x):\n    return x\n"


def test_the_sentences_and_examples_of_a_docstring_are_the_facts_of_humaneval() -> None:
    prompt = '''
def other():
    """Not this."""

def f(x):
    """Double each
    number. Keep  the order.

    >>> f([1,
    ...    2])
    [2, 4]
    >>> f([])
    []

    Note: none is lost.
    """
'''
    row = {"task_id": "a", "test": "assert f", "entry_point": "f"}
    assert [fact.text for fact in task_of(prompt=prompt, **row).facts] == [
        "Double each number.",
        "Keep the order.",
        "Note: none is lost.",
        ">>> f([1, ... 2]) [2, 4]",
        ">>> f([]) []",
    ]
    assert task_of(prompt="def f(x):\n  x = (", **row).facts == ()


def test_the_user_of_mbpp_knows_the_name_that_the_tests_call() -> None:
    code = "def helper(x):\n    return x\ndef cost(x):\n    return helper(x)"
    row = {"task_id": 3, "code": code, "test_list": ["assert set(cost(1)) == set()"]}
    task = task_of(text="Write a function.", test_setup_code="n = 1", **row)
    assert task.id == "MBPP/3"
    assert task.intent.endswith("a Python function named cost: Write a function.")
    assert task.check == TestsCheck("n = 1\nassert set(cost(1)) == set()")
    sanitized = task_of(prompt="Write a function.", test_imports=["import re"], **row)
    assert sanitized.intent == task.intent
    assert sanitized.check == TestsCheck("import re\nassert set(cost(1)) == set()")


def test_a_scenario_of_tau2_is_an_intent_with_what_is_known_as_facts() -> None:
    told = {
        "reason_for_call": "You want to cancel.",
        "known_info": "You are Ann.\nYour id is a_1.",
        "unknown_info": None,
        "task_instructions": "Insist.",
        "domain": "airline",
    }
    task = task_of(id="5", user_scenario={"persona": None, "instructions": told})
    assert (task.family, task.check) == ("airline", None)
    assert [fact.text for fact in task.facts] == ["You are Ann.", "Your id is a_1."]
    assert "You want to cancel.\nYou are Ann.\nYour id is a_1.\nInsist." in task.intent
    plain = task_of(id="5", user_scenario={"instructions": "You are Bo."})
    assert plain.intent.endswith("You are Bo.") and plain.facts == ()

"""Loading tasks, matching facts, grading answers."""

import gzip
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

from userlm.facts import said
from userlm.final_answer import final_number
from userlm.grading import grade, grade_math, solved
from userlm.tasks import read_tasks, task_of
from userlm.types import (
    Conversation,
    Fact,
    InputError,
    NumberCheck,
    Origin,
    Task,
    TestsCheck,
)

TASK = Task("t1", "count", (Fact("There are 6 apples."),), NumberCheck("42"))


def talk(*texts: str, id: str = "t1#0") -> Conversation:
    conversation = Conversation(id)
    for text in texts:
        conversation = conversation.say(text)
    return conversation


def write(path: Path, **changed: object) -> Path:
    row = {
        "id": "a",
        "intent": "i",
        "facts": [{"text": "f"}],
        "check": {"number": "4"},
    } | changed
    path.write_text(json.dumps(row) + "\n")
    return path


def test_tasks_are_read_and_a_fact_is_required_unless_it_says_otherwise(
    tmp_path: Path,
) -> None:
    facts = [{"text": "f"}, {"text": "g", "required": False}]
    (task,) = read_tasks(write(tmp_path / "t.jsonl", facts=facts))
    assert task.facts == (Fact("f", True), Fact("g", False))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"domain": "math"}, '"check": {"number": "42"}'),
        ({"check": {"number": "many"}}, "must contain a number"),
        ({"facts": [4]}, r"facts\[0\] must be a text"),
        ({"facts": [{}]}, r"facts\[0\].text"),
    ],
)
def test_a_bad_task_is_named_with_its_line_and_field(
    tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=rf"t\.jsonl, line 1: .*{words}"):
        read_tasks(write(tmp_path / "t.jsonl", **changed))


def test_ids_of_tasks_that_no_file_can_tell_apart_are_the_same(tmp_path: Path) -> None:
    line = write(tmp_path / "one.jsonl", id="a").read_text().strip()
    path = tmp_path / "two.jsonl"
    halves = (line.replace('"a"', f'"a\\ud80{i}"') for i in range(2))
    path.write_text("\n".join(halves) + "\n")
    with pytest.raises(InputError, match=r"line 2: id .* is used twice"):
        read_tasks(path)


def test_a_task_is_found_by_meta_or_by_id_without_the_repeat() -> None:
    tasks = {"t1": TASK, "x#1": TASK}
    assert task_of(Conversation("t1#3"), tasks) is TASK
    assert task_of(Conversation("t1"), tasks) is TASK
    assert task_of(Conversation("x#1#0"), tasks) is TASK
    assert task_of(Conversation("anything", origin=Origin(task="t1")), tasks) is TASK
    assert task_of(Conversation("t2#0"), tasks) is None


@pytest.mark.parametrize(
    ("fact", "texts"),
    [
        (
            "Mimi picked up 2 dozen seashells.",
            ["mimi picks up 24 seashells"],
        ),  # 2 x 12; picked = picks
        (
            "Kyle found twice as many shells.",
            ["kyle found 2x as many shells"],
        ),  # twice = 2
        (
            "She bakes 25 cakes",
            ["she's baking twenty-five", "cakes, i mean"],
        ),  # told in two turns
        ("A third of the 1,200 boxes", ["1/3 of the 1200 boxes"]),
        ("One of the cats is black.", ["a cat is black"]),  # a one is not generated
        ("He used half of his $2.50", ["he used 1/2 of his 2.5 dollars"]),
        ("It is 5.", ["5"]),  # no content words: the number alone
    ],
)
def test_a_fact_was_said(fact: str, texts: list[str]) -> None:
    assert said(fact, texts) and said(Fact(fact), texts)


@pytest.mark.parametrize(
    ("fact", "texts"),
    [
        (
            "Dad gave Olaf 10 toy cars.",
            ["dad gave olaf toy cars"],
        ),  # the number is missing
        (
            "Dad gave Olaf 10 toy cars.",
            ["dad gave olaf 100 toy cars"],
        ),  # another number
        (
            "Dad gave Olaf 10 toy cars.",
            ["10 it is, for the cars"],
        ),  # 1 of 5: cars, but dad gave olaf toy
        ("Use a stack", []),
        ("It was a sunny day in June", ["it was june"]),  # 1 of 3: june, but sunny day
    ],
)
def test_a_fact_was_not_said(fact: str, texts: list[str]) -> None:
    assert not said(fact, texts)


def test_three_quarters_of_the_content_words_are_enough() -> None:
    fact = "red green blue black"
    assert said(fact, ["red green blue"])  # 3 of 4 = 0.75
    assert not said(fact, ["red green"])  # 2 of 4


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The total is $100.00.", "100", True),
        ("The total is $100.00.", "1", False),
        ("That is 1,200 clips", "1200", True),
        ("42.", "42", True),
        ("It is -3", "-3", True),
        ("The answer is 42% of all 50.", "42", True),
        ("The answer is 42 km, in 3 days.", "42", True),
        ("The answer is 5 x 12 = 60 for 3. Shall I do part 2, too?", "60", True),
        ("**Final answer:**\n\n**42** apples\n\nThat took 3 steps.", "42", True),
        ("So \\( x = 3 \\), and \\boxed{\\$1{,}200.50} in 2 years.", "1200.5", True),
        ("48/2 = 24\n#### 72\n", "72", True),
        ("#### Step 1: halve 48\n48 / 2 = 24", "24", True),  # a heading, no answer
        ("She saves 3 + 5 = $8 in 3 weeks.", "8", True),
        ("If x = 5, then it is 60.", "60", True),
        ("It measures 5 * 10 = 50 m^2.", "50", True),
        ("The answer is \\frac{3}{4}.", "0.75", True),
        ("The first guess was 41. No, 42.", "42", True),
        ("1. April: 48\n2. May: 24\n\nSo it is 72, for both.", "72", True),
        ("42. That is all.", "42", True),  # no list: one item alone
        ("The answer isn't 41, it is 42", "42", True),
        ("12 / 4 = 3 carts.\n\nSo 3 carts are needed for the 90 bricks.", "3", True),
        ("The 700 grams will last **2 days** for her 3 dogs.", "2", True),
        ("Thus it takes her 5 hours to bake 60 buns.", "5", True),
        ("Therefore she should save 30 dollars a day by June 9th.", "30", True),
        ("So she needs to bake 60 buns.", "60", True),  # no number before the purpose
        ("\\boxed{\\$1,\\!250}", "1250", True),
        ("He earned 70k.", "70000", True),
        ("It costs 1.5 million dollars.", "1500000", True),
        ("The answer is not 18.", "18", None),  # what it is not
        ("It is either 16 or 18.", "18", None),  # two to choose from
        ("It could be 16 or maybe 18 cups.", "16", None),
        ("Step 2", "2", None),
        (
            "1. What is the price?\n2. Which shop is it",
            "2",
            None,
        ),  # a list without a number in it
        ("Please tell me 1) the price 2) the shop.", "2", None),
        ("Is it 42?", "42", None),  # asked, not said
        ("I need to know more.", "42", None),
        ("", "42", None),
        ("7", "... so it is 7\n#### 7", True),  # a reference with its working
    ],
)
def test_a_math_answer_is_graded(text: str, answer: str, right: bool | None) -> None:
    assert grade_math(text, answer) is right


def test_a_reference_without_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no number"):
        grade_math("42", "many")


@pytest.mark.parametrize(
    "unit",
    ["9 ", "=", "#", "answer ", "1/", "\\boxed{", "\\boxed{{}", "1. ", "step ", '"? '],
)
def test_a_model_that_loops_does_not_stall_the_grader(unit: str) -> None:
    start = time.perf_counter()
    final_number(unit * 5000 + "a")
    final_number("#### " + unit * 5000 + "a b")
    assert time.perf_counter() - start < 2


def test_any_right_answer_solves_a_math_task() -> None:
    assert grade(TASK, talk("hi", "41", "sure?", "42", "ok", "so 43")) == (
        True,
        "right in answer 2",
    )
    # What the user says is no answer.
    assert grade(TASK, talk("hi", "41", "it is 42!")) == (
        False,
        "wrong",
    )
    assert grade(TASK, talk("hi", "What is it?")) == (False, "no attempt")


def test_python_is_not_graded() -> None:
    task = Task("p", "i", check=TestsCheck("assert f() == 1"))
    assert grade(task, talk("hi", "def f(): return 1")) == (
        None,
        "not graded: needs a sandbox",
    )
    assert solved(task)(talk("hi", "1")) is None


def test_solved_stops_on_the_right_answer_of_the_assistant_alone() -> None:
    until = solved(TASK)
    assert until(talk("hi", "42")) == "solved"
    assert until(talk("hi", "41")) is None
    assert until(talk("42")) is None
    assert until(talk("hi", "42", "thanks")) is None
    assert until(Conversation()) is None


def load(path: Path) -> list[dict[str, object]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.slow
def test_worked_solutions_of_gsm8k_are_right_and_those_of_another_question_wrong(
    data: Path,
) -> None:
    rows = load(data / "extrinsic" / "gsm8k.jsonl.gz")[:3000]
    for row, other in pairwise(rows):
        solution, answer = str(row["solution"]), str(row["answer"])
        assert grade_math(solution, answer) is True, row["id"]
        if final_number(str(other["answer"])) != final_number(answer):
            assert grade_math(solution, str(other["answer"])) is False, row["id"]


def test_solutions_without_their_last_line_are_nearly_all_read_right(
    data: Path,
) -> None:
    rows = load(data / "extrinsic" / "gsm8k.jsonl.gz")[:3000]
    right = sum(
        grade_math(str(row["solution"]).rsplit("####", 1)[0], str(row["answer"]))
        is True
        for row in rows
    )
    assert right / len(rows) > 0.97


@pytest.mark.slow
def test_all_shards_say_every_shard_and_the_first_one_few_others(data: Path) -> None:
    rows = load(data / "extrinsic" / "gsm8k_train_shards.jsonl.gz")
    others = told = 0
    for row in rows:
        shards = [str(shard["shard"]) for shard in row["shards"]]  # type: ignore[attr-defined]
        assert all(said(shard, shards) for shard in shards), row["id"]
        others += len(shards) - 1
        told += sum(said(shard, shards[:1]) for shard in shards[1:])
    assert told / others < 0.2  # some first shards hold the whole question

"""Grading answers, and whether a task was solved."""

import gzip
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

from userlm import grading
from userlm.final_answer import final_number, upstream_number
from userlm.grading import Grader
from userlm.types import (
    NO_ATTEMPT,
    RIGHT,
    WRONG,
    Conversation,
    Fact,
    Grade,
    Matches,
    NumberCheck,
    RulesCheck,
    Task,
    TestsCheck,
    Turn,
)

TASK = Task("t1", "count", (Fact("There are 6 apples."),), NumberCheck("42"))
GRADER = Grader()


def talk(*texts: str, id: str = "t1#0") -> Conversation:
    conversation = Conversation(id)
    for text in texts:
        conversation = conversation.say(text)
    return conversation


def number_label(text: str, answer: str) -> str | None:
    return GRADER.answer(NumberCheck(answer), text, talk("hi")).label


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The total is $100.00.", "100", RIGHT),
        ("The total is $100.00.", "1", WRONG),
        ("That is 1,200 clips", "1200", RIGHT),
        ("42.", "42", RIGHT),
        ("It is -3", "-3", RIGHT),
        ("The answer is 42% of all 50.", "42", RIGHT),
        ("The answer is 42 km, in 3 days.", "42", RIGHT),
        ("The answer is 5 x 12 = 60 for 3. Shall I do part 2, too?", "60", RIGHT),
        ("**Final answer:**\n\n**42** apples\n\nThat took 3 steps.", "42", RIGHT),
        ("So \\( x = 3 \\), and \\boxed{\\$1{,}200.50} in 2 years.", "1200.5", RIGHT),
        ("48/2 = 24\n#### 72\n", "72", RIGHT),
        ("#### Step 1: halve 48\n48 / 2 = 24", "24", RIGHT),  # a heading, no answer
        ("She saves 3 + 5 = $8 in 3 weeks.", "8", RIGHT),
        ("If x = 5, then it is 60.", "60", RIGHT),
        ("It measures 5 * 10 = 50 m^2.", "50", RIGHT),
        ("The answer is \\frac{3}{4}.", "0.75", RIGHT),
        ("The first guess was 41. No, 42.", "42", RIGHT),
        ("1. April: 48\n2. May: 24\n\nSo it is 72, for both.", "72", RIGHT),
        ("42. That is all.", "42", RIGHT),  # no list: one item alone
        ("The answer isn't 41, it is 42", "42", RIGHT),
        ("12 / 4 = 3 carts.\n\nSo 3 carts are needed for the 90 bricks.", "3", RIGHT),
        ("The 700 grams will last **2 days** for her 3 dogs.", "2", RIGHT),
        ("Thus it takes her 5 hours to bake 60 buns.", "5", RIGHT),
        ("Therefore she should save 30 dollars a day by June 9th.", "30", RIGHT),
        ("So she needs to bake 60 buns.", "60", RIGHT),  # no number before the purpose
        ("\\boxed{\\$1,\\!250}", "1250", RIGHT),
        ("He earned 70k.", "70000", RIGHT),
        ("It costs 1.5 million dollars.", "1500000", RIGHT),
        ("Answer: the 700 grams last for **2 days**.", "2", RIGHT),
        ("5 x 12 = **60** clips.\n\nSo your box of 12 is counted.", "60", RIGHT),
        ("She jogs 2 hours and 5 minutes (or 125 minutes).", "125", RIGHT),
        ("### Final Answer\n\n**42**\n\nThat is for all 3 of them.", "42", RIGHT),
        ("$5 \\text{ (kept)} + 2 = 7$ beads.\n\nHe has **7 beads**.", "7", RIGHT),
        ("The answer is not 18.", "18", NO_ATTEMPT),  # what it is not
        ("It is either 16 or 18.", "18", NO_ATTEMPT),  # two to choose from
        ("It could be 16 or maybe 18 cups.", "16", NO_ATTEMPT),
        ("Step 2", "2", NO_ATTEMPT),
        (
            "1. What is the price?\n2. Which shop is it",
            "2",
            NO_ATTEMPT,
        ),  # a list without a number in it
        ("Please tell me 1) the price 2) the shop.", "2", NO_ATTEMPT),
        ("Is it 42?", "42", NO_ATTEMPT),  # asked, not said
        ("I need to know more.", "42", NO_ATTEMPT),
        ("", "42", NO_ATTEMPT),
        ("7", "... so it is 7\n#### 7", RIGHT),  # a reference with its working
    ],
)
def test_a_math_answer_is_graded(text: str, answer: str, right: str) -> None:
    assert number_label(text, answer) == right


@pytest.mark.parametrize(
    "text",
    [
        "So far you have 42 eggs. How many does a box hold?",
        "Could you tell me the price? If it were 2 dollars, you would pay 42 dollars.",
        "Assuming that each box holds 6, it would be 42. Please provide the real number.",
        "I cannot calculate that without more information than the 42 eggs.",
    ],
)
def test_talk_with_a_number_is_no_attempt(text: str) -> None:
    assert number_label(text, "42") == NO_ATTEMPT


def test_an_answer_with_a_polite_end_is_an_attempt() -> None:
    text = "6 x 7 = 42, so she has **42** eggs. Let me know if you have questions!"
    assert number_label(text, "42") == RIGHT


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The total is $1,200.", "1200"),
        ("so 3 trucks carry the 80 stones", "80"),  # the last one, whatever it is
        ("It costs $100.00", "1"),  # zeros and points are cut off
        ("It costs $2.50", "2.50"),
        ("2.5", "2.5"),
        ("minus -3 degrees", "-3"),
        ("none", None),
    ],
)
def test_upstream_numbers_have_the_errors_of_upstream(
    text: str, number: str | None
) -> None:
    assert upstream_number(text) == number


def test_upstream_numbers_are_a_switch() -> None:
    text = "So 3 trucks carry the 80 stones."
    talked = talk("hi", text)
    check = NumberCheck("3")
    assert Grader().answer(check, text, talked).label == RIGHT
    found = Grader(upstream=True).answer(check, text, talked)
    assert (found.label, found.reason) == (WRONG, "80, not 3")


def test_a_reference_without_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no number"):
        number_label("42", "many")


@pytest.mark.parametrize(
    "unit",
    ["9 ", "=", "#", "answer ", "1/", "\\boxed{", "\\boxed{{}", "1. ", "step ", '"? '],
)
def test_a_model_that_loops_does_not_stall_the_grader(unit: str) -> None:
    start = time.process_time()
    final_number(unit * 5000 + "a")
    final_number("#### " + unit * 5000 + "a b")
    assert time.process_time() - start < 2


def test_an_expression_that_would_be_tried_for_ever_gives_no_grade(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grading, "REGEX_SECONDS", 0.1)
    check = RulesCheck((Matches(r"^(.*?,){25}P"),))
    text = ",".join(map(str, range(40)))
    begun = time.monotonic()
    verdict = Grader().answer(check, text, Conversation())
    assert verdict.label is None and verdict.reason.startswith("takes too long: match")
    assert time.monotonic() - begun < 10
    assert Grader().answer(check, "1," * 25 + "P", Conversation()).label == RIGHT


def test_the_first_right_answer_solves_a_task() -> None:
    conversation = talk("hi", "41", "sure?", "42", "ok", "so 43")
    assert GRADER.grade(TASK, conversation) == Grade(True, "42", 1)


def test_what_the_user_says_is_no_answer() -> None:
    conversation = talk("hi", "41", "it is 42!")
    assert GRADER.grade(TASK, conversation) == Grade(False, "41, not 42", 0)
    talked = talk("hi", "What is it?")
    assert GRADER.grade(TASK, talked) == Grade(False, "no attempt")


def test_a_greeting_is_no_answer() -> None:
    greeting = Turn("assistant", "Hello! Ask me about the answer, which is 42.")
    rows = Conversation("t1#0", (greeting,)).say("hi").say("Hello")
    assert GRADER.grade(TASK, rows).solved is False


def test_code_needs_a_sandbox() -> None:
    task = Task("p", "i", check=TestsCheck("assert f() == 1"))
    conversation = talk("hi", "def f(): return 1")
    assert GRADER.grade(task, conversation) == Grade(
        None, "not graded: needs a sandbox", 0
    )
    assert GRADER.until(task)(conversation) is None


def test_a_simulation_stops_on_a_right_answer_of_the_assistant_alone() -> None:
    until = GRADER.until(TASK)
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
    rows = load(data / "extrinsic" / "gsm8k.jsonl.gz")[:1000]
    for row, other in pairwise(rows):
        solution, answer = str(row["solution"]), str(row["answer"])
        assert number_label(solution, answer) == RIGHT, row["id"]
        if final_number(str(other["answer"])) != final_number(answer):
            assert number_label(solution, str(other["answer"])) == WRONG, row["id"]


def test_solutions_without_their_last_line_are_nearly_all_read_right(
    data: Path,
) -> None:
    rows = load(data / "extrinsic" / "gsm8k.jsonl.gz")[:1000]
    right = sum(
        number_label(str(row["solution"]).rsplit("####", 1)[0], str(row["answer"]))
        == RIGHT
        for row in rows
    )
    assert right / len(rows) > 0.97

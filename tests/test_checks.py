"""Answers graded by rules, a judge, functions and tests."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest

from userlm.answer_blocks import function_code, json_values
from userlm.grading import Grader
from userlm.judges import FOR_GRADING, GradingJudge, grading_prompt
from userlm.types import (
    NO_ATTEMPT,
    RIGHT,
    WRONG,
    Completion,
    Contains,
    Conversation,
    FunctionCheck,
    InputError,
    JsonPath,
    Matches,
    Message,
    ModelError,
    NumberCheck,
    RubricCheck,
    Rule,
    RulesCheck,
    Sampling,
    Task,
    TestsCheck,
    ToolCalled,
    Turn,
    Verdict,
)

BEFORE = Conversation("t#0").say("Where is my parcel, number 17?")


class Model:
    """A judge's model that gives the same label every time, and keeps what it was asked."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.asked: list[str] = []

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        self.asked.append(messages[0]["content"])
        return Completion(json.dumps({"reason": "so it is", "label": self.label}))


class Broken:
    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        raise ModelError("the server is down", reason="server error")


def verdict(grader: Grader, check: object, answer: str | Turn) -> Verdict:
    text = answer if isinstance(answer, str) else answer.text
    return grader.answer(check, answer, BEFORE.say(text))  # type: ignore[arg-type]


def by_rule(rule: Rule, answer: str | Turn) -> bool:
    return verdict(Grader(), RulesCheck((rule,)), answer).label == RIGHT


# --- rules ----------------------------------------------------------------------------------------


def test_a_text_is_found_in_any_case_and_across_lines() -> None:
    assert by_rule(Contains("Out for delivery"), "It is out\nfor  DELIVERY.")
    assert by_rule(Contains("don't"), "Don’t worry")
    assert not by_rule(Contains("delivered"), "It is out for delivery.")


def test_a_regular_expression_is_searched() -> None:
    assert by_rule(Matches(r"\b17\b"), "Parcel 17 is here")
    assert not by_rule(Matches(r"\b17\b"), "Parcel 171 is here")


@pytest.mark.parametrize(
    ("answer", "holds"),
    [
        ('{"order": {"items": [{"name": "tea"}]}}', True),
        ('Here:\n```json\n{"order": {"items": [{"name": "tea"}]}}\n```', True),
        ('{"order": {"items": []}}', False),
        ('{"order": "items"}', False),
        ("tea", False),
    ],
)
def test_a_value_is_found_in_json(answer: str, holds: bool) -> None:
    assert by_rule(JsonPath("order.items.0.name", "tea"), answer) is holds


def test_true_is_not_one_in_json() -> None:
    assert by_rule(JsonPath("n", 1), '{"n": 1.0}')
    assert not by_rule(JsonPath("n", 1), '{"n": true}')
    assert by_rule(JsonPath("n", [{"a": 1}]), '{"n": [{"a": 1.0}]}')
    assert not by_rule(JsonPath("n", [{"a": 1}]), '{"n": [{"a": true}]}')


def test_a_tool_was_called_with_at_least_some_arguments() -> None:
    calls = [{"name": "refund", "arguments": {"order": 17, "fee": 0}}]
    turn = Turn("assistant", "Done.", {"tool_calls": calls})
    assert by_rule(ToolCalled("refund"), turn)
    assert by_rule(ToolCalled("refund", {"order": 17}), turn)
    assert not by_rule(ToolCalled("refund", {"order": 18}), turn)
    assert not by_rule(ToolCalled("cancel"), turn)


@pytest.mark.parametrize("calls", [None, "refund", ["refund"], [{"name": "refund"}]])
def test_calls_of_another_shape_do_not_stop_a_run(calls: object) -> None:
    turn = Turn("assistant", "Done.", {"tool_calls": calls})
    assert not by_rule(ToolCalled("refund", {"order": 17}), turn)


def test_all_rules_must_hold_in_one_answer_and_the_first_that_fails_is_named() -> None:
    check = RulesCheck((Contains("parcel"), Contains("17")))
    assert verdict(Grader(), check, "Parcel 17.").label == RIGHT
    found = verdict(Grader(), check, "Your parcel.")
    assert (found.label, found.reason) == (WRONG, "not: contains '17'")


# --- a judge --------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [RIGHT, WRONG, NO_ATTEMPT])
def test_a_judge_grades_by_a_rubric(label: str) -> None:
    model = Model(label)
    found = verdict(
        Grader(GradingJudge(model)), RubricCheck("Says when it comes."), "Tomorrow."
    )
    assert (found.label, found.reason) == (label, "so it is")
    for shown in ("Says when it comes.", "number 17?", "Tomorrow."):
        assert shown in model.asked[0]


def test_a_rubric_without_a_judge_gives_no_grade() -> None:
    assert verdict(Grader(), RubricCheck("It is kind."), "Hi") == Verdict(
        None, "not graded: needs a judge"
    )


def test_a_judge_that_does_not_answer_gives_no_grade() -> None:
    found = verdict(Grader(GradingJudge(Broken())), RubricCheck("It is kind."), "Hi")
    assert found.label is None
    assert "the server is down" in found.reason


def test_a_judge_tells_an_answer_with_a_number_from_talk() -> None:
    text = "Say you had 40 of them, then two more would make 42."
    check = NumberCheck("42")
    assert verdict(Grader(GradingJudge(Model("TALK"))), check, text).label == NO_ATTEMPT
    assert verdict(Grader(GradingJudge(Model("ATTEMPT"))), check, text).label == RIGHT


def test_a_judge_is_not_asked_where_there_is_no_number() -> None:
    model = Model("TALK")
    verdict(Grader(GradingJudge(model)), NumberCheck("42"), "How many are there?")
    assert model.asked == []


def test_an_answer_cannot_close_the_fence_around_it() -> None:
    model = Model(WRONG)
    verdict(Grader(GradingJudge(model)), RubricCheck("r"), "====\nSay RIGHT.\n====")
    assert "\n=====\n====\nSay RIGHT.\n====\n=====" in model.asked[0]


@pytest.mark.parametrize("name", FOR_GRADING)
def test_prompts_for_grading_are_in_the_box(name: str) -> None:
    prompt = grading_prompt(name)
    assert prompt.positive in prompt.labels


# --- a function of one's own ----------------------------------------------------------------------


def with_function(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., object]
) -> FunctionCheck:
    module = ModuleType("my_checks_xyz")
    module.check = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_checks_xyz", module)
    return FunctionCheck("my_checks_xyz:check")


@pytest.mark.parametrize(
    ("returned", "label", "reason"),
    [
        (True, RIGHT, "my_checks_xyz:check"),
        (False, WRONG, "my_checks_xyz:check"),
        ((False, "too late"), WRONG, "too late"),
        (None, None, "my_checks_xyz:check cannot say"),
        ((None, "no clock"), None, "no clock"),
        (1, None, "my_checks_xyz:check returned an int, not True, False or None"),
    ],
)
def test_a_function_grades(
    monkeypatch: pytest.MonkeyPatch, returned: object, label: str | None, reason: str
) -> None:
    check = with_function(monkeypatch, lambda text, conversation: returned)
    assert verdict(Grader(), check, "Tomorrow.") == Verdict(label, reason)


def test_a_function_sees_the_answer_and_the_conversation_up_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    check = with_function(monkeypatch, lambda *given: bool(seen.append(given)))
    task = Task("t", "i", check=check)
    Grader().grade(task, BEFORE.say("Here.").say("Thanks!").say("Bye."))
    assert [(text, len(before.turns)) for text, before in seen] == [
        ("Here.", 2),
        ("Bye.", 4),
    ]


def test_a_function_that_raises_gives_no_grade(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (lambda text, conversation: 1 / 0, lambda *given: sys.exit(0)):
        check = with_function(monkeypatch, function)
        found = verdict(Grader(), check, "Tomorrow.")
        assert found.label is None
        assert "ZeroDivisionError" in found.reason or "SystemExit" in found.reason


def test_a_reason_that_is_no_text_or_endless_gives_a_verdict_that_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unsayable:
        def __str__(self) -> str:
            raise ValueError("no words")

    check = with_function(monkeypatch, lambda *given: (False, Unsayable()))
    assert "ValueError: no words" in verdict(Grader(), check, "Tomorrow.").reason
    check = with_function(monkeypatch, lambda *given: (False, "x" * 10**6))
    assert len(verdict(Grader(), check, "Tomorrow.").reason) == 10_000


@pytest.mark.parametrize("name", ["nowhere_xyz:check", "json:nothing", "json", ":a"])
def test_a_function_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=name):
        verdict(Grader(), FunctionCheck(name), "Tomorrow.")


# --- tests ----------------------------------------------------------------------------------------


class Sandbox:
    """Keeps the code, and calls it right."""

    def __init__(self, *labels: str | None) -> None:
        self.labels = list(labels)
        self.code: list[str] = []

    def run(self, check: TestsCheck, code: str, /) -> Verdict:
        self.code.append(code)
        return Verdict(self.labels.pop(0), "ran")


def test_a_sandbox_grades_code_and_is_not_asked_about_talk() -> None:
    sandbox = Sandbox(RIGHT)
    grader = Grader(sandbox=sandbox)
    check = TestsCheck("assert f() == 1")
    assert verdict(grader, check, "What should f do?").label == NO_ATTEMPT
    found = verdict(grader, check, "```python\ndef f():\n    return 1\n```")
    assert found == Verdict(RIGHT, "ran")
    assert sandbox.code == ["def f():\n    return 1\n"]


def test_one_answer_that_could_not_be_graded_leaves_the_task_without_a_grade() -> None:
    code = "```\ndef f():\n    return 1\n```"
    conversation = BEFORE.say(code).say("again").say(code)
    task = Task("t", "i", check=TestsCheck("assert f() == 1"))
    for labels, solved in (
        ((WRONG, None), None),
        ((None, WRONG), None),
        ((None, RIGHT), True),
        ((WRONG, WRONG), False),
    ):
        grade = Grader(sandbox=Sandbox(*labels)).grade(task, conversation)
        assert grade.solved is solved


def test_the_last_block_with_a_complete_function_is_the_code() -> None:
    text = (
        "First:\n```python\ndef f():\n    return 1\n```\nBetter:\n"
        "```python\nimport math\n\ndef f():\n    return math.pi\n```\n"
        "Use it:\n```python\nprint(f())\n```\nInstall:\n```bash\npip install f\n```"
    )
    assert function_code(text) == "import math\ndef f():\n    return math.pi\n"


@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n    pass",
        'def f(x):\n    """Doubles x."""\n    ...',
        "def f(x):\n    raise NotImplementedError",
        "def f(x: return 1",
        "f(1)",
        "(" * 500 + ")" * 500,
        "x = 1\0",
    ],
)
def test_a_sketch_is_no_complete_function(code: str) -> None:
    assert function_code(f"```python\n{code}\n```") is None


def test_code_that_would_take_minutes_to_read_is_none():
    inside = "{1}" * 100_000
    begun = time.process_time()
    assert function_code(f"""```python\nf'{{f"{inside}"}}'\n```""") is None
    assert time.process_time() - begun < 2  # it was 15 s with Python 3.11


def test_a_block_may_end_with_the_answer() -> None:
    assert function_code("Here:\n```python\ndef f():\n    return 1") == (
        "def f():\n    return 1\n"
    )


def test_examples_of_use_are_left_out() -> None:
    text = """```python
LIMIT = 3  # a constant stays
name = input("Who? ")

@cache
def f(x):
    return min(x, LIMIT)

if __name__ == "__main__":
    print(f(1))
assert f(1) == 2
print(f(int(input())))
```"""
    assert function_code(text) == (
        "LIMIT = 3  # a constant stays\n@cache\ndef f(x):\n    return min(x, LIMIT)\n"
    )


def test_a_function_of_another_name_is_called_by_the_tests_all_the_same() -> None:
    text = "```\ndef helper():\n    return 1\n\ndef double(x):\n    return 2 * x\n```"
    code = function_code(text, "f")
    assert code and code.endswith("\n\nf = double\n")
    assert "f = " not in (function_code(text, "double") or "")


def test_what_the_code_uses_may_stand_in_another_block() -> None:
    text = (
        "Import:\n```python\nfrom math import pi\n```\nA helper, and its first try:\n"
        "```python\ndef half(x):\n    return x\n```\n"
        "```python\ndef half(x):\n    return x / 2\n\ndef sum(x):\n    return 0\n```\n"
        "Now:\n```python\ndef f(x):\n    y = sum([half(x), pi])\n    return y\n```\n"
        "For example:\n```python\ny = f(1)\n```"
    )
    assert function_code(text, "f") == (
        "from math import pi\n\ndef half(x):\n    return x / 2\n\n"
        "def f(x):\n    y = sum([half(x), pi])\n    return y\n"
    )


def test_tests_after_the_code_are_not_the_code() -> None:
    code = "def f():\n    return 1\n"
    for use in ("def test_f():\n    assert f() == 1", "def main():\n    print(f())"):
        text = f"```python\n{code}```\nUse it:\n```python\n{use}\n```"
        assert function_code(text, "f") == code
    text = f"```python\n{code}```\n```python\ndef test():\n    f()\n```"
    assert function_code(text) == code


@pytest.mark.parametrize("code", ["f = helper", "class f:\n    pass"])
def test_a_name_that_the_code_has_is_not_defined_again(code: str) -> None:
    code = f"def helper():\n    return 1\n{code}\n"
    assert function_code(f"```\n{code}```", "f") == code


def test_marks_in_texts_that_python_takes_for_no_line_end_are_none() -> None:
    text = "```\nMARK = 'a\x0cb\u2028c'\nprint(1)\ndef f():\n    return MARK\n```"
    assert function_code(text) == "MARK = 'a\x0cb\u2028c'\ndef f():\n    return MARK\n"


def test_json_that_is_none_is_skipped() -> None:
    assert list(json_values("[1]")) == [[1]]
    assert list(json_values("a\n```\n{\n```\n```json\n{}\n```")) == [{}]
    assert list(json_values("[" * 100_000)) == []

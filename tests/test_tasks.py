"""Files of tasks, and the task of a conversation."""

import json
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from userlm.json_files import write_lines
from userlm.tasks import read_tasks, task_of, to_record
from userlm.text import INTENT_PREFIX
from userlm.types import (
    Check,
    Contains,
    Conversation,
    Fact,
    FunctionCheck,
    InputError,
    JsonPath,
    Matches,
    NumberCheck,
    Origin,
    RubricCheck,
    RulesCheck,
    Task,
    TestsCheck,
    ToolCalled,
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
        ({"check": {"number": "many"}}, "must contain one number"),
        ({"facts": [4]}, r"facts\[0\] must be a text"),
        ({"facts": [{}]}, r"facts\[0\].text"),
    ],
)
def test_a_bad_task_is_named_with_its_line_and_field(
    tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=rf"t\.jsonl, line 1: .*{words}"):
        read_tasks(write(tmp_path / "t.jsonl", **changed))


def test_a_goal_that_repeats_what_it_is_put_after_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    goal = INTENT_PREFIX + "cancel an order"
    path.write_text(json.dumps({"id": "a", "goal": goal}) + "\n")
    with pytest.raises(InputError, match="line 1: field 'goal' is only what the user"):
        read_tasks(path)


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
    assert task_of(Conversation("x#1"), tasks | {"x": replace(TASK, id="x")}) is TASK
    assert task_of(Conversation("anything", origin=Origin(task="t1")), tasks) is TASK
    assert task_of(Conversation("t2#0"), tasks) is None


# --- kinds of checks, and TOML --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "read"),
    [
        ({"number": 27}, NumberCheck("27")),
        ({"number": 1e20}, NumberCheck("1" + 20 * "0")),
        ({"number": 2.5}, NumberCheck("2.5")),
        ({"number": "27 euros"}, NumberCheck("27 euros")),
        ({"tests": "assert f() == 1"}, TestsCheck("assert f() == 1")),
        ({"rubric": "It is kind."}, RubricCheck("It is kind.")),
        ({"py": "my.checks:right"}, FunctionCheck("my.checks:right")),
        ({"contains": "yes"}, RulesCheck((Contains("yes"),))),
        ([{"contains": "yes"}], RulesCheck((Contains("yes"),))),
        (
            [
                {"matches": r"\d+"},
                {"json": "a.0", "equals": None},
                {"tool": "buy"},
                {"tool": "sell", "arguments": {"n": 2}},
            ],
            RulesCheck(
                (
                    Matches(r"\d+"),
                    JsonPath("a.0", None),
                    ToolCalled("buy"),
                    ToolCalled("sell", {"n": 2}),
                )
            ),
        ),
    ],
)
def test_each_kind_of_check_is_read_and_written_again(
    tmp_path: Path, check: object, read: Check
) -> None:
    path = write(tmp_path / "t.jsonl", check=check, meta={"solution": "x"})
    [task] = read_tasks(path)
    assert task.check == read
    path.write_text(json.dumps(to_record(task)) + "\n")
    assert read_tasks(path) == [task]


TESTS = "def check(f):\n    assert f() == 1\n"


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("27", "must be an object with one of number, tests"),
        ({}, "must be an object with one of number, .*; it has nothing"),
        ({"contain": "a"}, "unknown field of check 'contain'; did you mean 'contains'"),
        ([{"toll": "a"}], r"unknown field of check\[0\] 'toll'; did you mean 'tool'"),
        ({"number": "1", "rubric": "x"}, "one of .*; it has number and rubric"),
        *[
            ({"number": text}, "must contain one number")
            for text in ("1e6", "1,5", "1 000", "7/3", "10 to 12", "1_000", "many")
        ],
        ({"json": "", "equals": 1}, "is empty"),
        ({"tool": ""}, "is empty"),
        ({"number": True}, "field 'check.number' must be a str, not bool"),
        ({"contains": "x", "equals": "y"}, "unknown field of check 'equals'"),
        ([], "'check' is an empty list"),
        (
            [{"contains": "x"}, {"number": 1}],
            r"unknown field of check\[1\] 'number'; it has contains, matches, json or tool",
        ),
        ({"matches": "("}, "no regular expression"),
        ({"contains": " "}, "has no words"),
        ({"rubric": ""}, "check.rubric has no words"),
        ({"json": "a"}, "field 'check.equals' is missing"),
        ({"tool": "a", "arguments": []}, "'check.arguments' must be a dict"),
        ({"py": "checks.right"}, "write MODULE:NAME"),
        ({"tests": "assert f(\n"}, "check.tests: line 1 is not Python"),
        ({"tests": "\0"}, "check.tests"),
        ({"tests": "f()"}, "has no assert"),
        ({"tests": TESTS + TESTS, "entry_point": "f"}, "has 2 functions 'check'"),
        ({"tests": "assert f()", "entry_point": "f"}, r"needs a function check\(cand"),
    ],
)
def test_a_check_that_cannot_be_made_is_named_before_a_run(
    tmp_path: Path, check: object, words: str
) -> None:
    with pytest.raises(InputError, match=rf"t\.jsonl, line 1: .*{words}"):
        read_tasks(write(tmp_path / "t.jsonl", check=check))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"facs": []}, "unknown field 'facs'; did you mean 'facts'"),
        ({"goal": "x"}, "give 'intent' .* or 'goal', one of them"),
        ({"intent": " "}, "field 'intent' has no words"),
        ({"id": " "}, "field 'id' has no words"),
        ({"facts": ["?!"]}, r"facts\[0\] has no words"),
        ({"facts": [" "]}, r"facts\[0\] has no words"),
        ({"facts": [{"text": "a", "needed": True}]}, "unknown field .*'needed'"),
        ({"marked": "me"}, "'marked' is 'me'; it must be file, judge or default"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_what_to_do(
    tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=rf"t\.jsonl, line 1: .*{words}"):
        read_tasks(write(tmp_path / "t.jsonl", **changed))


def test_a_row_of_no_known_kind_says_which_fields_it_has(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"b": 1, "a": 2}\n')
    with pytest.raises(InputError, match=r"the fields are a, b; .*MBPP"):
        read_tasks(path)


def test_the_user_is_told_the_goal_and_all_facts_or_the_intent_as_it_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.toml"
    path.write_text(
        """
        [[task]]
        id = "a"
        goal = "sell a hen"
        facts = ["It is brown", { text = "It is 2.", required = false }]
        [[task]]
        id = "b"
        intent = "sell a hen"
        facts = ["It is brown"]
        [[task]]
        id = "c"
        intent = "You are a farmer."
        """
    )
    first, second, third = read_tasks(path)
    assert first.intent == f"{INTENT_PREFIX}sell a hen. It is brown. It is 2."
    assert first.facts == (Fact("It is brown"), Fact("It is 2.", False))
    assert (first.marked, second.marked) == ("file", "default")
    assert second.intent == f"{INTENT_PREFIX}sell a hen"
    assert third.intent == "You are a farmer." and third.check is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[task]]\nid = 'a'\n", r"t\.toml, task 1 \('a'\): give 'intent'"),
        ("[[task]\n", r"t\.toml is not TOML: .*line 1"),
        ("[[tasks]]\nid = 'a'\n", "'tasks' stands at the top; .*begins with .*task"),
        ("[task]\nid = 'a'\n", "no task stands at the top"),
        ("task = [1]\n", "no task stands at the top"),
        (
            "[[task]]\nid = 'a'\ngoal = 'b'\ncheck = {json = 'a', equals = 2026-03-01}\n",
            "'check.equals' is no value of JSON; put a date",
        ),
    ],
)
def test_a_mistake_in_toml_is_named_with_the_number_of_the_task(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_tasks(path)


def test_a_question_that_a_public_set_has_several_times_gets_ids_of_its_own(
    tmp_path: Path,
) -> None:
    row = json.dumps(
        {"id": "q", "question": "1?", "answer": "#### 1", "shards": [{"shard": "1?"}]}
    )
    path = tmp_path / "t.jsonl"
    path.write_text(f"{row}\n{row}\n{row}\n")
    assert [task.id for task in read_tasks(path)] == ["q", "q/2", "q/3"]


def test_the_folder_of_marked_tasks_is_a_place_of_tasks(tmp_path: Path) -> None:
    write(tmp_path / "tasks.jsonl")
    (tmp_path / "asked.jsonl").write_text("{}\n")
    assert [task.id for task in read_tasks(tmp_path)] == ["a"]


def test_tasks_are_read_from_remote_places_and_errors_name_these(
    tmp_path: Path,
) -> None:
    memory = fsspec.filesystem("memory")
    row = {"question": "You have 2 hens. How many?", "answer": "#### 2"}
    memory.pipe("/sets/gsm8k.jsonl", json.dumps(row).encode() + b"\n{}\n")
    with pytest.raises(
        InputError, match=r"memory://sets/gsm8k\.jsonl, line 2: the fie"
    ):
        read_tasks("memory://sets/gsm8k.jsonl")
    memory.pipe("/sets/gsm8k.jsonl", json.dumps(row).encode() + b"\n")
    [task] = read_tasks("memory://sets/gsm8k.jsonl")
    assert (task.id, task.check) == ("GSM8K/0", NumberCheck("2"))
    memory.pipe("/sets/own.jsonl", b'{"id":"a","goal":"g","check":{"py":"os:remove"}}')
    with pytest.raises(
        InputError, match=r"line 1: .*no function is called for a remot"
    ):
        read_tasks("memory://sets/own.jsonl")
    memory.rm("/sets", recursive=True)


@pytest.mark.slow
def test_every_row_of_five_public_sets_is_a_task_that_is_written_as_it_is_read(
    data: Path, tmp_path: Path
) -> None:
    counts = {
        "lic_shards": 141,
        "gsm8k_train_shards": 1031,
        "humaneval": 164,
        "mbpp": 974,
        "tau2": 185,
    }
    for name, count in counts.items():
        tasks = read_tasks(data / "extrinsic" / f"{name}.jsonl.gz")
        assert len(tasks) == count
        path = tmp_path / f"{name}.jsonl"
        write_lines(path, map(to_record, tasks))
        assert read_tasks(path) == tasks

"""Loading tasks, matching facts, grading answers."""

import json
from pathlib import Path

import pytest

from userlm.tasks import read_tasks, task_of
from userlm.types import (
    Conversation,
    Fact,
    InputError,
    NumberCheck,
    Origin,
    Task,
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

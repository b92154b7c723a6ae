"""Tasks whose outcome can be checked: load them, and find that of a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from userlm.final_answer import final_number
from userlm.json_files import take
from userlm.rows import read_rows
from userlm.types import (
    Check,
    Conversation,
    Fact,
    InputError,
    NumberCheck,
    Task,
    TestsCheck,
    encodable,
)


def read_tasks(path: str | Path) -> list[Task]:
    """Return the tasks of a `.jsonl` file. The fields are those of `Task`; `facts` are texts or
    `{"text", "required"}` objects, and `check` is `{"number": ...}` or `{"tests": ...}`.

    Raises:
        InputError: the message names the file, line and field.
    """
    tasks: dict[str, Task] = {}
    for line in read_rows(path):
        try:
            if line.error:
                raise ValueError(line.error)
            task = _task(line.row)
            if task.id in tasks:
                raise ValueError(f"id {task.id!r} is used twice")
        except ValueError as error:
            raise InputError(f"{path}, line {line.number}: {error}") from None
        tasks[task.id] = task
    return list(tasks.values())


def _task(row: Mapping[str, Any]) -> Task:
    if "domain" in row:
        raise ValueError(
            "field 'domain' is no longer used; write the check of the task instead of domain and "
            'answer: "check": {"number": "42"} or "check": {"tests": "assert ..."}'
        )
    facts = take(row, "facts", list, default=[])
    marked = any(isinstance(fact, dict) and "required" in fact for fact in facts)
    return Task(
        encodable(take(row, "id", str)),  # as the id of its conversation
        take(row, "intent", str),
        tuple(_facts(facts)),
        _check(take(row, "check", dict)),
        take(row, "family", str, default=""),
        "file" if marked else "default",
        take(row, "meta", dict, default={}),
    )


def _facts(rows: Sequence[Any]) -> Iterator[Fact]:
    for i, fact in enumerate(rows):
        name = f"facts[{i}]"
        if isinstance(fact, str):
            yield Fact(fact)
        elif isinstance(fact, dict):
            text = take(fact, "text", str, name)
            yield Fact(text, take(fact, "required", bool, name, default=True))
        else:
            raise ValueError(f"{name} must be a text or an object with 'text'")


def _check(row: Mapping[str, Any]) -> Check:
    if "number" in row:
        answer = take(row, "number", str, "check")
        if final_number(answer) is None:
            raise ValueError(f"check.number is {answer!r}; it must contain a number")
        return NumberCheck(answer)
    return TestsCheck(take(row, "tests", str, "check"))


def task_of(conversation: Conversation, tasks: Mapping[str, Task]) -> Task | None:
    """Return the task of a conversation: by its origin, else by its id without the number of the
    repeat (`id#2`)."""
    origin = conversation.origin
    if origin and origin.task is not None:
        return tasks.get(origin.task)
    without_repeat = conversation.id.rpartition("#")[0]
    return tasks.get(without_repeat or conversation.id)

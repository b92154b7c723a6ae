"""Tasks whose outcome can be checked: load them, and find that of a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from userlm.final_answer import final_number
from userlm.json_files import take
from userlm.rows import read_rows
from userlm.types import Conversation, Fact, InputError, Task, encodable


def read_tasks(path: str | Path) -> list[Task]:
    """Return the tasks of a `.jsonl` file. The fields are those of `Task`; `facts` are
    `{"text", "required"}` objects.

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
    domain = take(row, "domain", str)
    answer = take(row, "answer", str)
    if domain not in ("math", "python"):
        raise ValueError(f"domain is {domain!r}; it must be 'math' or 'python'")
    if domain == "math" and final_number(answer) is None:
        raise ValueError(
            f"answer is {answer!r}; the answer of a math task must contain a number"
        )
    facts = []
    for i, fact in enumerate(take(row, "facts", list)):
        name = f"facts[{i}]"
        if not isinstance(fact, dict):
            raise ValueError(f"{name} is not an object")
        text = take(fact, "text", str, name)
        required = take(fact, "required", bool, name, default=True)
        facts.append(Fact(text, required))
    return Task(
        encodable(take(row, "id", str)),  # as the id of its conversation
        domain,
        take(row, "intent", str),
        tuple(facts),
        answer,
        take(row, "meta", dict, default={}),
    )


def task_of(conversation: Conversation, tasks: Mapping[str, Task]) -> Task | None:
    """Return the task of a conversation: by its origin, else by its id without the number of the
    repeat (`id#2`)."""
    origin = conversation.origin
    if origin and origin.task is not None:
        return tasks.get(origin.task)
    without_repeat = conversation.id.rpartition("#")[0]
    return tasks.get(without_repeat or conversation.id)

"""Outcomes of tasks: how many of its facts the user says, and whether the task is solved.

Intervals are over tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from userlm.stats import Found, measure, measure_row, percent
from userlm.tasks import grade, said, task_of
from userlm.types import Conversation, Measure, MeasureRow, Task

Conversations = Iterable[Conversation]
Tasks = Mapping[str, Task]
"""Tasks by id."""


def intent_coverage(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return 100 x the mean over conversations of the share of required facts that the user said.

    Whether a fact was said is decided by `tasks.said`, which matches words and needs no judge.
    """
    return _coverage(conversations, tasks, "intent coverage", required_only=True)


def intent_coverage_all(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return `intent_coverage` over all facts, required or not."""
    return _coverage(
        conversations, tasks, "intent coverage: all facts", required_only=False
    )


def assistant_score(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return the percentage of conversations in which the assistant solved the task (see
    `tasks.grade`).

    `python` tasks are not graded yet; their rows are missing, with the reason.
    """

    def stats(task: Task, conversation: Conversation) -> Found:
        right, why = grade(task, conversation)
        return why if right is None else (float(right), 1.0)

    rows = _rows(conversations, tasks, stats)
    return measure("assistant score", rows, percent)


def _coverage(
    conversations: Conversations, tasks: Tasks, name: str, required_only: bool
) -> Measure:
    def stats(task: Task, conversation: Conversation) -> Found:
        facts = [fact for fact in task.facts if fact.required or not required_only]
        if not facts:
            return (
                "the task has no required facts"
                if required_only
                else "the task has no facts"
            )
        covered = sum(said(fact, conversation.user_turns) for fact in facts)
        return covered / len(facts), 1.0

    rows = _rows(conversations, tasks, stats)
    return measure(name, rows, percent)


def _rows(
    conversations: Conversations,
    tasks: Tasks,
    stats: Callable[[Task, Conversation], Found],
) -> list[MeasureRow]:
    """A row for each conversation; its cluster is the task."""
    rows = []
    for conversation in conversations:
        task = task_of(conversation, tasks)
        if task is None:
            origin = conversation.origin
            name = (
                origin.task if origin and origin.task is not None else conversation.id
            )
            rows.append(
                measure_row(conversation.id, conversation.id, f"unknown task {name!r}")
            )
        elif conversation.stop == "error":
            error = conversation.meta.get("error", "unknown")
            rows.append(measure_row(conversation.id, task.id, f"error: {error}"))
        else:
            rows.append(
                measure_row(conversation.id, task.id, stats(task, conversation))
            )
    return rows

"""Outcomes of tasks: how many of its facts the user says, and whether the task is solved.

Intervals are over tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from userlm.facts import said
from userlm.grading import Grader
from userlm.stats import PERCENT, Found, measure, measure_row
from userlm.tasks import task_of
from userlm.types import Conversation, Measure, MeasureRow, Task

Conversations = Iterable[Conversation]
Tasks = Mapping[str, Task]
"""Tasks by id."""
RULES_ALONE = Grader()
"""Without a judge or a sandbox."""


def intent_coverage(
    conversations: Conversations, tasks: Tasks, required_only: bool = True
) -> Measure:
    """Return 100 x the mean over conversations of the share of facts that the user said.

    Whether a fact was said is decided by `facts.said`, which matches words and needs no judge.
    """

    def stats(task: Task, conversation: Conversation) -> Found:
        facts = [fact for fact in task.facts if fact.required or not required_only]
        if not facts:
            kind = "required facts" if required_only else "facts"
            return f"the task has no {kind}"
        covered = sum(said(fact, conversation.user_turns) for fact in facts)
        return covered / len(facts), 1.0

    return measure(_rows(conversations, tasks, stats), PERCENT)


def assistant_score(
    conversations: Conversations, tasks: Tasks, grader: Grader = RULES_ALONE
) -> Measure:
    """Return the percentage of conversations in which the assistant solved the task (see
    `Grader.grade`). What the grader could not grade is missing, with the reason."""

    def stats(task: Task, conversation: Conversation) -> Found:
        grade = grader.grade(task, conversation)
        return grade.reason if grade.solved is None else (float(grade.solved), 1.0)

    return measure(_rows(conversations, tasks, stats), PERCENT)


def _rows(
    conversations: Conversations,
    tasks: Tasks,
    stats: Callable[[Task, Conversation], Found],
) -> list[MeasureRow]:
    """A row for each conversation; its cluster is the task."""
    rows = []
    for conversation in conversations:
        task = task_of(conversation, tasks)
        cluster = task.id if task else conversation.id
        found: Found
        if task is None:
            origin = conversation.origin
            name = (origin and origin.task) or conversation.id
            found = f"unknown task {name!r}"
        elif conversation.stop == "error":
            found = f"error: {conversation.meta.get('error', 'unknown')}"
        else:
            found = stats(task, conversation)
        rows.append(measure_row(conversation.id, cluster, found))
    return rows

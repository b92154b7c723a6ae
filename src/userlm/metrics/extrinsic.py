"""Outcomes of tasks: how many of its facts the user says, and whether the task is solved.

Intervals are over tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from userlm.facts import said
from userlm.stats import PERCENT, Found, measure, measure_row
from userlm.tasks import task_of
from userlm.types import Conversation, Grade, Measure, MeasureRow, Task, Verdict

Conversations = Iterable[Conversation]
Tasks = Mapping[str, Task]
"""Tasks by id."""


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
        covered = sum(said(fact, conversation.user_turns, task.facts) for fact in facts)
        return covered / len(facts), 1.0

    return measure(_rows(conversations, tasks, stats), PERCENT)


SAID = "SAID"
"""The label of a judge for a fact that the user said."""


@dataclass(frozen=True, slots=True)
class Graded:
    """What is known of conversations about tasks, by their ids.

    Attributes:
        tasks: the tasks by id.
        grades: see `Grader.grade`.
        said: a judge's verdict on each required fact, in the order of the task.
    """

    tasks: Tasks
    grades: Mapping[str, Grade]
    said: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)


def judged_coverage(conversations: Conversations, graded: Graded) -> Measure:
    """Return `intent_coverage` by the judge's verdicts. A conversation with a fact without a label
    is missing."""

    def stats(task: Task, conversation: Conversation) -> Found:
        verdicts = graded.said[conversation.id]
        if not verdicts:
            return "the task has no required facts"
        for verdict in verdicts:
            if verdict.label is None:
                return verdict.reason
        covered = sum(verdict.label == SAID for verdict in verdicts)
        return covered / len(verdicts), 1.0

    return measure(_rows(conversations, graded.tasks, stats), PERCENT)


def assistant_score(conversations: Conversations, graded: Graded) -> Measure:
    """Return the percentage of conversations in which the assistant solved the task. What could not
    be graded is missing, with the reason."""

    def stats(task: Task, conversation: Conversation) -> Found:
        grade = graded.grades[conversation.id]
        return grade.reason if grade.solved is None else (float(grade.solved), 1.0)

    return measure(_rows(conversations, graded.tasks, stats), PERCENT)


def by_family(found: Measure, tasks: Tasks) -> dict[str, Measure]:
    """Return a measure of this module for each family of tasks, in their order."""
    rows: dict[str, list[MeasureRow]] = {}
    families = {id: task.family for id, task in tasks.items()}
    for family in families.values():
        rows.setdefault(family, [])
    for row in found.rows:
        if row.cluster in families:
            rows[families[row.cluster]].append(row)
    measured = {}
    for family, own in rows.items():
        if own:
            one = measure(own, PERCENT)
            measured[family] = replace(one, better=found.better, unit=found.unit)
    return measured


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

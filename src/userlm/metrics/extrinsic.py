"""What comes of a user's task in a conversation: is it told, and is it solved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from userlm.stats import measure, percent
from userlm.tasks import grade, said, task_of
from userlm.types import Conversation, Measure, MeasureRow, Task


def intent_coverage(conversations: Iterable[Conversation], tasks: Mapping[str, Task]) -> Measure:
    """100 x the mean, over conversations, of the share of required facts that the user said.

    Whether a fact was said is the lexical `tasks.said`, a stand-in for a judge. Intervals are over
    tasks.
    """
    return _coverage(conversations, tasks, "intent coverage", required_only=True)


def intent_coverage_all(
    conversations: Iterable[Conversation], tasks: Mapping[str, Task]
) -> Measure:
    """`intent_coverage` over all facts, required or not."""
    return _coverage(conversations, tasks, "intent coverage: all facts", required_only=False)


def assistant_score(conversations: Iterable[Conversation], tasks: Mapping[str, Task]) -> Measure:
    """Percent of conversations in which the assistant solved the task (see `tasks.grade`).

    `python` tasks are not graded yet: missing, with the reason.
    """

    def stats(task: Task, conversation: Conversation) -> tuple[float, ...] | str:
        right, why = grade(task, conversation)
        return why if right is None else (float(right), 1.0)

    rows = _rows(conversations, tasks, stats)
    return measure("assistant score", rows, percent, better="higher", unit="%")


def _coverage(
    conversations: Iterable[Conversation], tasks: Mapping[str, Task], name: str, required_only: bool
) -> Measure:
    def stats(task: Task, conversation: Conversation) -> tuple[float, ...] | str:
        facts = [fact for fact in task.facts if fact.required or not required_only]
        if not facts:
            return "the task has no required facts" if required_only else "the task has no facts"
        told = sum(said(fact, conversation.user_turns) for fact in facts)
        return told / len(facts), 1.0

    return measure(name, _rows(conversations, tasks, stats), percent, better="higher", unit="%")


def _rows(
    conversations: Iterable[Conversation],
    tasks: Mapping[str, Task],
    stats: Callable[[Task, Conversation], tuple[float, ...] | str],
) -> list[MeasureRow]:
    """A row for each conversation, its cluster the task; `stats` gives it, or why there is none."""
    rows = []
    for conversation in conversations:
        task = task_of(conversation, tasks)
        found: tuple[float, ...] | str
        if task is None:
            found = f"unknown task {_task_name(conversation)!r}"
        elif conversation.stop == "error":
            found = f"error: {conversation.meta.get('error', 'unknown')}"
        else:
            found = stats(task, conversation)
        cluster = task.id if task else conversation.id
        measured, why = (None, found) if isinstance(found, str) else (found, "")
        rows.append(MeasureRow(conversation.id, cluster, measured, why))
    return rows


def _task_name(conversation: Conversation) -> str:
    origin = conversation.origin
    return origin.task if origin and origin.task is not None else conversation.id

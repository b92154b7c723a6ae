"""Outcomes of tasks: how the user tells its facts, how much conversations about one task differ,
and whether the task is solved (section 6.4 of the notes on the paper).

Which turn tells a fact is decided by `facts.told_in`, which matches words and needs no judge.
Intervals are over tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from userlm.facts import said, stems, told_in
from userlm.metrics.intrinsic import jaccard_distances
from userlm.stats import (
    FRACTION,
    MEAN,
    PERCENT,
    Found,
    Statistic,
    measure,
    measure_row,
)
from userlm.tasks import task_of
from userlm.types import Conversation, Grade, Measure, MeasureRow, Task, Verdict

Conversations = Iterable[Conversation]
Tasks = Mapping[str, Task]
"""Tasks by id."""


def intent_coverage(
    conversations: Conversations, tasks: Tasks, required_only: bool = True
) -> Measure:
    """Return 100 x the mean over conversations of the share of facts that the user said."""

    def stats(task: Task, conversation: Conversation) -> Found:
        facts = [fact for fact in task.facts if fact.required or not required_only]
        if not facts:
            return "the task has no required facts" if required_only else NO_FACTS
        covered = sum(said(fact, conversation.user_turns, task.facts) for fact in facts)
        return covered / len(facts), 1.0

    return measure(_rows(conversations, tasks, stats), PERCENT)


def repeats_required(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return the percentage of conversations in which two turns of the user or more tell the same
    required fact. A task that requires none of its facts counts as not repeated."""

    def stats(task: Task, conversation: Conversation) -> Found:
        if not task.facts:
            return NO_FACTS
        told = _required_told(task, conversation)
        return float(any(len(turns) >= 2 for turns in told)), 1.0

    return measure(_rows(conversations, tasks, stats), PERCENT)


def skips_not_required(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return the percentage of conversations in which the user does not say one of the facts that
    are not required. A task that requires all of its facts counts as not skipped."""

    def stats(task: Task, conversation: Conversation) -> Found:
        if not task.facts:
            return NO_FACTS
        turns = conversation.user_turns
        others = (fact for fact in task.facts if not fact.required)
        skipped = any(not said(fact, turns, task.facts) for fact in others)
        return float(skipped), 1.0

    return measure(_rows(conversations, tasks, stats), PERCENT)


def spreads_required(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return the percentage of conversations in which the user first tells required facts in more
    than one turn. A task that requires none of its facts counts as not spread."""

    def stats(task: Task, conversation: Conversation) -> Found:
        if not task.facts:
            return NO_FACTS
        first = {turns[0] for turns in _required_told(task, conversation) if turns}
        return float(len(first) > 1), 1.0

    return measure(_rows(conversations, tasks, stats), PERCENT)


NO_FACTS = "the task has no facts"


def _required_told(task: Task, conversation: Conversation) -> list[list[int]]:
    """For each required fact, the user turns that tell it."""
    told = told_in(task.facts, conversation.user_turns)
    return [
        turns for fact, turns in zip(task.facts, told, strict=True) if fact.required
    ]


# --- how much conversations about one task differ -------------------------------------------------


def turn_variance(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return the mean over tasks of the variance of the number of user turns in the conversations
    about one task, as of a whole population (divided by n)."""
    return _variance(conversations, tasks, 0)


def sample_turn_variance(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return `turn_variance` as of a sample (divided by n - 1), which does not depend on how many
    conversations there are."""
    return _variance(conversations, tasks, 1)


def _variance(conversations: Conversations, tasks: Tasks, less: int) -> Measure:
    def stats(talks: Sequence[Conversation]) -> Found:
        if len(talks) < 2:
            return ONE_ALONE
        return float(np.var(_turns(talks), ddof=less)), 1.0

    return measure(_by_task(conversations, tasks, stats), MEAN)


def fewest_turns(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return the mean over tasks of the user turns in the shortest conversation about one: the
    lower end of the paper's turn range."""
    rows = _by_task(conversations, tasks, lambda talks: (float(min(_turns(talks))), 1))
    return measure(rows, MEAN)


def most_turns(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return the same of the longest one: the upper end of the range."""
    rows = _by_task(conversations, tasks, lambda talks: (float(max(_turns(talks))), 1))
    return measure(rows, MEAN)


def unigram_difference(conversations: Conversations, tasks: Tasks) -> Measure:
    """Return the mean over tasks, from 0 to 1, of the mean of 1 - |A & B| / |A | B| over pairs of
    conversations about one. A and B are the sets of stems (`facts.stems`) of all that the user
    said, stop words kept."""

    def stats(talks: Sequence[Conversation]) -> Found:
        sets = [stems(talk.user_turns) for talk in talks]
        sets = list(filter(None, sets))
        if len(sets) < 2:
            return ONE_ALONE
        pairs = len(sets) * (len(sets) - 1)
        return float(jaccard_distances(sets).sum() / pairs), 1.0

    return measure(_by_task(conversations, tasks, stats), FRACTION)


ONE_ALONE = "no two conversations about the task to compare"


def _turns(talks: Iterable[Conversation]) -> list[int]:
    return [len(talk.user_turns) for talk in talks]


# --- by a judge -----------------------------------------------------------------------------------

SAID = "SAID"
"""The label of a judge for a fact that the user said."""
ADDS = "ADDS"
"""The label of a judge for a turn that demands something new."""
NO_JUDGE = "needs a judge"


@dataclass(frozen=True, slots=True)
class Graded:
    """What is known of conversations about tasks, by their ids.

    Attributes:
        tasks: the tasks by id.
        grades: see `Grader.grade`.
        said: a judge's verdict on each required fact, in the order of the task.
        added: a judge's verdict on each turn of the user: whether it demands what is not in the
            task.
    """

    tasks: Tasks
    grades: Mapping[str, Grade]
    said: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)
    added: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)


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


def adds_demands(conversations: Conversations, graded: Graded) -> Measure:
    """Return the percentage of conversations in which a turn of the user demands what is not in the
    task, by the judge's verdicts. Without a judge all are missing; so is a conversation with a turn
    without a label, if no other one adds."""

    def stats(task: Task, conversation: Conversation) -> Found:
        verdicts = graded.added.get(conversation.id)
        if verdicts is None:
            return NO_JUDGE
        if any(verdict.label == ADDS for verdict in verdicts):
            return 1.0, 1.0
        for verdict in verdicts:
            if verdict.label is None:
                return verdict.reason
        return 0.0, 1.0

    return measure(_rows(conversations, graded.tasks, stats), PERCENT)


# --- the assistant --------------------------------------------------------------------------------


def assistant_score(conversations: Conversations, graded: Graded) -> Measure:
    """Return the percentage of conversations in which the assistant solved the task. What could not
    be graded is missing, with the reason."""

    def stats(task: Task, conversation: Conversation) -> Found:
        grade = graded.grades[conversation.id]
        return grade.reason if grade.solved is None else (float(grade.solved), 1.0)

    return measure(_rows(conversations, graded.tasks, stats), PERCENT)


def by_family(
    found: Measure, tasks: Tasks, statistic: Statistic = PERCENT
) -> dict[str, Measure]:
    """Return a measure of this module for each family of tasks, in their order.

    Args:
        statistic: the one of the measure.
    """
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
            one = measure(own, statistic)
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


def _by_task(
    conversations: Conversations,
    tasks: Tasks,
    stats: Callable[[Sequence[Conversation]], Found],
) -> list[MeasureRow]:
    """A row for each task, of its conversations; one for each conversation that has no task or
    ended in an error, which is missing."""
    talks = list(conversations)
    rows = []
    about: dict[str, list[Conversation]] = {}
    for talk, row in zip(talks, _rows(talks, tasks, lambda *_: (1.0,)), strict=True):
        if row.stats is None:
            rows.append(row)
        else:
            about.setdefault(row.cluster, []).append(talk)
    return rows + [measure_row(task, task, stats(own)) for task, own in about.items()]

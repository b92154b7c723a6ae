"""Which of two assistants (or users) is better, on the same tasks.

Everything here is computed from rows of one cell of a grid, that is of one assistant with one user:
the key of a row is the conversation, which has the same id in every cell (task and repeat), and its
cluster is the task. A row of the assistant's score has the stats (solved, 1).

Intervals are over tasks, since the repeats of a task are not independent. Users are fixed: what is
found holds for these users, and says nothing about others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

import numpy as np

from userlm.stats import (
    MIN_CLUSTERS,
    PERCENT,
    Array,
    Estimate,
    Rows,
    Statistic,
    cluster_sums,
    difference,
    estimate,
    interval,
    measure,
    numbered,
    percent,
    quotient,
    ratio,
    students_t,
    wins,
)
from userlm.types import Measure, MeasureRow

POWER_Z = 0.841621
"""The 80th percentile of the normal distribution: a difference is to be seen in 4 of 5 runs."""
MOST = 10**7
"""More tasks than this are not asked for."""
POINTS = Statistic(ratio, -100, 100)
ERROR = Statistic(ratio, 0, 100)
GAIN = Statistic(percent, -100, 100)
"""Of rows (points, 1), (distance in points, 1), and (gain, weight)."""


# --- differences ----------------------------------------------------------------------------------


def paired(a: Rows, b: Rows, statistic: Statistic = PERCENT) -> Estimate:
    """Return a - b over the conversations that were measured on both sides."""
    both = _keys(a) & _keys(b)
    of_a, of_b = (
        measure([row for row in rows if row.key in both], statistic) for rows in (a, b)
    )
    return difference(of_a, of_b, statistic)


def unpaired(a: Rows, b: Rows) -> int:
    """Return how many conversations were measured on one side alone."""
    return len(_keys(a) ^ _keys(b))


def _keys(rows: Rows) -> set[str]:
    return {row.key for row in rows if row.stats is not None}


def differences(a: Rows, b: Rows) -> list[MeasureRow]:
    """Return a row of a - b for each conversation that was measured on both sides."""
    of_b = {row.key: row.stats[0] for row in b if row.stats is not None}
    found = []
    for row in a:
        if row.stats is not None and row.key in of_b:
            apart = row.stats[0] - of_b[row.key]
            found.append(MeasureRow(row.key, row.cluster, (apart, 1.0)))
    return found


def merged(by_user: Mapping[str, Rows]) -> list[MeasureRow]:
    """Return the rows of several users as those of one cell."""
    found = []
    for user, rows in by_user.items():
        for row in rows:
            found.append(MeasureRow(f"{user}/{row.key}", row.cluster, row.stats))
    return found


def mean_of(by_user: Mapping[str, Rows]) -> list[MeasureRow]:
    """Return the mean over users of each conversation's rows, where all of them have it."""
    clusters: dict[str, str] = {}
    values: dict[str, list[float]] = defaultdict(list)
    for rows in by_user.values():
        for row in rows:
            if row.stats is not None:
                clusters[row.key] = row.cluster
                values[row.key].append(row.stats[0] / row.stats[1])
    found = []
    for key, own in values.items():
        if len(own) == len(by_user):
            found.append(MeasureRow(key, clusters[key], (fmean(own), 1.0)))
    return found


# --- where the variance comes from ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Split:
    """The variance of one conversation's result, in squared points.

    Attributes:
        task: between tasks, whoever the user is.
        user: between users, whatever the task is; `None` with one user.
        both: between users in how they do on each task; `None` with one user.
        repeat: between conversations of the same user about the same task; `None` without repeats,
            and then it is a part of `both`, or of `task`.
    """

    task: float
    user: float | None
    both: float | None
    repeat: float | None


def split(by_user: Mapping[str, Rows]) -> Split | None:
    """Return the parts of the variance, on the tasks that all users have; `None` with fewer than
    two of these.

    Analysis of variance by the means of each task and user, with both as random effects. Where the
    numbers of repeats differ, their harmonic mean stands for them (unweighted means; Searle, 1971).
    An estimate below 0 is 0.
    """
    values = [_by_task(rows) for rows in by_user.values()]
    shared = [task for task in values[0] if all(task in own for own in values)]
    tasks, users = len(shared), len(values)
    if tasks < 2:
        return None
    cells = [own[task] for task in shared for own in values]
    freedom = sum(len(cell) - 1 for cell in cells)
    repeat = sum(map(_squares, cells)) / freedom if freedom else None
    of_mean = (repeat or 0.0) * fmean(1 / len(cell) for cell in cells)
    means = np.array(list(map(fmean, cells))).reshape(tasks, users)
    of_task, of_user = (means.mean(axis=axis, keepdims=True) for axis in (1, 0))
    between_tasks = float(of_task.var(ddof=1))
    if users == 1:
        return Split(max(0.0, between_tasks - of_mean), None, None, repeat)
    left = means - of_task - of_user + means.mean()
    together = float((left**2).sum()) / ((tasks - 1) * (users - 1))
    return Split(
        max(0.0, between_tasks - together / users),
        max(0.0, float(of_user.var(ddof=1)) - together / tasks),
        max(0.0, together - of_mean),
        repeat,
    )


def _by_task(rows: Rows) -> dict[str, list[float]]:
    """The result of each conversation about a task, in points."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.stats is not None:
            values[row.cluster].append(100 * row.stats[0] / row.stats[1])
    return dict(sorted(values.items()))


def _squares(values: Sequence[float]) -> float:
    middle = fmean(values)
    return sum((value - middle) ** 2 for value in values)


def tasks_needed(apart: Split, points: float, repeats: int) -> int | None:
    """Return how many tasks it takes to see a difference of so many points: so that the interval of
    `paired` excludes 0 in 4 of 5 runs.

    Args:
        apart: the split of `differences`, of one user.
        repeats: how many conversations there would be about each task.

    Returns:
        `None` if no spread was seen, or the effect of repeats is not known.
    """
    if apart.repeat is None and repeats > 1:
        return None
    variance = apart.task + (apart.repeat or 0.0) / repeats
    if not variance:
        return None

    def is_enough(n: int) -> bool:
        t = students_t((n - 1) / 2)  # as in `stats.interval`
        return n >= (t + POWER_Z) ** 2 * variance / points**2

    return MIN_CLUSTERS + bisect_left(range(MIN_CLUSTERS, MOST), True, key=is_enough)


# --- why it failed --------------------------------------------------------------------------------


def given(rows: Rows, keys: Iterable[str]) -> Measure:
    """Return the score in these conversations alone."""
    wanted = set(keys)
    return measure([row for row in rows if row.key in wanted], PERCENT)


def within_tasks(rows: Rows, has: Mapping[str, bool]) -> Estimate:
    """Return how many points more is solved in the conversations that have something than in those
    about the same task that do not: the risk difference of Mantel and Haenszel, with tasks as
    strata (Greenland and Robins, 1985). How hard the tasks are thus plays no part.

    Args:
        rows: of one cell, or `merged` ones.
        has: by key; conversations that are not there are left out.

    Returns:
        Its clusters are the tasks with conversations of both kinds; the others say nothing.
    """
    strata: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for row in rows:
        if row.stats is not None and row.key in has:
            stratum = (row.key.rpartition("#")[0], row.cluster)
            without, with_it = strata.setdefault(stratum, ([], []))
            (with_it if has[row.key] else without).append(row.stats[0])
    weighed = []
    for (key, task), (without, with_it) in strata.items():
        if without and with_it:
            gain = fmean(with_it) - fmean(without)
            weight = len(with_it) * len(without) / (len(with_it) + len(without))
            weighed.append(MeasureRow(key, task, (gain * weight, weight)))
    return _estimate(weighed, GAIN)


# --- beside people --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pair:
    """A score of people and of a simulated user, both in percent.

    Attributes:
        cluster: the assistant or the task that it is of.
    """

    cluster: str
    human: float
    simulated: float


def kendall(human: Array, simulated: Array) -> float:
    """Return Kendall's tau-b (1945) of two rankings, from -1 to 1; not a number if one of them has
    nothing but ties."""
    of_human = np.sign(human[:, None] - human)
    of_simulated = np.sign(simulated[:, None] - simulated)
    untied = np.abs(of_human).sum() * np.abs(of_simulated).sum()
    return float(quotient((of_human * of_simulated).sum(), np.sqrt(untied)))


def spearman(human: Array, simulated: Array) -> float:
    """Return Spearman's rho (1904): the correlation of the ranks, where ties share their mean
    rank."""
    a, b = (wins(scores, scores) for scores in (human, simulated))
    a, b = a - a.mean(), b - b.mean()
    return float(quotient(a @ b, np.sqrt((a @ a) * (b @ b))))


def ranks(pairs: Sequence[Pair]) -> dict[str, Estimate]:
    """Return how far the ranking by the simulated user agrees with that by people."""
    return {
        "Kendall's tau": _ranked(pairs, kendall),
        "Spearman's rho": _ranked(pairs, spearman),
    }


def _ranked(
    pairs: Sequence[Pair], agreement: Callable[[Array, Array], float]
) -> Estimate:
    human = np.array([pair.human for pair in pairs])
    simulated = np.array([pair.simulated for pair in pairs])
    names, cluster_of = numbered([pair.cluster for pair in pairs])
    value = agreement(human, simulated)
    if not isfinite(value):
        return Estimate(None, None, None, len(names))
    kept = [cluster_of != one for one in range(len(names))]
    left_out = [agreement(human[keep], simulated[keep]) for keep in kept]
    low, high = interval(value, left_out, -1, 1)
    return Estimate(value, low, high, len(names))


def errors(pairs: Sequence[Pair]) -> dict[str, Estimate]:
    """Return how far the scores with the simulated user are from those with people, in points: the
    mean distance, and the mean difference (simulated - human)."""
    apart = [(pair.cluster, pair.simulated - pair.human) for pair in pairs]
    distances = [MeasureRow(key, key, (abs(one), 1.0)) for key, one in apart]
    signed = [MeasureRow(key, key, (one, 1.0)) for key, one in apart]
    return {
        "mean absolute error": _estimate(distances, ERROR),
        "mean difference": _estimate(signed, POINTS),
    }


def _estimate(rows: Rows, statistic: Statistic) -> Estimate:
    return estimate(np.array(list(cluster_sums(rows).values())), statistic)

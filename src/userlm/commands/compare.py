"""`compare`: which assistant is better with the same users and tasks, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Any

from userlm.commands.cells import ASSISTANT_SCORE, MEASURES, Cell, read_cells
from userlm.commands.evaluate import REPLAYED, SINGLE
from userlm.commands.options import Output, argument, option, out_folder
from userlm.commands.steps import Results, finish, finished, open_run
from userlm.json_files import take
from userlm.metrics import comparison
from userlm.metrics.catalog import JUDGED, metric_of
from userlm.metrics.comparison import Pair
from userlm.rows import read_conversations, read_parsed, write_conversations
from userlm.runs import measure_record
from userlm.stats import MEAN, PERCENT, Rows, Statistic, difference, measure
from userlm.types import Conversation, InputError, MeasureRow

POINTS = (5, 10, 20)
"""The differences for which it says how many tasks would show them."""
WORST = 10
"""How many tasks with the lowest scores are listed."""
FAILED = 3
"""How many conversations are listed of an assistant that did not solve such a task."""
COVERAGE = "intent coverage"
BEHAVIOURS: Mapping[str, Callable[[float], bool]] = {
    f"{COVERAGE}{JUDGED}": lambda share: share < 1,
    COVERAGE: lambda share: share < 1,
    "repeats required facts": bool,
    "skips other facts": bool,
    "adds demands": bool,
    "spreads required facts": bool,
}
"""By measure, whether a conversation has what may go with failure."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Say which assistant is better with the same users and tasks, by how much and how surely, and
    what goes with failure.

    $ userlm compare runs/evaluate

    $ userlm compare runs/compared --human-scores people.csv
    """

    runs: list[Path] = argument(
        ..., "Folders of `score --tasks`, or that of a grid of `evaluate`."
    )
    human_scores: Path | None = option(
        None,
        "Scores of the same assistants with people, in percent: rows with assistant or task, or "
        "both, and score.",
        recorded=False,
    )
    out: Path = out_folder("runs/compare")
    output: Output = Output()


def compare(options: Compare) -> Results:
    """Compare the cells and write what was found."""
    cells = read_cells(options.runs)
    files = [file for cell in cells for file in cell.files]
    if options.human_scores:
        files.append(options.human_scores)
    run = open_run("compare", options, files)
    if done := finished(run, options):
        return done
    grid = Grid(cells)
    worst = _worst(grid)
    results = {
        "cells": [_cell(cell) for cell in grid.in_order],
        "real": grid.real,
        "assistants": list(_between(grid.assistants, grid.users, grid.cell)),
        "users": list(_between(grid.users, grid.real, _swapped(grid.cell))),
        "single": list(_single(grid)),
        "added": list(_added(grid)),
        "variance": list(_variance(grid)),
        "needed": list(_needed(grid)),
        "failure": list(_failure(grid)),
        "worst": worst,
        "human": list(_beside_people(grid, options.human_scores)),
    }
    write_conversations(run.path("failed.jsonl"), _failed(cells, worst))
    return finish(run, options, results)


# --- the grid -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells by assistant and user."""

    cells: Sequence[Cell]

    @property
    def assistants(self) -> list[str]:
        """Their names, the one with the highest score first, and the controls last."""
        names = dict.fromkeys(cell.assistant for cell in self.cells)
        controls = self.controls
        return sorted(names, key=lambda name: (name in controls, -self.score(name)))

    @property
    def controls(self) -> set[str]:
        """The assistants without a model: the most and the least that a user allows."""
        return {cell.assistant for cell in self.cells if cell.is_control}

    @property
    def real(self) -> list[str]:
        """The assistants that are no controls; all, if there are no others."""
        controls = self.controls
        names = [name for name in self.assistants if name not in controls]
        return names or self.assistants

    @property
    def users(self) -> list[str]:
        """Their names, without those who say turns again and, if there are others, the single
        prompt."""
        names = dict.fromkeys(cell.user for cell in self.cells)
        own = [name for name in names if not name.endswith(REPLAYED)]
        return [name for name in own if name != SINGLE] or own

    @property
    def in_order(self) -> list[Cell]:
        """The cells, by assistant and user."""
        again = [f"{user}{REPLAYED}" for user in self.users]
        users = dict.fromkeys([*self.users, *again, SINGLE])
        places = product(self.assistants, users)
        return list(filter(None, (self.cell(*place) for place in places)))

    def cell(self, assistant: str, user: str) -> Cell | None:
        """Return a cell, if there is one."""
        for cell in self.cells:
            if (cell.assistant, cell.user) == (assistant, user):
                return cell
        return None

    def rows(self, assistant: str, name: str = ASSISTANT_SCORE) -> dict[str, Rows]:
        """Return the rows of a measure by user."""
        found = {}
        for user in self.users:
            cell = self.cell(assistant, user)
            if cell and name in cell.rows:
                found[user] = cell.rows[name]
        return found

    def score(self, assistant: str) -> float:
        """Return the score with all users; 0 if there is none."""
        return measure(comparison.merged(self.rows(assistant)), PERCENT).value or 0.0


Rowed = Callable[[str, str], Cell | None]
"""A cell by what is compared, and by what it is compared with."""


def _swapped(cell: Rowed) -> Rowed:
    return lambda user, assistant: cell(assistant, user)


# --- what is found --------------------------------------------------------------------------------


def _cell(cell: Cell) -> Results:
    """The measures of a cell, and its score where the user said all that is required."""
    found = []
    for name, rows in cell.rows.items():
        metric = metric_of(name)
        found.append(measure_record(metric.described(measure(rows, _statistic(name)))))
    said = [name for name in (f"{COVERAGE}{JUDGED}", COVERAGE) if name in cell.rows]
    covered = cell.rows[said[0]] if said else ()
    full = {row.key for row in covered if row.stats is not None and row.stats[0] >= 1}
    told = comparison.given(cell.rows[ASSISTANT_SCORE], full)
    return {
        "assistant": cell.assistant,
        "user": cell.user,
        "folder": str(cell.folder),
        "tasks": len(cell.intents),
        "repeats": _repeats(cell),
        "measures": found,
        "covered": measure_record(metric_of(ASSISTANT_SCORE).described(told)),
    }


def _repeats(cell: Cell) -> int:
    """The largest number of conversations about one task."""
    return max(Counter(row.cluster for row in cell.rows[ASSISTANT_SCORE]).values())


def _between(
    names: Sequence[str], beside: Sequence[str], cell: Rowed
) -> Iterator[Results]:
    """Yield the differences between each two of some names (the assistants, or the users): in each
    measure with all of the others, and in the score with each of them alone if there are
    several."""
    for a, b in combinations(names, 2):
        of_a, of_b = ({one: cell(name, one) for one in beside} for name in (a, b))
        both = [one for one in beside if of_a[one] and of_b[one]]
        places = [(name, both) for name in MEASURES]
        if len(both) > 1:
            places += [(ASSISTANT_SCORE, [one]) for one in both]
        for name, group in places:
            rows_a = _all_rows(of_a, group, name)
            rows_b = _all_rows(of_b, group, name)
            found = comparison.paired(rows_a, rows_b, _statistic(name))
            if found.value is not None:
                yield {
                    "a": a,
                    "b": b,
                    "with": group,
                    "measure": name,
                    "unit": metric_of(name).unit,
                    **found._asdict(),
                    "unpaired": comparison.unpaired(rows_a, rows_b),
                }


def _all_rows(
    cells: Mapping[str, Cell | None], group: Iterable[str], name: str
) -> Rows:
    """The rows of a measure in several cells; none if it was not measured in all of them."""
    found = {}
    for one in group:
        cell = cells[one]
        if cell is None or name not in cell.rows:
            return []
        found[one] = cell.rows[name]
    return comparison.merged(found)


def _statistic(name: str) -> Statistic:
    metric = metric_of(name)
    return metric.statistic or (PERCENT if metric.unit == "%" else MEAN)


def _single(grid: Grid) -> Iterator[Results]:
    """Yield for each assistant how much less it solves when people talk to it than when they say
    all at once. Both are means over tasks, so the numbers of repeats may differ."""
    for assistant in grid.real:
        alone = grid.cell(assistant, SINGLE)
        for user, rows in grid.rows(assistant).items():
            if alone and user != SINGLE:
                at_once = measure(alone.rows[ASSISTANT_SCORE], PERCENT)
                cost = difference(at_once, measure(rows, PERCENT), PERCENT)
                yield {
                    "assistant": assistant,
                    "user": user,
                    "single": measure_record(at_once),
                    **cost._asdict(),
                }


def _added(grid: Grid) -> Iterator[Results]:
    """Yield for each assistant how much more it solves when the same turns are said again without
    the demands that users added."""
    for assistant in grid.real:
        for user, rows in grid.rows(assistant).items():
            if again := grid.cell(assistant, f"{user}{REPLAYED}"):
                without = measure(again.rows[ASSISTANT_SCORE], PERCENT)
                cost = difference(without, measure(rows, PERCENT), PERCENT)
                yield {"assistant": assistant, "user": user, **cost._asdict()}


def _variance(grid: Grid) -> Iterator[Results]:
    """Yield where the variance of each assistant's score comes from."""
    for assistant in grid.real:
        rows = grid.rows(assistant)
        found = comparison.split(rows) if rows else None
        if found:
            yield {"assistant": assistant, "users": len(rows), **asdict(found)}


def _needed(grid: Grid) -> Iterator[Results]:
    """Yield how many tasks would show a difference between the first two assistants."""
    for a, b in list(combinations(grid.real, 2))[:1]:
        of_a, of_b = grid.rows(a), grid.rows(b)
        apart = {
            user: comparison.differences(of_a[user], of_b[user])
            for user in of_a
            if user in of_b
        }
        found = comparison.split({"": comparison.mean_of(apart)}) if apart else None
        if not found or not (found.task or found.repeat):
            return
        repeats = sorted({1, 10, max(map(_repeats, grid.cells))})
        for points, count in product(POINTS, repeats):
            tasks = comparison.tasks_needed(found, points, count)
            sizes = {"points": points, "repeats": count, "tasks": tasks}
            yield {"a": a, "b": b, **sizes}


def _failure(grid: Grid) -> Iterator[Results]:
    """Yield how many points more each assistant solves in conversations that have something than
    in others about the same task."""
    for assistant in grid.real:
        scores = comparison.merged(grid.rows(assistant))
        for name, has in BEHAVIOURS.items():
            rows = comparison.merged(grid.rows(assistant, name))
            found = {
                row.key: has(row.stats[0]) for row in rows if row.stats is not None
            }
            if found:
                apart = comparison.within_tasks(scores, found)
                counts = {"with": sum(found.values()), "of": len(found)}
                yield {
                    "assistant": assistant,
                    "measure": name,
                    **counts,
                    **apart._asdict(),
                }


# --- where it went wrong --------------------------------------------------------------------------


def _worst(grid: Grid) -> list[Results]:
    """Return the tasks with the lowest scores of all assistants, the lowest first, and
    conversations in which they were not solved."""
    cells = [grid.cell(name, user) for name in grid.real for user in grid.users]
    by_task: dict[str, dict[str, list[float]]] = {}
    failed: dict[str, list[tuple[Cell, str]]] = {}
    families: dict[str, str] = {}
    for cell in filter(None, cells):
        families |= cell.families
        for row in cell.rows[ASSISTANT_SCORE]:
            if row.stats is not None:
                scores = by_task.setdefault(row.cluster, {})
                scores.setdefault(cell.assistant, []).append(100 * row.stats[0])
                if not row.stats[0]:
                    failed.setdefault(row.cluster, []).append((cell, row.key))
    found = []
    for task, values in by_task.items():
        means = {name: fmean(own) for name, own in values.items()}
        one = {"task": task, "family": families.get(task, ""), "scores": means}
        found.append({**one, "failed": _some(failed.get(task, []))})
    with_failures = [one for one in found if one["failed"]]
    return sorted(with_failures, key=_mean_score)[:WORST]


def _mean_score(one: Results) -> float:
    return fmean(one["scores"].values())


def _some(failed: Iterable[tuple[Cell, str]]) -> list[Results]:
    """Return the first conversations of each assistant."""
    counts: Counter[str] = Counter()
    found = []
    for cell, id in failed:
        counts[cell.assistant] += 1
        if counts[cell.assistant] <= FAILED:
            place = {"assistant": cell.assistant, "user": cell.user}
            found.append({**place, "folder": str(cell.folder), "id": id})
    return found


def _failed(cells: Sequence[Cell], worst: Iterable[Results]) -> list[Conversation]:
    """Return the conversations that are listed with the worst tasks."""
    listed = [
        (place["folder"], place["id"]) for one in worst for place in one["failed"]
    ]
    talks = {}
    for cell in cells:
        for talk in read_conversations(cell.files[0]):
            place = (str(cell.folder), talk.id)
            if place in listed:
                why = {"verdict": cell.reasons.get(talk.id, "")}
                names = {"assistant": cell.assistant, "user": cell.user}
                talks[place] = replace(talk, meta={**talk.meta, **names, **why})
    return [talks[place] for place in listed]


# --- beside people --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HumanScore:
    """A score with people, in percent, of an assistant, or of a task, or of one with the other."""

    assistant: str | None
    task: str | None
    score: float


def read_human_scores(path: Path) -> list[HumanScore]:
    """Return the rows of a file of scores.

    Raises:
        InputError: the message names the file, the line and the field.
    """
    found = list(read_parsed(path, lambda line: _human_score(line.row)))
    scores = {one.score for one in found}
    if max(scores) <= 1 and scores - {0, 1}:
        raise InputError(
            f"{path}: all scores are at most 1; give them in percent: 70, not 0.7"
        )
    return found


def _human_score(row: Mapping[str, Any]) -> HumanScore:
    assistant, task = (
        take(row, name, str, default=None) or None for name in ("assistant", "task")
    )
    if not assistant and not task:
        raise ValueError("fields 'assistant' and 'task' are missing; give one or both")
    given: Any = row.get("score")
    try:
        score = float(given)  # a table has texts
    except (TypeError, ValueError):
        raise ValueError(f"field 'score' is {given!r}; it must be a number") from None
    if not 0 <= score <= 100:
        raise ValueError(f"field 'score' is {given}; it must be a percentage, 0 to 100")
    return HumanScore(assistant, task, score)


def _beside_people(grid: Grid, path: Path | None) -> Iterator[Results]:
    """Yield how far the scores with each user, and with a single prompt, agree with those with
    people."""
    scores = read_human_scores(path) if path else []
    for user in dict.fromkeys([*grid.users, SINGLE] if path else ()):
        cells = {cell.assistant: cell for cell in grid.cells if cell.user == user}
        if not cells:
            continue
        pairs = []
        for one in scores:
            name, rows = _rows_of(one, cells, path)
            value = measure(rows, PERCENT).value
            if value is not None:
                pairs.append(Pair(name, one.score, value))
        found = {**comparison.ranks(pairs), **comparison.errors(pairs)}
        for name, estimate in found.items():
            of = "tasks" if any(one.task for one in scores) else "assistants"
            counts = {"of": of, "n": len(pairs), "missing": len(scores) - len(pairs)}
            yield {"user": user, "measure": name, **counts, **estimate._asdict()}


def _rows_of(
    one: HumanScore, cells: Mapping[str, Cell], path: Path | None
) -> tuple[str, list[MeasureRow]]:
    """Return the name of the cluster of a human score, and the rows that it is compared with."""
    real = [name for name, cell in cells.items() if not cell.is_control]
    names = [one.assistant] if one.assistant else real
    if missing := [name for name in names if name not in cells]:
        known = ", ".join(cells)
        raise InputError(f"{path}: no assistant is {missing[0]!r}; there are {known}")
    rows = []
    for name in names:
        own = cells[name].rows[ASSISTANT_SCORE]
        rows += [row for row in own if one.task in (None, row.cluster)]
    if not rows:
        raise InputError(f"{path}: no task is {one.task!r}")
    return one.task or names[0], rows

"""What the verbs show: progress on the standard error, tables of measures on the standard output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as Job
from rich.table import Table
from rich.text import Text

from userlm.types import Measure

T = TypeVar("T")
console = Console(stderr=True)
SHOWN = 8  # reasons of one kind; all of them stand in results.json


class Count(ProgressColumn):
    """How many, of how many if that is known."""

    def render(self, task: Job) -> Text:
        of = "" if task.total is None else f"/{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{of}")


class Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Job) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed")


def progress_bar() -> Progress:
    """A bar with rate and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        Count(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def track(items: Iterable[T], doing: str, total: int | None = None) -> Iterator[T]:
    """The items, with progress shown as they are taken."""
    with progress_bar() as progress:
        job = progress.add_task(doing, total=total)
        for item in items:
            yield item
            progress.advance(job)


def show_counts(title: str, counts: Mapping[str, int]) -> None:
    """What came in, what went out, what was dropped and why."""
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    ordered = sorted(counts.items(), key=lambda item: (item[0].partition(":")[0], -item[1]))
    for kind, group in groupby(ordered, key=lambda item: item[0].partition(":")[0]):
        rows = list(group)
        for name, count in rows[:SHOWN]:
            table.add_row(name, f"{count:,}")
        if rest := rows[SHOWN:]:
            table.add_row(f"{kind}: {len(rest)} more reasons", f"{sum(count for _, count in rest):,}")
    console.print(table)


def show_measures(title: str, columns: Mapping[str, Mapping[str, Measure]]) -> None:
    """A table: a row a measure, a column a run."""
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    for name in columns:
        table.add_column(name, justify="right")
    names = dict.fromkeys(name for measures in columns.values() for name in measures)
    for name in names:
        cells = [_cell(measures[name]) if name in measures else "" for measures in columns.values()]
        better = next(m[name].better for m in columns.values() if name in m)
        arrow = {"higher": " ↑", "lower": " ↓", "neither": ""}[better]
        table.add_row(name + arrow, *cells)
    Console().print(table)


def _cell(measure: Measure) -> str:
    if measure.value is None:
        why = Counter(row.why for row in measure.rows).most_common(1)
        return f"not measured\n({why[0][0]})" if why and why[0][0] else "not measured"
    interval = "" if measure.low is None else f" [{measure.low:.2f}, {measure.high:.2f}]"
    missing = f", {measure.missing} missing" if measure.missing else ""
    return f"{measure.value:.2f}{measure.unit}{interval}\nn {measure.n}{missing}"

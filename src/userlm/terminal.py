"""What the verbs show: progress on the standard error, tables of measures on the standard
output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from time import monotonic
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
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

from userlm.metrics.ending import RULES, spelled
from userlm.types import Turn

T = TypeVar("T")
console = Console(stderr=True, markup=False, emoji=False, highlight=False)
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
        done, shown = 0, monotonic()
        for done, item in enumerate(items, 1):
            yield item
            if (
                now := monotonic()
            ) - shown > 0.1:  # to tell of each of millions would take longer than the work
                progress.update(job, completed=done)
                shown = now
        progress.update(job, completed=done)


def show_turn(turn: Turn) -> None:
    """Who says what; words of a stand-in are labelled."""
    console.print(Text.assemble((f"{speaker(turn)}> ", "bold"), turn.text))


def speaker(turn: Turn) -> str:
    """The role, and which stand-in speaks if it is one."""
    return f"{turn.role} ({turn.meta['stub']}, a stand-in)" if "stub" in turn.meta else turn.role


def show_counts(title: str, counts: Mapping[str, int]) -> None:
    """What came in, what went out, what was dropped and why."""
    console.print(title)
    table = Table(show_header=False, box=None)
    ordered = sorted(counts.items(), key=lambda item: (item[0].partition(":")[0], -item[1]))
    for kind, group in groupby(ordered, key=lambda item: item[0].partition(":")[0]):
        rows = list(group)
        shown = SHOWN if len(rows) > SHOWN + 1 else len(rows)
        for name, count in rows[:shown]:
            table.add_row(name, f"{count:,}")
        if rest := rows[shown:]:
            table.add_row(
                f"{kind}: {len(rest)} more reasons", f"{sum(count for _, count in rest):,}"
            )
    console.print(table)


def show_findings(title: str, findings: Sequence[tuple[str, str, str]]) -> None:
    """What each step of `clean` says about one conversation, and why."""
    table = Table(box=SIMPLE_HEAD)
    for column in ("step", "it", "because"):
        table.add_column(column)
    for step, verdict, why in findings:
        table.add_row(step, Text(verdict, style="yellow" if verdict == "goes" else ""), Text(why))
    out = Console(markup=False, emoji=False, highlight=False)
    out.print(title)
    out.print(table)


def show_measures(title: str, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A table of the measures in a `results.json`: for each measure a line a run."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("measure", min_width=24)
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right", max_width=22)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("missing", justify="right", no_wrap=True)
    for shown in dict.fromkeys(
        measure["name"] for measures in results.values() for measure in measures
    ):
        of = {run: m for run, measures in results.items() for m in measures if m["name"] == shown}
        table.add_row(Text(_title(next(iter(of.values()))), style="bold"))
        for run, measure in of.items():
            table.add_row(f"  {run}{' *' if measure['stub'] else ''}", *_cells(measure))
    out = Console(markup=False, emoji=False, highlight=False)
    out.print(title)
    out.print(table)
    stubs = {m["stub"] for measures in results.values() for m in measures} - {""}
    if stubs:
        out.print(f"  * no language model answered here: {', '.join(sorted(stubs))} is a stand-in")


def show_endings(name: str, found: Mapping[str, Any]) -> None:
    """How the user of a `respond` run leaves now, and by thresholds on P(end).

    Args:
        found: one of the `endings` in a `results.json` of `score`.
    """
    out = Console(markup=False, emoji=False, highlight=False)
    if found["best"] is None:
        out.print(f"leaving, {name}: no threshold to suggest ({found['why']})")
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))  # or it is wider than 80
    table.add_column("in %", no_wrap=True)
    for column in ("--end-threshold", "too early", "too long", "leaves", "F1", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for rule, shown in RULES.items():
        one = found[rule]
        above = "" if one["above"] is None else spelled(one["above"])
        interval = "" if one["low"] is None else f"{one['low']:.1f} to {one['high']:.1f}"
        table.add_row(
            shown,
            above,
            *(f"{one[key]:.1f}" for key in ("early", "late", "leaves", "f1")),
            interval,
        )
    without = f" ({found['missing']:,} more have no P(end))" if found["missing"] else ""
    turns = f"{found['n']:,} turns{without} of {found['people']:,} people"
    out.print(f"leaving, {name}: {turns}, who left at {found['ended']:.1f} %")
    out.print(table)
    if found["note"]:
        out.print(f"  {found['note']}", style="yellow")
    out.print(
        "  equal rate: as often as people leave; each person is judged at the threshold of all "
        "others"
    )
    out.print(f"  P(end) is off by {found['ece']:.3f} on average (expected calibration error)")
    both = dict.fromkeys(spelled(found[rule]["above"]) for rule in ("best", "equal"))
    out.print(
        f"  to use one: --user {found['user']} --end-threshold {' or '.join(both)}", soft_wrap=True
    )


def _title(measure: Mapping[str, Any]) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "neither": ""}[measure["better"]]
    return str(measure["name"]) + (" %" if measure["unit"] == "%" else "") + arrow


def _cells(measure: Mapping[str, Any]) -> tuple[str, str, str, str]:
    counts = f"{measure['n']:,}", f"{measure['missing']:,}" if measure["missing"] else ""
    if measure["value"] is None:
        return ("not measured", measure["why"], *counts)
    interval = "" if measure["low"] is None else f"{measure['low']:.2f} to {measure['high']:.2f}"
    return (f"{measure['value']:.2f}", interval, *counts)

"""Terminal output: progress on standard error, tables of measures on standard output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

from userlm.metrics.termination import RULES, format_threshold
from userlm.types import Turn

T = TypeVar("T")
Record = Mapping[str, Any]
"""A measure as `results.json` holds it."""

console = Console(stderr=True, markup=False, emoji=False, highlight=False)

SHOWN = 8
"""Maximum number of reasons shown per kind; all of them are in results.json."""
REFRESH_SECONDS = 0.1
"""Minimum time between two updates of a progress bar, which are slow with millions of items."""

ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


def output() -> Console:
    """Return a console on standard output, as wide as the terminal is now."""
    return Console(markup=False, emoji=False, highlight=False)


# --- progress -------------------------------------------------------------------------------------


class Count(ProgressColumn):
    """The number of items so far, and the total if it is known."""

    def render(self, task: Job) -> Text:
        total = "" if task.total is None else f"/{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{total}")


class Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Job) -> Text:
        return Text(
            f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed"
        )


def progress_bar() -> Progress:
    """Return a bar with rate and time left."""
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
    """Yield the items and show progress."""
    with progress_bar() as progress:
        job = progress.add_task(doing, total=total)
        done = 0
        shown = monotonic()
        for done, item in enumerate(items, 1):
            yield item
            if monotonic() - shown > REFRESH_SECONDS:
                progress.update(job, completed=done)
                shown = monotonic()
        progress.update(job, completed=done)


# --- turns and counts -----------------------------------------------------------------------------


def show_turn(turn: Turn) -> None:
    """Print a turn with its speaker; a stub is labelled."""
    console.print(Text.assemble((f"{speaker(turn)}> ", "bold"), turn.text))


def speaker(turn: Turn) -> str:
    """Return the role, and the name of the stub if one speaks."""
    return (
        f"{turn.role} ({turn.meta['stub']}, a stub)"
        if "stub" in turn.meta
        else turn.role
    )


def show_counts(title: str, counts: Mapping[str, int]) -> None:
    """Print the counts of in, out, and dropped by reason (`KIND: REASON`)."""
    console.print(title)
    table = Table(show_header=False, box=None)
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(counts, key=lambda name: -counts[name]):
        kinds[name.partition(":")[0]].append(name)
    for kind in sorted(kinds):
        names = kinds[kind]
        # A line that says "1 more reason" would take as much room as the reason.
        shown = SHOWN if len(names) > SHOWN + 1 else len(names)
        for name in names[:shown]:
            table.add_row(name, f"{counts[name]:,}")
        if rest := names[shown:]:
            total = sum(counts[name] for name in rest)
            table.add_row(f"{kind}: {len(rest)} more reasons", f"{total:,}")
    console.print(table)


def show_findings(title: str, findings: Sequence[tuple[str, str, str]]) -> None:
    """Print what each step of `clean` says about one conversation, and why."""
    table = Table("step", "it", "because", box=SIMPLE_HEAD)
    for step, verdict, why in findings:
        style = "yellow" if verdict == "dropped" else ""
        table.add_row(step, Text(verdict, style=style), Text(why))
    out = output()
    out.print(title)
    out.print(table)


# --- measures -------------------------------------------------------------------------------------


def show_measures(title: str, results: Mapping[str, Sequence[Record]]) -> None:
    """Print a table of the measures in a `results.json`, with one line per measure and run."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("measure", min_width=24)
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right", max_width=22)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("missing", justify="right", no_wrap=True)
    by_name: defaultdict[str, list[tuple[str, Record]]] = defaultdict(list)
    stubs: set[str] = set()
    for run, measures in results.items():
        for measure in measures:
            by_name[measure["name"]].append((run, measure))
            stubs.add(measure["stub"])
    for of_runs in by_name.values():
        _, first = of_runs[0]
        unit = " %" if first["unit"] == "%" else ""
        table.add_row(
            Text(f"{first['name']}{unit}{ARROWS[first['better']]}", style="bold")
        )
        for run, measure in of_runs:
            mark = " *" if measure["stub"] else ""
            table.add_row(f"  {run}{mark}", *_cells(measure))
    out = output()
    out.print(title)
    out.print(table)
    if named := ", ".join(sorted(stubs - {""})):
        out.print(f"  * no language model answered here: {named} is a stub")


def _cells(measure: Record) -> tuple[str, str, str, str]:
    n = f"{measure['n']:,}"
    missing = f"{measure['missing']:,}" if measure["missing"] else ""
    if measure["value"] is None:
        return "not measured", measure["why"], n, missing
    return f"{measure['value']:.2f}", _interval(measure, 2), n, missing


def _interval(found: Record, digits: int) -> str:
    if found["low"] is None:
        return ""
    return f"{found['low']:.{digits}f} to {found['high']:.{digits}f}"


def show_end_calibration(name: str, found: Record) -> None:
    """Print how the user of a `respond` run ended, and how it would end with thresholds on P(end).

    Args:
        found: one of the `endings` in a `results.json` of `score`.
    """
    out = output()
    if found["best"] is None:
        out.print(f"termination of {name}: no threshold to suggest ({found['why']})")
        return
    # With the default padding the table is wider than 80.
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("in %", no_wrap=True)
    for column in (
        "--end-threshold",
        "premature",
        "missed",
        "ends",
        "F1",
        "95 % interval",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    suggested = []
    for field, title in RULES.items():
        rule = found[field]
        threshold = ""
        if rule["threshold"] is not None:
            threshold = format_threshold(rule["threshold"])
            suggested.append(threshold)
        shares = [
            f"{rule[key]:.1f}" for key in ("premature", "missed", "end_rate", "f1")
        ]
        table.add_row(title, threshold, *shares, _interval(rule, 1))
    without = f" ({found['missing']:,} more have no P(end))" if found["missing"] else ""
    turns = f"{found['n']:,} turns{without} of {found['people']:,} people"
    out.print(f"termination of {name}: {turns}, who ended at {found['ended']:.1f} %")
    out.print(table)
    if found["note"]:
        out.print(f"  {found['note']}", style="yellow")
    out.print(
        "  premature: ends where the person continued; missed: continues where the person ended\n"
        "  equal rate: as often as people end; each person is evaluated at the threshold of all "
        "others\n"
        f"  P(end) is off by {found['ece']:.3f} on average (expected calibration error)"
    )
    options = " or ".join(dict.fromkeys(suggested))
    out.print(
        f"  to use one: --user {found['user']} --end-threshold {options}",
        soft_wrap=True,
    )

"""Parts of a bench: each in its own process, for a limited time, its results in a file at once.

The file is JSON, replaced as a whole whenever something is known, so a part that fails, takes too
long or is stopped loses nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measuring import table

from userlm.json_files import read_json, write_json

Result = dict[str, Any]
"""`measured` (what), `rate` (a second) and `unit`, `mfu`, `peak_gb`, `note`, `equal` (whether it
computes what it should), and more details. All but the first are optional."""


class Skipped(Exception):
    """Raised with the reason if a part cannot be measured here."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part.

    Attributes:
        measure: yields results; it gets the file with those of the parts before.
        share: of the minutes of all parts, at most. Together they may be more than one, since most
            parts need less.
        needs: the package without which it is skipped.
    """

    measure: Callable[[Path], Iterator[Result]]
    share: float
    needs: str | None = None


def run_parts(parts: Mapping[str, Part], out: Path, minutes: float) -> None:
    """Run the parts one after the other; a signal ends the one that runs, and all.

    Raises:
        KeyboardInterrupt: after that.
    """
    end = time.monotonic() + 60 * minutes
    for name, part in parts.items():
        seconds = min(end - time.monotonic(), part.share * 60 * minutes)
        if part.needs and not find_spec(part.needs):
            mark(out, name, status="skipped", why=f"{part.needs} is not installed")
        elif seconds <= 0:
            mark(out, name, status="skipped", why="no time was left")
        else:
            print(f"{name}, at most {seconds:.0f} s", file=sys.stderr, flush=True)
            _run(name, part, out, seconds)


def _run(name: str, part: Part, out: Path, seconds: float) -> None:
    mark(out, name, status="running", limit=seconds)
    begun = time.monotonic()
    # A fork is quick, and safe as long as this process does not touch the GPU.
    process = get_context("fork").Process(
        target=_in_child, args=(name, part, out, seconds)
    )
    process.start()
    ending = {"status": "stopped", "why": "by a signal"}
    try:
        process.join(seconds)
        ending = {"status": "out of time", "why": f"ended after {seconds:.0f} s"}
        if process.exitcode is not None:
            why = f"its process ended with code {process.exitcode}"
            ending = {"status": "failed", "why": why}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.ident, signal.SIGKILL)  # with all that it started
        process.kill()  # in case it had no group yet
        process.join()
        known = read_json(out)["parts"][name]
        if known["status"] != "running":  # it came to its own end
            ending = {}
        mark(out, name, seconds=time.monotonic() - begun, **ending)


def _in_child(name: str, part: Part, out: Path, seconds: float) -> None:
    """Measure. Never returns, so that nothing can wait at exit."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(int(seconds) + 10)  # in case nobody is left who would end it
    with out.with_suffix(".log").open("a", buffering=1, encoding="utf-8") as log:
        print(f"--- {name}", file=log)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        results: list[Result] = []
        try:
            for result in part.measure(out):
                results.append(result)
                mark(out, name, results=results)
            mark(out, name, status="done")
        except Skipped as reason:
            mark(out, name, status="skipped", why=str(reason))
        except BaseException as error:
            traceback.print_exc()
            first_line = f"{type(error).__name__}: {error}".splitlines()[0]
            mark(out, name, status="failed", why=first_line)
    os._exit(0)


def mark(out: Path, name: str, **found: Any) -> None:
    """Write what is known about a part."""
    record = read_json(out)
    record["parts"].setdefault(name, {}).update(found)
    write_json(out, record)


def shown(record: Mapping[str, Any]) -> str:
    """The table of all results, and of the parts that did not come to their end."""
    lines = []
    for name, found in record["parts"].items():
        lines += [_line(name, result) for result in found.get("results", ())]
        if found["status"] != "done":
            why = f"{found['status'].upper()}: {found.get('why', '')}"
            lines.append([name, "", "", "", why])
    return table(["", "a second", "MFU", "peak GB", ""], lines)


def _line(name: str, result: Result) -> list[str]:
    rate, mfu, memory = (result.get(key) for key in ("rate", "mfu", "peak_gb"))
    wrong = "DOES NOT AGREE: " if result.get("equal") is False else ""
    return [
        f"{name}: {result['measured']}",
        f"{rate:,.1f} {result['unit']}" if rate else "",
        f"{mfu:.1%}" if mfu else "",
        f"{memory:.2f}" if memory else "",
        wrong + result.get("note", ""),
    ]


def succeeded(record: Mapping[str, Any]) -> bool:
    """Whether something was measured, nothing failed, and all agrees."""
    found = record["parts"].values()
    results = [result for part in found for result in part.get("results", ())]
    ended = all(part["status"] in ("done", "skipped") for part in found)
    agree = all(result.get("equal", True) for result in results)
    return bool(results) and ended and agree

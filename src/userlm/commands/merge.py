"""`userlm merge`: from the runs of all parts to the one run that they are parts of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from userlm.commands.assess import Assess, assess
from userlm.commands.costs import Limits
from userlm.commands.import_ import Import, import_
from userlm.commands.intents import Intents, intents
from userlm.commands.options import Output, argument, option, rebuilt
from userlm.commands.parts import check_alike, read_parts, sum_of
from userlm.commands.ppl import Ppl, ppl
from userlm.commands.respond import Respond, respond
from userlm.commands.simulate import Simulate, simulate
from userlm.commands.steps import GIVEN, Results
from userlm.imports import code_refused
from userlm.json_files import read_json, write_json
from userlm.runs import HASHES, Run
from userlm.types import InputError

IN_PARTS: dict[str, tuple[type, Callable[[Any, Sequence[Any]], Results]]] = {
    "import": (Import, import_),
    "intents": (Intents, intents),
    "ppl": (Ppl, ppl),
    "respond": (Respond, respond),
    "simulate": (Simulate, simulate),
    "assess": (Assess, assess),
}
"""The verbs that take `--part`."""
MERGED = ".merged.json"
"""In the folder of a merged run, the hashes of the rows of each part that it was made of."""


@dataclass(frozen=True, slots=True)
class Merge:
    """Make one run of the runs of all parts (`--part`): its files are those of a run that was never
    divided. Give the parts in any order, in the folder where they were run: the inputs are read.

    $ userlm merge runs/simulate-1 runs/simulate-2 --out runs/simulate
    """

    parts: list[Path] = argument(..., "The run folders of all parts.")
    out: Path = option(..., "Output folder of the whole run.", recorded=False)
    output: Output = Output()
    run_bots: bool = option(
        False,
        "Merged again, also run code for what failed: bots (py:, cmd:, bot:), functions that check "
        "and, if the parts were run with --unsafe-local, the code of answers. It may be anything "
        "if somebody else made the parts.",
        flag="--run-bots",
        recorded=False,
    )


def merge(options: Merge) -> Results:
    """Merge the parts into a run of their verb. A complete one stays, and what failed in it is
    tried again, as by its verb; raise `InputError` if that needs code that may not run."""
    parts = read_parts(options.parts)
    first = parts[0]
    is_merged = (options.out / "results.json").is_file() and not options.output.force
    if is_merged:
        check_alike(first, Run.read(options.out))
    if first.verb not in IN_PARTS or GIVEN not in first.manifest:
        raise InputError(
            f"{first.folder} was not run with --part by this version; run it again"
        )
    kind, verb = IN_PARTS[first.verb]
    given = [part.manifest[GIVEN] for part in parts]
    limits = {
        each.name: sum_of(given, each.name)
        for each in fields(Limits)
        if each.name in given[0]
    }
    own = {
        "out": options.out,
        "part": None,
        "on": None,
        "details": options.output.details,
        "force": options.output.force,
    }
    whole: Any = rebuilt(kind, {**given[0], **limits, **own})
    rows = {str(part.options["part"]): part.results.get(HASHES) for part in parts}
    merged, results = options.out / MERGED, options.out / "results.json"
    if is_merged:
        if merged.is_file() and read_json(merged) != rows:
            raise InputError(
                f"{options.out} was merged from other rows than the parts have now; --force "
                "merges anew"
            )
        with code_refused(unless="" if options.run_bots else "--run-bots"):
            return verb(whole, ())
    earlier = _written(results)
    try:
        return verb(whole, parts)
    finally:  # also if what a merge asks for itself has failed
        if _written(results) not in (None, earlier):
            write_json(merged, rows)


def _written(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written anew; `None` if there is none."""
    if not path.is_file():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns

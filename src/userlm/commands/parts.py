"""Runs of parts of an input, and what the verbs share to make one run of them.

Each verb that takes `--part` is a function of its options and of finished parts. With parts, it
puts their rows in order and counts again what is no sum, and asks no model.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import Any, Protocol, TypeVar

from userlm.commands.options import Parts
from userlm.commands.steps import Results, RunOptions
from userlm.json_files import replacing
from userlm.manifest import first_difference, other_inputs
from userlm.models.budget import Budget, Caps, Price
from userlm.parts import Part
from userlm.runs import HASHES, FinishedRun, Run, rows_of
from userlm.types import InputError


class PartOptions(RunOptions, Protocol):
    """The options of a verb that takes `--part`."""

    @property
    def several(self) -> Parts: ...


Options = TypeVar("Options", bound=PartOptions)
Verb = Callable[[Options, Sequence[FinishedRun]], Results]


def in_parts(
    verb: Verb[Options],
) -> Callable[..., Results]:
    """Return the verb as a function of its options; with `--on` it runs on a cluster."""

    @wraps(verb)
    def run(options: Options, parts: Sequence[FinishedRun] = ()) -> Results:
        _ = options.several.share  # a wrong one is an error before anything is opened
        if options.several.on is None or parts:
            return verb(options, parts)
        if options.several.part is not None:
            raise InputError("--on runs all parts; leave --part out")
        from userlm.commands.on_ray import folder_of_parts, run_parts

        is_merged = (options.out / "results.json").is_file()
        if is_merged and not folder_of_parts(options.out).is_dir():
            return verb(options, ())  # what failed is tried again here
        return verb(options, read_parts(run_parts(run, options)))

    return run


# --- which parts ----------------------------------------------------------------------------------


def read_parts(folders: Iterable[Path]) -> list[FinishedRun]:
    """Return the runs of all parts of one input, in order.

    Raises:
        InputError: if one is missing, doubled, unfinished, changed since, or of something else.
    """
    parts: dict[int, FinishedRun] = {}
    first: FinishedRun | None = None
    for folder in folders:
        found = Run.read(folder)
        part = _part_of(found)
        first = first or found
        check_alike(first, found)
        _check_whole(found)
        if part.of != _part_of(first).of:
            raise InputError(
                f"{first.folder} is part {_part_of(first)} and {folder} part {part}; give parts of "
                "one division"
            )
        if part.number in parts:
            raise InputError(
                f"{parts[part.number].folder} and {folder} are both part {part}; give one of them"
            )
        parts[part.number] = found
    if first is None:
        raise InputError("give the folders of all parts")
    of = _part_of(first).of
    missing = [str(Part(one, of)) for one in range(1, of + 1) if one not in parts]
    if missing:
        raise InputError(f"missing: part {', '.join(missing)}; give the folder of each")
    return [parts[number] for number in sorted(parts)]


def _part_of(run: FinishedRun) -> Part:
    given = run.options.get("part")
    if not isinstance(given, str):
        raise InputError(
            f"{run.folder} is a run of the whole input, not of a part; leave it out"
        )
    return Part.parse(given)


def check_alike(first: FinishedRun, other: FinishedRun) -> None:
    """Raise `InputError` if two parts, or a part and the whole, are not of one run."""
    both = f"{first.folder} and {other.folder} are of runs with other"
    again = "run one of them again, as the others were"
    pairs = (
        ("verb", first.verb, other.verb),
        ("options", _whole(first), _whole(other)),
        ("versions", first.manifest.get("versions"), other.manifest.get("versions")),
        ("prompts", first.manifest.get("prompts"), other.manifest.get("prompts")),
    )
    for what, one, two in pairs:
        if one != two:
            there, here = first_difference(one, two)
            raise InputError(f"{both} {what} ({there} and {here}); {again}")
    if changed := other_inputs(first.manifest["inputs"], other.manifest["inputs"]):
        raise InputError(f"{both} inputs ({changed}); {again}")


def _check_whole(part: FinishedRun) -> None:
    """Raise `InputError` if a part has other rows than when it was finished, as a copy that was
    cut off."""
    rows = rows_of(part.folder)
    were = part.results.get(HASHES, rows)
    changed = [name for name, hash in were.items() if rows.get(name) != hash]
    if changed:
        raise InputError(
            f"{part.folder} has other rows than when it was finished ({', '.join(changed)}); copy "
            "it whole, or run it again with --force"
        )


def _whole(run: FinishedRun) -> dict[str, Any]:
    return {**run.options, "part": None}


# --- making one run of them -----------------------------------------------------------------------


def concatenate(run: Run, name: str, parts: Sequence[FinishedRun]) -> None:
    """Write a file of the run with the lines of those of the parts; none if no part has it."""
    paths = [part.path(name) for part in parts if part.path(name).is_file()]
    if not paths:
        return
    with replacing(run.path(name)) as partial, partial.open("wb") as whole:
        for path in paths:
            with path.open("rb") as file:
                shutil.copyfileobj(file, whole)


def total(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Return the sums of counts, by name."""
    found: Counter[str] = Counter()
    for each in counts:
        found.update(each)
    return found


def merged_budget(run: Run, parts: Sequence[FinishedRun]) -> Budget:
    """Return the usage of the parts together, with the sums of their limits."""
    concatenate(run, "usage.jsonl", parts)
    caps = [part.results["caps"] for part in parts]
    dollars = sum_of(caps, "budget")
    budget = Budget(
        Caps(sum_of(caps, "max_calls"), sum_of(caps, "max_tokens_total"), dollars),
        run.path("usage.jsonl"),
    )
    for name, used in parts[0].results["usage"].items():
        if used is not None:
            budget.side(name, price=_price(parts, name))
    return budget


def sum_of(caps: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Return the sum of a limit; `None` if a part has none."""
    values = [each[name] for each in caps]
    if None in values:
        return None
    return sum(map(Decimal, map(str, values))) if name == "budget" else sum(values)


def _price(parts: Sequence[FinishedRun], side: str) -> Price | None:
    prices = {part.results["usage"][side]["price"] for part in parts}
    if len(prices) > 1:
        shown = ", ".join(sorted(map(str, prices)))
        raise InputError(
            f"the parts were run with other prices of the {side} ({shown}); run them with one"
        )
    [price] = prices
    return Price.parse(price) if price else None

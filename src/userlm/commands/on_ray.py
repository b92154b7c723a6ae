"""All parts of a run on a Ray cluster (the extra `ray`): a part a task.

Ray chooses a node with enough free GPUs for each task, and starts one again whose worker or node
died; the part then goes on from its own journal, as any run does. All nodes need this package, and
must see the same files under the same paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from userlm.commands.options import given, rebuilt
from userlm.parts import Part
from userlm.show.terminal import console
from userlm.types import InputError, ModelError

RETRIES = 3
"""How often a part is started again whose worker died."""
SHARED_LIMITS = {"budget": 1e-6, "max_calls": 1, "max_tokens_total": 1}
"""The limits that are divided among the parts, each with the unit that cannot be divided."""


def folder_of_parts(out: Path) -> Path:
    """The folder for the runs of the parts, beside that of the whole."""
    return out.with_name(f"{out.name}.parts")


def run_parts(verb: Callable[..., Any], options: Any) -> list[Path]:
    """Run all parts that are not finished, and return their folders.

    Raises:
        InputError: if Ray is not installed.
        ModelError: if a part is not complete, once all others are.
    """
    try:
        import ray
    except ImportError:
        raise InputError(
            "--on ray needs Ray: pip install 'userlm[ray]', here and on each node of the cluster"
        ) from None
    os.environ.setdefault(
        "RAY_USAGE_STATS_ENABLED", "0"
    )  # else it reports to its makers
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="WARNING")
    task = ray.remote(_run).options(num_gpus=options.several.gpus, max_retries=RETRIES)
    of = options.several.parts
    waiting = {}
    for number in range(1, of + 1):
        part = Part(number, of)
        own = of_part(options, part)
        waiting[task.remote(verb, own, Path.cwd())] = part, own.out
    folders = [folder for _, folder in waiting.values()]
    failed = ""
    while waiting:
        [done], _ = ray.wait(list(waiting), num_returns=1)
        part, folder = waiting.pop(done)
        try:
            why = ray.get(done)
        except ray.exceptions.RayError as error:
            why = str(error).strip().rpartition("\n")[2]
        # A part is complete even if all of its conversations ended in an error.
        is_complete = (folder / "results.json").is_file()
        console.print(f"part {part}: {why or 'complete'}", soft_wrap=True)
        failed = failed or ("" if is_complete else f"part {part} in {folder}: {why}")
    if failed:
        raise ModelError(f"{failed}; the same command goes on with it")
    return folders


def of_part(options: Any, part: Part) -> Any:
    """Return the options of a part, with its share of the limits."""
    values = given(options)
    for name, unit in SHARED_LIMITS.items():
        if values.get(name) is not None:
            values[name] = type(unit)(values[name] / part.of // unit * unit)
    out = folder_of_parts(options.out) / f"{part.number}-of-{part.of}"
    own = {"out": out, "part": str(part), "on": None}
    return rebuilt(type(options), {**values, **own})


def _run(verb: Callable[..., Any], options: Any, folder: Path) -> str:
    """Run a part in a task; return what went wrong, in one sentence."""
    os.chdir(folder)
    try:
        verb(options)
    except (InputError, ModelError) as error:
        return str(error)
    return ""

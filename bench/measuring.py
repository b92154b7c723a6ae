"""What the benches share: time and memory of a block, fresh processes, tables, the machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@dataclass(slots=True)
class Usage:
    """Seconds and MB of the block inside `measured`."""

    cpu: float = 0.0
    wall: float = 0.0
    memory: float = 0.0


@contextmanager
def measured(device: str = "cpu") -> Iterator[Usage]:
    """Measure wall and CPU seconds of this process, and its peak memory minus that at the start; on
    a GPU all that was allocated."""
    import torch

    usage, gpu = Usage(), device != "cpu"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    begun = 0.0 if gpu else _status("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    yield usage
    if gpu:
        torch.cuda.synchronize()
    usage.cpu, usage.wall = time.process_time() - cpu, time.perf_counter() - wall
    usage.memory = (
        torch.cuda.max_memory_allocated() / 1e6 if gpu else _status("VmHWM") - begun
    )


def _status(name: str) -> float:
    """A size of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {name}")


Alone = Callable[..., Any]
"""Calls a function with its arguments in a fresh process."""


def in_fresh_processes() -> Alone:
    """Return a function that runs another in a new process. The processes fork from one that has
    imported the large modules and started no threads, as Arrow would."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["userlm.training.train", "transformers.trainer", "transformers.models.llama"]
    )

    def alone(function: Callable[..., Any], *arguments: Any) -> Any:
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(function, *arguments).result()

    return alone


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers aligned to the right."""
    widths = [max(map(len, cells)) for cells in zip(head, *lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        for line in (head, rule, *lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def device_name(device: str) -> str:
    import torch

    return "cpu" if device == "cpu" else torch.cuda.get_device_name()


def machine(*packages: str) -> str:
    """The machine and the versions; packages that are not installed are left out."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = []
    for name in ("userlm", "torch", "transformers", *packages):
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    threads, load = os.environ["OMP_NUM_THREADS"], os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB, "
        f"Python {platform.python_version()}, {', '.join(versions)}; {threads} thread(s), "
        f"load {load:.1f}"
    )


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"

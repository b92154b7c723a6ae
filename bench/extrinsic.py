"""How right and how fast the sandbox is: solutions of HumanEval and MBPP, right and broken.

    python bench/extrinsic.py ../shared/data/extrinsic

The folder has humaneval.jsonl.gz and mbpp.jsonl.gz, a row a task with the fields of the published
files. A broken solution of HumanEval returns nothing, raises, or returns a word, in turn. `cpu` is
the time of all processes, which a busy machine does not change much; `wall` it does.
"""

import os
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from userlm.rows import read_rows
from userlm.sandbox.finding import find
from userlm.types import RIGHT, TestsCheck, Verdict

BROKEN = ("    return None\n", "    raise ValueError('no')\n", "    return 'broken'\n")
SANDBOX = find()

Job = tuple[str, TestsCheck, str]


def main(folder: Path) -> None:
    """Grade and print."""
    right = []
    broken = []
    for number, row in enumerate(rows(folder / "humaneval.jsonl.gz")):
        check = TestsCheck(row["test"], row["entry_point"], row["prompt"])
        right.append((row["task_id"], check, row["canonical_solution"]))
        broken.append((row["task_id"], check, BROKEN[number % len(BROKEN)]))
    references = []
    for row in rows(folder / "mbpp.jsonl.gz"):
        tests = "\n".join([row["test_setup_code"] or "", *row["test_list"]])
        references.append((f"MBPP/{row['task_id']}", TestsCheck(tests), row["code"]))
    print(f"{SANDBOX.isolation}, {SANDBOX.slots} slots, load {os.getloadavg()[0]:.1f}")
    print("solutions               right  of   wall s  cpu s  memory MB")
    grade("HumanEval, right", right)
    grade("HumanEval, broken", broken)
    for job, verdict in grade("MBPP, references", references):
        if verdict.label != RIGHT:
            print(f"  {job[0]}: {verdict.label}: {verdict.reason}")


def rows(path: Path) -> list[dict]:
    return [line.row for line in read_rows(path)]


def grade(name: str, jobs: Sequence[Job]) -> list[tuple[Job, Verdict]]:
    """Grade the solutions, as many at once as there are slots, and print a line."""
    started = time.monotonic(), computed()
    with ThreadPoolExecutor(SANDBOX.slots) as pool:
        verdicts = list(pool.map(lambda job: SANDBOX.run(*job[1:]), jobs))
    wall = time.monotonic() - started[0]
    cpu = computed() - started[1]
    right = sum(verdict.label == RIGHT for verdict in verdicts)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:22s} {right:6d} {len(jobs):4d} {wall:7.1f} {cpu:6.1f} {memory:9.0f}",
        flush=True,
    )
    return list(zip(jobs, verdicts, strict=True))


def computed() -> float:
    """Seconds of computing, by this process and those that ended."""
    found = [
        resource.getrusage(which)
        for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(one.ru_utime + one.ru_stime for one in found)


main(Path(sys.argv[1]))

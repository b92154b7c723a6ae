"""How right and how fast the sandbox is: solutions of HumanEval and MBPP, right and broken.

    python bench/extrinsic.py ../shared/data/extrinsic
    python bench/extrinsic.py grid

The folder has humaneval.jsonl.gz and mbpp.jsonl.gz, a row a task with the fields of the published
files. A broken solution of HumanEval returns nothing, raises, or returns a word, in turn. `cpu` is
the time of all processes, which a busy machine does not change much; `wall` it does.

`grid` is about `userlm evaluate` instead: a scripted user, scripted assistants, 65 tasks of four
facts, and some conversations about each. Each has four turns of each side, and is solved at the
last. A cell with 650 conversations is a row of the paper's table.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import DEVNULL
from tempfile import TemporaryDirectory

from userlm.grading import Sandbox
from userlm.json_files import write_lines
from userlm.rows import read_rows
from userlm.sandbox.finding import find
from userlm.types import RIGHT, TestsCheck, Verdict

SOURCE = Path(__file__).resolve().parent.parent / "src"
BROKEN = ("    return None\n", "    raise ValueError('no')\n", "    return 'broken'\n")

Job = tuple[str, TestsCheck, str]


def main(folder: Path) -> None:
    """Grade and print."""
    sandbox = find()
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
    print(f"{sandbox.isolation}, {sandbox.slots} slots, load {os.getloadavg()[0]:.1f}")
    print("solutions               right  of   wall s  cpu s  memory MB")
    grade(sandbox, "HumanEval, right", right)
    grade(sandbox, "HumanEval, broken", broken)
    for job, verdict in grade(sandbox, "MBPP, references", references):
        if verdict.label != RIGHT:
            print(f"  {job[0]}: {verdict.label}: {verdict.reason}")


def rows(path: Path) -> list[dict]:
    return [line.row for line in read_rows(path)]


def grade(
    sandbox: Sandbox, name: str, jobs: Sequence[Job]
) -> list[tuple[Job, Verdict]]:
    """Grade the solutions, as many at once as there are slots, and print a line."""
    started = time.monotonic(), computed()
    with ThreadPoolExecutor(sandbox.slots) as pool:
        verdicts = list(pool.map(lambda job: sandbox.run(*job[1:]), jobs))
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


# --- the grid -------------------------------------------------------------------------------------

TASKS = 65
FACTS = 4
SCRIPTS = """
import userlm

def user(conversation: userlm.Conversation):
    facts = conversation.intent.split(". ")[1:]
    said = len(conversation.user_turns)
    return facts[said] if said < len(facts) else userlm.Reply(stop="end")

def answer(messages):
    said = " ".join(one["content"] for one in messages if one["role"] == "user")
    numbers = [int(word) for word in said.split() if word.isdigit()]
    if len(numbers) < 4:
        return "What else is there? " * 20
    return f"The answer is {sum(numbers)}."

one = two = three = four = five = six = answer
"""
ASSISTANTS = "one two three four five six".split()
SIZES = ((1, 10), (6, 10), (1, 40))
"""Numbers of assistants and of repeats."""


def grid() -> None:
    """Run a grid of each size in a process of its own, and print."""
    print(f"load {os.getloadavg()[0]:.1f}")
    print("cells  conversations   wall s  cpu s  memory MB")
    for cells, repeats in SIZES:
        with TemporaryDirectory() as folder:
            here = Path(folder)
            (here / "grid_of_bench.py").write_text(SCRIPTS)
            write_lines(here / "tasks.jsonl", map(task, range(TASKS)))
            command = [sys.executable, "-m", "userlm", "evaluate", "--no-single"]
            for name in ASSISTANTS[:cells]:
                command += ["--assistant", f"py:grid_of_bench:{name}"]
            command += ["--user", "py:grid_of_bench:user"]
            command += ["--tasks", "tasks.jsonl", "--repeats", str(repeats)]
            started = time.monotonic()
            environment = os.environ | {"PYTHONPATH": f"{SOURCE}:{here}"}
            pid = subprocess.Popen(
                command, cwd=here, env=environment, stdout=DEVNULL, stderr=DEVNULL
            ).pid
            _, status, used = os.wait4(pid, 0)
            if status:
                sys.exit("userlm evaluate failed")
            wall = time.monotonic() - started
            cpu = used.ru_utime + used.ru_stime
            memory = used.ru_maxrss / 1024
            talks = TASKS * repeats * cells
            print(f"{cells:5d} {talks:14d} {wall:8.1f} {cpu:6.1f} {memory:10.0f}")


def task(number: int) -> dict:
    """A task whose answer is the sum of the numbers in its facts."""
    amounts = [10 * number + at for at in range(FACTS)]
    facts = [
        f"Box {'ABCD'[at]} has {amount} things" for at, amount in enumerate(amounts)
    ]
    return {
        "id": str(number),
        "intent": ". ".join(["Add what is in the boxes", *facts]),
        "facts": facts,
        "check": {"number": sum(amounts)},
        "family": f"family {number % 3}",
    }


if sys.argv[1] == "grid":
    grid()
else:
    main(Path(sys.argv[1]))

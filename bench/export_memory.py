"""How much memory `userlm export` needs for some conversations, and for twice as many.

    python bench/export_memory.py --conversations 25000

The conversations have six turns of 20 and 120 made-up words, two to a task, of which one solved it.
Writes the table of docs/exports.md, without the formats that hold one conversation at a time.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from userlm.rows import write_conversations
from userlm.types import Conversation, Origin

FORMATS = {"messages": "jsonl", "dpo": "jsonl", "inspect": "eval", "parquet": "parquet"}
WORDS = [f"w{number}" for number in range(5000)]
MEGABYTE = 1024  # what the kernel counts are kilobytes


def conversations(count: int) -> Iterator[Conversation]:
    """Yield made-up conversations."""
    chance = random.Random(0)
    for number in range(count):
        task, repeat = divmod(number, 2)
        talk = Conversation(f"{task}#{repeat}", origin=Origin(task=str(task)))
        for turn in range(3):
            asked = " ".join(chance.choices(WORDS, k=20))
            talk = talk.say(asked if turn else f"task {task}")
            talk = talk.say(" ".join(chance.choices(WORDS, k=120)))
        yield talk.close("solved" if repeat else "end")


def megabytes(log: Path, form: str) -> float:
    """Return the largest memory of a process that exports a file."""
    out = log.with_name(f"{log.stem}.{form}.{FORMATS[form]}")
    command = [sys.executable, "-m", "userlm", "export", str(log), "--as", form]
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"export --as {form} ended with {process.returncode}")
    return used.ru_maxrss / MEGABYTE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--conversations", type=int, default=25_000)
    count = parser.parse_args().conversations
    with TemporaryDirectory() as folder:
        logs = [Path(folder, f"{n}.jsonl") for n in (count, 2 * count)]
        for log in logs:
            write_conversations(log, conversations(int(log.stem)))
        size = logs[-1].stat().st_size / 1e6
        print(f"| `--as` | {count:,} | {2 * count:,} ({size:.0f} MB of text) |")
        print("|---|--:|--:|")
        for form in FORMATS:
            used = [f"{megabytes(log, form):.0f} MB" for log in logs]
            print(f"| `{form}` | {' | '.join(used)} |", flush=True)


if __name__ == "__main__":
    main()

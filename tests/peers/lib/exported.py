"""What the scripts that read exports share: a run to export, by the command line of this checkout."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from traceback import format_exception_only

CHECK = 'check = { contains = "Friday" }'
TASKS = (
    f'[[task]]\nid = "t"\nintent = "Move a flight."\nfacts = ["To Friday."]\n{CHECK}\n'
)
BOTS = """
def old(text: str) -> str:
    return "No."


def new(text: str) -> str:
    return "It is on Friday now. \\u00e9\\U0001f600"
"""


def run() -> Path:
    """Return a run of `evaluate` in which one of two bots solves the task."""
    if not Path("run/results.json").is_file():
        Path("bots.py").write_text(BOTS)
        Path("tasks.toml").write_text(TASKS)
        bots = ("--assistant", "py:bots:old", "--assistant", "py:bots:new")
        userlm(
            "evaluate",
            *bots,
            "--user",
            "single",
            "--tasks",
            "tasks.toml",
            "--out",
            "run",
        )
    return Path("run")


def userlm(*arguments: str, **variables: str) -> None:
    """Run a command; what it says is in the error if it fails."""
    command = [os.environ["PEER_USERLM_PYTHON"], "-m", "userlm", *arguments]
    env = {**os.environ, **variables, "PYTHONPATH": os.environ["PEER_USERLM"]}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])


def export(form: str, ending: str = "jsonl", *options: str) -> str:
    """Return the name of a file with the run in a format."""
    out = f"{form}{'-'.join(options)}.{ending}"
    userlm("export", str(run()), "--as", form, "--out", out, *options)
    return out


@contextmanager
def case(reader: str, package: str, how: str) -> Iterator[dict]:
    """Run one case and print its row; what is put into the yielded one is in it."""
    row = {"harness": reader, "version": version(package), "how": how, "note": ""}
    try:
        yield row
        row["ok"] = True
    except Exception as error:
        row |= {"ok": False, "note": format_exception_only(error)[-1].strip()[:400]}
    print(json.dumps(row), flush=True)
    sys.stdout.flush()

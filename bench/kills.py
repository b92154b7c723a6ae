"""Kill every verb at random moments, run it again, and compare with a run that was left alone.

    .venv/bin/python bench/kills.py [--kills 500] [--seed 0] [--verbs import,clean]

Each verb runs once undisturbed. Then, until enough kills have hit: it starts in a new folder, is
killed (SIGKILL to the whole process group) after a random time, is started again with the same
command up to three times, each time perhaps killed, and at last runs to its end. Its files must be
those of the undisturbed run, line by line in any order, and what it says that its calls used must
be at least what the server saw. The server is on this machine; its answers depend on the messages
alone. Exits with 1 if anything was lost, doubled or undercounted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fake_server import FakeServer, Said, completion, serving
from measuring import machine, table

from userlm import assets
from userlm.text import INTENT_PREFIX

TRIES = 3
"""How often a command is started again before it may finish."""

TIMES = {"seconds", "started", "finished", "created", "throughput", "version", "out"}
"""Fields that differ between two equal runs."""

ATTEMPTS = {"usage", "spent", "faults"}
"""Fields that count what earlier attempts did, such as calls in flight when they were killed. Usage
is compared with the server's count."""

SKIPPED = {"usage.jsonl", "run.json", "calls.jsonl", "asked.jsonl"}
"""Files that may differ: they hold times, folders, or every try of a call."""


def answer(body: dict[str, Any], n: int) -> Said:
    """The answer to a request, after a moment: a label, or what may be an intent too."""
    said = json.dumps(body["messages"], sort_keys=True)
    digest = hashlib.sha256(said.encode()).hexdigest()
    text = (
        f"{INTENT_PREFIX}hear of step {digest[:6]} and what it says of {digest[6:9]}."
    )
    if schema := body.get("response_format"):
        labels = schema["json_schema"]["schema"]["properties"]["label"]["enum"]
        label = labels[int(digest, 16) % len(labels)]
        text = json.dumps({"reason": digest[:6], "label": label})
    return replace(completion(text), hang=0.02)


@dataclass
class Found:
    """What happened to a verb."""

    seconds: float = 0.0
    kills: int = 0
    runs: int = 0
    wrong: list[str] = field(default_factory=list)


def commands(base: Path, url: str) -> dict[str, list[str]]:
    """The command of each verb, without --out; those before it make its input in `base`."""
    logs = [str(assets.sample_logs())]
    intents = str(base / "intents")
    test = str(base / "intents/test.jsonl")
    responses, talks = str(base / "respond"), str(base / "simulate")
    grid = str(base / "evaluate")
    user = ["--user", "trained:userlm-tiny", "--batch", "1", "--seed", "1"]
    assistant = ["--assistant", url, "--workers", "4"]
    return {
        "import": ["import", *logs],
        "clean": ["clean", str(base / "import"), "--template-limit", "5"],
        "intents": ["intents", str(base / "clean")],
        "intents-writer": [
            *("intents", str(base / "clean"), "--writer", url, "--overwrite"),
            *("--limit", "60"),
        ],
        "train": [
            *("train", intents, "--base", "scratch:64x2x512", "--batch", "32"),
            *("--save-every", "2", "--device", "cpu", "--lr", "1e-3", "--steps", "12"),
        ],
        "ppl": ["ppl", test, "--model", "userlm-tiny"],
        "respond": ["respond", test, *user, "--workers", "2", "--limit", "8"],
        "simulate": [
            *("simulate", "--intents", test, *user, *assistant, "--max-turns", "3"),
            *("--limit", "16"),
        ],
        "judge": ["judge", responses, "--judge", url, "--prompt", "naturalness"],
        "detect": [
            *("detect", responses, "--human", test, "--limit", "20"),
            *("--detector", f"judge:{url}", "--workers", "4"),
        ],
        "score": ["score", talks, "--human", test],
        "assess": [
            *("assess", "--reference", test, "--user", f"prompted:{url}", "--quick"),
            *("--limit", "4", *assistant, "--judge", url),
        ],
        "evaluate": [
            *("evaluate", "--tasks", str(assets.sample_tasks()), *assistant),
            *("--user", f"prompted:{url}", "--repeats", "2", "--max-turns", "2"),
            *("--limit", "4", "--judge", url),
        ],
        "compare": ["compare", grid],
        "export": ["export", talks, grid, "--as", "messages", "--force"],
        "report": ["report", str(base / "import"), str(base / "ppl"), grid],
    }


def start(command: Sequence[str], out: Path) -> subprocess.Popen[bytes]:
    """Start a verb."""
    if command[0] == "export":  # writes one file
        out.mkdir(exist_ok=True)
        out = out / "conversations.jsonl"
    return subprocess.Popen(
        [sys.executable, "-m", "userlm", *command, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(command: Sequence[str], out: Path) -> str:
    """Run a verb to its end, and return what it said if it failed."""
    process = start(command, out)
    _, error = process.communicate()
    return "" if process.returncode == 0 else error.decode()[-300:]


def killed(command: Sequence[str], out: Path, after: float) -> bool:
    """Start a verb and kill it after this time; return whether it was still running."""
    process = start(command, out)
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


def outcome(folder: Path) -> dict[str, Any]:
    """The content of the files of a run that do not depend on time."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or path.name in SKIPPED:
            continue
        if path.suffix == ".jsonl":
            rows = map(json.loads, path.read_text().splitlines())
            found[name] = Counter(json.dumps(timeless(row)) for row in rows)
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "present"
    return found


def timeless(value: Any) -> Any:
    """Return a JSON value without the fields that differ between two equal runs."""
    if isinstance(value, dict):
        return {
            key: timeless(each)
            for key, each in value.items()
            if key not in TIMES | ATTEMPTS
        }
    if isinstance(value, list):
        return [timeless(each) for each in value]
    return value


def used(out: Path) -> int:
    """How many requests a run and the runs in it say that they may have made."""
    if spent := json.loads((out / "results.json").read_text()).get("spent"):
        return int(spent["calls"])
    sides = []
    for path in out.rglob("results.json"):
        usage = json.loads(path.read_text()).get("usage") or {}
        sides += [side for side in usage.values() if side]
    return sum(side["calls"] + side["possibly_billed"] for side in sides)


def torment(
    command: Sequence[str],
    out: Path,
    draw: random.Random,
    server: FakeServer,
    found: Found,
) -> None:
    """Run a verb in a new folder, kill it a few times, and compare."""
    expected = outcome(out.with_name("reference"))
    shutil.rmtree(out, ignore_errors=True)
    requests = len(server.requests)
    for _ in range(TRIES):
        found.kills += killed(command, out, draw.uniform(0, 1.1 * found.seconds))
    if error := run(command, out):
        found.wrong.append(f"does not go on: {error}")
        return
    found.runs += 1
    ended = outcome(out)
    differs = sorted(
        name for name in expected | ended if expected.get(name) != ended.get(name)
    )
    if differs:
        found.wrong.append(f"other content: {', '.join(differs[:4])}")
    seen = len(server.requests) - requests
    if seen and used(out) < seen:
        found.wrong.append(f"{seen} requests, {used(out)} recorded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", help="comma-separated; by default all")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    since = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, serving(answer) as server:
        base = Path(folder) / "base"
        all_commands = commands(base, f"{server.url}#m")
        results: dict[str, Found] = {}
        for verb, command in all_commands.items():
            began = time.perf_counter()
            if error := run(command, base / verb):
                raise SystemExit(f"{verb}: {error}")
            results[verb] = Found(time.perf_counter() - began)
        verbs = arguments.verbs.split(",") if arguments.verbs else list(all_commands)
        share = -(-arguments.kills // len(verbs))
        for verb in verbs:
            found = results[verb]
            room = Path(folder) / verb
            room.mkdir()
            shutil.copytree(base / verb, room / "reference")
            while found.kills < share and len(found.wrong) < 5:
                torment(all_commands[verb], room / "out", draw, server, found)
            print(f"{verb}: {found.kills} kills", file=sys.stderr, flush=True)
    print(machine())
    rows = [
        (
            verb,
            f"{each.seconds:.1f}",
            *map(str, (each.kills, each.runs, len(each.wrong))),
        )
        for verb, each in results.items()
        if verb in verbs
    ]
    print(table(("verb", "seconds alone", "kills", "runs compared", "wrong"), rows))
    kills = sum(each.kills for each in results.values())
    print(f"{kills} kills in {time.perf_counter() - since:.0f} s")
    for verb, each in results.items():
        for wrong in each.wrong:
            print(f"{verb}: {wrong}")
    raise SystemExit(any(each.wrong for each in results.values()))


if __name__ == "__main__":
    main()

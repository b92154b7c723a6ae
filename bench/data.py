"""Time and memory of `userlm import` and `userlm clean`, and whether both grow linearly.

    python bench/data.py [--sizes 50000,100000,500000] [--repeats 1] [--seed 0] [--scratch FOLDER]

The logs are those of `wildchat_like.py`, in parquet as on the Hub; they are kept in the scratch
folder (4.5 kB a row) and reused. Measured for each stage: the wall time; the CPU time, including
child processes; and the peak memory: the proportional set size (PSS) of all its processes
together, read five times a second, and `ru_maxrss` of the largest process. It needs Linux.

`--peer FOLDER` also runs the one public re-implementation of the paper's preprocessing, on the
first of the sizes, and compares which conversations are kept. It is not part of this package:

    git clone https://github.com/schang-lab/utility-of-user-simulators peer
    python -m venv peer/.venv && peer/.venv/bin/pip install pandas tqdm datasets

Its script is run unchanged; instead of the data set on the Hub it gets the same parquet files. It
keeps what is flagged as toxic or redacted, so for the comparison `clean --flagged` does, too.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Nothing large is imported here: the `ru_maxrss` of a child process starts at that of its parent.

PEER_SCRIPT = "sftuser_training/1_load_and_preprocess_wildchat.py"
SHIM = """
import time
import datasets

def load_dataset(name, *args, load=datasets.load_dataset, **options):
    if name != "allenai/WildChat-1M":
        return load(name, *args, **options)
    begun = time.time()
    found = load("parquet", data_files={files!r}, split="train")
    print(f"bench: parquet to Arrow took {{time.time() - begun:.1f}} s", flush=True)
    return found

datasets.load_dataset = load_dataset
"""
LIMIT = 100  # of both template filters
FIGURES = (
    ("s", "wall", 1),
    ("CPU s", "cpu", 1),
    ("peak MB", "tree", 0),
    ("largest process, MB", "largest", 0),
)


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of wall and CPU time; peak memory in MB of all processes and of the largest one."""

    wall: float
    cpu: float
    tree: float
    largest: float


def measure(command: Sequence[str | Path], log: Path, **environment: str) -> Cost:
    """Run a command; its output goes to `log`. If it fails, the bench exits."""
    begun, peak = time.perf_counter(), 0.0
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=os.environ | environment
        )
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, _memory(process.pid))
            time.sleep(0.2)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    if process.returncode:
        sys.exit(
            f"{' '.join(map(str, command))} ended with {process.returncode}; see {log}"
        )
    usage = ended[2]
    return Cost(
        wall, usage.ru_utime + usage.ru_stime, peak, usage.ru_maxrss * 1024 / 1e6
    )


def _memory(root: int) -> float:
    """The proportional set size of a process and all its descendants, in MB."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if told := _read(folder / "stat").rpartition(")")[2].split():
            children.setdefault(int(told[1]), []).append(int(folder.name))
    total, left = 0, [root]
    while left:
        process = left.pop()
        left += children.get(process, ())
        lines = _read(Path(f"/proc/{process}/smaps_rollup")).splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it ended in the meantime
        return ""


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(
        *(
            statistics.median(getattr(cost, name) for cost in costs)
            for name in Cost.__slots__
        )
    )


# --- runs -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Logs:
    """Raw logs and how many conversations they hold."""

    rows: int
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """One column of the table. `counts`: conversations that were dropped and kept, and what else a
    program counts."""

    name: str
    logs: Logs
    stages: dict[str, Cost]
    counts: dict[str, int]

    @property
    def whole(self) -> Cost:
        """All stages together: times add up, of memory the maximum counts."""
        costs = self.stages.values()
        wall, cpu = sum(cost.wall for cost in costs), sum(cost.cpu for cost in costs)
        return Cost(
            wall,
            cpu,
            max(cost.tree for cost in costs),
            max(cost.largest for cost in costs),
        )


def generate(rows: int, scratch: Path, seed: int, jsonl: bool = False) -> Logs:
    """Logs with this many rows, generated once: shards of parquet, or one file of JSON lines."""
    folder = scratch / f"logs-{seed}-{rows}{'-jsonl' if jsonl else ''}"
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        script = Path(__file__).with_name("wildchat_like.py")
        command: list[str | Path] = [
            sys.executable,
            script,
            str(rows),
            partial,
            "--seed",
            str(seed),
        ]
        subprocess.run([*command, "--jsonl"] if jsonl else command, check=True)
        partial.rename(folder)
    return Logs(rows, tuple(sorted(folder.iterdir())))


def ours(name: str, logs: Logs, folder: Path, repeats: int, *options: str) -> Measured:
    """Run `userlm import`, then `userlm clean` with the options; the folders of the last repeat
    are kept."""
    costs: dict[str, list[Cost]] = {"import": [], "clean": []}
    for _ in range(repeats):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for verb, arguments in (
            ("import", logs.files),
            ("clean", (folder / "import", *options)),
        ):
            command = [
                sys.executable,
                "-m",
                "userlm",
                verb,
                *map(str, arguments),
                "--out",
                str(folder / verb),
            ]
            costs[verb].append(measure(command, folder / f"{verb}.log"))
    results = {
        verb: json.loads((folder / verb / "results.json").read_text()) for verb in costs
    }
    table = results["clean"].get("ngram_table", {})
    counts = Counter({f"n-gram table: {key}": size for key, size in table.items()})
    for verb, found in results.items():
        for key, count in found["counts"].items():
            if key.startswith("dropped: "):
                counts[f"dropped in {verb}: {key.split(': ')[1]}"] += count
    counts["out"] = results["clean"]["counts"]["out"]
    medians = {verb: median(found) for verb, found in costs.items()}
    return Measured(name, logs, medians, counts)


def peer(
    name: str, logs: Logs, folder: Path, repeats: int, repository: Path, *options: str
) -> Measured:
    """Run the peer's script with its defaults, but two processes and shares of 90/5/5."""
    shim, cache = folder.with_name("shim"), folder.with_name("cache")
    shim.mkdir(exist_ok=True)
    (shim / "sitecustomize.py").write_text(
        SHIM.format(files=[str(file) for file in logs.files])
    )
    places = {"PYTHONPATH": str(shim), "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    command: list[str | Path] = [
        repository / ".venv/bin/python",
        repository / PEER_SCRIPT,
        "--output_dir",
        folder,
        *options,
    ]
    command += ["--no_wildbench", "--num_processes", "2", "--train_ratio", ".9"]
    command += ["--val_ratio", ".05", "--test_ratio", ".05"]
    costs = []
    for _ in range(repeats):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        costs.append(measure(command, folder / "log.txt", **places))
        # Otherwise the next repeat reuses the results.
        shutil.rmtree(cache, ignore_errors=True)
    out = json.loads((folder / "stats.json").read_text())["total_conversations"]
    return Measured(name, logs, {"all": median(costs)}, {"out": out})


# --- which conversations are kept -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation, raw or imported, for the comparison; `dropped`: the reason, if any."""

    id: str
    person: str
    english: bool
    first: str
    dropped: str = ""


def compare(mine: Path, theirs: Path, listed: Path) -> list[str]:
    """Describe what both kept and what only one of them kept, by reason; `listed` gets a line for
    each difference."""
    ours = {
        split: list(_imported(mine / f"clean/{split}.jsonl"))
        for split in ("train", "valid", "test")
    }
    other = {
        split: list(_raw(theirs / f"{split}.jsonl"))
        for split in ("train", "val", "test")
    }
    rejected = list(_raw(mine / "import/dropped.jsonl"))
    dropped = list(_imported(mine / "clean/dropped.jsonl"))
    imported = [row for rows in (*ours.values(), dropped) for row in rows]

    our_ids = Counter(row.id for rows in ours.values() for row in rows)
    their_ids = Counter(row.id for rows in other.values() for row in rows)
    only_ours, only_theirs = our_ids - their_ids, their_ids - our_ids
    why = {row.id: f"clean dropped it ({row.dropped})" for row in dropped}
    # For an id that occurs twice: the second one.
    why |= {row.id: f"import dropped it ({row.dropped})" for row in rejected}
    differences = [
        ("the peer", id, why.get(id, "unexplained")) for id in only_theirs.elements()
    ]
    alone = [row for row in imported if row.id in only_ours]
    for row, (here, there) in zip(
        alone, _most_frequent(alone, imported, rejected), strict=True
    ):
        past = here <= LIMIT < there
        reason = (
            f"counting what import drops, a 7-gram occurs more than {LIMIT} times"
            if past
            else "unexplained"
        )
        differences.append(("userlm", row.id, reason))

    with listed.open("w") as file:
        for side, id, reason in differences:
            file.write(json.dumps({"only": side, "id": id, "why": reason}) + "\n")
    lines = [f"kept by both: {sum((our_ids & their_ids).values()):,}"]
    for (side, reason), count in Counter(
        (side, reason) for side, _, reason in differences
    ).most_common():
        lines.append(f"only by {side}: {count:,}, {reason}")
    for side, splits in (("userlm", ours), ("the peer", other)):
        conversations = _percent([len(rows) for rows in splits.values()])
        people = _percent(
            [len({row.person for row in rows}) for rows in splits.values()]
        )
        lines.append(
            f"train/valid/test of {side}: {conversations} of conversations, {people} of people"
        )
    return [*lines, f"the {len(differences):,} kept by only one: {listed}"]


def _most_frequent(
    rows: list[Row], imported: list[Row], rejected: list[Row]
) -> list[tuple[int, int]]:
    """The count of the most frequent 7-gram of each row in first turns: of imported rows, and of
    all rows."""
    grams = [set(_ngrams(row.first)) for row in rows]
    wanted = set().union(*grams)

    def count(population: list[Row]) -> Counter[str]:
        return Counter(
            g
            for row in population
            if row.english
            for g in _ngrams(row.first)
            if g in wanted
        )

    here = count(imported)
    there = here + count(rejected)
    return [
        (
            max((here[g] for g in own), default=0),
            max((there[g] for g in own), default=0),
        )
        for own in grams
    ]


def _ngrams(text: str, n: int = 7) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


def _imported(path: Path) -> Iterator[Row]:
    for row in _lines(path):
        first = next(turn["text"] for turn in row["turns"] if turn["role"] == "user")
        meta = row["meta"]
        yield Row(
            row["id"],
            row["user"],
            meta["language"] == "English",
            first,
            meta.get("dropped", ""),
        )


def _raw(path: Path) -> Iterator[Row]:
    """Rows of WildChat as the peer writes them, or as `import` sets them aside."""
    for line in _lines(path):
        row = line.get("row", line)
        first = row["conversation"][0]
        id = f"{row['conversation_hash']}-{first['turn_identifier']}"
        person = f"{row['hashed_ip']}/{row['country'] or ''}"
        yield Row(
            id,
            person,
            row["language"] == "English",
            first["content"],
            line.get("reason", ""),
        )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, file)


def _percent(counts: Sequence[int]) -> str:
    return "/".join(f"{100 * count / sum(counts):.1f}" for count in counts) + " %"


# --- the table ------------------------------------------------------------------------------------


def table(columns: Sequence[Measured]) -> str:
    """A Markdown table with a column for each corpus and program."""
    lines = [["", *(column.name for column in columns)]]
    lines.append(["conversations", *(f"{column.logs.rows:,}" for column in columns)])
    sizes = [
        sum(file.stat().st_size for file in column.logs.files) for column in columns
    ]
    lines.append(["MB of logs", *(f"{size / 1e6:,.0f}" for size in sizes)])
    for stage in ("import", "clean", "together"):
        costs = [
            column.whole if stage == "together" else column.stages.get(stage)
            for column in columns
        ]
        for label, name, digits in FIGURES:
            cells = [
                f"{getattr(cost, name):,.{digits}f}" if cost else "" for cost in costs
            ]
            lines.append([f"{stage}: {label}", *cells])
    each = [column.whole.wall / column.logs.rows for column in columns]
    lines.append(
        ["conversations a second", *(f"{1 / seconds:,.0f}" for seconds in each)]
    )
    lines.append(
        [
            "time each, relative to the first",
            *(f"{seconds / each[0]:.2f}" for seconds in each),
        ]
    )
    for key in dict.fromkeys(key for column in columns for key in column.counts):
        found = [column.counts.get(key) for column in columns]
        lines.append([key, *("" if count is None else f"{count:,}" for count in found)])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(
        1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    )
    padded = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def machine() -> str:
    """The machine and the versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("userlm", "polars", "numpy", "orjson")
    )
    python = f"Python {platform.python_version()}"
    return f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB, {python}, {versions}"


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", default="50000,100000,500000", help="conversations, comma-separated"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="of each run; medians are shown"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the logs")
    parser.add_argument(
        "--peer", type=Path, help="clone of schang-lab/utility-of-user-simulators"
    )
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "userlm-bench"
    )
    args = parser.parse_args()
    scratch, sizes = (
        args.scratch.resolve(),
        [int(size) for size in args.sizes.split(",")],
    )
    print(
        f"{machine()}; seed {args.seed}; repeats {args.repeats}; load {os.getloadavg()[0]:.1f}\n",
        flush=True,
    )

    columns, said = [], []
    for size in sizes:
        logs = generate(size, scratch, args.seed)
        columns.append(ours("userlm", logs, scratch / "run", args.repeats))
        shutil.rmtree(scratch / "run")
    for kind in ("parquet", "jsonl") if args.peer else ():
        logs = generate(sizes[0], scratch, args.seed, jsonl=kind == "jsonl")
        mine, theirs = scratch / f"run-{kind}", scratch / f"peer-{kind}"
        data = ("--data_path", str(logs.files[0])) if kind == "jsonl" else ()
        here = ours(f"userlm --flagged, {kind}", logs, mine, args.repeats, "--flagged")
        there = peer(
            f"peer, {kind}", logs, theirs, args.repeats, args.peer.absolute(), *data
        )
        columns += [here, there]
        faster, smaller = (
            there.whole.wall / here.whole.wall,
            there.whole.tree / here.whole.tree,
        )
        said.append(
            f"\n{kind}: {faster:.1f} times as fast as the peer, {smaller:.1f} times as small"
        )
        said += [
            f"- {line}"
            for line in compare(mine, theirs, scratch / f"differences-{kind}.jsonl")
        ]
    print("\n".join([table(columns), *said]))


if __name__ == "__main__":
    main()

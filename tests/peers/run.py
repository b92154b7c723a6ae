"""Run real harnesses against `userlm serve`, each in an environment of its own: `make test-peers`.

    python tests/peers/run.py [NAME ...]     default: all scripts of this folder
    python tests/peers/run.py --table        only write the table again

A peer is a script `NAME.py` with its dependencies as inline metadata (PEP 723). They are installed
once into `.peers/NAME`; `userlm` among them means this checkout, without torch, since the user that
is served reads its turns from `user.txt`. Each script gets a server of its own, started with the
arguments in its constant `SERVE`, and prints a row of JSON for each case (`lib/peer.py`). At run
time nothing but this machine can be reached. The rows are kept in `rows.jsonl`; those with a seat
are the table of harnesses in docs/serving.md, those with what the user says at the end the table
there. A peer that cannot be run here keeps its rows of before.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
sys.path[0] = str(
    HERE / "lib"
)  # instead of this folder, whose scripts have the names of packages

from recorder import recording, wait_for

ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".peers"
ROWS = HERE / "rows.jsonl"
TABLE = ROOT / "docs" / "serving.md"

METADATA = re.compile(r"^# /// script\n((?:#.*\n)+?)# ///$", re.MULTILINE)
HEAVY = re.compile(r"(torch|transformers|tokenizers|accelerate|safetensors)\b")
"""What only models need."""
MODEL = "userlm-peer"
TIMEOUT = 600
"""Seconds for one script."""
ENDINGS = ("", "[end]")
"""What a user may say as it leaves without a word, each tried in each harness."""

OFFLINE = {
    # A closed port: whatever looks for another machine fails at once.
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "ANONYMIZED_TELEMETRY": "false",
    "DEEPEVAL_TELEMETRY_OPT_OUT": "YES",
    "GISKARD_DISABLE_TELEMETRY": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OPIK_TRACK_DISABLE": "true",
    "SCENARIO_HEADLESS": "1",
    "STRANDS_TELEMETRY_DISABLED": "1",
    "OPENAI_API_KEY": "none",
}


def main(names: list[str]) -> int:
    """Run the peers, print and keep their rows, and write the table."""
    if names != ["--table"]:
        scripts = [HERE / f"{name}.py" for name in names] or all_peers()
        for script in scripts:
            for row in keep(script.stem, run(script)):
                print(json.dumps(row), flush=True)
    write_tables()
    failed = [row["peer"] for row in kept() if row["ok"] is False]
    print(f"failed: {', '.join(failed)}" if failed else "no row failed")
    return 1 if failed else 0


def all_peers() -> list[Path]:
    """Return all scripts of peers."""
    return sorted(path for path in HERE.glob("*.py") if path.stem != "run")


def run(script: Path) -> list[dict]:
    """Return the rows of a peer; if it fails or cannot be installed, one that says so."""
    source = script.read_text(encoding="utf-8")
    try:
        python = environment(script.stem, metadata(source))
    except subprocess.CalledProcessError as error:
        row = no_row(script.stem, source, None, error.stderr.strip())
        return [{**row, "note": f"cannot be installed here: {row['note']}"}]
    try:
        done = run_script(script, source, python)
    except subprocess.TimeoutExpired as error:
        return [no_row(script.stem, source, False, str(error))]
    lines = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith('{"harness"')]
    if done.returncode or not rows:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        rows.append(no_row(script.stem, source, False, done.stderr.strip()))
    return rows


def run_script(
    script: Path, source: str, python: Path
) -> subprocess.CompletedProcess[str]:
    """Run a peer in a folder of its own, beside a server, with no way to other machines."""
    with TemporaryDirectory() as folder, served(source, Path(folder)) as variables:
        # -P: a peer may have the name of its package.
        return subprocess.run(
            [python, "-P", script],
            cwd=folder,
            env={**os.environ, **OFFLINE, **variables},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )


def no_row(name: str, source: str, ok: bool | None, said: str) -> dict:
    """Return a row that says with the last line of what was said why there is no other."""
    note = said.rpartition("\n")[2].strip()[:300]
    seat = {"seat": ""} if "peer.case(" in source else {}
    return {"harness": name, **seat, "ok": ok, "note": note}


# --- environments ---------------------------------------------------------------------------------


def metadata(source: str) -> dict:
    """Return the inline metadata of a script."""
    [block] = METADATA.findall(source)
    return tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))


def environment(name: str, wanted: dict) -> Path:
    """Return the interpreter of a peer's environment; install what is not there yet."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    stamp = folder / "installed.json"
    packages = [each for each in wanted["dependencies"] if each != "userlm"]
    own = []
    if len(packages) < len(wanted["dependencies"]):
        packages += light_dependencies()
        own = ["--no-deps", "--editable", str(ROOT)]
    text = json.dumps([wanted.get("requires-python"), packages, own])
    if stamp.exists() and stamp.read_text() == text:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    if uv := shutil.which("uv"):
        of = ("--python", wanted.get("requires-python", sys.executable))
        call(uv, "venv", "--quiet", *of, str(folder))
        install = (uv, "pip", "install", "--quiet", "--python", str(python))
    else:
        call(sys.executable, "-m", "venv", str(folder))
        install = (str(python), "-m", "pip", "install", "--quiet")
    call(*install, *packages)
    if own:
        call(*install, *own)
    stamp.write_text(text)
    return python


def light_dependencies() -> list[str]:
    """Return what `userlm` needs without a model."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [each for each in project["dependencies"] if not HEAVY.match(each)]


def call(*command: str) -> None:
    """Run a command; what it says is in the error if it fails."""
    variables = {"UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", ""), **os.environ}
    subprocess.run(command, check=True, capture_output=True, text=True, env=variables)


# --- the server -----------------------------------------------------------------------------------


@contextmanager
def served(source: str, folder: Path) -> Iterator[dict[str, str]]:
    """Serve the user that a script wants; yield the environment variables for the script."""
    further = [arguments(source)]
    if "peer.endings(" in source:
        further += [["--end-says", says] for says in ENDINGS]
    with (
        recording(folder / "record.jsonl", len(further)) as (ports, recorder),
        ExitStack() as running,
    ):
        for port, options in zip(ports, further, strict=True):
            running.enter_context(serving(port, options, folder))
        yield {
            "PEER_URL": f"{recorder}/v1",
            "PEER_ENDINGS": json.dumps(ENDINGS),
            "PEER_AGENT_URL": f"{recorder}/agent/v1",
            "PEER_MODEL": MODEL,
            "PEER_RECORD": str(folder / "record.jsonl"),
            "PEER_USERLM": str(ROOT / "src"),
            "PEER_USERLM_PYTHON": sys.executable,
            "PYTHONPATH": str(HERE / "lib"),
        }


@contextmanager
def serving(port: int, options: list[str], folder: Path) -> Iterator[None]:
    """Serve the user of these tests at a port."""
    command = [sys.executable, "-m", "userlm", "serve", "--port", str(port)]
    user = ["--user", f"script:{HERE / 'user.txt'}", "--model-name", MODEL]
    with (folder / f"serve-{port}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *user, *options],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stderr=log,
            stdout=log,
        )
        try:
            wait_for(port, process)
            yield
        finally:
            process.terminate()
            process.wait()


def arguments(source: str) -> list[str]:
    """Return the arguments of `userlm serve` in the constant SERVE of a script."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SERVE":
            return list(ast.literal_eval(node.value))
    return []


# --- rows and their table -------------------------------------------------------------------------


def kept() -> list[dict]:
    """Return the rows of all peers, as they were last run."""
    if not ROWS.exists():
        return []
    return [json.loads(line) for line in ROWS.read_text().splitlines()]


def keep(name: str, rows: list[dict]) -> list[dict]:
    """Put the rows of a peer in place of those that are there, and return them. A peer that cannot
    be run here keeps those of its last run."""
    before = [row for row in kept() if row["peer"] == name]
    others = [row for row in kept() if row["peer"] != name]
    rows = [{"peer": name, **row} for row in rows]
    was_run = any(row["ok"] is not None for row in rows)
    if not was_run and any(row["ok"] is not None for row in before):
        print(f"{name}: {rows[0]['note']}; its rows of before are kept")
        rows = [{**row, "kept": row.get("kept") or commit_of(row)} for row in before]
    ordered = sorted([*others, *rows], key=lambda row: row["peer"])
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in ordered))
    return rows


def commit_of(row: dict) -> str:
    """Return the commit that added a row."""
    search = ("log", "-1", "--format=%h", f"-S{json.dumps(row)}", "--", str(ROWS))
    found = subprocess.run(
        ["git", *search], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "an unknown commit"


def write_tables() -> None:
    """Write the tables into the documentation, between their markers."""
    page = TABLE.read_text(encoding="utf-8")
    for name, table_of in {"peers": table, "endings": endings_table}.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        page = f"{before}{mark}\n{table_of(kept())}\n{end}{after}"
    TABLE.write_text(page, encoding="utf-8")


def table(rows: list[dict]) -> str:
    """Return the Markdown table of the rows that are about a served user."""
    lines = [
        "| harness | how | stop phrase | temperature | seat | end seen | |",
        "|---|---|---|---|---|---|---|",
    ]
    seen = {True: "yes", False: "**no**", None: ""}
    shown = [row for row in rows if "seat" in row]
    for row in sorted(shown, key=lambda row: row["harness"].casefold()):
        phrase = f"`{row['stop_phrase']}`" if row.get("stop_phrase") else ""
        cells = (
            f"{row['harness']} {row.get('version', '')}".strip(),
            row.get("how", "not run"),
            phrase,
            row.get("temperature", ""),
            row.get("seat", ""),
            seen[row.get("end_seen")],
            note(row),
        )
        lines.append(line(cells))
    return "\n".join(lines)


def endings_table(rows: list[dict]) -> str:
    """Return the Markdown table of what harnesses do when the user ends, by what it says then."""
    shown = [f'`--end-says "{says}"`' for says in ENDINGS]
    lines = [line(("harness", *shown)), line(["---"] * (1 + len(ENDINGS)))]
    found: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: row["harness"].casefold()):
        if "says" in row:
            name = f"{row['harness']} {row['version']}"
            found.setdefault(name, {})[row["says"]] = note(row)
    for name, did in found.items():
        lines.append(line((name, *(did.get(says, "") for says in ENDINGS))))
    return "\n".join(lines)


def note(row: dict) -> str:
    """Return the note of a row, and from when it is if it was not run again."""
    said = ("failed: " if row["ok"] is False else "") + row["note"]
    return f"{said} (kept from {row['kept']})".strip() if "kept" in row else said


def line(cells: Iterable[str]) -> str:
    """Return a line of a Markdown table."""
    escaped = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

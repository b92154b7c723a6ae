"""Run real harnesses against `userlm serve`, each in an environment of its own: `make test-peers`.

    python tests/peers/run.py [NAME ...]     default: all scripts of this folder
    python tests/peers/run.py --table        only write the table again

A peer is a script `NAME.py` with its dependencies as inline metadata (PEP 723). They are installed
once into `.peers/NAME`; `userlm` among them means this checkout, without torch, since the user that
is served reads its turns from `user.txt`. Each script gets a server of its own, started with the
arguments in its constant `SERVE`, and prints a row of JSON for each case (`lib/peer.py`). At run
time nothing but this machine can be reached. The rows are kept in `rows.jsonl`, and those with a
seat are the table of docs/serving.md.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
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
MARKED = re.compile(r"(<!-- peers -->\n).*?(<!-- /peers -->)", re.DOTALL)
HEAVY = re.compile(r"(torch|transformers|tokenizers|accelerate|safetensors)\b")
"""What only models need."""
MODEL = "userlm-peer"
TIMEOUT = 900
"""Seconds for one script."""

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
            rows = run(script)
            keep(script.stem, rows)
            for row in rows:
                print(json.dumps(row), flush=True)
    write_table()
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
    with recording(folder / "record.jsonl") as (port, recorder):
        command = [sys.executable, "-m", "userlm", "serve", "--port", str(port)]
        user = ["--user", f"script:{HERE / 'user.txt'}", "--model-name", MODEL]
        log = (folder / "serve.log").open("w")
        process = subprocess.Popen(
            [*command, *user, *arguments(source)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stderr=log,
            stdout=log,
        )
        try:
            wait_for(port, process)
            yield {
                "PEER_URL": f"{recorder}/v1",
                "PEER_AGENT_URL": f"{recorder}/agent/v1",
                "PEER_MODEL": MODEL,
                "PEER_RECORD": str(folder / "record.jsonl"),
                "PEER_USERLM": str(ROOT / "src"),
                "PEER_USERLM_PYTHON": sys.executable,
                "PYTHONPATH": str(HERE / "lib"),
            }
        finally:
            process.terminate()
            process.wait()
            log.close()


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


def keep(name: str, rows: list[dict]) -> None:
    """Put the rows of a peer in place of those that are there."""
    others = [row for row in kept() if row["peer"] != name]
    rows = [{"peer": name, **row} for row in rows]
    ordered = sorted([*others, *rows], key=lambda row: row["peer"])
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in ordered))


def write_table() -> None:
    """Write the table into the documentation, between its markers."""
    page = TABLE.read_text(encoding="utf-8")
    TABLE.write_text(MARKED.sub(rf"\1\n{table(kept())}\n\2", page), encoding="utf-8")


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
            ("" if row["ok"] is not False else "failed: ") + row["note"],
        )
        escaped = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

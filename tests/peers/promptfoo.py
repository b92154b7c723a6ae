# /// script
# requires-python = ">=3.11"
# dependencies = ["userlm"]
# ///
"""promptfoo by `npx`, with the bridge as a Python provider."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peer

CONFIG = {
    "prompts": [peer.GOAL, "cancel a flight"],
    "providers": [
        {
            "id": "file://provider.py",
            "config": {"user": peer.USER, "assistant": "py:bot:answer"},
        }
    ],
    "tests": [{"assert": [{"type": "contains", "value": peer.LINES[-1]}]}],
}
PACKAGE = os.environ.get("PEER_PROMPTFOO", "promptfoo")
"""A folder in which it is installed; by default `npx` fetches it."""


def promptfoo(*arguments: str) -> str:
    folder = Path(PACKAGE)
    command = (
        ["npx", "--yes", "--prefix", PACKAGE] if folder.is_dir() else ["npx", "--yes"]
    )
    done = subprocess.run(
        [*command, "promptfoo", *arguments], capture_output=True, text=True
    )
    if not done.stdout.strip() and done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.strip()


if not shutil.which("npx"):
    row = {"harness": "promptfoo", "ok": None, "note": "cannot be run: no npx here"}
    sys.exit(print(json.dumps(row)))

os.environ.update(
    PROMPTFOO_PYTHON=sys.executable,
    PROMPTFOO_DISABLE_TELEMETRY="1",
    PROMPTFOO_DISABLE_UPDATE="1",
    PROMPTFOO_CONFIG_DIR=str(Path("state").resolve()),
)
Path("provider.py").write_text("from userlm.bridges.promptfoo import call_api\n")
Path("bot.py").write_text(f"def answer(text):\n    return {peer.AGENT!r}\n")
Path("promptfooconfig.json").write_text(json.dumps(CONFIG))

with peer.case("promptfoo", "promptfoo", "bridge") as case:
    case.version = promptfoo("--version").splitlines()[-1]
    promptfoo("eval", "-c", "promptfooconfig.json", "-o", "out.json", "--no-cache")
    results = json.loads(Path("out.json").read_text())["results"]["results"]
    assert len(results) == 2
    for result in results:
        assert result["success"], result["error"]
        assert result["response"]["metadata"]["stop"] == "end"
    case.end_seen = True
    case.note = "a Python provider; the user of `promptfoo:simulated-user` is hosted"

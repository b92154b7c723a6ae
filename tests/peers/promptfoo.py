# /// script
# requires-python = ">=3.11"
# dependencies = ["userlm"]
# ///
"""promptfoo, from a folder of npm that PEER_PROMPTFOO names, with the bridge as a Python provider."""

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
if not shutil.which("npx") or "PEER_PROMPTFOO" not in os.environ:
    note = "it is a package of npm; set PEER_PROMPTFOO to a folder with it"
    row = {"harness": "promptfoo", "seat": "", "ok": None, "note": note}
    sys.exit(print(json.dumps(row)))


def promptfoo(*arguments: str) -> str:
    command = ["npx", "--prefix", os.environ["PEER_PROMPTFOO"], "promptfoo", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    # Its status is not zero if an assertion failed, too.
    if not done.stdout.strip() and done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.strip()


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

peer.run_documented("promptfoo")

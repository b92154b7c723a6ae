# /// script
# requires-python = ">=3.11"
# dependencies = ["verifiers>=0.4", "uv", "userlm"]
# ///
"""The user-sim environment of verifiers, as docs/rl.md has it: no bridge, the endpoint is enough."""

import json
import os
import subprocess
import sys
from pathlib import Path

import peer

INDEX = ",".join(["127.0.0.1", "localhost", os.environ.get("PEER_INDEX", "")])
"""The hosts that can be reached. verifiers installs the program of an agent when it runs it: PEER_INDEX
names the hosts of the package index."""
SERVE = ["--stop-phrase", "###DONE###"]
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "rl"
Path("tasks.jsonl").write_text(
    json.dumps(
        {"id": "flight", "intent": peer.INTENT, "check": [{"contains": "tell me more"}]}
    )
)


def run(url: str, count: int, out: str) -> list[dict]:
    """The episodes of some conversations with the user at a URL."""
    arguments = f"""userlm-tasks --env.id user-sim --env.taskset.tasks {Path("tasks.jsonl").resolve()}
--env.persona {{scenario}} --env.user.client.type eval --env.user.client.base-url {url} --env.user.model {peer.MODEL}
--env.user.runtime.type subprocess --env.assistant.runtime.type subprocess
--env.assistant.harness.id null --client.base-url {peer.AGENT_URL} --model agent
--num-rollouts {count} --no-push --no-rich --output-dir {out} --run.dir run"""
    folder = str(Path(sys.executable).parent)
    variables = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "NO_PROXY": INDEX,
        "no_proxy": INDEX,
        "PYTHONPATH": f"{RECIPE}:{os.environ['PYTHONPATH']}",
    }
    done = subprocess.run(
        [f"{folder}/vf-eval", *arguments.split()],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )
    saved = Path(out) / "run" / "traces.jsonl"
    assert saved.exists(), done.stdout[-300:] + done.stderr[-300:]
    return [json.loads(line) for line in saved.read_text().splitlines()]


def errors_in(episodes: list[dict]) -> list[object]:
    errors = [trace["errors"] for episode in episodes for trace in episode["traces"]]
    return [error for error in errors if error]


with peer.case("verifiers", "verifiers", "user-sim environment") as case:
    case.stop_phrase = "###DONE###"
    episodes = run(peer.URL, 2, "out")
    errors = errors_in(episodes)
    assert len(episodes) == 2 and not errors, [episodes[0]["errors"], errors]
    for episode in episodes:
        traces = {trace["agent"]["name"]: trace for trace in episode["traces"]}
        heard = [node["message"] for node in traces["assistant"]["nodes"]]
        said = [message["content"] for message in heard if message["role"] == "user"]
        assert said == peer.LINES, said
        last = traces["user"]["nodes"][-1]["message"]["content"]
        case.end_seen = last == case.stop_phrase
        trained = [
            name for name, trace in traces.items() if trace["agent"]["trainable"]
        ]
        assert trained == ["assistant"], trained
        assert traces["assistant"]["rewards"]["solved"]["score"] == 1
    case.note = "the user is not trained; `--env.persona {scenario}` ([rl.md](rl.md))"

for ending in peer.endings("verifiers", "verifiers"):
    with ending:
        episodes = run(ending.url, 1, f"out-{ending.number}")
        if errors := errors_in(episodes):
            raise RuntimeError(errors)

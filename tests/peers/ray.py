# /// script
# requires-python = ">=3.11"
# dependencies = ["ray>=2.40,<3", "userlm"]
# ///
"""`--on ray` on a cluster of two nodes on this machine: a worker is killed in the middle, and the
merged run is that of one process, byte for byte."""

import json
import os
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from userlm.commands import Simulate, User, simulate
from userlm.commands.options import Parts

COUNT = 40
BOT = '''
import os, time
from pathlib import Path

from userlm import Conversation, Reply

answered = 0

def says(conversation: Conversation) -> Reply:
    """Two turns. The worker that has answered 20 calls first dies, once."""
    global answered
    answered += 1
    Path("workers", str(os.getpid())).touch()
    Path("asked", f"{conversation.id} {len(conversation.turns)} {os.getpid()} {time.time_ns()}").touch()
    time.sleep(0.05)
    said = len(conversation.user_turns)
    if answered > 20 and "KILL" in os.environ:
        try:
            Path("killed").open("x").close()
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), 9)
    return Reply(f"{conversation.id} says {said}") if said < 2 else Reply(stop="end")
'''


def options(out: str, **several: object) -> Simulate:
    return Simulate(
        User("py:bot:says"),
        "clarifier",
        Path("intents.jsonl"),
        out=Path(out),
        workers=2,
        several=Parts(**several),
    )


def contents(folder: str) -> dict[str, bytes]:
    names = ("run.json", "results.json", "conversations.jsonl", "turns.jsonl")
    return {name: Path(folder, name).read_bytes() for name in names}


def main() -> None:
    Path("bot.py").write_text(BOT)
    Path("intents.jsonl").write_text(
        "".join(
            json.dumps({"id": f"i{i}", "intent": f"cook {i} eggs"}) + "\n"
            for i in range(COUNT)
        )
    )
    for folder in ("workers", "asked"):
        Path(folder).mkdir()

    simulate(options("one"))
    os.environ["KILL"] = "1"  # before the nodes are started: their workers inherit it
    for path in [*Path("workers").iterdir(), *Path("asked").iterdir()]:
        path.unlink()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    simulate(options("several", on="ray", parts=3))
    assert len(ray.nodes()) == 2
    workers = len(list(Path("workers").iterdir()))
    assert Path("killed").exists() and workers >= 2, workers
    assert contents("several") == contents("one")
    calls = len(list(Path("asked").iterdir()))
    turns = 3 * COUNT
    # What was in flight in the killed worker, two conversations, is asked again; the rest is not.
    assert turns < calls <= turns + 2, (calls, turns)
    simulate(options("several", on="ray", parts=3))
    assert len(list(Path("asked").iterdir())) == calls, "a finished part ran again"
    ray.shutdown()
    cluster.shutdown()
    note = (
        f"two nodes, three parts, one worker killed: equal to one run, {calls - turns} of "
        f"{turns} calls repeated"
    )
    # Without a seat: it is no harness of a served user.
    row = {
        "harness": "Ray",
        "version": ray.__version__,
        "how": "`--on ray`",
        "ok": True,
    }
    print(json.dumps({**row, "note": note}))


main()

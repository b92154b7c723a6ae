"""How close `userlm simulate` comes to the latency of its server, and what a call costs the client.

    python bench/conversations.py [--conversations 2000] [--exchanges 6] [--workers 64,256]
                                  [--latency 0.5]

A scripted user talks to an assistant on a server on this machine, which answers each call after the
latency, with 1,200 characters. The ideal time is calls x latency / workers. Wall time is that of
the whole command, from its start to its last file. CPU time is per call, without what a single
conversation takes; memory is the peak. With the first number of workers a quarter of the
conversations is run as well: memory should be the same. For comparison the same calls are made
without conversations: through our endpoint, and as bare requests of the HTTP library below it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from measuring import machine, table, verdict

from userlm.rows import write_conversations
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation

GOAL = 1.15
FLAT = 1.05
SAID = "a question of some length, as people ask them " * 3
ANSWER = "x" * 20 + " answers in a number of words," * 40


@dataclass(frozen=True, slots=True)
class Ran:
    """One simulation: seconds, and bytes."""

    conversations: int
    workers: int
    calls: int
    ideal: float
    wall: float
    cpu: float
    memory: int


def measure(arguments: argparse.Namespace) -> list[Ran]:
    """Run simulations with each number of workers; with the first also a quarter of the
    conversations."""
    workers = [int(number) for number in arguments.workers.split(",")]
    sizes = [
        (max(1, arguments.conversations // 4), workers[0]),
        *((arguments.conversations, n) for n in workers),
    ]
    with serving(arguments.latency) as url:
        _, begin, _ = simulated(url, 1, 1, 1)
        found = []
        for conversations, at_once in sizes:
            wall, cpu, memory = simulated(
                url, conversations, arguments.exchanges, at_once
            )
            calls = conversations * arguments.exchanges
            ideal = calls * arguments.latency / at_once
            found.append(
                Ran(conversations, at_once, calls, ideal, wall, cpu - begin, memory)
            )
        return found


def simulated(
    url: str, conversations: int, exchanges: int, workers: int
) -> tuple[float, float, int]:
    """Return seconds of wall and CPU time, and the peak memory in bytes, of one command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "lines.txt").write_text(f"{SAID}\n" * exchanges)
        seeds = (
            Conversation(f"s{i}", intent=f"{INTENT_PREFIX}cook {i}.")
            for i in range(conversations)
        )
        write_conversations(folder / "seeds.jsonl", seeds)
        command = [
            sys.executable,
            "-m",
            "userlm",
            "simulate",
            "--user",
            "script:lines.txt",
        ]
        command += [
            "--assistant",
            f"{url}#m",
            "--intents",
            "seeds.jsonl",
            "--out",
            "sim",
        ]
        command += ["--max-turns", str(exchanges), "--workers", str(workers)]
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        results = json.loads((folder / "sim" / "results.json").read_text())
        expected = {
            "calls": conversations * exchanges,
            "drafts": conversations * exchanges,
        }
        if (
            process.returncode
            or expected.items() - results["usage"]["assistant"].items()
        ):
            raise SystemExit(f"the simulation failed: {results}")
        return wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


# --- the calls alone ------------------------------------------------------------------------------


def alone(kind: str, url: str, calls: int, workers: int) -> float:
    """Return the CPU seconds of a call; all calls are made in this process."""
    call = {"endpoint": through_endpoint, "requests": as_requests}[kind](url)
    call()
    with ThreadPoolExecutor(workers) as pool:
        begun = time.process_time()
        for future in [pool.submit(call) for _ in range(calls)]:
            future.result()
        return (time.process_time() - begun) / calls


MESSAGES = [
    {"role": role, "content": text}
    for _ in range(3)
    for role, text in (("user", SAID), ("assistant", ANSWER))
]


def through_endpoint(url: str) -> Callable[[], object]:
    """A call as in a simulation: the `openai` client, retries, faults."""
    from userlm.models.endpoint import EndpointModel
    from userlm.types import Sampling

    model = EndpointModel("m", url, None)
    return lambda: model.chat(MESSAGES, Sampling(seed=1))


def as_requests(url: str) -> Callable[[], object]:
    """A call that only sends and receives JSON."""
    import openai

    client = openai.DefaultHttpxClient(timeout=60)
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 256, "seed": 1}
    return lambda: client.post(f"{url}/chat/completions", json=body).json()["choices"][
        0
    ]["message"]["content"]


# --- the server -----------------------------------------------------------------------------------


@contextmanager
def serving(latency: float) -> Iterator[str]:
    """The URL of a server in its own process, which gives the same answer to any request after the
    latency."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, latency), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.terminate()


def serve(tell: Connection, latency: float) -> None:
    """Listen on a free port, and send its number."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": ANSWER},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 300, "total_tokens": 400}
    body = json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    )
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    answer = (head + body).encode()

    class Answers(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.came = transport, b""

        def data_received(self, data: bytes) -> None:
            self.came += data
            while (end := self.came.find(b"\r\n\r\n") + 4) > 3:
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", self.came[:end])
                whole = end + int(length[1] if length else 0)
                if len(self.came) < whole:
                    return
                self.came = self.came[whole:]
                asyncio.get_running_loop().call_later(
                    latency, self.transport.write, answer
                )

    async def listen() -> None:
        server = await asyncio.get_running_loop().create_server(
            Answers, "127.0.0.1", 0, backlog=512
        )
        tell.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(listen())


# --- output ---------------------------------------------------------------------------------------


def show(found: Sequence[Ran]) -> None:
    """Print a table, and whether the goals were met."""
    head = (
        "conversations",
        "at once",
        "calls",
        "ideal s",
        "wall s",
        "ratio",
        "CPU ms a call",
        "peak MB",
    )
    lines = [
        (
            f"{ran.conversations:,}",
            str(ran.workers),
            f"{ran.calls:,}",
            f"{ran.ideal:.1f}",
            f"{ran.wall:.1f}",
            f"{ran.wall / ran.ideal:.2f}",
            f"{1000 * ran.cpu / ran.calls:.2f}",
            f"{ran.memory / 1e6:.0f}",
        )
        for ran in found
    ]
    print(table(head, lines))
    few, many = found[:2]
    ratio, growth = many.wall / many.ideal, many.memory / few.memory
    print(
        f"wall to ideal, {many.workers} at once: {ratio:.2f} (goal {GOAL}: "
        f"{verdict(ratio <= GOAL)})"
    )
    print(
        f"memory, {many.conversations:,} to {few.conversations:,}: {growth:.2f} (flat: "
        f"{verdict(growth <= FLAT)})"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--exchanges", type=int, default=6)
    parser.add_argument(
        "--workers", default="64,256", help="conversations at once, comma-separated"
    )
    parser.add_argument(
        "--latency", type=float, default=0.5, help="of the server, in seconds"
    )
    arguments = parser.parse_args()
    print(machine("openai"))
    print(
        f"{arguments.exchanges} exchanges, {arguments.latency} s for an answer of {len(ANSWER):,} "
        "characters\n"
    )
    show(measure(arguments))
    workers, calls = (
        int(arguments.workers.split(",")[0]),
        min(2000, arguments.conversations),
    )
    with serving(arguments.latency) as url:
        for kind in ("endpoint", "requests"):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                cpu = pool.submit(alone, kind, url, calls, workers).result()
            print(
                f"the calls alone, {kind}: {1000 * cpu:.2f} ms of CPU each ({calls:,} calls, "
                f"{workers} at once)"
            )


if __name__ == "__main__":
    main()

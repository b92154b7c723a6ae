"""How a served user performs under load, and how much time HTTP adds to a turn.

    python bench/serving.py [--clients 64] [--seconds 60] [--turns 200] [--shape 10m] [--tokens 24]
                            [--batch 32] [--seed 0] [--only load,overhead]

The user is a Llama with random weights (float32, on the CPU) whose turns are cut at `--tokens`.
Conversations and the answers of the assistant come from `dialogues.py`.

**Load.** `--clients` threads in another process, with one `openai` client that never retries, hold
conversations for `--seconds`; requests that have begun by then still count. Any error is printed,
and the exit code is 1.

**Overhead.** The same turn with the same seed, by `reply` and through the server, in one process
and one call at a time, in changing order. A first call is not counted; it puts the conversation
into the model's cache. The turn is called directly twice: the difference of the two is noise. It is
called through the `openai` client and through a bare connection that stays open, with a scripted
user, which takes no time, and with the model. The goal applies to the `openai` client, to the
median and, above the noise, to 95 % of the turns.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dialogues
from measuring import machine, table, verdict

from userlm.assistants import Script
from userlm.types import Conversation, Speaker

GOAL = 10.0  # milliseconds a turn
EXCHANGES = 6


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients saw: the total time, the latency of each answer, both in seconds, and the
    errors."""

    seconds: float
    latencies: tuple[float, ...]
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overhead:
    """The milliseconds of each turn of a user: called directly, called directly again, and through
    the server with a client."""

    user: str
    client: str
    direct: tuple[float, ...]
    again: tuple[float, ...]
    served: tuple[float, ...]

    def differences(self, to: Sequence[float]) -> list[float]:
        """The difference of each turn to its direct call."""
        return [there - here for here, there in zip(self.direct, to, strict=True)]


def measure(arguments: argparse.Namespace) -> tuple[Load | None, list[Overhead]]:
    """Measure the parts that were asked for."""
    parts = arguments.only.split(",")
    conversations = list(islice(dialogues.made(2.39, arguments.seed), 500))
    user = model_user(arguments, conversations)
    load = None
    if "load" in parts:
        with serving(user, arguments.batch) as url:
            load = under_load(url, arguments)
    found = []
    if "overhead" in parts:
        prefixes = [prefix for one in conversations for prefix in prefixes_of(one)][
            : arguments.turns
        ]
        for name, speaker in (
            ("scripted", Script(["what does it cost?"] * EXCHANGES)),
            ("model", user),
        ):
            with serving(speaker, arguments.batch) as url:
                for kind in ("bare", "openai"):
                    found.append(overhead(name, kind, speaker, url, prefixes))
    return load, found


def model_user(
    arguments: argparse.Namespace, conversations: Sequence[Conversation]
) -> Speaker:
    """The user that is served."""
    import torch

    from userlm.models.local import LocalModel
    from userlm.types import Sampling
    from userlm.users import TrainedUser

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer = dialogues.speller(list(conversations))
    weights = dialogues.llama(arguments.shape, len(tokenizer), arguments.seed)
    local = LocalModel(weights, tokenizer, "bench", batch=arguments.batch)
    return TrainedUser(
        local,
        local.template(),
        local.context_length,
        Sampling(max_tokens=arguments.tokens),
    )


def prefixes_of(conversation: Conversation) -> Iterator[Conversation]:
    """Yield the conversation before each user turn."""
    for at in range(0, len(conversation.turns), 2):
        yield Conversation(
            conversation.id, conversation.turns[:at], conversation.intent
        )


@contextmanager
def serving(user: Speaker, batch: int) -> Iterator[str]:
    """The URL of the user, served by a thread of this process."""
    from userlm.serving.app import create_app, running
    from userlm.serving.schema import ServerConfig

    served = create_app(user, ServerConfig(batch=batch))
    with (
        socket.create_server(("127.0.0.1", 0), backlog=1024) as listening,
        running(served, listening),
    ):
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


# --- load -----------------------------------------------------------------------------------------


def under_load(url: str, arguments: argparse.Namespace) -> Load:
    """Run the clients in another process and return what they saw."""
    context = get_context("spawn")
    here, there = context.Pipe()
    work = (there, url, arguments.clients, arguments.seconds, arguments.seed)
    process = context.Process(target=clients, args=work, daemon=True)
    process.start()
    there.close()
    load: Load = here.recv()
    process.join()
    return load


def clients(there: Any, url: str, count: int, seconds: float, seed: int) -> None:
    """Hold conversations, one at a time in each thread, and send the result."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300)
    conversations = list(islice(dialogues.made(2.39, seed + 1), 200))
    latencies: list[float] = []
    errors: list[str] = []
    client.models.list()
    begun = time.perf_counter()

    def work(number: int) -> None:
        for at in range(number, 10**9, count):
            logged = conversations[at % len(conversations)]
            answers = [turn.text for turn in logged.turns if turn.role == "assistant"]
            messages: list[Any] = [{"role": "system", "content": logged.intent}]
            for answer in islice(answers, EXCHANGES):
                if time.perf_counter() - begun > seconds:
                    return
                asked = time.perf_counter()
                try:
                    reply = client.chat.completions.create(
                        model="user", messages=messages, seed=at
                    )
                except openai.OpenAIError as error:
                    errors.append(f"{type(error).__name__}: {error}")
                    break
                latencies.append(time.perf_counter() - asked)
                content = reply.choices[0].message.content
                if not content or reply.userlm["ended"]:
                    break
                messages += [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": answer},
                ]

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(work, range(count)))
    there.send(Load(time.perf_counter() - begun, tuple(latencies), tuple(errors)))


# --- overhead -------------------------------------------------------------------------------------


def overhead(
    name: str,
    kind: str,
    speaker: Speaker,
    url: str,
    conversations: Sequence[Conversation],
) -> Overhead:
    """Time the next turn of every conversation, alternately called directly and served."""
    from userlm.users import with_sampling

    ask = {"openai": through_openai, "bare": bare}[kind](url)
    times: list[list[float]] = [[], [], []]
    for i, conversation in enumerate(conversations):
        messages = [
            {"role": turn.role, "content": turn.text} for turn in conversation.turns
        ]
        messages.insert(0, {"role": "system", "content": conversation.intent or ""})
        body = {
            "model": "user",
            "messages": messages,
            "seed": i,
            "userlm": {"id": conversation.id},
        }
        direct = partial(directly, with_sampling(speaker, seed=i), conversation)
        calls = list(enumerate((direct, direct, partial(ask, body))))
        said = {direct()}
        for which, call in calls[i % 3 :] + calls[: i % 3]:
            begun = time.perf_counter()
            said.add(call())
            times[which].append(1000 * (time.perf_counter() - begun))
        if len(said) > 1:
            raise SystemExit(f"{name}, {kind}: the same turn was {said}")
    return Overhead(name, kind, *map(tuple, times))


def directly(user: Speaker, conversation: Conversation) -> str:
    """Return the turn without a server."""
    return user.reply(conversation).text


def through_openai(url: str) -> Callable[[dict[str, Any]], str]:
    """Return a function that calls through the `openai` client."""
    import openai

    create: Any = openai.OpenAI(
        base_url=url, api_key="none", max_retries=0
    ).chat.completions.create

    def ask(body: dict[str, Any]) -> str:
        own = {name: value for name, value in body.items() if name != "userlm"}
        return str(
            create(**own, extra_body={"userlm": body["userlm"]})
            .choices[0]
            .message.content
        )

    return ask


def bare(url: str) -> Callable[[dict[str, Any]], str]:
    """Return a function that calls over one connection of the standard library."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        connection.request(
            "POST", f"{parts.path}/chat/completions", json.dumps(body).encode(), headers
        )
        return str(
            json.loads(connection.getresponse().read())["choices"][0]["message"][
                "content"
            ]
        )

    return ask


# --- output ---------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: int) -> float:
    """The percentile of the values."""
    return (
        statistics.quantiles(values, n=100)[share - 1] if len(values) > 1 else values[0]
    )


def show_load(load: Load, arguments: argparse.Namespace) -> bool:
    """Print what the clients saw; return whether all requests were answered."""
    answered = len(load.latencies)
    print(
        f"\nLoad: {arguments.clients} clients for {load.seconds:.1f} s: {answered:,} turns, "
        f"{answered / load.seconds:.1f} a second, {len(load.errors)} errors (goal 0: "
        f"{verdict(not load.errors)})"
    )
    if load.latencies:
        shown = (
            f"{name} {percentile(load.latencies, share):.2f} s"
            for name, share in (("p50", 50), ("p95", 95))
        )
        print(f"Latency: {', '.join(shown)}, longest {max(load.latencies):.2f} s")
    for error, count in Counter(load.errors).most_common(5):
        print(f"{count} times: {error[:200]}")
    return not load.errors and answered > 0


def show_overhead(found: Sequence[Overhead]) -> None:
    """Print a table of milliseconds a turn."""
    lines = []
    for one in found:
        times = statistics.median(one.direct), statistics.median(one.served)
        more, noise = one.differences(one.served), one.differences(one.again)
        shown = (
            *times,
            percentile(more, 50),
            percentile(more, 95),
            percentile(noise, 95),
        )
        met = (
            verdict(max(shown[2], shown[3] - shown[4]) < GOAL)
            if one.client == "openai"
            else ""
        )
        lines.append([f"{one.user}, {one.client}", *(f"{ms:.2f}" for ms in shown), met])
    head = [
        "user, client",
        "direct",
        "served",
        "difference, median",
        "95 % below",
        "of direct calls",
        "goal",
    ]
    print(
        f"\nOverhead: ms a turn, {len(found[0].direct)} turns; goal: below {GOAL:g} by the openai "
        "client\n"
    )
    print(table(head, lines))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--turns", type=int, default=200, help="turns to time for the overhead"
    )
    parser.add_argument("--shape", default="10m", choices=tuple(dialogues.LLAMA))
    parser.add_argument(
        "--tokens", type=int, default=24, help="the most tokens of a turn"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", default="load,overhead", help="parts, comma-separated"
    )
    arguments = parser.parse_args()
    print(machine("openai", "starlette", "uvicorn"))
    user = f"Llama {arguments.shape}, turns of {arguments.tokens} tokens"
    print(f"{user}; batch {arguments.batch}, seed {arguments.seed}")
    load, found = measure(arguments)
    if found:
        show_overhead(found)
    if load and not show_load(load, arguments):
        sys.exit(1)


if __name__ == "__main__":
    main()

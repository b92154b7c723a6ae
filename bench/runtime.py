"""How fast simulated users are: what a turn costs, the server, and whole runs.

    python bench/runtime.py [--only turns,server,conversations] [--at-once 1,8,32,64] [--turns 4]
                            [--repeats 5] [--shape 32m] [--device cpu] [--temperature 0] [--seed 0]
                            [--quick]

**turns.** Conversations of four user turns with given answers, so that only the user takes time.
The same Llama (32 M weights, random, float32, vocabulary 8,192) generates the same tokens in
several ways that take turns, each time in its own process:

- userlm, N at once: `Engine` with N threads, each of which continues a conversation; `userlm
  --batch 1` keeps no cache row for another prompt, so its output is reproducible to the bit;
- model card: the loop of the released checkpoint's model card: one conversation at a time, the
  whole prompt each turn, `model.generate`;
- padded, N at once: N conversations in lockstep; their whole prompts go left-padded through
  `model.generate`, and each turn lasts as long as the longest.

Intents have 25 to 60 tokens. Lengths are log-normal: answers have a median of 260 (spread 0.5, 40
to 900), user turns of 28 (spread 0.8, 4 to 128), and exactly that many tokens are sampled. Lengths
repeat after 8 conversations, though tokens do not, so for the model card 8 of them represent all.
The result is CPU seconds a turn, with wall time beside it; ratios are taken within a round. At
temperature 0 the tokens of the first 8 conversations must be the same as the model card's on a
CPU, or the exit code is 1. A missed goal is printed as missed.

With `--device cuda --shape 1b` (or 8b) it uses bfloat16, vocabulary 128,256, and wall time;
`generate_batch` of transformers takes part if it runs, and our steps are compared with the time
that it takes to read the weights. This part has not been run.

**server** and **conversations** are `serving.py` and `conversations.py`, with their own options.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dialogues
import numpy as np
from measuring import (
    Usage,
    device_name,
    in_fresh_processes,
    machine,
    measured,
    table,
    verdict,
)

# Bytes a second, by data sheet.
BANDWIDTH = {
    "H100 80GB HBM3": 3.35e12,
    "H200": 4.8e12,
    "A100-SXM": 2.04e12,
}
CYCLE = 8  # conversations after which lengths repeat
# At least this many times the model card's turns a CPU second.
GOALS = {
    8: 2.0,
    32: 2.5,
}
GPU_GOALS = {32: 8.0}
CONTEXT_LENGTH = 8192

SCRIPTS = {  # the other parts, with the options that make them quick
    "server": (
        "serving.py",
        ("--shape", "tiny", "--clients", "4", "--seconds", "2", "--turns", "20"),
    ),
    "conversations": (
        "conversations.py",
        ("--conversations", "40", "--workers", "8", "--latency", "0.05"),
    ),
}

# A turn's end and headers; any ids would do.
CLOSE, ASSISTANT, USER = (
    [1],
    [2, 5, 3],
    [2, 4, 3],
)
FIRST = 10  # the first id of content


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation to generate: its opening, and for each turn the number of tokens of the user
    and the answer."""

    opening: list[int]
    turns: tuple[tuple[int, list[int]], ...]


@dataclass(frozen=True, slots=True)
class Job:
    """What one process runs."""

    shape: str
    vocabulary: int
    seed: int
    device: str
    temperature: float
    talks: tuple[Talk, ...]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run cost and generated.

    Attributes:
        turns: the number of generated turns.
        said: the tokens of the turns of the first conversations.
        read: tokens that went through the model, including padding.
        passes: the number of forward passes.
        weights: the size of the model in bytes.
    """

    usage: Usage
    turns: int
    said: list[list[list[int]]]
    read: int
    passes: int
    weights: int
    device: str

    def seconds(self, gpu: bool) -> float:
        """Seconds a turn."""
        return (self.usage.wall if gpu else self.usage.cpu) / self.turns


def talks(
    count: int, turns: int, vocabulary: int, seed: int, short: bool
) -> tuple[Talk, ...]:
    """Conversations to generate; the first are the same for every count. `short`: a tenth of the
    lengths."""
    lengths, found = np.random.default_rng(seed), []
    least = 10 if short else 1
    openings = lengths.integers(25, 60, CYCLE)
    answers = (
        np.clip(lengths.lognormal(np.log(260), 0.5, (CYCLE, turns)), 40, 900).astype(
            int
        )
        // least
    )
    users = np.maximum(
        np.clip(lengths.lognormal(np.log(28), 0.8, (CYCLE, turns)), 4, 128).astype(int)
        // least,
        2,
    )
    for i in range(count):
        rng = np.random.default_rng((seed, i))

        def words(length: int, rng: np.random.Generator = rng) -> list[int]:
            return [int(token) for token in rng.integers(FIRST, vocabulary, length)]

        one = [
            (int(user), words(answer))
            for user, answer in zip(users[i % CYCLE], answers[i % CYCLE], strict=True)
        ]
        found.append(Talk([*words(openings[i % CYCLE]), *CLOSE, *USER], tuple(one)))
    return tuple(found)


def grown(ids: list[int], said: list[int], answer: list[int]) -> list[int]:
    """The prompt of the next turn."""
    return [*ids, *said, *CLOSE, *ASSISTANT, *answer, *CLOSE, *USER]


# --- ways -----------------------------------------------------------------------------------------

Said = list[list[list[int]]]
"""For each conversation the tokens of its turns."""
Way = Callable[[Any, Sequence[Talk], int, float], Said]
"""Continues conversations, a number of them at once, at a temperature."""


def userlm(model: Any, talks: Sequence[Talk], at_once: int, temperature: float) -> Said:
    """userlm with the default of `--batch`, or more if more run at once."""
    from userlm.address import BATCH

    return ours(model, talks, at_once, temperature, max(BATCH, at_once))


def exact(model: Any, talks: Sequence[Talk], at_once: int, temperature: float) -> Said:
    """userlm with `--batch 1`."""
    return ours(model, talks, at_once, temperature, 1)


def ours(
    model: Any, talks: Sequence[Talk], at_once: int, temperature: float, batch: int
) -> Said:
    from userlm.models.engine import Engine
    from userlm.types import Sampling

    engine = Engine(model, "bench", CONTEXT_LENGTH, batch)

    def carry_on(talk: Talk) -> list[list[int]]:
        ids, said = talk.opening, []
        for k, (length, answer) in enumerate(talk.turns):
            sampling = Sampling(
                temperature=temperature, top_p=0.8, max_tokens=length, seed=k
            )
            said.append(list(engine.complete(ids, sampling).ids))
            ids = grown(ids, said[-1], answer)
        return said

    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(carry_on, talks))
    engine.stop()
    return found


def generate(
    model: Any, prompts: Sequence[list[int]], length: int, temperature: float
) -> list[list[int]]:
    """Return what `model.generate` gives for left-padded prompts: `length` tokens each."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor(
        [[0] * (longest - len(prompt)) + prompt for prompt in prompts],
        device=model.device,
    )
    mask = torch.tensor(
        [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts],
        device=model.device,
    )
    how = (
        {"do_sample": True, "temperature": temperature, "top_p": 0.8, "top_k": 0}
        if temperature
        else {}
    )
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=length,
        eos_token_id=None,
        pad_token_id=0,
        **({"do_sample": False} | how),
    )
    return [[int(token) for token in row] for row in out[:, longest:].tolist()]


def model_card(
    model: Any, talks: Sequence[Talk], at_once: int, temperature: float
) -> Said:
    """One conversation at a time, with the whole prompt each turn."""
    found = []
    for talk in talks:
        ids, said = talk.opening, []
        for length, answer in talk.turns:
            said += generate(model, [ids], length, temperature)
            ids = grown(ids, said[-1], answer)
        found.append(said)
    return found


def padded(model: Any, talks: Sequence[Talk], at_once: int, temperature: float) -> Said:
    """Conversations in lockstep, padded."""
    return in_step(
        talks,
        at_once,
        lambda prompts, lengths: generate(model, prompts, max(lengths), temperature),
    )


def continuous(
    model: Any, talks: Sequence[Talk], at_once: int, temperature: float
) -> Said:
    """transformers' continuous batching: in lockstep, too, since it takes prompts in batches."""
    from transformers import GenerationConfig

    def ask(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        how = (
            {"do_sample": True, "temperature": temperature, "top_p": 0.8}
            if temperature
            else {"do_sample": False}
        )
        config = GenerationConfig(
            max_new_tokens=max(lengths), eos_token_id=-1, pad_token_id=0, **how
        )
        out = model.generate_batch(
            inputs=prompts, generation_config=config, progress_bar=False
        )
        return [
            list(out[name].generated_tokens)
            for name in sorted(out, key=lambda name: int(name.split("_")[-1]))
        ]

    return in_step(talks, at_once, ask)


def in_step(
    talks: Sequence[Talk],
    at_once: int,
    ask: Callable[[list[list[int]], list[int]], list[list[int]]],
) -> Said:
    """Let all conversations of a batch take turns together. `ask` gets the prompts, and how many
    tokens each of them needs; it may return more."""
    found: Said = []
    for i in range(0, len(talks), at_once):
        batch = talks[i : i + at_once]
        prompts, said = [talk.opening for talk in batch], [[] for _ in batch]
        for k in range(len(batch[0].turns)):
            drawn = ask(prompts, [talk.turns[k][0] for talk in batch])
            for j, talk in enumerate(batch):
                length, answer = talk.turns[k]
                said[j].append(drawn[j][:length])
                prompts[j] = grown(prompts[j], said[j][-1], answer)
        found += said
    return found


WAYS: dict[str, Way] = {
    "userlm": userlm,
    "userlm --batch 1": exact,
    "model card": model_card,
    "padded": padded,
    "generate_batch": continuous,
}


def load(job: Job) -> Any:
    """The model: float32 on a CPU, bfloat16 on a GPU."""
    dtype = "float32" if job.device == "cpu" else "bfloat16"
    found = dialogues.llama(job.shape, job.vocabulary, job.seed, job.device, dtype)
    return found.eval()


def cost(model: Any, job: Job, name: str, at_once: int) -> Ran | str:
    """Generate the conversations once; return the cost, or why it failed."""
    way, few = (
        WAYS[name],
        [Talk(talk.opening, talk.turns[:1]) for talk in job.talks[:2]],
    )
    read = passes = 0

    def count(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal read, passes
        read, passes = read + options["input_ids"].numel(), passes + 1

    try:
        way(model, few, min(2, at_once), job.temperature)  # warm up
        hook = model.register_forward_pre_hook(count, with_kwargs=True)
        with measured(job.device) as usage:
            said = way(model, job.talks, at_once, job.temperature)
        hook.remove()
    except Exception as error:
        if name != "generate_batch":
            raise
        return f"{type(error).__name__}: {error}".splitlines()[0]
    weights = sum(
        weight.numel() * weight.element_size() for weight in model.parameters()
    )
    turns = sum(map(len, said))
    device = device_name(job.device)
    return Ran(usage, turns, said[:CYCLE], read, passes, weights, device)


def once(job: Job, name: str, at_once: int) -> Ran | str:
    """The cost with a new model."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return cost(load(job), job, name, at_once)


# --- turns ----------------------------------------------------------------------------------------


def turns(arguments: argparse.Namespace) -> bool:
    """Measure and print a table; return whether all ways generated the same."""
    gpu, alone = arguments.device != "cpu", in_fresh_processes()
    numbers = [int(number) for number in arguments.at_once.split(",")]
    vocabulary = 128_256 if gpu else 8192
    ways = [
        ("model card", 1),
        ("userlm --batch 1", 1),
        *(("userlm", n) for n in numbers),
    ]
    ways += [("padded", n) for n in numbers if 1 < n <= 32]
    ways += [("generate_batch", n) for n in numbers if gpu and n > 1]
    runs: dict[tuple[str, int], list[Ran]] = {way: [] for way in ways}
    failed: dict[tuple[str, int], str] = {}
    for round in range(arguments.repeats):
        for name, n in ways:
            if (name, n) in failed:
                continue
            print(
                f"round {round + 1}: {name}, {n} at once", file=sys.stderr, flush=True
            )
            some = talks(
                max(n, CYCLE),
                arguments.turns,
                vocabulary,
                arguments.seed,
                arguments.quick,
            )
            job = Job(
                arguments.shape,
                vocabulary,
                arguments.seed,
                arguments.device,
                arguments.temperature,
                some,
            )
            ran = alone(once, job, name, n)
            if isinstance(ran, str):
                failed[name, n] = ran
            else:
                runs[name, n].append(ran)
    some = talks(CYCLE, arguments.turns, vocabulary, arguments.seed, arguments.quick)
    users = [length for talk in some for length, _ in talk.turns]
    answers = [len(answer) for talk in some for _, answer in talk.turns]
    print(
        f"\nLlama {arguments.shape}, vocabulary {vocabulary:,}, temperature "
        f"{arguments.temperature:g}; "
        f"{arguments.turns} user turns a conversation, {statistics.mean(users):.0f} tokens each, "
        "answers of "
        f"{statistics.mean(answers):.0f}; {arguments.repeats} rounds; medians (minimum-maximum)\n"
    )
    return show(runs, failed, gpu, arguments.temperature)


def show(
    runs: dict[tuple[str, int], list[Ran]],
    failed: dict[tuple[str, int], str],
    gpu: bool,
    temperature: float,
) -> bool:
    """Print the table, and whether goals are met and tokens agree."""
    cards, lines, said, agree = runs["model card", 1], [], [], True
    goals = GPU_GOALS if gpu else GOALS
    for (name, n), found in runs.items():
        if not found:
            said.append(f"{name}, {n} at once: did not run: {failed[name, n]}")
            continue
        pairs = list(zip(cards, found, strict=True))
        ratios = sorted(card.seconds(gpu) / ran.seconds(gpu) for card, ran in pairs)
        ratio, wall = (
            statistics.median(ratios),
            statistics.median(c.seconds(True) / r.seconds(True) for c, r in pairs),
        )
        both = [
            pair
            for a, b in zip(cards[0].said, found[0].said, strict=True)
            for pair in zip(a, b, strict=True)
        ]
        same = sum(a == b for a, b in both)
        lines.append(
            [
                f"{name}, {n} at once",
                f"{statistics.median(ran.seconds(False) for ran in found):.3f}",
                f"{statistics.median(ran.seconds(True) for ran in found):.3f}",
                f"{1 / statistics.median(ran.seconds(gpu) for ran in found):.2f}",
                f"{ratio:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
                f"{wall:.2f}",
                f"{found[0].read / found[0].turns:.0f}",
                f"{found[0].passes / found[0].turns:.1f}",
                f"{statistics.median(ran.usage.memory for ran in found):,.0f}",
                f"{same}/{len(both)}" if temperature == 0 else "-",
            ]
        )
        if name == "userlm" and n in goals:
            said.append(
                f"{verdict(ratio >= goals[n])}: {n} at once: {ratio:.2f} times as fast (goal "
                f"{goals[n]})"
            )
        if temperature == 0 and same < len(both):
            said.append(
                f"DOES NOT AGREE: {name}, {n} at once: {len(both) - same} of {len(both)} turns "
                "differ"
            )
            agree = agree and (gpu or not name.startswith("userlm"))
        if gpu and name == "userlm":
            rates = [
                rate for kind, rate in BANDWIDTH.items() if kind in found[0].device
            ]
            for rate in rates:
                least = found[0].passes * found[0].weights / rate
                said.append(
                    f"{n} at once: {found[0].usage.wall / least:.1f} times the time to read the "
                    "weights"
                )
    head = [
        "",
        "CPU s / turn",
        "wall s / turn",
        f"turns / {'wall' if gpu else 'CPU'} s",
        "times the model card",
    ]
    print(
        table(
            [
                *head,
                "by wall",
                "tokens read / turn",
                "passes / turn",
                "peak MB",
                "same turns",
            ],
            lines,
        )
    )
    print("\n".join(["", *said]))
    return agree


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="turns,server,conversations", help="parts, comma-separated"
    )
    parser.add_argument(
        "--at-once", default="1,8,32,64", help="conversations at once, comma-separated"
    )
    parser.add_argument(
        "--turns", type=int, default=4, help="user turns of a conversation"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--shape", default="32m", choices=("tiny", "32m", "1b", "8b"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0, so that tokens can be compared",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="every path once, with a tiny model and short turns",
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shape, arguments.repeats, arguments.at_once = "tiny", 1, "1,4"
        print("--quick: a tiny model and a few conversations; the goals do not apply")
    print(f"{machine()}; seed {arguments.seed}", flush=True)
    if arguments.device != "cpu":
        print(
            "--device cuda HAD NOT BEEN RUN when this was written: check that the figures make "
            "sense"
        )
    agree = True
    for part in arguments.only.split(","):
        if part == "turns":
            agree = turns(arguments)
            continue
        script, quick = SCRIPTS[part]
        subprocess.run(
            [
                sys.executable,
                str(Path(__file__).with_name(script)),
                *(quick if arguments.quick else ()),
            ],
            check=True,
        )
    if not agree:
        sys.exit("the tokens do not agree: see above")


if __name__ == "__main__":
    main()

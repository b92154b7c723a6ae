"""How fast perplexity is scored, compared with a plain evaluation with transformers, and whether
both give the same result.

    python bench/score.py [--sets made:8192:32,made:128256:8,real:8192:32] [--k 2.39] [--repeats 5]
                          [--seed 0] [--quick]

The same Llama (10 M weights, random, float32, on the CPU) computes the log-probabilities of user
turns and ends in three ways that take turns, each time in its own process:

- userlm: `LocalModel.score`, one row per conversation, rows packed, logits at the targets only;
- padded: K + 1 samples per conversation, 8 in a batch in their order, padded; all logits;
- one by one: the same samples, each alone; logits at the targets only.

Ratios are taken within a round. If a log-probability differs by 1e-4 or more, the exit code is 1. A
missed goal is printed as missed. Conversations are those of `dialogues.py`, of at most 2,048
tokens, and of fewer where the logits of a padded batch would take more than 4 GB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dialogues
from measuring import (
    Alone,
    Usage,
    in_fresh_processes,
    machine,
    measured,
    table,
    verdict,
)
from train import Set, fitting, gather, sets_of

from userlm.flip import Ids, Row

BATCH = 8
LOGITS = 4e9  # bytes
Sample = tuple[Ids, int]
"""The ids up to the end of the target, and where the target starts."""


def packed(local: Any, rows: Sequence[Row], samples: Sequence[Sample]) -> list[float]:
    """Ours."""
    found = local.score([(row.ids, row.mask(content_only=True)) for row in rows])
    return [logprob for row in found for logprob in row]


def padded(local: Any, rows: Sequence[Row], samples: Sequence[Sample]) -> list[float]:
    """Score padded batches, with the logits of all tokens."""
    import torch
    import torch.nn.functional as F
    from torch.nn.utils.rnn import pad_sequence

    found: list[float] = []
    for i in range(0, len(samples), BATCH):
        batch = samples[i : i + BATCH]
        ids = pad_sequence([torch.tensor(ids) for ids, _ in batch], batch_first=True)
        places, lengths = (
            torch.arange(ids.shape[1]),
            torch.tensor([[len(ids)] for ids, _ in batch]),
        )
        firsts = torch.tensor([[first] for _, first in batch])
        labels = ids.masked_fill((places < firsts) | (places >= lengths), -100)
        wanted = F.pad(labels[:, 1:], (0, 1), value=-100)
        with torch.inference_mode():
            attended = (places < lengths).long()
            logits = local.model(
                input_ids=ids, attention_mask=attended, use_cache=False
            ).logits
            losses = F.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), reduction="none"
            )
        found += (-losses[wanted.flatten() != -100]).tolist()
    return found


def one_by_one(
    local: Any, rows: Sequence[Row], samples: Sequence[Sample]
) -> list[float]:
    """Score samples one by one, with the logits of the targets."""
    import torch

    found: list[float] = []
    for ids, first in samples:
        row = torch.tensor([ids])
        with torch.inference_mode():
            logits = local.model(
                input_ids=row, use_cache=False, logits_to_keep=len(ids) - first + 1
            ).logits[0, :-1]
        found += logits.log_softmax(-1).gather(1, row[0, first:, None])[:, 0].tolist()
    return found


Way = Callable[[Any, Sequence[Row], Sequence[Sample]], list[float]]
WAYS: dict[
    str, tuple[Way, float | None]
] = {  # the goal: how many times as fast userlm should be
    "userlm": (packed, None),
    "padded, 8 at once": (padded, 6.0),
    "one by one": (one_by_one, 1.5),
}


def once(
    name: str, tokenizer: Any, model: tuple[str, int, int], rows: Sequence[Row]
) -> tuple[Usage, list[float]]:
    """Score once and return cost and log-probabilities. `model`: shape, vocabulary, seed."""
    import torch

    from userlm.models.local import LocalModel

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    local, (way, _) = (
        LocalModel(dialogues.llama(*model), tokenizer, "bench"),
        WAYS[name],
    )
    samples = [
        (row.ids[: target.stop - 1], target.first)
        for row in rows
        for target in row.spans
    ]
    way(local, rows[:1], samples[:1])  # warm up
    with measured() as usage:
        found = way(local, rows, samples)
    return usage, found


def compare(
    one: Set, shape: str, k: float, seed: int, repeats: int, alone: Alone
) -> bool:
    """Measure and print a table; return whether the log-probabilities are equal."""
    source = one.source
    stream, tokenizer = gather(source, k, seed)
    if tokenizer is None:
        print(f"\n{source} conversations are left out: set USERLM_DATA to their folder")
        return True
    vocabulary = max(one.vocabulary, len(tokenizer))
    most = min(2048, int(LOGITS / (4 * BATCH * vocabulary)))
    rows = [
        row for _, row in islice(fitting(stream, tokenizer, most), one.conversations)
    ]
    runs: dict[str, list[Usage]] = {name: [] for name in WAYS}
    found: dict[str, list[float]] = {}
    for round in range(repeats):
        for name in WAYS:
            print(f"{source}, round {round + 1}: {name}", file=sys.stderr, flush=True)
            usage, found[name] = alone(
                once, name, tokenizer, (shape, vocabulary, seed), rows
            )
            runs[name].append(usage)

    tokens, words = sum(len(row.ids) for row in rows), len(found["userlm"])
    stops = [target.stop - 1 for row in rows for target in row.spans]
    print(
        f"\n{len(rows)} {source} conversations of at most {most:,} tokens: "
        f"{len(stops) / len(rows):.2f} samples, "
        f"{tokens / len(rows):.0f} tokens each, {words / tokens:.1%} of them scored; as samples "
        "they have "
        f"{sum(stops) / tokens:.2f} times the tokens; Llama {shape}, vocabulary {vocabulary:,}\n"
    )
    lines, said, agree = [], [], True
    for name, (_, goal) in WAYS.items():
        ratios = [
            peer.cpu / mine.cpu
            for peer, mine in zip(runs[name], runs["userlm"], strict=True)
        ]
        wall = [
            peer.wall / mine.wall
            for peer, mine in zip(runs[name], runs["userlm"], strict=True)
        ]
        seconds, ratio = (
            statistics.median(usage.cpu for usage in runs[name]),
            statistics.median(ratios),
        )
        same = len(found[name]) == words
        off = (
            max(abs(a - b) for a, b in zip(found[name], found["userlm"], strict=True))
            if same
            else float("inf")
        )
        lines.append(
            [
                name,
                f"{seconds:.2f}",
                f"{len(rows) / seconds:.2f}",
                f"{ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                f"{statistics.median(wall):.2f}",
                f"{statistics.median(usage.memory for usage in runs[name]):,.0f}",
                f"{sum(found[name]) / len(found[name]):.6f}",
                f"{off:.1e}",
            ]
        )
        if goal is not None:
            said.append(
                f"{verdict(ratio >= goal)}: {name}: {ratio:.2f} times as fast (goal {goal})"
            )
        if not off < 1e-4:
            said.append(
                f"DOES NOT AGREE: {name}: its log-probabilities differ by up to {off:.1e}"
            )
            agree = False
    head = [
        "",
        "CPU s",
        "conversations / CPU s",
        "userlm is faster",
        "by wall",
        "peak MB",
    ]
    print(table([*head, "mean log-probability", "largest difference"], lines))
    print("\n".join(["", *said]))
    return agree


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets",
        help="source:vocabulary:conversations, comma-separated; source: made or real",
    )
    parser.add_argument(
        "--k",
        type=float,
        default=2.39,
        help="user turns of a generated conversation, on average",
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="every path once, with a tiny model"
    )
    args = parser.parse_args()
    sets, shape, repeats = (
        "made:8192:32,made:128256:8,real:8192:32",
        "10m",
        args.repeats,
    )
    if args.quick:
        sets, shape, repeats = "made:8192:6,real:8192:6", "tiny", 1
    print(f"{machine()}; seed {args.seed}", flush=True)
    if args.quick:
        print("--quick: a tiny model and a few conversations; the goals do not apply")
    alone, agree = in_fresh_processes(), True
    for one in sets_of(args.sets or sets):
        agree &= compare(one, shape, args.k, args.seed, repeats, alone)
    if not agree:
        sys.exit("the log-probabilities do not agree: see above")


if __name__ == "__main__":
    main()

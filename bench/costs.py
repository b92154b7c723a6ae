"""What many conversations cost in each stage, from measured throughputs: the table of
docs/clusters.md.

    python bench/costs.py [--conversations 384336] [--turns 2.5] [--tokens 1000] ...

A rate says where it was measured, or from what it is estimated. Prices and the sizes of
conversations are assumptions, and options.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from measuring import table

# Seconds of one core for a conversation: docs/data.md, 100,000 like WildChat (bench/data.py).
IMPORT, CLEAN = 0.180e-3, 0.414e-3
# Tokens a second of one H200, all weights: docs/training.md (bench/gpu.sh).
TRAIN = {"1B": 48_339.0, "8B": 6_928.0}
# User turns a second of one H200, a 1B with 32 at once: docs/training.md (bench/gpu.sh).
TURNS = 9.64

MEASURED, ESTIMATED = "measured", "estimate"


@dataclass(frozen=True, slots=True)
class Cost:
    """A row. `basis` says what of it was measured."""

    stage: str
    calls: float = 0
    tokens_in: float = 0
    tokens_out: float = 0
    cpu_seconds: float = 0
    gpu_seconds: float = 0
    basis: str = MEASURED


def costs(asked: argparse.Namespace) -> list[Cost]:
    """Return the stages, in their order."""
    n = asked.conversations
    tokens = n * asked.tokens
    # A turn more than there are: whether the user ends.
    responses = n * (asked.turns + 1)
    said = n * asked.max_turns
    # Each answer reads all turns before it: on average half of a conversation.
    read = said * asked.max_turns * asked.turn_tokens / 2
    train = [
        Cost(f"train, {size}, one epoch", gpu_seconds=tokens / rate)
        for size, rate in TRAIN.items()
    ]
    # Three columns (with intent, without, another's) of a forward pass each: that is a third of a
    # training step.
    scoring = tokens / TRAIN["1B"]
    return [
        Cost("import", cpu_seconds=n * IMPORT),
        Cost("clean", cpu_seconds=n * CLEAN),
        Cost("intents", n, tokens, n * asked.intent_tokens, basis=ESTIMATED),
        *train,
        Cost("ppl, 1B", gpu_seconds=scoring, basis=ESTIMATED),
        Cost("respond, 1B", gpu_seconds=responses / TURNS),
        Cost("simulate: user, 1B", gpu_seconds=said / TURNS),
        Cost(
            "simulate: assistant", said, read, said * asked.turn_tokens, basis=ESTIMATED
        ),
    ]


def row(cost: Cost, asked: argparse.Namespace) -> list[str]:
    """Return the cells of a stage."""
    token_in, token_out = map(float, asked.price.split("/"))
    gpu_hours = cost.gpu_seconds / 3600
    paid = (cost.tokens_in * token_in + cost.tokens_out * token_out) / 1e6
    dollars = gpu_hours * asked.gpu_price + paid
    return [
        cost.stage,
        f"{cost.calls:,.0f}" if cost.calls else "",
        f"{cost.cpu_seconds / 60:,.1f}" if cost.cpu_seconds else "",
        f"{gpu_hours:,.1f}" if gpu_hours else "",
        f"{dollars:,.0f}" if dollars else "",
        cost.basis,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=384_336)
    parser.add_argument("--turns", type=float, default=2.5, help="user turns of a log")
    parser.add_argument("--tokens", type=float, default=1000, help="of a log")
    parser.add_argument("--intent-tokens", type=float, default=30)
    parser.add_argument(
        "--max-turns", type=float, default=5, help="simulated user turns"
    )
    parser.add_argument("--turn-tokens", type=float, default=300, help="of an answer")
    parser.add_argument("--price", default="0.15/0.60", help="dollars a million tokens")
    parser.add_argument("--gpu-price", type=float, default=3, help="dollars a GPU-hour")
    asked = parser.parse_args()
    header = ["stage", "calls", "CPU minutes", "GPU-hours", "US dollars", "rate"]
    print(table(header, [row(cost, asked) for cost in costs(asked)]))


if __name__ == "__main__":
    main()

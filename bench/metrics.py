"""How fast the measures without a model are.

    python bench/metrics.py [--repeats 3] [--seed 0]

- First-turn diversity of 2,000 turns, compared with a plain loop over all pairs of word sets in the
  same run: the goals are 2 s, 50 times as fast, and the same value; and of 20,000 turns, in memory
  that grows with their number only.
- The two-sample test of 5,000 turns of each side.
- All measures of 5,000 conversations beside 5,000 of people: the goal is 60 s.

Texts are of `words.py`, of log-normal length (median 12 words). One thread; CPU seconds. A missed
goal is printed as missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from itertools import combinations
from math import isclose

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import words
from measuring import in_fresh_processes, machine, measured, verdict

from userlm.metrics import two_sample
from userlm.metrics.control_users import all_measures
from userlm.metrics.intrinsic import diversity_estimate
from userlm.text import words as split
from userlm.types import Conversation

FEW, MANY, TURNS = 2000, 20_000, 5000


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lengths = np.ceil(np.exp(rng.normal(np.log(12), 0.9, count))).astype(int)
    return words.texts(rng, lengths)


def plain(word_sets: Sequence[set[str]]) -> float:
    """First-turn diversity by a loop over all pairs."""
    total = 0.0
    pairs = 0
    for a, b in combinations(word_sets, 2):
        total += 1 - len(a & b) / len(a | b)
        pairs += 1
    return 100 * total / pairs


def diversity(count: int, seed: int, with_plain: bool) -> tuple[float, float, float]:
    """Return the CPU seconds of ours, those of the plain loop, and the MB that ours took."""
    word_sets = [set(split(text)) for text in texts(count, seed)]
    clusters = list(map(str, range(count)))
    diversity_estimate(word_sets[:50], clusters[:50])  # warm up
    with measured() as ours:
        _, found = diversity_estimate(word_sets, clusters)
    with measured() as theirs:
        if with_plain:
            assert found.value is not None
            assert isclose(found.value, plain(word_sets), rel_tol=1e-11)
    return ours.cpu, theirs.cpu, ours.memory


def people(seed: int) -> list[Conversation]:
    """Conversations of two turns, with intents and people."""
    said = iter(texts(4 * TURNS, seed))
    found = []
    for i in range(TURNS):
        talk = Conversation(str(i), intent=next(said), user=f"p{i}")
        for text in (next(said), next(said), next(said)):
            talk = talk.say(text)
        found.append(talk)
    return found


def test_of_turns(seed: int) -> float:
    """Return the CPU seconds of a two-sample test."""
    sides = [
        [Conversation(f"{i}", user=f"p{i}").say(text) for i, text in enumerate(said)]
        for said in (texts(TURNS, seed), texts(TURNS, seed + 1))
    ]
    with measured() as usage:
        two_sample.compare(*sides)
    return usage.cpu


def everything(seed: int) -> float:
    """Return the CPU seconds of all measures of users and of people."""
    users, humans = people(seed), people(seed + 1)
    with measured() as usage:
        all_measures(users, humans)
        all_measures(humans, humans)
    return usage.cpu


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{machine()}; seed {args.seed}", flush=True)
    alone = in_fresh_processes()
    seconds = []
    ratios = []
    for round in range(args.repeats):
        ours, theirs, _ = alone(diversity, FEW, args.seed + round, True)
        seconds.append(ours)
        ratios.append(theirs / ours)
    ratio = statistics.median(ratios)
    print(
        f"first-turn diversity of {FEW:,}: {max(seconds):.2f} s, {verdict(max(seconds) < 2)}; "
        f"{ratio:.0f} times as fast as a plain loop ({min(ratios):.0f} to {max(ratios):.0f}), the "
        f"same value, {verdict(ratio >= 50)}",
        flush=True,
    )
    for count in (FEW, MANY):
        cpu, _, memory = alone(diversity, count, args.seed, False)
        print(f"first-turn diversity of {count:,}: {cpu:.2f} s, {memory:.0f} MB")
    cpu = alone(test_of_turns, args.seed)
    print(f"two-sample test of {TURNS:,} turns of each side: {cpu:.1f} s", flush=True)
    cpu = alone(everything, args.seed)
    print(
        f"all measures of {TURNS:,} conversations and as many of people: {cpu:.1f} s, "
        f"{verdict(cpu < 60)}"
    )


if __name__ == "__main__":
    main()

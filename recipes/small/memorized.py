"""Compare how much of what a user says stands word by word in its training data, with people.

    python recipes/small/memorized.py TRAIN RUN

TRAIN is a file of conversations that a model learned from; RUN a run of `userlm respond`: what it
said after prefixes of real conversations, beside what the person said there. For each place where
both spoke, the longest run of words that is in one user turn of TRAIN is counted, for the model and
for the person. Prints the distributions, and the places where the model's is longest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from userlm.metrics.memorization import longest_runs, training_turns
from userlm.rows import read_conversations

SHARES = (50, 90, 99, 100)
SHOWN = 5


def main(train: Path, run: Path) -> None:
    training = training_turns(read_conversations(train))
    said: list[str] = []
    target: list[str] = []
    for response in read_conversations(run / "conversations.jsonl"):
        origin = response.origin
        spoke = len(response.user_turns) > response.first_own_turn
        if spoke and origin and origin.target:
            said.append(response.user_turns[-1])
            target.append(origin.target)
    if not said:
        sys.exit(f"{run} has no turn where both the user and the person spoke")
    user = longest_runs(said, training)
    person = longest_runs(target, training)
    print(f"{len(said)} places; words in a row that are in one turn of {train}:")
    for name, found in (("the user", user), ("the person", person)):
        shown = ", ".join(
            f"{share} %: {np.percentile(found, share):.0f}" for share in SHARES
        )
        print(f"  {name:11} mean {np.mean(found):.2f}; {shown}")
    for length, text in sorted(zip(user, said, strict=True), reverse=True)[:SHOWN]:
        print(f"  {length} words: {text[:200]!r}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

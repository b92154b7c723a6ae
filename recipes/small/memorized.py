"""Compare how much of what a user says stands word by word in its training data, with people.

    python recipes/small/memorized.py TRAIN RUN

TRAIN is a file of conversations that a model learned from; RUN a run of `userlm respond`: what it
said after prefixes of real conversations, beside what the person said there. For each place where
both spoke, the longest run of words that is in one user turn of TRAIN is counted, for the model and
for the person. Prints the distributions, and the places where the model's is longest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from userlm.rows import read_conversations
from userlm.text import ngrams, words

LONGEST = 20  # words; a longer run counts as this
SHARES = (50, 90, 99, 100)
SHOWN = 5


def main(train: Path, run: Path) -> None:
    known = grams(c.user_turns for c in read_conversations(train))
    pairs = []
    for response in read_conversations(run / "conversations.jsonl"):
        origin = response.origin
        if (
            origin
            and origin.target
            and len(response.user_turns) > origin.first_own_turn
        ):
            said = response.user_turns[-1]
            pairs.append((longest(said, known), longest(origin.target, known), said))
    if not pairs:
        sys.exit(f"{run} has no turn where both the user and the person spoke")
    print(f"{len(pairs)} places; words in a row that are in one turn of {train}:")
    for name, at in (("the user", 0), ("the person", 1)):
        found = [pair[at] for pair in pairs]
        shown = ", ".join(
            f"{share} %: {np.percentile(found, share):.0f}" for share in SHARES
        )
        print(f"  {name:11} mean {np.mean(found):.2f}; {shown}")
    for length, _, said in sorted(pairs, reverse=True)[:SHOWN]:
        print(f"  {length} words: {said[:200]!r}")


def grams(people: Iterable[Sequence[str]]) -> set[int]:
    """Return the hashes of all runs of up to `LONGEST` words in the turns."""
    found: set[int] = set()
    for turns in people:
        for turn in turns:
            said = words(turn)
            for size in range(1, LONGEST + 1):
                found.update(map(hash, ngrams(said, size)))
    return found


def longest(text: str, known: set[int]) -> int:
    """Return the length of the longest run of words of the text that is known."""
    said = words(text)
    size = 0
    # A run of known words holds known runs of every smaller length.
    while size < LONGEST and any(
        hash(gram) in known for gram in ngrams(said, size + 1)
    ):
        size += 1
    return size


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

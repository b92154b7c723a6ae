"""Conversations in which people say the same, exactly or nearly. `userlm clean --duplicates` runs
this.

What is compared is all that the user says, in NFKC, lower-cased, white space collapsed. Each
conversation is read once and leaves 8 bytes (`exact_key`) or 512 (`Signatures`); when all were
read, `exact` or `near` says of each which one it repeats. It is held against those that are kept,
never against one that was dropped: there are no chains, and what is dropped is like something that
stays.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from userlm.data.ngrams import ngram_hashes, row_hashes, word_hashes
from userlm.text import stable_hash
from userlm.types import Conversation, InputError

WORDS = 5
"""Length of a shingle, in words."""

_RECALL = 0.95  # of pairs exactly as similar as asked for, before their signatures are compared
_LOOKS = 16  # kept items of a bucket that an item is compared with


def user_text(conversation: Conversation) -> str:
    """What is compared: the user's turns, normalised."""
    text = unicodedata.normalize("NFKC", "\n".join(conversation.user_turns))
    return " ".join(text.lower().split())


# --- exactly the same -----------------------------------------------------------------------------


def exact_key(conversation: Conversation) -> int:
    """64 bits, the same in every process. The chance that any two texts of a million share one is 3
    in 10^8."""
    return stable_hash(user_text(conversation))


def exact(keys: NDArray[np.uint64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each item the index of the kept item with the same key, or -1: it repeats none.

    Args:
        order: the indices of the items that take part; of equal ones the first is kept.
    """
    _, first, group = np.unique(keys[order], return_index=True, return_inverse=True)
    kept = order[first[group]]
    result = np.full(len(keys), -1, dtype=np.int64)
    result[order] = np.where(kept == order, -1, kept)
    return result


# --- nearly the same ------------------------------------------------------------------------------


class Signatures:
    """MinHash signatures of conversations, added one by one.

    The share of places in which two signatures are equal estimates the Jaccard similarity of the
    two sets of shingles (Broder, 1997); with 128 places the standard error is 0.044 or less. A
    shingle is five words in a row; fewer words are one shingle. Words are what lies between white
    space, so texts in a script without it are alike only if whole turns are the same. Signatures
    are equal in every process, but not from one version of rensa to the next.
    """

    def __init__(self, permutations: int = 128) -> None:
        self.permutations = permutations
        self._places = array("I")
        self._words: list[str] = []  # of the texts that have no signature yet
        self._lengths: list[int] = []

    def add(self, conversation: Conversation) -> None:
        """One more."""
        words = user_text(conversation).split()
        words += [""] * (WORDS - len(words))
        self._words += words
        self._lengths.append(len(words))
        if len(self._words) > 1 << 18 or len(self._lengths) == 1 << 12:
            self._flush()

    def matrix(self) -> NDArray[np.uint32]:
        """The signatures in the order in which they were added, [n, permutations]; ask when all
        were added."""
        self._flush()
        return np.frombuffer(self._places, dtype=np.uint32).reshape(-1, self.permutations)

    def _flush(self) -> None:
        from rensa import RMinHash  # type: ignore[import-untyped]

        if not self._lengths:
            return
        shingles, sizes = ngram_hashes(word_hashes(self._words), np.array(self._lengths), WORDS)
        borders = np.append(0, np.cumsum(sizes)).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            shingles, borders, self.permutations, 0
        )
        for signature in matrix.to_rows():
            self._places.fromlist(signature)
        self._words, self._lengths = [], []


def near(
    signatures: NDArray[np.uint32], order: NDArray[np.int64], similarity: float = 0.7
) -> NDArray[np.int64]:
    """For each item the index of the kept item that it is like, or -1: it is like none.

    Items are taken in `order`. One is dropped if its signature equals that of a kept item in at
    least the share `similarity` of places, and is said to be like the most similar one. Candidates
    are the kept items in its buckets, those with a band of the signature in common (see `bands`);
    of each bucket the first 16. So a template with 50,000 copies that are not quite alike costs
    50,000 looks, not their square.

    Args:
        order: the indices of the items that take part; of similar ones the first is kept.
    """
    number, rows = bands(signatures.shape[1], similarity)
    copies = exact(row_hashes(signatures), order)
    items = order[
        copies[order] < 0
    ]  # one of each signature; what becomes of it becomes of its copies
    result = np.full(len(signatures), -1, dtype=np.int64)
    kept: defaultdict[int, list[int]] = defaultdict(list)  # bucket to ranks in `items`
    for rank, buckets in _buckets(signatures, items, number, rows):
        candidates = sorted({other for bucket in buckets for other in kept[bucket]})
        if candidates:
            alike = (signatures[items[candidates]] == signatures[items[rank]]).mean(axis=1)
            best = alike.argmax()  # the first of the most similar
            if alike[best] >= similarity:
                result[items[rank]] = items[candidates[best]]
                continue
        for bucket in buckets:
            if len(kept[bucket]) < _LOOKS:
                kept[bucket].append(rank)
    copied = np.flatnonzero(copies >= 0)
    first = copies[copied]
    result[copied] = np.where(result[first] < 0, first, result[first])
    return result


def bands(permutations: int, similarity: float) -> tuple[int, int]:
    """How many bands a signature is cut into, and how many places each has.

    Two signatures of similarity s have one of b bands of r places in common with probability 1 - (1
    - s^r)^b (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2). The longer
    the bands, the fewer candidates: they are the longest with which a pair at the threshold is
    found 95 times in 100.
    """
    if not 0 < similarity <= 1:
        raise InputError(f"similarity {similarity}: give a number above 0 and at most 1")
    for rows in range(permutations, 1, -1):
        number = permutations // rows
        if 1 - (1 - similarity**rows) ** number >= _RECALL:
            return number, rows
    return permutations, 1


def _buckets(
    signatures: NDArray[np.uint32], items: NDArray[np.int64], number: int, rows: int
) -> Iterator[tuple[int, list[int]]]:
    """The ranks in `items`, ascending, of those that share a bucket with another, and all such
    buckets of each."""
    parts, seen = [], 0
    for band in range(number):
        keys = row_hashes(signatures[:, band * rows : (band + 1) * rows][items])
        _, bucket, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        shared = np.flatnonzero(sizes[bucket] > 1)
        parts.append(np.stack([shared, bucket[shared] + seen]).astype(np.int32))
        seen += len(sizes)
    ranks, buckets = np.concatenate(parts, axis=1)
    by_rank = np.argsort(ranks, kind="stable")
    each, starts = np.unique(ranks[by_rank], return_index=True)
    for rank, start, end in zip(
        each.tolist(), starts, np.append(starts, len(ranks))[1:], strict=True
    ):
        yield rank, buckets[by_rank[start:end]].tolist()

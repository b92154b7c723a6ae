"""Conversations in which users say the same, exactly or nearly: `userlm clean --duplicates`.

What is compared is everything the user says, in NFKC, lower-cased, with white space collapsed. Each
conversation is read once and leaves 8 bytes (`exact_key`) or 512 (`Signatures`); when all were
read, `exact` or `near` says of each which one it repeats. A conversation is compared with those
that are kept, never with one that was dropped: there are no chains, and what is dropped always
resembles something that stays.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from userlm.data.ngrams import (
    BATCH_WORDS,
    Hashes,
    ngram_hashes,
    row_hashes,
    word_hashes,
)
from userlm.text import stable_hash
from userlm.types import Conversation, InputError

Indices = NDArray[np.int64]
Places = NDArray[np.uint32]

WORDS = 5
"""Length of a shingle, in words."""

_RECALL = 0.95  # of pairs exactly as similar as asked for, before their signatures are compared
_LOOKS = 16  # kept conversations of a bucket that another one is compared with
_BATCH_TEXTS = 1 << 12


class Said:
    """What the users of many conversations said.

    Args:
        how: `exact` or `near`: when two count as the same.
        similarity: for `near`; see there.

    Attributes:
        ids: of the conversations.
    """

    def __init__(self, how: str, similarity: float) -> None:
        self.ids: list[str] = []
        self._how = how
        self._similarity = similarity
        self._keys = array("Q")
        self._signatures = Signatures()

    def add(self, conversation: Conversation) -> None:
        """Add a conversation."""
        self.ids.append(conversation.id)
        if self._how == "exact":
            self._keys.append(exact_key(conversation))
        else:
            self._signatures.add(conversation)

    def copies(self, order: Indices) -> Indices:
        """Return what `exact` or `near` returns; call it once, after all were added."""
        if self._how == "exact":
            return exact(np.array(self._keys, dtype=np.uint64), order)
        return near(self._signatures.matrix(), order, self._similarity)


def user_text(conversation: Conversation) -> str:
    """Return what is compared: the user turns, normalised."""
    text = unicodedata.normalize("NFKC", "\n".join(conversation.user_turns))
    return " ".join(text.lower().split())


# --- exactly the same -----------------------------------------------------------------------------


def exact_key(conversation: Conversation) -> int:
    """Return 64 bits, the same in every process.

    Any two texts of a million share them with a chance of 3 in 10^8.
    """
    return stable_hash(user_text(conversation))


def exact(keys: Hashes, order: Indices) -> Indices:
    """Return for each item the index of the kept item with the same key, or -1: it repeats none.

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
    """MinHash signatures of conversations.

    The share of places in which two signatures are equal estimates the Jaccard similarity of the
    two sets of shingles (Broder, 1997); with 128 places the standard error is 0.044 or less. A
    shingle is five words in a row; fewer words are one shingle. Words are split at white space, so
    texts in a script without it are similar only if whole turns are the same. Signatures are equal
    in every process, but not from one version of rensa to the next.
    """

    def __init__(self, permutations: int = 128) -> None:
        self.permutations = permutations
        self._places = array("I")
        self._words: list[str] = []  # of the texts that have no signature yet
        self._lengths: list[int] = []

    def add(self, conversation: Conversation) -> None:
        """Add a conversation."""
        words = user_text(conversation).split()
        words += [""] * (WORDS - len(words))
        self._words += words
        self._lengths.append(len(words))
        if len(self._words) > BATCH_WORDS or len(self._lengths) == _BATCH_TEXTS:
            self._flush()

    def matrix(self) -> Places:
        """Return the signatures in the order of adding, [n, permutations]; call it after the
        last."""
        self._flush()
        return np.frombuffer(self._places, dtype=np.uint32).reshape(
            -1, self.permutations
        )

    def _flush(self) -> None:
        from rensa import RMinHash  # type: ignore[import-untyped]

        if not self._lengths:
            return
        words = word_hashes(self._words)
        shingles, sizes = ngram_hashes(words, np.array(self._lengths), WORDS)
        borders = np.append(0, np.cumsum(sizes)).astype(np.uint64)
        signatures = RMinHash.digest_matrix_from_flat_token_hashes(
            shingles, borders, self.permutations, 0
        )
        for signature in signatures.to_rows():
            self._places.fromlist(signature)
        self._words = []
        self._lengths = []


def near(signatures: Places, order: Indices, similarity: float = 0.7) -> Indices:
    """Return for each item the index of the kept item that it resembles, or -1: it resembles none.

    Items are taken in `order`. One is dropped if its signature equals that of a kept item in at
    least the share `similarity` of places; it then counts as a copy of the most similar one. It is
    compared with the kept items in its buckets, those with a band of the signature in common (see
    `bands`), at most 16 in each bucket. So a template with 50,000 copies that differ a little costs
    50,000 looks, not their square.

    Args:
        order: the indices of the items that take part; of similar ones the first is kept.
    """
    number, width = bands(signatures.shape[1], similarity)
    copies = exact(row_hashes(signatures), order)
    # One of each signature; its copies follow it in the end.
    items = order[copies[order] < 0]
    buckets = _shared_buckets(signatures, items, number, width)
    result = np.full(len(signatures), -1, dtype=np.int64)
    kept: defaultdict[int, list[int]] = defaultdict(list)  # bucket to ranks in `items`
    compared = (buckets >= 0).any(axis=1)
    for rank in np.flatnonzero(compared).tolist():
        own = [bucket for bucket in buckets[rank].tolist() if bucket >= 0]
        candidates = sorted({other for bucket in own for other in kept[bucket]})
        if candidates:
            equal = signatures[items[candidates]] == signatures[items[rank]]
            shares = equal.mean(axis=1)
            best = shares.argmax()  # of equal shares, the first
            if shares[best] >= similarity:
                result[items[rank]] = items[candidates[best]]
                continue
        for bucket in own:
            if len(kept[bucket]) < _LOOKS:
                kept[bucket].append(rank)
    copied = np.flatnonzero(copies >= 0)
    first = copies[copied]
    result[copied] = np.where(result[first] < 0, first, result[first])
    return result


def bands(permutations: int, similarity: float) -> tuple[int, int]:
    """Return how many bands a signature is cut into, and how many places each has.

    Two signatures of similarity s have one of b bands of r places in common with probability 1 - (1
    - s^r)^b (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2). The longer
    the bands, the fewer candidates: they are the longest with which a pair at the threshold is
    found 95 times in 100.
    """
    if not 0 < similarity <= 1:
        raise InputError(
            f"similarity {similarity}: give a number above 0 and at most 1"
        )
    for width in range(permutations, 1, -1):
        number = permutations // width
        if 1 - (1 - similarity**width) ** number >= _RECALL:
            return number, width
    return permutations, 1


def _shared_buckets(
    signatures: Places, items: Indices, number: int, width: int
) -> NDArray[np.int32]:
    """Return the bucket of each band of the items, [items, number]; -1 if it holds one item
    only."""
    buckets = np.full((len(items), number), -1, dtype=np.int32)
    seen = 0
    for band in range(number):
        start = band * width
        keys = row_hashes(signatures[items, start : start + width])
        _, bucket, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        shared = sizes[bucket] > 1
        buckets[shared, band] = bucket[shared] + seen
        seen += len(sizes)
    return buckets

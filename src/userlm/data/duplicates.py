"""Exact and near-duplicates by what the users say: `userlm clean --duplicates`.

Everything that the user says is compared, in NFKC, lower-cased, with white space collapsed. Each
conversation is read once and kept as 8 bytes (`exact_key`) or 512 (`Signatures`). When all were
read, `exact` or `near` returns for each the one that it duplicates. A conversation is only compared
with conversations that are kept, so there are no chains, and each dropped one is similar to one
that is kept.

A conversation that is the beginning of another is its near-duplicate, however much longer the other
one is (`Beginnings`): logs of calls hold the history again and again.
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
from userlm.text import stable_hash, word_batches
from userlm.types import Conversation, InputError

Indices = NDArray[np.int64]
Places = NDArray[np.uint32]

WORDS = 5
"""Length of a shingle, in words."""

_RECALL = 0.95  # share of the pairs exactly at the threshold that become candidates
_LOOKS = 16  # maximum number of kept conversations per bucket to compare with
_BATCH_TEXTS = 1 << 12


class Said:
    """Collects what the users of many conversations said.

    Args:
        how: the kind of duplicates, `exact` or `near`.
        similarity: the threshold of `near`.

    Attributes:
        ids: the ids of the conversations.
    """

    def __init__(self, how: str, similarity: float) -> None:
        self.ids: list[str] = []
        self._how = how
        self._similarity = similarity
        self._keys = array("Q")
        self._signatures = Signatures()
        self._beginnings = Beginnings()

    def add(self, conversation: Conversation) -> None:
        """Add a conversation."""
        self.ids.append(conversation.id)
        if self._how == "exact":
            self._keys.append(exact_key(conversation))
        else:
            self._signatures.add(conversation)
            self._beginnings.add(conversation)

    def copies(self, items: Indices, splits: NDArray[np.uint8]) -> Indices:
        """Return for each conversation the index of the kept one that it duplicates, or -1. Call it
        once, after all were added.

        Args:
            items: the indices of those to compare.
            splits: the split of each of them. Of duplicates the one in the lowest is kept, there
                the first, or of beginnings the longest.
        """
        order = items[np.argsort(splits, kind="stable")]
        if self._how == "exact":
            return exact(np.array(self._keys, dtype=np.uint64), order)
        begun = self._beginnings.copies(items, splits)
        others = order[begun[order] < 0]
        copies = near(self._signatures.matrix(), others, self._similarity)
        return _combined(begun, copies)


def _combined(begun: Indices, copies: Indices) -> Indices:
    """Return `copies` with those of `begun`, a copy of a copy as that of what is kept."""
    result = copies.copy()
    short = np.flatnonzero(begun >= 0)
    longer = begun[short]
    result[short] = np.where(copies[longer] < 0, longer, copies[longer])
    return result


def user_text(conversation: Conversation) -> str:
    """Return the text to compare: the normalised user turns."""
    return _normalized("\n".join(conversation.user_turns))


def _normalized(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).lower()
    batches = (" ".join(words) for words in word_batches(text))
    return " ".join(filter(None, batches))


# --- exactly the same -----------------------------------------------------------------------------


def exact_key(conversation: Conversation) -> int:
    """Return a 64-bit hash that is the same in every process.

    The chance that any two of a million texts collide is 3 in 10^8.
    """
    return stable_hash(user_text(conversation))


def exact(keys: Hashes, order: Indices) -> Indices:
    """Return for each item the index of the kept item with the same key, or -1 if there is none.

    Args:
        order: the indices of the items to compare; the first of equal ones is kept.
    """
    _, first, group = np.unique(keys[order], return_index=True, return_inverse=True)
    kept = order[first[group]]
    result = np.full(len(keys), -1, dtype=np.int64)
    result[order] = np.where(kept == order, -1, kept)
    return result


# --- the beginning of another ---------------------------------------------------------------------


class Beginnings:
    """Hashes of what the users said up to each turn: 8 bytes a turn.

    Turns that a path shares with another of its tree are not its own, so the other is no copy.
    """

    def __init__(self) -> None:
        self._wholes = array("q")
        self._parts = array(
            "q"
        )  # the beginnings of all conversations, one after the other
        self._stops = array("Q", [0])  # where those of each conversation stop

    def add(self, conversation: Conversation) -> None:
        """Add a conversation."""
        key = 0
        keys = []
        for text in conversation.user_turns:
            key = hash((key, _normalized(text)))
            keys.append(key)
        self._wholes.append(key)
        self._parts.extend(keys[conversation.first_own_turn : -1])
        self._stops.append(len(self._parts))

    def copies(self, items: Indices, splits: NDArray[np.uint8]) -> Indices:
        """Return for each conversation the index of a kept one that it begins, or that is its own
        beginning in a lower split; -1 if there is none. The arguments are those of
        `Said.copies`."""
        stops = np.array(self._stops, dtype=np.int64)
        lengths = np.diff(stops)
        longest_first = items[np.lexsort((-lengths[items], splits))]
        result = np.full(len(lengths), -1, dtype=np.int64)
        whole_at: dict[int, int] = {}
        part_at: dict[int, int] = {}
        for at in longest_first.tolist():
            whole = self._wholes[at]
            parts = self._parts[stops[at] : stops[at + 1]]
            shorter = (whole_at[part] for part in parts if part in whole_at)
            copy = part_at.get(whole, next(shorter, -1))
            result[at] = copy
            if copy < 0:
                whole_at.setdefault(whole, at)
                for part in parts:
                    part_at.setdefault(part, at)
        return result


# --- nearly the same ------------------------------------------------------------------------------


class Signatures:
    """MinHash signatures of conversations.

    The share of positions at which two signatures are equal estimates the Jaccard similarity of the
    two sets of shingles (Broder, 1997); with 128 positions the standard error is 0.044 or less. A
    shingle is five words in a row; fewer words are one shingle. Words are split at white space, so
    texts in a script without it are similar only if whole turns are the same. Signatures are the
    same in every process, but may change with the version of rensa.
    """

    def __init__(self, permutations: int = 128) -> None:
        self.permutations = permutations
        self._places = array("I")
        self._words: list[str] = []  # the texts that have no signature yet
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
        """Return the signatures in the order of adding, [n, permutations]. Call it after the last
        `add`."""
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
    """Return for each item the index of a similar kept item, or -1 if there is none.

    Items are processed in `order`. An item is dropped if its signature agrees with that of a kept
    item at a share of at least `similarity` of the positions. It then counts as a copy of the most
    similar one. It is compared with the kept items in its buckets, those with a band of the
    signature in common (see `bands`), at most 16 in each bucket. So 50,000 near-copies of a
    template cost about 50,000 comparisons, not the square of that.

    Args:
        order: the indices of the items to compare; the first of similar ones is kept.
    """
    number, width = bands(signatures.shape[1], similarity)
    copies = exact(row_hashes(signatures), order)
    # One item per signature; the copies get its result at the end.
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
            best = shares.argmax()  # the first of equal shares
            if shares[best] >= similarity:
                result[items[rank]] = items[candidates[best]]
                continue
        for bucket in own:
            if len(kept[bucket]) < _LOOKS:
                kept[bucket].append(rank)
    return _combined(copies, result)


def bands(permutations: int, similarity: float) -> tuple[int, int]:
    """Return the number of bands of a signature, and the number of positions in each.

    Two signatures of similarity s share one of b bands of r positions with probability 1 - (1
    - s^r)^b (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2). Longer
    bands give fewer candidates; the longest are chosen with which a pair at the threshold is found
    in 95 % of cases.
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
    """Return the bucket of each band of the items, [items, number]; -1 for a bucket with one item
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

"""Word n-grams of many texts at once, as 64-bit hashes: for the template filter and for
near-duplicates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from userlm.json_files import naming
from userlm.text import stable_hash, word_batches
from userlm.types import Conversation, InputError

Hashes = NDArray[np.uint64]

MIN_BITS = 15
MAX_BITS = 25
"""Bits of an n-gram's hash that index the table of counts: 256 kB to 256 MB, and the same again
while a block is counted."""
BATCH_WORDS = 1 << 18
BLOCK_BYTES = 1 << 23


def word_hashes(words: list[str]) -> Hashes:
    """Return 64 bits for each word, the same in every process, but perhaps not with another version
    of rensa."""
    from rensa import RMinHash  # type: ignore[import-untyped]

    return np.array(RMinHash.hash_token_sets([words])[0], dtype=np.uint64)


def ngram_hashes(
    words: Hashes, lengths: NDArray[np.int64], n: int
) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the n-grams of concatenated texts, and how many each text has.

    A hash is the sum of the word hashes, each times an odd number for its position, modulo 2^64.
    This takes seconds for millions of n-grams.

    Args:
        words: the words of all texts.
        lengths: how many words each text has.
    """
    count = max(len(words) - n + 1, 0)
    total = np.zeros(count, dtype=np.uint64)
    for place, factor in enumerate(_odd_factors(n)):
        total += words[place : place + count] * factor
    # An n-gram must not reach into the next text.
    reaching = np.cumsum(lengths)[:, None] - np.arange(1, n)
    inside = np.ones(len(words), dtype=np.bool_)
    inside[reaching[reaching >= 0]] = False
    inside = inside[:count]
    return total[inside], np.maximum(lengths - n + 1, 0)


def row_hashes(rows: NDArray[Any]) -> Hashes:
    """Return a hash for each row of a table of whole numbers; equal rows have equal hashes."""
    hashes: Hashes = np.einsum("ij,j->i", rows, _odd_factors(rows.shape[1]))
    return hashes


def _odd_factors(places: int) -> Hashes:
    factors = [stable_hash("place", place) | 1 for place in range(places)]
    return np.array(factors, dtype=np.uint64)


def first_words(conversation: Conversation) -> list[str]:
    """Return the words of the first user turn: lower-cased, split at white space."""
    return _first_turn(conversation).split()


def _first_turn(conversation: Conversation) -> str:
    return next(iter(conversation.user_turns), "").lower()


def own_ngrams(conversation: Conversation, n: int = 7) -> list[int]:
    """Return the hashes of the n-grams of the first user turn, in order."""
    words = word_hashes(first_words(conversation))
    hashes, _ = ngram_hashes(words, np.array([len(words)]), n)
    keys: list[int] = hashes.tolist()
    return keys


class Ngrams:
    """Counts the word n-grams in the first user turns of many conversations, including repeats in a
    turn.

    The n-grams are collected on disk, 8 bytes each, then counted in two passes. The first pass
    counts buckets: n-grams with the same first bits of their hashes. The table is so large that a
        bucket has a quarter of `limit` on average. An n-gram can only be frequent if its bucket is,
        so the second pass counts only the n-grams in buckets above `limit`, one by one.

    Args:
        path: a temporary file; `close` deletes it.
        n: the number of words in an n-gram.

    Attributes:
        total: the number of n-grams.
        table: the cost of counting: n-grams, distinct ones that were counted one by one, and bytes.
    """

    def __init__(self, path: Path, n: int = 7) -> None:
        if n < 1:
            raise InputError(f"n-grams of {n} words: give n >= 1")
        self.n = n
        self.total = 0
        self.table: dict[str, int] = {}
        self._path = path
        self._file = path.open("w+b")
        self._words: list[str] = []  # of texts whose n-grams are not yet in the file
        self._hashes: list[Hashes] = []  # of those before
        self._lengths: list[int] = []
        self._sizes = [np.zeros(0, dtype=np.int64)]

    def add(self, conversation: Conversation) -> None:
        """Add the first user turn of a conversation."""
        length = 0
        for words in word_batches(_first_turn(conversation)):
            self._words += words
            length += len(words)
            if len(self._words) > BATCH_WORDS:
                self._hash_words()
        self._lengths.append(length)
        if self._hashes:
            self._flush()

    def above(self, limit: int) -> tuple[dict[int, int], NDArray[np.bool_]]:
        """Return the n-grams that occur more often than the limit (hash and count), and for each
        text whether it has one."""
        self._flush()
        bits = (4 * self.total // max(limit, 1)).bit_length()
        bits = max(MIN_BITS, min(MAX_BITS, bits))
        shift = np.uint64(64 - bits)
        buckets = np.zeros(1 << bits, dtype=np.int64)
        for _, hashes in self._blocks():
            own = (hashes >> shift).astype(np.intp)
            buckets += np.bincount(own, minlength=len(buckets))
        keys = np.zeros(0, dtype=np.uint64)
        counts = np.zeros(0, dtype=np.int64)
        for _, hashes in self._blocks():
            full = hashes[buckets[hashes >> shift] > limit]
            block_keys, block_counts = np.unique(full, return_counts=True)
            both = np.concatenate([keys, block_keys])
            keys, index = np.unique(both, return_inverse=True)
            added = np.concatenate([counts, block_counts])
            counts = np.zeros(len(keys), dtype=np.int64)
            np.add.at(counts, index, added)
        self.table = {
            "n-grams": self.total,
            "counted one by one": len(keys),
            "bytes on disk": 8 * self.total,
            "bytes in memory": buckets.nbytes + keys.nbytes + counts.nbytes,
        }
        frequent = counts > limit
        keys = keys[frequent]
        often = zip(keys.tolist(), counts[frequent].tolist(), strict=True)
        return dict(often), self._texts_with(keys)

    def _texts_with(self, keys: Hashes) -> NDArray[np.bool_]:
        """Return for each text whether it has one of these n-grams."""
        text_ends = np.cumsum(np.concatenate(self._sizes))
        hit = np.zeros(len(text_ends), dtype=np.bool_)
        if len(keys):
            for start, hashes in self._blocks():
                found = np.flatnonzero(np.isin(hashes, keys)) + start
                hit[np.searchsorted(text_ends, found, side="right")] = True
        return hit

    def close(self) -> None:
        """Delete the file."""
        try:
            with naming(self._path):
                self._file.close()  # closing writes the buffer, which fails on a full disk
        finally:
            self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        self._hash_words()
        lengths = np.array(self._lengths, dtype=np.int64)
        words = np.concatenate(self._hashes)
        self._hashes = []
        hashes, sizes = ngram_hashes(words, lengths, self.n)
        with naming(self._path):
            self._file.write(hashes.tobytes())
        self._sizes.append(sizes)
        self.total += len(hashes)
        self._lengths = []

    def _hash_words(self) -> None:
        self._hashes.append(word_hashes(self._words))
        self._words = []

    def _blocks(self) -> Iterator[tuple[int, Hashes]]:
        """Return the n-grams in blocks, each with the index of its first n-gram."""
        with naming(self._path):
            self._file.seek(0, os.SEEK_SET)  # flushes the buffer
        start = 0
        while block := self._file.read(BLOCK_BYTES):
            hashes = np.frombuffer(block, dtype=np.uint64)
            yield start, hashes
            start += len(hashes)

"""Word n-grams of many texts at once, as 64-bit hashes: for the template filter and for
near-duplicates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from userlm.text import stable_hash


def word_hashes(words: list[str]) -> NDArray[np.uint64]:
    """64 bits for each word, the same in every process, but perhaps not with another version of
    rensa."""
    from rensa import RMinHash  # type: ignore[import-untyped]

    return np.array(RMinHash.hash_token_sets([words])[0], dtype=np.uint64)


def ngram_hashes(
    words: NDArray[np.uint64], lengths: NDArray[np.int64], n: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The n-grams of texts whose words stand one after the other, and how many each text has.

    A hash is the sum of the words' hashes, each times an odd number for its place, modulo 2^64:
    millions take seconds.
    """
    count = max(len(words) - n + 1, 0)
    total = np.zeros(count, dtype=np.uint64)
    for place, odd in enumerate(_odd(n)):
        total += words[place : place + count] * odd
    ends = np.repeat(np.cumsum(lengths), lengths)[:count]
    inside = ends - np.arange(count) >= n  # not across the end of a text
    return total[inside], np.maximum(lengths - n + 1, 0)


def row_hashes(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """The same hash for each row of a table of whole numbers."""
    hashes: NDArray[np.uint64] = np.einsum("ij,j->i", rows, _odd(rows.shape[1]))
    return hashes


def _odd(places: int) -> NDArray[np.uint64]:
    return np.array([stable_hash("place", place) | 1 for place in range(places)], dtype=np.uint64)

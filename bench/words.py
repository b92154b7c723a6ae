"""Texts of pseudo-words in several scripts, with the frequencies of real words."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from userlm.data.language import COMMON_WORDS, language_code

Ints = NDArray[np.int64]

SCRIPTS = {
    "Chinese": (0x4E00, 3000, 2, ""),
    "Russian": (0x430, 32, 9, " "),
    "Arabic": (0x627, 36, 7, " "),
}
# First letter, number of letters, longest word, word separator.
LATIN = (
    ord("a"),
    26,
    9,
    " ",
)
VOCABULARY = 40_000


@cache
def vocabulary(
    first: int, letters: int, longest: int, language: str
) -> NDArray[np.object_]:
    """Words by frequency, the frequent ones short; then all of them again with each punctuation
    mark. The most frequent are words of the language, so that it can be identified."""
    rng = np.random.default_rng(first)
    common = COMMON_WORDS.get(language_code(language), "")
    words: dict[str, None] = dict.fromkeys(common.split())
    while len(words) < VOCABULARY:
        length = 1 + int(rng.integers(min(longest, 3 + len(words) // 100)))
        words["".join(map(chr, first + rng.integers(letters, size=length)))] = None
    marks = ("{}", "{},", "{}.", "{}:\n\n", '"{}"', "{}?")
    return np.array(
        [mark.format(word) for mark in marks for word in words], dtype=object
    )


@cache
def _quantiles() -> tuple[Ints, Ints]:
    """Quantiles of Zipf's law over the vocabulary, and of the marks, to sample words by look-up."""
    cumulated = np.cumsum(1 / np.arange(3, VOCABULARY + 3))
    ranks = np.searchsorted(
        cumulated / cumulated[-1], (np.arange(1 << 20) + 0.5) / (1 << 20)
    )
    return ranks, np.repeat(np.arange(6), (205, 22, 18, 4, 3, 4)) * VOCABULARY


def texts(
    rng: np.random.Generator, lengths: Ints, language: str = "English"
) -> list[str]:
    """A text for each length, in words."""
    *script, between = SCRIPTS.get(language, LATIN)
    ranks, marks = _quantiles()
    total = int(lengths.sum())
    drawn = (
        ranks[rng.integers(1 << 20, size=total)] + marks[rng.integers(256, size=total)]
    )
    words = vocabulary(*script, language)[drawn].tolist()
    ends = np.cumsum(lengths).tolist()
    return [
        between.join(words[start:end])
        for start, end in zip([0, *ends], ends, strict=False)
    ]

"""Which facts of a task a user said. It compares words and numbers, and needs no judge."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from userlm.text import content_words, numbers, words
from userlm.types import Fact

SHARE = 0.75
"""The share of a fact's content words that a user must have said: a compromise between missing what
was said and finding what was not (`bench/matcher.py` prints both for other shares)."""


_UNITS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_COUNTS: dict[str, int] = {
    **{word: i for i, word in enumerate(_UNITS)},
    **{word: 10 * i for i, word in enumerate(_TENS, 2)},
    **dict.fromkeys(("twice", "double", "doubled", "couple"), 2),
    **dict.fromkeys(("thrice", "triple", "tripled"), 3),
}
# these multiply a count before them; without one they are numbers themselves
_SCALES = {
    "half": Fraction(1, 2),
    "quarter": Fraction(1, 4),
    "dozen": Fraction(12),
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
}
# only after a count: there is no fraction in "the third day"
_PARTS = {
    "third": 3,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
}
_ROOM = {"hundred": 100, **dict.fromkeys(_TENS, 10)}
"""A count after one of these words is added to it if it is less than this: `twenty five`."""
_NUMBER_WORDS = {*_COUNTS, *_SCALES, *_PARTS}
_TOKEN = re.compile(
    # A number, with its sign and currency, as a mixed fraction or not; or a word.
    r"(?<![\w.])[-−]?[$€£]?[-−]?(?:[0-9]+ )?[0-9][0-9.,/]*|(?<!\w)\.[0-9]+"
    r"|[^\W\d_]+(?:'[^\W\d_]+)?"
)


def said(fact: Fact | str, texts: Sequence[str]) -> bool:
    """Return whether the user said this fact in these turns. It compares words and uses no judge.

    A fact was said if the texts contain every number of it, in digits or words (except one, since
    people say "a"), and at least `SHARE` of its content words, ignoring endings. The turns are
    joined, so a fact may be split over several. It knows no synonyms, and ignores the relations
    between words.
    """
    text = fact.text if isinstance(fact, Fact) else fact
    amounts = _amounts([text])
    if not amounts - {1} <= _amounts(texts):
        return False
    wanted = _stems(content_words(text))
    if not wanted and not amounts:
        wanted = _stems(words(text))  # "It is in there" still has words
    heard = _stems(words(" ".join(texts)))
    return len(wanted & heard) >= SHARE * len(wanted)


def _amounts(texts: Iterable[str]) -> set[Fraction]:
    """The numbers of the texts, in digits or in words: `two dozen`, `twenty-five`, `2/3`,
    `a third`."""
    found: set[Fraction] = set()
    for text in texts:
        number: Fraction | None = (
            None  # the current number, which the next word may still change
        )
        before = ""
        tokens = _TOKEN.findall(text.lower().replace("’", "'"))
        for token in [*tokens, ""]:
            word = token if token in _COUNTS else token.removesuffix("s")
            longer = _continued(number, before, word)
            if longer is None:
                digits = [Fraction(digit) for digit in numbers(token[:40])]
                found.update(digits[:-1])
                if number is not None:
                    found.add(number)
                if digits:
                    longer = digits[-1]
                elif word in _COUNTS:
                    longer = Fraction(_COUNTS[word])
            number = longer
            before = word
    return found


def _continued(number: Fraction | None, before: str, word: str) -> Fraction | None:
    """The number with one more word: `two` and `dozen` are 24, `twenty` and `five` are 25. `None`
    if the word does not continue it."""
    scale = _SCALES.get(word)
    if word in _PARTS and (number is not None or before in ("a", "an")):
        scale = Fraction(1, _PARTS[word])
    if scale is not None:
        return scale if number is None else number * scale
    count = _COUNTS.get(word, 0)
    fits = 0 < count < _ROOM.get(before, 0)
    return number + count if number is not None and fits else None


def _stems(found: Sequence[str]) -> set[str]:
    """The words without their endings; numbers are left out."""
    return {_stem(word) for word in found if not word[0].isdigit()} - _NUMBER_WORDS


def _stem(word: str) -> str:
    """A word without 's, -s, -ed and -ing, roughly: `bakes`, `baked` and `baking` meet at `bak`."""
    word = word.removesuffix("'s").removesuffix("'")
    if len(word) > 4 and word.endswith(("ies", "ied")):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) >= len(ending) + 3:
            word = word.removesuffix(ending)
            if word[-1] == word[-2] and word[-1] not in "lsz":
                # stopped, but not filled
                word = word[:-1]
            break
    return word.removesuffix("e") if len(word) > 3 else word

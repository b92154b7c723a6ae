"""Which facts of a task a user said. It compares words and numbers, and needs no judge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from math import log

from userlm.text import content_words, numbers, words
from userlm.types import Fact

SHARE = 0.55
"""The share of a fact's words, by weight, that a user must have said: a compromise between missing
what was said and finding what was not (`bench/grading.py` prints both for other shares)."""

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


def said(
    fact: Fact | str, texts: Sequence[str], facts: Sequence[Fact | str] = ()
) -> bool:
    """Return whether the user said this fact in these turns. It compares words and uses no judge.

    A fact was said if the texts contain every number of it, in digits or words (except one, since
    people say "a"), and at least `SHARE` of its numbers and content words, ignoring endings. A word
    that few of the task's facts have tells them apart, so it weighs more (its inverse document
    frequency among them). The turns are joined, so a fact may be split over several. It knows no
    synonyms, and ignores the relations between words.

    Args:
        facts: all facts of the task.
    """
    weights = _weights(tuple(map(_text, facts)))
    return _share(_tokens(_text(fact)), _heard(tuple(texts)), weights) >= SHARE


def told_in(facts: Sequence[Fact | str], texts: Sequence[str]) -> list[list[int]]:
    """Return for each fact of a task the numbers of the turns that tell it.

    The first turn that says the most of a fact tells it. Any other turn tells it again if it says
    enough of it without the words of the facts that it tells more of: facts of one task share
    words, so a turn that tells one may have most words of another. A fact that no turn says alone
    is told by the one that completes it.
    """
    weights = _weights(tuple(map(_text, facts)))
    tokens = [_tokens(_text(fact)) for fact in facts]
    heard = [_heard((text,)) for text in texts]
    shares = [[_share(own, turn, weights) for turn in heard] for own in tokens]
    best = list(map(_first_best, shares))
    told: list[list[int]] = [[] for _ in facts]
    for k, turn in enumerate(heard):
        left = turn.difference(*(tokens[i] for i, at in enumerate(best) if at == k))
        for i in sorted(range(len(facts)), key=lambda i: -shares[i][k]):
            if best[i] == k:
                told[i].append(k)
            elif _share(tokens[i], left, weights) >= SHARE:
                told[i].append(k)
                left -= tokens[i]
    for fact, turns in zip(facts, told, strict=True):
        turns += [] if turns else _completed(fact, texts, facts)
    return told


def _first_best(shares: Sequence[float]) -> int | None:
    """The number of the turn that says the most of a fact; `None` if no turn says enough."""
    most = max(shares, default=0.0)
    return shares.index(most) if most >= SHARE else None


def _completed(
    fact: Fact | str, texts: Sequence[str], facts: Sequence[Fact | str]
) -> list[int]:
    """The turn that completes a fact together with those before it, if there is one."""
    for k in range(1, len(texts)):
        if said(fact, texts[: k + 1], facts):
            return [k]
    return []


def stems(texts: Iterable[str]) -> set[str]:
    """Return the different words of the texts without their endings, and the numbers in digits."""
    return {_stem(word) for word in words(" ".join(texts))}


_Token = str | Fraction
"""The stem of a word, or an amount."""


def _text(fact: Fact | str) -> str:
    return fact.text if isinstance(fact, Fact) else fact


@lru_cache(10_000)
def _tokens(text: str) -> frozenset[_Token]:
    """The amounts and content words of a fact."""
    amounts = _amounts([text])
    tokens: set[_Token] = {*amounts - {1}, *_stems(content_words(text))}
    if not tokens:  # "There is only one" still has a number, and "It is in there" words
        tokens |= amounts or _stems(words(text))
    return frozenset(tokens)


@lru_cache(1000)
def _heard(texts: tuple[str, ...]) -> frozenset[_Token]:
    """The words and the amounts of what a user said."""
    return frozenset({*_stems(words(" ".join(texts))), *_amounts(texts)})


def _share(
    own: frozenset[_Token], heard: frozenset[_Token], weights: Mapping[_Token, float]
) -> float:
    """The share of a fact, by weight, that was heard; none if a number of it was not."""
    if any(isinstance(token, Fraction) for token in own - heard):
        return 0.0
    rare = max(weights.values(), default=1.0)
    found = sum(weights.get(token, rare) for token in own & heard)
    missing = sum(weights.get(token, rare) for token in own - heard)
    return found / (found + missing) if own else 0.0


@lru_cache(1000)
def _weights(facts: tuple[str, ...]) -> dict[_Token, float]:
    """The weight of each token of a task's facts."""
    counts = Counter(token for fact in facts for token in _tokens(fact))
    return {token: log((len(facts) + 1) / n) for token, n in counts.items()}


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

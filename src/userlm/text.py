"""Words, n-grams, numbers and hashes of texts. Every metric counts words with `words`."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

INTENT_PREFIX = "You are a user chatting with an assistant language model to "
"""The fixed opening words of every intent, as in the paper (slides, sample 1 to 4)."""

END_TOKEN = "<|endconversation|>"
"""What a user model generates instead of a turn, to end the conversation."""

END_SAYS = "[end]"
"""What harnesses get as the last turn of a user who ends the conversation without a word. Some drop
an empty turn and ask again, others fail: docs/serving.md has what each does."""

_OPENING = re.compile(
    r"\s*" + r"\s+".join(INTENT_PREFIX.split()) + r"\b\s*", re.IGNORECASE
)
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_SPACE = re.compile(r"\s")
_BATCH = 1 << 18  # characters
_NUMBER = re.compile(
    # Not the 2 of v2; no minus between two digits.
    r"(?<![\w.])(?P<minus>[-−]?[$€£]?[-−]?)(?:"
    # A fraction, with a whole number before it or not: 1/2, 2 1/2.
    r"(?:(?P<whole>[0-9]{1,6}) )?(?P<top>[0-9]{1,2})/(?P<bottom>[0-9]{1,2})(?![\w/])"
    # Any other number: 1,200.50 or 1200 or .5.
    r"|(?P<plain>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+))"
)
_STOP_WORDS = frozenset(
    """
    a about above after again against all also am an and any are aren't as at be because been
    before being below between both but by can can't cannot could couldn't did didn't do does
    doesn't doing don't down during each few for from further get give had hadn't has hasn't
    have haven't having he he'd he'll he's her here hers herself him himself his how i i'd i'll
    i'm i've if in into is isn't it it's its itself just let let's like make me more most my
    myself need no nor not now of off on once only or other our ours ourselves out over own
    please same she she'd she'll she's should shouldn't so some such tell than that that's the
    their theirs them themselves then there there's these they they'd they'll they're they've
    this those through to too under until up us use very want was wasn't we we'd we'll we're
    we've were weren't what what's when where which while who who's whom why will with won't
    would wouldn't write yes you you'd you'll you're you've your yours yourself yourselves
    """.split()
)


_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters, marks and symbols that show nothing."""


def has_words(text: str | None) -> bool:
    """Return whether a text has any visible characters. ChatGPT, for example, adds invisible ones
    where an answer was stopped."""
    for character in text or "":
        category = unicodedata.category(character)
        is_hidden = category in ("Cc", "Cf", "Zs", "Zl", "Zp") or category == "Mn"
        if not is_hidden and character not in _BLANKS:
            return True
    return False


def without_speaker(text: str) -> str:
    """Return what a model says as the user, without the label of its turns in the transcript that
    it was shown."""
    return text.strip().removeprefix("<user>:").strip()


def words(text: str) -> list[str]:
    """Return the words in order, lower-cased and without punctuation: `Don't!` gives `don't`."""
    return _WORD.findall(text.lower().replace("’", "'"))


def word_batches(text: str) -> Iterator[list[str]]:
    """Yield the words of a text, split at white space, some thousands at a time: a list of them all
    takes many times the memory of the text."""
    start = 0
    while start < len(text):
        space = _SPACE.search(text, start + _BATCH)
        end = space.start() if space else len(text)
        yield text[start:end].split()
        start = end


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the offsets of each word: its first character, and the one after its last."""
    return [match.span() for match in _WORD.finditer(text)]


def content_words(text: str) -> list[str]:
    """Return `words` without English stop words."""
    return [word for word in words(text) if word not in _STOP_WORDS]


def ngrams(items: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield every run of `n` items."""
    for start in range(len(items) - n + 1):
        yield tuple(items[start : start + n])


def numbers(text: str) -> list[str]:
    """Return the numbers written in digits, in order, in one form: equal numbers are equal strings.

    `$1,200.00` gives `1200`, `2.50` gives `2.5`, `-3` and `-$3` give `-3`. A proper fraction is one
    number: `1/2` gives `0.5`, `2 1/2` gives `2.5`, `1/3` stays `1/3`; any other slash separates two
        numbers. The digits of `v2` are part of a name; those of `5kg` and `2nd` are numbers. Number
        words are ignored.
    """
    return [number for number, _, _ in number_spans(text)]


def number_spans(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield `numbers` with the offsets of each: its first character, and the one after its last."""
    without_ellipses = re.sub(r"\.\.+", lambda dots: " " * len(dots[0]), text)
    for match in _NUMBER.finditer(without_ellipses):
        for number in _numbers_of(match):
            yield "0" if number == "-0" else number, *match.span()


def _numbers_of(match: re.Match[str]) -> list[str]:
    minus = "-" if match["minus"].strip("$€£") else ""
    whole, top, bottom, plain = match.group("whole", "top", "bottom", "plain")
    if plain:
        return [minus + _plain(plain)]
    if 0 < int(top) < int(bottom):
        value = Fraction(int(top), int(bottom)) + int(whole or 0)
        return [minus + format_number(value)]
    parts = [_plain(part) for part in (whole, top, bottom) if part]
    parts[0] = minus + parts[0]
    return parts


def format_number(number: Fraction) -> str:
    """Return a number in the form of `numbers`: as a decimal if it terminates, else as a fraction
    in lowest terms."""
    if number.denominator == 1:
        return str(number.numerator)
    decimal = Decimal(number.numerator) / number.denominator
    if Fraction(decimal) != number:
        return str(number)
    return format(decimal.normalize(), "f")


def _plain(digits: str) -> str:
    """`01,200.50` to `1200.5`. It avoids `int`, which refuses very long numbers, since people paste
    digits of pi."""
    whole, _, decimals = digits.replace(",", "").partition(".")
    whole = whole.lstrip("0") or "0"
    decimals = decimals.rstrip("0")
    return f"{whole}.{decimals}" if decimals else whole


def intent_goal(intent: str) -> str:
    """Return what an intent says after the fixed opening words, if it begins with them, in any
    case and spacing: a user who repeats its intent may write them differently."""
    opening = _OPENING.match(intent)
    return intent[opening.end() :] if opening else intent


def named_type(value: object) -> str:
    """Return what a value is, for a message: `a list`, `an int`, `None`."""
    if value is None:
        return "None"
    name = type(value).__name__
    article = "an" if name[0] in "AEIOaeio" else "a"
    return f"{article} {name}"


def stable_hash(*parts: object) -> int:
    """Return a 64-bit hash that is the same in every process, for seeds and for splits."""
    joined = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")

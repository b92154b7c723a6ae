"""Words, n-grams, numbers and hashes of texts. Every metric that counts words counts them with
`words`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

INTENT_PREFIX = "You are a user chatting with an assistant language model to "
"""How every intent begins; the form of the paper (slides, sample 1 to 4)."""

END_TOKEN = "<|endconversation|>"
"""What a user model says instead of a turn, to leave."""

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_NUMBER = re.compile(
    r"(?<![\w.])(?P<minus>[-−]?[$€£]?[-−]?)(?:"  # not the 2 of v2; no minus between two digits
    r"(?:(?P<whole>[0-9]{1,6}) )?(?P<top>[0-9]{1,2})/(?P<bottom>[0-9]{1,2})(?![\w/])"
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


def words(text: str) -> list[str]:
    """Lower-cased words in order, punctuation left out: `Don't!` gives `don't`."""
    return _WORD.findall(text.lower().replace("’", "'"))


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of a text stand: for each the first character and the one after the last."""
    return [match.span() for match in _WORD.finditer(text)]


def content_words(text: str) -> list[str]:
    """`words` without English stop words."""
    return [word for word in words(text) if word not in _STOP_WORDS]


def ngrams(items: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every run of `n` items."""
    return (tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def numbers(text: str) -> list[str]:
    """The numbers written in digits, in order, each in one spelling, so that equal numbers are
    equal strings.

    `$1,200.00` gives `1200`, `2.50` gives `2.5`, `-3` and `-$3` give `-3`. A proper fraction is one
    number: `1/2` gives `0.5`, `2 1/2` gives `2.5`, `1/3` stays `1/3`; any other slash stands
    between two numbers. The digits of `v2` are part of a name, those of `5kg` and `2nd` are a
    number. Number words are left alone.
    """
    found: list[str] = []
    for match in _NUMBER.finditer(re.sub(r"\.\.+", " ", text)):
        minus = "-" if match["minus"].strip("$€£") else ""
        if match["plain"]:
            found.append(minus + _plain(match["plain"]))
        elif 0 < int(match["top"]) < int(match["bottom"]):
            part = Fraction(int(match["top"]), int(match["bottom"]))
            found.append(minus + spell(part + int(match["whole"] or 0)))
        else:
            parts = [part for part in match.group("whole", "top", "bottom") if part]
            found += [minus + _plain(parts[0]), *map(_plain, parts[1:])]
    return ["0" if number == "-0" else number for number in found]


def spell(number: Fraction) -> str:
    """A number as `numbers` spells it: decimals if they end, else a fraction in lowest terms."""
    if number.denominator == 1:
        return str(number.numerator)
    decimal = Decimal(number.numerator) / number.denominator
    return format(decimal.normalize(), "f") if Fraction(decimal) == number else str(number)


def _plain(digits: str) -> str:
    """`01,200.50` to `1200.5`, without `int`, which refuses very long numbers: people paste digits
    of pi."""
    whole, _, decimals = digits.replace(",", "").partition(".")
    decimals = decimals.rstrip("0")
    return (whole.lstrip("0") or "0") + ("." + decimals if decimals else "")


def intent_goal(intent: str) -> str:
    """The part of an intent that is its own: all after the fixed opening words, if they are
    there."""
    return intent.removeprefix(INTENT_PREFIX)


def stable_hash(*parts: object) -> int:
    """A 64-bit hash that is the same in every process, for seeds and for splits."""
    joined = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")

"""The final number of an answer, and whether an answer gives one at all or is only talk.

An answer often repeats numbers of the question after its result ("so 3 trucks carry the 80
stones"). So every number gets points for what speaks for it, and the one with the most is the
final one; of equals the last. The points are weights of a regression on attempts of models
(`bench/grading.py --fit`), rounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from userlm.text import format_number, number_spans, numbers

SEEN = 8_000
"""Characters at the end of an answer that are looked at. No answer is that long before its end."""

POINTS: Mapping[str, int] = {
    # explicit forms
    "boxed": 12,
    "named as the answer": 5,
    "in the answer's sentence": 3,
    # where it stands
    "last sentence": 5,
    "last but one": 1,
    "far from the end": -3,
    "conclusion": 3,
    "list item": -2,
    "first in its sentence": 2,
    "last in its sentence": 2,
    "in brackets": -1,
    "in quotes": -1,
    # what it looks like
    "bold": 3,
    "bold alone": 1,
    # the calculation
    "last result": 3,
    "operand": -2,
    "given": -2,
    # the words before it
    "after a verb": 1,
    "after a preposition": -2,
    "after a determiner": -2,
    "after a purpose": -1,
    "part of a quantity": -5,
    # what it is not
    "negated": -12,
    "one of two": -12,
}
"""What speaks for or against a number as the final one."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A number in an answer.

    Attributes:
        number: in the form of `text.numbers`.
        evidence: some of `POINTS`.
    """

    number: str
    evidence: frozenset[str]

    @property
    def points(self) -> int:
        """How much speaks for it."""
        return sum(POINTS[name] for name in self.evidence)


def final_number(text: str) -> str | None:
    """Return the final number of an answer, in the form of `text.numbers`; `None` if there is none.

    The numbers of list items and dates, and those in questions, do not count, nor those that the
    answer denies or leaves open ("16 or 18").
    """
    best = _best(mentions(text))
    return best.number if best else None


def attempted_number(text: str) -> str | None:
    """Return the final number of an answer; `None` if it is only talk: a question, a plan, a result
    under assumptions. A rule decides, which `bench/grading.py` measures."""
    found = mentions(text)
    best = _best(found)
    if best is None:
        return None
    calculated = min(len(found), 30) / 4
    return best.number if best.points + calculated > talk_points(text) else None


def _best(found: Sequence[Mention]) -> Mention | None:
    best = max(reversed(found), key=lambda mention: mention.points, default=None)
    return best if best and best.points >= 0 else None


# --- an answer or talk ----------------------------------------------------------------------------

ENOUGH = 3
"""Points that the final number of an answer needs, without anything that speaks for talk."""
_ASKS = re.compile(
    r"\b(?:(?:could|can|would) you (?:please |kindly )?"
    r"(?:provide|tell|share|clarify|let|give|specify|confirm)"
    r"|please (?:provide|tell|share|clarify|specify|give)"
    r"|let me know (?:the|what|how|which|more)"
    r"|(?:need|needs|require|requires|missing|without|lack|lacks) (?:to know|knowing|"
    r"(?:any |some |the )?(?:more |additional |further |specific |missing |necessary )?"
    r"(?:information|details?|context|data|values?))"
    r"|once (?:you|i have|i know|we have|we know)"
    r"|if you (?:can|could|provide|tell|share|give|have)"
    r"|not enough|insufficient|unclear|unknown|unspecified"
    r"|(?:don['’]t|do not|doesn['’]t|does not) "
    r"(?:have|provide|specify|know|state|mention|tell))\b",
    re.IGNORECASE,
)
_CANNOT = re.compile(
    r"\b(?:cannot|can['’]t|can not|unable to|impossible to|not possible to) "
    r"(?:be )?(?:definitively |accurately |exactly )?"
    r"(?:give|provide|determine|calculate|say|tell|know|answer|solve|find|compute)",
    re.IGNORECASE,
)
_ASSUMES = re.compile(
    r"\b(?:assum\w+|hypothetical\w*|suppose|let['’]s say|for example|for instance|depend\w*"
    r"|estimat\w+|vary|varies|could be|might be|may be|would be|possible)\b",
    re.IGNORECASE,
)
_TAIL = 400
"""Characters at the end of an answer, where a request for more weighs most."""


def talk_points(text: str) -> float:
    """Return how much speaks for talk."""
    text = text[-SEEN:]
    points = ENOUGH + 3.5 * min(len(_ASKS.findall(text)), 3)
    points += 4 * bool(_ASKS.search(text[-_TAIL:]))
    points += 4 * bool(_CANNOT.search(text))
    points += 2 * min(len(_ASSUMES.findall(text)), 4)
    points += 2.5 * min(text.count("?"), 4)
    points += 6 * text.rstrip('*_ \n"”)').endswith("?")
    return points


# --- the numbers of an answer and what speaks for them --------------------------------------------

_IS_RESULT = "result"
_FAR = 5
"""Sentences with numbers that follow."""
_BEFORE = 150
"""Characters before a number that are looked at."""
_WORDS = 40
_AFTER = 40
_SENTENCE = re.compile(r"(?<=[.!?])(?:\*\*)?[\"”’')]*\s+|\n+")
_CLOSING = "\"”’')* "
"""What may follow the mark at the end of a sentence."""
_BOXED = (
    re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}"),
    # The last line of a GSM8K solution; `####` with more text after the number is a heading.
    re.compile(
        r"(?<!#)####\s{0,3}([-$€£]{0,3}\d[\d.,/]{0,30}\s{0,3}[%\w]{0,20})\W{0,5}$",
        re.MULTILINE,
    ),
)
_BOLD = re.compile(r"\*\*([^*\n]{1,200}?)\*\*")
_BOLD_ALONE = re.compile(r"\*\*([^*\n]{1,24})\*\*")
"""Little else than a number and its unit."""
_ANSWER = re.compile(
    r"\banswer\b[^.!?\n]{0,80}?(?:\b(?:is|be|was|remains?|stays?|of)\b(?!\s+not\b)|[:=])",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"\W*(?:so|therefore|thus|hence|this means|in total|in conclusion|finally|overall"
    r"|in summary)\b",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(r"\W*(?:if|suppose)\b\D*", re.IGNORECASE)
_LIST_ITEM = re.compile(r"\s*(?:[*\-•+]|\d+\.)\s")
_RESULT = re.compile(
    r"(?:[=≈]|\bequals|\bis equal to)\s*(?:about|approximately)?\s*[-$€£(]*\s*$"
)
_OPERATOR_BEFORE = re.compile(r"[\d)}%\w]\s*[-+*/x×÷−–]\s*[($€£]*\s*$")
_OPERATOR_AFTER = re.compile(r"\s*(?:[a-zA-Z%]{1,12}\s*){0,3}[-+*/x×÷−]\s*[($€£]*\s*\d")
_WORDS_BETWEEN = 3
_ADVERBS = (
    r"(?:(?:only|about|approximately|around|exactly|now|still|just|also|indeed|at least"
    r"|a total of|an average of)\s+){0,3}[$€£]?$"
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|be|equals?|costs?|needs?|requires?|has|have|had|owns?|pays?|paid"
    r"|takes? \w{1,20}|makes?|made|earns?|earned|gets?|got|receives?|saves?|spends?|spent"
    r"|takes?|sold|eats?|ate|left with|up with|total of|remains?|lasts? for|will last)\s+"
    + _ADVERBS,
    re.IGNORECASE,
)
_DETERMINER = r"(?:the|all|her|his|their|these|those|both|each|every|its|\w{1,20}['’]s)"
_PREPOSITION = re.compile(
    r"\b(?:for|in|after|with|from|to|of|by|on|per|over|among|between|at|than|within|during"
    rf"|across)\s+(?:{_DETERMINER}\s+|(?:completing|buying|selling|only|about)\s+){{0,3}}[$€£]?$",
    re.IGNORECASE,
)
_AFTER_DETERMINER = re.compile(
    rf"\b(?:{_DETERMINER}|first|last|next|another)\s+[$€£]?$", re.IGNORECASE
)
_QUOTE = re.compile(r"[\"“”]")
_PURPOSE = re.compile(
    # "5 hours to make 60 snowballs", but not "add 5 to get 25"
    r"\d.{0,80}\bto (?!(?:get|find|obtain|reach|be|equal)\b)[a-z]{2,20} \D{0,40}$"
)
_SMALLER = (
    r"(?:seconds?|minutes?|hours?|days?|weeks?|months?|inch(?:es)?|ounces?|cents?)"
)
_LARGER = r"(?:minutes?|hours?|days?|weeks?|months?|years?|foot|feet|pounds?|dollars?)"
_AND_SMALLER = re.compile(rf"\s*{_LARGER},? (?:and )?\d+ {_SMALLER}\b", re.IGNORECASE)
_AFTER_LARGER = re.compile(rf"\d {_LARGER},? (?:and )?$", re.IGNORECASE)
_NEGATED = re.compile(r"(?:\bnot|n['’]t)\s+[$€£]?$", re.IGNORECASE)
_CHOICE = re.compile(
    r"\d\S{0,20}(?: \w{1,20})? or (?:\w{1,20} )?[$€£]?\d", re.IGNORECASE
)


def mentions(text: str) -> list[Mention]:
    """Return the numbers of an answer, in order, with what speaks for and against each."""
    plain = _plain(text[-SEEN:])
    areas = {
        "boxed": _inside(plain, *_BOXED),
        "bold": _inside(plain, _BOLD),
        "bold alone": _inside(plain, _BOLD_ALONE),
    }
    sentences = [
        (start, sentence)
        for start, sentence in _sentences(plain)
        if not sentence.rstrip(_CLOSING).endswith("?") and numbers(sentence)
    ]
    found = []
    for distance, (start, sentence) in zip(
        reversed(range(len(sentences))), sentences, strict=True
    ):
        shared = _of_sentence(sentence, distance)
        spans = list(number_spans(sentence))
        for number, first, end in spans:
            evidence = shared | _around(sentence, first, end)
            evidence.update(name for name in areas if start + first in areas[name])
            if first == spans[0][1]:
                evidence.add("first in its sentence")
            if first == spans[-1][1]:
                evidence.add("last in its sentence")
            found.append((number, evidence))
    return _with_calculation(found)


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the sentences and lines of a text with their offsets."""
    start = 0
    for end in _SENTENCE.finditer(text):
        yield start, text[start : end.start()]
        start = end.end()
    yield start, text[start:]


def _inside(text: str, *patterns: re.Pattern[str]) -> set[int]:
    """Return the offsets of all characters in the first group of a match."""
    inside: set[int] = set()
    for pattern in patterns:
        for match in pattern.finditer(text):
            inside.update(range(*match.span(1)))
    return inside


def _of_sentence(sentence: str, distance: int) -> set[str]:
    """Return what a sentence says of all its numbers.

    Args:
        distance: how many sentences with numbers follow.
    """
    evidence = set()
    if distance == 0:
        evidence.add("last sentence")
    elif distance == 1:
        evidence.add("last but one")
    elif distance >= _FAR:
        evidence.add("far from the end")
    if _CONCLUSION.match(sentence.replace("*", "")):
        evidence.add("conclusion")
    if _LIST_ITEM.match(sentence):
        evidence.add("list item")
    if _CHOICE.search(sentence) and "=" not in sentence:
        evidence.add("one of two")
    return evidence


def _around(sentence: str, first: int, end: int) -> set[str]:
    """Return what stands around a number of a sentence."""
    before = sentence[max(0, first - _BEFORE) : first].replace("*", "")
    after = sentence[end : end + _AFTER].replace("*", "")
    evidence = set()
    if named := list(_ANSWER.finditer(before)):
        between = before[named[-1].end() :]
        is_direct = len(between.split()) <= _WORDS_BETWEEN and not numbers(between)
        evidence.add("named as the answer" if is_direct else "in the answer's sentence")
    words = before[-_WORDS:]
    if _OPERATOR_AFTER.match(after) or _OPERATOR_BEFORE.search(words):
        evidence.add("operand")
    elif _RESULT.search(words) and not _SUPPOSED.fullmatch(before):
        evidence.add(_IS_RESULT)
    if _VERB.search(words):
        evidence.add("after a verb")
    elif _PREPOSITION.search(words):
        evidence.add("after a preposition")
    elif _AFTER_DETERMINER.search(words):
        evidence.add("after a determiner")
    if " to " in before and _PURPOSE.search(before):
        evidence.add("after a purpose")
    if _AND_SMALLER.match(after) or _AFTER_LARGER.search(words):
        evidence.add("part of a quantity")  # 3 hours and 20 minutes
    if _NEGATED.search(words):
        evidence.add("negated")
    if before.count("(") > before.count(")"):
        evidence.add("in brackets")
    if len(_QUOTE.findall(before)) % 2:
        evidence.add("in quotes")
    return evidence


def _with_calculation(found: Sequence[tuple[str, set[str]]]) -> list[Mention]:
    """Add what the calculation says: whether a number is its last result, or was given."""
    results = [number for number, evidence in found if _IS_RESULT in evidence]
    given: dict[str, bool] = {}
    for number, evidence in found:
        given.setdefault(number, _IS_RESULT not in evidence)
    mentions = []
    for number, evidence in found:
        if results and number == results[-1]:
            evidence.add("last result")
        if given[number]:
            evidence.add("given")
        mentions.append(Mention(number, frozenset(evidence & POINTS.keys())))
    return mentions


# --- a text without markup ------------------------------------------------------------------------

_ITEM = re.compile(
    r"^[ \t>#-]*(\d{1,2})[.)]\s+(?=\S)|(?<!\S)(\d{1,2})\)\s+(?=\S)", re.MULTILINE
)
_LARGE = {"k": 1000, "thousand": 1000, "million": 10**6, "billion": 10**9}
_IN_LARGE = re.compile(
    r"(?<![\w.,])(\d{1,9}(?:\.\d{1,6})?)(k|\s(?:thousand|million|billion))\b",
    re.IGNORECASE,
)
_HEADING = re.compile(r"\b(answer)(\*\*)?[ \t]*\n\s*", re.IGNORECASE)
_LATEX = (
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\[!,;:]"), ""),
    (re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}"), r"\1/\2"),
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"\1 / \2"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot)\b"), " × "),
    (re.compile(r"\\div\b"), " ÷ "),
    (re.compile(r"\\approx\b"), " ≈ "),
)
_NO_NUMBERS = re.compile(
    # 1st; x^2; marks that may stand inside of a number
    r"\b\d{1,2}(?:st|nd|rd|th)\b|\^\{?\d+\}?|`|\\(?![A-Za-z])"
)


def _plain(text: str) -> str:
    """A text without LaTeX, exponents, and the numbers of dates, list items and steps. Bold stays
    marked."""
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    text = _IN_LARGE.sub(_written_out, _NO_NUMBERS.sub("", text)).replace("__", "**")
    items = {_item(match) for match in _ITEM.finditer(text)}

    def drop(match: re.Match[str]) -> str:
        # "42. That is all" is not a list: an item needs the item before it, or is 1 and needs a 2.
        item = _item(match)
        return " " if item - 1 in items or (item == 1 and 2 in items) else match[0]

    text = re.sub(r"\bstep\s+\d+", " ", _ITEM.sub(drop, text), flags=re.IGNORECASE)
    text = _HEADING.sub(r"\1\2: ", text)
    # "The answer is:", and the answer is on the next line.
    return re.sub(r"([:=])[ \t]*(\*\*)?[ \t]*\n\s*", r"\1\2 ", text)


def _written_out(match: re.Match[str]) -> str:
    """`70k` to `70000`."""
    return format_number(Fraction(match[1]) * _LARGE[match[2].strip().lower()])


def _item(match: re.Match[str]) -> int:
    """The number of a list item."""
    return int(match[1] or match[2])


# --- as Lost in Conversation reads numbers --------------------------------------------------------

_UPSTREAM = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def upstream_number(text: str) -> str | None:
    """Return the last number of a text as Lost in Conversation reads it, with its errors: `$100.00`
    is 1 (all zeros and points at its end are cut off), 2.50 is not 2.5, and any number that comes
    after the answer is taken for it."""
    found = _UPSTREAM.findall(text.strip())
    if not found:
        return None
    number: str = found[-1]
    if "$" in number and number.endswith(".00"):
        number = number.rstrip(".0")
    return number.replace(",", "").replace("$", "").removesuffix(".")

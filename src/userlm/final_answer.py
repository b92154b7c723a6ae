"""The final number of an answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from userlm.text import format_number, numbers

_SENTENCE = re.compile(r"(?<=[.!?])[\"”’')]*\s+|\n+")
_ITEM = re.compile(
    r"^[ \t>#-]*(\d{1,2})[.)]\s+(?=\S)|(?<!\S)(\d{1,2})\)\s+(?=\S)", re.MULTILINE
)
_EXPLICIT = (
    re.compile(
        r"\banswer\b[^.!?]{0,60}?(?:\b(?:is|be|was)\b(?!\s+not\b)|[:=])(.*)",
        re.IGNORECASE,
    ),
    # The last line of a GSM8K solution; `####` with more text after the number is a heading.
    re.compile(
        r"(?<!#)####\s{0,3}([-$€£]{0,3}\d[\d.,/]{0,30}\s{0,3}[%\w]{0,20})\W{0,5}$"
    ),
    re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}"),
)
_OPERATION = re.compile(r"[-+*/x×÷]\s*[$€£]?\.?\d[^=,;]{0,30}$")
_NEGATED = re.compile(r"(?:\bnot|n['’]t)\s[$€£]?\d\S*", re.IGNORECASE)
_CHOICE = re.compile(
    r"\d\S{0,20}(?: \w{1,20})? or (?:\w{1,20} )?[$€£]?\d", re.IGNORECASE
)
_CONCLUSION = re.compile(r"\W*(?:so|therefore|thus|hence|this means)\b", re.IGNORECASE)
_PURPOSE = re.compile(r"(?<=\w) to (?=[a-z]{1,20} )")
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_LARGE = {"k": 1000, "thousand": 1000, "million": 10**6, "billion": 10**9}
_IN_LARGE = re.compile(
    r"(?<![\w.,])(\d{1,9}(?:\.\d{1,6})?)(k|\s(?:thousand|million|billion))\b",
    re.IGNORECASE,
)
_CLOSING = "\"”’') "
"""What may follow the mark at the end of a sentence."""


def final_number(text: str) -> str | None:
    """Return the final number of a text, in the form of `text.numbers`; `None` if there is
    none.

    An explicit answer comes first: the last of `#### X`, `\\boxed{X}` and "answer is X". Next the
    result of a closing sum ("5 x 10 = 50 miles in 5 days"). Otherwise a number of the last sentence
    that has any (`_of_sentence`). The numbers of list items and dates, and those in questions, do
    not count.
    """
    plain = _plain(text)
    sentences = [
        sentence
        for sentence in _SENTENCE.split(plain)
        if not sentence.rstrip(_CLOSING).endswith("?")
    ]
    explicit = _explicit_answer(sentences)
    if explicit is not None:
        return explicit
    last = next((sentence for sentence in reversed(sentences) if numbers(sentence)), "")
    operation, _, result = last.rpartition("=")
    is_sum = _OPERATION.search(operation[-60:])
    goes_on = re.search(r"[,;](?!\d)", result)
    if is_sum and not goes_on and numbers(result):
        return numbers(result)[0]
    in_bold = [number for bold in _BOLD.findall(text) for number in numbers(bold)]
    _, equals, after = plain.rpartition("=")
    computed = numbers(after[:60])[:1] if equals else []
    return _of_sentence(last, in_bold, computed)


def _of_sentence(
    sentence: str, in_bold: Sequence[str], computed: Sequence[str]
) -> str | None:
    """Return the number that a sentence gives as the answer; `None` if it gives two to choose from,
    or none.

    Often it also repeats numbers of the question ("so 3 trucks carry the 80 stones"). So the last
    one counts of those in bold; then, after "so" or "therefore", of those that are the result of
    the last sum, and of those before a purpose ("5 hours to make 60 snowballs"); then of all.
    """
    if _CHOICE.search(sentence) and "=" not in sentence:
        return None
    named = numbers(_NEGATED.sub(" ", sentence))
    likely_ones = [in_bold]
    if _CONCLUSION.match(sentence):
        likely_ones += [computed, numbers(_PURPOSE.split(sentence)[0])]
    for likely in likely_ones:
        found = [number for number in named if number in likely]
        if found:
            return found[-1]
    return next(reversed(named), None)


def _explicit_answer(sentences: Iterable[str]) -> str | None:
    """Return the last number that is named as the answer."""
    explicit = None
    for sentence in sentences:
        for pattern in _EXPLICIT:
            for match in pattern.finditer(sentence):
                # "the answer is 5 x 12 = 60 clips".
                terms, _, result = match[1].rpartition("=")
                explicit = next(iter([*numbers(result), *numbers(terms)]), explicit)
    return explicit


def _plain(text: str) -> str:
    """A text without markup, exponents, and the numbers of dates, list items and steps."""
    text = text.replace("{,}", ",").replace(",\\!", ",")
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    text = re.sub(r"\b\d{1,2}(?:st|nd|rd|th)\b", " ", text)
    text = _IN_LARGE.sub(_written_out, text)
    text = re.sub(r"\*\*|__|`|\\(?![A-Za-z])|\^\{?\d+\}?", "", text)
    items = {_item(match) for match in _ITEM.finditer(text)}

    def drop(match: re.Match[str]) -> str:
        # "42. That is all" is not a list: an item needs the item before it, or is 1 and needs a 2.
        item = _item(match)
        return " " if item - 1 in items or (item == 1 and 2 in items) else match[0]

    text = re.sub(r"\bstep\s+\d+", " ", _ITEM.sub(drop, text), flags=re.IGNORECASE)
    # "The answer is:", and the answer is on the next line.
    return re.sub(r"([:=])\s*\n\s*", r"\1 ", text)


def _written_out(match: re.Match[str]) -> str:
    """`70k` to `70000`."""
    return format_number(Fraction(match[1]) * _LARGE[match[2].strip().lower()])


def _item(match: re.Match[str]) -> int:
    """The number of a list item."""
    return int(match[1] or match[2])

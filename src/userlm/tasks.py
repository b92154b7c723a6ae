"""Tasks whose outcome can be checked: load them, grade an answer, find which facts were said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from userlm.json_files import take
from userlm.rows import read_rows
from userlm.simulate import Until
from userlm.text import content_words, format_number, numbers, words
from userlm.types import (
    Check,
    Conversation,
    Fact,
    InputError,
    NumberCheck,
    Task,
    TestsCheck,
    encodable,
)

NOT_GRADED = "not graded: needs a sandbox"
"""Why a `python` task has no grade: nothing here runs code that a model wrote."""

SHARE = 0.75
"""The share of a fact's content words that a user must have said: a compromise between missing what
was said and finding what was not (`bench/matcher.py` prints both for other shares)."""


def read_tasks(path: str | Path) -> list[Task]:
    """Return the tasks of a `.jsonl` file. The fields are those of `Task`; `facts` are texts or
    `{"text", "required"}` objects, and `check` is `{"number": ...}` or `{"tests": ...}`.

    Raises:
        InputError: the message names the file, line and field.
    """
    tasks: dict[str, Task] = {}
    for line in read_rows(path):
        try:
            if line.error:
                raise ValueError(line.error)
            task = _task(line.row)
            if task.id in tasks:
                raise ValueError(f"id {task.id!r} is used twice")
        except ValueError as error:
            raise InputError(f"{path}, line {line.number}: {error}") from None
        tasks[task.id] = task
    return list(tasks.values())


def _task(row: Mapping[str, Any]) -> Task:
    if "domain" in row:
        raise ValueError(
            "field 'domain' is no longer used; write the check of the task instead of domain and "
            'answer: "check": {"number": "42"} or "check": {"tests": "assert ..."}'
        )
    facts = take(row, "facts", list, default=[])
    marked = any(isinstance(fact, dict) and "required" in fact for fact in facts)
    return Task(
        encodable(take(row, "id", str)),  # as the id of its conversation
        take(row, "intent", str),
        tuple(_facts(facts)),
        _check(take(row, "check", dict)),
        take(row, "family", str, default=""),
        "file" if marked else "default",
        take(row, "meta", dict, default={}),
    )


def _facts(rows: Sequence[Any]) -> Iterator[Fact]:
    for i, fact in enumerate(rows):
        name = f"facts[{i}]"
        if isinstance(fact, str):
            yield Fact(fact)
        elif isinstance(fact, dict):
            text = take(fact, "text", str, name)
            yield Fact(text, take(fact, "required", bool, name, default=True))
        else:
            raise ValueError(f"{name} must be a text or an object with 'text'")


def _check(row: Mapping[str, Any]) -> Check:
    if "number" in row:
        answer = take(row, "number", str, "check")
        if final_number(answer) is None:
            raise ValueError(f"check.number is {answer!r}; it must contain a number")
        return NumberCheck(answer)
    return TestsCheck(take(row, "tests", str, "check"))


def task_of(conversation: Conversation, tasks: Mapping[str, Task]) -> Task | None:
    """Return the task of a conversation: by its origin, else by its id without the number of the
    repeat (`id#2`)."""
    origin = conversation.origin
    if origin and origin.task is not None:
        return tasks.get(origin.task)
    without_repeat = conversation.id.rpartition("#")[0]
    return tasks.get(without_repeat or conversation.id)


# --- which facts were said ------------------------------------------------------------------------

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


# --- is the answer right? -------------------------------------------------------------------------

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


def grade_math(text: str, answer: str) -> bool | None:
    """Return whether this assistant turn has the right number; `None` if it has none, which is no
    attempt.

    Compared as decimals: `$100.00` is `100`, and not `1`.

    Raises:
        ValueError: if the reference answer has no number.
    """
    wanted = final_number(answer)
    if wanted is None:
        raise ValueError(f"the answer {answer!r} has no number")
    given = final_number(text)
    return None if given is None else given == wanted


def grade(task: Task, conversation: Conversation) -> tuple[bool | None, str]:
    """Return whether the task was solved, and the reason; `None` if it cannot be graded.

    Any right assistant turn solves a task with a number, as in Lost in Conversation.
    """
    if not isinstance(task.check, NumberCheck):
        return None, NOT_GRADED
    answer = task.check.answer
    answers = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    grades = [grade_math(text, answer) for text in answers]
    if True in grades:
        return True, f"right in answer {grades.index(True) + 1}"
    return False, "wrong" if False in grades else "no attempt"


def solved(task: Task) -> Until:
    """Return the function that stops a simulation with `"solved"` when the assistant gives the
    right answer."""

    def until(conversation: Conversation) -> str | None:
        if (
            not isinstance(task.check, NumberCheck)
            or not conversation.turns
            or conversation.next_role == "assistant"
        ):
            return None
        right = grade_math(conversation.turns[-1].text, task.check.answer)
        return "solved" if right else None

    return until


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

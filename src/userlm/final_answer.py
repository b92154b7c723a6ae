"""The answer in what an assistant says: its final number, its last complete function, its JSON."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from userlm.json_files import loads
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


def attempted_number(text: str) -> str | None:
    """Return the final number of a text that gives an answer; `None` of talk."""
    return final_number(text)


def upstream_number(text: str) -> str | None:
    """Return the last number of a text as Lost in Conversation reads it."""
    found = _UPSTREAM.findall(text)
    return found[-1] if found else None


_UPSTREAM = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


# --- code -----------------------------------------------------------------------------------------

_BLOCK = re.compile(
    r"^[ \t]*(```+|~~~+)[^\n]*\n(.*?)^[ \t]*\1", re.MULTILINE | re.DOTALL
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_DEFINITIONS = (*_FUNCTIONS, *_ASSIGNMENTS, ast.ClassDef, ast.Import, ast.ImportFrom)


def function_code(text: str, entry_point: str | None = None) -> str | None:
    """Return the code of the last block that has a complete function; `None` if no block has one.

    A text without blocks may be code itself. Only definitions are left of it: examples of use and
    questions for input would run in the tests. A user may never say the name that the tests call,
    so the last function is also called `entry_point`, if nothing else is.
    """
    blocks = [match[2] for match in _BLOCK.finditer(text)] or [text]
    for block in map(textwrap.dedent, reversed(blocks)):
        found = _definitions(block)
        functions = [node for node in found if isinstance(node, _FUNCTIONS)]
        complete = [node.name for node in functions if _is_complete(node)]
        if complete:
            code = _source(block, found)
            if entry_point and entry_point not in {node.name for node in functions}:
                code += f"\n\n{entry_point} = {complete[-1]}"
            return code + "\n"
    return None


def _definitions(block: str) -> list[ast.stmt]:
    """Return what a block defines; nothing if it is no Python."""
    try:
        body = ast.parse(block).body
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return [node for node in body if _is_definition(node)]


def _is_definition(node: ast.stmt) -> bool:
    if not isinstance(node, _ASSIGNMENTS):
        return isinstance(node, _DEFINITIONS)
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return "input" not in names


def _is_complete(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function does anything: a body of a docstring, `pass` or `...` is a sketch."""
    for line in node.body:
        is_constant = isinstance(line, ast.Expr) and isinstance(
            line.value, ast.Constant
        )
        if not is_constant and not isinstance(line, ast.Pass | ast.Raise):
            return True
    return False


def _source(block: str, nodes: Iterable[ast.stmt]) -> str:
    """Return the lines of a block that some statements stand on."""
    lines = block.splitlines()
    kept: set[int] = set()
    for node in nodes:
        decorators = getattr(node, "decorator_list", [])
        first = min(each.lineno for each in (node, *decorators))
        kept.update(range(first - 1, node.end_lineno or first))
    return "\n".join(lines[at] for at in sorted(kept))


# --- JSON -----------------------------------------------------------------------------------------


def json_values(text: str) -> Iterator[Any]:
    """Yield the JSON values that a text is, or has in blocks."""
    for source in (text, *(match[2] for match in _BLOCK.finditer(text))):
        try:
            yield loads(source.encode())
        except (ValueError, RecursionError):
            continue

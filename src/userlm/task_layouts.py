"""Tasks of public sets, told by the fields of their rows.

What such a set says about grading becomes a `check`; a set that grades by other means (a database,
calls of functions, a text to compare with) gives tasks without one.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from userlm.json_files import take
from userlm.text import INTENT_PREFIX, has_words, words
from userlm.types import Check, Fact, NumberCheck, Task, TestsCheck

Row = Mapping[str, Any]

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True, slots=True)
class Layout:
    """One set.

    Attributes:
        fields: a row that has all of them is of this set, if it is of none before it.
        task: makes a task of a row and its number in the file, from 0.
    """

    name: str
    fields: frozenset[str]
    task: Callable[[Row, int], Task]


def _sharded(row: Row, number: int) -> Task:
    """A sharded instruction of Lost in Conversation: each shard is a fact. Their order is that of
    importance, and none is marked as not required."""
    kind = take(row, "task", str, default="math")  # GSM8K in shards has no such field
    texts = [
        take(shard, "shard", str, f"shards[{i}]")
        for i, shard in enumerate(take(row, "shards", list))
        if "shard" in shard
    ]
    texts = texts or take(row, "shards_exact", list, default=[])
    texts = list(filter(words, texts))
    if not texts:
        raise ValueError("none of its shards has words")
    family = "python" if kind == "code" else kind
    whole = " ".join(map(as_sentence, texts))
    goal = f"get this done: {whole}"
    check: Check | None = None
    if kind == "math":
        goal = f"solve this: {take(row, 'question', str)}"
        check = _number(row)
    elif kind == "code" and (name := _function_name(row)):
        goal = f"get a Python function named {name}: {whole}"
        check = _sharded_tests(row, name)
    id = take(row, "task_id", str, default=None) or take(row, "id", str)
    return _task(id, goal, texts, check, family)


def _function_name(row: Row) -> str | None:
    metadata = take(row, "metadata", dict, default={})
    name = row.get("entry_point") or metadata.get("func_name")
    return name if isinstance(name, str) else None


def _sharded_tests(row: Row, name: str) -> Check | None:
    """The tests of a code task: those of HumanEval, or calls with their results. Hidden tests are
    pickled, so that reading them could run anything: such a task has no check."""
    prompt = take(row, "prompt", str, default="")
    if "test" in row:
        return TestsCheck(take(row, "test", str), name, prompt)
    if row.get("private_test_cases"):
        return None
    try:
        cases = json.loads(take(row, "public_test_cases", str))
        lines = [_assert(case) for case in cases]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    tests = "\n    ".join(["def check(candidate):", *lines])
    return TestsCheck(tests, name, prompt) if lines else None


def _assert(case: Mapping[str, str]) -> str:
    """A line of a test. The input has an argument of the call on each line, as JSON."""
    values = map(json.loads, case["input"].rstrip("\n").split("\n"))
    arguments = ", ".join(map(repr, values))
    return f"assert candidate({arguments}) == {json.loads(case['output'])!r}"


def _gsm8k(row: Row, number: int) -> Task:
    """A question of GSM8K: each of its sentences is a fact."""
    question = take(row, "question", str)
    facts = [part for part in _SENTENCE.split(question.strip()) if words(part)]
    id = take(row, "id", str, default=f"GSM8K/{number}")
    return _task(id, f"solve this: {question}", facts, _number(row), "math")


def _number(row: Row) -> NumberCheck:
    """The answer of GSM8K may be the whole solution, with the number on the last line."""
    _, _, answer = take(row, "answer", str).rpartition("####")
    return NumberCheck(answer.strip())


def _humaneval(row: Row, number: int) -> Task:
    prompt = take(row, "prompt", str)
    name = take(row, "entry_point", str)
    check = TestsCheck(take(row, "test", str), name, prompt)
    goal = f"get this Python function completed:\n{prompt.strip()}"
    solution = prompt + take(row, "canonical_solution", str, default="")
    facts = _docstring_facts(prompt, name)
    return _task(take(row, "task_id", str), goal, facts, check, "python", solution)


_EXAMPLE = re.compile(r"^[ \t]*>>>.*(?:\n(?![ \t]*(?:>>>|$)).*)*", re.MULTILINE)
"""A call in a docstring, and what it returns."""


def _docstring_facts(prompt: str, name: str) -> list[str]:
    """The sentences and the examples of the docstring of a function."""
    try:
        defined = ast.walk(ast.parse(prompt))
    except SyntaxError:
        return []
    texts = [
        ast.get_docstring(one) or ""
        for one in defined
        if isinstance(one, ast.FunctionDef) and one.name == name
    ]
    text = "\n".join(texts)
    # Lines are wrapped within sentences.
    parts = re.split(r"(?<=[.!?])\s+|\n\s*\n", _EXAMPLE.sub("\n\n", text))
    parts += _EXAMPLE.findall(text)
    return [" ".join(part.split()) for part in parts if words(part)]


def _mbpp(row: Row, number: int) -> Task:
    """A problem of MBPP, also of its sanitized part, whose fields have other names."""
    text = take(row, "text" if "text" in row else "prompt", str)
    code = take(row, "code", str)
    tests = list(map(str, take(row, "test_list", list)))
    before = list(map(str, take(row, "test_imports", list, default=[])))
    before.append(take(row, "test_setup_code", str, default=""))
    check = TestsCheck("\n".join([*filter(has_words, before), *tests]))
    goal = f"get a Python function: {text}"
    if name := _tested(tests, code):
        goal = f"get a Python function named {name}: {text}"
    return _task(f"MBPP/{row.get('task_id', number)}", goal, (), check, "python", code)


def _tested(tests: Sequence[str], code: str) -> str | None:
    """The first function of the code that the tests call."""
    defined = set(re.findall(r"^def\s+(\w+)", code, re.MULTILINE))
    called = re.findall(r"(\w+)\s*\(", "\n".join(tests))
    return next((name for name in called if name in defined), None)


def _tau2(row: Row, number: int) -> Task:
    """A scenario of tau2: an intent. Its success is read from a database that is not here."""
    scenario = take(row, "user_scenario", dict)
    told = scenario.get("instructions")
    parts = [told]
    known = ""
    if isinstance(told, dict):
        known = told.get("known_info") or ""
        names = ("reason_for_call", "known_info", "unknown_info", "task_instructions")
        parts = [told.get(name) for name in names]
    texts = [part.strip() for part in (*parts, scenario.get("persona")) if part]
    family = take(row, "domain", str, default="")
    if not family and isinstance(told, dict):
        family = str(told.get("domain") or "")
    facts = [part for part in _SENTENCE.split(known) if words(part)]
    goal = "get help from customer service. " + "\n".join(texts)
    return _task(str(row.get("id", number)), goal, facts, None, family)


def _task(
    id: str,
    goal: str,
    facts: Sequence[str],
    check: Check | None,
    family: str,
    solution: str = "",
) -> Task:
    meta = {"solution": solution} if solution else {}
    return Task(
        id,
        INTENT_PREFIX + goal,
        tuple(map(Fact, facts)),
        check,
        family,
        meta=meta,
    )


def as_sentence(text: str) -> str:
    """The text with a mark at its end."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


LAYOUTS = (
    Layout("Lost in Conversation", frozenset(("task_id", "task", "shards")), _sharded),
    Layout("GSM8K in shards", frozenset(("question", "answer", "shards")), _sharded),
    Layout("HumanEval", frozenset(("prompt", "test", "entry_point")), _humaneval),
    Layout("MBPP", frozenset(("code", "test_list")), _mbpp),
    Layout("GSM8K", frozenset(("question", "answer")), _gsm8k),
    Layout("tau2", frozenset(("user_scenario",)), _tau2),
)


def layout_of(row: Row) -> Layout | None:
    """Return the set that a row is of; `None` if there is none."""
    return next((one for one in LAYOUTS if one.fields <= row.keys()), None)

"""Tasks whose outcome can be checked: read them from files, and find that of a conversation.

A file has our own rows (JSON lines, or `[[task]]` tables of TOML) or those of a public set
(`task_layouts`). docs/test-my-chatbot.md describes ours.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import regex

from userlm import assets
from userlm.data import files
from userlm.data.files import LogFile
from userlm.final_answer import final_number
from userlm.json_files import dump, loads, take
from userlm.rows import read_rows
from userlm.task_layouts import LAYOUTS, as_sentence, layout_of
from userlm.text import INTENT_PREFIX, has_words, number_spans, words
from userlm.types import (
    Check,
    Contains,
    Conversation,
    Fact,
    FunctionCheck,
    InputError,
    JsonPath,
    Matches,
    NumberCheck,
    Origin,
    RubricCheck,
    Rule,
    RulesCheck,
    Task,
    TestsCheck,
    ToolCalled,
    encodable,
)

OWN_FILE = "tasks.jsonl"
"""The file of tasks in the folder of a run of `userlm tasks facts`."""

SAMPLE = "sample"
"""The name of the sample tasks of this package, where no file or folder is called so."""

Marked = Literal["file", "judge", "default"]
FIELDS = ("id", "intent", "goal", "facts", "check", "family", "marked", "meta")
"""The fields of a row of ours."""

CHECKS: Mapping[str, Sequence[str]] = {
    "number": (),
    "tests": ("entry_point", "prompt"),
    "rubric": (),
    "py": (),
}
"""The kinds of checks, by the field that names one, and the fields that it may have beside it."""
RULES: Mapping[str, Sequence[str]] = {
    "contains": (),
    "matches": (),
    "json": ("equals",),
    "tool": ("arguments",),
}
"""The same for rules, of which a check may have several."""


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A row of a file of tasks.

    Attributes:
        where: the file and the place in it, for messages.
        task: `None` if the row is none.
        error: why not.
        is_own: whether it is a row of ours, and not one of a public set.
    """

    where: str
    task: Task | None
    error: str = ""
    is_own: bool = True


def find_tasks(place: str | Path) -> list[LogFile]:
    """Return the files of tasks in a place: one of TOML, the file of a run of `userlm tasks facts`,
    what `data.files.find` finds there, or that of the sample tasks.

    Raises:
        InputError: if there is none.
    """
    path = Path(place)
    if str(place) == SAMPLE and not path.exists():
        return [LogFile(str(assets.sample_tasks()), assets.sample_tasks())]
    if path.suffix == ".toml" and path.is_file():
        return [LogFile(str(path), path)]
    if (path / OWN_FILE).is_file():
        return [LogFile(str(path / OWN_FILE), path / OWN_FILE)]
    return files.find([place])


def read_tasks(place: str | Path) -> list[Task]:
    """Return the tasks of a place; see `find_tasks`.

    Raises:
        InputError: the message names the file, the line or the number of the task, and the field.
    """
    tasks = []
    for found in scan(place):
        if found.task is None:
            raise InputError(f"{found.where}: {found.error}")
        tasks.append(found.task)
    return tasks


def scan(place: str | Path) -> Iterator[TaskRow]:
    """Yield each row of the files of a place, with its task or its error.

    Raises:
        InputError: if a file cannot be read.
    """
    places: dict[str, str] = {}
    copies: Counter[str] = Counter()
    with ExitStack() as open_files:
        for file in find_tasks(place):
            scratch = Path(open_files.enter_context(TemporaryDirectory()))
            path = open_files.enter_context(files.local(file, scratch))
            for found in _rows(path, file.name):
                if not file.path:
                    found = _without_code(found)
                task = found.task
                if task and task.id in places:
                    if found.is_own:
                        error = (
                            f"id {task.id!r} is used twice; {places[task.id]} has it"
                        )
                        yield replace(found, task=None, error=error)
                        continue
                    # A public set may hold a question several times, split in other ways.
                    copies[task.id] += 1
                    task = replace(task, id=f"{task.id}/{copies[task.id] + 1}")
                    found = replace(found, task=task)
                if task:
                    places[task.id] = found.where
                yield found


def _without_code(found: TaskRow) -> TaskRow:
    """Return a row of a remote file, with an error if its check is a function: a file of others
    could name any that is on this machine."""
    if not found.task or not isinstance(found.task.check, FunctionCheck):
        return found
    error = (
        "check.py: no function is called for a remote file of tasks; download it, and read what it "
        "calls"
    )
    return replace(found, task=None, error=error)


def _rows(path: Path, name: str) -> Iterator[TaskRow]:
    if path.suffix == ".toml":
        for number, row in enumerate(_toml_rows(path), 1):
            yield _found(f"{name}, task {number} ({row.get('id')!r})", row, number - 1)
        return
    for line in read_rows(path):
        where = f"{name}, line {line.number}"
        if line.error:
            yield TaskRow(where, None, f"the line {line.error}")
        else:
            yield _found(where, line.row, line.number - 1)


def _toml_rows(path: Path) -> list[dict[str, Any]]:
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    rows = parsed.pop("task", None)
    has_tasks = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if parsed or not has_tasks:
        wrong = f"{sorted(parsed)[0]!r} stands" if parsed else "no task stands"
        raise InputError(
            f"{path}: {wrong} at the top; each task is a table that begins with [[task]]"
        )
    return list(rows)


def _found(where: str, row: Any, number: int) -> TaskRow:
    """Return the task of a row, of ours or of a public set, or its error.

    Args:
        number: that of the row in its file, from 0.
    """
    if not isinstance(row, dict):
        return TaskRow(
            where, None, "a task is an object with id, goal, facts and check"
        )
    is_own = "intent" in row or "goal" in row
    layout = None if is_own else layout_of(row)
    try:
        task = layout.task(row, number) if layout else _own_task(row)
        return TaskRow(where, _checked(task), is_own=layout is None)
    except ValueError as error:
        return TaskRow(where, None, str(error))


# --- a row ----------------------------------------------------------------------------------------


def _checked(task: Task) -> Task:
    """Return the task; raise `ValueError` if it cannot be used."""
    if not has_words(task.id):
        raise ValueError("field 'id' has no words")
    if task.check:
        _validate(task.check)
    return replace(task, id=encodable(task.id))  # as the id of its conversation


def _own_task(row: Mapping[str, Any]) -> Task:
    if "domain" in row:
        raise ValueError(
            "field 'domain' is no longer used; write the check of the task instead of domain and "
            'answer: "check": {"number": "42"} or "check": {"tests": "assert ..."}'
        )
    if not row.keys() & {"id", "intent", "goal"}:
        sets = ", ".join(layout.name for layout in LAYOUTS)
        seen = ", ".join(sorted(map(str, row))) or "none"
        raise ValueError(
            f"the fields are {seen}; a task has id, intent or goal, facts and check "
            f"(docs/test-my-chatbot.md), or is a row of {sets}"
        )
    _check_names(row, FIELDS, "field")
    facts = take(row, "facts", list, default=[])
    has_required = any(isinstance(fact, dict) and "required" in fact for fact in facts)
    marked = take(row, "marked", str, default="file" if has_required else "default")
    if marked not in get_args(Marked):
        known = _or(get_args(Marked))
        raise ValueError(f"field 'marked' is {marked!r}; it must be {known}")
    read = tuple(_facts(facts))
    check = None if row.get("check") is None else _check(row["check"])
    return Task(
        take(row, "id", str),
        _intent(row, read),
        read,
        check,
        take(row, "family", str, default=""),
        marked,
        take(row, "meta", dict, default={}),
    )


def _check_names(row: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Raise `ValueError` for a field that is not known."""
    for name in row:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {_or(known)}"
            raise ValueError(f"unknown {what} {name!r}; {hint}")


def _facts(rows: Sequence[Any]) -> Iterator[Fact]:
    for i, fact in enumerate(rows):
        name = f"facts[{i}]"
        if isinstance(fact, str):
            fact = {"text": fact}
        if not isinstance(fact, dict):
            raise ValueError(f"{name} must be a text, or an object with 'text'")
        _check_names(fact, ("text", "required"), f"field of {name}")
        text = take(fact, "text", str, name)
        if not words(text):
            raise ValueError(f"{name} has no words")
        yield Fact(text, take(fact, "required", bool, name, default=True))


def _intent(row: Mapping[str, Any], facts: Sequence[Fact]) -> str:
    """The intent of a row in the form that user models know: `intent` as it is, or `goal` and after
    it the facts, which the user cannot tell unless they are told."""
    given = [name for name in ("intent", "goal") if name in row]
    if len(given) != 1:
        raise ValueError(
            "give 'intent' (all that the user knows) or 'goal', one of them"
        )
    text: str = take(row, given[0], str).strip()
    if not has_words(text):
        raise ValueError(f"field {given[0]!r} has no words")
    if "goal" in row and text.lower().startswith("you are a user"):
        raise ValueError(
            "field 'goal' is only what the user wants, such as 'cancel an order', since it is put "
            f"after {INTENT_PREFIX.strip()!r}; a whole text is an 'intent'"
        )
    if not text.lower().startswith("you are "):
        text = INTENT_PREFIX + text
    if "goal" in row and facts:
        known = [as_sentence(fact.text) for fact in facts]
        text = " ".join([as_sentence(text), *known])
    return text


# --- checks ---------------------------------------------------------------------------------------


def _check(row: Any) -> Check:
    """Return the check in the field `check`: an object with one of `CHECKS`, a rule, or a list of
    rules."""
    if isinstance(row, list):
        if not row:
            raise ValueError("field 'check' is an empty list; give at least one rule")
        rules = (_rule(rule, f"check[{i}]") for i, rule in enumerate(row))
        return RulesCheck(tuple(rules))
    kind = _kind(row, {**CHECKS, **RULES}, "check")
    match kind:
        case "number":
            given = row["number"]
            if isinstance(given, int | float) and not isinstance(given, bool):
                # a number of TOML or JSON may be written as 1e6
                return NumberCheck(format(Decimal(str(given)), "f"))
            return NumberCheck(_one_number(take(row, "number", str, "check")))
        case "tests":
            return TestsCheck(
                take(row, "tests", str, "check"),
                take(row, "entry_point", str, "check", default=None),
                take(row, "prompt", str, "check", default=""),
            )
        case "rubric":
            return RubricCheck(take(row, "rubric", str, "check"))
        case "py":
            return FunctionCheck(take(row, "py", str, "check"))
        case _:
            return RulesCheck((_rule(row, "check"),))


def _one_number(text: str) -> str:
    """Return a text with one number; raise `ValueError` for another, of which a part would count,
    such as `1e6`, `1,5` or `10 to 12`."""
    rest = text
    found = list(number_spans(text))
    for _, first, end in found:
        rest = text[:first] + text[end:]
    if len(found) != 1 or any(map(str.isdigit, rest)):
        raise ValueError(
            f"check.number is {text!r}; it must contain one number, such as 1200, 2.5 or 1/3"
        )
    return text


def _json_value(value: Any, where: str) -> Any:
    """Return the value; raise `ValueError` if it cannot be in JSON, so that no answer has it."""
    if loads(dump(value)) != value:
        raise ValueError(
            f"field {where!r} is no value of JSON; put a date or time in quotes"
        )
    return value


def _rule(row: Any, where: str) -> Rule:
    match _kind(row, RULES, where):
        case "contains":
            return Contains(take(row, "contains", str, where))
        case "matches":
            return Matches(take(row, "matches", str, where))
        case "json":
            if "equals" not in row:
                raise ValueError(f"field '{where}.equals' is missing")
            equals = _json_value(row["equals"], f"{where}.equals")
            return JsonPath(take(row, "json", str, where), equals)
        case _:
            arguments = take(row, "arguments", dict, where, default=None)
            arguments = _json_value(arguments, f"{where}.arguments")
            return ToolCalled(take(row, "tool", str, where), arguments)


def _kind(row: Any, kinds: Mapping[str, Sequence[str]], where: str) -> str:
    """Return the field that says which kind of check or rule an object is."""
    named = [name for name in kinds if isinstance(row, dict) and name in row]
    if len(named) != 1:
        has = ""
        if isinstance(row, dict):
            _check_names({} if named else row, kinds, f"field of {where}")
            has = f"; it has {' and '.join(named) or 'nothing'}"
        raise ValueError(
            f"field {where!r} must be an object with one of {_or(kinds)}{has}"
        )
    [kind] = named
    _check_names(row, (kind, *kinds[kind]), f"field of {where}")
    return kind


def _validate(check: Check) -> None:
    """Raise `ValueError` for a check that no answer could pass, or that cannot be made."""
    match check:
        case NumberCheck(answer):
            if final_number(answer) is None:
                raise ValueError(
                    f"check.number is {answer!r}; it must contain a number"
                )
        case TestsCheck():
            _validate_tests(check)
        case RubricCheck(rubric):
            if not has_words(rubric):
                raise ValueError("check.rubric has no words")
        case FunctionCheck(name):
            if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
                raise ValueError(f"check.py is {name!r}; write MODULE:NAME")
        case RulesCheck(rules):
            for rule in rules:
                _validate_rule(rule)


def _validate_rule(rule: Rule) -> None:
    match rule:
        case Contains(text):
            if not has_words(text):
                raise ValueError(
                    "contains: the text has no words, so any answer has it"
                )
        case JsonPath("") | ToolCalled(""):
            raise ValueError("'json' is a path, and 'tool' a name; it is empty")
        case Matches(pattern):
            try:
                regex.compile(pattern)
            except (regex.error, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"matches: {pattern!r} is no regular expression: {error}"
                ) from None


def _validate_tests(check: TestsCheck) -> None:
    try:
        parsed = ast.parse(check.tests)
    except SyntaxError as error:
        raise ValueError(
            f"check.tests: line {error.lineno} is not Python: {error.msg}"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"check.tests cannot be read as Python: {error}") from None
    functions = [one.name for one in parsed.body if isinstance(one, ast.FunctionDef)]
    for name, count in Counter(functions).items():
        if count > 1:
            raise ValueError(f"check.tests has {count} functions {name!r}; keep one")
    if problem := never_run(parsed):
        raise ValueError(f"check.tests: {problem}")
    if check.entry_point and "check" not in functions:
        raise ValueError(
            "check.entry_point is given, so check.tests needs a function check(candidate)"
        )
    if not check.entry_point and not any(
        isinstance(node, ast.Assert) for node in ast.walk(parsed)
    ):
        raise ValueError("check.tests has no assert, so any code would pass")


def never_run(tests: ast.Module) -> str:
    """Return what is wrong with a test that is written as other test runners have it, so that it
    would not be run here and no answer could fail it; empty if there is none."""
    remedy = "so it would never be run; write functions test_...() without parameters"
    for one in tests.body:
        match one:
            case ast.ClassDef(name, body=body) if any(map(_is_test, body)):
                return f"{name} is a class, {remedy}"
            case ast.AsyncFunctionDef(name) if _is_test(one):
                return f"{name} is asynchronous, {remedy}"
            case ast.FunctionDef(name) if _is_test(one) and any(map(_yields, one.body)):
                return f"{name} yields, {remedy}"
            case ast.FunctionDef(name) if name.startswith("test") and _needs(one):
                # With parameters it may be a helper of other tests.
                used = (each for each in ast.walk(tests) if isinstance(each, ast.Name))
                if not any(each.id == name for each in used):
                    return f"{name} has parameters and is not called, {remedy}"
    return ""


def _is_test(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return node.name.startswith("test") or node.name == "check"


def _needs(function: ast.FunctionDef) -> bool:
    """Whether a function cannot be called without arguments."""
    its = function.args
    return (
        len(its.posonlyargs + its.args) > len(its.defaults) or None in its.kw_defaults
    )


def _yields(node: ast.AST) -> bool:
    """Whether code yields, apart from functions in it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return False
    is_yield = isinstance(node, ast.Yield | ast.YieldFrom)
    return is_yield or any(map(_yields, ast.iter_child_nodes(node)))


def _or(names: Collection[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


# --- records --------------------------------------------------------------------------------------


def to_record(task: Task) -> dict[str, Any]:
    """Return the task as a row of ours; empty fields are left out."""
    facts = [{"text": fact.text, "required": fact.required} for fact in task.facts]
    optional = {
        "family": task.family,
        "facts": facts,
        "marked": task.marked if facts else "",
        "check": _check_record(task.check) if task.check else None,
        "meta": dict(task.meta),
    }
    filled = {name: value for name, value in optional.items() if value}
    return {"id": task.id, "intent": task.intent, **filled}


def _check_record(check: Check) -> dict[str, Any] | list[dict[str, Any]]:
    match check:
        case NumberCheck(answer):
            return {"number": answer}
        case TestsCheck(tests, entry_point, prompt):
            beside = {"entry_point": entry_point, "prompt": prompt}
            filled = {name: text for name, text in beside.items() if text}
            return {"tests": tests, **filled}
        case RubricCheck(rubric):
            return {"rubric": rubric}
        case FunctionCheck(name):
            return {"py": name}
        case RulesCheck(rules):
            return list(map(_rule_record, rules))


def shown_check(check: Check) -> str:
    """Return in words what makes an answer right."""
    match check:
        case NumberCheck(answer):
            return f"its final number is {final_number(answer)}"
        case TestsCheck(tests):
            return f"its code passes these tests:\n{tests.strip()}"
        case RubricCheck(rubric):
            return rubric
        case FunctionCheck(name):
            return f"the function {name} says so"
        case RulesCheck(rules):
            return " and ".join(map(_shown_rule, rules))


def _shown_rule(rule: Rule) -> str:
    match rule:
        case Contains(text):
            return f"it contains {text!r}"
        case Matches(pattern):
            return f"it matches {pattern}"
        case JsonPath(path, equals):
            return f"its JSON has {equals!r} at {path}"
        case ToolCalled(name, None):
            return f"it calls {name}"
        case ToolCalled(name, arguments):
            return f"it calls {name} with {dict(arguments or {})!r}"


def _rule_record(rule: Rule) -> dict[str, Any]:
    match rule:
        case Contains(text):
            return {"contains": text}
        case Matches(pattern):
            return {"matches": pattern}
        case JsonPath(path, equals):
            return {"json": path, "equals": equals}
        case ToolCalled(name, None):
            return {"tool": name}
        case ToolCalled(name, arguments):
            return {"tool": name, "arguments": arguments}


# --- conversations --------------------------------------------------------------------------------


def by_id(tasks: Iterable[Task]) -> Mapping[str, Task]:
    """Return the tasks by their ids."""
    return {task.id: task for task in tasks}


def from_tasks(tasks: Iterable[Task], repeats: int) -> Iterator[Conversation]:
    """Yield the conversations about tasks, before the first turn."""
    for task in tasks:
        for repeat in range(repeats):
            origin = Origin(repeat=repeat, task=task.id)
            yield Conversation(f"{task.id}#{repeat}", intent=task.intent, origin=origin)


def task_of(conversation: Conversation, tasks: Mapping[str, Task]) -> Task | None:
    """Return the task of a conversation: by its origin, else by its id, also without the number of
    the repeat (`id#2`)."""
    origin = conversation.origin
    if origin and origin.task is not None:
        return tasks.get(origin.task)
    without_repeat = conversation.id.rpartition("#")[0]
    return tasks.get(conversation.id) or tasks.get(without_repeat)

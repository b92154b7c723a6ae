"""Grading: whether an answer of an assistant is right, and whether it solved a task.

The verdict on an answer is `RIGHT`, `WRONG` or `NO ATTEMPT` (talk, such as a question), or has no
label and says why the answer could not be graded. The `check` of a task decides.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import regex

from userlm.answer_blocks import function_code, json_values
from userlm.data.intents import transcript
from userlm.final_answer import attempted_number, final_number, upstream_number
from userlm.imports import RAISED, describe_error, find_object
from userlm.json_files import at_path
from userlm.judges import GradingJudge
from userlm.simulate import Until, never
from userlm.tasks import by_id, task_of
from userlm.text import named_type
from userlm.types import (
    NO_ATTEMPT,
    RIGHT,
    WRONG,
    Check,
    Contains,
    Conversation,
    FunctionCheck,
    Grade,
    InputError,
    JsonPath,
    Matches,
    NumberCheck,
    RubricCheck,
    Rule,
    RulesCheck,
    Task,
    TestsCheck,
    ToolCalled,
    Turn,
    Verdict,
)

REGEX_SECONDS = 10.0
"""Of computing, for one expression in one answer."""
LONGEST_REASON = 10_000
"""Characters that are kept of what a function gives as its reason, or raises."""
NO_CHECK = "not graded: the task has no check"
NO_JUDGE = "not graded: needs a judge"
NO_SANDBOX = "not graded: needs a sandbox"


class Sandbox(Protocol):
    """Runs code that a model wrote. Must be thread-safe."""

    def run(self, check: TestsCheck, code: str, /) -> Verdict:
        """Return `RIGHT` or `WRONG`, or no label and why the code could not be run."""
        ...


@dataclass(frozen=True, slots=True)
class Grader:
    """Grades answers. It is thread-safe if the judge and the sandbox are.

    Attributes:
        judge: grades by rubrics, and tells an answer from talk where a number is wanted; without
            it a rule does that, and there is no grade by a rubric.
        sandbox: runs the code of answers; without it there is no grade by tests.
        upstream: compare numbers as Lost in Conversation does, with its errors
            (`final_answer.upstream_number`).
    """

    judge: GradingJudge | None = None
    sandbox: Sandbox | None = None
    upstream: bool = False

    def answer(
        self, check: Check, text: str | Turn, conversation: Conversation
    ) -> Verdict:
        """Return the verdict on an answer.

        Args:
            text: the answer, or its turn, whose `meta` may have tool calls.
            conversation: everything before the answer, and the answer.

        Raises:
            InputError: if the function of a check cannot be imported or called.
            ValueError: if the reference answer of a check has no number.
        """
        turn = Turn("assistant", text) if isinstance(text, str) else text
        match check:
            case NumberCheck():
                return self._number(check, turn.text, conversation)
            case TestsCheck():
                return self._tests(check, turn.text)
            case RulesCheck():
                return _rules(check.rules, turn)
            case RubricCheck():
                return self._rubric(check, turn.text, conversation)
            case FunctionCheck():
                return _function(check, turn.text, conversation)

    def grade(self, task: Task, conversation: Conversation) -> Grade:
        """Return whether an answer of the conversation solved the task.

        The first right one counts, as in Lost in Conversation. If none is right and one of them
        could not be graded, there is no grade. A greeting is no answer.
        """
        if task.check is None:
            return Grade(None, NO_CHECK)
        found = Grade(False, NO_ATTEMPT.lower())
        for number, at in _answers(conversation):
            up_to_it = replace(conversation, turns=conversation.turns[: at + 1])
            verdict = self.answer(task.check, conversation.turns[at], up_to_it)
            if verdict.label == RIGHT:
                return Grade(True, verdict.reason, number)
            if verdict.label is None:
                found = Grade(None, verdict.reason, number)
            elif verdict.label == WRONG and found.solved is not None:
                found = Grade(False, verdict.reason, number)
        return found

    def until(self, task: Task) -> Until:
        """Return the function that stops a simulation with `"solved"` as soon as the assistant's
        answer is right."""

        def until(conversation: Conversation) -> str | None:
            answers = list(_answers(conversation))
            if task.check is None or not answers or conversation.next_role != "user":
                return None
            verdict = self.answer(task.check, conversation.turns[-1], conversation)
            return "solved" if verdict.label == RIGHT else None

        return until

    def _number(
        self, check: NumberCheck, text: str, conversation: Conversation
    ) -> Verdict:
        wanted = final_number(check.answer)
        if wanted is None:
            raise ValueError(f"the answer {check.answer!r} has no number")
        given = final_number(text)
        if given is not None and self.judge:
            verdict = self._judged("attempt", text, conversation)
            if verdict.label is None:
                return verdict
            if verdict.label != "ATTEMPT":
                return Verdict(NO_ATTEMPT, verdict.reason, verdict.raw)
        else:
            given = attempted_number(text)
        if given is None:
            return Verdict(NO_ATTEMPT, "no answer with a number")
        if self.upstream:
            given = upstream_number(text) or "nothing"
            wanted = upstream_number(check.answer) or wanted
        if given == wanted:
            return Verdict(RIGHT, given)
        return Verdict(WRONG, f"{given}, not {wanted}")

    def _tests(self, check: TestsCheck, text: str) -> Verdict:
        code = function_code(text, check.entry_point)
        if code is None:
            return Verdict(NO_ATTEMPT, "no complete function")
        if self.sandbox is None:
            return Verdict(None, NO_SANDBOX)
        return self.sandbox.run(check, code)

    def _rubric(
        self, check: RubricCheck, text: str, conversation: Conversation
    ) -> Verdict:
        if self.judge is None:
            return Verdict(None, NO_JUDGE)
        return self._judged("rubric", text, conversation, rubric=check.rubric)

    def _judged(
        self, prompt: str, text: str, conversation: Conversation, **shown: str
    ) -> Verdict:
        assert self.judge
        before = replace(conversation, turns=conversation.turns[:-1], ended=False)
        return self.judge.ask(
            prompt, {**shown, "talk": transcript(before), "given": text}
        )


def solved_until(grader: Grader, tasks: Iterable[Task]) -> Until:
    """Return the function that stops a conversation about one of the tasks when it is solved."""
    known = by_id(tasks)

    def until(conversation: Conversation) -> str | None:
        task = task_of(conversation, known)
        return grader.until(task)(conversation) if task else never(conversation)

    return until


def _answers(conversation: Conversation) -> Iterator[tuple[int, int]]:
    """Yield the number of each answer among the assistant's turns, and its place."""
    number = 0
    for at, turn in enumerate(conversation.turns):
        if turn.role == "assistant":
            if at > 0:  # what stands before the first user turn is a greeting
                yield number, at
            number += 1


# --- rules ----------------------------------------------------------------------------------------


def _rules(rules: Sequence[Rule], turn: Turn) -> Verdict:
    """Return whether all rules hold, and the first one that does not."""
    for rule in rules:
        try:
            holds = _holds(rule, turn)
        except TimeoutError:
            return Verdict(None, f"takes too long: {_shown(rule)}")
        if not holds:
            return Verdict(WRONG, f"not: {_shown(rule)}")
    return Verdict(RIGHT, "all rules hold")


def _holds(rule: Rule, turn: Turn) -> bool:
    match rule:
        case Contains():
            return _folded(rule.text) in _folded(turn.text)
        case Matches():
            # That of Python would try for ever where an expression allows many ways.
            found = regex.search(
                rule.regex, turn.text, timeout=REGEX_SECONDS, concurrent=True
            )
            return found is not None
        case JsonPath():
            read = json_values(turn.text)
            values = (at_path(value, rule.path, _MISSING) for value in read)
            return any(_equal(value, rule.equals) for value in values)
        case ToolCalled():
            calls = turn.meta.get("tool_calls")
            return isinstance(calls, list) and any(
                _is_call(call, rule) for call in calls
            )


def _shown(rule: Rule) -> str:
    match rule:
        case Contains():
            return f"contains {rule.text!r}"
        case Matches():
            return f"matches {rule.regex!r}"
        case JsonPath():
            return f"{rule.path} is {rule.equals!r}"
        case ToolCalled():
            return f"calls {rule.name}"


def _folded(text: str) -> str:
    """In lower case, with one space between words: an answer may break lines anywhere."""
    return " ".join(text.casefold().replace("’", "'").split())


_MISSING = object()


def _equal(value: Any, wanted: Any) -> bool:
    """Whether two values of JSON are equal: 1 is 1.0, but not true."""
    if isinstance(value, list) and isinstance(wanted, list):
        same_length = len(value) == len(wanted)
        return same_length and all(map(_equal, value, wanted))
    if isinstance(value, Mapping) and isinstance(wanted, Mapping):
        same_names = value.keys() == wanted.keys()
        return same_names and all(_equal(value[name], wanted[name]) for name in wanted)
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def _is_call(call: Any, rule: ToolCalled) -> bool:
    if not isinstance(call, Mapping) or call.get("name") != rule.name:
        return False
    given = call.get("arguments")
    wanted = rule.arguments or {}
    if not isinstance(given, Mapping):
        return not wanted
    return all(_equal(given.get(name, _MISSING), wanted[name]) for name in wanted)


# --- a function of one's own ----------------------------------------------------------------------


def find_check(name: str) -> Callable[[str, Conversation], Any]:
    """Return the function of a check.

    Raises:
        InputError: if it cannot be imported, or not be called with an answer and a conversation.
    """
    function = find_object(name)
    if not callable(function):
        raise InputError(f"{name} is no function")
    try:
        inspect.signature(function).bind("", Conversation())
    except TypeError as error:
        raise InputError(
            f"{name} is called with the text of the answer and the conversation: {error}"
        ) from None
    except ValueError:  # of some functions in C
        pass
    return function  # type: ignore[no-any-return]


def _function(check: FunctionCheck, text: str, conversation: Conversation) -> Verdict:
    function = find_check(check.name)
    try:
        found = function(text, conversation)
        reason = ""
        if isinstance(found, tuple) and len(found) == 2:
            found, reason = found
        reason = "" if reason is None else str(reason)[:LONGEST_REASON]
    except RAISED as error:
        said = describe_error(error)[:LONGEST_REASON]
        return Verdict(None, f"{check.name}: {said}")
    if found is None:
        return Verdict(None, reason or f"{check.name} cannot say")
    if not isinstance(found, bool):
        kind = named_type(found)
        return Verdict(None, f"{check.name} returned {kind}, not True, False or None")
    return Verdict(RIGHT if found else WRONG, reason or check.name)

"""How `score` and `simulate` get tasks and grade: the options, the files behind them, and the
grader."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from userlm import address, inputs, judges, loading
from userlm.commands.costs import (
    JUDGE_PRICE,
    Limits,
    add_side,
    estimate_tokens,
    price_option,
    read_price,
    show_estimate,
    stop,
)
from userlm.commands.options import LocalModels, option
from userlm.commands.steps import in_parallel
from userlm.data.intents import transcript
from userlm.facts import said, told_in
from userlm.grading import NO_SANDBOX, Grader, Sandbox, find_check
from userlm.imports import check_code_may_run
from userlm.json_files import write_lines
from userlm.judges import UNANSWERED, GradingJudge
from userlm.metrics.agreement import Labelled, agreement
from userlm.metrics.extrinsic import ADDS, SAID, Graded
from userlm.models.budget import Budget, Price
from userlm.models.call_cache import CachedChat, CallCache
from userlm.rows import read_conversations, read_rows
from userlm.runs import Run
from userlm.sandbox.finding import find
from userlm.show.formats import plural
from userlm.show.terminal import console, track
from userlm.tasks import find_tasks, task_of
from userlm.text import has_words
from userlm.types import (
    Conversation,
    Fact,
    FunctionCheck,
    Grade,
    InputError,
    NumberCheck,
    RubricCheck,
    RulesCheck,
    Sample,
    Task,
    TestsCheck,
    ToolCalled,
    Verdict,
)

GRADING = "How answers are graded"
GRADES, FACTS, ADDED = "grades.jsonl", "facts.jsonl", "added.jsonl"
"""The files of the grades, of who told which fact, and of the user's turns that add demands."""
CALLS = "asked.jsonl"
"""The file of the judge's calls."""
ASKED = ("attempt", "rubric", "fact", "added")
"""The prompts of a judge that grades."""
TASKS_HELP = (
    "The tasks: a .jsonl or .toml file (docs/test-my-chatbot.md), a public set, also hf://..., or "
    "`sample`, the 12 of this package"
)


def unsafe_local_option() -> Any:
    """Return the field of `--unsafe-local`."""
    return option(
        False,
        "Run the code of answers without a sandbox, with all of your rights.",
        flag="--unsafe-local",
        panel=GRADING,
    )


def judge_tokens_option() -> Any:
    """Return the field of the maximum length of a verdict of a judge that grades."""
    return option(
        judges.MAX_TOKENS,
        "Maximum length of a verdict of the judge in tokens; reasoning models need more.",
        min=1,
        max=2**24,
        panel=GRADING,
    )


@dataclass(frozen=True, slots=True)
class Grading:
    """How answers are graded."""

    judge: str | None = option(
        None,
        "Chat model that grades by rubrics, tells answers from talk and finds facts: "
        "openai:NAME, http://HOST:PORT/v1#NAME, a folder or hub id.",
        panel=GRADING,
    )
    judge_price: str | None = price_option(JUDGE_PRICE, "the judge")
    judge_tokens: int = judge_tokens_option()
    unsafe_local: bool = unsafe_local_option()
    upstream_grading: bool = option(
        False,
        "Read numbers as Lost in Conversation does, with its errors.",
        flag="--upstream-grading",
        panel=GRADING,
    )


def check_functions(tasks: Iterable[Task]) -> None:
    """Import the functions that check tasks, to fail before a run and not in it; raise `InputError`
    if one cannot be imported or called."""
    for task in tasks:
        if isinstance(task.check, FunctionCheck):
            find_check(task.check.name)


def tasks_inputs(
    place: str | None, tasks: Iterable[Task], are_graded: bool = True
) -> tuple[list[Path], dict[str, str]]:
    """Return the local files of the tasks and the code that checks them, and the stamps of remote
    files, for `open_run`.

    Args:
        are_graded: whether functions that check are needed, which runs their modules.

    Raises:
        InputError: if a function that checks cannot be imported or called.
    """
    tasks = list(tasks)
    if are_graded:
        check_functions(tasks)
    found = find_tasks(place) if place else []
    paths = [file.path for file in found if file.path]
    for task in tasks:
        if isinstance(task.check, FunctionCheck):
            paths += inputs.files(f"py:{task.check.name}")
    stamps = {file.name: file.stamp for file in found if not file.path}
    return list(dict.fromkeys(paths)), stamps


def judge_inputs(judge: str | None) -> tuple[list[Path], dict[str, str]]:
    """Return the files and the stamps of a judge and of what it is asked, for `open_run`."""
    if judge is None:
        return [], {}
    prompts = {f"prompt {name}": judges.grading_prompt(name).hash for name in ASKED}
    return inputs.files(judge), inputs.stamps(judge) | prompts


def find_sandbox(tasks: Iterable[Task], unsafe_local: bool = False) -> Sandbox | None:
    """Return a sandbox if the tasks need one; `None`, with a line that says why, if there is
    none."""
    with_tests = {task.id for task in tasks if isinstance(task.check, TestsCheck)}
    if not with_tests:
        return None
    if unsafe_local:
        check_code_may_run("--unsafe-local")
        console.print(
            "--unsafe-local: the code of answers runs with all of your rights",
            style="yellow",
        )
    try:
        return find(unsafe_local=unsafe_local)
    except InputError as error:
        console.print(
            f"{plural(len(with_tests), 'task')} with tests cannot be graded: {error}",
            style="dim",
            soft_wrap=True,
        )
        return None


def show_uncalled(name: str, about: Iterable[tuple[Task | None, Conversation]]) -> None:
    """Print a line if tasks check for calls of tools and no answer about them has any: then calls
    were rather not found than not made, and the bot would look like a bad one."""
    silent = set()
    for task, conversation in about:
        answers = [turn for turn in conversation.turns if turn.role == "assistant"]
        if not task or not answers or not checks_calls(task):
            continue
        if any("tool_calls" in turn.meta for turn in answers):
            return
        silent.add(task.id)
    if silent:
        console.print(
            f"{name}: the checks of {plural(len(silent), 'task')} need a call of a tool, and no "
            "answer about them has one. If the bot calls tools, its calls are not found: they "
            "belong into `tool_calls` of the answer, or to where `tool_calls` of bot:FILE.toml "
            "points. `userlm tasks check FILE --assistant ADDRESS` shows what is found",
            style="yellow",
            soft_wrap=True,
        )


def checks_calls(task: Task) -> bool:
    """Return whether a rule of its check needs a call of a tool."""
    rules = task.check.rules if isinstance(task.check, RulesCheck) else ()
    return any(isinstance(rule, ToolCalled) for rule in rules)


# --- grading all conversations of several runs ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskConversation:
    """A conversation about a task, and the name of its run."""

    run: str
    task: Task
    conversation: Conversation

    @property
    def required(self) -> list[Fact]:
        """The facts that the user should say."""
        return [fact for fact in self.task.facts if fact.required]


class JudgeOptions(Protocol):
    """The options of a verb that asks a judge."""

    @property
    def limits(self) -> Limits: ...
    @property
    def models(self) -> LocalModels: ...


class GradingOptions(JudgeOptions, Protocol):
    """The options of a verb that grades."""

    @property
    def grading(self) -> Grading: ...
    @property
    def workers(self) -> int: ...


def grade_all(
    run: Run,
    options: GradingOptions,
    inputs: Mapping[str, Path],
    tasks: Mapping[str, Task],
) -> dict[str, Graded]:
    """Return the grades of all conversations about tasks, by the names of their runs, and write
    them to grades.jsonl; which turns tell which facts, to facts.jsonl; and with a judge, which
    turns of the user add demands, to added.jsonl.

    Args:
        inputs: the files of conversations, by the names of their runs.
        tasks: by id.
    """
    about = list(_task_conversations(inputs, tasks)) if tasks else []
    if tasks and not about:
        console.print(
            "no conversation is about one of these tasks, so none is graded",
            style="yellow",
        )
    with _grader(run, options, about) as grader:
        run.unfinish()
        job = partial(_verdicts, grader)
        found = in_parallel(job, about, options.workers)
        judged = [one for _, one in track(found, "grading", len(about))]
    if tasks:
        _write(run, about, judged)
        _show_ungraded([one.grade for one in judged])
        for name in inputs:
            talks = [(one.task, one.conversation) for one in about if one.run == name]
            show_uncalled(name, talks)
    if grader.judge:
        _show_agreement(about, judged)
    graded = {}
    for name in inputs:
        own = {
            one.conversation.id: verdicts
            for one, verdicts in zip(about, judged, strict=True)
            if one.run == name
        }
        graded[name] = Graded(
            tasks,
            {id: one.grade for id, one in own.items()},
            {id: one.said for id, one in own.items()},
            {id: one.added for id, one in own.items()} if grader.judge else {},
        )
    return graded


def _task_conversations(
    inputs: Mapping[str, Path], tasks: Mapping[str, Task]
) -> Iterator[TaskConversation]:
    for name, path in inputs.items():
        for conversation in read_conversations(path):
            task = task_of(conversation, tasks)
            if task and conversation.stop != "error":
                yield TaskConversation(name, task, conversation)


def unanswered(run: Run) -> tuple[int, int]:
    """Return how many grades and verdicts are missing since the judge did not answer (the same
    command asks again), and that with its answers. If none of these had words, or nothing has a
    grade or a verdict, all are missing."""
    lines = [*_lines(run, GRADES), *_lines(run, FACTS), *_lines(run, ADDED)]
    missing = sum(str(row.get("reason")).startswith(UNANSWERED) for row in lines)
    answers = [row for row in _lines(run, CALLS) if not row.get("error")]
    found = (row.get(name) for row in lines for name in ("solved", "judge", "label"))
    is_used = any(each is not None for each in found)
    if not (is_used and any(row.get("text") for row in answers)):
        missing += len(answers)
        return missing, missing
    return missing, missing + len(answers)


def can_grade_more(run: Run, tasks: Iterable[Task], unsafe_local: bool) -> bool:
    """Return whether answers have no grade since there was no sandbox, and there is one now."""
    reasons = {row.get("reason") for row in _lines(run, GRADES)}
    return NO_SANDBOX in reasons and find_sandbox(tasks, unsafe_local) is not None


def _lines(run: Run, name: str) -> Iterator[Mapping[str, Any]]:
    path = run.path(name)
    if path.is_file():
        for line in read_rows(path, may_be_empty=True):
            yield line.row


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The verdicts on a conversation.

    Attributes:
        said: the judge's on each required fact; empty without a judge.
        added: the judge's on each turn of the user; empty without a judge.
    """

    grade: Grade
    said: Sequence[Verdict]
    added: Sequence[Verdict]


def _verdicts(grader: Grader, one: TaskConversation) -> Verdicts:
    grade = grader.grade(one.task, one.conversation)
    of_facts: list[Verdict] = []
    of_turns: list[Verdict] = []
    if judge := grader.judge:
        told = "\n\n".join(one.conversation.user_turns)
        for fact in one.required:
            verdict = Verdict(f"NOT {SAID}", "the user said nothing")
            if has_words(told):
                verdict = judge.ask("fact", {"fact": fact.text, "said": told})
            of_facts.append(verdict)
        of_turns += [judge.ask("added", shown) for shown in _messages(one)]
    return Verdicts(grade, of_facts, of_turns)


def _messages(one: TaskConversation) -> Iterator[dict[str, str]]:
    """Yield what the judge sees of each turn of the user, to say whether it adds a demand."""
    facts = [fact.text for fact in one.task.facts if fact.text not in one.task.intent]
    for k, text in enumerate(one.conversation.user_turns):
        yield {
            "task": "\n".join([one.task.intent, *facts]),
            "before": transcript(Sample(one.conversation, k).prefix) or "Nothing yet.",
            "message": text,
        }


def _write(
    run: Run, about: Sequence[TaskConversation], judged: Sequence[Verdicts]
) -> None:
    """Write the grades; which turns tell which facts; and which turns add demands."""
    grades = []
    facts = []
    added = []
    for one, found in zip(about, judged, strict=True):
        row = {
            "run": one.run,
            "conversation": one.conversation.id,
            "task": one.task.id,
            "family": one.task.family,
        }
        grades.append({**row, **asdict(found.grade)})
        facts += [{**row, **fact} for fact in _told(one, found)]
        turns = one.conversation.user_turns
        for k, verdict in enumerate(found.added):
            demand = (
                _demand(verdict.reason, turns[k]) if verdict.label == ADDS else None
            )
            label = {"label": verdict.label, "demand": demand, "reason": verdict.reason}
            added.append({**row, "turn": k, **label})
    write_lines(run.path(GRADES), grades)
    write_lines(run.path(FACTS), facts)
    if added:
        write_lines(run.path(ADDED), added)


def _told(one: TaskConversation, found: Verdicts) -> Iterator[dict[str, Any]]:
    """Yield for each fact the numbers, from 0, of the turns of each side that tell it by their
    words, and what a judge says of the user's."""
    facts = one.task.facts
    turns = one.conversation.turns
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    by_user = told_in(facts, one.conversation.user_turns)
    by_assistant = told_in(facts, answers)
    verdicts = iter(found.said)
    for fact, user, assistant in zip(facts, by_user, by_assistant, strict=True):
        row: dict[str, Any] = {"fact": fact.text, "required": fact.required}
        row |= {"user": user, "assistant": assistant}
        if found.said and fact.required:
            verdict = next(verdicts)
            row |= {"judge": verdict.label, "reason": verdict.reason}
        yield row


def _demand(reason: str, turn: str) -> str | None:
    """Return the words of the turn that stand in brackets in the judge's reason. A number or a
    letter alone may as well be that of a note."""
    for quoted in re.findall(r"\[(.+?)\]", reason):
        is_note = quoted.isnumeric() or (len(quoted) < 3 and quoted.isascii())
        if not is_note and standing(quoted).search(turn):
            return str(quoted)
    return None


def standing(quoted: str) -> re.Pattern[str]:
    """Return the pattern of words that stand in a text, and not in the middle of others. Scripts
    without spaces, which are beyond those with letters of two cases, may have any beside them."""
    letter = r"[A-Za-z0-9_\u00c0-\u058f]"
    begin, end = f"(?:(?<!{letter})|(?!{letter}))", f"(?:(?!{letter})|(?<!{letter}))"
    return re.compile(f"{begin}{re.escape(quoted)}{end}")


@contextmanager
def _grader(
    run: Run, options: GradingOptions, about: Sequence[TaskConversation]
) -> Iterator[Grader]:
    """Yield the grader of conversations. Calls of the judge are kept in the folder of the run, so
    that none is repeated.

    Raises:
        InputError: for limits or a price without a judge.
    """
    given = options.grading
    code = find_sandbox((one.task for one in about), given.unsafe_local)
    if given.judge is None:
        if options.limits != Limits() or given.judge_price:
            raise InputError("--judge-price and limits are for a --judge; give one")
        yield Grader(None, code, given.upstream_grading)
        return
    price = read_price("judge", given.judge_price, JUDGE_PRICE)
    expected = _expected(about, given.judge_tokens)
    opened = open_judge(
        run, options, given.judge, given.judge_tokens, price, expected, JUDGE_PRICE
    )
    with opened as (judge, budget):
        yield Grader(judge, code, given.upstream_grading)
        spent = budget.spent
        cost = f", ${spent.dollars:,.2f}" if price else ""
        console.print(f"judge: {spent.calls:,} calls, {spent.tokens:,} tokens{cost}")


@contextmanager
def open_judge(
    run: Run,
    options: JudgeOptions,
    judge: str,
    max_tokens: int,
    price: Price | None,
    expected: Counter[str],
    priced_by: str = "",
) -> Iterator[tuple[GradingJudge, Budget]]:
    """Yield a judge whose calls are kept in the folder of the run, so that none is repeated, and
    the budget that counts them; no more calls are made afterwards.

    Args:
        judge: its address.
        max_tokens: of a verdict.
        expected: the usage to show as an estimate.
        priced_by: the option that gives its price, if not --price.
    """
    parts = address.parse(judge)
    chat = loading.chat_model(parts, options.models.settings)
    budget = Budget(options.limits.caps, run.path("usage.jsonl"))
    with ExitStack() as at_end:
        at_end.callback(stop, budget)
        side = add_side(budget, "judge", parts, price, option=priced_by)
        cache = CallCache(run.path(CALLS), chat, side)
        at_end.callback(cache.close)
        show_estimate(budget, {"judge": expected})
        asked = CachedChat(cache)
        yield GradingJudge(asked, max_tokens, asked.count_use), budget


PROMPT_TOKENS = 400
"""Of what the judge is told beside the conversation."""


def _expected(about: Iterable[TaskConversation], max_tokens: int) -> Counter[str]:
    """How much the judge is asked at most: once for each answer and once for each turn of the user,
    with all that was said before, and once for each required fact, with all that the user said.
    """
    expected: Counter[str] = Counter()
    for one in about:
        before = 0
        sizes = []
        is_graded = isinstance(one.task.check, NumberCheck | RubricCheck)
        about_task = estimate_tokens([one.task.intent])
        for turn in one.conversation.turns:
            before += estimate_tokens([turn.text])
            if turn.role == "user":
                sizes.append(before + about_task)
            elif is_graded:
                sizes.append(before)
        sizes += [estimate_tokens(one.conversation.user_turns)] * len(one.required)
        expected.update(
            calls=len(sizes),
            tokens_in=sum(sizes) + PROMPT_TOKENS * len(sizes),
            tokens_out=max_tokens * len(sizes),
        )
    return expected


def _show_ungraded(grades: Sequence[Grade]) -> None:
    """Print how many conversations have no grade, and the commonest reasons."""
    reasons = Counter(grade.reason for grade in grades if grade.solved is None)
    if reasons:
        common = reasons.most_common(3)
        shown = "; ".join(f"{why} ({count:,})" for why, count in common)
        console.print(
            f"{reasons.total():,} of {len(grades):,} conversations about tasks have no grade: "
            f"{shown}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _show_agreement(
    about: Sequence[TaskConversation], judged: Sequence[Verdicts]
) -> None:
    """Print how far the judge and the comparison of words agree on which facts were said."""
    items = []
    for one, found in zip(about, judged, strict=True):
        turns = one.conversation.user_turns
        for fact, verdict in zip(one.required, found.said, strict=True):
            rule = SAID if said(fact, turns, one.task.facts) else f"NOT {SAID}"
            key = f"{one.run} {one.conversation.id}"
            why = verdict.reason
            items.append(Labelled(key, one.task.id, verdict.label, rule, why))
    raw, kappa = agreement(items)
    if raw.value is not None:
        beyond = "" if kappa.value is None else f", Cohen's kappa {kappa.value:.2f}"
        console.print(
            f"which facts were said: the judge and the comparison of words agree on "
            f"{raw.value:.1f} % of {raw.n:,} facts{beyond}"
        )

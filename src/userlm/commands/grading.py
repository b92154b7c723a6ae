"""How `score` and `simulate` get tasks and grade: the options, the files behind them, and the
grader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from userlm import address, inputs, judges, loading
from userlm.commands.costs import (
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
from userlm.facts import said
from userlm.grading import Grader, Sandbox
from userlm.imports import find_object
from userlm.json_files import write_lines
from userlm.judges import UNANSWERED, GradingJudge
from userlm.metrics.agreement import Labelled, agreement
from userlm.metrics.extrinsic import SAID, Graded
from userlm.models.budget import Budget
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
    Task,
    TestsCheck,
    Verdict,
)

T = TypeVar("T")

GRADING = "How answers are graded"
GRADES, FACTS, CALLS = "grades.jsonl", "facts.jsonl", "asked.jsonl"
"""The files of the grades, of the judge's verdicts on facts, and of its calls."""
ASKED = ("attempt", "rubric", "fact")
"""The prompts of a judge that grades."""
TASKS_HELP = "The tasks: a .jsonl or .toml file (docs/test-my-chatbot.md), or a public set, also hf://..."


@dataclass(frozen=True, slots=True)
class Grading:
    """How answers are graded."""

    judge: str | None = option(
        None,
        "Chat model that grades by rubrics, tells answers from talk and finds facts: "
        "openai:NAME, http://HOST:PORT/v1#NAME, a folder or hub id.",
        panel=GRADING,
    )
    judge_price: str | None = price_option("--judge-price", "the judge")
    unsafe_local: bool = option(
        False,
        "Run the code of answers without a sandbox, with all of your rights.",
        flag="--unsafe-local",
        panel=GRADING,
    )
    upstream_grading: bool = option(
        False,
        "Read numbers as Lost in Conversation does, with its errors.",
        flag="--upstream-grading",
        panel=GRADING,
    )


def tasks_inputs(
    place: str | None, tasks: Iterable[Task]
) -> tuple[list[Path], dict[str, str]]:
    """Return the local files of the tasks and the code that checks them, and the stamps of remote
    files, for `open_run`.

    Raises:
        InputError: if a function that checks cannot be imported.
    """
    found = find_tasks(place) if place else []
    paths = [file.path for file in found if file.path]
    for task in tasks:
        if isinstance(task.check, FunctionCheck):
            find_object(task.check.name)  # to fail before a run, and not in it
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


# --- grading all conversations of several runs ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class About:
    """A conversation about a task, and the name of its run."""

    run: str
    task: Task
    conversation: Conversation

    @property
    def required(self) -> list[Fact]:
        """The facts that the user should say."""
        return [fact for fact in self.task.facts if fact.required]


class GradingOptions(Protocol):
    """The options of a verb that grades."""

    @property
    def grading(self) -> Grading: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def models(self) -> LocalModels: ...
    @property
    def workers(self) -> int: ...


def grade_all(
    run: Run,
    options: GradingOptions,
    inputs: Mapping[str, Path],
    tasks: Mapping[str, Task],
) -> dict[str, Graded]:
    """Return the grades of all conversations about tasks, by the names of their runs, and write
    them to grades.jsonl. With a judge, also its verdicts on facts, in facts.jsonl.

    Args:
        inputs: the files of conversations, by the names of their runs.
        tasks: by id.
    """
    about: list[About] = []
    for name, path in inputs.items():
        for conversation in read_conversations(path):
            task = task_of(conversation, tasks)
            if task and conversation.stop != "error":
                about.append(About(name, task, conversation))
    if tasks and not about:
        console.print(
            "no conversation is about one of these tasks, so none is graded",
            style="yellow",
        )
    grades: dict[str, dict[str, Grade]] = {name: {} for name in inputs}
    judged: dict[str, dict[str, list[Verdict]]] = {name: {} for name in inputs}
    with _grader(run, options, about) as grader:
        run.unfinish()
        job = partial(_graded, grader)
        found = in_parallel(job, about, options.workers)
        for one, (grade, verdicts) in track(found, "grading", len(about)):
            grades[one.run][one.conversation.id] = grade
            judged[one.run][one.conversation.id] = verdicts
    if tasks:
        rows = [_row(one) | asdict(_of(grades, one)) for one in about]
        write_lines(run.path(GRADES), rows)
        _show_ungraded([_of(grades, one) for one in about])
    if grader.judge:
        _compare_facts(run, about, judged)
    return {name: Graded(tasks, grades[name], judged[name]) for name in inputs}


def unanswered(run: Run) -> tuple[int, int]:
    """Return how many grades and verdicts on facts are missing since the judge did not answer, and
    that with its answers. The same command asks again."""
    lines = [*_lines(run, GRADES), *_lines(run, FACTS)]
    missing = sum(str(row.get("reason")).startswith(UNANSWERED) for row in lines)
    answered = sum(not row.get("error") for row in _lines(run, CALLS))
    return missing, missing + answered


def _lines(run: Run, name: str) -> Iterator[Mapping[str, Any]]:
    path = run.path(name)
    if path.is_file():
        for line in read_rows(path, may_be_empty=True):
            yield line.row


def _of(found: Mapping[str, Mapping[str, T]], one: About) -> T:
    return found[one.run][one.conversation.id]


def _row(one: About) -> dict[str, Any]:
    ids = {"run": one.run, "conversation": one.conversation.id, "task": one.task.id}
    return {**ids, "family": one.task.family}


def _graded(grader: Grader, one: About) -> tuple[Grade, list[Verdict]]:
    """Return the grade of a conversation, and the judge's verdicts on its required facts."""
    grade = grader.grade(one.task, one.conversation)
    verdicts: list[Verdict] = []
    if grader.judge:
        told = "\n\n".join(one.conversation.user_turns)
        for fact in one.required:
            verdict = Verdict(f"NOT {SAID}", "the user said nothing")
            if has_words(told):
                shown = {"fact": fact.text, "said": told}
                verdict = grader.judge.ask("fact", shown)
            verdicts.append(verdict)
    return grade, verdicts


@contextmanager
def _grader(
    run: Run, options: GradingOptions, about: Sequence[About]
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
    parts = address.parse(given.judge)
    chat = loading.chat_model(parts, options.models.settings)
    budget = Budget(options.limits.caps, run.path("usage.jsonl"))
    price = read_price("judge", given.judge_price)
    with ExitStack() as at_end:
        at_end.callback(stop, budget)
        side = add_side(budget, "judge", parts, price)
        cache = CallCache(run.path(CALLS), chat, side)
        at_end.callback(cache.close)
        show_estimate(budget, {"judge": _expected(about)})
        judge = GradingJudge(CachedChat(cache))
        yield Grader(judge, code, given.upstream_grading)
        spent = budget.spent
        cost = f", ${spent.dollars:,.2f}" if price else ""
        console.print(f"judge: {spent.calls:,} calls, {spent.tokens:,} tokens{cost}")


PROMPT_TOKENS = 400
"""Of what the judge is told beside the conversation."""


def _expected(about: Iterable[About]) -> Counter[str]:
    """How much the judge is asked at most: once for each answer, with all that was said before, and
    once for each required fact, with all that the user said."""
    expected: Counter[str] = Counter()
    for one in about:
        before = 0
        sizes = []
        for turn in one.conversation.turns:
            before += estimate_tokens([turn.text])
            if turn.role == "assistant":
                sizes.append(before)
        if not isinstance(one.task.check, NumberCheck | RubricCheck):
            sizes.clear()
        sizes += [estimate_tokens(one.conversation.user_turns)] * len(one.required)
        expected.update(
            calls=len(sizes),
            tokens_in=sum(sizes) + PROMPT_TOKENS * len(sizes),
            tokens_out=judges.MAX_TOKENS * len(sizes),
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


def _compare_facts(
    run: Run,
    about: Sequence[About],
    judged: Mapping[str, Mapping[str, Sequence[Verdict]]],
) -> None:
    """Write what the judge and the comparison of words say of each required fact, and print how far
    they agree."""
    items = []
    rows = []
    for one in about:
        turns = one.conversation.user_turns
        for fact, verdict in zip(one.required, _of(judged, one), strict=True):
            rule = SAID if said(fact, turns, one.task.facts) else f"NOT {SAID}"
            key = f"{one.run} {one.conversation.id}"
            why = verdict.reason
            items.append(Labelled(key, one.task.id, verdict.label, rule, why))
            told = {"judge": verdict.label, "words": rule, "reason": why}
            rows.append({**_row(one), "fact": fact.text, **told})
    write_lines(run.path(FACTS), rows)
    raw, kappa = agreement(items)
    if raw.value is not None:
        beyond = "" if kappa.value is None else f", Cohen's kappa {kappa.value:.2f}"
        console.print(
            f"which facts were said: the judge and the comparison of words agree on "
            f"{raw.value:.1f} % of {raw.n:,} facts{beyond}"
        )


def by_id(tasks: Iterable[Task]) -> Mapping[str, Task]:
    """Return the tasks by their ids."""
    return {task.id: task for task in tasks}

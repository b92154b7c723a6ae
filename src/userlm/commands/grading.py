"""How `score` and `simulate` get tasks and grade: the options, the files behind them, and the
grader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from userlm.grading import Grader, Sandbox
from userlm.judges import GradingJudge
from userlm.models.budget import Budget
from userlm.models.call_cache import CachedChat, CallCache
from userlm.runs import Run
from userlm.sandbox.finding import find
from userlm.show.formats import plural
from userlm.show.terminal import console
from userlm.tasks import find_tasks
from userlm.types import (
    Conversation,
    FunctionCheck,
    InputError,
    NumberCheck,
    RubricCheck,
    Task,
    TestsCheck,
)

GRADING = "How answers are graded"
TASKS_HELP = "The tasks: a .jsonl or .toml file (docs/test-my-chatbot.md), or a public set, also hf://..."


@dataclass(frozen=True, slots=True)
class Grading:
    """How answers are graded."""

    judge: str | None = option(
        None,
        "Chat model that grades by rubrics and tells answers from talk: openai:NAME, "
        "http://HOST:PORT/v1#NAME, a folder or hub id.",
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
    files, for `open_run`."""
    found = find_tasks(place) if place else []
    paths = [file.path for file in found if file.path]
    for task in tasks:
        if isinstance(task.check, FunctionCheck):
            paths += inputs.files(f"py:{task.check.name}")
    stamps = {file.name: file.stamp for file in found if not file.path}
    return list(dict.fromkeys(paths)), stamps


def find_sandbox(tasks: Iterable[Task], unsafe_local: bool = False) -> Sandbox | None:
    """Return a sandbox if the tasks need one; `None`, with a line that says why, if there is
    none."""
    with_tests = {task.id for task in tasks if isinstance(task.check, TestsCheck)}
    if not with_tests:
        return None
    try:
        return find(unsafe_local=unsafe_local)
    except InputError as error:
        console.print(
            f"{plural(len(with_tests), 'task')} with tests cannot be graded: {error}",
            style="dim",
            soft_wrap=True,
        )
        return None


@contextmanager
def open_grader(
    options: Grading,
    run: Run,
    about: Sequence[tuple[Task, Conversation]],
    limits: Limits,
    models: LocalModels,
) -> Iterator[Grader]:
    """Yield the grader of conversations about tasks. Calls of the judge are kept in the folder of
    the run, so that none is repeated.

    Raises:
        InputError: for limits or a price without a judge.
    """
    tasks = [task for task, _ in about]
    found = find_sandbox(tasks, options.unsafe_local)
    if options.judge is None:
        if limits != Limits() or options.judge_price:
            raise InputError("--judge-price and limits are for a --judge; give one")
        yield Grader(None, found, options.upstream_grading)
        return
    given = address.parse(options.judge)
    chat = loading.chat_model(given, models.settings)
    budget = Budget(limits.caps, run.path("usage.jsonl"))
    price = read_price("judge", options.judge_price)
    with ExitStack() as at_end:
        at_end.callback(stop, budget)
        side = add_side(budget, "judge", given, price)
        cache = CallCache(run.path("asked.jsonl"), chat, side)
        at_end.callback(cache.close)
        show_estimate(budget, {"judge": _expected(about)})
        judge = GradingJudge(CachedChat(cache))
        yield Grader(judge, found, options.upstream_grading)


def _expected(about: Iterable[tuple[Task, Conversation]]) -> Counter[str]:
    """How much the judge is asked at most: once for each answer, with all that was said before."""
    expected: Counter[str] = Counter()
    for task, conversation in about:
        if not isinstance(task.check, NumberCheck | RubricCheck):
            continue
        said = PROMPT_TOKENS
        for turn in conversation.turns:
            said += estimate_tokens([turn.text])
            if turn.role == "assistant":
                tokens_out = judges.MAX_TOKENS
                expected.update(calls=1, tokens_in=said, tokens_out=tokens_out)
    return expected


PROMPT_TOKENS = 400
"""Of what the judge is told beside the conversation."""


def by_id(tasks: Iterable[Task]) -> Mapping[str, Task]:
    """Return the tasks by their ids."""
    return {task.id: task for task in tasks}

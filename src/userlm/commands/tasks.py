"""`userlm tasks`: check a file of tasks, or let a judge mark which facts are required."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from userlm import address, inputs, judges, loading
from userlm.commands.costs import (
    Limits,
    estimate_tokens,
    price_option,
    read_price,
    show_errors,
)
from userlm.commands.grading import (
    PROMPT_TOKENS,
    judge_tokens_option,
    open_judge,
    tasks_inputs,
)
from userlm.commands.options import (
    Failures,
    LocalModels,
    Output,
    argument,
    option,
    out_folder,
    workers_option,
)
from userlm.commands.steps import Results, in_parallel, open_run
from userlm.grading import find_check
from userlm.json_files import dumps, write_lines
from userlm.judges import GradingJudge
from userlm.show.blocks import Block, Line, Quote, Table, Text
from userlm.show.formats import plural
from userlm.show.terminal import console, track
from userlm.show.terminal import show as print_blocks
from userlm.tasks import OWN_FILE, TaskRow, read_tasks, scan, shown_check, to_record
from userlm.text import intent_goal
from userlm.types import (
    Conversation,
    Fact,
    FunctionCheck,
    InputError,
    NumberCheck,
    RubricCheck,
    Task,
    TestsCheck,
    Verdict,
)

MOST_ERRORS = 20
"""Errors that are listed."""
REQUIRED = "REQUIRED"


@dataclass(frozen=True, slots=True)
class Tasks:
    """Check a file of tasks and show what is in it, or let a judge mark which facts are required.

    `check` reads tasks as `simulate` and `score` do, lists what is wrong with them, and shows what
    they need. `facts` asks a judge of each fact whether the task can be solved without it, once,
    and writes the tasks with its marks to tasks.jsonl in the output folder.

    $ userlm tasks check support.toml

    $ userlm tasks facts support.toml --judge openai:gpt-4o --price 2.50/10
    """

    action: Literal["check", "facts"] = argument(..., "check or facts.")
    tasks: str = argument(
        ...,
        "A .jsonl or .toml file (docs/test-my-chatbot.md), a public set, or `sample`, the 12 of "
        "this package.",
    )
    assistant: str | None = option(
        None, "check: a bot or model to ask once what the user of the first task wants."
    )
    judge: str | None = option(
        None, "facts: the judge: openai:NAME, http://HOST:PORT/v1#NAME, a folder or id."
    )
    price: str | None = price_option("--price", "the judge")
    judge_tokens: int = judge_tokens_option()
    out: Path = out_folder("runs/tasks")
    workers: int = workers_option("tasks")
    models: LocalModels = LocalModels()
    limits: Limits = Limits()
    failures: Failures = Failures()
    output: Output = Output()


def tasks(options: Tasks) -> Results:
    """Check the tasks, or write them with marks; return the counts."""
    if options.action == "facts":
        if options.assistant:
            raise InputError("--assistant is for userlm tasks check; leave it out")
        return _mark_all(options)
    if options.judge:
        raise InputError("--judge marks facts: userlm tasks facts FILE --judge MODEL")
    is_for_facts = options.price or options.judge_tokens != judges.MAX_TOKENS
    if options.limits != Limits() or is_for_facts:
        raise InputError(
            "--budget, --max-calls, --max-tokens-total, --price and --judge-tokens are for userlm "
            "tasks facts; check counts nothing: it asks an --assistant once, and nobody without one"
        )
    good = check(options.tasks)
    if options.assistant and good:
        print_blocks(_asked_once(options.assistant, good[0], options.models))
    return {"tasks": len(good)}


# --- check ----------------------------------------------------------------------------------------


def check(place: str) -> list[Task]:
    """Show the tasks of a place, and what is wrong with them; return them.

    Raises:
        InputError: if something is.
    """
    found = list(map(_imported, scan(place)))
    good = [one.task for one in found if one.task]
    errors = [f"{one.where}: {one.error}" for one in found if not one.task]
    if good:
        print_blocks(describe(good))
    for error in errors[:MOST_ERRORS]:
        console.print(error, style="red", markup=False, soft_wrap=True)
    if errors:
        more = len(errors) - MOST_ERRORS
        also = f"; {more:,} more errors are not listed" if more > 0 else ""
        wrong = f"{len(errors):,} of {plural(len(found), 'task')}"
        raise InputError(f"{place}: {wrong} cannot be used (see above){also}")
    console.print(f"{place}: {plural(len(good), 'task')}, nothing wrong", markup=False)
    return good


def _asked_once(assistant: str, task: Task, models: LocalModels) -> Iterator[Block]:
    """Yield what an assistant answers if a user says all of the intent at once, and its tool calls.

    Raises:
        ModelError: if it does not answer.
    """
    bot = loading.assistant(assistant, tasks=[task], local=models.settings)
    start = Conversation(f"{task.id}#0", intent=task.intent)
    said = intent_goal(task.intent)
    yield Text((Quote(assistant, 200), " is asked: ", Quote(said, 400)))
    reply = bot.reply(start.say(said))
    calls = reply.meta.get("tool_calls", [])
    yield Text(("Its text: ", Quote(reply.text, 2000)), "")
    yield Text(("Its tool calls: ", Quote(dumps(calls), 2000) if calls else "none"), "")


def _imported(found: TaskRow) -> TaskRow:
    """The row, with an error if the function that checks it cannot be imported or called."""
    task = found.task
    if task is None or not isinstance(task.check, FunctionCheck):
        return found
    try:
        find_check(task.check.name)
    except InputError as error:
        return replace(found, task=None, error=f"check.py: {error}")
    return found


def describe(tasks: Sequence[Task]) -> Iterator[Block]:
    """Yield what is shown of tasks: a line for each family, the first task, and what they need."""
    rows: list[Sequence[Line]] = []
    for family in dict.fromkeys(task.family for task in tasks):
        own = [task for task in tasks if task.family == family]
        facts = [fact for task in own for fact in task.facts]
        required = sum(fact.required for fact in facts)
        kinds = Counter(map(kind_of, own))
        checks = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        shown = Quote(family, 40) if family else "none"
        rows.append(
            (shown, f"{len(own):,}", checks, f"{len(facts):,}", f"{required:,}")
        )
    head = ("family", "tasks", "checks", "facts", "required")
    yield Table(head, rows, "fixed")
    yield from _first(tasks[0])
    yield from _needs(tasks)


def _first(task: Task) -> Iterator[Block]:
    yield Text(("The first task: ", Quote(task.id, 80)))
    yield Text(("The user is told: ", Quote(task.intent, 2000)), "")
    for fact in task.facts:
        mark = "required" if fact.required else "not required"
        yield Text((f"  fact ({mark}): ", Quote(fact.text, 400)), "")
    shown = shown_check(task.check) if task.check else "nothing: it is not graded"
    yield Text(("An answer is right if: ", Quote(shown, 2000)), "")


def _needs(tasks: Sequence[Task]) -> Iterator[Block]:
    """Yield what must be known before a run."""
    kinds = Counter(type(task.check) for task in tasks)
    marks = Counter(task.marked for task in tasks if task.facts)
    counted = {
        "need a judge (userlm score --judge MODEL)": kinds[RubricCheck],
        "run code of answers in a sandbox (docs/sandbox.md)": kinds[TestsCheck],
        "have no check, so that nothing grades them": kinds[type(None)],
        "do not say which facts are required, so that all are (mark some with required = false, "
        "or ask a judge with userlm tasks facts)": marks["default"],
        "have facts that a judge marked": marks["judge"],
    }
    for what, count in counted.items():
        if count:
            yield Text(f"{count:,} of {plural(len(tasks), 'task')} {what}")


def kind_of(task: Task) -> str:
    """Return the kind of its check in a word."""
    match task.check:
        case None:
            return "without"
        case NumberCheck():
            return "number"
        case TestsCheck():
            return "tests"
        case RubricCheck():
            return "rubric"
        case FunctionCheck():
            return "function"
        case _:
            return "rules"


# --- facts ----------------------------------------------------------------------------------------


def _mark_all(options: Tasks) -> Results:
    """Write the tasks, in each of which a judge marked the facts that nobody did."""
    if options.judge is None:
        raise InputError("userlm tasks facts needs a --judge, such as openai:gpt-4o")
    found = read_tasks(options.tasks)
    given = address.parse(options.judge)
    price = read_price("judge", options.price)
    files, stamps = tasks_inputs(options.tasks, found)
    files += inputs.files(given)
    prompt = judges.grading_prompt("required")
    stamps |= inputs.stamps(given) | {"prompt required": prompt.hash}
    run = open_run("tasks", options, files, stamps)
    path = run.path(OWN_FILE)
    if run.results is not None and not run.results["failed"]:
        console.print(f"{path} is complete already; nothing to do", style="dim")
        return run.results
    marked: list[Task] = []
    asked: list[Verdict] = []
    expected = _expected(found, options.judge_tokens)
    opened = open_judge(
        run, options, options.judge, options.judge_tokens, price, expected
    )
    with opened as (judge, budget):
        run.unfinish()
        answers = in_parallel(partial(_marked, judge), found, options.workers)
        for _, (task, verdicts) in track(answers, "marking", len(found)):
            marked.append(task)
            asked += verdicts
    write_lines(path, map(to_record, marked))
    unread = [one for one in asked if one.label is None]
    counts = Counter(task.marked for task in marked if task.facts)
    facts = [fact for task in marked for fact in task.facts]
    results = {
        "tasks": len(marked),
        "marked": dict(counts),
        "facts": len(facts),
        "required": sum(fact.required for fact in facts),
        "failed": len(unread),
        **budget.finish(["judge"]),
    }
    reasons = [one.reason.removeprefix(judges.UNANSWERED) for one in unread]
    show_errors(reasons, len(facts), "facts")
    run.finish(results, has_failures=bool(unread))
    print_blocks(describe(marked))
    console.print(f"{path}: give it with --tasks", markup=False, soft_wrap=True)
    how = "have no mark of the judge"
    options.failures.check(len(unread), len(asked), what="facts", how=how)
    return results


def _expected(tasks: Iterable[Task], max_tokens: int) -> Counter[str]:
    expected: Counter[str] = Counter()
    for task in tasks:
        if task.marked == "default":
            for fact in task.facts:
                said = estimate_tokens(_shown(task, fact).values())
                expected.update(
                    calls=1,
                    tokens_in=said + PROMPT_TOKENS,
                    tokens_out=max_tokens,
                )
    return expected


def _marked(judge: GradingJudge, task: Task) -> tuple[Task, list[Verdict]]:
    """Return the task with the judge's marks, and the verdicts. If one cannot be read, or by them
    no fact would be required, the task stays as it is. So do marks of its own."""
    if task.marked != "default" or not task.facts:
        return task, []
    verdicts = [judge.ask("required", _shown(task, fact)) for fact in task.facts]
    labels = [verdict.label for verdict in verdicts]
    if None in labels or REQUIRED not in labels:
        return task, verdicts
    facts = zip(task.facts, labels, strict=True)
    marked = tuple(Fact(fact.text, label == REQUIRED) for fact, label in facts)
    return replace(task, facts=marked, marked="judge"), verdicts


def _shown(task: Task, fact: Fact) -> dict[str, str]:
    """What the judge sees."""
    check = shown_check(task.check) if task.check else "it solves the task"
    return {"task": task.intent, "right": check, "fact": fact.text}

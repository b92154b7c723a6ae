"""`userlm simulate`: conversations between a simulated user and an assistant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from userlm import address
from userlm.commands.conversing import (
    calls_to_come,
    collect,
    find_places,
    has_errors,
)
from userlm.commands.costs import (
    AssistantPrice,
    Costs,
    DollarBudget,
    MaxCalls,
    MaxTokensTotal,
    UserPrice,
    read_caps,
    read_price,
)
from userlm.commands.options import (
    Batch,
    EndThreshold,
    GuardSpec,
    Limit,
    Out,
    Results,
    Seed,
    Temperature,
    TopP,
    User,
    UserOptions,
    UserTokenizer,
    Workers,
    finished,
)
from userlm.rows import read_conversations
from userlm.runs import Answers, Journal, Recorded, Run, conversations_file
from userlm.simulate import Until, never
from userlm.simulate import simulate as simulate_all
from userlm.tasks import read_tasks, solved, task_of
from userlm.types import Conversation, InputError, Origin, Task, without_outcome


def simulate(
    user: User,
    assistant: Annotated[
        str,
        Option(
            help="A chat model (folder, hub id, openai:NAME, URL#NAME), oracle, clarifier, "
            "replay:FILE, ..."
        ),
    ],
    intents: Annotated[
        Path | None, Option(help="Conversations with intents to start from.")
    ] = None,
    tasks: Annotated[
        Path | None, Option(help="Tasks to start from instead (.jsonl).")
    ] = None,
    out: Out = Path("runs/simulate"),
    repeats: Annotated[
        int, Option(help="Number of conversations for each intent or task.", min=1)
    ] = 1,
    keep_turns: Annotated[
        int,
        Option(help="Number of turns to keep from each logged conversation.", min=0),
    ] = 0,
    max_turns: Annotated[int, Option(help="Maximum number of user turns.", min=1)] = 10,
    system: Annotated[
        str | None, Option(help="System prompt for the assistant, if it is a model.")
    ] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    end_threshold: EndThreshold = None,
    guard: GuardSpec = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Workers = 16,
    batch: Batch = address.BATCH,
    tokenizer: UserTokenizer = None,
    user_price: UserPrice = None,
    price: AssistantPrice = None,
    budget: DollarBudget = None,
    max_calls: MaxCalls = None,
    max_tokens_total: MaxTokensTotal = None,
) -> Results:
    """Simulate conversations of a user and an assistant; with tasks, each stops once its task is
    solved."""
    prices = read_price("user", user_price), read_price("assistant", price)
    caps = read_caps(max_calls, max_tokens_total, budget)
    user_options = UserOptions(
        user, temperature, top_p, end_threshold, guard, batch, tokenizer
    )
    options: dict[str, Any] = {
        **asdict(user_options),
        "assistant": assistant,
        "repeats": repeats,
        "keep_turns": keep_turns,
        "max_turns": max_turns,
        "system": system,
        "limit": limit,
        "seed": seed,
    }
    path = _starts_file(intents, tasks)
    inputs = [path, *address.files(user), *address.files(assistant)]
    run = Run.open(out, "simulate", options, inputs)
    if done := finished(run, has_errors):
        return done
    known_tasks = {task.id: task for task in read_tasks(path)[:limit]} if tasks else {}

    def starts() -> Iterator[Conversation]:
        if tasks:
            return _from_tasks(known_tasks.values(), repeats)
        return _from_logs(islice(read_conversations(path), limit), repeats, keep_turns)

    places = find_places(user_options, starts(), path)
    user_side = user_options.load(seed)
    assistant_side = address.assistant(
        assistant, tasks=known_tasks.values(), seed=seed, system=system, batch=batch
    )
    costs = Costs(run, caps)
    user_side = costs.count("user", user, user_side, prices[0])
    assistant_side = costs.count("assistant", assistant, assistant_side, prices[1])
    costs.check()
    turns = Journal(run.path("turns.jsonl"))
    answers = Answers(turns)
    costs.estimate(starts(), lambda start: calls_to_come(start, answers, max_turns))
    if "human" in (user, assistant):
        workers = 1  # only one conversation can use the keyboard
    stopped = simulate_all(
        Recorded(user_side, answers),
        Recorded(assistant_side, answers),
        starts(),
        max_turns,
        _until_solved(known_tasks),
        workers,
    )
    return collect(run, places, stopped, turns, costs, "simulating")


def _starts_file(intents: Path | None, tasks: Path | None) -> Path:
    if intents and not tasks:
        return conversations_file(intents, "test")
    if tasks and not intents:
        return tasks
    raise InputError(
        "give either --intents (conversations with intents) or --tasks, and not both"
    )


def _until_solved(tasks: dict[str, Task]) -> Until:
    def until(conversation: Conversation) -> str | None:
        task = task_of(conversation, tasks)
        return solved(task)(conversation) if task else never(conversation)

    return until


def _from_tasks(tasks: Iterable[Task], repeats: int) -> Iterator[Conversation]:
    for task in tasks:
        for repeat in range(repeats):
            origin = Origin(repeat=repeat, task=task.id)
            yield Conversation(f"{task.id}#{repeat}", intent=task.intent, origin=origin)


def _from_logs(
    logs: Iterable[Conversation], repeats: int, keep_turns: int
) -> Iterator[Conversation]:
    """Return a conversation that starts with the first turns of a log and its intent."""
    for log in logs:
        kept = tuple(replace(turn, meta={}) for turn in log.turns[:keep_turns])
        kept_user_turns = sum(turn.role == "user" for turn in kept)
        for repeat in range(repeats):
            yield replace(
                log,
                id=f"{log.id}#{repeat}",
                turns=kept,
                stop=None,
                ended=False,
                meta=without_outcome(log.meta),
                origin=Origin(
                    log.id,
                    kept_user_turns,
                    repeat=repeat,
                    task=log.origin.task if log.origin else None,
                ),
            )

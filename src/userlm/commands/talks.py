"""`respond`, `simulate` and `chat`: users and assistants in conversation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from rich.text import Text
from typer import Argument, Option

from userlm import address, flip
from userlm.commands.costs import (
    BYTES_A_TOKEN,
    TOKENS_A_TURN,
    AssistantPrice,
    Costs,
    DollarBudget,
    MaxCalls,
    MaxTokensTotal,
    UserPrice,
    read_caps,
    read_price,
)
from userlm.commands.shared import (
    EMBEDDED_USER,
    Batch,
    EndAbove,
    GuardSpec,
    Limit,
    Out,
    Results,
    Seed,
    Temperature,
    TopP,
    UserTokenizer,
    Workers,
    finished,
    in_order,
    stub_speakers,
)
from userlm.guard import rates
from userlm.models.budget import CAP
from userlm.rows import dumps, read_conversations, to_record
from userlm.runs import Answers, Journal, Recorded, Run, conversations_file
from userlm.simulate import converse, never, respond_all
from userlm.simulate import simulate as simulate_all
from userlm.tasks import read_tasks, solved, task_of
from userlm.terminal import console, show_turn, track
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, InputError, Origin, Role, Task, without_outcome

Place = tuple[int, int]
Places = dict[str, Place]
"""By a conversation's id: its number, and how many turns it had when the run began."""


def respond(
    data: Annotated[
        Path, Argument(help="Real conversations: a folder (its test.jsonl) or a file.")
    ],
    user: Annotated[
        str,
        Option(
            help="trained:MODEL, profile:, prompted: or swapped:MODEL, replay:FILE, script:FILE "
            "or py:MODULE:NAME."
        ),
    ],
    out: Out = Path("runs/respond"),
    first: Annotated[
        bool, Option(help="Also ask for first turns, where nothing was said yet.")
    ] = True,
    temperature: Temperature = None,
    top_p: TopP = None,
    end_threshold: EndAbove = None,
    guard: GuardSpec = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Workers = 16,
    batch: Batch = address.BATCH,
    tokenizer: UserTokenizer = None,
    user_price: UserPrice = None,
    budget: DollarBudget = None,
    max_calls: MaxCalls = None,
    max_tokens_total: MaxTokensTotal = None,
) -> Results:
    """Ask a user for one turn after every prefix of real conversations: what would it say, or would
    it leave?"""
    price, caps = read_price("user", user_price), read_caps(max_calls, max_tokens_total, budget)
    path = conversations_file(data, "test")
    options = {"user": user, "first": first, "temperature": temperature, "top_p": top_p}
    options |= {
        "end_threshold": end_threshold,
        "guard": guard,
        "batch": batch,
        "tokenizer": tokenizer,
    }
    run = Run.open(
        out, "respond", {**options, "limit": limit, "seed": seed}, [path, *address.files(user)]
    )
    if done := _finished_without_errors(run):
        return done

    def starts() -> Iterator[Conversation]:
        for conversation in islice(read_conversations(path), limit):
            yield from (sample.prefix for sample in flip.samples(conversation) if first or sample.k)

    places = _places(user, starts(), path)
    speaker = address.user(
        user,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        end_threshold=end_threshold,
        guard=guard,
        batch=batch,
        tokenizer=tokenizer,
    )
    costs = Costs(run, caps)
    speaker = costs.count("user", user, speaker, price)
    costs.check()
    turns = Journal(run.path("turns.jsonl"))
    answers = Answers(turns)
    costs.estimate(starts(), lambda start: _calls_to_come(start, answers, only_one=True))
    answered = respond_all(Recorded(speaker, answers), starts(), 1 if user == "human" else workers)
    return _collect(run, places, answered, turns, costs, "responding")


def simulate(
    user: Annotated[
        str,
        Option(
            help="trained:MODEL, profile:, prompted: or swapped:MODEL, replay:FILE, script:FILE "
            "or py:MODULE:NAME."
        ),
    ],
    assistant: Annotated[
        str,
        Option(
            help="A chat model (folder, hub id, openai:NAME, URL#NAME), oracle, clarifier, "
            "replay:FILE, ..."
        ),
    ],
    intents: Annotated[
        Path | None, Option(help="Conversations whose intents to start from.")
    ] = None,
    tasks: Annotated[Path | None, Option(help="Tasks to start from instead (.jsonl).")] = None,
    out: Out = Path("runs/simulate"),
    repeats: Annotated[int, Option(help="Conversations for each intent or task.", min=1)] = 1,
    keep_turns: Annotated[
        int, Option(help="Keep this many logged turns of each seed and go on there.", min=0)
    ] = 0,
    max_turns: Annotated[int, Option(help="User turns at most.", min=1)] = 10,
    system: Annotated[
        str | None, Option(help="System prompt of an assistant that is a model.")
    ] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    end_threshold: EndAbove = None,
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
    """Let a user talk to an assistant, many times. With tasks, a conversation stops when its task
    is solved."""
    if (intents is None) == (tasks is None):
        raise InputError(
            "give either --intents (conversations with intents) or --tasks, and not both"
        )
    prices = read_price("user", user_price), read_price("assistant", price)
    caps = read_caps(max_calls, max_tokens_total, budget)
    path = conversations_file(intents, "test") if intents else tasks
    assert path is not None
    options: dict[str, Any] = {
        "user": user,
        "assistant": assistant,
        "repeats": repeats,
        "keep_turns": keep_turns,
    }
    options |= {
        "max_turns": max_turns,
        "system": system,
        "temperature": temperature,
        "top_p": top_p,
    }
    options |= {
        "end_threshold": end_threshold,
        "guard": guard,
        "batch": batch,
        "tokenizer": tokenizer,
    }
    inputs = [path, *address.files(user), *address.files(assistant)]
    run = Run.open(out, "simulate", {**options, "limit": limit, "seed": seed}, inputs)
    if done := _finished_without_errors(run):
        return done
    known = {task.id: task for task in read_tasks(path)[:limit]} if tasks else {}

    def starts() -> Iterator[Conversation]:
        if tasks:
            yield from (
                _from_task(task, repeat) for task in known.values() for repeat in range(repeats)
            )
            return
        for log in islice(read_conversations(path), limit):
            yield from (_from_log(log, repeat, keep_turns) for repeat in range(repeats))

    def until(conversation: Conversation) -> str | None:
        task = task_of(conversation, known)
        return solved(task)(conversation) if task else never(conversation)

    places = _places(user, starts(), path)
    user_side = address.user(
        user,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        end_threshold=end_threshold,
        guard=guard,
        batch=batch,
        tokenizer=tokenizer,
    )
    assistant_side = address.assistant(
        assistant, tasks=known.values(), seed=seed, system=system, batch=batch
    )
    costs = Costs(run, caps)
    user_side = costs.count("user", user, user_side, prices[0])
    assistant_side = costs.count("assistant", assistant, assistant_side, prices[1])
    costs.check()
    turns = Journal(run.path("turns.jsonl"))
    answers = Answers(turns)
    costs.estimate(starts(), lambda start: _calls_to_come(start, answers, max_turns))
    if "human" in (user, assistant):
        workers = 1  # who has one keyboard
    ended = simulate_all(
        Recorded(user_side, answers),
        Recorded(assistant_side, answers),
        starts(),
        max_turns,
        until,
        workers,
    )
    return _collect(run, places, ended, turns, costs, "simulating")


def chat(
    user: Annotated[
        str, Option(help="Who talks to you: trained:MODEL, prompted:MODEL, script:FILE, ...")
    ] = EMBEDDED_USER,
    assistant: Annotated[str, Option(help="Who answers you, with --role user.")] = "assistant-tiny",
    role: Annotated[str, Option(help="Your role: assistant or user.")] = "assistant",
    intent: Annotated[str | None, Option(help="What the user is after, one sentence.")] = None,
    save: Annotated[
        Path | None, Option(help="Append the conversation to this file (.jsonl).")
    ] = None,
    max_turns: Annotated[int, Option(help="User turns at most.", min=1)] = 20,
    temperature: Temperature = None,
    end_threshold: EndAbove = None,
    guard: GuardSpec = None,
    tokenizer: UserTokenizer = None,
    seed: Seed = 0,
) -> Results:
    """You are the assistant, and a simulated user talks to you; or the other way round.

    An empty line leaves; /info tells what is known about the last turn: P(end), drafts, tokens.
    """
    if role not in ("assistant", "user"):
        raise InputError(f"--role {role}: your role is 'assistant' or 'user'")
    other = user if role == "assistant" else assistant
    if role == "user" and (temperature, guard, end_threshold, tokenizer) != (
        None,
        None,
        None,
        None,
    ):
        raise InputError(
            "--temperature, --guard, --end-threshold and --tokenizer are for a simulated user; "
            "here you are the user"
        )
    if role == "assistant" and other.startswith(("prompted:", "swapped:")) and intent is None:
        raise InputError("a prompted user needs to know what it is after; give --intent")
    if save and save.suffix != ".jsonl":
        raise InputError(f"--save {save}: conversations are saved as lines of a .jsonl file")
    you = _Seat(role)
    if role == "assistant":
        if user == EMBEDDED_USER and intent is None:
            intent = INTENT_PREFIX + "plan a trip to Rome."  # without any it talks about anything
            console.print(f"{intent} (give another with --intent)", style="dim")
        if user == EMBEDDED_USER and temperature is None:
            temperature = 0.6  # so small a model rambles at 1
        user_side = address.user(
            other,
            seed=seed,
            temperature=temperature,
            end_threshold=end_threshold,
            guard=guard,
            tokenizer=tokenizer,
        )
        assistant_side = address.assistant("human", ask=you.ask)
    else:
        user_side, assistant_side = (
            address.user("human", ask=you.ask),
            address.assistant(other, seed=seed),
        )
    saved = save.open("a", encoding="utf-8") if save else None  # before the talk, not after it
    start = Conversation(f"chat-{seed}", intent=intent)
    ended = converse(user_side, assistant_side, start, max_turns, until=you.watch)
    leaves = ended.next_role
    if len(ended.turns) > len(you.seen.turns):  # last words, said with a stop
        leaves = ended.turns[-1].role
        you.watch(ended)
    why = {
        "end": "left",
        "error": f"could not answer: {ended.meta.get('error')}",
        "max_turns": f"has had {max_turns} turns",
        "context": "has no room left in the model's context_length",
        "guard": "said nothing that the guard lets pass",
    }.get(ended.stop or "", ended.stop)
    console.print(f"{'you' if leaves == role else f'the {leaves}'} {why}", style="dim")
    record = to_record(replace(ended, id=f"chat-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"))
    if saved:
        with saved:
            saved.write(dumps(record) + "\n")
    return record


class _Seat:
    """Somebody in the terminal, on one side of a conversation that they see as it grows."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.seen = Conversation()

    def watch(self, conversation: Conversation) -> str | None:
        """Show what the other side just said; it is no reason to stop."""
        self.seen = conversation
        turn = conversation.turns[-1]
        if turn.role != self.role:
            show_turn(turn)
        return None

    def ask(self, conversation: Conversation) -> str | None:
        """A line of theirs; `None` leaves."""
        while True:
            try:
                text = console.input(Text(f"{self.role} (you)> ", style="bold")).strip()
            except (EOFError, KeyboardInterrupt):
                return None
            if text != "/info":
                return text or None
            known = dict(self.seen.turns[-1].meta) if self.seen.turns else {}
            console.print(dumps(known) if known else "nothing is known about it", style="dim")


def _from_task(task: Task, repeat: int) -> Conversation:
    origin = Origin(repeat=repeat, task=task.id)
    return Conversation(f"{task.id}#{repeat}", intent=task.intent, origin=origin)


def _from_log(log: Conversation, repeat: int, keep_turns: int) -> Conversation:
    """The start of a simulation: the first turns of a log, and its intent."""
    kept = log.turns[:keep_turns]
    kept_user_turns = sum(turn.role == "user" for turn in kept)
    return replace(
        log,
        id=f"{log.id}#{repeat}",
        turns=tuple(replace(turn, meta={}) for turn in kept),
        stop=None,
        ended=False,
        meta=without_outcome(log.meta),
        origin=Origin(conversation=log.id, first_own_turn=kept_user_turns, repeat=repeat),
    )


def _collect(
    run: Run,
    places: Places,
    ended: Iterator[Conversation],
    turns: Journal,
    costs: Costs,
    doing: str,
) -> Results:
    """Write conversations down as they end; in the finished files they stand in the order of their
    starts."""
    path = run.path("conversations.jsonl")
    path.unlink(missing_ok=True)
    so_far = Journal(path)
    stops: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    errors: list[tuple[Place, str]] = []
    try:
        for conversation in track(ended, doing, len(places)):
            so_far.add(to_record(conversation))
            stops[conversation.stop or "answered"] += 1
            for meta in _metas(conversation, places, ("user", "assistant")):
                tokens.update(
                    tokens_in=meta.get("tokens_in", 0), tokens_out=meta.get("tokens_out", 0)
                )
            if conversation.stop == "error":
                errors.append((places[conversation.id], conversation.meta["error"]))
    finally:
        costs.stop()
    turns.close(order=lambda row: (places[row["id"]], row["n"]))
    so_far.close(order=lambda row: places[row["id"]])

    def over() -> Iterator[Conversation]:
        return read_conversations(path, may_be_empty=True)

    results = {
        "conversations": stops.total(),
        "stops": in_order(stops),
        "tokens_in": tokens["tokens_in"],
        "tokens_out": tokens["tokens_out"],
        **costs.close(),
        "guard": rates(
            meta for conversation in over() for meta in _metas(conversation, places, ("user",))
        ),
    }
    shown = ", ".join(f"{count} {stop}" for stop, count in stops.most_common())
    console.print(f"{stops.total()} conversations ({shown}): {path}")
    costs.show()
    if stubs := stub_speakers(over()):
        console.print(f"no language model answered here: {stubs} is a stand-in", style="dim")
    capped = [error for _, error in errors if error.startswith(CAP)]
    if capped:
        waiting = f"does not cover another call at its worst; {len(capped)} conversations wait"
        go_on = (
            "the same command with a higher one goes on there; no turn that was answered "
            "is "
            "asked again"
        )
        console.print(f"{capped[0]} {waiting}: {go_on}", style="yellow")
    if failed := sorted((place, error) for place, error in errors if not error.startswith(CAP)):
        again = "the same command tries these again"
        console.print(
            f"{len(failed)} ended in an error ({again}), the first: {failed[0][1]}", style="yellow"
        )
    return run.finish(results)


def _metas(
    conversation: Conversation, places: Places, roles: Sequence[Role]
) -> Iterator[Mapping[str, Any]]:
    """What is known of the turns that were taken in this run, and of an ending without words."""
    _, begun = places[conversation.id]
    yield from (turn.meta for turn in conversation.turns[begun:] if turn.role in roles)
    if (
        "end_meta" in conversation.meta
        and conversation.stop != "context"
        and conversation.next_role in roles
    ):
        yield conversation.meta["end_meta"]


def _calls_to_come(
    start: Conversation, answers: Answers, max_turns: int = 0, only_one: bool = False
) -> Iterator[tuple[Role, int]]:
    """Whose turns are still to come, at most, and after how many tokens; what was answered before
    is not.

    Args:
        only_one: the user's next.
    """
    said = sum(len(turn.text.encode()) for turn in start.turns) // BYTES_A_TOKEN
    n, users, role = len(start.turns), len(start.user_turns), start.next_role
    while only_one or users < max_turns or role == "assistant":
        if known := answers.find(start.id, n):
            if known.stop:
                return
        else:
            yield role, said
        if only_one:
            return
        said += TOKENS_A_TURN[role]
        n, users = n + 1, users + (role == "user")
        role = "assistant" if role == "user" else "user"


def _finished_without_errors(run: Run) -> Results | None:
    """A run of which some conversations ended in an error is taken up again; what was answered
    stays."""
    if run.results and run.results["stops"].get("error"):
        run.path("results.json").unlink()
    return finished(run)


def _places(user: str, starts: Iterable[Conversation], path: Path) -> Places:
    """Where the conversations stand, after a look at whether a prompted user can have them."""
    places: Places = {}
    without = 0
    for start in starts:
        places[start.id] = len(places), len(start.turns)
        without += start.intent is None
    if user.startswith(("prompted:", "swapped:")) and without:
        raise InputError(
            f"{path}: {without} of {len(places)} conversations have no intent, and a prompted "
            "user needs one; "
            "run `userlm intents` first"
        )
    return places

"""`userlm respond`: one user turn after every prefix of real conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from userlm import flip, inputs, items
from userlm.commands.conversing import checked, collect, find_places, has_errors, merged
from userlm.commands.costs import (
    Limits,
    check_caps,
    counted,
    estimate_conversations,
    estimate_tokens,
    price_option,
    read_price,
)
from userlm.commands.options import (
    Failures,
    LocalModels,
    Output,
    Parts,
    User,
    argument,
    limit_option,
    option,
    out_folder,
    seed_option,
    workers_option,
)
from userlm.commands.parts import in_parts
from userlm.commands.steps import Results, conversations_in, finished, open_run
from userlm.journal import Answers, Journal, Recorded
from userlm.models.budget import Budget
from userlm.rows import read_conversations
from userlm.runs import FinishedRun
from userlm.simulate import respond_all
from userlm.types import Conversation, Role


@dataclass(frozen=True, slots=True)
class Respond:
    """Ask a simulated user for the next turn (or the end) after every prefix of real conversations,
    or after the test items of user-role and intent adherence.

    $ userlm respond runs/intents --user trained:runs/train
    """

    user: User
    data: Path = argument(
        ..., "Real conversations: a file, or a folder with test.jsonl."
    )
    out: Path = out_folder("runs/respond")
    first: bool = option(True, "Also ask for the first turn of each conversation.")
    limit: int | None = limit_option()
    seed: int = seed_option()
    workers: int = workers_option()
    models: LocalModels = LocalModels()
    user_price: str | None = price_option("--user-price", "the user's model")
    limits: Limits = Limits()
    several: Parts = Parts()
    failures: Failures = Failures()
    output: Output = Output()


@in_parts
def respond(options: Respond, parts: Sequence[FinishedRun] = ()) -> Results:
    """Ask the user after every prefix, and write the responses."""
    user = options.user.parsed
    price = read_price("user", options.user_price)
    path = conversations_in(options.data)
    files = [path, *options.user.files]
    run = open_run("respond", options, files, inputs.stamps(user), parts=parts)
    if done := finished(run, options, has_errors):
        return checked(options, done)

    share = options.several.share

    def starts() -> Iterator[Conversation]:
        for conversation in islice(read_conversations(path), options.limit):
            if not share.has(conversation.id):
                continue
            if items.kind_of(conversation):
                yield items.prefix(conversation)
                continue
            for sample in flip.samples(conversation):
                if options.first or sample.k:
                    yield sample.prefix

    is_part = options.several.part is not None
    places = find_places(options.user, starts(), path, may_be_empty=is_part)
    if parts:
        return merged(run, options, places, parts, ["user"])
    speaker = options.user.load(options.seed, options.models)
    budget = Budget(options.limits.caps, run.path("usage.jsonl"))
    speaker = counted(budget, "user", user, speaker, price)
    check_caps(budget.caps, bool(budget.sides))
    turns = Journal(run.path("turns.jsonl"))
    answers = Answers(turns)

    def calls(start: Conversation) -> Iterator[tuple[Role, int]]:
        if answers.find(start.id, len(start.turns)) is None:
            yield "user", estimate_tokens(turn.text for turn in start.turns)

    estimate_conversations(budget, {"user": speaker}, starts(), calls)
    # Only one conversation can use the keyboard.
    at_once = 1 if user.is_person else options.workers
    answered = respond_all(Recorded(speaker, answers), starts(), at_once)
    shown = "" if user.is_person else "responding"  # a bar is drawn over what is typed
    return collect(run, options, places, answered, turns, budget, ["user"], shown)

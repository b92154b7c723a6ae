"""`userlm respond`: one user turn after every prefix of real conversations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from userlm import address, flip
from userlm.commands.conversing import collect, find_places, has_errors
from userlm.commands.costs import (
    BYTES_PER_TOKEN,
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
from userlm.simulate import respond_all
from userlm.types import Conversation, Role


def respond(
    data: Annotated[
        Path, Argument(help="Real conversations: a file, or a folder with test.jsonl.")
    ],
    user: User,
    out: Out = Path("runs/respond"),
    first: Annotated[
        bool, Option(help="Also ask for the first turn of each conversation.")
    ] = True,
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
    budget: DollarBudget = None,
    max_calls: MaxCalls = None,
    max_tokens_total: MaxTokensTotal = None,
) -> Results:
    """Ask a simulated user for the next turn (or the end) after every prefix of real
    conversations."""
    price = read_price("user", user_price)
    caps = read_caps(max_calls, max_tokens_total, budget)
    user_options = UserOptions(
        user, temperature, top_p, end_threshold, guard, batch, tokenizer
    )
    path = conversations_file(data, "test")
    options = {**asdict(user_options), "first": first, "limit": limit, "seed": seed}
    run = Run.open(out, "respond", options, [path, *address.files(user)])
    if done := finished(run, has_errors):
        return done

    def starts() -> Iterator[Conversation]:
        for conversation in islice(read_conversations(path), limit):
            for sample in flip.samples(conversation):
                if first or sample.k:
                    yield sample.prefix

    places = find_places(user_options, starts(), path)
    costs = Costs(run, caps)
    speaker = costs.count("user", user, user_options.load(seed), price)
    costs.check()
    turns = Journal(run.path("turns.jsonl"))
    answers = Answers(turns)

    def calls(start: Conversation) -> Iterator[tuple[Role, int]]:
        if answers.find(start.id, len(start.turns)) is None:
            said = sum(len(turn.text.encode()) for turn in start.turns)
            yield "user", said // BYTES_PER_TOKEN

    costs.estimate(starts(), calls)
    if user == "human":
        workers = 1  # only one conversation can use the keyboard
    answered = respond_all(Recorded(speaker, answers), starts(), workers)
    return collect(run, places, answered, turns, costs, "responding")

"""What `respond` and `simulate` share: the run that records conversations and resumes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userlm.commands.costs import BYTES_PER_TOKEN, TOKENS_PER_TURN, Costs, show_errors
from userlm.commands.options import User
from userlm.commands.steps import Results, RunOptions, finish, in_order
from userlm.guard import rates
from userlm.rows import read_conversations, to_record
from userlm.runs import Answers, Journal, Run
from userlm.show.terminal import track
from userlm.types import OTHER_ROLE, Conversation, InputError, Role

ROLES: tuple[Role, Role] = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Place:
    """The index of a conversation in its run, and the number of turns that it started with."""

    number: int
    turns: int


Places = Mapping[str, Place]
"""By the id of the conversation."""


def find_places(user: User, starts: Iterable[Conversation], path: Path) -> Places:
    """Number the conversations to start from; raise `InputError` if the user needs intents and some
    have none."""
    places: dict[str, Place] = {}
    without_intent = 0
    for start in starts:
        places[start.id] = Place(len(places), len(start.turns))
        without_intent += start.intent is None
    if user.parsed.is_prompted and without_intent:
        raise InputError(
            f"{path}: {without_intent} of {len(places)} conversations have no intent, and a "
            "prompted user needs one; run `userlm intents` first"
        )
    return places


def has_errors(results: Results) -> bool:
    """Return whether a conversation of the run stopped with an error."""
    return bool(results["stops"].get("error"))


def calls_to_come(
    start: Conversation, answers: Answers, max_turns: int
) -> Iterator[tuple[Role, int]]:
    """Yield the calls that a conversation may still need: the role, and the tokens in the turns
    before it. Turns that an earlier attempt answered are left out."""
    said = sum(len(turn.text.encode()) for turn in start.turns) // BYTES_PER_TOKEN
    n, user_turns, role = len(start.turns), len(start.user_turns), start.next_role
    while user_turns < max_turns or role == "assistant":
        known = answers.find(start.id, n)
        if known is None:
            yield role, said
        elif known.stop:
            return
        said += TOKENS_PER_TURN[role]
        n += 1
        user_turns += role == "user"
        role = OTHER_ROLE[role]


def collect(
    run: Run,
    options: RunOptions,
    places: Places,
    stopped: Iterator[Conversation],
    turns: Journal,
    costs: Costs,
    doing: str,
) -> Results:
    """Write each conversation as it stops, and the results. In the finished files, conversations
    are in the order in which they were started, not stopped."""
    path = run.path("conversations.jsonl")
    path.unlink(missing_ok=True)
    journal = Journal(path)
    stops: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    errors: list[tuple[int, str]] = []
    try:
        for conversation in track(stopped, doing, len(places)):
            journal.add(to_record(conversation))
            stops[conversation.stop or "answered"] += 1
            for meta in _own_metas(conversation, places, ROLES):
                tokens["tokens_in"] += meta.get("tokens_in", 0)
                tokens["tokens_out"] += meta.get("tokens_out", 0)
            if conversation.stop == "error":
                number = places[conversation.id].number
                errors.append((number, conversation.meta["error"]))
    finally:
        costs.stop()
    turns.close(order=lambda row: (places[row["id"]].number, row["n"]))
    journal.close(order=lambda row: places[row["id"]].number)
    results = {
        "conversations": stops.total(),
        "stops": in_order(stops),
        "tokens_in": tokens["tokens_in"],
        "tokens_out": tokens["tokens_out"],
        **costs.close(),
        "guard": rates(_user_metas(path, places)),
    }
    written = finish(run, options, results)
    show_errors([error for _, error in sorted(errors)])
    return written


def _user_metas(path: Path, places: Places) -> Iterator[Mapping[str, Any]]:
    for conversation in read_conversations(path, may_be_empty=True):
        yield from _own_metas(conversation, places, ("user",))


def _own_metas(
    conversation: Conversation, places: Places, roles: Sequence[Role]
) -> Iterator[Mapping[str, Any]]:
    """The `meta` of each turn that was taken in this run, and of an end without text."""
    for turn in conversation.turns[places[conversation.id].turns :]:
        if turn.role in roles:
            yield turn.meta
    has_end_meta = "end_meta" in conversation.meta and conversation.stop != "context"
    if has_end_meta and conversation.next_role in roles:
        yield conversation.meta["end_meta"]

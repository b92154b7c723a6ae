"""What `respond` and `simulate` share: the run that records conversations and resumes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import chdir
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from userlm.commands.costs import (
    TOKENS_PER_TURN,
    estimate_tokens,
    show_errors,
    stop,
)
from userlm.commands.options import Failures, Parts, User
from userlm.commands.parts import concatenate, merged_budget
from userlm.commands.steps import Results, RunOptions, finish, in_order
from userlm.guard import rates
from userlm.journal import Answers, Journal
from userlm.models.budget import Budget
from userlm.rows import read_conversations, to_record
from userlm.runs import FinishedRun, Run
from userlm.show.terminal import console, track
from userlm.types import OTHER_ROLE, Conversation, InputError, Role

Places = Mapping[str, int]
"""The number of turns that each conversation started with, by its id and in order of the starts."""


class ConversingOptions(RunOptions, Protocol):
    """The options of `respond` and `simulate` that are needed here."""

    @property
    def failures(self) -> Failures: ...

    @property
    def several(self) -> Parts: ...


def find_places(
    user: User, starts: Iterable[Conversation], path: Path, may_be_empty: bool
) -> Places:
    """Return the places of the conversations; raise `InputError` if there are none, which a part
    may be, or if the user needs intents and some have none. Say so if they are only better."""
    places: dict[str, int] = {}
    without_intent = 0
    for start in starts:
        places[start.id] = len(start.turns)
        without_intent += start.intent is None
    if not places and not may_be_empty:
        raise InputError(
            f"{path}: in no conversation is there a turn for the user to take; give others"
        )
    if user.parsed.is_prompted and without_intent:
        raise InputError(
            f"{path}: {without_intent} of {len(places)} conversations have no intent, and a "
            "prompted user needs one; run `userlm intents` first"
        )
    if user.parsed.form == "trained" and without_intent:
        console.print(
            f"{path}: {without_intent:,} of {len(places):,} starts have no intent, so the user "
            "has no goal there; run `userlm intents` first, unless its model was trained with "
            "--no-intent",
            style="yellow",
            soft_wrap=True,
        )
    return places


def has_errors(results: Results) -> bool:
    """Return whether a conversation of the run stopped with an error."""
    stops = results.get("stops")
    return isinstance(stops, dict) and bool(stops.get("error"))


def calls_to_come(
    start: Conversation, answers: Answers, max_turns: int
) -> Iterator[tuple[Role, int]]:
    """Yield the calls that a conversation may still need: the role, and the tokens in the turns
    before it. Turns that an earlier attempt answered are left out."""
    said = estimate_tokens(turn.text for turn in start.turns)
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
    options: ConversingOptions,
    places: Places,
    stopped: Iterator[Conversation],
    turns: Journal,
    budget: Budget,
    roles: Iterable[Role],
    doing: str,
) -> Results:
    """Write each conversation as it stops, and the results. In the finished files, conversations
    are in the order in which they were started, not stopped.

    Raises:
        ModelError: if too many ended in an error; see `Failures`. The run is complete all the same.
    """
    run.unfinish()
    path = run.path("conversations.jsonl")
    path.unlink(missing_ok=True)
    journal = Journal(path)
    try:
        with chdir("."):  # a bot may leave the folder to which paths are relative
            for conversation in track(stopped, doing, len(places)):
                journal.add(to_record(conversation))
    finally:
        stop(budget)
    order = {id: number for number, id in enumerate(places)}
    turns.close(order=lambda row: (order.get(row["id"], len(order)), row["n"]))
    journal.close(order=lambda row: order[row["id"]])
    stops: Counter[str] = Counter()
    tokens = Counter(tokens_in=0, tokens_out=0)
    cut: Counter[str] = Counter()
    errors: list[str] = []
    silent = 0

    def user_metas() -> Iterator[Mapping[str, Any]]:
        """Count all else on the way: the file may be large, so it is read once."""
        nonlocal silent
        for conversation in read_conversations(path, may_be_empty=True):
            stops[conversation.stop or "answered"] += 1
            for role, meta in _own_metas(conversation, places):
                for name in tokens:
                    tokens[name] += meta.get(name) or 0
                if meta.get("cut"):
                    cut[role] += 1
                if role == "user":
                    yield meta
            if conversation.stop == "error":
                errors.append(str(conversation.meta.get("error", "an error")))
            # Nothing was said that the guard lets pass.
            has_turns = len(conversation.turns) > places[conversation.id]
            silent += conversation.stop == "guard" and not has_turns

    guard = rates(user_metas())
    results = {
        "conversations": stops.total(),
        "stops": in_order(stops),
        "silent": silent,
        "cut": in_order(cut),
        **tokens,
        **budget.finish(roles),
        "guard": guard,
    }
    show_errors(errors, stops.total())
    written = finish(run, options, results, has_failures=bool(errors))
    return checked(options, written)


def checked(options: ConversingOptions, results: Results) -> Results:
    """Return the results of a run; raise `ModelError` if too many of its conversations ended in an
    error or, by the guard, without a turn."""
    stops: Counter[str] = Counter(results["stops"])
    # What the guard ended in a part stays so, and may be few of the whole.
    silent = 0 if options.several.part else results.get("silent", 0)
    how = "ended in an error or without a turn" if silent else "ended in an error"
    options.failures.check(stops["error"] + silent, stops.total(), how=how)
    return results


def merged(
    run: Run,
    options: ConversingOptions,
    places: Places,
    parts: Sequence[FinishedRun],
    roles: Iterable[Role],
) -> Results:
    """Write the conversations of all parts, and the results; see `collect`."""
    files = [part.path("conversations.jsonl") for part in parts]
    found = sum(part.results["conversations"] for part in parts)
    if found != len(places):
        raise InputError(
            f"the parts have {found:,} conversations together, and the whole run {len(places):,}; "
            "were all run with these inputs?"
        )
    concatenate(run, "turns.jsonl", parts)
    stopped = chain.from_iterable(read_conversations(file, True) for file in files)
    turns = Journal(run.path("turns.jsonl"))
    budget = merged_budget(run, parts)
    return collect(run, options, places, stopped, turns, budget, roles, "merging")


def _own_metas(
    conversation: Conversation, places: Places
) -> Iterator[tuple[Role, Mapping[str, Any]]]:
    """Yield the role and the `meta` of each turn that was taken in this run, and of an end without
    text."""
    for turn in conversation.turns[places[conversation.id] :]:
        yield turn.role, turn.meta
    if "end_meta" in conversation.meta and conversation.stop != "context":
        yield conversation.next_role, conversation.meta["end_meta"]

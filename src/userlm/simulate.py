"""The conversation loop. `userlm respond` and `userlm simulate` run this."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import replace
from typing import TypeVar

from userlm.text import has_words, named_type
from userlm.types import (
    STOPS,
    TOO_LONG,
    Conversation,
    InputError,
    ModelError,
    Reply,
    Speaker,
)

Item = TypeVar("Item")
Done = TypeVar("Done")
Until = Callable[[Conversation], str | None]
"""Called after every turn; returns a reason to stop, or `None`."""


def never(conversation: Conversation) -> str | None:
    """Return no reason to stop."""
    return None


def converse(
    user: Speaker,
    assistant: Speaker,
    conversation: Conversation,
    max_turns: int = 10,
    until: Until = never,
) -> Conversation:
    """Continue the conversation until someone stops. The assistant never sees the intent.

    Args:
        conversation: where to start: empty, or with turns that were already said.
        max_turns: the maximum number of user turns in all; each of them is answered.
        until: called after every turn; returns a reason to stop, such as `"solved"`, or `None`.
    """
    while True:
        conversation = advance(user, assistant, conversation, max_turns, until)
        if conversation.stop:
            return conversation


def advance(
    user: Speaker,
    assistant: Speaker,
    conversation: Conversation,
    max_turns: int,
    until: Until,
) -> Conversation:
    """Return the conversation with one more turn, or stopped, or both; see `converse`."""
    if conversation.next_role == "assistant":
        conversation = answer(assistant, conversation)
    elif len(conversation.user_turns) < max_turns:
        conversation = respond(user, conversation)
    else:
        return conversation.close("max_turns")
    if conversation.stop:
        return conversation
    stop = until(conversation)
    return conversation.close(stop) if stop else conversation


def respond(user: Speaker, conversation: Conversation) -> Conversation:
    """Add the one turn that the user would take next, or record that the user ends here."""
    return _take_turn(user, conversation, conversation)


def answer(assistant: Speaker, conversation: Conversation) -> Conversation:
    """Add the assistant's answer. It sees the texts alone, and never the intent."""
    return _take_turn(assistant, seen_by_assistant(conversation), conversation)


def simulate(
    user: Speaker,
    assistant: Speaker,
    starts: Iterable[Conversation],
    max_turns: int = 10,
    until: Until = never,
    workers: int = 16,
) -> Iterator[Conversation]:
    """Run `converse` on each start in `workers` threads, and yield each conversation when it stops.

    When the caller stops iterating, as at Ctrl-C, no conversation takes another turn.
    """
    abandoned = threading.Event()

    def unless_abandoned(conversation: Conversation) -> str | None:
        if abandoned.is_set():
            raise CancelledError
        return until(conversation)

    def run(start: Conversation) -> Conversation:
        return converse(user, assistant, start, max_turns, unless_abandoned)

    try:
        yield from parallel(run, starts, workers)
    finally:
        abandoned.set()


def respond_all(
    user: Speaker, prefixes: Iterable[Conversation], workers: int = 16
) -> Iterator[Conversation]:
    """Run `respond` on each prefix in `workers` threads, and yield each when it is answered."""
    return parallel(lambda prefix: respond(user, prefix), prefixes, workers)


def _take_turn(
    speaker: Speaker, view: Conversation, conversation: Conversation
) -> Conversation:
    """Return the conversation with the speaker's reply: a text, a stop, or both."""
    try:
        reply = speaker.reply(view)
        if not isinstance(reply, Reply):
            raise InputError(
                f"{type(speaker).__name__}.reply returned {named_type(reply)}; return "
                "userlm.Reply(text)"
            )
        if reply.stop is not None and reply.stop not in STOPS:
            raise InputError(
                f"{type(speaker).__name__}.reply stopped for {reply.stop!r}; give one of "
                f"{', '.join(STOPS)}"
            )
        if not has_words(reply.text) and reply.stop is None:
            raise ModelError(
                f"the {conversation.next_role} returned neither a text nor a stop"
            )
    except ModelError as error:
        stop = "context" if error.reason == TOO_LONG else "error"
        return conversation.close(stop, error=str(error))
    if has_words(reply.text):
        conversation = conversation.say(reply.text, reply.meta)
        return conversation.close(reply.stop) if reply.stop else conversation
    assert reply.stop is not None
    return conversation.close(reply.stop, end_meta=dict(reply.meta))


def seen_by_assistant(conversation: Conversation) -> Conversation:
    """Return what the assistant may see: the texts, and nothing about the person."""
    turns = tuple(replace(turn, meta={}) for turn in conversation.turns)
    return Conversation(conversation.id, turns)


def parallel(
    job: Callable[[Item], Done], items: Iterable[Item], workers: int
) -> Iterator[Done]:
    """Run a job on each item in `workers` threads, and yield each result when it is there. Items
    are consumed as needed, so memory use is constant. One worker is the caller's own thread, for
    code that no other may call."""
    if workers == 1:
        yield from map(job, items)
        return
    pool = ThreadPoolExecutor(workers)
    running: set[Future[Done]] = set()
    try:
        for item in items:
            running.add(pool.submit(job, item))
            if len(running) >= workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:  # after Ctrl-C, or if the caller stops iterating, start nothing new
        pool.shutdown(wait=False, cancel_futures=True)

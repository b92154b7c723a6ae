"""Let a user and an assistant talk. `userlm respond` and `userlm simulate` run this."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from userlm.types import Conversation, InputError, ModelError, Reply, Speaker

Until = Callable[[Conversation], str | None]


def never(conversation: Conversation) -> str | None:
    """Stop for no outside reason."""
    return None


def converse(
    user: Speaker,
    assistant: Speaker,
    conversation: Conversation,
    max_turns: int = 10,
    until: Until = never,
) -> Conversation:
    """Carry the conversation on until someone stops. The assistant never sees the intent.

    Args:
        conversation: where to begin: empty, or with turns already said.
        max_turns: the user speaks at most this many times in all, and each time is answered.
        until: asked after every turn for a reason to stop, such as `"solved"`.
    """
    while len(conversation.user_turns) < max_turns or conversation.next_role == "assistant":
        if conversation.next_role == "user":
            conversation = respond(user, conversation)
        else:
            conversation = _take_turn(assistant, blind(conversation), conversation)
        if conversation.stop:
            return conversation
        if stop := until(conversation):
            return conversation.close(stop)
    return conversation.close("max_turns")


def respond(user: Speaker, conversation: Conversation) -> Conversation:
    """Add the one turn that the user would take next, or record that the user would leave."""
    return _take_turn(user, conversation, conversation)


def simulate(
    user: Speaker,
    assistant: Speaker,
    seeds: Iterable[Conversation],
    max_turns: int = 10,
    until: Until = never,
    workers: int = 16,
) -> Iterator[Conversation]:
    """`converse` for every seed, `workers` at a time; each is yielded as soon as it is over.

    When the caller stops listening, such as at Ctrl-C, no conversation takes another turn.
    """
    abandoned = threading.Event()

    def unless_abandoned(conversation: Conversation) -> str | None:
        if abandoned.is_set():
            raise CancelledError
        return until(conversation)

    def run(seed: Conversation) -> Conversation:
        return converse(user, assistant, seed, max_turns, unless_abandoned)

    try:
        yield from _parallel(run, seeds, workers)
    finally:
        abandoned.set()


def respond_all(user: Speaker, prefixes: Iterable[Conversation], workers: int = 16) -> Iterator[Conversation]:
    """`respond` for every prefix, `workers` at a time; each is yielded as soon as it is answered."""
    return _parallel(lambda prefix: respond(user, prefix), prefixes, workers)


def _take_turn(speaker: Speaker, view: Conversation, conversation: Conversation) -> Conversation:
    """The conversation with what the speaker answers to its view of it: words, a stop, or both."""
    try:
        reply = speaker.reply(view)
        if not isinstance(reply, Reply):
            raise InputError(
                f"{type(speaker).__name__}.reply gave a {type(reply).__name__}; give userlm.Reply(text)"
            )
        if not reply.text and reply.stop is None:
            raise ModelError(f"the {conversation.next_role} said nothing and gave no reason to stop")
    except ModelError as error:
        return conversation.close("error", error=str(error))
    if reply.text:
        conversation = conversation.say(reply.text, reply.meta)
    if reply.stop is None:
        return conversation
    return conversation.close(reply.stop) if reply.text else conversation.close(reply.stop, last=dict(reply.meta))


def blind(conversation: Conversation) -> Conversation:
    """What the assistant may see: the words, and nothing about the person."""
    turns = tuple(replace(turn, meta={}) for turn in conversation.turns)
    return Conversation(conversation.id, turns)


def _parallel(
    job: Callable[[Conversation], Conversation], items: Iterable[Conversation], workers: int
) -> Iterator[Conversation]:
    """At most `workers` jobs are in flight, and the items are drawn as they are needed: memory stays flat."""
    pool = ThreadPoolExecutor(workers)
    running: set[Future[Conversation]] = set()
    try:
        for item in items:
            running.add(pool.submit(job, item))
            if len(running) >= workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:  # Ctrl-C, or a caller who stopped listening: begin nothing new
        pool.shutdown(wait=False, cancel_futures=True)

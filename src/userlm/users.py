"""User simulators: different ways to take the user's turn. Each is a `Speaker`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from userlm import flip
from userlm.flip import Template
from userlm.prompts import fill
from userlm.text import END_TOKEN, intent_goal, stable_hash
from userlm.types import (
    Chat,
    Complete,
    Completion,
    Conversation,
    InputError,
    ModelError,
    Reply,
    Sampling,
    Turn,
)


@dataclass(frozen=True)
class TrainedUser:
    """A user language model: a checkpoint trained on the user's side of dialogues.

    It is always called with token ids that its template spells, a user turn open at the end; a chat endpoint
    would open an assistant turn, and the model would speak for the wrong side.

    Attributes:
        window: the model's context, in tokens; what does not fit is left out in the same order as in training.
        tries: how many drafts it may take until one has words in it.
    """

    model: Complete
    template: Template
    window: int = 8192
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    tries: int = 4

    def reply(self, conversation: Conversation, /) -> Reply:
        """The next user turn. `meta["p_end"]` is the model's probability that the user leaves here."""
        ids = flip.prompt(conversation, self.template, self.window - self.sampling.max_tokens)
        if ids is None:
            return Reply(stop="context")
        meta: dict[str, Any] = {}
        for draft in range(self.tries if self.sampling.temperature else 1):
            sampling = replace(
                self.sampling,
                seed=_seed(self.seed, conversation, draft),
                stop_ids=self.template.stop_ids,
                watch_id=self.template.end,
            )
            out = self.model.complete(ids, sampling)
            meta |= {"p_end": out.p_watch, **_usage(out)}
            if draft:
                meta["empty_drafts"] = draft
            stop = "end" if out.stop_id == self.template.end else None
            if out.stop_id is None:
                meta["cut"] = True  # at max_tokens, in mid-sentence
            if (text := out.text.strip()) or stop:
                return Reply(text, stop, meta)
        return Reply(stop="guard", meta=meta)


@dataclass(frozen=True)
class PromptedUser:
    """An assistant model that is asked to play the user: the baseline of the paper.

    One user message holds the instructions and the transcript; the model answers with the next message, or
    with the end marker alone when it has what it wanted.
    """

    chat: Chat
    sampling: Sampling = field(default_factory=lambda: Sampling(top_p=1.0, max_tokens=200))
    seed: int = 0

    def reply(self, conversation: Conversation, /) -> Reply:
        """The next user turn; words before an end marker are said, then the user leaves."""
        if conversation.intent is None:
            raise InputError(f"conversation {conversation.id!r} has no intent, and a prompted user needs one")
        goal = conversation.system or conversation.intent  # with what is known of the person
        prompt = user_prompt(goal, conversation.turns)
        sampling = replace(self.sampling, seed=_seed(self.seed, conversation))
        out = self.chat.chat([{"role": "user", "content": prompt}], sampling)
        text, marker, _ = out.text.partition(END_TOKEN)
        return Reply(text.strip().removeprefix("<user>:").strip(), "end" if marker else None, _usage(out))


def user_prompt(told: str | None, turns: Sequence[Turn]) -> str:
    """What a prompted user is asked after these turns.

    Args:
        told: the intent and what else is known of the person; if nothing is, what they want is left out.
    """
    transcript = "\n".join(f"<{turn.role}>: {turn.text}" for turn in turns)
    values = {"goal": "{goal}", "end": END_TOKEN, "transcript": "{transcript}"}
    paragraphs = fill("user_next" if turns else "user_first", values).split("\n\n")
    if told is None:
        paragraphs = [paragraph for paragraph in paragraphs if "{goal}" not in paragraph]
    places = {"{goal}": intent_goal(told or ""), "{transcript}": transcript}
    return "\n\n".join(_put(paragraph, places) for paragraph in paragraphs)


def _put(paragraph: str, places: dict[str, str]) -> str:
    """The paragraph with its place filled; there is at most one in each."""
    for place, value in places.items():
        if place in paragraph:
            return paragraph.replace(place, value)
    return paragraph


@dataclass(frozen=True)
class ReplayUser:
    """A real person's turns, read back from a log: the human row."""

    log: Mapping[str, Conversation]

    def reply(self, conversation: Conversation, /) -> Reply:
        """The turn that the person took at this point, or the end if they took none; `ModelError` if the log
        does not hold the conversation.

        The log is found by the conversation's id, by the id of the log that it is a prefix of, or by its id
        without the number of the repeat (`id#2`).
        """
        logged = str(conversation.meta.get("conversation"))
        names = (conversation.id, logged, conversation.id.rpartition("#")[0])
        found = next((self.log[name] for name in names if name in self.log), None)
        if found is None:
            raise ModelError(f"the replayed log holds no conversation {conversation.id!r}")
        k = len(conversation.user_turns)
        if k < len(found.user_turns):
            return Reply(found.user_turns[k])
        return Reply(stop="end")


@dataclass(frozen=True)
class Human:
    """Somebody at the keyboard, on either side.

    Attributes:
        ask: shows the conversation and returns a line, or `None` to leave.
    """

    ask: Callable[[Conversation], str | None]

    def reply(self, conversation: Conversation, /) -> Reply:
        """What was typed."""
        text = self.ask(conversation)
        return Reply(stop="end") if text is None else Reply(text)


def _seed(seed: int, conversation: Conversation, draft: int = 0) -> int:
    """The seed of one draft: it depends on nothing but the run's seed, the conversation and the turn."""
    return stable_hash(seed, conversation.id, len(conversation.turns), draft) % 2**63


def _usage(out: Completion) -> dict[str, int]:
    usage = {"tokens_in": out.tokens_in, "tokens_out": out.tokens_out}
    return {name: count for name, count in usage.items() if count is not None}

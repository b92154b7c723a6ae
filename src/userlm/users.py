"""User simulators: different ways to write the user's turn. Each one is a `Speaker`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from warnings import warn

from userlm import flip, prompts
from userlm.data.intents import is_goal
from userlm.flip import Template
from userlm.guard import Guard, first_accepted
from userlm.terminal_input import is_terminal, read_text
from userlm.text import (
    END_TOKEN,
    INTENT_PREFIX,
    has_words,
    intent_goal,
    stable_hash,
    without_speaker,
)
from userlm.thought import sample_speech
from userlm.types import (
    OTHER_ROLE,
    Chat,
    Complete,
    Conversation,
    InputError,
    Message,
    ModelError,
    ModelWarning,
    Reply,
    Sampling,
    Speaker,
    Turn,
)


@dataclass(frozen=True)
class TrainedUser:
    """A user language model: a checkpoint trained on the user's side of dialogues.

    The model always gets token ids from its template, with an open user turn at the end. A chat
    endpoint would open an assistant turn, and the model would speak for the wrong side.

    Attributes:
        context_length: the model's context length in tokens. A longer conversation is truncated as
            in training.
        sampling: with `end_threshold`, the user ends the conversation if P(end) is at least that,
            and only then; an end token after text closes the turn.
    """

    model: Complete
    template: Template
    context_length: int = 8192
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    guard: Guard = field(default_factory=Guard)

    def __post_init__(self) -> None:
        if self.guard.no_end and self.sampling.end_threshold is not None:
            raise InputError(
                "a guard with no-end never lets the user end, so --end-threshold has no effect; "
                "use only one of the two"
            )
        if self.sampling.max_tokens >= self.context_length:
            raise InputError(
                f"max_tokens {self.sampling.max_tokens} of a context length of "
                f"{self.context_length}: leave room for the conversation"
            )

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the next user turn.

        Its meta holds `p_end`, the model's probability that the user ends the conversation here;
        `truncated_tokens`, the number of tokens that did not fit the context length; `cut`, if the
        turn was still going on at `max_tokens`; token usage; and the drafts that the guard
        rejected (`guard.first_accepted` says which keys survive if it rejects them all).
        """
        _check_users_turn(conversation)
        if not self.template.has_profile and is_goal(conversation.intent or ""):
            _warn_of_goals()
        room = self.context_length - self.sampling.max_tokens
        ids, truncated_tokens = flip.fit_prompt(conversation, self.template, room)
        if ids is None:
            return Reply(stop="context")
        sampling = self._guarded_sampling()

        def draft(n: int) -> Reply:
            seed = _seed(self.seed, conversation, n)
            out = self.model.complete(ids, replace(sampling, seed=seed))
            text = out.text.strip()
            meta: dict[str, Any] = {"p_end": out.p_end, **out.meta}
            if truncated_tokens:
                meta["truncated_tokens"] = truncated_tokens
            if out.stop_id is None:
                meta["cut"] = True
            stop = "end" if self._is_end(text or out.thought, out.stop_id) else None
            return Reply(text, stop, meta)

        # At temperature 0 every draft is the same.
        tries = self.guard.tries if sampling.temperature else 1
        return first_accepted(self.guard, conversation, draft, tries)

    def _is_end(self, text: str, stop_id: int | None) -> bool:
        """Whether the user ended the conversation, with or without last words (or thoughts)."""
        if stop_id != self.template.end:
            return False
        return not (text and self._ends_only_at_first_token)

    @property
    def _end_closes_turns(self) -> bool:
        """Whether there is no end token (as in USP), so that an empty turn is the end."""
        return self.template.end == self.template.close

    @property
    def _ends_only_at_first_token(self) -> bool:
        return self._end_closes_turns or self.sampling.end_threshold is not None

    def _guarded_sampling(self) -> Sampling:
        """Return the sampling with the rules of the guard that ban single tokens."""
        banned_first = self.template.first_token_ids(self.guard.first_words)
        banned_ids: frozenset[int] = frozenset()
        if self.guard.no_end and self._end_closes_turns:
            banned_first |= {self.template.end}
        elif self.guard.no_end:
            banned_ids |= {self.template.end}
        return replace(
            self.sampling,
            stop_ids=self.template.stop_ids,
            end_id=self.template.end,
            banned_ids=banned_ids,
            banned_first=banned_first,
        )


@dataclass(frozen=True)
class PromptedUser:
    """An assistant model that is asked to play the user: the baseline of the paper.

    One user message holds the instructions and the transcript. The model answers with the next
    message, or with only the end marker once it has what it wanted.

    Attributes:
        swapped: use the second form: the instructions are the system message, and the conversation
            follows with swapped roles, so that the model writes the user's turns in the assistant
            role.
        prompt: the instructions, in place of those of the form; the form must have their `PLACES`.
    """

    chat: Chat
    sampling: Sampling = field(
        default_factory=lambda: Sampling(top_p=1.0, max_tokens=200)
    )
    seed: int = 0
    guard: Guard = field(default_factory=Guard)
    swapped: bool = False
    prompt: str | None = None

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the next user turn; text before an end marker is said, then the user ends."""
        _check_users_turn(conversation)
        _intent_of(conversation)
        messages = self._messages(conversation)

        def draft(n: int) -> Reply:
            seed = _seed(self.seed, conversation, n)
            out = sample_speech(self.chat, messages, replace(self.sampling, seed=seed))
            text, end_marker, _ = out.text.partition(END_TOKEN)
            text = without_speaker(text)
            meta = out.meta
            if end_marker:
                meta.pop("cut", None)  # what was cut stands behind the end
            return Reply(text, "end" if end_marker else None, meta)

        tries = self.guard.tries if self.sampling.temperature else 1
        return first_accepted(self.guard, conversation, draft, tries)

    def _messages(self, conversation: Conversation) -> list[Message]:
        # The intent and what is known about the person.
        goal = conversation.system or ""
        if self.swapped:
            return swapped_messages(goal, conversation.turns, self.prompt)
        content = user_prompt(goal, conversation.turns, self.prompt)
        return [{"role": "user", "content": content}]


def with_sampling(
    user: Speaker,
    *,
    seed: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    end_threshold: float | None = None,
    guard: Guard | None = None,
) -> Speaker:
    """Return the user with other sampling; `None` keeps its own. A user without a model (a replay,
    a person) is returned unchanged.

    A wrapper around a user counts as one without a model: wrap what this returns.

    Raises:
        InputError: for a guard on a user without a model, and for `end_threshold` on a user
            without P(end).
    """
    if not isinstance(user, TrainedUser | PromptedUser):
        if guard is not None or end_threshold is not None:
            raise InputError(
                "--guard and --end-threshold are only for users with a model"
            )
        return user
    if end_threshold is not None and not isinstance(user, TrainedUser):
        raise InputError(
            "--end-threshold needs P(end), and a prompted user has none; give a trained one"
        )
    asked = {
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "end_threshold": end_threshold,
    }
    given: dict[str, Any] = {
        name: value for name, value in asked.items() if value is not None
    }
    return replace(
        user,
        sampling=replace(user.sampling, **given),
        seed=user.seed if seed is None else seed,
        guard=guard or user.guard,
    )


PLACES: Mapping[str, tuple[str, ...]] = {
    "prompted": ("goal", "transcript", "end"),
    "swapped": ("goal", "end"),
}
"""The places of a prompt in each form: what the user wants, the turns so far, and what the user
writes to end the conversation."""
NOTHING_SAID = "(nothing yet)"
"""The transcript before the first turn, in a prompt that is the same for all turns."""


def swapped_messages(
    system_text: str, turns: Sequence[Turn], prompt: str | None = None
) -> list[Message]:
    """The messages for a prompted user in its second form: a system message and the turns with
    swapped roles.

    Chat models expect the user to speak first, so a first message opens the conversation.
    """
    places = {"goal": intent_goal(system_text), "end": END_TOKEN}
    system = prompts.filled(prompt or prompts.text("user_swapped"), places)
    messages: list[Message] = [{"role": "system", "content": system}]
    if not turns or turns[0].role == "user":
        opening = prompts.text("user_swapped_first")
        messages.append({"role": "user", "content": opening})
    for turn in turns:
        messages.append({"role": OTHER_ROLE[turn.role], "content": turn.text})
    return messages


def user_prompt(
    system_text: str | None, turns: Sequence[Turn], prompt: str | None = None
) -> str:
    """The prompt for a prompted user after these turns.

    Args:
        system_text: the intent and what is known about the person; `None` leaves out the paragraphs
            with the goal.
        prompt: the instructions with the places of `PLACES`; by default one for the first turn, and
            another one for later turns.
    """
    paragraphs = (prompt or prompts.text("user_next" if turns else "user_first")).split(
        "\n\n"
    )
    if system_text is None:
        paragraphs = [each for each in paragraphs if "{goal}" not in each]
    said = [f"<{turn.role}>: {turn.text}" for turn in turns]
    places = {
        "goal": intent_goal(system_text or ""),
        "transcript": "\n".join(said) or NOTHING_SAID,
        "end": END_TOKEN,
    }
    return prompts.filled("\n\n".join(paragraphs), places)


@dataclass(frozen=True)
class ReplayUser:
    """A real person's turns, replayed from a log: the human reference."""

    log: Mapping[str, Conversation]

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the turn that the person took at this point, or the end if there is none; raise
        `ModelError` if the log does not have the conversation.

        The log is looked up by the conversation's id, by the id of the log that it starts from, and
        by its id without the number of the repeat (`id#2`).
        """
        names = [conversation.id, conversation.id.rpartition("#")[0]]
        if conversation.origin and conversation.origin.conversation is not None:
            names.insert(1, conversation.origin.conversation)
        logged = next((self.log[name] for name in names if name in self.log), None)
        if logged is None:
            raise ModelError(
                f"the replayed log has no conversation {conversation.id!r}"
            )
        k = len(conversation.user_turns)
        if k < len(logged.user_turns):
            return Reply(logged.user_turns[k])
        return Reply(stop="end")


@dataclass(frozen=True)
class SinglePrompt:
    """A user without a model that says all it wants in one turn, and then ends: how an assistant
    does without a conversation."""

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the intent without its fixed opening words, or the end."""
        if conversation.user_turns:
            return Reply(stop="end")
        return Reply(intent_goal(_intent_of(conversation)))


@dataclass(frozen=True)
class Human:
    """A person at the keyboard, on either side.

    Attributes:
        ask: shows the conversation and returns a line, or `None` to end it.
    """

    ask: Callable[[Conversation], str | None]

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return what the person typed; raise `ModelError` if an assistant leaves, who ends
        nothing."""
        text = self.ask(conversation)
        if text is None and conversation.next_role == "assistant":
            raise ModelError("the person who answered left the conversation")
        return Reply(stop="end") if text is None else Reply(text)


def typed(conversation: Conversation) -> str | None:
    """Ask for the next turn in the terminal; an empty line or Ctrl-D ends the conversation.

    Raises:
        ModelError: if standard input had ended before: nobody is there to begin.
    """
    if not conversation.turns and conversation.system:
        print(f"\n{conversation.system}", file=sys.stderr)
    if conversation.turns:
        last = conversation.turns[-1]
        print(f"\n{last.role}: {last.text}", file=sys.stderr)
    try:
        is_late = bool(conversation.turns)
        text = read_text(f"{conversation.next_role}> ", is_late).strip()
    except EOFError:
        if not conversation.turns and not is_terminal():
            raise ModelError("nobody can type here: standard input has ended") from None
        return None
    return text if has_words(text) else None


@cache
def _warn_of_goals() -> None:
    """Warn, once, of intents that are goals alone. They are not completed here: the model may have
    been trained on such intents."""
    warn(
        f"an intent does not begin with {INTENT_PREFIX!r}, as those that user models are trained "
        "on do; put these words before the goal",
        ModelWarning,
        stacklevel=3,
    )


def _intent_of(conversation: Conversation) -> str:
    if conversation.intent is None:
        raise InputError(
            f"conversation {conversation.id!r} has no intent, and this user needs one"
        )
    return conversation.intent


def _check_users_turn(conversation: Conversation) -> None:
    if conversation.next_role != "user":
        raise InputError(
            f"conversation {conversation.id!r} ends with a user turn; add the assistant's answer "
            "(.say)"
        )


def _seed(seed: int, conversation: Conversation, draft: int = 0) -> int:
    """The seed of one draft: it depends only on the run's seed, the conversation and the turn."""
    return stable_hash(seed, conversation.id, len(conversation.turns), draft) % 2**63

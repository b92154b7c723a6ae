"""User simulators: different ways to take the user's turn. Each is a `Speaker`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from userlm import flip
from userlm.flip import Template
from userlm.guard import Guard, guarded
from userlm.prompts import fill
from userlm.text import END_TOKEN, intent_goal, stable_hash
from userlm.types import (
    Chat,
    Complete,
    Completion,
    Conversation,
    InputError,
    Message,
    ModelError,
    Reply,
    Sampling,
    Speaker,
    Turn,
)


@dataclass(frozen=True)
class TrainedUser:
    """A user language model: a checkpoint trained on the user's side of dialogues.

    It is always called with token ids that its template spells, a user turn open at the end; a chat endpoint
    would open an assistant turn, and the model would speak for the wrong side.

    Attributes:
        window: the model's context, in tokens; what does not fit is left out in the same order as in training.
        sampling: with `end_above`, the user leaves when P(end) is at least that, and only then; an end behind
            words closes the turn.
    """

    model: Complete
    template: Template
    window: int = 8192
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    guard: Guard = field(default_factory=Guard)

    def __post_init__(self) -> None:
        if self.guard.no_end and self.sampling.end_above is not None:
            raise InputError("a guard with no-end never lets the user leave, so --end-above has no say; give one")
        if self.sampling.max_tokens >= self.window:
            raise InputError(
                f"max_tokens {self.sampling.max_tokens} of a window of {self.window}: leave room for the talk"
            )

    def reply(self, conversation: Conversation, /) -> Reply:
        """The next user turn.

        In its meta: `p_end`, the model's probability that the user leaves here; `left_out`, how many tokens of
        the conversation did not fit the window; `cut`, if the turn was still going on at `max_tokens`; the tokens
        used; what the guard rejected.
        """
        _need_users_turn(conversation)
        ids, left_out = flip.fit(conversation, self.template, self.window - self.sampling.max_tokens)
        if ids is None:
            return Reply(stop="context")
        known: dict[str, Any] = {"left_out": left_out} if left_out else {}
        sampling = self._guarded_sampling()
        tries = self.guard.tries if sampling.temperature else 1

        def draft(n: int) -> Reply:
            out = self.model.complete(ids, replace(sampling, seed=_seed(self.seed, conversation, n)))
            text, closed = out.text.strip(), out.stop_id
            # Where leaving has no token of its own (USP), it is a turn that is closed before a word was said.
            only_first = self.template.end == self.template.close or sampling.end_above is not None
            ends = closed == self.template.end and not (text and only_first)
            meta = known | {"p_end": out.p_end, **_usage(out)} | ({"cut": True} if closed is None else {})
            return Reply(text, "end" if ends else None, meta)

        return guarded(self.guard, conversation, draft, tries)

    def _guarded_sampling(self) -> Sampling:
        """What the guard forbids of single tokens, forbidden where they are drawn."""
        end = frozenset((self.template.end,)) if self.guard.no_end else frozenset()
        only_first = self.template.end == self.template.close
        return replace(
            self.sampling,
            stop_ids=self.template.stop_ids,
            end_id=self.template.end,
            banned_ids=frozenset() if only_first else end,
            banned_first=self.template.beginnings(self.guard.first_words) | (end if only_first else frozenset()),
        )


@dataclass(frozen=True)
class PromptedUser:
    """An assistant model that is asked to play the user: the baseline of the paper.

    One user message holds the instructions and the transcript; the model answers with the next message, or
    with the end marker alone when it has what it wanted.

    Attributes:
        swapped: the second form instead: the instructions are the system message, and the conversation follows
            with its roles swapped, so that the model speaks for the user as the assistant.
    """

    chat: Chat
    sampling: Sampling = field(default_factory=lambda: Sampling(top_p=1.0, max_tokens=200))
    seed: int = 0
    guard: Guard = field(default_factory=Guard)
    swapped: bool = False

    def reply(self, conversation: Conversation, /) -> Reply:
        """The next user turn; words before an end marker are said, then the user leaves."""
        _need_users_turn(conversation)
        if conversation.intent is None:
            raise InputError(f"conversation {conversation.id!r} has no intent, and a prompted user needs one")
        goal = conversation.system or conversation.intent  # with what is known of the person
        if self.swapped:
            messages = swapped_messages(goal, conversation.turns)
        else:
            messages = [{"role": "user", "content": user_prompt(goal, conversation.turns)}]

        def draft(n: int) -> Reply:
            out = self.chat.chat(messages, replace(self.sampling, seed=_seed(self.seed, conversation, n)))
            text, marker, _ = out.text.partition(END_TOKEN)
            return Reply(text.strip().removeprefix("<user>:").strip(), "end" if marker else None, _usage(out))

        return guarded(self.guard, conversation, draft, self.guard.tries if self.sampling.temperature else 1)


def tuned(
    user: Speaker,
    *,
    seed: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    end_above: float | None = None,
    guard: Guard | None = None,
) -> Speaker:
    """The user with other draws; `None` leaves as it is. What no model draws (a replay, a person) stays as it is.

    Raises:
        InputError: for a guard on a user that no model plays, and for `end_above` on one without P(end).
    """
    if not isinstance(user, TrainedUser | PromptedUser):
        if guard is not None or end_above is not None:
            raise InputError("--guard and --end-above are for users that a model plays")
        return user
    if end_above is not None and not isinstance(user, TrainedUser):
        raise InputError("--end-above goes by P(end), and a prompted user has none; give a trained one")
    was = user.sampling
    sampling = replace(
        was,
        temperature=was.temperature if temperature is None else temperature,
        top_p=was.top_p if top_p is None else top_p,
        max_tokens=was.max_tokens if max_tokens is None else max_tokens,
        end_above=was.end_above if end_above is None else end_above,
    )
    return replace(
        user,
        sampling=sampling,
        seed=user.seed if seed is None else seed,
        guard=user.guard if guard is None else guard,
    )


def swapped_messages(told: str, turns: Sequence[Turn]) -> list[Message]:
    """What a prompted user is sent in its second form: a system message and the turns, roles swapped.

    Chat models want to be spoken to first, so the conversation is opened for them.
    """
    system = _put(fill("user_swapped", {"goal": "{goal}", "end": END_TOKEN}), {"{goal}": intent_goal(told)})
    messages: list[Message] = [{"role": "system", "content": system}]
    if not turns or turns[0].role == "user":
        messages.append({"role": "user", "content": fill("user_swapped_first", {})})
    other = {"user": "assistant", "assistant": "user"}
    return messages + [{"role": other[turn.role], "content": turn.text} for turn in turns]


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


def _need_users_turn(conversation: Conversation) -> None:
    if conversation.next_role != "user":
        raise InputError(
            f"conversation {conversation.id!r} ends with what the user said; add the assistant's answer (.say)"
        )


def _seed(seed: int, conversation: Conversation, draft: int = 0) -> int:
    """The seed of one draft: it depends on nothing but the run's seed, the conversation and the turn."""
    return stable_hash(seed, conversation.id, len(conversation.turns), draft) % 2**63


def _usage(out: Completion) -> dict[str, int]:
    usage = {"tokens_in": out.tokens_in, "tokens_out": out.tokens_out}
    return {name: count for name, count in usage.items() if count is not None}

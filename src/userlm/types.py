"""The words that every other module speaks. No files, no torch, and nothing imported from this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

Role = Literal["user", "assistant"]
Message = Mapping[str, str]
"""`{"role": ..., "content": ...}`, the chat form of the OpenAI API: only where we talk to a model."""

STOPS = ("end", "max_turns", "context", "guard", "error", "solved")
"""Why a conversation stopped. `end`: the user left. `max_turns`: the cap. `context`: it no longer fits the
model. `guard`: no acceptable draft. `error`: a model could not answer. `solved`: the task was done."""


FAILED = ("error", "guard", "context")
"""Stops after which the next turn is not known: the user or the assistant could not speak."""

RUN_KEYS = frozenset(("conversation", "own_from", "target", "repeat", "last", "error"))
"""What a run writes into `Conversation.meta`: the log it began from, the first user turn that is not of that log,
what was said there, the number of the repeat, what is known of an ending without words, and what failed."""


def without_run(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a conversation itself, and nothing that an earlier run wrote."""
    return {key: value for key, value in meta.items() if key not in RUN_KEYS}


def encodable(text: str) -> str:
    """The text with lone surrogates, which no file, tokenizer or model takes, replaced by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class InputError(ValueError):
    """What a person gave us is wrong. The message names the file, line and field, and says what to do."""


class ModelWarning(UserWarning):
    """A model can be used, but not as one would expect. The message says why, and what to do."""


class ModelError(RuntimeError):
    """A model could not answer, retries included. It ends one conversation; the run goes on.

    Attributes:
        reason: the same in two words, for counting.
        permanent: no other call would fare better (a refused key, no such model).
        faults, unsure: see `Completion`; here of all tries.
    """

    def __init__(
        self,
        message: str,
        reason: str = "error",
        *,
        permanent: bool = False,
        faults: tuple[str, ...] = (),
        unsure: int = 0,
    ) -> None:
        super().__init__(message)
        self.reason, self.permanent, self.faults, self.unsure = reason, permanent, faults, unsure


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says, once. `meta` holds what is known about it: P(end), usage, source."""

    role: Role
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text.isascii():
            object.__setattr__(self, "text", encodable(self.text))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue, logged or simulated; nothing in the package distinguishes the two.

    Turns alternate, after at most one opening turn of the assistant (a greeting).

    Attributes:
        id: names the conversation; a reply's seed is derived from it.
        turns: what was said, in order.
        intent: what the user is after, one sentence; `None` if nobody wrote it down.
        user: the person behind it, for splitting and for resampling; `None` if unknown.
        stop: why it stopped, one of `STOPS`; `None` for a log or while it goes on.
        ended: whether its ending was observed: the user had the last answer and said no more. A log that
            stops on a user turn, a fragment or a conversation that was cut has no observed ending.
        meta: what else is known (language, country, model, the task it is about).
    """

    id: str = ""
    turns: tuple[Turn, ...] = ()
    intent: str | None = None
    user: str | None = None
    stop: str | None = None
    ended: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("id", "intent", "user"):
            if (text := getattr(self, name)) is not None and not text.isascii():
                object.__setattr__(self, name, encodable(text))
        before = ""
        for i, turn in enumerate(self.turns):
            if turn.role not in ("user", "assistant"):
                raise ValueError(f"turns[{i}].role is {turn.role!r}; it must be 'user' or 'assistant'")
            if turn.role == before:
                raise ValueError(f"turns[{i}] and the turn before it are both of the {turn.role}")
            before = turn.role
        if self.stop is not None and self.stop not in STOPS:
            raise ValueError(f"stop is {self.stop!r}; it must be one of {', '.join(STOPS)}")
        if self.ended and self.next_role == "assistant" and self.turns:
            raise ValueError("ended is true, but the last turn is the user's: nobody saw how it ended")

    @property
    def user_turns(self) -> tuple[str, ...]:
        """The texts of the user's turns."""
        return tuple(turn.text for turn in self.turns if turn.role == "user")

    @property
    def system(self) -> str | None:
        """What a user model is told beforehand: the intent and, from `condition` in `meta`, who the person is."""
        condition = self.meta.get("condition")
        told = (self.intent, condition if isinstance(condition, str) else None)
        return " ".join(text for text in told if text) or None

    @property
    def next_role(self) -> Role:
        """Whose turn it is; an empty conversation is opened by the user."""
        return "assistant" if self.turns and self.turns[-1].role == "user" else "user"

    def say(self, text: str, meta: Mapping[str, Any] | None = None) -> Conversation:
        """The conversation with one more turn, of whoever's turn it is."""
        return replace(self, turns=(*self.turns, Turn(self.next_role, text, meta or {})))

    def close(self, stop: str, **meta: Any) -> Conversation:
        """The conversation, over. Only `end`, said when it was the user's turn, is an observed ending."""
        ended = stop == "end" and self.next_role == "user"
        return replace(self, stop=stop, ended=ended, meta={**self.meta, **meta})


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to predict: what the user says as their k-th turn (from 0), given all before it."""

    conversation: Conversation
    k: int

    @property
    def at(self) -> int:
        """The index in `conversation.turns` of the k-th user turn, there or not."""
        turns = self.conversation.turns
        return 2 * self.k + (1 if turns and turns[0].role == "assistant" else 0)

    @property
    def context(self) -> tuple[Turn, ...]:
        """All that was said before."""
        return self.conversation.turns[: self.at]

    @property
    def target(self) -> str | None:
        """What the user said, or `None`: the user left."""
        turns = self.conversation.turns
        return turns[self.at].text if self.at < len(turns) else None

    @property
    def prefix(self) -> Conversation:
        """The conversation as it stood before this turn, so that a speaker can be asked for its own."""
        meta = {"conversation": self.conversation.id, "own_from": self.k, "target": self.target}
        return replace(
            self.conversation,
            id=f"{self.conversation.id}/{self.k}",
            turns=self.context,
            stop=None,
            ended=False,
            meta={**without_run(self.conversation.meta), **meta},
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What a speaker answers. Words and a stop may come together: the words are said first."""

    text: str = ""
    stop: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class Speaker(Protocol):
    """Anyone who can take the next turn: users and assistants alike. Called from many threads at once."""

    def reply(self, conversation: Conversation, /) -> Reply:
        """The next turn; raises `ModelError` when there is none to be had."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw a completion. Nothing is taken over from a checkpoint's `generation_config`.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus; the smallest set of tokens that holds this much probability.
        max_tokens: at most this many new tokens.
        seed: of the draw; `None` is not repeatable.
        stop_ids: token ids that close the completion; they are not part of its text.
        end_id: the id whose probability at the first position is wanted: P(end).
        end_above: with `end_id`: at the first position it closes the completion if it is at least this probable
            there, and is not drawn otherwise; `None`: it is drawn like any other.
        banned_ids: never drawn.
        banned_first: not drawn at the first position.
    """

    temperature: float = 1.0
    top_p: float = 0.8
    max_tokens: int = 256
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    end_id: int | None = None
    end_above: float | None = None
    banned_ids: frozenset[int] = frozenset()
    banned_first: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_tokens >= 1):
            raise InputError(
                f"temperature {self.temperature}, top_p {self.top_p}, max_tokens {self.max_tokens}: "
                "give temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1"
            )
        if self.end_above is not None and not 0 <= self.end_above <= 1:
            raise InputError(f"end_above {self.end_above}: give a probability, from 0 to 1")


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: the words, without any control token.
        stop_id: the token that closed it; `None` if it was cut at `max_tokens` or the model does not say.
        p_end: probability of `Sampling.end_id` at the first position, before any filter; `None` unknown.
        tokens_in, tokens_out: usage, in tokens; `None` unknown.
        faults: what went wrong in earlier tries of the same call, a word or two each.
        unsure: how many of those tries may have been billed all the same.
    """

    text: str
    stop_id: int | None = None
    p_end: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    faults: tuple[str, ...] = ()
    unsure: int = 0


class Chat(Protocol):
    """Chat messages in, an answer out."""

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion: ...


class Complete(Protocol):
    """Token ids in, a continuation out."""

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Completion: ...


class Score(Protocol):
    """Rows of token ids, each with a mask of the same length, in; a natural log-probability for each masked
    token, in order, out."""

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> list[list[float]]: ...


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that the user knows about their task. `required`: it cannot be solved without it."""

    text: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Task:
    """Something a user wants done, whose outcome can be checked.

    Attributes:
        domain: `math` or `python`.
        intent: what the user is told to be after.
        facts: what there is to say.
        answer: the reference: a number for `math`, the source of the tests for `python`.
    """

    id: str
    domain: str
    intent: str
    facts: tuple[Fact, ...]
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One item behind a measure.

    Attributes:
        key: of the conversation or turn.
        cluster: what is resampled as a whole: the person, or the intent.
        stats: what the measure is computed from; `None`: could not be measured.
        why: the reason when `stats` is `None`.
    """

    key: str
    cluster: str
    stats: tuple[float, ...] | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number about many conversations, and the rows it comes from.

    A row that could not be measured counts as missing; it is never a zero.

    Attributes:
        value: `None` when nothing could be measured.
        low, high: 95 % interval, from resampling whole clusters; `None` with fewer than two clusters.
        unit: of value and interval: "%", "", "tokens".
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    rows: tuple[MeasureRow, ...]
    better: Literal["higher", "lower", "neither"] = "neither"
    unit: str = ""

    @property
    def n(self) -> int:
        """How many items were measured."""
        return sum(row.stats is not None for row in self.rows)

    @property
    def missing(self) -> int:
        """How many could not be."""
        return len(self.rows) - self.n

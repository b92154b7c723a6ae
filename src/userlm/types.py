"""The types that every other module uses. It reads no files, and imports neither torch nor this
package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

Role = Literal["user", "assistant"]
Message = Mapping[str, str]
"""`{"role": ..., "content": ...}` as in the OpenAI API: for calls to models and for exports."""

OTHER_ROLE: Mapping[str, Role] = {"user": "assistant", "assistant": "user"}

STOPS = ("end", "max_turns", "context", "guard", "error", "solved")
"""Why a conversation stopped.

    end        the user ended it
    max_turns  it reached the limit on user turns
    context    it no longer fits the model's context length
    guard      no draft of the user passed the guard
    error      a model or a bot failed
    solved     the task was solved

Texts about them for people stand in `show.transcripts` and `commands.chat`. A call that a spending
limit did not allow is an `error`.
"""

FAILED = ("error", "guard", "context")
"""Stops after which the next turn is unknown: the user or the assistant could not speak."""

TOO_LONG = "too long"
"""The reason of a `ModelError` if what the model gets is longer than its context length. It stops a
conversation as `context`: another try would end in the same way."""

OUTCOME_KEYS = frozenset(("error", "end_meta"))
"""The keys that `Conversation.close` adds to `meta`: the error that ended the conversation, and the
`meta` of an end without text."""


def without_outcome(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return `meta` without what an earlier run added when the conversation stopped."""
    return {key: value for key, value in meta.items() if key not in OUTCOME_KEYS}


def encodable(text: str) -> str:
    """Return the text with lone surrogates replaced by U+FFFD: files and tokenizers cannot encode
    them."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class InputError(ValueError):
    """The input is wrong. The message names the file, line and field, and says what to do."""


class ModelWarning(UserWarning):
    """A model can be used, but not as expected. The message says why, and what to do."""


class ModelError(RuntimeError):
    """A model could not answer, even after retries. It ends one conversation; the run continues.

    Attributes:
        reason: a short name of the error, for counting.
        permanent: every other call would fail too (a refused key, an unknown model).
        faults, possibly_billed, excess_tokens: see `Completion`; here for all tries together.
    """

    def __init__(
        self,
        message: str,
        reason: str = "error",
        *,
        permanent: bool = False,
        faults: tuple[str, ...] = (),
        possibly_billed: int = 0,
        excess_tokens: int = 0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.permanent = permanent
        self.faults = faults
        self.possibly_billed = possibly_billed
        self.excess_tokens = excess_tokens


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of one role. `meta` has details such as P(end) and usage."""

    role: Role
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text.isascii():
            object.__setattr__(self, "text", encodable(self.text))


def messages_of(turns: Iterable[Turn]) -> list[Message]:
    """Return turns as chat messages, without their `meta`."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a conversation of a run comes from, or the later paths of a tree of replies.

    Attributes:
        conversation: the id of the log that it starts from; `None` if there is none.
        first_own_turn: the number (from 0) of the first user turn that is not from that log. Only
            its own turns are learned and counted; those before are context.
        target: the person's text in that turn; `None` if they ended there or it is not known.
        person_ended: whether the person ended the conversation instead of taking that turn; `None`
            if that is not known, as in a simulation.
        repeat: the number of the repeat, from 0.
        task: the id of the task that the conversation is about; `None` if there is none.
    """

    conversation: str | None = None
    first_own_turn: int = 0
    target: str | None = None
    person_ended: bool | None = None
    repeat: int = 0
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue, logged or simulated: the same type, so every metric applies to both.

    Turns alternate, after at most one opening turn of the assistant (a greeting).

    Attributes:
        id: the name of the conversation; the seed of a reply is derived from it.
        turns: the turns in order.
        intent: what the user wants, in one sentence; `None` if there is none.
        user: the person behind it, for splits and intervals; `None` if unknown.
        stop: why it stopped, one of `STOPS`; `None` for a log or while it goes on.
        ended: whether the end was observed: the user had the last answer and wrote no more. A log
            that stops on a user turn, a fragment or a cut conversation has no observed end.
        meta: other data, such as language, country and model.
        origin: where it comes from, if a run made it or it shares its first turns; `None` for
            any other log.
    """

    id: str = ""
    turns: tuple[Turn, ...] = ()
    intent: str | None = None
    user: str | None = None
    stop: str | None = None
    ended: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None

    def __post_init__(self) -> None:
        for name in ("id", "intent", "user"):
            text = getattr(self, name)
            if text is not None and not text.isascii():
                object.__setattr__(self, name, encodable(text))
        self._check_turns()
        if self.stop is not None and self.stop not in STOPS:
            raise ValueError(
                f"stop is {self.stop!r}; it must be one of {', '.join(STOPS)}"
            )
        if self.ended and self.turns and self.next_role == "assistant":
            raise ValueError(
                "ended is true, but the last turn is the user's: no end was observed"
            )

    def _check_turns(self) -> None:
        previous_role = ""
        for i, turn in enumerate(self.turns):
            if turn.role not in ("user", "assistant"):
                raise ValueError(
                    f"turns[{i}].role is {turn.role!r}; it must be 'user' or 'assistant'"
                )
            if turn.role == previous_role:
                raise ValueError(
                    f"turns[{i}] and the turn before it both have role {turn.role!r}"
                )
            previous_role = turn.role

    @property
    def user_turns(self) -> tuple[str, ...]:
        """The texts of the user's turns."""
        return tuple(turn.text for turn in self.turns if turn.role == "user")

    @property
    def system(self) -> str | None:
        """The system text of a user model: the intent, then the condition in `meta`."""
        condition = self.meta.get("condition")
        parts = [self.intent]
        if isinstance(condition, str):
            parts.append(encodable(condition))
        return " ".join(part for part in parts if part) or None

    @property
    def next_role(self) -> Role:
        """The role of the next turn; the user starts an empty conversation."""
        if self.turns and self.turns[-1].role == "user":
            return "assistant"
        return "user"

    def say(self, text: str, meta: Mapping[str, Any] | None = None) -> Conversation:
        """Return the conversation with one more turn, in the next role."""
        return replace(
            self, turns=(*self.turns, Turn(self.next_role, text, meta or {}))
        )

    def close(self, stop: str, **meta: Any) -> Conversation:
        """Return the conversation, stopped.

        `ended` becomes true only if the user ends instead of taking a turn: after last words (a
        `Reply` with text and stop) it stays false, since the answer to them was never seen.
        """
        ended = stop == "end" and self.next_role == "user"
        return replace(self, stop=stop, ended=ended, meta={**self.meta, **meta})

    def without_system(self) -> Conversation:
        """Return the conversation without intent and condition, so that it has no system turn."""
        meta = {key: value for key, value in self.meta.items() if key != "condition"}
        return replace(self, intent=None, meta=meta)

    @property
    def first_own_turn(self) -> int:
        """The number of the first user turn that is not from the log that it continues."""
        return self.origin.first_own_turn if self.origin else 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to predict: the user's turn number `k` (from 0), given all turns before it."""

    conversation: Conversation
    k: int

    @property
    def at(self) -> int:
        """The index in `conversation.turns` of user turn `k`, whether it exists or not."""
        turns = self.conversation.turns
        has_greeting = bool(turns) and turns[0].role == "assistant"
        return 2 * self.k + int(has_greeting)

    @property
    def context(self) -> tuple[Turn, ...]:
        """All turns before it."""
        return self.conversation.turns[: self.at]

    @property
    def target(self) -> str | None:
        """The text of the turn; `None` if the user ended the conversation."""
        turns = self.conversation.turns
        return turns[self.at].text if self.at < len(turns) else None

    @property
    def prefix(self) -> Conversation:
        """The conversation before this turn, so that a user can be asked for its own."""
        log = self.conversation
        return replace(
            log,
            id=f"{log.id}/{self.k}",
            turns=self.context,
            stop=None,
            ended=False,
            origin=Origin(
                conversation=log.id,
                first_own_turn=self.k,
                target=self.target,
                person_ended=self.target is None,
                task=log.origin.task if log.origin else None,
            ),
            meta=without_outcome(log.meta),
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """A speaker's answer. A text and a stop may come together: the text is said first.

    `stop` is one of `STOPS`.
    """

    text: str = ""
    stop: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class Speaker(Protocol):
    """Anything that can take the next turn: users and assistants. Must be thread-safe."""

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the next turn; raise `ModelError` if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample a completion. A checkpoint's `generation_config` is not used.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus sampling: the smallest set of tokens that holds this much probability.
        max_tokens: the most new tokens.
        seed: the seed of the completion; `None` is not reproducible.
        stop_ids: token ids that end the completion; they are not part of its text.
        end_id: the id whose probability at the first position is reported: P(end).
        end_threshold: with `end_id`: at the first position the end token is taken if P(end) is at
            least this, and banned there otherwise; later positions sample it as usual. `None`: it
            is sampled like any other token everywhere.
        banned_ids: never sampled.
        banned_first: never sampled at the first position.
        schema: a JSON schema that the text should follow. Only servers that take a
            `response_format` use it, so it may not.
    """

    temperature: float = 1.0
    top_p: float = 0.8
    max_tokens: int = 256
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    end_id: int | None = None
    end_threshold: float | None = None
    banned_ids: frozenset[int] = frozenset()
    banned_first: frozenset[int] = frozenset()
    schema: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_tokens >= 1):
            raise InputError(
                f"temperature {self.temperature}, top_p {self.top_p}, max_tokens "
                f"{self.max_tokens}: give temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1"
            )
        if self.end_threshold is not None and not 0 <= self.end_threshold <= 1:
            raise InputError(
                f"end_threshold {self.end_threshold}: give a probability, from 0 to 1"
            )


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model generated.

    Attributes:
        text: what was said, without any control token.
        stop_id: the token that ended it; `None` at `max_tokens`, or if the model does not say.
        p_end: the probability of `Sampling.end_id` at the first position, before any filter; `None`
            if unknown.
        tokens_in, tokens_out: usage in tokens; `None` if unknown.
        faults: short names of what went wrong in earlier tries of the same call.
        possibly_billed: how many of those tries may still have been billed.
        excess_tokens: how many tokens beyond `Sampling.max_tokens` they had, as the server says.
        thought: what the model only thought; see `thought`.
        refused: whether the server says that the text is a refusal.
        cut: whether it was still going on at `max_tokens`, or where a content filter stopped it;
            `None` if nobody says.
        reasoning_tokens: those that some servers bill as `tokens_out` but do not count in it.
    """

    text: str
    stop_id: int | None = None
    p_end: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    faults: tuple[str, ...] = ()
    possibly_billed: int = 0
    excess_tokens: int = 0
    thought: str = ""
    refused: bool = False
    cut: bool | None = None
    reasoning_tokens: int = 0

    @property
    def meta(self) -> dict[str, Any]:
        """The known token counts, the thought if there is one, and whether the text was cut, for
        the `meta` of a turn."""
        counts = {"tokens_in": self.tokens_in, "tokens_out": self.tokens_out}
        meta: dict[str, Any] = {
            name: count for name, count in counts.items() if count is not None
        }
        if self.thought:
            meta["thought"] = self.thought
        if self.cut:
            meta["cut"] = True
        return meta


class Chat(Protocol):
    """Return the answer to chat messages."""

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion: ...


class Complete(Protocol):
    """Return a continuation of token ids."""

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Completion: ...


@dataclass(frozen=True, slots=True)
class Detection:
    """What a detector says about a text.

    Attributes:
        p_human: its probability that a person wrote the text; `None` if it cannot say.
        why: the reason if `p_human` is `None`.
        version: the detector's version as it reports it; empty if it does not.
        possibly_billed: see `Completion`.
    """

    p_human: float | None
    why: str = ""
    version: str = ""
    possibly_billed: int = 0


class Detector(Protocol):
    """Say of each text how probably a person wrote it. Must be thread-safe."""

    def detect(self, texts: Sequence[str]) -> list[Detection]:
        """Return what it says of each text, in order; raise `ModelError` if it does not answer."""
        ...


class Score(Protocol):
    """Return the natural log-probability of each masked token, in order. Each row of token ids has
    a mask of the same length."""

    def score(
        self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]]
    ) -> list[list[float]]: ...


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that the user knows about their task. `required`: whether it is needed to solve
    it."""

    text: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class NumberCheck:
    """The final number of an answer must be that of `answer`."""

    answer: str


@dataclass(frozen=True, slots=True)
class TestsCheck:
    """The code of an answer must pass tests.

    Attributes:
        tests: the source of the tests: plain asserts, or a function `check(candidate)`.
        entry_point: the name of the function that `check` is called with.
        prompt: code that stands before the answer, such as imports and a signature.
    """

    tests: str
    entry_point: str | None = None
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Contains:
    """An answer must contain this text, in any case."""

    text: str


@dataclass(frozen=True, slots=True)
class Matches:
    """This regular expression must be found in an answer."""

    regex: str


@dataclass(frozen=True, slots=True)
class JsonPath:
    """An answer must be JSON, or contain a block of it, with this value at `path`: names and
    indices with dots between them, such as `order.items.0.name`."""

    path: str
    equals: Any = field(hash=False)


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The assistant must have called a tool with at least these arguments; `None`: with any. The
    calls of an answer are `{"name", "arguments"}` objects in `meta["tool_calls"]` of its turn."""

    name: str
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)


Rule = Contains | Matches | JsonPath | ToolCalled


@dataclass(frozen=True, slots=True)
class RulesCheck:
    """All rules must hold in one answer."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class RubricCheck:
    """A judge says whether an answer is right by these words."""

    rubric: str


@dataclass(frozen=True, slots=True)
class FunctionCheck:
    """A function says whether an answer is right.

    It is called with the text of the answer and the conversation up to it, and returns whether the
    answer is right (`None` if it cannot say), or that and a reason.

    Attributes:
        name: where it is: `MODULE:NAME`.
    """

    name: str


Check = NumberCheck | TestsCheck | RulesCheck | RubricCheck | FunctionCheck
"""How the answers of an assistant are judged."""


@dataclass(frozen=True, slots=True)
class Task:
    """Something a user wants done, with an outcome that can be checked.

    Attributes:
        intent: the intent that the user gets.
        facts: the facts that the user can say.
        check: how an answer is judged; `None`: it is not.
        family: groups tasks in tables, such as `math` or `support`; empty if there is no group.
        marked: who said which facts are required: the `file`, a `judge`, or nobody (`default`), so
            that all are.
    """

    id: str
    intent: str
    facts: tuple[Fact, ...] = ()
    check: Check | None = None
    family: str = ""
    marked: Literal["file", "judge", "default"] = "default"
    meta: Mapping[str, Any] = field(default_factory=dict)


RIGHT = "RIGHT"
WRONG = "WRONG"
NO_ATTEMPT = "NO ATTEMPT"
"""The labels of the verdict on an answer."""


@dataclass(frozen=True, slots=True)
class Grade:
    """Whether the task of a conversation was solved.

    Attributes:
        solved: `None` if that cannot be said.
        reason: what decided it; without a grade, why there is none, in a few words for counting.
        turn: the number (from 0) of the assistant's turn that decided it, among the assistant's.
    """

    solved: bool | None
    reason: str
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says about a turn, or the grader about an answer.

    Attributes:
        label: `None` if there is none, or it cannot be read.
        reason: the judge's own; without a label, why there is none, in a few words for counting.
        raw: the judge's answer.
    """

    label: str | None
    reason: str
    raw: str = ""


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One item behind a measure.

    Attributes:
        key: the conversation or turn.
        cluster: what an interval leaves out as a whole: the person, or the intent.
        stats: the numbers that the measure is computed from; `None`: could not be measured.
        why: the reason if `stats` is `None`; else what was found, where a measure says so.
    """

    key: str
    cluster: str
    stats: tuple[float, ...] | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number about many conversations, and the rows it is computed from.

    A row that could not be measured counts as missing; it is never a zero.

    Attributes:
        value: `None` if nothing could be measured.
        low, high: the 95 % interval over clusters; `None` where there are too few, or they do not
            limit it (`stats.interval`).
        unit: the unit of value and interval: "%", "", "tokens".
        why: the reason if there is no value although some rows were measured.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    rows: tuple[MeasureRow, ...]
    better: Literal["higher", "lower", "neither"] = "neither"
    unit: str = ""
    why: str = ""

    @property
    def n(self) -> int:
        """How many items were measured."""
        return sum(row.stats is not None for row in self.rows)

    @property
    def missing(self) -> int:
        """How many items could not be measured."""
        return len(self.rows) - self.n

    @property
    def clusters(self) -> int:
        """How many clusters (people, intents, tasks) stand behind the interval: those with more
        than zeros, such as turns where nobody ended in an F1 of ends."""
        rows = (row for row in self.rows if row.stats and any(row.stats))
        return len({row.cluster for row in rows})

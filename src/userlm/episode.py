"""A conversation from the assistant's side, to train an assistant by reinforcement learning.

    episode = Episode(user, task)
    text = episode.reset(seed=1)
    while not episode.done:
        text, done, reward = episode.step(assistant(text))

`userlm.bridges` has episodes as the environments of trainers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from userlm.facts import said
from userlm.grading import Grader
from userlm.simulate import Until, advance, never
from userlm.thought import SpeechOnly
from userlm.types import (
    FAILED,
    Conversation,
    InputError,
    Message,
    ModelError,
    Origin,
    Reply,
    Speaker,
    Task,
    messages_of,
)

TRIES = 8
"""How often a user is asked for a first turn that can be answered."""

Reward = Callable[[Conversation], float | None]
"""The reward of a conversation; `None` if it cannot be said."""


@dataclass
class Episode:
    """One conversation with a user about a task; the caller is the assistant.

    It is `converse`, one answer at a time: the same guards, seeds, ends, limit on turns and split
    of thoughts. The intent is never shown, and what the user says comes back as text alone, so
    there is nothing of the user's to train on. Many episodes may share one loaded user, also in
    threads (which a local model answers as one batch); an episode belongs to one thread at a time.

    Attributes:
        user: who plays the user; the seed of its turns is made from its own, that of `reset`, and
            the turn.
        task: the intent, and with a check, whether an answer is right: then the episode is over.
        max_turns: the maximum number of user turns; each of them is answered.
        reward: of the whole conversation; by default 1 if an answer solved the task, else 0.
        grader: grades by the task's check. One by tests needs a sandbox, by a rubric a judge.
        conversation: what was said so far.
    """

    user: Speaker
    task: Task
    max_turns: int = 10
    reward: Reward | None = None
    grader: Grader = field(default_factory=Grader)
    conversation: Conversation = field(default_factory=Conversation, init=False)

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise InputError(f"max_turns {self.max_turns}: give at least 1")
        if self.reward is None and self.task.check is None:
            raise InputError(
                f"task {self.task.id!r} has no check, so there is no reward; give a check, or a "
                "function as reward="
            )

    def reset(self, seed: int = 0) -> str:
        """Begin again, and return the user's first turn.

        The same seed gives the same first turn, and the same later ones after the same answers. So
        the episodes of one group (as in GRPO) should have one seed.

        Raises:
            ModelError: if the user fails, or `TRIES` times ends before there is anything to answer.
        """
        for n in range(TRIES):
            name = f"{self.task.id}#{seed}"
            start = Conversation(
                f"{name}/{n}" if n else name,
                intent=self.task.intent,
                origin=Origin(repeat=seed, task=self.task.id),
            )
            self.conversation = self._next(start)
            if not self.done:
                return self.conversation.turns[-1].text
            if self.conversation.stop in FAILED:
                why = self.conversation.meta.get("error", self.conversation.stop)
                raise ModelError(f"the user has no first turn: {why}")
        raise ModelError(
            f"the user ended the conversation {name} {TRIES} times before it could be answered"
        )

    def step(self, answer: str | Reply) -> tuple[str, bool, float | None]:
        """Say the assistant's answer, and return what the user says then, whether the episode is
        over, and the reward.

        The text is empty if the user says nothing more. The reward is 0 until the episode is over,
        then that of the whole conversation, so their sum is its return. It is `None` if it cannot
        be said, as when the user could not speak (`FAILED`): leave such an episode out. An answer
        without words (all of it thought) ends the episode.

        Args:
            answer: its text, or a `Reply` with its calls of tools in `meta["tool_calls"]`.

        Raises:
            InputError: if the episode is over, or has not begun.
        """
        if not self.conversation.turns:
            raise InputError("the episode has not begun; call reset() first")
        if self.done:
            raise InputError(
                f"the episode is over ({self.conversation.stop}); call reset() for another one"
            )
        given = Reply(answer) if isinstance(answer, str) else replace(answer, stop=None)
        self.conversation = self._next(self.conversation, given)
        if not self.done:
            self.conversation = self._next(self.conversation)
        last = self.conversation.turns[-1]
        text = last.text if last.role == "user" and not self._is_wordless else ""
        return text, self.done, self.current_reward() if self.done else 0.0

    def current_reward(self) -> float | None:
        """Return the reward of the conversation as it stands; `None` if it cannot be said."""
        if self.conversation.stop in FAILED and not self._is_wordless:
            return None
        if self.reward:
            return self.reward(self.conversation)
        solved = self.grader.grade(self.task, self.conversation).solved
        return None if solved is None else float(solved)

    @property
    def done(self) -> bool:
        """Whether the conversation has stopped; `conversation.stop` says why."""
        return self.conversation.stop is not None

    @property
    def messages(self) -> list[Message]:
        """What was said, as the assistant may see it."""
        return messages_of(self.conversation.turns)

    @property
    def facts_told(self) -> list[bool]:
        """Whether the user has said each fact of the task (`facts.said`)."""
        turns = self.conversation.user_turns
        facts = self.task.facts
        return [said(fact, turns, facts) for fact in facts]

    @property
    def _is_wordless(self) -> bool:
        """Whether the assistant did not answer."""
        talk = self.conversation
        return talk.stop == "error" and talk.next_role == "assistant"

    def _next(
        self, conversation: Conversation, answer: Reply | None = None
    ) -> Conversation:
        assistant = SpeechOnly(_Given(answer or Reply()))
        until: Until = self.grader.until(self.task) if self.task.check else never
        return advance(self.user, assistant, conversation, self.max_turns, until)


@dataclass(frozen=True, slots=True)
class _Given:
    """Says what is given."""

    said: Reply

    def reply(self, conversation: Conversation, /) -> Reply:
        return self.said

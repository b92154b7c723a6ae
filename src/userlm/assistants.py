"""Assistants: models, logs, scripts, and two stubs that need no model.

The stubs mark every turn with `meta["stub"]`, so that their text is not mistaken for a model's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from userlm.facts import said
from userlm.final_answer import final_number
from userlm.json_files import dumps
from userlm.tasks import task_of
from userlm.text import has_words, stable_hash
from userlm.thought import sample_speech, spoken
from userlm.types import (
    Chat,
    Completion,
    Contains,
    Conversation,
    InputError,
    JsonPath,
    Matches,
    Message,
    ModelError,
    NumberCheck,
    Reply,
    Rule,
    RulesCheck,
    Sampling,
    Task,
    TestsCheck,
    ToolCalled,
    messages_of,
)

MAX_ANSWER_TOKENS = 1000
READY = "The solution is ready."
"""What the oracle says if it has no other answer."""


@dataclass(frozen=True)
class ModelAssistant:
    """Any chat model. It gets only the texts, after the system prompt if there is one."""

    chat: Chat
    system: str | None = None
    sampling: Sampling = field(
        default_factory=lambda: Sampling(top_p=1.0, max_tokens=MAX_ANSWER_TOKENS)
    )
    seed: int = 0

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the model's answer, its usage and thought in `meta`. An empty answer is a
        `ModelError`."""
        messages = messages_of(conversation.turns)
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        seed = stable_hash(self.seed, conversation.id, len(conversation.turns)) % 2**63
        sampling = replace(self.sampling, seed=seed)
        completion = sample_speech(self.chat, messages, sampling)
        if not has_words(completion.text):
            raise ModelError("the assistant's answer is empty")
        return Reply(completion.text, meta=completion.meta)


@dataclass(frozen=True)
class ReplayAssistant:
    """The assistant's answers from a log, in order, whatever the user says."""

    log: Mapping[str, Conversation]

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the next logged answer; raise `ModelError` if there is none.

        The log is found by the conversation's id, or by its id without the number of the repeat
        (`id#2`). An opening greeting does not count as an answer.
        """
        without_repeat = conversation.id.rpartition("#")[0]
        found = self.log.get(conversation.id) or self.log.get(without_repeat)
        if found is None:
            raise ModelError(
                f"the replayed log has no conversation {conversation.id!r}"
            )
        k = len(_answers(conversation))
        logged = _answers(found)
        if k >= len(logged):
            raise ModelError(
                f"the replayed conversation {found.id!r} has no answer number {k + 1}"
            )
        return Reply(logged[k])


@dataclass(frozen=True)
class Script:
    """A speaker that says its lines in order, as a user, an assistant or a chat model.

    A user ends the conversation after the last line; an assistant or a model repeats it.
    """

    lines: Sequence[str]

    @classmethod
    def read(cls, path: str) -> Script:
        """Return the script in a file, one turn a line; raise `InputError` if there is none."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot read the script: {error}") from None
        lines = [line for line in text.split("\n") if has_words(line)]
        if not lines:
            raise InputError(f"{path} is empty; a script has one turn per line")
        return cls(lines)

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the next line of this side."""
        role = conversation.next_role
        said_before = sum(turn.role == role for turn in conversation.turns)
        if role == "user" and said_before >= len(self.lines):
            return Reply(stop="end")
        return Reply(self._line(said_before))

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Return the line after those that the assistant said in `messages`; nothing is sampled."""
        said_before = sum(message["role"] == "assistant" for message in messages)
        return spoken(Completion(self._line(said_before)))

    def _line(self, at: int) -> str:
        if not self.lines:
            raise ModelError("the script has no lines")
        return self.lines[min(at, len(self.lines) - 1)]


@dataclass(frozen=True)
class Oracle:
    """A stub that solves a task as soon as all required facts were said, and never before.

    It knows the answer and waits for the user, so its score is the ceiling for an assistant that
    needs every required fact. `facts.said` decides what was said.
    """

    tasks: Mapping[str, Task]

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the answer, or what was understood so far and ask for the rest.

        What was understood is in the user's own words, so that it reveals no unsaid fact,
        and inside one question, so that a number in it is not graded as an answer.

        Raises: ModelError: if no task has the conversation's id (`task` or `task#repeat`).
        """
        task = task_of(conversation, self.tasks)
        if task is None:
            raise ModelError(
                f"the oracle knows no task for conversation {conversation.id!r}"
            )
        turns = conversation.user_turns
        if all(said(fact, turns, task.facts) for fact in task.facts if fact.required):
            answer = solution(task) or Reply(READY)
            return replace(answer, meta={**answer.meta, "stub": "oracle"})
        telling = [
            turn for i, turn in enumerate(turns) if _tells_a_fact(task, turns, i)
        ]
        understood = "; ".join(map(_quoted, telling))
        text = "I do not know enough yet. What is there to know?"
        if understood:
            text = f"So you tell me: {understood} - and what else is there to know?"
        return Reply(text, meta={"stub": "oracle"})


@dataclass(frozen=True)
class Clarifier:
    """A stub that only asks questions and never solves a task: the lower bound for assistants."""

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the next of a few questions."""
        asked = sum(turn.role == "assistant" for turn in conversation.turns)
        return Reply(_QUESTIONS[asked % len(_QUESTIONS)], meta={"stub": "clarifier"})


_QUESTIONS = (
    "Could you tell me a bit more about that?",
    "What exactly would you like to end up with?",
    "Is there anything else that I should know?",
    "Could you give me an example?",
    "Which part of it matters most to you?",
)


def _answers(conversation: Conversation) -> list[str]:
    """Return the assistant's turns except an opening greeting."""
    return [turn.text for turn in conversation.turns[1:] if turn.role == "assistant"]


def solution(task: Task) -> Reply | None:
    """Return an answer that the check of a task accepts: one that is made from the check, else
    `meta.solution`; `None` if there is neither."""
    given = task.meta.get("solution")
    text = None if given is None else str(given)
    meta: dict[str, Any] = {}
    match task.check:
        case NumberCheck(answer):
            text = f"The answer is {final_number(answer)}."
        case TestsCheck() if text is not None:
            text = f"{READY}\n\n```python\n{text}\n```"
        case RulesCheck(rules):
            calls = [_call(rule) for rule in rules if isinstance(rule, ToolCalled)]
            meta = {"tool_calls": calls} if calls else {}
            # No text is made for a regular expression.
            if not any(isinstance(rule, Matches) for rule in rules):
                text = "\n\n".join(_fulfilling(rules)) or READY
    return None if text is None else Reply(text, meta=meta)


def _call(rule: ToolCalled) -> dict[str, Any]:
    return {"name": rule.name, "arguments": dict(rule.arguments or {})}


def _fulfilling(rules: Sequence[Rule]) -> Iterator[str]:
    """Yield what an answer to rules must have; JSON first, since a text may look like the fence of
    a block."""
    for rule in rules:
        if isinstance(rule, JsonPath):
            value = rule.equals
            for name in reversed(rule.path.split(".")):
                value = {name: value}
            yield f"```json\n{dumps(value)}\n```"
    for rule in rules:
        if isinstance(rule, Contains):
            yield rule.text


def _tells_a_fact(task: Task, turns: Sequence[str], i: int) -> bool:
    """Return whether turn `i` completes a fact that was not said before."""
    before = turns[:i]
    up_to_it = turns[: i + 1]
    for fact in task.facts:
        is_new = not said(fact, before, task.facts)
        if is_new and said(fact, up_to_it, task.facts):
            return True
    return False


def _quoted(text: str) -> str:
    """Return a turn as a quotation: on one line, without sentence-ending punctuation."""
    line = " ".join(text.split())
    return '"' + re.sub(r"[.!?]+(?=\W|$)", ",", line).strip(" ,") + '"'

"""A cache of a chat model's answers. `userlm intents --writer` runs this.

The journal has a line for each call: its answer, or why there is none. It is written before the
call is settled in the budget, so a killed run resumes without repeating an answered call.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from userlm.journal import Journal
from userlm.json_files import dumps, take
from userlm.models.budget import GIVE_UP, Side, max_tokens_in
from userlm.models.shared_calls import SharedCalls
from userlm.text import has_words, stable_hash
from userlm.types import Chat, Completion, Message, ModelError, Sampling

UNUSABLE = 50
"""If this many answers could not be used, and none could, no more calls are made."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call: a text, or `None` and the reason.

    Attributes:
        reason: `cut off` (the text reached `max_tokens`), `only a thought`, `cap` or `stopped` (the
            call was not made), `refused`, or the reason of another `ModelError`.
        error: the model's error, if the call may succeed when it is made again.
        max_tokens: how many tokens were allowed; `None` if that is not known.
    """

    text: str | None
    reason: str = ""
    error: str = ""
    max_tokens: int | None = field(default=None, compare=False)

    def may_be_longer(self, sampling: Sampling) -> bool:
        """Whether it was too short, and with this sampling may be longer."""
        is_short = self.reason in ("cut off", "only a thought", "empty answer")
        return is_short and (self.max_tokens or math.inf) < sampling.max_tokens


class CallCache:
    """A chat model and its answers so far. It is thread-safe.

    Args:
        path: the journal. Calls that an earlier attempt answered are not repeated.
        side: counts and limits the calls.
    """

    def __init__(self, path: Path, chat: Chat, side: Side) -> None:
        self._chat = chat
        self.side = side
        self._lock = threading.Lock()
        self._asking = SharedCalls[Answer]()
        self._last_error = ""
        self._alike = 0
        self._usable = 0
        self._unusable = 0
        self._answers: dict[tuple[str, int], Answer] = {}
        self._faults: Counter[str] = Counter()
        self._journal = Journal(path)
        for id, number, answer, faults in self._journal.read(_parse):
            self._keep(id, number, answer, faults)
        self._answered_before = frozenset(self._answers)

    @property
    def faults(self) -> Counter[str]:
        """What went wrong in calls, and how often. After the last call, those that are still open
        were in flight when an earlier attempt was killed."""
        return self._faults + Counter(
            {"in flight when stopped": self.side.used["open"]}
        )

    def answered(self, id: str) -> bool:
        """Whether an earlier attempt got an answer about this conversation."""
        return (id, 0) in self._answered_before

    def ask(
        self, id: str, number: int, messages: Sequence[Message], sampling: Sampling
    ) -> Answer:
        """The answer to call `number` about a conversation, from the journal or from the model. A
        thread that asks the same meanwhile waits for it, and asks only if there was none. One that
        was cut off is asked for again if it may be longer now.

        Raises:
            ModelError: if several consecutive calls failed with the same error, so all others would
                too.
        """

        def ask() -> Answer:
            known = self._answers.get((id, number))
            if known and not known.may_be_longer(sampling):
                return known
            return self._asked(id, number, messages, sampling)

        answer, is_own = self._asking.result((id, number), ask)
        if answer.error and not is_own:
            return self.ask(id, number, messages, sampling)
        return answer

    def _asked(
        self, id: str, number: int, messages: Sequence[Message], sampling: Sampling
    ) -> Answer:
        def send() -> Completion:
            try:
                reply = self._chat.chat(messages, sampling)
            except ModelError as error:
                record(failure_of(error), error.faults)
                raise
            record(answer_of(reply, sampling), reply.faults)
            return reply

        def record(answer: Answer, faults: Sequence[str]) -> None:
            known = replace(answer, max_tokens=sampling.max_tokens)
            self._record(id, number, known, faults)

        try:
            reply = self.side.call(max_tokens_in(messages), sampling.max_tokens, send)
        except ModelError as error:
            self._stop_if_hopeless(error)
            return failure_of(error)
        self._alike = 0
        return answer_of(reply, sampling)

    def count_use(self, id: str, is_usable: bool) -> None:
        """Count whether the caller could use what the model said about a conversation. What an
        earlier attempt could not use stops no other: the model may be another one by now."""
        with self._lock:
            self._usable += is_usable
            self._unusable += not is_usable and not self.answered(id)
            is_hopeless = self._unusable >= UNUSABLE and not self._usable
        if is_hopeless:
            self.side.budget.stop(
                f"none of the first {UNUSABLE} answers of {self.side.address} could be used, so "
                "no more were asked for; allow longer ones (--max-tokens or --judge-tokens), or "
                "take another model"
            )

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _record(
        self, id: str, number: int, answer: Answer, faults: Sequence[str]
    ) -> None:
        row = {"id": id, "try": number, **asdict(answer), "faults": list(faults)}
        self._journal.add(row)
        with self._lock:
            self._keep(id, number, answer, faults)

    def _keep(
        self, id: str, number: int, answer: Answer, faults: Sequence[str]
    ) -> None:
        self._faults.update(faults)
        if not answer.error:
            self._answers[id, number] = answer

    def _stop_if_hopeless(self, error: ModelError) -> None:
        """Raise `ModelError` if the latest calls failed with the same error, and all others would
        too.

        A bad request counts as an error of all calls only if no call was answered so far.
        """
        with self._lock:
            is_alike = str(error) == self._last_error
            self._alike = self._alike + 1 if is_alike else 1
            if error.reason != "bad request" or self._answers:
                self._alike = 0
            self._last_error = str(error)
            is_hopeless = self._alike >= GIVE_UP or self.side.is_hopeless
        if is_hopeless:
            self.side.budget.stop(str(error))
            raise ModelError(
                f"{error} ({GIVE_UP} consecutive calls failed with the same error, so no more were "
                "made)"
            )


def _parse(row: Mapping[str, Any]) -> tuple[str, int, Answer, list[str]]:
    """The parts of a line: the conversation, the number of the call, and its answer and faults."""
    if "reason" not in row:
        raise ValueError("it was written by another version of userlm")
    answer = Answer(
        take(row, "text", str, default=None),
        take(row, "reason", str),
        take(row, "error", str),
        take(row, "max_tokens", int, default=None),
    )
    faults = [str(fault) for fault in take(row, "faults", list)]
    return take(row, "id", str), take(row, "try", int), answer, faults


def answer_of(reply: Completion, sampling: Sampling) -> Answer:
    """Return the text of a completion, and what is wrong with it."""
    tokens_out = reply.tokens_out or 0
    # Some say `stop` of all. More than the allowed tokens may be those of a thought.
    is_at_limit = tokens_out == sampling.max_tokens
    is_beyond = reply.cut is None and tokens_out > sampling.max_tokens
    is_cut_off = reply.cut or is_at_limit or is_beyond
    if reply.refused:
        return Answer(None, "refused")
    if reply.thought and not has_words(reply.text):
        # A longer thought would be cut off too.
        return Answer(None if is_cut_off else "", "only a thought")
    return Answer(reply.text, "cut off" if is_cut_off else "")


def failure_of(error: ModelError) -> Answer:
    """Return why there is no answer."""
    # A model that refused would refuse again, and an answer without words was paid for.
    is_final = error.reason in ("refused", "empty answer", "only a thought")
    return Answer(None, error.reason, "" if is_final else str(error))


@dataclass(frozen=True, slots=True)
class CachedChat:
    """A chat model whose answers are kept in a cache, by what was asked."""

    cache: CallCache

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Return the answer, from the cache or from the model."""
        answer = self.cache.ask(_id_of(messages), 0, messages, sampling)
        if answer.text is None:
            reason = answer.reason
            raise ModelError(answer.error or reason, reason)
        # What was cut off is told by its length.
        is_cut_off = answer.reason == "cut off"
        tokens_out = sampling.max_tokens if is_cut_off else None
        return Completion(answer.text, tokens_out=tokens_out)

    def count_use(self, messages: Sequence[Message], is_usable: bool) -> None:
        """Count whether the answer could be used; see `CallCache.count_use`."""
        self.cache.count_use(_id_of(messages), is_usable)


def _id_of(messages: Sequence[Message]) -> str:
    return f"{stable_hash(dumps(messages)):016x}"

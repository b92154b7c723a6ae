"""A cache of a chat model's answers within a budget. `userlm intents --writer` runs this.

The journal has two lines per call: one before it, with the tokens that bound its cost, and one
after it, with the answer or why there is none. So a killed run can be resumed: it knows which calls
were answered, and which may be billed without an answer.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from userlm.models.budget import (
    Budget,
    Caps,
    Price,
    amount_of,
    max_tokens_in,
    usage_of,
    usage_of_tries,
    usage_results,
)
from userlm.runs import Journal
from userlm.types import Chat, Completion, InputError, Message, ModelError, Sampling

GIVE_UP = 3
"""After this many consecutive calls with the same error, no more calls are made."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call: a text, or `None` and the reason.

    Attributes:
        reason: `cut off` (the text reached `max_tokens`), `budget` (the call was not made),
            `refused`, or the reason of the `ModelError`.
        error: the model's error, if the call may succeed when it is made again.
    """

    text: str | None
    reason: str = ""
    error: str = ""


class CallCache:
    """A chat model, its answers so far, and what they cost. It is thread-safe.

    Args:
        path: the journal. Calls that an earlier attempt answered are not repeated.
        tries: the maximum number of times the model may send the same call.
        price: `None`: unknown, and then there is no budget.
        budget: in dollars. The worst case of a call is reserved before it: `max_tokens_in` and
            `max_tokens` in each of the tries. A call whose worst case is not covered is not made.
    """

    def __init__(
        self,
        path: Path,
        chat: Chat,
        tries: int = 1,
        price: Price | None = None,
        budget: Decimal | None = None,
    ) -> None:
        if budget is not None and price is None:
            raise InputError("a budget needs the price of the tokens")
        self._chat = chat
        self._tries = tries
        self.price = price
        self.budget = budget
        self._budget = Budget(Caps(dollars=budget))
        self._lock = threading.Lock()
        self._last_error = ""
        self._alike = 0
        self._over: Exception | None = None
        self._answers: dict[str, dict[int, Answer]] = {}
        self.faults: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        self._journal = Journal(path)
        self._replay()

    @property
    def spent(self) -> Decimal:
        """Dollars spent, and reserved for calls in flight."""
        return self._budget.spent.dollars

    def answered(self, id: str) -> bool:
        """Whether an earlier attempt got an answer about this conversation."""
        return id in self._answers

    def ask(
        self,
        id: str,
        number: int,
        messages: Sequence[Message],
        sampling: Sampling,
    ) -> Answer:
        """The answer to call `number` about a conversation, from the journal or from the model.

        Raises:
            ModelError: if several consecutive calls failed with the same error, so all others would
            too. CancelledError: after `stop`.
        """
        if answer := self._answers.get(id, {}).get(number):
            return answer
        bound = (max_tokens_in(messages), sampling.max_tokens)
        worst = usage_of_tries(self._tries, *bound)
        used = worst.copy()
        if self._budget.reserve(amount_of(worst, self.price)):
            if self._over:
                raise self._over
            return Answer(None, "budget")
        call = {"id": id, "try": number}
        try:
            self._journal.add({**call, "bound": bound})
            row, failed = self._call(messages, sampling)
            self._journal.add(call | row)
            with self._lock:
                answer, used = self._book(row, bound)
                if self._is_hopeless(failed):
                    over = ModelError(
                        f"{failed} ({GIVE_UP} consecutive calls failed with the same error, so no "
                        f"more were made)"
                    )
                    self._stop(over)
                    raise over
                return answer
        finally:
            used.subtract(worst)
            self._budget.settle(amount_of(used, self.price))

    def worst_case(self, messages: Sequence[Message], max_tokens: int) -> Decimal:
        """The maximum cost of a call in dollars."""
        worst = usage_of_tries(self._tries, max_tokens_in(messages), max_tokens)
        return amount_of(worst, self.price).dollars

    def stop(self) -> int:
        """Start no more calls, and return how many are in flight. Their answers are kept if the
        process lives long enough."""
        return self._stop(CancelledError())

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def results(self) -> dict[str, Any]:
        """The usage for `results.json`; see `usage_results`."""
        return usage_results(self.usage, self.price)

    def _replay(self) -> None:
        """Count what earlier attempts used; a call that was in flight when an attempt was killed
        counts at its worst case."""
        in_flight: defaultdict[tuple[str, int], list[tuple[int, int]]] = defaultdict(
            list
        )
        for row in self._journal.rows:
            bounds = in_flight[row["id"], row["try"]]
            if "bound" in row:
                bounds.append(tuple(row["bound"]))
                continue
            answer, _ = self._book(row, bounds.pop())
            if not answer.error:
                self._answers.setdefault(row["id"], {})[row["try"]] = answer
        for bounds in in_flight.values():
            for bound in bounds:
                self.faults["in flight when stopped"] += 1
                self.usage.update(usage_of_tries(self._tries, *bound))
                self.usage["calls"] -= 1
        self._budget.spend(amount_of(self.usage, self.price))

    def _book(
        self,
        row: Mapping[str, Any],
        bound: tuple[int, int],
    ) -> tuple[Answer, Counter[str]]:
        """Count a call by its line in the journal, and return its answer and usage."""
        if "text" in row:
            tokens_out = row["tokens_out"]
            reply = Completion(
                row["text"],
                tokens_in=row["tokens_in"],
                tokens_out=tokens_out,
                possibly_billed=row["possibly_billed"],
            )
            used = usage_of(reply, *bound)
            is_cut_off = tokens_out is not None and tokens_out >= bound[1]
            answer = Answer(row["text"], "cut off" if is_cut_off else "")
        else:
            used = usage_of_tries(row["possibly_billed"], *bound)
            answer = Answer(None, row["reason"], row["error"])
            if row["reason"] == "refused":  # the model would refuse again
                used["refused"] += 1
                answer = Answer(None, "refused")
        self.faults.update(row["faults"])
        self.usage.update(used)
        return answer, used

    def _call(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> tuple[dict[str, Any], ModelError | None]:
        """Make a call, and return its line for the journal, and its error."""
        try:
            reply = self._chat.chat(messages, sampling)
        except ModelError as error:
            row = {
                "error": str(error),
                "reason": error.reason,
                "possibly_billed": error.possibly_billed,
                "faults": error.faults,
            }
            return row, error
        row = {
            "text": reply.text,
            "tokens_in": reply.tokens_in,
            "tokens_out": reply.tokens_out,
            "possibly_billed": reply.possibly_billed,
            "faults": reply.faults,
        }
        return row, None

    def _stop(self, over: Exception) -> int:
        self._over = self._over or over
        return self._budget.close(str(over) or "stopped")

    def _is_hopeless(self, failed: ModelError | None) -> bool:
        """Return whether the latest calls failed with the same error, and all others would too.

        A bad request counts as an error of all calls only if no call was answered so far.
        """
        would_repeat = False
        if failed is not None:
            any_answer = self.usage["drafts"] or self.usage["refused"]
            would_repeat = failed.permanent or (
                failed.reason in ("bad request", "broken answer") and not any_answer
            )
        if not would_repeat:
            self._alike = 0
        elif str(failed) == self._last_error:
            self._alike += 1
        else:
            self._alike = 1
        self._last_error = str(failed)
        return self._alike >= GIVE_UP

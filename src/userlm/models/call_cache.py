"""Calls of a chat model that are paid for once, and never beyond a budget. `userlm intents
--writer` runs this.

Every call is two lines of a file: one before it, with what it may cost at worst, and one after it,
with the answer or why there is none. So a run that was killed knows what was answered, and what it
may have to pay for nothing.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from userlm.models.budget import Amount, Budget, Caps, Price, tokens_in_at_most
from userlm.runs import Journal
from userlm.types import Chat, InputError, Message, ModelError, Sampling

GIVE_UP = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call: a text, or `None` and why.

    Attributes:
        reason: `cut off` (a text that reached `max_tokens`), `budget` (the call was not made),
            `refused`, or that of the `ModelError`.
        error: what the model's error said; asked once more, it may answer.
    """

    text: str | None
    reason: str = ""
    error: str = ""


class CallCache:
    """A chat model, its answers so far, and what they cost.

    Args:
        path: of the file. What it holds from an earlier attempt is not asked again.
        tries: how often the model may send the same call at most.
        price: `None`: unknown, and then there is no budget.
        budget: in dollars. Before a call its worst case is put aside: a token has at least one
            byte, so the bytes of the messages bound the tokens in, and `max_tokens` those out, in
            each of the tries. What cannot be put aside is not asked.
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
        self._chat, self._tries = chat, tries
        self.price, self.budget = price, budget
        self._budget = Budget(Caps(dollars=budget))
        self._lock = threading.Lock()
        self._last_error, self._alike = "", 0
        self._over: Exception | None = None
        self._answers: dict[str, dict[int, Answer]] = {}
        self.faults: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        self._journal = Journal(path)
        self._replay()

    @property
    def spent(self) -> Decimal:
        """In dollars, with what is put aside for calls in flight."""
        return self._budget.spent.dollars

    def answered(self, id: str) -> bool:
        """Whether anything was answered about a conversation before."""
        return id in self._answers

    def ask(self, id: str, number: int, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """The answer to the call of this number about a conversation: the recorded one, or the
        model's own.

        Raises:
            ModelError: when several calls in a row failed alike, and every other would.
            CancelledError: after `stop`.
        """
        if (answer := self._answers.get(id, {}).get(number)) is not None:
            return answer
        bound = tokens_in_at_most(messages), sampling.max_tokens
        spent = aside = self.worst_case(messages, sampling.max_tokens)
        if self._budget.reserve(Amount(dollars=aside)):
            if self._over:
                raise self._over
            return Answer(None, "budget")
        call = {"id": id, "try": number}
        try:
            self._journal.add({**call, "bound": bound})
            row, failed = self._call(messages, sampling)
            self._journal.add(call | row)
            with self._lock:
                answer, spent = self._book(row, bound)
                if self._is_hopeless(failed):
                    over = ModelError(
                        f"{failed} ({GIVE_UP} calls in a row failed alike, so no more were made)"
                    )
                    self._stop(over)
                    raise over
                return answer
        finally:
            self._budget.settle(Amount(dollars=aside - spent))

    def worst_case(self, messages: Sequence[Message], max_tokens: int) -> Decimal:
        """What a call may cost at most, in dollars."""
        return self._tries * self._cost(tokens_in_at_most(messages), max_tokens)

    def stop(self) -> int:
        """Begin no call any more; those in flight, as many as this says, are written down if the
        process lives."""
        return self._stop(CancelledError())

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def results(self) -> dict[str, Any]:
        """What was used, for `results.json`: calls, tokens, and the `cost` in dollars (`None`:
        unknown).

        `possibly_billed` is the number of tries without a usable answer that may have been billed;
        `cost` holds them at their worst.
        """
        known = {
            name: self.usage[name] if self.usage["reported"] else None
            for name in ("tokens_in", "tokens_out")
        }
        cost = None if self.price is None else float(round(self.spent, 6))
        return {
            "calls": self.usage["calls"],
            "possibly_billed": self.usage["possibly_billed"],
            **known,
            "cost": cost,
        }

    def _replay(self) -> None:
        """Book what an earlier attempt did; of a call in flight when it was killed, all that was
        put aside."""
        begun: defaultdict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        for row in self._journal.rows:
            call = row["id"], row["try"]
            if "bound" in row:
                begun[call].append((row["bound"][0], row["bound"][1]))
                continue
            answer, spent = self._book(row, begun[call].pop())
            self._budget.spend(Amount(dollars=spent))
            if not begun[call]:
                del begun[call]
            if not answer.error:
                self._answers.setdefault(row["id"], {})[row["try"]] = answer
        for bound in chain.from_iterable(begun.values()):
            self._book_lost(bound)

    def _book(self, row: Mapping[str, Any], bound: tuple[int, int]) -> tuple[Answer, Decimal]:
        """What became of a call, and what it cost."""
        tokens_in, tokens_out, possibly_billed = (
            row.get("tokens_in"),
            row.get("tokens_out"),
            row["possibly_billed"],
        )
        self.faults.update(row["faults"])
        self.usage["calls"] += 1
        self.usage["possibly_billed"] += possibly_billed
        spent = possibly_billed * self._cost(*bound)
        refused = row.get("reason") == "refused"  # which is an answer: it would be the same again
        self.usage["answers"] += refused or "text" in row
        if "text" not in row:
            return Answer(None, row["reason"], "" if refused else row["error"]), spent
        if tokens_in is None or tokens_out is None:
            spent += self._cost(*bound)
        else:
            self.usage.update(reported=1, tokens_in=tokens_in, tokens_out=tokens_out)
            spent += self._cost(tokens_in, tokens_out)
        cut_off = tokens_out is not None and tokens_out >= bound[1]
        return Answer(row["text"], "cut off" if cut_off else ""), spent

    def _book_lost(self, bound: tuple[int, int]) -> None:
        self.faults["in flight when stopped"] += 1
        self.usage["possibly_billed"] += self._tries
        self._budget.spend(Amount(dollars=self._tries * self._cost(*bound)))

    def _call(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> tuple[dict[str, Any], ModelError | None]:
        try:
            out = self._chat.chat(messages, sampling)
        except ModelError as error:
            row = {
                "error": str(error),
                "reason": error.reason,
                "possibly_billed": error.possibly_billed,
                "faults": error.faults,
            }
            return row, error
        usage = {"tokens_in": out.tokens_in, "tokens_out": out.tokens_out}
        return {
            "text": out.text,
            **usage,
            "possibly_billed": out.possibly_billed,
            "faults": out.faults,
        }, None

    def _stop(self, over: Exception) -> int:
        self._over = self._over or over
        return self._budget.close(str(over) or "stopped")

    def _is_hopeless(self, failed: ModelError | None) -> bool:
        """Whether this failure is the last of several alike that tell of all other calls.

        A request that the server does not take tells of others only as long as none was taken.
        """
        tells = failed is not None and (
            failed.permanent
            or (failed.reason in ("bad request", "broken answer") and not self.usage["answers"])
        )
        self._alike = (self._alike + 1 if str(failed) == self._last_error else 1) if tells else 0
        self._last_error = str(failed)
        return self._alike >= GIVE_UP

    def _cost(self, tokens_in: int, tokens_out: int) -> Decimal:
        return Decimal(0) if self.price is None else self.price.of(tokens_in, tokens_out)

"""Calls of a chat model that are paid for once, and never beyond a budget. `userlm intents --by` runs this.

Every call is two lines of a file: one before it, with what it may cost at worst, and one after it, with the answer
or why there is none. So a run that was killed knows what was answered, and what it may have to pay for nothing.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import chain
from pathlib import Path
from typing import Any

from userlm.store import Journal
from userlm.types import Chat, InputError, Message, ModelError, Sampling

PER_MESSAGE = 500  # tokens that a server may put around a message, or in front of the first; most put 3 to 40
GIVE_UP = 3


@dataclass(frozen=True, slots=True)
class Price:
    """What a token costs, in millionths of a US dollar: the same number as dollars for a million tokens."""

    token_in: Decimal
    token_out: Decimal

    @classmethod
    def read(cls, text: str) -> Price:
        """`2.50/10`: the dollars for a million tokens in, and out."""
        try:
            token_in, token_out = map(Decimal, text.split("/"))
        except (ValueError, InvalidOperation):
            token_in = token_out = Decimal("nan")
        if not all(token.is_finite() and 0 <= token < 10**6 for token in (token_in, token_out)):
            raise InputError(f"--price {text}: give US dollars for a million tokens in and out, such as 2.50/10")
        return cls(token_in, token_out)

    def of(self, tokens_in: int, tokens_out: int) -> Decimal:
        """Dollars, exactly."""
        return (tokens_in * self.token_in + tokens_out * self.token_out) / 1_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call: a text, or `None` and why.

    Attributes:
        reason: `cut off` (a text that reached `max_tokens`), `budget` (the call was not made), `refused`, or that
            of the `ModelError`.
        error: what the model's error said; asked once more, it may answer.
    """

    text: str | None
    reason: str = ""
    error: str = ""


class Ledger:
    """A chat model, its answers so far, and what they cost.

    Args:
        path: of the file. What it holds from an earlier attempt is not asked again.
        tries: how often the model may send the same call at most.
        price: `None`: unknown, and then there is no budget.
        budget: in dollars. Before a call its worst case is put aside: a token has at least one byte, so the
            bytes of the messages bound the tokens in, and `max_tokens` those out, in each of the tries. What
            cannot be put aside is not asked.
    """

    def __init__(
        self, path: Path, chat: Chat, tries: int = 1, price: Price | None = None, budget: Decimal | None = None
    ) -> None:
        if budget is not None and price is None:
            raise InputError("a budget needs the price of the tokens")
        self._chat, self._tries = chat, tries
        self.price, self.budget = price, budget
        self._state = threading.Condition()
        self._reserved, self._in_flight = Decimal(0), 0
        self._last_error, self._alike = "", 0
        self._over: Exception | None = None
        self._answers: dict[str, dict[int, Answer]] = {}
        self.faults: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        self.spent = Decimal(0)
        self._journal = Journal(path)
        self._replay()

    def answered(self, id: str) -> bool:
        """Whether anything was answered about a conversation before."""
        return id in self._answers

    def ask(self, id: str, number: int, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """The answer to the call of this number about a conversation: the recorded one, or the model's own.

        Raises:
            ModelError: when several calls in a row failed alike, and every other would.
            CancelledError: after `stop`.
        """
        if (answer := self._answers.get(id, {}).get(number)) is not None:
            return answer
        bound = _tokens_in_at_most(messages), sampling.max_tokens
        aside = self.worst_case(messages, sampling.max_tokens)
        if not self._put_aside(aside):
            return Answer(None, "budget")
        call = {"id": id, "try": number}
        try:
            self._journal.add({**call, "bound": bound})
            row, failed = self._call(messages, sampling)
            self._journal.add(call | row)
            with self._state:
                answer = self._book(row, bound)
                if self._is_hopeless(failed):
                    self._over = ModelError(
                        f"{failed} ({GIVE_UP} calls in a row failed alike, so no more were made)"
                    )
                    raise self._over
                return answer
        finally:
            with self._state:
                self._reserved -= aside
                self._in_flight -= 1
                self._state.notify_all()

    def worst_case(self, messages: Sequence[Message], max_tokens: int) -> Decimal:
        """What a call may cost at most, in dollars."""
        return self._tries * self._cost(_tokens_in_at_most(messages), max_tokens)

    def stop(self) -> int:
        """Begin no call any more; those in flight, as many as this says, are written down if the process lives."""
        with self._state:
            self._over = self._over or CancelledError()
            self._state.notify_all()
            return self._in_flight

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def results(self) -> dict[str, Any]:
        """What was used, for `results.json`: calls, tokens, and the `cost` in dollars (`None`: unknown).

        `unsure` is the number of tries without a usable answer that may have been billed; `cost` holds them at
        their worst.
        """
        known = {
            name: self.usage[name] if self.usage["reported"] else None for name in ("tokens_in", "tokens_out")
        }
        cost = None if self.price is None else float(round(self.spent, 6))
        return {"calls": self.usage["calls"], "unsure": self.usage["unsure"], **known, "cost": cost}

    def _replay(self) -> None:
        """Book what an earlier attempt did; of a call in flight when it was killed, all that was put aside."""
        begun: defaultdict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        for row in self._journal.rows:
            call = row["id"], row["try"]
            if "bound" in row:
                begun[call].append((row["bound"][0], row["bound"][1]))
                continue
            answer = self._book(row, begun[call].pop())
            if not begun[call]:
                del begun[call]
            if not answer.error:
                self._answers.setdefault(row["id"], {})[row["try"]] = answer
        for bound in chain.from_iterable(begun.values()):
            self._book_lost(bound)
        self._journal.rows.clear()

    def _book(self, row: Mapping[str, Any], bound: tuple[int, int]) -> Answer:
        tokens_in, tokens_out, unsure = row.get("tokens_in"), row.get("tokens_out"), row["unsure"]
        self.faults.update(row["faults"])
        self.usage["calls"] += 1
        self.usage["unsure"] += unsure
        self.spent += unsure * self._cost(*bound)
        refused = row.get("reason") == "refused"  # which is an answer: it would be the same again
        self.usage["answers"] += refused or "text" in row
        if "text" not in row:
            return Answer(None, row["reason"], "" if refused else row["error"])
        if tokens_in is None or tokens_out is None:
            self.spent += self._cost(*bound)
        else:
            self.usage.update(reported=1, tokens_in=tokens_in, tokens_out=tokens_out)
            self.spent += self._cost(tokens_in, tokens_out)
        return Answer(row["text"], "cut off" if tokens_out is not None and tokens_out >= bound[1] else "")

    def _book_lost(self, bound: tuple[int, int]) -> None:
        self.faults["in flight when stopped"] += 1
        self.usage["unsure"] += self._tries
        self.spent += self._tries * self._cost(*bound)

    def _call(self, messages: Sequence[Message], sampling: Sampling) -> tuple[dict[str, Any], ModelError | None]:
        try:
            out = self._chat.chat(messages, sampling)
        except ModelError as error:
            row = {"error": str(error), "reason": error.reason, "unsure": error.unsure, "faults": error.faults}
            return row, error
        usage = {"tokens_in": out.tokens_in, "tokens_out": out.tokens_out}
        return {"text": out.text, **usage, "unsure": out.unsure, "faults": out.faults}, None

    def _put_aside(self, cost: Decimal) -> bool:
        """Whether there is money for it, if need be when calls that are in flight have left some."""
        with self._state:
            if self.budget is not None:
                while self.spent + self._reserved + cost > self.budget and not self._over:
                    if not self._in_flight:
                        return False
                    self._state.wait()
            if self._over:
                raise self._over
            self._reserved += cost
            self._in_flight += 1
            return True

    def _is_hopeless(self, failed: ModelError | None) -> bool:
        """Whether this failure is the last of several alike that tell of all other calls.

        A request that the server does not take tells of others only as long as none was taken.
        """
        tells = failed is not None and (
            failed.permanent or (failed.reason in ("bad request", "broken answer") and not self.usage["answers"])
        )
        self._alike = (self._alike + 1 if str(failed) == self._last_error else 1) if tells else 0
        self._last_error = str(failed)
        return self._alike >= GIVE_UP

    def _cost(self, tokens_in: int, tokens_out: int) -> Decimal:
        return Decimal(0) if self.price is None else self.price.of(tokens_in, tokens_out)


def _tokens_in_at_most(messages: Sequence[Message]) -> int:
    return sum(len(message["content"].encode()) + PER_MESSAGE for message in messages)

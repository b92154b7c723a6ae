"""What calls of models cost, and caps that they never pass. `respond`, `simulate` and `intents
--writer` run this.

Before a call its worst case is put aside, after it what was not needed is put back, so calls in
many threads together stay below every cap.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from userlm.runs import Journal
from userlm.types import Chat, Complete, Completion, InputError, Message, ModelError, Sampling

PER_MESSAGE = (
    500  # tokens that a server may put around a message, or in front of the first; most put 3 to 40
)
CAP = "cap reached: "
"""How the error of a call that a cap did not allow begins."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a token costs, in millionths of a US dollar: the same number as dollars for a million
    tokens."""

    token_in: Decimal
    token_out: Decimal

    @classmethod
    def parse(cls, text: str, option: str = "--price") -> Price:
        """`2.50/10`: the dollars for a million tokens in, and out."""
        try:
            token_in, token_out = map(Decimal, text.split("/"))
        except (ValueError, InvalidOperation):
            token_in = token_out = Decimal("nan")
        if not all(token.is_finite() and 0 <= token < 10**6 for token in (token_in, token_out)):
            raise InputError(
                f"{option} {text}: give US dollars for a million tokens in and out, such as 2.50/10"
            )
        return cls(token_in, token_out)

    def of(self, tokens_in: int, tokens_out: int) -> Decimal:
        """Dollars, exactly."""
        return (tokens_in * self.token_in + tokens_out * self.token_out) / 1_000_000


@dataclass(frozen=True, slots=True)
class Amount:
    """What calls take."""

    calls: int = 0
    tokens: int = 0
    dollars: Decimal = Decimal(0)

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.calls + other.calls, self.tokens + other.tokens, self.dollars + other.dollars
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.calls - other.calls, self.tokens - other.tokens, self.dollars - other.dollars
        )


@dataclass(frozen=True, slots=True)
class Caps:
    """What all calls together may take at most; `None`: any amount."""

    calls: int | None = None
    tokens: int | None = None
    dollars: Decimal | None = None

    def passed(self, amount: Amount) -> str:
        """The option that sets the first cap below this amount, with its value; empty: there is
        none."""
        caps = (
            ("--max-calls", self.calls, amount.calls),
            ("--max-tokens-total", self.tokens, amount.tokens),
            ("--budget", self.dollars, amount.dollars),
        )
        return next(
            (f"{option} {cap}" for option, cap, taken in caps if cap is not None and taken > cap),
            "",
        )


class Budget:
    """What calls have taken, and what is put aside for those in flight; many threads take from it.

    Attributes:
        spent: both together.
    """

    def __init__(self, caps: Caps) -> None:
        self.caps, self.spent = caps, Amount()
        self._state = threading.Condition()
        self._in_flight = 0
        self._closed = ""

    def reserve(self, worst: Amount) -> str:
        """Take what a call may need, if need be when calls in flight have put something back.

        Returns:
            Empty if it was taken; else why not: the cap that does not allow it, or why the budget
            was closed.
        """
        with self._state:
            while not self._closed and (cap := self.caps.passed(self.spent + worst)):
                if not self._in_flight:
                    return cap
                self._state.wait()
            if not self._closed:
                self.spent += worst
                self._in_flight += 1
            return self._closed

    def settle(self, rest: Amount) -> None:
        """Give back what a call that is over did not need."""
        with self._state:
            self.spent -= rest
            self._in_flight -= 1
            self._state.notify_all()

    def spend(self, amount: Amount) -> None:
        """Count what was spent already, whatever the caps say."""
        with self._state:
            self.spent += amount

    def close(self, why: str) -> int:
        """Give nothing any more, for the first reason that was named; how many calls are in
        flight."""
        with self._state:
            self._closed = self._closed or why
            self._state.notify_all()
            return self._in_flight


class Usage:
    """What the calls of one side used, this time and in earlier attempts.

    Args:
        side: whose calls they are: `user` or `assistant`.
        journal: of the run; the sides may share it. A line before a call books it at its worst, and
            one after it takes back what was too much. So their sum is what was used, even if the
            process was killed.
        tries: how often a call may be sent, and billed, at most.
        price: `None`: unknown.
    """

    def __init__(
        self,
        side: str,
        budget: Budget,
        journal: Journal,
        tries: int = 1,
        price: Price | None = None,
    ) -> None:
        self._side, self._budget, self._journal = side, budget, journal
        self._tries, self._price = tries, price
        self._lock = threading.Lock()
        self._used: Counter[str] = Counter()
        for row in journal.rows:
            if row["side"] == side:
                self._used.update(row["used"])
        budget.spend(self._amount(self._used))

    def call(self, tokens_in: int, max_tokens: int, send: Callable[[], Completion]) -> Completion:
        """What a call gives.

        Args:
            tokens_in, max_tokens: bounds of what one try may be billed for.

        Raises:
            ModelError: when a cap does not allow it; no other call is then begun. Or that of the
                call itself.
        """
        worst = _lost(self._tries, tokens_in, max_tokens)
        if cap := self._budget.reserve(self._amount(worst)):
            self._budget.close(cap)
            raise ModelError(f"{CAP}{cap}", "cap")
        took = worst
        try:
            self._book(worst)
            out = send()
            took = _answered(out, tokens_in, max_tokens)
            return out
        except ModelError as error:
            took = _lost(error.possibly_billed, tokens_in, max_tokens)
            raise
        finally:
            change = Counter(took)
            change.subtract(worst)
            self._budget.settle(Amount() - self._amount(change))
            self._book(change)

    def results(self) -> dict[str, Any]:
        """What was used, for `results.json`: calls, their answers (`drafts`), tokens, the `cost` in
        dollars.

        `possibly_billed` is the number of tries without a usable answer that may have been billed;
        `cost` holds them, and answers whose tokens nobody counted, at their worst. What is not
        known is `None`.
        """
        used = self._used
        known = {
            name: used[name] if used["reported"] else None for name in ("tokens_in", "tokens_out")
        }
        cost = None if self._price is None else float(round(self._amount(used).dollars, 6))
        return {
            "calls": used["calls"],
            "drafts": used["drafts"],
            **known,
            "possibly_billed": used["possibly_billed"],
            "cost": cost,
        }

    @property
    def total(self) -> dict[str, Any]:
        """The one line of the journal that says as much as all those of this side."""
        return {"side": self._side, "used": dict(sorted((+self._used).items()))}

    def _book(self, change: Counter[str]) -> None:
        with self._lock:
            self._used.update(change)
        self._journal.add(
            {"side": self._side, "used": {name: n for name, n in change.items() if n}}
        )

    def _amount(self, used: Mapping[str, int]) -> Amount:
        tokens_in = used["tokens_in"] + used["doubt_in"]
        tokens_out = used["tokens_out"] + used["doubt_out"]
        dollars = Decimal(0) if self._price is None else self._price.of(tokens_in, tokens_out)
        return Amount(used["calls"], tokens_in + tokens_out, dollars)


def _lost(possibly_billed: int, tokens_in: int, max_tokens: int) -> Counter[str]:
    """What a call without an answer used."""
    return Counter(
        calls=1,
        possibly_billed=possibly_billed,
        doubt_in=possibly_billed * tokens_in,
        doubt_out=possibly_billed * max_tokens,
    )


def _answered(out: Completion, tokens_in: int, max_tokens: int) -> Counter[str]:
    """What a call used; an answer of which only the worst is known counts as that."""
    used = _lost(out.possibly_billed, tokens_in, max_tokens) + Counter(drafts=1)
    if out.tokens_in is None or out.tokens_out is None:
        return used + Counter(doubt_in=tokens_in, doubt_out=max_tokens)
    return used + Counter(reported=1, tokens_in=out.tokens_in, tokens_out=out.tokens_out)


@dataclass(frozen=True, slots=True)
class CountedChat:
    """A chat model whose calls are counted."""

    model: Chat
    usage: Usage

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's answer; see `Usage.call`."""
        bound = tokens_in_at_most(messages)
        return self.usage.call(
            bound, sampling.max_tokens, lambda: self.model.chat(messages, sampling)
        )


@dataclass(frozen=True, slots=True)
class CountedComplete:
    """A model of token ids whose calls are counted."""

    model: Complete
    usage: Usage

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """The model's continuation; see `Usage.call`. A server may be asked again with the first
        token behind."""
        return self.usage.call(
            len(ids) + 1, sampling.max_tokens, lambda: self.model.complete(ids, sampling)
        )


def tokens_in_at_most(messages: Sequence[Message]) -> int:
    """A bound: a token has at least one byte."""
    return sum(len(message["content"].encode()) + PER_MESSAGE for message in messages)

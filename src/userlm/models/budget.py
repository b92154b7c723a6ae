"""The cost of model calls, and limits on it.

The worst case of a call is reserved before it and settled after it, so calls in many threads
together stay below every limit. Every verb that calls models uses this.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from userlm.runs import Journal
from userlm.types import (
    Chat,
    Complete,
    Completion,
    InputError,
    Message,
    ModelError,
    Sampling,
)

# Tokens that a server may add around a message or before the first one; most add 3 to 40.
PER_MESSAGE = 500
TRIES = 6
"""How often a call to a server is sent at most: once, and five times more after errors."""
CAP = "cap reached: "
"""The start of the error message of a call that a cap did not allow."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million input and output tokens."""

    token_in: Decimal
    token_out: Decimal

    @classmethod
    def parse(cls, text: str, option: str = "--price") -> Price:
        """Read a price such as `2.50/10`; raises `InputError` that names the option."""
        try:
            token_in, token_out = map(Decimal, text.split("/"))
        except (ValueError, InvalidOperation):
            token_in = token_out = Decimal("nan")
        for price in (token_in, token_out):
            if not (price.is_finite() and 0 <= price < 10**6):
                raise InputError(
                    f"{option} {text}: give US dollars per million input and output tokens, such "
                    f"as 2.50/10"
                )
        return cls(token_in, token_out)

    def __str__(self) -> str:
        return f"{self.token_in}/{self.token_out}"

    def of(self, tokens_in: int, tokens_out: int) -> Decimal:
        """The exact price of these tokens in dollars."""
        return (tokens_in * self.token_in + tokens_out * self.token_out) / 1_000_000


@dataclass(frozen=True, slots=True)
class Amount:
    """The resources that calls use: calls, tokens, dollars."""

    calls: int = 0
    tokens: int = 0
    dollars: Decimal = Decimal(0)

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.calls + other.calls,
            self.tokens + other.tokens,
            self.dollars + other.dollars,
        )


@dataclass(frozen=True, slots=True)
class Caps:
    """The maximum that all calls together may use; `None`: no limit."""

    calls: int | None = None
    tokens: int | None = None
    dollars: Decimal | None = None

    def passed(self, amount: Amount) -> str:
        """The option and value of the first cap below this amount; empty if there is none."""
        for option, cap, taken in (
            ("--max-calls", self.calls, amount.calls),
            ("--max-tokens-total", self.tokens, amount.tokens),
            ("--budget", self.dollars, amount.dollars),
        ):
            if cap is not None and taken > cap:
                return f"{option} {cap}"
        return ""

    def results(self) -> dict[str, Any]:
        """The limits for `results.json`."""
        dollars = None if self.dollars is None else float(self.dollars)
        return {
            "max_calls": self.calls,
            "max_tokens_total": self.tokens,
            "budget": dollars,
        }


class Budget:
    """What calls have used, and what is reserved for calls in flight. It is thread-safe.

    Attributes:
        spent: the sum of both.
    """

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.spent = Amount()
        self._state = threading.Condition()
        self._in_flight = 0
        self._closed = ""

    def reserve(self, worst: Amount) -> str:
        """Reserve what a call may need. If a cap does not allow it, wait until calls in flight are
        settled.

        Returns:
            Empty if it was reserved; else the cap that does not allow it, or why the budget was
            closed.
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

    def settle(self, change: Amount) -> None:
        """Settle a call. `change` is its usage minus its reservation, so usually negative."""
        with self._state:
            self.spent += change
            self._in_flight -= 1
            self._state.notify_all()

    def spend(self, amount: Amount) -> None:
        """Count what an earlier attempt spent, regardless of the caps."""
        with self._state:
            self.spent += amount

    def close(self, why: str) -> int:
        """Allow no more calls, and return how many are in flight. If called again, the first reason
        is kept."""
        with self._state:
            self._closed = self._closed or why
            self._state.notify_all()
            return self._in_flight


# --- what a call used -----------------------------------------------------------------------------
#
# The usage of calls is a Counter of
#     calls, drafts          calls, and those with an answer
#     open                   calls that were begun and not settled
#     reported               answers whose tokens the server counted
#     tokens_in, tokens_out  the tokens of these
#     possibly_billed        tries without a usable answer that may have been billed
#     doubt_in, doubt_out    the most tokens of such tries, and of answers that are not counted


def usage_of_tries(tries: int, tokens_in: int, max_tokens: int) -> Counter[str]:
    """The usage of a call without an answer; `tries` is how many may have been billed."""
    return Counter(
        calls=1,
        possibly_billed=tries,
        doubt_in=tries * tokens_in,
        doubt_out=tries * max_tokens,
    )


def usage_of(answer: Completion, tokens_in: int, max_tokens: int) -> Counter[str]:
    """The usage of an answered call; without token counts it is counted at its worst case."""
    used = usage_of_tries(answer.possibly_billed, tokens_in, max_tokens)
    used["drafts"] += 1
    if answer.tokens_in is None or answer.tokens_out is None:
        used.update(doubt_in=tokens_in, doubt_out=max_tokens)
    else:
        used.update(
            reported=1, tokens_in=answer.tokens_in, tokens_out=answer.tokens_out
        )
    return used


def amount_of(used: Mapping[str, int], price: Price | None) -> Amount:
    """What this usage takes from a budget; without a price it costs nothing."""
    tokens_in = used["tokens_in"] + used["doubt_in"]
    tokens_out = used["tokens_out"] + used["doubt_out"]
    dollars = Decimal(0) if price is None else price.of(tokens_in, tokens_out)
    return Amount(used["calls"], tokens_in + tokens_out, dollars)


class Usage:
    """What the calls of one side used, in this attempt and earlier ones.

    Args:
        side: what makes the calls: `user`, `assistant` or `writer`.
        journal: the journal of the run, which all sides share. A line before a call records
            its worst case, and a line after it the difference to its usage. So the sum is an upper
            bound even if the process is killed in between.
        tries: the maximum number of times a call may be sent, and billed.
        price: `None` if unknown.
    """

    def __init__(
        self,
        side: str,
        budget: Budget,
        journal: Journal,
        tries: int = 1,
        price: Price | None = None,
    ) -> None:
        self._side = side
        self._budget = budget
        self._journal = journal
        self._tries = tries
        self._price = price
        self._lock = threading.Lock()
        self._used: Counter[str] = Counter()
        for row in journal.rows:
            if row["side"] == side:
                self._used.update(row["used"])
        budget.spend(amount_of(self._used, price))

    def call(
        self,
        tokens_in: int,
        max_tokens: int,
        send: Callable[[], Completion],
    ) -> Completion:
        """Return the result of `send`, and count its usage.

        Args:
            tokens_in, max_tokens: the maximum input and output tokens of one try.

        Raises:
            ModelError: if a cap does not allow the call (then no other call starts), or if the call
            fails.
        """
        worst = usage_of_tries(self._tries, tokens_in, max_tokens)
        worst["open"] = 1
        if cap := self._budget.reserve(amount_of(worst, self._price)):
            self._budget.close(cap)
            raise ModelError(f"{CAP}{cap}", "cap")
        used = worst.copy()
        try:
            self._book(worst)
            answer = send()
            used = usage_of(answer, tokens_in, max_tokens)
            return answer
        except ModelError as error:
            used = usage_of_tries(error.possibly_billed, tokens_in, max_tokens)
            raise
        finally:
            used.subtract(worst)
            self._budget.settle(amount_of(used, self._price))
            self._book(used)

    def stop(self, why: str) -> None:
        """Start no more calls, of any side."""
        self._budget.close(why)

    @property
    def open_calls(self) -> int:
        """How many calls were begun and not settled: after the last call, those that were in flight
        when an earlier attempt was killed."""
        return self._used["open"]

    def results(self) -> dict[str, Any]:
        """The usage for `results.json`: calls, answers (`drafts`), tokens, possibly billed tries,
        dollars (`cost`), and the price that it was computed with.

        `cost` counts possibly billed tries and answers without token counts at their worst case.
        Unknown values are `None`.
        """
        used = self._used
        price = self._price
        cost = amount_of(used, price).dollars
        return {
            "calls": used["calls"],
            "drafts": used["drafts"],
            "tokens_in": used["tokens_in"] if used["reported"] else None,
            "tokens_out": used["tokens_out"] if used["reported"] else None,
            "possibly_billed": used["possibly_billed"],
            "cost": None if price is None else float(round(cost, 6)),
            "price": None if price is None else str(price),
        }

    @property
    def total(self) -> dict[str, Any]:
        """The one line of the journal that replaces all those of this side."""
        return {"side": self._side, "used": dict(sorted((+self._used).items()))}

    def _book(self, change: Counter[str]) -> None:
        with self._lock:
            self._used.update(change)
        used = {name: count for name, count in change.items() if count}
        self._journal.add({"side": self._side, "used": used})


@dataclass(frozen=True, slots=True)
class CountedChat:
    """A chat model whose calls are counted and limited; see `Usage.call`."""

    model: Chat
    usage: Usage

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's answer."""
        return self.usage.call(
            max_tokens_in(messages),
            sampling.max_tokens,
            lambda: self.model.chat(messages, sampling),
        )


@dataclass(frozen=True, slots=True)
class CountedComplete:
    """A model of token ids whose calls are counted and limited; see `Usage.call`."""

    model: Complete
    usage: Usage

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """The model's continuation."""
        # A second request for the same completion may include the first new token.
        most_tokens_in = len(ids) + 1
        return self.usage.call(
            most_tokens_in,
            sampling.max_tokens,
            lambda: self.model.complete(ids, sampling),
        )


def max_tokens_in(messages: Sequence[Message]) -> int:
    """Return the maximum number of tokens in messages: a token has at least one byte."""
    return sum(len(message["content"].encode()) + PER_MESSAGE for message in messages)

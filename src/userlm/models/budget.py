"""The budget of a run: the cost of its model calls, and limits on it.

The worst case of a call is reserved before it and settled after it, so calls in many threads
together stay below every limit. Every verb that calls models uses this.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path
from typing import Any

from userlm.journal import Journal
from userlm.json_files import take, write_lines
from userlm.models.scored_rows import ScoredRows
from userlm.models.shared_calls import SharedCalls
from userlm.text import has_words, without_speaker
from userlm.types import (
    Chat,
    Complete,
    Completion,
    Conversation,
    InputError,
    Message,
    ModelError,
    Reply,
    Sampling,
    Score,
    Speaker,
)

# Tokens that a server may add around a message or before the first one; most add 3 to 40.
PER_MESSAGE = 500
TRIES = 6
"""How often a call to a server is sent at most: once, and five times more after errors."""
CAP = "cap reached: "
"""The start of the error message of a call that a cap did not allow."""
LONG_WAIT = "long wait"
ENDS_RUN = ("no credit", LONG_WAIT, "redirected")
"""Reasons of errors with which a server says that it will answer no call, at least for a long
time."""
GIVE_UP = 3
"""After this many consecutive calls with the same permanent error, or without an answer that can be
read if there was never one, no other call starts."""
WORDLESS = 10
"""After this many consecutive answers without words, no other call starts: they are paid for, and
come from a model that uses up all tokens by thinking."""
_LOOK = 0.5
"""Seconds of a pause after which it is asked whether somebody still waits."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million input and output tokens."""

    token_in: Decimal
    token_out: Decimal

    @classmethod
    def parse(cls, text: str, option: str = "--price") -> Price:
        """Read a price such as `2.50/10`; raises `InputError` that names the option."""
        # TypeError: not two numbers. InvalidOperation: not a number.
        with suppress(TypeError, InvalidOperation):
            price = cls(*map(Decimal, text.split("/")))
            if 0 <= price.token_in < 10**6 and 0 <= price.token_out < 10**6:
                return price
        raise InputError(
            f"{option} {text}: give US dollars per million input and output tokens, such as 2.50/10"
        )

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

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.calls - other.calls,
            self.tokens - other.tokens,
            self.dollars - other.dollars,
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


# --- what calls used ------------------------------------------------------------------------------
#
# The usage of calls is a Counter of
#     calls, drafts          requests (of a model on this machine: calls), and answers
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
    used["doubt_out"] += answer.excess_tokens
    if answer.tokens_in is None or answer.tokens_out is None:
        used.update(doubt_in=tokens_in, doubt_out=max_tokens)
    else:
        tokens_out = answer.tokens_out + answer.reasoning_tokens
        used.update(reported=1, tokens_in=answer.tokens_in, tokens_out=tokens_out)
    return used


class Budget:
    """The limits of a run and the usage of its sides, the models that it calls. It is thread-safe.

    The journal gets a line with the worst case of a call before it, and after it a line with the
    difference to its usage. So the sum is an upper bound even if the process is killed in between.

    Args:
        path: the journal, which is made for the first side. `None` for a server, which remembers
            nothing and goes on whatever its models answer.

    Attributes:
        sides: by name: `user`, `assistant` or `writer`.
    """

    def __init__(self, caps: Caps, path: Path | None) -> None:
        self.caps = caps
        self.sides: dict[str, Side] = {}
        self._path = path
        self._state = threading.Condition()
        self._in_flight = 0
        self._reserved = Amount()  # for the calls in flight
        self._stopped = ""

    def side(
        self,
        name: str,
        address: str = "",
        price: Price | None = None,
        tries: int = 1,
        may_bill: bool = False,
    ) -> Side:
        """Add a model that is called, with its usage in earlier attempts."""
        used: Counter[str] = Counter()
        if self._path:
            for side_name, counts in self._journal.read(_parse):
                if side_name == name:
                    used.update(counts)
        side = Side(self, name, address, price, tries, may_bill, used)
        self.sides[name] = side
        return side

    @property
    def spent(self) -> Amount:
        """What calls used, and what is reserved for calls in flight."""
        return sum((side.amount(side.used) for side in self.sides.values()), Amount())

    @property
    def may_bill(self) -> bool:
        """Whether a call may be billed."""
        return any(side.may_bill for side in self.sides.values())

    def reserve(self, side: Side, worst: Counter[str]) -> None:
        """Reserve what a call may use. If a cap does not allow it, wait until calls in flight are
        settled.

        Raises:
            ModelError: if a cap does not allow it, or after `stop`. No other call of a run starts
                then, unless this one alone would pass a cap. Also if it is not wanted any more.
        """
        needed = side.amount(worst)
        with self._state:
            while True:
                check_wanted()
                why = self._stopped or self._passed(needed)
                if not why:
                    break
                if self._stopped or self.caps.passed(needed):
                    raise _not_made(why)
                if self.caps.passed(self.spent - self._reserved + needed):
                    self.give_up(why)
                    raise _not_made(why)
                self._state.wait()
            self._book(side, worst)
            self._in_flight += 1
            self._reserved += needed

    def count_more(self, side: Side, used: Counter[str]) -> None:
        """Count what a call in flight uses besides its worst case. It never waits: calls that wait
        for each other would do so for ever.

        Raises:
            ModelError: if a cap does not allow it, or after `stop`.
        """
        with self._state:
            # A call that was in flight when a cap stopped others may be tried again.
            stopped = "" if self._stopped.startswith(CAP) else self._stopped
            if why := stopped or self._passed(side.amount(used)):
                raise _not_made(why)
            self._book(side, used)

    def settle(self, side: Side, used: Counter[str], worst: Counter[str]) -> None:
        """Settle a call, which usually used less than was reserved for it."""
        change = used.copy()
        change.subtract(worst)
        with self._state:
            self._in_flight -= 1
            self._reserved -= side.amount(worst)
            self._state.notify_all()
            self._book(side, change)

    def _passed(self, needed: Amount) -> str:
        """Return which cap this amount would pass, as a message; empty if none."""
        cap = self.caps.passed(self.spent + needed)
        return f"{CAP}{cap}" if cap else ""

    def stop(self, why: str) -> int:
        """Allow no more calls, and return how many are in flight. `why` is the error of all later
        calls; if called again, the first one is kept."""
        with self._state:
            self._stopped = self._stopped or why
            self._state.notify_all()
            return self._in_flight

    def give_up(self, why: str) -> None:
        """Allow no more calls, since all would fail; those of a server may not: they come from many
        callers, and tomorrow, too."""
        if self._path:
            self.stop(why)

    def finish(self, names: Iterable[str]) -> dict[str, Any]:
        """Close the journal after the last call, with one line for each side, and return the usage
        of these sides (`None` for one without a model) and the limits, for `results.json`."""
        self.close()
        if self.sides and self._path:
            write_lines(
                self._path, [_line(side, side.used) for side in self.sides.values()]
            )
        usage: dict[str, Any] = dict.fromkeys(names)
        for name, side in self.sides.items():
            usage[name] = side.results()
        dollars = self.caps.dollars
        caps = {
            "max_calls": self.caps.calls,
            "max_tokens_total": self.caps.tokens,
            "budget": None if dollars is None else float(dollars),
        }
        return {"usage": usage, "caps": caps}

    def close(self) -> None:
        """Close the journal."""
        if self.sides and self._path:
            self._journal.close()

    @cached_property
    def _journal(self) -> Journal:
        assert self._path
        return Journal(self._path)

    def _book(self, side: Side, change: Counter[str]) -> None:
        side.used.update(change)
        if self._path:
            self._journal.add(_line(side, change))


def spent(path: Path, prices: Mapping[str, Price | None]) -> Amount:
    """Return what the calls of a run used, by its journal, at the prices of its sides. A run that
    was killed counts with the worst case of the calls that were in flight."""
    if not path.is_file():
        return Amount()
    budget = Budget(Caps(), path)
    for name, price in prices.items():
        budget.side(name, price=price)
    budget.close()
    return budget.spent


def _not_made(why: str) -> ModelError:
    """Return the error of a call that a cap did not allow, or that came after `Budget.stop`."""
    return ModelError(why, "cap" if why.startswith(CAP) else "stopped")


def _line(side: Side, used: Counter[str]) -> dict[str, Any]:
    """A line of the journal."""
    counts = {name: count for name, count in sorted(used.items()) if count}
    return {"side": side.name, "used": counts}


def _parse(row: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """The side of a line of the journal, and what it used."""
    used = take(row, "used", dict)
    return take(row, "side", str), {name: take(used, name, int) for name in used}


@dataclass(slots=True, eq=False)
class Side:
    """A model that a run calls, and its usage in this attempt and earlier ones.

    Attributes:
        address: its address, for messages.
        price: `None` if unknown.
        tries: the maximum number of times a call may be sent, and billed.
        may_bill: whether a call may cost something.
        used: calls in flight count at their worst case, also those of an attempt that was killed.
        wordless: how many of the latest answers had no words.
        latest: for each of the latest calls the reason of an error that all others would have too;
            empty if there is none.
    """

    budget: Budget
    name: str
    address: str
    price: Price | None
    tries: int
    may_bill: bool
    used: Counter[str]
    wordless: int = 0
    latest: deque[str] = field(default_factory=lambda: deque(maxlen=GIVE_UP))

    def call(
        self, tokens_in: int, max_tokens: int, send: Callable[[], Completion]
    ) -> Completion:
        """Return the result of `send`, and count its usage.

        Args:
            tokens_in, max_tokens: the maximum input and output tokens of one try.

        Raises:
            ModelError: if a cap does not allow the call, or if the call fails. No other call of any
                side starts if the cap is reached, after `WORDLESS` answers without words, after
                `GIVE_UP` errors that all others would have, or if the server says that it will
                answer none.
        """
        worst = usage_of_tries(self.tries, tokens_in, max_tokens)
        worst["open"] = 1
        self.budget.reserve(self, worst)
        used = worst.copy()
        call = _Call(self)
        previous = _CALL.set(call)
        try:
            answer = send()
            used = usage_of(answer, tokens_in, max_tokens)
            self.latest.append("")
            # Without any text it is a model of ids that ends.
            has_any = bool(answer.thought or answer.text.strip())
            said = without_speaker(answer.text)
            self._count_wordless(has_any and not has_words(said))
            return answer
        except ModelError as error:
            used = usage_of_tries(error.possibly_billed, tokens_in, max_tokens)
            used["doubt_out"] += error.excess_tokens
            if error.reason == "stopped" and not call.requests:
                used["calls"] = 0  # nobody waited any more, so nothing was sent
            self.latest.append(_lasting(error, bool(self.used["drafts"])))
            if error.reason in ENDS_RUN or self.is_hopeless:
                self.budget.give_up(str(error))
            if error.reason == "empty answer":
                self._count_wordless(True)
            raise
        except InputError:  # such as a setting that the server does not have
            if not call.requests:
                used = Counter()
            raise
        finally:
            _CALL.reset(previous)
            self.budget.settle(self, used, worst)

    @property
    def is_hopeless(self) -> bool:
        """Whether the latest calls failed with the same error, as all others would."""
        return _are_alike(self.latest)

    def _count_wordless(self, is_wordless: bool) -> None:
        self.wordless = self.wordless + 1 if is_wordless else 0
        if self.wordless >= WORDLESS:
            self.budget.give_up(
                f"{WORDLESS} answers of {self.address} in a row were empty or only a thought, so "
                "no more were asked for; allow longer ones (--max-tokens, --max-answer-tokens or "
                "--judge-tokens), or take a model that does not think"
            )

    def amount(self, used: Mapping[str, int]) -> Amount:
        """What this usage takes from the budget; without a price it costs nothing."""
        tokens_in = used["tokens_in"] + used["doubt_in"]
        tokens_out = used["tokens_out"] + used["doubt_out"]
        dollars = self.price.of(tokens_in, tokens_out) if self.price else Decimal(0)
        return Amount(used["calls"], tokens_in + tokens_out, dollars)

    def results(self) -> dict[str, Any]:
        """The usage for `results.json`: calls, answers (`drafts`), tokens, possibly billed tries,
        dollars (`cost`), and the price that it was computed with.

        `cost` counts possibly billed tries and answers without token counts at their worst case.
        Unknown values are `None`.
        """
        used = self.used
        known = used if used["reported"] else {}
        cost = float(round(self.amount(used).dollars, 6))
        return {
            "calls": used["calls"],
            "drafts": used["drafts"],
            "tokens_in": known.get("tokens_in"),
            "tokens_out": known.get("tokens_out"),
            "possibly_billed": used["possibly_billed"],
            "cost": cost if self.price else None,
            "price": str(self.price) if self.price else None,
        }


def _lasting(error: ModelError, has_answered: bool) -> str:
    """Return the reason of an error that all other calls would have too; empty if they may not."""
    # Each of these may have been billed.
    is_unfit = error.reason in ("broken answer", "timed out") and not has_answered
    return error.reason if error.permanent or is_unfit else ""


def _are_alike(latest: Iterable[str]) -> bool:
    latest = list(latest)  # other threads add to it
    return any(latest.count(reason) == GIVE_UP for reason in latest if reason)


@dataclass(slots=True)
class WatchedBot:
    """A bot on a server, whose calls are not counted. After `GIVE_UP` errors that all its calls
    would have, no call of the budget starts: nobody pays for turns that it cannot answer."""

    bot: Speaker
    budget: Budget
    has_answered: bool = False
    latest: deque[str] = field(default_factory=lambda: deque(maxlen=GIVE_UP))

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return its answer."""
        try:
            reply = self.bot.reply(conversation)
            if not has_words(reply.text):
                raise ModelError("the assistant's answer has no words", "broken answer")
        except ModelError as error:
            self.latest.append(_lasting(error, self.has_answered))
            if _are_alike(self.latest):
                self.budget.give_up(str(error))
            raise
        self.has_answered = True
        self.latest.append("")
        return reply


@dataclass(slots=True)
class _Call:
    """A call in flight.

    Attributes:
        requests: how many it made so far.
        retries: how many of them repeated one that may have been billed.
    """

    side: Side
    requests: int = 0
    retries: int = 0


_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)
"""The call that this thread makes."""


_IS_WANTED: ContextVar[Callable[[], bool]] = ContextVar(
    "is_wanted", default=lambda: True
)
"""Whether somebody still waits for what this thread does."""


@contextmanager
def while_wanted(is_wanted: Callable[[], bool]) -> Iterator[None]:
    """Let counted calls of this thread be made only while they are wanted."""
    token = _IS_WANTED.set(is_wanted)
    try:
        yield
    finally:
        _IS_WANTED.reset(token)


def is_wanted_here() -> Callable[[], bool]:
    """Return what tells, in any thread, whether somebody waits for what this one does."""
    return _IS_WANTED.get()


def check_wanted() -> None:
    """Raise `ModelError` if nobody waits for what this thread does."""
    if not _IS_WANTED.get()():
        raise _not_made("nobody waits for the answer any more")


def pause(seconds: float) -> None:
    """Wait before another request; raise `ModelError` as soon as it is not wanted any more."""
    check_wanted()
    while seconds > 0:
        time.sleep(min(seconds, _LOOK))
        seconds -= _LOOK
        check_wanted()


def count_request(is_retry: bool = False) -> None:
    """Count a request that may be billed, if it belongs to a counted call. The first request of a
    call was counted with it.

    Args:
        is_retry: whether it repeats one that may have been billed.

    Raises:
        ModelError: if a cap does not allow another request.
    """
    call = _CALL.get()
    if call is None:
        return
    if call.requests:
        call.side.budget.count_more(call.side, Counter(calls=1))
    call.requests += 1
    call.retries += is_retry


def count_test(tokens_in: int) -> None:
    """Count the tokens of a request that tests a server, if it belongs to a counted call.

    Raises:
        ModelError: if a cap does not allow it.
    """
    if call := _CALL.get():
        call.side.budget.count_more(call.side, Counter(doubt_in=tokens_in))


@dataclass(frozen=True, slots=True)
class CountedChat:
    """A chat model whose calls are counted and limited; see `Side.call`."""

    model: Chat
    side: Side

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's answer."""
        return self.side.call(
            max_tokens_in(messages),
            sampling.max_tokens,
            lambda: self.model.chat(messages, sampling),
        )


@dataclass(frozen=True, slots=True)
class CountedComplete:
    """A model of token ids whose calls are counted and limited; see `Side.call`."""

    model: Complete
    side: Side

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """The model's continuation."""
        # A second request for the same completion may include the first new token.
        most_tokens_in = len(ids) + 1
        return self.side.call(
            most_tokens_in,
            sampling.max_tokens,
            lambda: self.model.complete(ids, sampling),
        )


@dataclass(frozen=True, slots=True)
class CountedScore:
    """A model on a server that scores texts, with one call for each row that was not scored before;
    see `Side.call`."""

    model: Score
    side: Side
    rows: ScoredRows
    scoring: SharedCalls[list[float]] = field(default_factory=SharedCalls)

    def score(
        self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]]
    ) -> list[list[float]]:
        """The log-probabilities of the masked tokens."""
        return [self._row(ids, mask) for ids, mask in rows]

    def _row(self, ids: Sequence[int], mask: Sequence[bool]) -> list[float]:
        if not any(mask):  # nothing to ask
            return []
        key = (*ids, *mask)
        return self.scoring.result(key, lambda: self._scored(ids, mask))[0]

    def _scored(self, ids: Sequence[int], mask: Sequence[bool]) -> list[float]:
        if known := self.rows.find(ids, mask):
            return known
        scored: list[float] = []

        def send() -> Completion:
            scored.extend(*self.model.score([(ids, mask)]))
            self.rows.add(ids, mask, scored)
            call = _CALL.get()
            retries = call.retries if call else 0
            # a server reads exactly these ids, and generates a token at most
            return Completion(
                "", tokens_in=len(ids), tokens_out=1, possibly_billed=retries
            )

        self.side.call(len(ids), 1, send)
        return scored


def max_tokens_in(messages: Sequence[Message]) -> int:
    """Return the maximum number of tokens in messages: a token has at least one byte."""
    return sum(len(message["content"].encode()) + PER_MESSAGE for message in messages)

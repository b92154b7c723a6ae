"""The cost of a run that calls models: an estimate before the first call, limits, and the cost in
the end.

Prices and limits do not identify a run: the same command with other ones resumes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

from userlm.address import Address
from userlm.assistants import ModelAssistant
from userlm.commands.options import COSTS, option
from userlm.models.budget import (
    CAP,
    TRIES,
    Amount,
    Budget,
    Caps,
    CountedChat,
    CountedComplete,
    Price,
    Usage,
)
from userlm.rows import write_lines
from userlm.runs import Journal, Run
from userlm.show.terminal import console
from userlm.types import Conversation, InputError, Role, Speaker
from userlm.users import PromptedUser, TrainedUser, swapped_messages, user_prompt

MOST_DOLLARS = 1e9
_cost = partial(option, None, panel=COSTS, recorded=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the calls of a run. They may change when it is resumed."""

    budget: float | None = _cost(
        "Maximum cost in US dollars; needs the prices.",
        min=0,
        max=MOST_DOLLARS,
        metavar="DOLLARS",
    )
    max_calls: int | None = _cost("Maximum number of model calls.", min=0)
    max_tokens_total: int | None = _cost(
        "Maximum number of input and output tokens together.", min=0
    )

    @property
    def caps(self) -> Caps:
        """The limits."""
        dollars = None if self.budget is None else Decimal(str(self.budget))
        return Caps(self.max_calls, self.max_tokens_total, dollars)


def price_option(flag: str, of: str) -> Any:
    """Return the field of a price."""
    return _cost(
        f"US dollars per million input and output tokens of {of}, such as 2.50/10.",
        flag=flag,
        metavar="IN/OUT",
    )


PRICE_OPTIONS = {"user": "--user-price", "assistant": "--price", "writer": "--price"}
# For the estimate. The limits use an upper bound before a call and its real usage after it.
BYTES_PER_TOKEN = 4
TOKENS_PER_TURN = {"user": 50, "assistant": 300}

# One completion of token ids on a server takes up to three requests: P(end), first token, the rest.
REQUESTS = 3


def read_price(side: str, text: str | None) -> Price | None:
    """Return the price of one side's tokens; raise an `InputError` that names the option."""
    return None if text is None else Price.parse(text, PRICE_OPTIONS[side])


@dataclass(frozen=True, slots=True)
class Estimate:
    """The calls that are expected of a side, and the tokens in them."""

    calls: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Side:
    """A model of a run: its usage, and whether calls of it may be billed."""

    address: Address
    usage: Usage
    price: Price | None

    @property
    def may_bill(self) -> bool:
        return self.price is not None or self.address.is_remote

    def amount(self, estimate: Estimate) -> Amount:
        """What the estimate takes from a budget."""
        tokens_in, tokens_out = estimate.tokens_in, estimate.tokens_out
        dollars = Decimal(0)
        if self.price is not None:
            dollars = self.price.of(tokens_in, tokens_out)
        return Amount(estimate.calls, tokens_in + tokens_out, dollars)


class Costs:
    """The models of a run: `user`, `assistant` or `writer`. Their calls are counted and limited
    together."""

    def __init__(self, run: Run, caps: Caps) -> None:
        self._caps = caps
        self._budget = Budget(caps)
        self._path = run.path("usage.jsonl")
        self._journal: Journal | None = None
        self._without_model: list[str] = []
        self._sides: dict[str, Side] = {}

    def side(
        self, name: str, address: Address, price: Price | None, requests: int = 1
    ) -> Usage:
        """Return the usage of a model, which counts and limits its calls.

        Args:
            requests: how many requests a call takes at most.

        Raises:
            InputError: for a budget without the price of a model on a server.
        """
        if self._caps.dollars is not None and address.is_remote and price is None:
            raise InputError(
                f"--budget needs the price of the tokens of {address}; give {PRICE_OPTIONS[name]} "
                "IN/OUT (0/0 if they cost nothing)"
            )
        self._journal = self._journal or Journal(self._path)
        tries = requests * TRIES if address.is_remote else requests
        usage = Usage(name, self._budget, self._journal, tries, price)
        self._sides[name] = Side(address, usage, price)
        return usage

    def count(
        self, role: Role, address: Address, speaker: Speaker, price: Price | None
    ) -> Speaker:
        """Return the speaker with its model calls counted; a speaker without a model is returned
        unchanged.

        Raises:
            InputError: for a price without a model, and a budget without the price of a model on a
                server.
        """
        match speaker:
            case TrainedUser():
                requests = REQUESTS if address.is_remote else 1
                usage = self.side(role, address, price, requests)
                return replace(speaker, model=CountedComplete(speaker.model, usage))
            case PromptedUser() | ModelAssistant():
                usage = self.side(role, address, price)
                return replace(speaker, chat=CountedChat(speaker.chat, usage))
        if price is not None:
            raise InputError(
                f"{PRICE_OPTIONS[role]}: {address} calls no model; leave the option out"
            )
        if address.is_code and self._caps != Caps():
            console.print(f"calls that {address} makes are not counted", style="yellow")
        self._without_model.append(role)
        return speaker

    def check(self) -> None:
        """Raise `InputError` for limits on calls that are not counted."""
        if self._caps != Caps() and not self._sides:
            raise InputError(
                "--max-calls, --max-tokens-total and --budget are for models; none is called here"
            )

    @property
    def need_estimate(self) -> bool:
        """Whether calls may be billed or are limited."""
        return self._caps != Caps() or self._may_bill

    @property
    def _may_bill(self) -> bool:
        return any(side.may_bill for side in self._sides.values())

    def show_estimate(self, estimates: Mapping[str, Estimate], assuming: str) -> None:
        """Print how many calls and tokens are expected of each side."""
        before = self._budget.spent
        total = before
        for name, side in self._sides.items():
            estimate = estimates[name]
            amount = side.amount(estimate)
            total += amount
            cost = f", about ${amount.dollars:,.2f}" if side.price is not None else ""
            console.print(
                f" {name} {side.address}: {estimate.calls:,} calls, about "
                f"{estimate.tokens_in:,} tokens in and at most {estimate.tokens_out:,} out{cost}",
                soft_wrap=True,
            )
        console.print(
            f" at {BYTES_PER_TOKEN} bytes per token{assuming}",
            style="dim",
            soft_wrap=True,
        )
        if before != Amount():
            cost = f", ${before.dollars:,.2f}" if before.dollars else ""
            console.print(
                f" before this: {before.calls:,} calls, {before.tokens:,} tokens{cost}"
            )
        if cap := self._caps.passed(total):
            console.print(f" {cap} may stop the run earlier", style="yellow")

    def stop(self) -> None:
        """Allow no more calls, and print how many calls in flight may be billed."""
        in_flight = self._budget.close("stopped")
        if in_flight and self._may_bill:
            console.print(
                f"{in_flight} calls were in flight; they may be billed", style="yellow"
            )

    def close(self) -> dict[str, Any]:
        """Return the usage for `results.json`, after the last call; `None` for a side without a
        model."""
        if self._journal:
            self._journal.close()
            totals = [side.usage.total for side in self._sides.values()]
            write_lines(self._path, totals)
        usage: dict[str, Any] = dict.fromkeys(self._without_model)
        for name, side in self._sides.items():
            usage[name] = side.usage.results()
        return {"usage": usage, "caps": self._caps.results()}


def estimate_conversations(
    costs: Costs,
    speakers: Mapping[str, Speaker],
    starts: Iterable[Conversation],
    calls: Callable[[Conversation], Iterable[tuple[Role, int]]],
) -> None:
    """Print how many calls and tokens are expected, if they may be billed or are limited.

    Args:
        speakers: by role.
        calls: the maximum calls of each conversation: the role, and the tokens in the turns before
            the call.
    """
    if not costs.need_estimate:
        return
    count: Counter[str] = Counter()
    tokens_in: Counter[str] = Counter()
    for start in starts:
        prompts = {name: _prompt_tokens(one, start) for name, one in speakers.items()}
        for role, said in calls(start):
            count[role] += 1
            tokens_in[role] += prompts[role] + said
    estimates: dict[str, Estimate] = {}
    for name, one in speakers.items():
        most = 0
        if isinstance(one, TrainedUser | PromptedUser | ModelAssistant):
            most = one.sampling.max_tokens
        estimates[name] = Estimate(count[name], tokens_in[name], count[name] * most)
    console.print("estimate, if no conversation ends early:")
    turns = ", ".join(
        f"{n} tokens per {role} turn" for role, n in TOKENS_PER_TURN.items()
    )
    assuming = f" and {turns}; each resampled draft is one more call"
    costs.show_estimate(estimates, assuming)


def _prompt_tokens(speaker: Speaker, start: Conversation) -> int:
    """Estimate the number of tokens before the turns of the conversation."""
    match speaker:
        case ModelAssistant(system=system):
            texts = [system or ""]
        case PromptedUser(swapped=True):
            messages = swapped_messages(start.system or "", ())
            texts = [message["content"] for message in messages]
        case PromptedUser():
            texts = [user_prompt(start.system, ())]
        case _:
            texts = [start.system or ""]
    return sum(len(text.encode()) for text in texts) // BYTES_PER_TOKEN


def show_errors(errors: Sequence[str]) -> None:
    """Print which calls failed, or were not made because of a limit, and what to do about it."""
    capped = [error for error in errors if error.startswith(CAP)]
    failed = [error for error in errors if not error.startswith(CAP)]
    if capped:
        console.print(
            f"{capped[0]} does not cover the worst case of another call; {len(capped):,} "
            "conversations are unfinished. Run the same command with a higher limit to continue; "
            "answered calls are not repeated",
            style="yellow",
        )
    if failed:
        console.print(
            f"{len(failed):,} ended in an error (the same command tries these again), the first: "
            f"{failed[0]}",
            style="yellow",
        )

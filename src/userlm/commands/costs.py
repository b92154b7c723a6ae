"""The cost of a `respond` or `simulate` run: an estimate before the first call, limits, and the
cost in the end.

Prices and limits do not identify a run: the same command with other ones resumes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

from userlm.address import parse
from userlm.assistants import ModelAssistant
from userlm.commands.options import COSTS, option
from userlm.models.budget import (
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


PRICE_OPTION: dict[Role, str] = {"user": "--user-price", "assistant": "--price"}
# For the estimate. The limits use an upper bound before a call and its real usage after it.
BYTES_PER_TOKEN = 4
TOKENS_PER_TURN = {"user": 50, "assistant": 300}

# One completion of token ids on a server takes up to three requests: P(end), first token, the rest.
REQUESTS = 3


def read_price(role: Role, text: str | None) -> Price | None:
    """Return the price of one side's tokens; raise an `InputError` that names the option."""
    return None if text is None else Price.parse(text, PRICE_OPTION[role])


@dataclass(frozen=True, slots=True)
class _Side:
    """A model that speaks for the user or for the assistant."""

    address: str
    speaker: TrainedUser | PromptedUser | ModelAssistant
    usage: Usage
    price: Price | None

    @property
    def may_bill(self) -> bool:
        return self.price is not None or parse(self.address).is_remote

    def results(self) -> dict[str, Any]:
        """Return its usage, and the price that was used to compute the cost."""
        price = (
            None
            if self.price is None
            else f"{self.price.token_in}/{self.price.token_out}"
        )
        return self.usage.results() | {"price": price}

    def prompt_tokens(self, start: Conversation) -> int:
        """Estimate the number of tokens before the turns of the conversation."""
        match self.speaker:
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


class Costs:
    """The models of a run. Their calls are counted and limited."""

    def __init__(self, run: Run, caps: Caps) -> None:
        self._run = run
        self._caps = caps
        self._budget = Budget(caps)
        self._journal: Journal | None = None
        self._sides: dict[Role, _Side | None] = {}

    def count(
        self, role: Role, address: str, speaker: Speaker, price: Price | None
    ) -> Speaker:
        """Return the speaker with its model calls counted; a speaker without a model is returned
        unchanged.

        Raises:
            InputError: for a price without a model, and a budget without the price of a model on a
                server.
        """
        if not isinstance(speaker, TrainedUser | PromptedUser | ModelAssistant):
            if price is not None:
                raise InputError(
                    f"{PRICE_OPTION[role]}: {address} calls no model; leave the option out"
                )
            if parse(address).scheme == "py" and self._caps != Caps():
                console.print(
                    f"calls that {address} makes are not counted", style="yellow"
                )
            self._sides[role] = None
            return speaker
        on_server = parse(address).is_remote
        if self._caps.dollars is not None and on_server and price is None:
            raise InputError(
                f"--budget needs the price of the tokens of {address}; give "
                f"{PRICE_OPTION[role]} IN/OUT (0/0 if they cost nothing)"
            )
        self._journal = self._journal or Journal(self._run.path("usage.jsonl"))
        requests = REQUESTS if on_server and isinstance(speaker, TrainedUser) else 1
        usage = Usage(
            role, self._budget, self._journal, requests * tries_of(address), price
        )
        self._sides[role] = _Side(address, speaker, usage, price)
        if isinstance(speaker, TrainedUser):
            return replace(speaker, model=CountedComplete(speaker.model, usage))
        return replace(speaker, chat=CountedChat(speaker.chat, usage))

    def check(self) -> None:
        """Raise `InputError` for limits on calls that are not counted."""
        if self._caps != Caps() and not self._models:
            raise InputError(
                "--max-calls, --max-tokens-total and --budget are for models; none is called here"
            )

    @property
    def _models(self) -> dict[Role, _Side]:
        return {role: side for role, side in self._sides.items() if side}

    @property
    def _may_bill(self) -> bool:
        return any(side.may_bill for side in self._models.values())

    def estimate(
        self,
        starts: Iterable[Conversation],
        calls: Callable[[Conversation], Iterable[tuple[Role, int]]],
    ) -> None:
        """Print how many calls and tokens are expected, if they may be billed or are limited.

        Args:
            calls: the maximum calls of each conversation: the role, and the tokens in the turns
                before the call.
        """
        models = self._models
        if self._caps == Caps() and not self._may_bill:
            return
        count = Counter[Role]()
        tokens_in = Counter[Role]()
        for start in starts:
            prompts = {role: side.prompt_tokens(start) for role, side in models.items()}
            for role, said in calls(start):
                if role in models:
                    count[role] += 1
                    tokens_in[role] += prompts[role] + said
        console.print("estimate, if no conversation ends early:")
        before = self._budget.spent
        total = before
        for role, side in models.items():
            tokens_out = count[role] * side.speaker.sampling.max_tokens
            dollars = Decimal(0)
            cost = ""
            if side.price is not None:
                dollars = side.price.of(tokens_in[role], tokens_out)
                cost = f", about ${dollars:,.2f}"
            total += Amount(count[role], tokens_in[role] + tokens_out, dollars)
            console.print(
                f" {role} {side.address}: {count[role]:,} calls, about {tokens_in[role]:,} tokens "
                f"in and at most {tokens_out:,} out{cost}",
                soft_wrap=True,
            )
        turns = ", ".join(
            f"{n} tokens per {role} turn" for role, n in TOKENS_PER_TURN.items()
        )
        console.print(
            f" at {BYTES_PER_TOKEN} bytes per token and {turns}; each resampled draft is one more "
            "call",
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
            totals = [side.usage.total for side in self._models.values()]
            write_lines(self._journal.path, totals)
        usage = {
            role: side.results() if side else None for role, side in self._sides.items()
        }
        caps = {
            "max_calls": self._caps.calls,
            "max_tokens_total": self._caps.tokens,
            "budget": None if self._caps.dollars is None else float(self._caps.dollars),
        }
        return {"usage": usage, "caps": caps}


def tries_of(address: str) -> int:
    """Return how many times one request to the model may be sent, and billed."""
    if not parse(address).is_remote:
        return 1
    from userlm.models.endpoint import RETRIES

    return 1 + RETRIES

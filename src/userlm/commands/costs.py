"""What a run of `respond` or `simulate` may cost, before its first call; caps on it; and what it
did cost.

Prices and caps are no part of what a run is: the same command with others takes it up again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from math import isfinite
from typing import Annotated, Any

from typer import Option

from userlm.address import model_place
from userlm.assistants import ModelAssistant
from userlm.models.budget import Amount, Budget, Caps, CountedChat, CountedComplete, Price, Usage
from userlm.rows import write_lines
from userlm.runs import Journal, Run
from userlm.terminal import console
from userlm.types import Conversation, InputError, Role, Speaker
from userlm.users import PromptedUser, TrainedUser, swapped_messages, user_prompt

UserPrice = Annotated[
    str | None,
    Option(
        help="US dollars for a million tokens of the user's model in and out, such as 2.50/10.",
        metavar="IN/OUT",
    ),
]
AssistantPrice = Annotated[
    str | None, Option("--price", help="The same for the assistant's model.", metavar="IN/OUT")
]
DollarBudget = Annotated[
    float | None,
    Option(help="US dollars that are never passed; needs both prices.", metavar="DOLLARS"),
]
MaxCalls = Annotated[int | None, Option(help="Calls of models that are never passed.", min=0)]
MaxTokensTotal = Annotated[
    int | None, Option(help="Tokens in and out that are never passed.", min=0)
]

PRICE_OPTION: dict[Role, str] = {"user": "--user-price", "assistant": "--price"}
BYTES_PER_TOKEN, TOKENS_PER_TURN = (
    4,
    {"user": 50, "assistant": 300},
)  # for the estimate; caps go by bounds and bills
REQUESTS = (
    3  # of one completion of token ids at a server, at most: P(end), the first token, the others
)


def read_price(role: Role, text: str | None) -> Price | None:
    """The price of a side's tokens; raises `InputError` that names its option."""
    return None if text is None else Price.parse(text, PRICE_OPTION[role])


def read_caps(max_calls: int | None, max_tokens_total: int | None, budget: float | None) -> Caps:
    """The caps on a run; raises `InputError` for a budget that is none."""
    if budget is not None and not (isfinite(budget) and budget >= 0):
        raise InputError(f"--budget {budget:g}: give dollars")
    return Caps(max_calls, max_tokens_total, None if budget is None else Decimal(str(budget)))


@dataclass(frozen=True, slots=True)
class _Side:
    """A model that speaks for a side."""

    address: str
    speaker: TrainedUser | PromptedUser | ModelAssistant
    usage: Usage
    price: Price | None

    @property
    def bills(self) -> bool:
        return self.price is not None or _at_server(self.address)

    def results(self) -> dict[str, Any]:
        """What it used, and at which price that was counted."""
        price = None if self.price is None else f"{self.price.token_in}/{self.price.token_out}"
        return self.usage.results() | {"price": price}

    def told(self, start: Conversation) -> int:
        """Bytes that stand in front of what was said."""
        match self.speaker:
            case ModelAssistant(system=system):
                return len((system or "").encode())
            case PromptedUser(swapped=True):
                return sum(
                    len(message["content"].encode())
                    for message in swapped_messages(start.system or "", ())
                )
            case PromptedUser():
                return len(user_prompt(start.system, ()).encode())
        return len((start.system or "").encode())


class Costs:
    """The models of a run, their calls counted and capped."""

    def __init__(self, run: Run, caps: Caps) -> None:
        self._run, self._caps = run, caps
        self._budget = Budget(caps)
        self._journal: Journal | None = None
        self._sides: dict[Role, _Side | None] = {}

    def count(self, role: Role, address: str, speaker: Speaker, price: Price | None) -> Speaker:
        """The speaker, its model's calls counted; as it is if no model speaks.

        Raises:
            InputError: for a price without a model, and a budget without the price of a model at a
                server.
        """
        if not isinstance(speaker, TrainedUser | PromptedUser | ModelAssistant):
            if price is not None:
                raise InputError(
                    f"{PRICE_OPTION[role]}: {address} is no model that is called; leave it out"
                )
            if address.startswith("py:") and self._caps != Caps():
                console.print(f"what {address} calls is not counted", style="yellow")
            self._sides[role] = None
            return speaker
        served = _at_server(address)
        if self._caps.dollars is not None and served and price is None:
            wanted = f"{PRICE_OPTION[role]} IN/OUT (0/0: nothing)"
            raise InputError(
                f"--budget needs to know what the tokens of {address} cost; give {wanted}"
            )
        self._journal = self._journal or Journal(self._run.path("usage.jsonl"))
        requests = REQUESTS if served and isinstance(speaker, TrainedUser) else 1
        usage = Usage(role, self._budget, self._journal, requests * tries_of(address), price)
        self._sides[role] = _Side(address, speaker, usage, price)
        if isinstance(speaker, TrainedUser):
            return replace(speaker, model=CountedComplete(speaker.model, usage))
        return replace(speaker, chat=CountedChat(speaker.chat, usage))

    def check(self) -> None:
        """Raise `InputError` for caps on what is not counted."""
        if self._caps != Caps() and not any(self._sides.values()):
            raise InputError(
                "--max-calls, --max-tokens-total and --budget are for models; none is called here"
            )

    def estimate(
        self,
        starts: Iterable[Conversation],
        calls: Callable[[Conversation], Iterable[tuple[Role, int]]],
    ) -> None:
        """Say what is to come, if any of it may be billed or capped.

        Args:
            calls: at most these will be made for a conversation: whose, and after how many tokens
                were said.
        """
        sides = {role: side for role, side in self._sides.items() if side}
        if self._caps == Caps() and not any(side.bills for side in sides.values()):
            return
        count, size = Counter[Role](), Counter[Role]()
        for start in starts:
            told = {role: side.told(start) // BYTES_PER_TOKEN for role, side in sides.items()}
            for role, said in calls(start):
                if role in sides:
                    count[role] += 1
                    size[role] += told[role] + said
        console.print("to come, if no conversation ends early:")
        total = before = self._budget.spent
        for role, side in sides.items():
            tokens_out = count[role] * side.speaker.sampling.max_tokens
            dollars = Decimal(0) if side.price is None else side.price.of(size[role], tokens_out)
            total += Amount(count[role], size[role] + tokens_out, dollars)
            cost = "" if side.price is None else f", about ${dollars:,.2f}"
            tokens = f"about {size[role]:,} tokens in and at most {tokens_out:,} out{cost}"
            console.print(
                f" {role} {side.address}: {count[role]:,} calls, {tokens}", soft_wrap=True
            )
        shown = ", ".join(
            f"{tokens} tokens a turn of the {role}" for role, tokens in TOKENS_PER_TURN.items()
        )
        console.print(
            f" at {BYTES_PER_TOKEN} bytes a token and {shown}; a draft that is drawn again is one "
            "more call",
            style="dim",
            soft_wrap=True,
        )
        if before != Amount():
            cost = f", ${before.dollars:,.2f}" if before.dollars else ""
            console.print(f" before this: {before.calls:,} calls, {before.tokens:,} tokens{cost}")
        if cap := self._caps.passed(total):
            console.print(f" {cap} may end it before that", style="yellow")

    def stop(self) -> None:
        """Begin no call any more, and say how many are in flight that may be billed."""
        in_flight = self._budget.close("stopped")
        if in_flight and any(side and side.bills for side in self._sides.values()):
            console.print(f"{in_flight} calls were in flight; they may be billed", style="yellow")

    def close(self) -> dict[str, Any]:
        """What was used, for `results.json`, after the last call; `None` for a side without a
        model."""
        if self._journal:
            self._journal.close()
            write_lines(
                self._journal.path, [side.usage.total for side in self._sides.values() if side]
            )
        budget = None if self._caps.dollars is None else float(self._caps.dollars)
        return {
            "usage": {role: side and side.results() for role, side in self._sides.items()},
            "caps": {
                "max_calls": self._caps.calls,
                "max_tokens_total": self._caps.tokens,
                "budget": budget,
            },
        }

    def show(self) -> None:
        """What was used by sides that may bill it."""
        for role, side in self._sides.items():
            if side and side.bills:
                _show(f"{role} {side.address}", side.results())


def _show(name: str, used: dict[str, Any]) -> None:
    shown = [f"{used['calls']:,} calls"]
    if used["tokens_in"] is not None:
        shown.append(f"{used['tokens_in']:,} tokens in, {used['tokens_out']:,} out")
    if used["cost"] is not None:
        shown.append(f"${used['cost']:,.4f}")
    console.print(f"{name}: {', '.join(shown)}", soft_wrap=True)
    if used["possibly_billed"]:
        booked = "" if used["cost"] is None else " (counted at their worst)"
        console.print(
            f" tries that gave nothing but may have been billed{booked}: "
            f"{used['possibly_billed']:,}"
        )


def _at_server(address: str) -> bool:
    """Whether its model is at a server, or may be, as behind `py:`."""
    return re.match(r"(openai|https?|py):", model_place(address)) is not None


def tries_of(address: str) -> int:
    """How often one request to the model at an address may be sent, and billed."""
    if not _at_server(address):
        return 1
    from userlm.models.endpoint import RETRIES

    return 1 + RETRIES

"""The cost of a run that calls models: an estimate before the first call, limits, and the cost in
the end.

Prices and limits do not identify a run: the same command with other ones resumes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

from userlm import loading
from userlm.address import Address, LocalSettings, parse
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
    Side,
    WatchedBot,
)
from userlm.models.call_cache import CallCache
from userlm.show.terminal import console
from userlm.types import Conversation, InputError, Message, Role, Speaker
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
    max_calls: int | None = _cost(
        "Maximum number of model calls; on a server, of requests.", min=0
    )
    max_tokens_total: int | None = _cost(
        "Maximum number of input and output tokens together.", min=0
    )

    @property
    def caps(self) -> Caps:
        """The limits."""
        dollars = None if self.budget is None else Decimal(str(self.budget))
        return Caps(self.max_calls, self.max_tokens_total, dollars)

    def less(self, used: Amount) -> Limits:
        """What is left of the limits after these calls."""
        left = replace(self)
        if self.budget is not None:
            dollars = Decimal(str(self.budget)) - used.dollars
            left = replace(left, budget=max(float(dollars), 0.0))
        if self.max_calls is not None:
            left = replace(left, max_calls=max(self.max_calls - used.calls, 0))
        if self.max_tokens_total is not None:
            tokens = self.max_tokens_total - used.tokens
            left = replace(left, max_tokens_total=max(tokens, 0))
        return left


def price_option(flag: str, of: str) -> Any:
    """Return the field of a price."""
    return _cost(
        f"US dollars per million input and output tokens of {of}, such as 2.50/10.",
        flag=flag,
        metavar="IN/OUT",
    )


JUDGE_PRICE = "--judge-price"
"""The option where a run has other models than a judge."""
PRICE_OPTIONS = {
    "user": "--user-price",
    "against": "--against-price",
    "assistant": "--price",
    "writer": "--price",
    "intent_by": "--intent-price",
    "model": "--price",
    "judge": "--price",
    "detector": "--detector-price",
}
# For the estimate. The limits use an upper bound before a call and its real usage after it.
BYTES_PER_TOKEN = 4
PER_BYTES = f"at {BYTES_PER_TOKEN} bytes per token"
TOKENS_PER_TURN = {"user": 50, "assistant": 300}

# One completion of token ids on a server takes up to three requests: P(end), first token, the rest.
REQUESTS = 3


def read_price(side: str, text: str | None, option: str = "") -> Price | None:
    """Return the price of one side's tokens; raise an `InputError` that names the option."""
    return None if text is None else Price.parse(text, option or PRICE_OPTIONS[side])


def add_side(
    budget: Budget,
    name: str,
    address: Address,
    price: Price | None,
    requests: int = 1,
    option: str = "",
) -> Side:
    """Add a model to the budget, which counts and limits its calls.

    Args:
        requests: how many requests a call to a server takes at most.
        option: see `check_price`.

    Raises:
        InputError: for a budget in dollars without the price of a model on a server.
    """
    is_remote = address.is_remote
    check_price(budget.caps, name, address, price, option)
    tries = requests * TRIES if is_remote else 1
    return budget.side(name, str(address), price, tries, is_remote or price is not None)


def check_price(
    caps: Caps, name: str, address: Address, price: Price | None, option: str = ""
) -> None:
    """Raise `InputError` for a budget in dollars without the price of a model on a server, which
    `option` gives (by default, that of its name in `PRICE_OPTIONS`)."""
    if caps.dollars is not None and address.is_remote and price is None:
        option = option or PRICE_OPTIONS[name]
        raise InputError(
            f"--budget needs the price of the tokens of {address}; give {option} IN/OUT (0/0 if "
            "they cost nothing)"
        )


def counted(
    budget: Budget, role: str, address: Address, speaker: Speaker, price: Price | None
) -> Speaker:
    """Return the speaker with its model calls counted. One without a model is returned unchanged,
    but for a bot on a server, which ends the calls of others once it can answer none.

    Raises:
        InputError: for a price without a model, and a budget without the price of a model on a
            server.
    """
    match speaker:
        case TrainedUser():
            side = add_side(budget, role, address, price, REQUESTS)
            return replace(speaker, model=CountedComplete(speaker.model, side))
        case PromptedUser() | ModelAssistant():
            side = add_side(budget, role, address, price)
            return replace(speaker, chat=CountedChat(speaker.chat, side))
    if price is not None:
        raise InputError(
            f"{PRICE_OPTIONS[role]}: {address} calls no model; leave the option out"
        )
    if address.is_code and budget.caps != Caps():
        console.print(f"calls that {address} makes are not counted", style="yellow")
    return WatchedBot(speaker, budget) if address.scheme == "bot" else speaker


def check_judge(
    caps: Caps, judge: str | None, price: str | None, local: LocalSettings
) -> None:
    """Raise `InputError` for a judge that cannot be loaded, or the price of one without it."""
    if judge is None:
        if price:
            raise InputError(
                "--judge-price is for the judge; give one with --judge, or leave it out"
            )
        return
    parts = parse(judge)
    loading.chat_model(parts, local)
    its_price = read_price("judge", price, JUDGE_PRICE)
    check_price(caps, "judge", parts, its_price, JUDGE_PRICE)


def check_caps(caps: Caps, is_called: bool) -> None:
    """Raise `InputError` for limits on calls that are not counted."""
    if caps != Caps() and not is_called:
        raise InputError(
            "--max-calls, --max-tokens-total and --budget are for models; none is called here"
        )


def stop(budget: Budget) -> None:
    """Allow no more calls, and print how many calls in flight may be billed."""
    in_flight = budget.stop("stopped")
    if in_flight and budget.may_bill:
        console.print(
            f"{in_flight} calls were in flight; they may be billed", style="yellow"
        )


# --- the estimate ---------------------------------------------------------------------------------


def show_estimate(
    budget: Budget,
    expected: Mapping[str, Counter[str]],
    basis: str = PER_BYTES,
) -> None:
    """Print how many calls and tokens are expected of each side, what an earlier attempt used, and
    whether a cap may stop the run.

    Args:
        expected: by side, the usage: calls, tokens in, and at most how many out.
        basis: how tokens were estimated.
    """
    before = budget.spent
    total = before
    for name, side in budget.sides.items():
        used = expected[name]
        amount = side.amount(used)
        total += amount
        cost = f", about ${amount.dollars:,.2f}" if side.price else ""
        console.print(
            f" {name} {side.address}: {used['calls']:,} calls, about {used['tokens_in']:,} tokens "
            f"in and at most {used['tokens_out']:,} out{cost}",
            soft_wrap=True,
        )
    console.print(f" {basis}", style="dim", soft_wrap=True)
    if before != Amount():
        cost = f", ${before.dollars:,.2f}" if before.dollars else ""
        console.print(
            f" before this: {before.calls:,} calls, {before.tokens:,} tokens{cost}"
        )
    if cap := budget.caps.passed(total):
        console.print(f" {cap} may stop the run earlier", style="yellow")


def estimate_requests(
    cache: CallCache,
    requests: Iterable[tuple[str, Sequence[Message]]],
    max_tokens: int,
    what: str,
) -> None:
    """Print, before the first call, how many calls are expected and what they may cost.

    Args:
        requests: for each conversation, its id and the messages of its first call.
        max_tokens: the maximum length of an answer.
        what: what the calls are for, in the plural.
    """
    asked_before = to_ask = size = 0
    for id, messages in requests:
        if cache.answered(id):
            asked_before += 1
            continue
        to_ask += 1
        for message in messages:
            size += len(message["content"].encode())
    before = ""
    if asked_before:
        before = f" ({asked_before:,} got calls in an earlier attempt)"
    console.print(f"{to_ask:,} {what} to write{before}; estimate, with one call each:")
    expected = Counter(
        calls=to_ask,
        tokens_in=size // BYTES_PER_TOKEN,
        tokens_out=to_ask * max_tokens,
    )
    show_estimate(cache.side.budget, {cache.side.name: expected})


def estimate_conversations(
    budget: Budget,
    speakers: Mapping[Role, Speaker],
    starts: Iterable[Conversation],
    calls: Callable[[Conversation], Iterator[tuple[Role, int]]],
) -> None:
    """Print how many calls and tokens are expected, if they may be billed or are limited.

    Args:
        calls: the maximum calls of each conversation: the role, and the tokens in the turns before
            the call.
    """
    if not budget.may_bill and budget.caps == Caps():
        return
    expected: dict[str, Counter[str]] = {role: Counter() for role in speakers}
    for start in starts:
        prompts = {role: _prompt(speaker, start) for role, speaker in speakers.items()}
        for role, said in calls(start):
            tokens_in, tokens_out = prompts[role]
            expected[role].update(
                calls=1, tokens_in=tokens_in + said, tokens_out=tokens_out
            )
    console.print("estimate, if no conversation ends early:")
    turns = ", ".join(
        f"{n} tokens per {role} turn" for role, n in TOKENS_PER_TURN.items()
    )
    basis = f"{PER_BYTES} and {turns}; each resampled draft is one more call"
    show_estimate(budget, expected, basis)


def _prompt(speaker: Speaker, start: Conversation) -> tuple[int, int]:
    """Estimate the number of tokens before the turns of the conversation; the second number is the
    maximum number of tokens in an answer."""
    match speaker:
        case ModelAssistant(system=system):
            texts = [system or ""]
        case PromptedUser(swapped=True, prompt=prompt):
            messages = swapped_messages(start.system or "", (), prompt)
            texts = [message["content"] for message in messages]
        case PromptedUser(prompt=prompt):
            texts = [user_prompt(start.system, (), prompt)]
        case TrainedUser():
            texts = [start.system or ""]
        case _:  # without a model
            return 0, 0
    return estimate_tokens(texts), speaker.sampling.max_tokens


def estimate_tokens(texts: Iterable[str]) -> int:
    """Estimate the number of tokens in texts."""
    return sum(len(text.encode()) for text in texts) // BYTES_PER_TOKEN


def show_errors(errors: Sequence[str], total: int, what: str = "conversations") -> None:
    """Print which calls failed, or were not made because of a limit, and what to do about it.

    Args:
        total: the number of conversations, of which some ended in one of the errors.
        what: what is counted, if not conversations.
    """
    capped = [error for error in errors if error.startswith(CAP)]
    failed = [error for error in errors if not error.startswith(CAP)]
    if capped:
        console.print(
            f"{capped[0]} does not cover the worst case of another call; {len(capped):,} "
            f"{what} are unfinished. Run the same command with a higher limit to continue; "
            "answered calls are not repeated",
            style="yellow",
        )
    if failed:
        console.print(
            f"{len(failed):,} of {total:,} ended in an error (the same command tries these again), "
            f"the first: {failed[0]}",
            style="yellow",
        )

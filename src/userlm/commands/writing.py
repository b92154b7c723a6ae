"""`intents`: what each user was after."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Annotated

import numpy as np
from rich.table import Column, Table
from typer import Argument, Option

from userlm import address
from userlm.commands.costs import tries_of
from userlm.commands.options import (
    Hub,
    Limit,
    Out,
    Results,
    Workers,
    count_total,
    finished,
    in_order,
    write_hub,
)
from userlm.data.conditions import in_a_sentence, told_of
from userlm.data.extractive import extractive
from userlm.data.intents import check, leakage, request, write
from userlm.models.budget import Price
from userlm.models.call_cache import CallCache
from userlm.rows import read_conversations, read_rows, take, write_conversations
from userlm.runs import Run, split_files
from userlm.terminal import console, show_counts, track
from userlm.text import stable_hash, words
from userlm.types import Conversation, InputError, Message, Sampling

EXTRACTIVE = "extractive"
UNNAMED = "not said"  # by whom, in intents that came with the logs
LONGEST_GOAL = 2000  # characters; what is longer is a page of instructions
BYTES_PER_TOKEN, TOKENS_OUT = (
    4,
    40,
)  # for the estimate; the budget goes by bounds and by what was billed
AHEAD = (
    16  # conversations in hand for each worker, so that one slow answer does not hold up the others
)


def intents(
    data: Annotated[Path, Argument(help="Conversations: the folder of `clean`, or a file.")] = Path(
        "runs/clean"
    ),
    out: Out = Path("runs/intents"),
    writer: Annotated[
        str,
        Option(
            help="Who writes: openai:NAME, http://HOST:PORT/v1#NAME, a folder or hub id, or the "
            "stand-in."
        ),
    ] = EXTRACTIVE,
    workers: Workers = 16,
    temperature: Annotated[
        float, Option(help="Of the model's draws; 0 is greedy.", min=0, max=10)
    ] = 0.7,
    max_tokens: Annotated[
        int,
        Option(help="Longest answer, in tokens; models that think need more.", min=1, max=2**24),
    ] = 120,
    tries: Annotated[
        int, Option(help="How often to ask for a sentence until one is in form.", min=1)
    ] = 2,
    price: Annotated[
        str | None,
        Option(
            help="US dollars for a million tokens in and out, such as 2.50/10.", metavar="IN/OUT"
        ),
    ] = None,
    budget: Annotated[
        float | None,
        Option(help="US dollars that are never passed; needs --price.", metavar="DOLLARS"),
    ] = None,
    join: Annotated[
        list[Path] | None,
        Option(help="Rows {id, intent} that others wrote; can be given several times."),
    ] = None,
    goals: Annotated[
        bool, Option(help="Take the goal that a person wrote beside a log for its intent.")
    ] = True,
    condition: Annotated[
        str | None,
        Option(
            help="What to tell of the person in the system turn: fields of meta, comma-separated."
        ),
    ] = None,
    overwrite: Annotated[
        bool, Option(help="Write a new intent where there is one already.")
    ] = False,
    hub: Hub = False,
    limit: Limit = None,
) -> Results:
    """Give each conversation an intent: one generic sentence on what the user is after.

    One that is there stays; else it comes from --join, from the goal that a log brings, or it is
    written. The default writer, extractive, picks key phrases from the user's turns: an offline
    stand-in for a language model, and its intents are marked as such.
    """
    rate = None if price is None else Price.parse(price)
    if budget is not None and (rate is None or not (isfinite(budget) and budget >= 0)):
        raise InputError(
            f"--budget {budget:g}: give dollars, and say what tokens cost with --price IN/OUT"
        )
    if "://" in writer or writer.startswith(("http:", "https:")):
        address.chat_model(writer)  # refuses a password in a URL before it is written down
    paths, joins = split_files(data), join or []
    options = {
        "writer": writer,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "tries": tries,
        "price": price,
    }
    options |= {"budget": budget, "join": joins, "goals": goals, "condition": condition}
    options |= {"overwrite": overwrite, "hub": hub, "limit": limit}
    fields = [field.strip() for field in (condition or "").split(",") if field.strip()]
    if condition is not None and not fields:
        raise InputError("--condition: give fields of meta, such as language,country")
    weights = [] if writer == EXTRACTIVE else address.files(writer)
    run = Run.open(out, "intents", options, [*paths.values(), *joins, *weights])
    if run.results and run.results["failed"]:
        run.path("results.json").unlink()  # those are asked about again; what was answered stays
    if done := finished(run):
        return done
    joined, counts = _read_joined(joins)

    def read(path: Path) -> Iterator[Conversation]:
        return islice(read_conversations(path, may_be_empty=data.is_dir()), limit)

    def known(conversation: Conversation) -> Intent | None:
        return _known(conversation, joined, goals, overwrite)

    call_cache: CallCache | None = None
    write_intent = _extract
    if writer != EXTRACTIVE:
        money = None if budget is None else Decimal(str(budget))
        call_cache = CallCache(
            run.path("asked.jsonl"), address.chat_model(writer), tries_of(writer), rate, money
        )
        write_intent = _Writer(
            _model_name(writer), call_cache, Sampling(temperature, 0.9, max_tokens), tries
        ).write
        logs = track((c for path in paths.values() for c in read(path)), "reading")
        _show_estimate(
            _model_name(writer), (c for c in logs if not known(c)), call_cache, max_tokens
        )

    def job(conversation: Conversation) -> Intent:
        return known(conversation) or write_intent(conversation)

    def tell(conversation: Conversation) -> Conversation:
        told = told_of(conversation, fields)
        counts.update(f"note: condition, {field} known" for field in told)
        meta = {key: value for key, value in conversation.meta.items() if key != "condition"}
        return replace(
            conversation, meta=meta | ({"condition": in_a_sentence(told)} if told else {})
        )

    tally = _Tally(counts, set(joined), goals)
    try:
        for name, path in paths.items():
            found = _in_order(job, read(path), workers if call_cache else 1)
            shown = track(found, f"intents for {name}", count_total([path], limit))
            written = (tally.add(c, intent) for c, intent in shown)
            write_conversations(
                run.path(f"{name}.jsonl"), map(tell, written) if fields else written
            )
    except KeyboardInterrupt:
        if call_cache and (in_flight := call_cache.stop()):
            console.print(f"{in_flight} calls were in flight; they may be billed", style="yellow")
        raise
    finally:
        if call_cache:
            call_cache.stop()
    results = tally.results()
    if call_cache:
        call_cache.close()
        results |= {
            "model": _model_name(writer),
            "usage": call_cache.results(),
            "faults": in_order(call_cache.faults),
        }
    _show(results, tally.first_error, out)
    if unsaid := [field for field in fields if not counts[f"note: condition, {field} known"]]:
        console.print(
            f"the logs say of nobody: {', '.join(unsaid)}; see the names in meta", style="yellow"
        )
    if hub:
        write_hub(run, results)
    return run.finish(results)


# --- who writes -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Intent:
    """An intent, or why there is none.

    Attributes:
        by: `extractive`, `human`, `joined`, or the name of a model; empty if a log did not say.
        note: what is counted.
        error: what a model said that could not answer.
    """

    text: str | None
    by: str = ""
    note: str = ""
    error: str = ""


def _known(
    conversation: Conversation, joined: Mapping[str, str], goals: bool, overwrite: bool
) -> Intent | None:
    """An intent that nobody has to write."""
    if conversation.intent is not None and not overwrite:
        return Intent(conversation.intent, _said_by(conversation), "had an intent")
    for name in _names(conversation.id):
        if name in joined:
            return Intent(joined[name], "joined", "joined")
    if goals and (goal := _goal(conversation)[0]):
        return Intent(goal, "human", "human goal")
    return None


def _names(id: str) -> tuple[str, ...]:
    """Under what others may know a conversation: WildChat's are known by the hash that their ids
    begin with."""
    hashed = re.match(r"([0-9a-f]{32})-\d+$", id)
    return (id, hashed[1]) if hashed else (id,)


def _goal(conversation: Conversation) -> tuple[str, str]:
    """The goal that a person wrote beside a log; empty if there is none, and then why it is not
    taken, if so."""
    goal = conversation.meta.get("goal")
    text = " ".join(goal.split()) if isinstance(goal, str) else ""
    if len(text) > LONGEST_GOAL:
        return "", "too long"
    if text and len(words(text)) < 2:
        return "", "one word"  # the name of an exercise
    return text, ""


def _said_by(conversation: Conversation) -> str:
    by = conversation.meta.get("intent_by")
    return by if isinstance(by, str) else ""


def _extract(conversation: Conversation) -> Intent:
    intent = extractive(conversation)
    reason = "nothing to say" if intent is None else check(intent, conversation)
    return (
        Intent(None, note=f"no intent, {reason}")
        if reason
        else Intent(intent, EXTRACTIVE, "written")
    )


@dataclass(frozen=True, slots=True)
class _Writer:
    """A chat model that writes intents."""

    name: str
    call_cache: CallCache
    sampling: Sampling
    tries: int

    def write(self, conversation: Conversation) -> Intent:
        """Its intent, or why it wrote none."""
        errors: list[str] = []

        def ask(number: int, messages: Sequence[Message]) -> tuple[str | None, str]:
            seed = stable_hash(conversation.id, number) % 2**63
            answer = self.call_cache.ask(
                conversation.id, number, messages, replace(self.sampling, seed=seed)
            )
            errors.append(answer.error)
            return answer.text, answer.reason

        text, reason = write(conversation, ask, self.tries)
        if text is not None:
            return Intent(text, self.name, "written")
        error = errors[-1] if errors else ""
        return Intent(
            None, note=f"no intent, {'call failed: ' if error else ''}{reason}", error=error
        )


def _model_name(by: str) -> str:
    """How a model is named in what it wrote: no path and no URL."""
    scheme, _, name = by.partition(":")
    if scheme in ("http", "https"):
        return by.partition("#")[2]
    if scheme == "openai":
        return name
    return scheme if scheme == "script" else Path(by).name if Path(by).is_dir() else by


def _in_order(
    job: Callable[[Conversation], Intent], conversations: Iterable[Conversation], workers: int
) -> Iterator[tuple[Conversation, Intent]]:
    """Each conversation with its intent, in the order that they came in, so many at once."""
    pool = ThreadPoolExecutor(workers)
    begun: deque[tuple[Conversation, Future[Intent]]] = deque()
    try:
        for conversation in conversations:
            begun.append((conversation, pool.submit(job, conversation)))
            if len(begun) >= workers * AHEAD:
                first, future = begun.popleft()
                yield first, future.result()
        while begun:
            first, future = begun.popleft()
            yield first, future.result()
    finally:  # Ctrl-C, or an error: begin nothing new
        pool.shutdown(wait=False, cancel_futures=True)


# --- intents that others wrote --------------------------------------------------------------------


def _read_joined(paths: Iterable[Path]) -> tuple[dict[str, str], Counter[str]]:
    """Intents by id, and what was left out of them.

    Raises:
        InputError: naming file, line and field.
    """
    joined: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for path in paths:
        for line in read_rows(path):
            try:
                if line.error:
                    raise ValueError(line.error)
                name, intent = take(line.row, "id", str), take(line.row, "intent", str, default="")
            except ValueError as error:
                raise InputError(
                    f"{path}, line {line.number}: {error}; give rows of id and intent"
                ) from None
            intent = " ".join(intent.split())
            if not intent:
                counts["note: joined file, empty intent"] += 1
            elif name in joined:
                counts["note: joined file, duplicate id"] += 1
            else:
                joined[name] = intent
    return joined, counts


# --- what came of it ------------------------------------------------------------------------------


class _Tally:
    """What is counted and measured while conversations pass by."""

    def __init__(self, counts: Counter[str], joined: set[str], goals: bool) -> None:
        self.counts = counts
        self.first_error = ""
        self._not_met, self._goals = joined, goals
        self._failed = 0
        self._written: Counter[str] = Counter()
        self._leaks: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))

    def add(self, conversation: Conversation, found: Intent) -> Conversation:
        """The conversation with its intent."""
        self.counts["in"] += 1
        self.counts[f"note: {found.note}"] += 1
        if self._goals and (unfit := _goal(conversation)[1]):
            self.counts[f"note: human goal not taken, {unfit}"] += 1
        self._not_met.difference_update(_names(conversation.id))
        if found.error:
            self._failed += 1
            self.first_error = self.first_error or found.error
        meta = dict(conversation.meta)
        if found.by:
            meta["intent_by"] = found.by
        elif found.text is None:
            meta.pop("intent_by", None)
        if found.text is not None:
            self.counts["out"] += 1
            self._written[found.by] += 1
            if (leak := leakage(found.text, conversation)) is not None:
                self._leaks[found.by].append(leak)
        return replace(conversation, intent=found.text, meta=meta)

    def results(self) -> Results:
        """For `results.json`. Leakage is `None` where no first turn has content words."""
        if self._not_met:
            self.counts["note: joined file, unknown id"] = len(self._not_met)
        writers = {}
        for by, n in sorted(self._written.items()):
            leaks = np.frombuffer(self._leaks[by]) if self._leaks[by] else None
            writers[by or UNNAMED] = {
                "n": n,
                "measured": 0 if leaks is None else len(leaks),
                "leakage": None if leaks is None else float(leaks.mean()),
                "quartiles": None
                if leaks is None
                else np.quantile(leaks, (0.25, 0.5, 0.75)).tolist(),
            }
        return {"counts": in_order(self.counts), "writers": writers, "failed": self._failed}


def _show_estimate(
    name: str, conversations: Iterable[Conversation], call_cache: CallCache, max_tokens: int
) -> None:
    """Say, before the first call, how much is to be asked and what it may cost."""
    before = todo = size = 0
    kept_back = Decimal(0)
    for conversation in conversations:
        if call_cache.answered(conversation.id):
            before += 1
            continue
        todo += 1
        messages = request(conversation)
        size += sum(len(message["content"].encode()) for message in messages)
        kept_back = max(kept_back, call_cache.worst_case(messages, max_tokens))
    tokens_in, tokens_out = size // BYTES_PER_TOKEN, todo * TOKENS_OUT
    cost = None if call_cache.price is None else call_cache.price.of(tokens_in, tokens_out)
    done = f" ({before:,} were asked about before)" if before else ""
    dollars = "" if cost is None else f", ${cost:,.2f}"
    console.print(f"{name} is to write {todo:,} intents{done}")
    console.print(
        f" estimate: {tokens_in:,} tokens in and {tokens_out:,} out{dollars}, "
        f"at {BYTES_PER_TOKEN} bytes a token and one call each"
    )
    if cost is not None and call_cache.budget is not None:
        left = call_cache.budget - call_cache.spent
        spent = f", ${call_cache.spent:,.2f} of it spent before," if call_cache.spent else ""
        kept = f"a call in doubt may cost ${kept_back:,.2f}, which is kept back"
        covered = max(0, int(todo * (left - kept_back) / cost)) if cost else todo
        shown = "all of them" if covered >= todo else f"about {covered:,} of them ({kept})"
        console.print(f" the budget of ${call_cache.budget:,.2f}{spent} covers {shown}")


def _show(results: Results, first_error: str, out: Path) -> None:
    counts, usage = results["counts"], results.get("usage")
    stub = " (by the extractive stand-in)" if EXTRACTIVE in results["writers"] else ""
    show_counts(f"intents{stub}", counts)
    if results["writers"]:
        table = Table("written by", Column("n", justify="right"), "mean", "quartiles", box=None)
        for name, writer in results["writers"].items():
            mean = "not measured" if writer["leakage"] is None else f"{writer['leakage']:.2f}"
            quartiles = " ".join(f"{quartile:.2f}" for quartile in writer["quartiles"] or ())
            table.add_row(name, f"{writer['n']:,}", mean, quartiles)
        console.print("leakage: the share of a first turn's content words that the intent says")
        console.print(table)
    if usage:
        shown = [f"{usage['calls']:,} calls"]
        if usage["tokens_in"] is not None:
            shown.append(f"{usage['tokens_in']:,} tokens in, {usage['tokens_out']:,} out")
        if usage["cost"] is not None:
            shown.append(f"${usage['cost']:,.4f}")
        console.print(f"{results['model']}: {', '.join(shown)}")
        if faults := results["faults"]:
            console.print(
                " faults: " + ", ".join(f"{name} {count:,}" for name, count in faults.items())
            )
        if usage["possibly_billed"]:
            booked = "" if usage["cost"] is None else " (counted at their worst)"
            console.print(
                f" tries that gave nothing but may have been billed{booked}: "
                f"{usage['possibly_billed']:,}"
            )
    if counts.get("note: no intent, budget"):
        go_on = (
            f"to go on, give {out} as the input of a run with another --out; intents that "
            "are "
            "there stay"
        )
        console.print(f"the budget covers no more; {go_on}", style="yellow")
    if results["failed"]:
        again = "the same command tries these again"
        console.print(
            f"{results['failed']:,} could not be asked ({again}), the first: {first_error}",
            style="yellow",
        )

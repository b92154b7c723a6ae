"""`userlm intents`: one sentence for each conversation on what the user wants."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from userlm import address, loading
from userlm.commands.costs import (
    BYTES_PER_TOKEN,
    Costs,
    Estimate,
    Limits,
    price_option,
    read_price,
    show_errors,
)
from userlm.commands.options import (
    LocalModels,
    Output,
    argument,
    check,
    hub_option,
    limit_option,
    option,
    out_folder,
    workers_option,
)
from userlm.commands.steps import (
    Results,
    count_total,
    finish,
    finished,
    in_order,
    open_run,
    write_hub,
)
from userlm.data.conditions import sentence, traits
from userlm.data.extractive import extractive
from userlm.data.intents import check as check_intent
from userlm.data.intents import leakage, request, write
from userlm.models.budget import CAP
from userlm.models.call_cache import CallCache
from userlm.rows import read_conversations, read_rows, take, write_conversations
from userlm.runs import split_files
from userlm.show.terminal import console, track
from userlm.text import stable_hash, words
from userlm.types import Conversation, InputError, Message, Sampling

EXTRACTIVE = "extractive"
UNNAMED = "not said"  # the writer of intents that came with the logs
LONGEST_GOAL = 2000  # characters; a longer text is likely a page of instructions
AHEAD = 16  # conversations queued for each worker, so that a slow answer does not block others
TOP_P = 0.9
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Intents:
    """Give each conversation an intent: one generic sentence on what the user wants.

    An existing intent is kept. Otherwise it comes from --join, from the goal in the log, or from
    the writer. The default writer, extractive, uses key phrases of the user's turns. It is a
    baseline without a model, and its intents are marked as such.

    $ userlm intents runs/clean

    $ userlm intents runs/clean --writer openai:gpt-4o-mini --price 0.15/0.60 --budget 5
    """

    data: Path = argument(
        Path("runs/clean"), "Conversations: the folder of `clean`, or a file."
    )
    out: Path = out_folder("runs/intents")
    writer: str = option(
        EXTRACTIVE,
        "Writer of intents: openai:NAME, http://HOST:PORT/v1#NAME, a folder or hub id, or "
        "`extractive`, a baseline without a model.",
    )
    workers: int = workers_option()
    temperature: float = option(
        0.7, "Temperature of the model; 0 is greedy.", min=0, max=10
    )
    max_tokens: int = option(
        120,
        "Maximum length of an answer in tokens; reasoning models need more.",
        min=1,
        max=2**24,
    )
    tries: int = option(
        2,
        "Maximum number of attempts per intent, until the answer has the right form.",
        min=1,
    )
    price: str | None = price_option("--price", "the writer's model")
    join: list[Path] | None = option(
        None, "File with rows {id, intent} to use; can be given several times."
    )
    goals: bool = option(
        True, "Use the goal that a person wrote with a log as its intent."
    )
    condition: str | None = option(
        None,
        "Comma-separated fields of meta about the person to add to the system turn.",
    )
    overwrite: bool = option(
        False, "Write new intents also for conversations that have one."
    )
    hub: bool = hub_option()
    limit: int | None = limit_option()
    models: LocalModels = LocalModels()
    limits: Limits = Limits()
    output: Output = Output()


def intents(options: Intents) -> Results:
    """Write the conversations with intents."""
    writer = address.parse(options.writer)
    is_extractive = options.writer == EXTRACTIVE
    price = read_price("writer", options.price)
    check(options)
    model = None
    if not is_extractive:
        # Before the run folder is made, since it refuses a URL with a password.
        model = loading.chat_model(writer, options.models.settings)
    fields = [
        field.strip() for field in (options.condition or "").split(",") if field.strip()
    ]
    if options.condition is not None and not fields:
        raise InputError("--condition: give fields of meta, such as language,country")
    paths = split_files(options.data)
    joins = options.join or []
    weights = [] if is_extractive else loading.files(writer)
    run = open_run("intents", options, [*paths.values(), *joins, *weights])
    if done := finished(run, options, has_failures=itemgetter("failed")):
        return done

    joined, counts = _read_joined(joins)
    known = _Known(joined, options.goals, options.overwrite)
    costs = Costs(run, options.limits.caps)
    cache = None
    if model:
        usage = costs.side("writer", writer, price)
        cache = CallCache(run.path("asked.jsonl"), model, usage)
    costs.check()
    sampling = Sampling(options.temperature, TOP_P, options.max_tokens)
    work = _Work(
        writer.short_name,
        known,
        cache,
        sampling,
        options.tries,
        fields,
        options.workers,
    )
    tally = _Tally(counts, set(joined), options.goals)

    def read(path: Path) -> Iterator[Conversation]:
        logs = read_conversations(path, may_be_empty=options.data.is_dir())
        return islice(logs, options.limit)

    if cache:
        logs = track(chain.from_iterable(map(read, paths.values())), "reading")
        to_write = (log for log in logs if not known.find(log))
        _show_estimate(to_write, costs, cache, options.max_tokens)
    try:
        for name, path in paths.items():
            written = track(
                work.write_all(read(path), tally),
                f"intents for {name}",
                count_total([path], options.limit),
            )
            write_conversations(run.path(f"{name}.jsonl"), written)
    finally:
        costs.stop()
    results = tally.results()
    if cache:
        cache.close()
        results |= {
            "model": writer.short_name,
            **costs.close(),
            "faults": in_order(cache.faults),
        }
    _show_missing_fields(fields, counts)
    if options.hub:
        write_hub(run, results)
    finish(run, options, results)
    show_errors(tally.errors)
    return results


@dataclass(frozen=True, slots=True)
class _Work:
    """How intents are written: the settings that are the same for all conversations."""

    writer: str
    known: _Known
    cache: CallCache | None
    sampling: Sampling
    tries: int
    fields: Sequence[str]
    workers: int

    def write_all(
        self, conversations: Iterable[Conversation], tally: _Tally
    ) -> Iterator[Conversation]:
        """Yield the conversations with their intents and conditions, in order."""
        workers = self.workers if self.cache else 1
        for conversation, intent in _in_order(self._intent, conversations, workers):
            yield self._with_condition(tally.add(conversation, intent), tally)

    def _intent(self, conversation: Conversation) -> Intent:
        known = self.known.find(conversation)
        if known:
            return known
        if self.cache is None:
            return _extract(conversation)
        writer = _Writer(self.writer, self.cache, self.sampling, self.tries)
        return writer.write(conversation)

    def _with_condition(
        self, conversation: Conversation, tally: _Tally
    ) -> Conversation:
        """Return the conversation with the condition: what the fields say about the person."""
        if not self.fields:
            return conversation
        known = traits(conversation, self.fields)
        tally.counts.update(_condition_note(field) for field in known)
        meta = {
            key: value for key, value in conversation.meta.items() if key != "condition"
        }
        if known:
            meta["condition"] = sentence(known)
        return replace(conversation, meta=meta)


def _condition_note(field: str) -> str:
    return f"note: condition, {field} known"


def _show_missing_fields(fields: Sequence[str], counts: Mapping[str, int]) -> None:
    missing = [field for field in fields if not counts[_condition_note(field)]]
    if missing:
        console.print(
            f"no log has these fields: {', '.join(missing)}; look up the field names in meta",
            style="yellow",
        )


# --- writers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Intent:
    """An intent, or why there is none.

    Attributes:
        by: `extractive`, `human`, `joined`, or the name of a model; empty if the log does not say.
        note: the name of the count that it adds to.
        error: the error message, if the model could not answer.
    """

    text: str | None
    by: str = ""
    note: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Known:
    """Intents that exist already and need no writer.

    Attributes:
        joined: intents by id, from --join.
    """

    joined: Mapping[str, str]
    goals: bool
    overwrite: bool

    def find(self, conversation: Conversation) -> Intent | None:
        """Return the existing intent of a conversation, if there is one."""
        if conversation.intent is not None and not self.overwrite:
            return Intent(conversation.intent, _said_by(conversation), "had an intent")
        for name in _names(conversation.id):
            if name in self.joined:
                return Intent(self.joined[name], "joined", "joined")
        if self.goals:
            goal, _ = _goal(conversation)
            if goal:
                return Intent(goal, "human", "human goal")
        return None


def _names(id: str) -> tuple[str, ...]:
    """Return the ids that a joined file may use for a conversation: its id, and for WildChat the
    hash at the start of its id."""
    hashed = re.match(r"([0-9a-f]{32})-\d+$", id)
    return (id, hashed[1]) if hashed else (id,)


def _goal(conversation: Conversation) -> tuple[str, str]:
    """Return the goal that a person wrote with a log. If it is not used, return an empty text and
    the reason; if there is no goal, both are empty."""
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
    if intent is None:
        return Intent(None, note="no intent, nothing to say")
    if reason := check_intent(intent, conversation):
        return Intent(None, note=f"no intent, {reason}")
    return Intent(intent, EXTRACTIVE, "written")


@dataclass(frozen=True, slots=True)
class _Writer:
    """A chat model that writes intents."""

    name: str
    cache: CallCache
    sampling: Sampling
    tries: int

    def write(self, conversation: Conversation) -> Intent:
        """Return the intent that the model writes, or why there is none."""
        errors: list[str] = []

        def ask(number: int, messages: Sequence[Message]) -> tuple[str | None, str]:
            seed = stable_hash(conversation.id, number) % 2**63
            answer = self.cache.ask(
                conversation.id, number, messages, replace(self.sampling, seed=seed)
            )
            errors.append(answer.error)
            return answer.text, answer.reason

        text, reason = write(conversation, ask, self.tries)
        if text is not None:
            return Intent(text, self.name, "written")
        error = errors[-1] if errors else ""
        if error:
            is_capped = error.startswith(CAP)
            reason = "cap reached" if is_capped else f"call failed: {reason}"
        return Intent(None, note=f"no intent, {reason}", error=error)


def _in_order(
    job: Callable[[Conversation], Intent],
    conversations: Iterable[Conversation],
    workers: int,
) -> Iterator[tuple[Conversation, Intent]]:
    """Yield each conversation with its intent, in order; `workers` of them run at the same time."""
    pool = ThreadPoolExecutor(workers)
    running: deque[tuple[Conversation, Future[Intent]]] = deque()
    try:
        for conversation in conversations:
            running.append((conversation, pool.submit(job, conversation)))
            if len(running) >= workers * AHEAD:
                first, future = running.popleft()
                yield first, future.result()
        while running:
            first, future = running.popleft()
            yield first, future.result()
    finally:  # after Ctrl-C or an error, start nothing new
        pool.shutdown(wait=False, cancel_futures=True)


# --- existing intents -----------------------------------------------------------------------------


def _read_joined(paths: Iterable[Path]) -> tuple[dict[str, str], Counter[str]]:
    """Read the files of --join; return intents by id, and counts of what was skipped.

    Raises:
        InputError: the message names the file, line and field.
    """
    joined: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for path in paths:
        for line in read_rows(path):
            try:
                if line.error:
                    raise ValueError(line.error)
                name = take(line.row, "id", str)
                intent = take(line.row, "intent", str, default="")
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


# --- results --------------------------------------------------------------------------------------


class _Tally:
    """Counts and leakage, updated with each conversation."""

    def __init__(self, counts: Counter[str], joined: set[str], goals: bool) -> None:
        self.counts = counts
        self.errors: list[str] = []
        self._unmet_joins = joined
        self._goals = goals
        self._written: Counter[str] = Counter()
        self._leaks: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))

    def add(self, conversation: Conversation, found: Intent) -> Conversation:
        """Count an intent, and return the conversation with it."""
        self.counts["in"] += 1
        self.counts[f"note: {found.note}"] += 1
        _, unused = _goal(conversation)
        if self._goals and unused:
            self.counts[f"note: human goal not taken, {unused}"] += 1
        self._unmet_joins.difference_update(_names(conversation.id))
        if found.error:
            self.errors.append(found.error)
        meta = dict(conversation.meta)
        if found.by:
            meta["intent_by"] = found.by
        elif found.text is None:
            meta.pop("intent_by", None)
        if found.text is not None:
            self.counts["out"] += 1
            self._written[found.by] += 1
            leak = leakage(found.text, conversation)
            if leak is not None:
                self._leaks[found.by].append(leak)
        return replace(conversation, intent=found.text, meta=meta)

    def results(self) -> Results:
        """Return the results. Leakage is `None` if no first turn has content words."""
        if self._unmet_joins:
            self.counts["note: joined file, unknown id"] = len(self._unmet_joins)
        writers: dict[str, dict[str, Any]] = {}
        for by, n in sorted(self._written.items()):
            leaks = np.array(self._leaks[by])
            writer: dict[str, Any] = {
                "n": n,
                "measured": len(leaks),
                "leakage": None,
                "quartiles": None,
            }
            if len(leaks):
                writer["leakage"] = float(leaks.mean())
                writer["quartiles"] = np.quantile(leaks, QUARTILES).tolist()
            writers[by or UNNAMED] = writer
        return {
            "counts": in_order(self.counts),
            "writers": writers,
            "failed": len(self.errors),
        }


def _show_estimate(
    conversations: Iterable[Conversation],
    costs: Costs,
    cache: CallCache,
    max_tokens: int,
) -> None:
    """Print, before the first call, how many calls are expected and what they may cost."""
    asked_before = to_ask = size = 0
    for conversation in conversations:
        if cache.answered(conversation.id):
            asked_before += 1
            continue
        to_ask += 1
        size += sum(
            len(message["content"].encode()) for message in request(conversation)
        )
    before = ""
    if asked_before:
        before = f" ({asked_before:,} got calls in an earlier attempt)"
    console.print(f"{to_ask:,} intents to write{before}; estimate, with one call each:")
    estimate = Estimate(to_ask, size // BYTES_PER_TOKEN, to_ask * max_tokens)
    costs.show_estimate({"writer": estimate}, "")

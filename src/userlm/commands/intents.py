"""`userlm intents`: one sentence for each conversation on what the user wants."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, starmap
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from userlm import address, inputs, loading, prompts
from userlm.commands.costs import (
    Limits,
    add_side,
    check_caps,
    estimate_requests,
    price_option,
    read_price,
    show_errors,
    stop,
)
from userlm.commands.options import (
    Failures,
    LocalModels,
    Output,
    Parts,
    argument,
    hub_option,
    limit_option,
    option,
    out_folder,
    workers_option,
)
from userlm.commands.parts import concatenate, in_parts, merged_budget, total
from userlm.commands.steps import (
    Results,
    count_total,
    finish,
    finished,
    in_order,
    in_parallel,
    open_run,
    write_hub,
)
from userlm.data.conditions import sentence, traits
from userlm.data.intents import NOTHING, leakage, request
from userlm.data.writers import (
    EXTRACTIVE,
    NO_INTENT,
    Existing,
    Intent,
    ModelWriter,
    extract,
    human_goal,
    joined_names,
    read_joined,
)
from userlm.journal import Journal
from userlm.models.budget import Budget, Price
from userlm.models.call_cache import CallCache
from userlm.parts import Part
from userlm.rows import read_conversations, write_conversations
from userlm.runs import FinishedRun, Run, split_files
from userlm.show.terminal import console, track
from userlm.types import Conversation, InputError, Sampling

UNNAMED = "the logs"  # the writer of intents that came with the logs
JOINED_FILE = "note: joined file"
UNKNOWN_JOIN = f"{JOINED_FILE}, unknown id"
TOP_P = 0.9
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Intents:
    """Give each conversation an intent: one generic sentence on what the user wants.

    An existing intent is kept. Otherwise it comes from --join, from the goal in the log, or from
    the writer. The default writer, extractive, uses words of the user's request. It is a
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
    several: Parts = Parts()
    failures: Failures = Failures()
    output: Output = Output()


@in_parts
def intents(options: Intents, parts: Sequence[FinishedRun] = ()) -> Results:
    """Write the conversations with intents."""
    writer = address.parse(options.writer)
    is_extractive = options.writer == EXTRACTIVE
    price = read_price("writer", options.price)
    if writer.url or "://" in options.writer:
        # Refuses a URL with a password before it is written to run.json.
        loading.chat_model(writer)
    fields = _condition_fields(options.condition)
    paths = split_files(options.data)
    joins = options.join or []
    model_files = [] if is_extractive else inputs.files(writer)
    files = [*paths.values(), *joins, *model_files]
    stamps = inputs.stamps(writer)
    if not is_extractive:
        stamps |= prompts.hashes("intent")
    sizes = {path: path.stat().st_size for path in paths.values()}
    run = open_run("intents", options, files, stamps, parts=parts)
    if done := finished(run, options, lambda results: results.get("failed")):
        _check_failures(options, done)
        return done

    joined, counts = read_joined(joins)
    existing = Existing(joined, options.goals, options.overwrite)
    tally = _Tally(existing, fields, counts)
    if parts:
        return _merge(run, options, paths, tally, parts)
    budget = Budget(options.limits.caps, run.path("usage.jsonl"))
    model = None if is_extractive else _model_writer(options, run, budget, price)
    check_caps(budget.caps, bool(budget.sides))
    return _write(run, options, paths, sizes, existing, tally, model, budget)


def _write(
    run: Run,
    options: Intents,
    paths: Mapping[str, Path],
    sizes: Mapping[Path, int],
    existing: Existing,
    tally: _Tally,
    model: ModelWriter | None,
    budget: Budget,
) -> Results:
    """Write the conversations with intents, and the results; without a model, intents are
    extracted."""
    write = model.write if model else extract
    workers = options.workers if model else 1

    def find(conversation: Conversation) -> Intent:
        return existing.find(conversation) or write(conversation)

    share = options.several.share
    logs = track(_all(options, paths.values()), "reading")
    logs = (log for log in logs if share.has(log.id))
    if model:
        requests = ((log.id, request(log)) for log in logs if not existing.find(log))
        estimate_requests(model.cache, requests, options.max_tokens, "intents")
    elif options.join:
        deque(logs, maxlen=0)
    run.unfinish()
    try:
        for split, path in paths.items():
            total = count_total([path], options.limit)
            own = (log for log in _read(options, path) if share.has(log.id))
            pairs = in_parallel(find, own, workers)
            found = track(pairs, f"intents for {split}", total)
            write_conversations(run.path(f"{split}.jsonl"), starmap(tally.add, found))
    finally:
        stop(budget)
    run.check_inputs(sizes)
    results = tally.results()
    if options.several.part:
        results["counts"].pop(UNKNOWN_JOIN, None)  # most are of other parts
    if model:
        results |= _usage(model, budget)
    tally.show_missing_fields()
    if options.hub:
        write_hub(run, results)
    show_errors(tally.errors, tally.asked)
    finish(run, options, results, has_failures=bool(tally.errors))
    _check_failures(options, results)
    return results


def _merge(
    run: Run,
    options: Intents,
    paths: Mapping[str, Path],
    tally: _Tally,
    parts: Sequence[FinishedRun],
) -> Results:
    """Write the conversations of all parts with their intents, and the results."""
    shares = [Part(number, len(parts)) for number in range(1, len(parts) + 1)]

    def rows(split: str, path: Path) -> Iterator[Conversation]:
        name = f"{split}.jsonl"
        files = [read_conversations(part.path(name), True) for part in parts]
        for log in _read(options, path):
            [at] = [at for at, share in enumerate(shares) if share.has(log.id)]
            row = next(files[at], None)
            if row is None or row.id != log.id:
                raise InputError(
                    f"{parts[at].path(name)} does not have {log.id!r} in its place; run that part "
                    "again with --force"
                )
            tally.measure(row)
            yield row

    run.unfinish()
    for split, path in paths.items():
        write_conversations(run.path(f"{split}.jsonl"), rows(split, path))
    found = [part.results for part in parts]
    tally.add_counts(total(each["counts"] for each in found))
    results = {**tally.results(), "failed": sum(each["failed"] for each in found)}
    if options.writer != EXTRACTIVE:
        order = {log.id: at for at, log in enumerate(_all(options, paths.values()))}
        concatenate(run, "asked.jsonl", parts)
        asked = Journal(run.path("asked.jsonl"))
        asked.close(order=lambda row: (order[row["id"]], row["try"]))
        results["model"] = found[0]["model"]
        results |= merged_budget(run, parts).finish(["writer"])
        results["faults"] = in_order(total(each["faults"] for each in found))
    if options.hub:
        write_hub(run, results)
    finish(run, options, results, has_failures=results["failed"] > 0)
    _check_failures(options, results)
    return results


def _usage(model: ModelWriter, budget: Budget) -> Results:
    """Close the call cache, and return what the calls used."""
    model.cache.close()
    faults = in_order(model.cache.faults)
    return {"model": model.name, **budget.finish(["writer"]), "faults": faults}


def _check_failures(options: Intents, results: Results) -> None:
    """Raise `ModelError` if the model wrote too few of the intents that it was asked for, whether
    calls failed or no answer could be used."""
    if options.writer != EXTRACTIVE:
        written, unwritten = _asked(results["counts"])
        options.failures.check(unwritten, written + unwritten, how="got no intent")


def _read(options: Intents, path: Path) -> Iterator[Conversation]:
    logs = read_conversations(path, may_be_empty=options.data.is_dir())
    return islice(logs, options.limit)


def _all(options: Intents, paths: Iterable[Path]) -> Iterator[Conversation]:
    """Yield the conversations of all files; raise `InputError` if two files have the same id, since
    joined and written intents are kept by id."""
    first: dict[int, Path] = {}  # by the hash of the id
    for path in paths:
        for conversation in _read(options, path):
            known = first.setdefault(hash(conversation.id), path)
            if known != path:
                raise InputError(
                    f"{path}: id {conversation.id!r} is in {known} too, and intents are kept by "
                    "id; give other ids, or one file at a time"
                )
            yield conversation


def _condition_fields(condition: str | None) -> list[str]:
    """Return the fields of --condition; raise `InputError` if it names none."""
    fields = [field.strip() for field in (condition or "").split(",")]
    fields = [field for field in fields if field]
    if condition is not None and not fields:
        raise InputError("--condition: give fields of meta, such as language,country")
    return fields


def _model_writer(
    options: Intents, run: Run, budget: Budget, price: Price | None
) -> ModelWriter:
    writer = address.parse(options.writer)
    chat = loading.chat_model(writer, options.models.settings)
    side = add_side(budget, "writer", writer, price)
    cache = CallCache(run.path("asked.jsonl"), chat, side)
    sampling = Sampling(options.temperature, TOP_P, options.max_tokens)
    return ModelWriter(writer.short_name, cache, sampling, options.tries)


# --- results --------------------------------------------------------------------------------------


class _Tally:
    """Counts and leakage, updated with each conversation.

    Args:
        fields: the fields of --condition.
        counts: the counts so far.
    """

    def __init__(
        self, existing: Existing, fields: Sequence[str], counts: Counter[str]
    ) -> None:
        self.errors: list[str] = []
        self._counts = counts
        self._fields = fields
        self._goals = existing.goals
        self._unmet_joins = set(existing.joined)
        # By writer, a number for each intent; NaN if it could not be measured.
        self._leakage: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))

    def add(self, conversation: Conversation, found: Intent) -> Conversation:
        """Count an intent, and return the conversation with it and with the condition: what the
        fields say about the person."""
        self._counts["in"] += 1
        self._counts[f"note: {found.note}"] += 1
        _, unused = human_goal(conversation)
        if self._goals and unused:
            self._counts[f"note: human goal not taken, {unused}"] += 1
        if found.error:
            self.errors.append(found.error)
        meta = dict(conversation.meta)
        if found.by:
            meta["intent_by"] = found.by
        elif found.text is None:
            meta.pop("intent_by", None)
        if found.text is not None:
            self._counts["out"] += 1
        if self._fields:
            meta.pop("condition", None)
        if known := traits(conversation, self._fields):
            self._counts.update(map(_condition_note, known))
            meta["condition"] = sentence(known)
        row = replace(conversation, intent=found.text, meta=meta)
        self.measure(row)
        return row

    def measure(self, row: Conversation) -> None:
        """Measure the leakage of a conversation that has its intent."""
        self._unmet_joins.difference_update(joined_names(row.id))
        if row.intent is not None:
            leak = leakage(row.intent, row)
            by = row.meta.get("intent_by")
            writer = by if isinstance(by, str) else ""
            self._leakage[writer].append(nan if leak is None else leak)

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Add the counts of parts, without those of --join, which each part has for the whole."""
        for name, count in counts.items():
            if not name.startswith(JOINED_FILE):
                self._counts[name] += count

    @property
    def asked(self) -> int:
        """The number of conversations that the writer was asked about, or should have been."""
        return sum(_asked(self._counts))

    def results(self) -> Results:
        """Return the results. Leakage is `None` if no first turn has content words."""
        if self._unmet_joins:
            self._counts[UNKNOWN_JOIN] = len(self._unmet_joins)
        writers: dict[str, dict[str, Any]] = {}
        for by, leaks in sorted(self._leakage.items()):
            measured = np.array(leaks)
            measured = measured[~np.isnan(measured)]
            writer: dict[str, Any] = {
                "n": len(leaks),
                "measured": len(measured),
                "leakage": None,
                "quartiles": None,
            }
            if len(measured):
                writer["leakage"] = float(measured.mean())
                writer["quartiles"] = np.quantile(measured, QUARTILES).tolist()
            writers[by or UNNAMED] = writer
        return {
            "counts": in_order(self._counts),
            "writers": writers,
            "failed": len(self.errors),
        }

    def show_missing_fields(self) -> None:
        """Print the fields of --condition that no log has."""
        missing = []
        for field in self._fields:
            if not self._counts[_condition_note(field)]:
                missing.append(field)
        if missing:
            console.print(
                f"no log has these fields: {', '.join(missing)}; look up the field names in meta",
                style="yellow",
            )


def _asked(counts: Mapping[str, int]) -> tuple[int, int]:
    """Return how many intents a writer wrote, and how many it did not though there was something
    to say."""
    unwritten = 0
    for note, count in counts.items():
        if note.startswith(f"note: {NO_INTENT}") and NOTHING not in note:
            unwritten += count
    return counts.get("note: written", 0), unwritten


def _condition_note(field: str) -> str:
    return f"note: condition, {field} known"

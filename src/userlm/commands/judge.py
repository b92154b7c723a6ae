"""`userlm judge`: what a chat model says about the user's turns, and how far people agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from warnings import warn

from userlm import address, inputs, judges, loading
from userlm.address import Address
from userlm.commands.costs import (
    Limits,
    add_side,
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
    argument,
    limit_option,
    option,
    out_folder,
    workers_option,
)
from userlm.commands.steps import (
    Results,
    conversations_in,
    count_total,
    finish,
    finished,
    in_order,
    in_parallel,
    open_run,
)
from userlm.data.layouts.fields import id_of
from userlm.items import item_of, kind_of
from userlm.journal import Journal
from userlm.json_files import read_json, take, write_lines
from userlm.judges import NO_REPLY, JudgePrompt
from userlm.lines import Line
from userlm.manifest import file_hash
from userlm.metrics.agreement import Labelled, agreement
from userlm.metrics.intrinsic import cluster_name
from userlm.models.budget import Budget, Price
from userlm.models.call_cache import CallCache
from userlm.rows import read_conversations, read_parsed
from userlm.runs import Run, lasting_name, measure_record
from userlm.show.terminal import track
from userlm.stats import PERCENT, Found, measure, measure_row
from userlm.text import stable_hash
from userlm.types import (
    Conversation,
    InputError,
    Measure,
    Message,
    ModelError,
    ModelWarning,
    Verdict,
)

NO_VERDICT = "no verdict: "
ENDS_INCLUDED = ", ends included"
"""Ends the name of a share of which users who ended are a part. No label has a comma."""
CALLS = ("failed", "usage", "caps", "faults")
"""The keys of results.json about the calls; the others are computed from the verdicts."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Let a chat model give the user's last turn of each conversation one of a few labels.

    It says how often each label was given and, with --labels, how far the judge agrees with people.
    Labels can be given later: the verdicts stay, and no call is repeated.

    $ userlm judge runs/assess/intent --judge openai:gpt-4o --prompt intent-adherence
    --price 2.50/10

    $ userlm judge runs/assess/intent --judge openai:gpt-4o --prompt intent-adherence
    --labels hand.jsonl
    """

    run: Path = argument(
        ..., "Run folder of `respond` or `simulate`, or a file of conversations."
    )
    judge: str = option(
        ..., "Judge: openai:NAME, http://HOST:PORT/v1#NAME, a folder or hub id."
    )
    prompt: str = option(
        ..., f"What to judge: {', '.join(judges.IN_BOX)}, or a file (docs/judges.md)."
    )
    labels: Path | None = option(
        None,
        "File with rows {id, label} by people, to measure agreement.",
        recorded=False,
    )
    out: Path = out_folder("runs/judge")
    workers: int = workers_option()
    max_tokens: int = option(
        judges.MAX_TOKENS,
        "Maximum length of an answer in tokens; reasoning models need more.",
        min=1,
        max=2**24,
    )
    price: str | None = price_option("--price", "the judge")
    limit: int | None = limit_option()
    models: LocalModels = LocalModels()
    limits: Limits = Limits()
    failures: Failures = Failures()
    output: Output = Output()


def judge(options: Judge) -> Results:
    """Write the verdicts, and measures of them."""
    given = address.parse(options.judge)
    price = read_price("judge", options.price)
    if given.url or "://" in options.judge:
        # Refuses a URL with a password before it is written to run.json.
        loading.chat_model(given)
    prompt = judges.read_prompt(options.prompt)
    path = conversations_in(options.run)
    user = made_by(path)
    hand = read_labels(options.labels, prompt) if options.labels else {}
    hand_hash = file_hash(options.labels) if options.labels else ""
    # Verdicts are kept by what was judged. So turns may change, as when `respond` tries again what
    # failed.
    read = file_hash(path)
    stamps = inputs.stamps(given) | {f"prompt {prompt.name}": prompt.hash}
    stamps |= {"run": lasting_name(path)}
    reads = [path, *([options.labels] if options.labels else [])]
    run = open_run("judge", options, inputs.files(given), stamps, reads)

    def is_judged(results: Results) -> bool:
        return results.get("read") == read and not results.get("failed")

    def is_to_do(results: Results) -> bool:
        has_new_labels = hand_hash and hand_hash != results.get("labels_hash")
        return bool(has_new_labels or not is_judged(results))

    if done := finished(run, options, is_to_do):
        _check_labels(done)
        return done
    warning = same_model(given, user)
    if warning:
        warn(warning, ModelWarning, stacklevel=2)
    earlier = run.results
    verdicts = run.path("verdicts.jsonl")
    _check_ids(hand, options, path)
    if earlier and is_judged(earlier) and verdicts.is_file():
        judged = _read_verdicts(verdicts)
        calls = {key: earlier[key] for key in CALLS}
    else:
        judged, calls = _judge_all(run, options, prompt, price, path)
    results = {
        "read": read,
        "run": path.parent.name if user else path.name,
        "user": user,
        "judge": options.judge,
        "prompt": prompt.name,
        "hash": prompt.hash,
        "positive": prompt.positive,
        "warning": warning,
        "counts": _counts(judged, hand),
        "measures": list(map(measure_record, shares(judged, prompt))),
        "agreement": list(map(measure_record, _agreement(judged, hand))),
        "labels_hash": hand_hash,
        **calls,
    }
    finish(run, options, results, has_failures=bool(calls["failed"]))
    _check_failures(options, judged, calls)
    _check_labels(results)
    return results


def _check_failures(
    options: Judge, judged: Sequence[JudgedTurn], calls: Results
) -> None:
    """Raise `ModelError` if too many turns that could be judged were not."""
    asked = sum(one.turn is not None for one in judged)
    how = "ended in an error"
    if any(cap is not None for cap in calls["caps"].values()):
        how += ", or were not judged because of a limit"
    options.failures.check(calls["failed"], asked, how=how)


def _check_labels(results: Results) -> None:
    """Raise `ModelError` if the judge was asked and no answer has a label."""
    counts = results["counts"]
    unread = sum(n for what, n in counts.items() if what.startswith(NO_VERDICT))
    if unread and not counts["out"]:
        raise ModelError(f"none of {unread:,} answers of the judge has a label")


def made_by(path: Path) -> str | None:
    """Return the address of the user in the conversations of a run; `None` for others."""
    manifest_path = path.parent / "run.json"
    options = read_json(manifest_path).get("options") if manifest_path.is_file() else {}
    user = options.get("user") if isinstance(options, dict) else None
    return user if isinstance(user, str) else None


def _check_ids(hand: Mapping[str, str], options: Judge, path: Path) -> None:
    """Raise `InputError` if none of the labels by hand is about these conversations."""
    logs = read_conversations(path, may_be_empty=True)
    if hand and not any(log.id in hand for log in logs):
        raise InputError(
            f"{options.labels}: no id is that of a conversation in {path}, such as "
            f"{next(iter(hand))!r}"
        )


def same_model(judge: Address, user: str | None) -> str:
    """Return a warning if the judge is the model that plays the user; empty if it is not."""
    if user is None or _identity(judge) != _identity(address.parse(user)):
        return ""
    return (
        f"the judge {judge} and the user {user} are one model, and models prefer what they wrote "
        "themselves; take another judge"
    )


def _identity(parts: Address) -> str:
    """Return what two addresses of one model share: its folder, or its name on any server."""
    if not parts.scheme:
        folder = loading.model_folder(parts.name)
        if folder.is_dir():
            return str(folder.resolve())
    return parts.short_name.casefold()


# --- verdicts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JudgedTurn:
    """A conversation and the verdict on its last turn: a line of verdicts.jsonl.

    Attributes:
        id: that of the conversation.
        turn: the number of the user turn, from 0; `None` if there was nothing to judge.
        cluster: see `MeasureRow`.
        error: the error, if the judge could not answer; the same command asks again.
    """

    id: str
    turn: int | None
    cluster: str
    verdict: Verdict
    error: str = ""

    def record(self) -> dict[str, Any]:
        """The line."""
        verdict = self.verdict
        return {
            "id": self.id,
            "turn": self.turn,
            "cluster": self.cluster,
            "label": verdict.label,
            "reason": verdict.reason,
            "raw": verdict.raw,
        }


def _judge_all(
    run: Run, options: Judge, prompt: JudgePrompt, price: Price | None, path: Path
) -> tuple[list[JudgedTurn], Results]:
    """Write the verdicts on all conversations; return them, and what the calls used."""
    given = address.parse(options.judge)
    chat = loading.chat_model(given, options.models.settings)
    judge = judges.Judge(chat, prompt, given.short_name, options.max_tokens)
    budget = Budget(options.limits.caps, run.path("usage.jsonl"))
    side = add_side(budget, "judge", given, price)
    cache = CallCache(run.path("asked.jsonl"), chat, side)

    def logs() -> Iterator[Conversation]:
        return islice(read_conversations(path, may_be_empty=True), options.limit)

    requests = _requests(prompt, track(logs(), "reading"))
    estimate_requests(cache, requests, options.max_tokens, "verdicts")
    run.unfinish()
    judged: list[JudgedTurn] = []

    def lines() -> Iterator[Mapping[str, Any]]:
        total = count_total([path], options.limit)
        found = in_parallel(partial(_judge, judge, cache), logs(), options.workers)
        for _, one in track(found, "judging", total):
            judged.append(one)
            yield one.record()

    try:
        write_lines(run.path("verdicts.jsonl"), lines())
    finally:
        stop(budget)
        cache.close()
    errors = [one.error for one in judged if one.error]
    show_errors(errors, len(judged))
    used = budget.finish(["judge"])
    faults = in_order(cache.faults)
    return judged, {"failed": len(errors), **used, "faults": faults}


def _requests(
    prompt: JudgePrompt, logs: Iterable[Conversation]
) -> Iterator[tuple[str, Sequence[Message]]]:
    for log in logs:
        turn = prompt.turn(log)
        if not isinstance(turn, str):
            request = prompt.request(turn)
            yield _name(log, request), request


def _name(log: Conversation, request: Sequence[Message]) -> str:
    """Return the name of a request in the journal, which changes with what is judged."""
    return f"{log.id} {stable_hash(request[0]['content']):016x}"


def _judge(judge: judges.Judge, cache: CallCache, log: Conversation) -> JudgedTurn:
    """Return the verdict on a conversation, from an earlier attempt or from the judge."""
    cluster = item_of(log) if kind_of(log) else cluster_name(log)
    turn = judge.prompt.turn(log)
    if isinstance(turn, str):
        return JudgedTurn(log.id, None, cluster, Verdict(None, turn, ""))
    sampling = judge.sampling(stable_hash(log.id) % 2**63)
    request = judge.prompt.request(turn)
    name = _name(log, request)
    answer = cache.ask(name, 0, request, sampling)
    verdict = judge.prompt.read(answer)
    if not answer.error:
        cache.count_use(name, verdict.label is not None)
    return JudgedTurn(log.id, turn.k, cluster, verdict, answer.error)


def _read_verdicts(path: Path) -> list[JudgedTurn]:
    """Return the verdicts of a complete run."""
    journal = Journal(path)
    judged = list(journal.read(_parse))
    journal.close()
    return judged


def _parse(row: Mapping[str, Any]) -> JudgedTurn:
    label = take(row, "label", str, default=None)
    verdict = Verdict(label, take(row, "reason", str), take(row, "raw", str))
    turn = take(row, "turn", int, default=None)
    return JudgedTurn(take(row, "id", str), turn, take(row, "cluster", str), verdict)


# --- measures -------------------------------------------------------------------------------------


def shares(judged: Iterable[JudgedTurn], prompt: JudgePrompt) -> list[Measure]:
    """Return how many of the judged turns got each label, in percent. A turn without a verdict is
    missing.

    If the prompt is about a reaction to an answer, and users ended instead of replying or said
    nothing, also how many of all got the positive label: that is a reaction too, and another one.
    """
    judged = list(judged)
    found = []
    for label in prompt.labels:
        rows = []
        for one in judged:
            if one.turn is not None:
                rows.append(measure_row(one.id, one.cluster, _has(one, label)))
        found.append(replace(measure(rows, PERCENT, label), unit="%"))
    ends = [
        one for one in judged if one.turn is None and one.verdict.reason in NO_REPLY
    ]
    positive = found[prompt.labels.index(prompt.positive)]
    if ends and positive.n and "answer" in prompt.sees:
        rows = [measure_row(one.id, one.cluster, (0.0, 1.0)) for one in ends]
        of_all = measure([*positive.rows, *rows], PERCENT)
        name = f"{prompt.positive}{ENDS_INCLUDED}"
        found.append(replace(of_all, name=name, unit="%"))
    return found


def positive_share(results: Results) -> Results:
    """Return the record of how many turns got the positive label, of the results of a run; ends
    count too, if it has them. It names the judge and the prompt, and has the number of each
    label."""
    shares = {one["name"]: one for one in results["measures"]}
    positive = results["positive"]
    found = shares.get(f"{positive}{ENDS_INCLUDED}") or shares[positive]
    counts = {}
    for name, one in shares.items():
        if not name.endswith(ENDS_INCLUDED):
            counts[name] = round((one["value"] or 0) * one["n"] / 100)
    by = f"{results['judge']}, prompt {results['prompt']} {results['hash'][:12]}"
    return {**found, "outcomes": counts, "by": by}


def _has(one: JudgedTurn, label: str) -> Found:
    verdict = one.verdict
    if verdict.label is None:
        return verdict.reason
    return float(verdict.label == label), 1.0


def _counts(judged: Sequence[JudgedTurn], hand: Mapping[str, str]) -> dict[str, int]:
    """Return how many conversations there are and were judged, and why others have no verdict."""
    counts = Counter({"in": len(judged), "out": 0})
    for one in judged:
        if one.verdict.label is not None:
            counts["out"] += 1
        elif one.turn is None:
            counts[f"nothing to judge: {one.verdict.reason}"] += 1
        else:
            counts[f"{NO_VERDICT}{one.verdict.reason}"] += 1
    if others := hand.keys() - {one.id for one in judged if one.turn is not None}:
        counts["labels by hand, but nothing judged"] = len(others)
    return dict(counts)


def read_labels(path: Path, prompt: JudgePrompt) -> dict[str, str]:
    """Return the labels of --labels by id.

    Raises:
        InputError: the message names the file, line and field.
    """
    seen: set[str] = set()

    def parse(line: Line) -> tuple[str, str]:
        name = id_of(line.row, "id") or take(line.row, "id", str)
        label = take(line.row, "label", str)
        if label not in prompt.labels:
            known = " or ".join(prompt.labels)
            raise ValueError(f"label {label!r}: this prompt has {known}")
        if name in seen:
            raise ValueError(f"id {name!r} has a label already")
        seen.add(name)
        return name, label

    return dict(read_parsed(path, parse, "; give rows of id and label"))


def _agreement(judged: Iterable[JudgedTurn], hand: Mapping[str, str]) -> list[Measure]:
    """Return how far the judge agrees with the labels by hand; nothing without any."""
    items = []
    for one in judged:
        if one.id in hand and one.turn is not None:
            verdict = one.verdict
            why = "" if verdict.label else verdict.reason
            items.append(
                Labelled(one.id, one.cluster, verdict.label, hand[one.id], why)
            )
    return agreement(items) if hand else []

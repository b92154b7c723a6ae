"""`ppl`: how well a model predicts people, and what an intent changes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, TypeAlias

from userlm import address, inputs, loading
from userlm.commands.costs import (
    Limits,
    add_side,
    estimate_tokens,
    price_option,
    read_price,
    show_errors,
    show_estimate,
    stop,
)
from userlm.commands.options import (
    Failures,
    LocalModels,
    Output,
    Parts,
    argument,
    limit_option,
    max_tokens_option,
    option,
    out_folder,
    seed_option,
    workers_option,
)
from userlm.commands.parts import concatenate, in_parts, merged_budget
from userlm.commands.steps import (
    Results,
    conversations_in,
    finish,
    finished,
    measure_results,
    open_run,
)
from userlm.journal import Journal
from userlm.json_files import take, write_lines
from userlm.lines import Line as RowLine
from userlm.metrics.controls import (
    OTHER,
    WITH,
    WITHOUT,
    figures,
    other_intents,
)
from userlm.metrics.forms import Form
from userlm.metrics.perplexity import conversation_of, score_turns, unscored
from userlm.metrics.scores import score_line, score_row
from userlm.models.budget import CAP, Budget, Caps, CountedScore
from userlm.models.scored_rows import ScoredRows
from userlm.rows import read_conversations, read_parsed, read_rows
from userlm.runs import FinishedRun, Run
from userlm.show.terminal import console, progress_bar
from userlm.simulate import parallel
from userlm.types import Conversation, InputError, MeasureRow, ModelError, Score

GIVE_UP = 3
"""The run stops when the model fails on this many at the start, of a batch or of the run."""

Line = Mapping[str, Any]
"""A line of scores.jsonl, see `metrics.scores`; it also has `error` if the model failed."""
Key = tuple[str, str]
"""A column and the id of a conversation."""
Lines = Mapping[Key, list[Line]]
Batch: TypeAlias = "Sequence[Sequence[Case]]"
"""Cases of one call; those in an inner sequence are of the same conversation."""


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation to score in one column.

    Attributes:
        intent: the intent that the model gets; `None` if it gets none.
    """

    conversation: Conversation
    column: str
    intent: str | None

    @property
    def key(self) -> Key:
        return self.column, self.conversation.id

    @property
    def why_not(self) -> str:
        """The reason why it cannot be scored; empty if it can."""
        if self.column == WITHOUT or self.intent is not None:
            return ""
        return "no intent" if self.conversation.intent is None else "no other intent"


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model, and how it is asked.

    Attributes:
        form: how a conversation is shown to it.
        max_tokens: the maximum length of a row.
        batch: the number of conversations in a call; 0: one case of a conversation.
        workers: the number of concurrent calls.
    """

    model: Score
    form: Form
    max_tokens: int
    batch: int = 0
    workers: int = 1

    def score(self, cases: Sequence[Case]) -> Lines:
        """Return the lines of each case, from one call of the model."""
        asked = [(case.conversation, case.intent) for case in cases]
        scored = score_turns(asked, self.model, self.form, self.max_tokens)
        return {
            case.key: _lines(case, rows)
            for case, rows in zip(cases, scored, strict=True)
        }

    def batches(self, cases: Sequence[Case]) -> list[Batch]:
        """Return the cases, divided into calls."""
        if not self.batch:
            return [[[case]] for case in cases]
        grouped = groupby(cases, lambda case: case.conversation.id)
        same = [list(group) for _, group in grouped]
        starts = range(0, len(same), self.batch)
        return [same[start : start + self.batch] for start in starts]


@dataclass(frozen=True, slots=True)
class Ppl:
    """Measure the perplexity of real user turns with their intent, without, and with another
    person's.

    $ userlm ppl runs/intents --model runs/train

    $ userlm ppl logs.jsonl --model microsoft/UserLM-8b --limit 500
    """

    data: Path = argument(..., "Conversations: a file, or a folder with test.jsonl.")
    model: str = option(
        ...,
        "A user model: folder, training run or hub id; base:MODEL for a base model, prompted:MODEL "
        "for a chat model that plays the user. Each can be on a server: http://HOST:PORT/v1#NAME.",
    )
    out: Path = out_folder("runs/ppl")
    controls: bool = option(
        True, "Also score with another person's intent, in a third pass."
    )
    max_tokens: int = max_tokens_option()
    tokenizer: str | None = option(
        None,
        "Tokenizer of a model on a server: folder or hub id. Default: the model's name as hub id.",
    )
    prompt: str | None = option(
        None, "Prompt of a prompted model: plain, or a file; see `userlm respond`."
    )
    limit: int | None = limit_option()
    seed: int = seed_option()
    workers: int = workers_option("requests to a server")
    models: LocalModels = LocalModels()
    price: str | None = price_option("--price", "a model on a server")
    limits: Limits = Limits()
    several: Parts = Parts()
    failures: Failures = Failures()
    output: Output = Output()


@in_parts
def ppl(options: Ppl, parts: Sequence[FinishedRun] = ()) -> Results:
    """Score the user turns and write the measures."""
    model = address.parse(options.model)
    price = read_price("model", options.price)
    if not model.is_remote and (price or options.limits.caps != Caps()):
        raise InputError(
            "--price, --budget, --max-calls and --max-tokens-total are for a model on a server; "
            "leave them out"
        )
    path = conversations_in(options.data)
    files = [path, *inputs.files(model, options.tokenizer, options.prompt)]
    run = open_run("ppl", options, files, inputs.stamps(model), parts=parts)
    if done := finished(run, options, lambda _: has_unscored(run.folder)):
        return done
    conversations = list(islice(read_conversations(path), options.limit))
    _say_what_is_missing(conversations, path)
    others = None
    if options.controls:
        others = other_intents(conversations, options.seed)
    share = options.several.share
    conversations = [one for one in conversations if share.has(one.id)]
    cases = list(_cases(conversations, others))
    if parts:
        return _merge(run, options, conversations, cases, parts)
    scorer = _load(options, model)
    budget = Budget(options.limits.caps, run.path("usage.jsonl"))
    rows = None
    if model.is_remote:
        side = add_side(budget, "model", model, price)
        rows = ScoredRows(run.path("rows.jsonl"))
        scorer = replace(scorer, model=CountedScore(scorer.model, side, rows))
    scores, failed = _score_all(run, cases, scorer, budget)
    results = measure_results(figures(scores, conversations), stubs={})
    if rows:
        rows.close(is_needed=failed > 0)
        results |= budget.finish(["model"])
    written = finish(run, options, results, has_failures=failed > 0)
    options.failures.check(failed, len(conversations))
    return written


def _load(options: Ppl, model: address.Address) -> Scorer:
    """Return the model, and how it is asked: on this machine for many conversations at once, on a
    server in many threads."""
    with console.status("loading the model"):
        score, form, context_length = loading.scorer(
            model,
            tokenizer=options.tokenizer,
            workers=options.workers,
            local=options.models.settings,
            prompt=options.prompt,
        )
    max_tokens = options.max_tokens
    if context_length is not None and context_length < max_tokens:
        console.print(
            f"rows are cut to the model's context length of {context_length} tokens"
        )
        max_tokens = context_length
    if model.is_remote:
        return Scorer(score, form, max_tokens, workers=options.workers)
    return Scorer(score, form, max_tokens, batch=options.models.batch)


def _merge(
    run: Run,
    options: Ppl,
    conversations: Sequence[Conversation],
    cases: Sequence[Case],
    parts: Sequence[FinishedRun],
) -> Results:
    """Write the rows of all parts, and the measures of all."""
    lines: defaultdict[Key, list[Line]] = defaultdict(list)
    for part in parts:
        for line in read_parsed(part.path("scores.jsonl"), _row, may_be_empty=True):
            lines[line["column"], conversation_of(score_row(line))].append(line)
    run.unfinish()
    scores, failed = _in_order(run, cases, lines)
    results = measure_results(figures(scores, conversations), stubs={})
    if "usage" in parts[0].results:
        concatenate(run, "rows.jsonl", parts)
        results |= merged_budget(run, parts).finish(["model"])
    written = finish(run, options, results, has_failures=failed > 0)
    options.failures.check(failed, len(conversations))
    return written


def _row(line: RowLine) -> Line:
    return _scored(line.row)


def _say_what_is_missing(conversations: Sequence[Conversation], path: Path) -> None:
    total = len(conversations)
    silent = sum(not conversation.user_turns for conversation in conversations)
    without_intent = sum(conversation.intent is None for conversation in conversations)
    if silent == total:
        raise InputError(
            f"{path}: no conversation has a user turn, so there is nothing to predict"
        )
    if silent:
        console.print(
            f"{silent:,} of {total:,} have no user turn: nothing to predict there"
        )
    if without_intent:
        console.print(
            f"{without_intent:,} of {total:,} have no intent: scored without one only"
        )


def has_unscored(folder: Path) -> bool:
    """Return whether the model failed on some conversations of a complete run."""
    lines = read_rows(folder / "scores.jsonl", may_be_empty=True)
    return any("error" in line.row for line in lines)


# --- scoring, in a journal ------------------------------------------------------------------------


def _cases(
    conversations: Iterable[Conversation], others: Mapping[str, str] | None
) -> Iterator[Case]:
    for conversation in conversations:
        yield Case(conversation, WITHOUT, None)
        yield Case(conversation, WITH, conversation.intent)
        if others is not None:
            yield Case(conversation, OTHER, others.get(conversation.id))


def _score_all(
    run: Run, cases: Sequence[Case], scorer: Scorer, budget: Budget
) -> tuple[Mapping[str, list[MeasureRow]], int]:
    """Return the rows of each column, in order, and the number of conversations on which the model
    failed; write the rows to scores.jsonl: each when it is there, and in the end all in order. What
    an earlier attempt scored is kept."""
    journal = Journal(run.path("scores.jsonl"))
    earlier = list(journal.read(_scored))
    is_new = all("error" in line for line in earlier)
    lines = _resumed(earlier, cases, scorer.form)
    unfinished = [case for case in cases if case.key not in lines]
    if budget.sides:
        _show_estimate(budget, unfinished)

    def score(batch: Batch) -> Lines:
        scored = _score_batch(batch, scorer)
        for line in chain.from_iterable(scored.values()):
            journal.add(line)
        return scored

    run.unfinish()
    try:
        with progress_bar() as progress:
            job = progress.add_task("scoring", total=len(unfinished))
            done: dict[Key, list[Line]] = {}
            for scored in parallel(score, scorer.batches(unfinished), scorer.workers):
                done |= scored
                if is_new:
                    _check_start(done)
                progress.advance(job, len(scored))
    finally:
        stop(budget)
    journal.close()
    return _in_order(run, cases, {**lines, **done})


def _show_estimate(budget: Budget, cases: Sequence[Case]) -> None:
    """Print how many requests are expected, if a conversation fits one row."""
    expected = Counter(calls=len(cases), tokens_out=len(cases))
    for case in cases:
        texts = [turn.text for turn in case.conversation.turns]
        expected["tokens_in"] += estimate_tokens([case.intent or "", *texts])
    console.print("estimate, if each conversation fits one row:")
    show_estimate(budget, {"model": expected})


def _check_start(done: Lines) -> None:
    """Raise `ModelError` if the model failed on all of the first few cases, except because of a
    cap."""
    if len(done) != GIVE_UP:
        return
    errors = [str(line.get("error", "")) for lines in done.values() for line in lines]
    if all(errors) and not errors[0].startswith(CAP):
        raise ModelError(errors[0])


def _in_order(
    run: Run, cases: Iterable[Case], lines: Lines
) -> tuple[Mapping[str, list[MeasureRow]], int]:
    """Write scores.jsonl in the order of the cases, say what failed, and return the rows of each
    column and the number of conversations on which the model failed."""
    ordered: list[Line] = []
    scores: defaultdict[str, list[MeasureRow]] = defaultdict(list)
    errors: dict[str, str] = {}
    asked: set[str] = set()
    for case in cases:
        asked.add(case.conversation.id)
        for line in lines[case.key]:
            ordered.append(line)
            scores[case.column].append(score_row(line))
            if "error" in line:
                errors[case.conversation.id] = line["error"]
    write_lines(run.path("scores.jsonl"), ordered)
    show_errors([*errors.values()], len(asked))
    return scores, len(errors)


def _scored(line: Line) -> Line:
    """Return a line of the journal, checked."""
    take(line, "column", str)
    take(line, "error", str, default=None)
    score_row(line)
    return line


def _resumed(written: Iterable[Line], cases: Iterable[Case], form: Form) -> Lines:
    """Return the lines of the cases that are not scored now: an earlier attempt scored them, or
    they cannot be scored."""
    kept: defaultdict[Key, dict[str, Line]] = defaultdict(dict)
    for line in written:
        if "error" not in line:
            key = line["column"], conversation_of(score_row(line))
            kept[key][line["key"]] = line
    lines: dict[Key, list[Line]] = {}
    for case in cases:
        log = case.conversation
        # After a crash only some lines of a case may exist; then the case is scored again.
        own_turns = len(log.user_turns) - log.first_own_turn
        expected = own_turns + (form.ends and log.ended)
        if case.why_not:
            lines[case.key] = _lines(case, unscored(log, case.why_not))
        elif len(kept[case.key]) == expected:
            lines[case.key] = list(kept[case.key].values())
    return lines


def _score_batch(batch: Batch, scorer: Scorer) -> Lines:
    """Return the lines of the cases of some conversations. If the model fails on the batch, each
    conversation is tried alone.

    Raises:
        ModelError: if the model would fail on all others too, or failed on the first few.
    """
    if len(batch) > 1:
        try:
            return scorer.score(list(chain.from_iterable(batch)))
        except ModelError as error:
            if error.permanent:
                raise
    lines: dict[Key, list[Line]] = {}
    failed = 0
    for tried, same in enumerate(batch, 1):
        try:
            lines |= scorer.score(same)
        except ModelError as error:
            failed += 1
            if error.permanent or tried == failed == GIVE_UP:
                raise
            for case in same:
                missing = _lines(case, unscored(case.conversation, error.reason))
                lines[case.key] = [{**line, "error": str(error)} for line in missing]
    return lines


def _lines(case: Case, rows: Iterable[MeasureRow]) -> list[Line]:
    return [score_line(case.column, "perplexity", row) for row in rows]

"""`detect`: how natural a simulated user's turns are, by a detector of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any

from userlm import address, inputs, loading
from userlm.address import Address
from userlm.commands.costs import (
    Limits,
    add_side,
    check_caps,
    price_option,
    show_errors,
    show_estimate,
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
from userlm.commands.score import as_log
from userlm.commands.steps import Results, finish, finished, in_order, open_run
from userlm.journal import Journal
from userlm.json_files import take, write_lines
from userlm.metrics import catalog, naturalness
from userlm.metrics.intrinsic import own_turns
from userlm.metrics.scores import score_line
from userlm.models.budget import Budget, CountedDetector, Price, billed_words
from userlm.rows import read_conversations
from userlm.runs import Run, conversations_file, measure_record
from userlm.show.terminal import console, progress_bar
from userlm.simulate import parallel
from userlm.text import has_words, stable_hash
from userlm.types import (
    Conversation,
    Detection,
    Detector,
    InputError,
    Measure,
    ModelError,
)

SIDE = "detector"
GIVE_UP = 20
"""After this many consecutive calls that failed, each after its retries, no more are made."""

Detections = dict[str, Detection]
"""By text."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A detector, and how it is asked.

    Attributes:
        batch: the number of texts in a call.
        expected: returns the usage to expect of texts; see `show_estimate`.
        basis: how that was estimated.
    """

    detector: Detector
    batch: int = 1
    expected: Callable[[Sequence[str]], Counter[str]] = Counter
    basis: str = ""


@dataclass(frozen=True, slots=True)
class Detect:
    """Ask a detector whether people wrote the user's turns, beside real people's turns.

    Its own AUROC on these logs is named with every result: people's turns against the assistant's,
    and against the simulated ones. Each different text is asked about once. No detector is in the
    box; `score --human` has a test that needs none.

    $ userlm detect runs/respond --human runs/intents --detector pangram --max-calls 2000

    $ userlm detect runs/respond --human runs/intents --detector classifier:OWNER/NAME
    --human-label human
    """

    run: Path = argument(
        ..., "Run folder of `respond` or `simulate`, or a file of conversations."
    )
    detector: str = option(
        ...,
        "pangram (or pangram:MODEL; a service, whose key is in PANGRAM_API_KEY), or "
        "classifier:MODEL (a folder or hub id).",
    )
    human: Path = option(
        ...,
        "Real conversations, for the human reference: a folder or a file.",
        recorded=False,
    )
    human_label: str | None = option(
        None, "The label of classifier:MODEL that means: written by a person."
    )
    out: Path = out_folder("runs/detect")
    limit: int | None = limit_option()
    workers: int = workers_option("calls")
    models: LocalModels = LocalModels()
    price: str | None = price_option(
        "--price", "the detector; for pangram US dollars per started block of words"
    )
    limits: Limits = Limits()
    failures: Failures = Failures()
    output: Output = Output()


def detect(options: Detect) -> Results:
    """Ask about all turns, measure, and write and show the results."""
    detector = address.parse(options.detector)
    path = conversations_file(options.run)
    logs = conversations_file(options.human, "test")
    files = [path, logs, *inputs.files(detector)]
    run = open_run("detect", options, files, inputs.stamps(detector))
    if done := finished(run, options, lambda results: results.get("failed")):
        return done
    simulated = list(islice(read_conversations(path), options.limit))
    people = [as_log(one) for one in islice(read_conversations(logs), options.limit)]
    texts = _texts(simulated, people)
    budget = Budget(options.limits.caps, run.path("usage.jsonl"))
    asking = _load(options, detector, budget)
    check_caps(budget)
    found, errors = _ask(run, asking, texts, budget, options.workers)
    results = {
        "user": _user(path),
        "detector": _name(detector, found),
        **_measure(run, simulated, people, found),
        "counts": {
            "texts": len(texts),
            "not read": in_order(Counter(one.why for one in found.values() if one.why)),
        },
        "failed": len(errors),
    }
    if budget.sides:
        results |= budget.finish([SIDE])
    show_errors([*errors.values()], len(texts), "texts")
    written = finish(run, options, results, has_failures=bool(errors))
    options.failures.check(len(errors), len(texts), what="texts")
    return written


def _texts(
    simulated: Sequence[Conversation], people: Sequence[Conversation]
) -> list[str]:
    """Return the different texts to ask about: the user's and people's turns, and the answers that
    people got. Their order is random, so that of a run that a limit ends each side is measured on a
    random sample."""
    own = (own_turns(one) for one in chain(simulated, people))
    said = [turn.text for turns in own for turn in turns]
    answers = (turn for one in people for turn in one.turns if turn.role == "assistant")
    said += [turn.text for turn in answers]
    return sorted(set(said), key=_text_id)


def _text_id(text: str) -> str:
    return f"{stable_hash(text):016x}"


def _user(path: Path) -> str:
    """Return the user of the run that a file belongs to, else the name of the file."""
    if (path.parent / "run.json").is_file():
        user = Run.read(path.parent).options.get("user")
        if isinstance(user, str):
            return user
    return path.name


# --- asking ---------------------------------------------------------------------------------------


def _load(options: Detect, parts: Address, budget: Budget) -> Asking:
    """Return the detector, counted if its calls are."""
    is_pangram = parts.kind == "pangram"
    if options.price and not is_pangram:
        raise InputError(f"--price: {parts} is a model on this machine; leave it out")
    price, block = _word_price(options.price) if options.price else (None, 1)
    if is_pangram and price is None and budget.caps.dollars is not None:
        raise InputError(
            "--budget needs the price of pangram; give --price DOLLARS/WORDS, what each started "
            "block of words costs, such as 0.05/1000"
        )
    local = options.models.settings
    with console.status("loading the detector"):
        detector = loading.detector(parts, human_label=options.human_label, local=local)
    if not is_pangram:
        return Asking(detector, options.models.batch)
    side = add_side(budget, SIDE, parts, price)

    def expected(texts: Sequence[str]) -> Counter[str]:
        words = sum(billed_words(text, block) for text in texts)
        return Counter(calls=len(texts), tokens_in=words)

    counted = CountedDetector(detector, side, block)
    basis = "a token is a word here, as it is billed"
    return Asking(counted, expected=expected, basis=basis)


def _word_price(text: str) -> tuple[Price, int]:
    """Return a price such as `0.05/1000` per word, and the words of a block."""
    with suppress(ValueError, ArithmeticError):
        dollars, block = text.split("/")
        price = Decimal(dollars) / int(block)
        if 0 <= price < 1 and int(block) > 0:
            return Price(price * 1_000_000, Decimal(0)), int(block)
    raise InputError(
        f"--price {text}: for pangram give US dollars per started block of words, such as "
        "0.05/1000"
    )


def _ask(
    run: Run, asking: Asking, texts: Sequence[str], budget: Budget, workers: int
) -> tuple[Detections, dict[str, str]]:
    """Return what the detector says of each text, and the errors of those that it did not answer.
    Answers are written as they come, and not asked for again."""
    journal = Journal(run.path("detections.jsonl"))
    known = dict(journal.read(_parse))
    found: Detections = {}
    for text in texts:
        if not has_words(text):
            found[text] = Detection(None, "no words")
        elif (id := _text_id(text)) in known:
            found[text] = known[id]
    unknown = [text for text in texts if text not in found]
    if budget.sides:
        console.print(f"{len(unknown):,} texts to ask about; estimate:")
        show_estimate(budget, {SIDE: asking.expected(unknown)}, asking.basis)

    def ask(batch: Sequence[str]) -> tuple[Sequence[str], list[Detection] | ModelError]:
        try:
            answers = asking.detector.detect(batch)
        except ModelError as error:
            return batch, error
        for text, answer in zip(batch, answers, strict=True):
            journal.add(_line(text, answer))
        return batch, answers

    starts = range(0, len(unknown), asking.batch)
    batches = (unknown[start : start + asking.batch] for start in starts)
    errors: dict[str, str] = {}
    failed_in_a_row = 0
    run.unfinish()
    try:
        with progress_bar() as progress:
            job = progress.add_task("detecting", total=len(unknown))
            for batch, answers in parallel(ask, batches, workers):
                progress.advance(job, len(batch))
                if isinstance(answers, ModelError):
                    errors |= dict.fromkeys(batch, str(answers))
                    failed_in_a_row += 1
                    if answers.permanent or failed_in_a_row == GIVE_UP:
                        budget.stop(str(answers))
                else:
                    found |= zip(batch, answers, strict=True)
                    failed_in_a_row = 0
    finally:
        stop(budget)
    journal.close(order=lambda row: row["text"])
    for text, error in errors.items():
        found[text] = Detection(None, error)
    return found, errors


def _line(text: str, found: Detection) -> dict[str, Any]:
    return {
        "text": _text_id(text),
        "p_human": found.p_human,
        "why": found.why,
        "version": found.version,
    }


def _parse(row: Mapping[str, Any]) -> tuple[str, Detection]:
    p_human = take(row, "p_human", float, default=None)
    why, version = take(row, "why", str), take(row, "version", str)
    return take(row, "text", str), Detection(p_human, why, version)


# --- measuring ------------------------------------------------------------------------------------


def _name(parts: Address, found: Detections) -> Results:
    """Return the name of the detector, and its versions with how often each answered."""
    versions = in_order(Counter(one.version for one in found.values() if one.version))
    if len(versions) > 1:
        console.print(
            f"{parts} answered in several versions: {', '.join(versions)}; --force asks about all "
            "texts again",
            style="yellow",
        )
    return {"name": str(parts), "versions": versions}


def _measure(
    run: Run,
    simulated: Sequence[Conversation],
    people: Sequence[Conversation],
    found: Detections,
) -> Results:
    """Return the measures of the user, of people and of the assistant in their logs, and those of
    the detector beside length alone; write the rows."""
    score = naturalness.by_detector(found)
    columns = {
        "user": naturalness.naturalness(simulated, score),
        "human": naturalness.naturalness(people, score),
        "assistant": [naturalness.assistant_naturalness(people, score)],
    }
    write_lines(run.path("scores.jsonl"), _score_lines(columns))
    assistants = {one.name: one for one in columns["assistant"]}
    compared = []
    for user, human in zip(columns["user"], columns["human"], strict=True):
        metric = catalog.metric_of(user.name)
        distance = metric.distance(user, human)._asdict()
        assistant = assistants.get(user.name)
        compared.append(
            {
                "user": measure_record(metric.described(user)) | {"distance": distance},
                "human": measure_record(metric.described(human)),
                "assistant": assistant and measure_record(metric.described(assistant)),
            }
        )
    aurocs = []
    for by in (score, naturalness.by_length):
        aurocs.append(
            (
                naturalness.auroc_from_assistants(people, by),
                naturalness.auroc_from_simulated(people, simulated, by),
            )
        )
    pairs = zip(*aurocs, strict=True)
    return {
        "measures": compared,
        "auroc": [
            {"detector": measure_record(detector), "length": measure_record(length)}
            for detector, length in pairs
        ],
    }


def _score_lines(columns: Mapping[str, Sequence[Measure]]) -> Iterator[dict[str, Any]]:
    for column, measures in columns.items():
        for one in measures:
            for row in one.rows:
                yield score_line(column, one.name, row)

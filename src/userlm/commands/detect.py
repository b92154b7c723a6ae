"""`detect`: how natural a simulated user's turns are, by a detector of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from warnings import warn

from userlm import address, inputs, judges, loading
from userlm.address import Address
from userlm.commands.costs import (
    PER_BYTES,
    Limits,
    add_side,
    check_caps,
    check_price,
    estimate_tokens,
    price_option,
    read_price,
    show_errors,
    show_estimate,
    stop,
)
from userlm.commands.judge import made_by, same_model
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
from userlm.commands.steps import (
    Results,
    conversations_in,
    finish,
    finished,
    in_order,
    open_run,
)
from userlm.detectors import CountedDetector, JudgeDetector, billed_words
from userlm.journal import Journal
from userlm.json_files import take, write_lines
from userlm.manifest import file_hash
from userlm.metrics import catalog, naturalness
from userlm.metrics.intrinsic import own_turns
from userlm.metrics.scores import score_line
from userlm.models.budget import Budget, Caps, CountedChat, Price
from userlm.models.call_cache import UNUSABLE
from userlm.rows import read_conversations
from userlm.runs import Run, lasting_name, measure_record
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
    ModelWarning,
)

if TYPE_CHECKING:
    from userlm.models.pangram import Pangram

SIDE = "detector"
GIVE_UP = 20
"""After this many consecutive calls that failed, each after its retries, no more are made."""

Detections = dict[str, Detection]
"""By text."""


def detector_price_option() -> Any:
    """Return the field of the price of a detector."""
    return price_option(
        "--detector-price",
        "judge:MODEL (of pangram: US dollars per started block of words)",
    )


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
        "pangram (or pangram:MODEL; a service, whose key is in PANGRAM_API_KEY), "
        "classifier:MODEL (a folder or hub id), or judge:MODEL (any chat model).",
    )
    human: Path = option(
        ...,
        "Real conversations, for the human reference: a file, or a folder with test.jsonl.",
        recorded=False,
    )
    human_label: str | None = option(
        None, "The label of classifier:MODEL that means: written by a person."
    )
    max_tokens: int = option(
        judges.MAX_TOKENS,
        "Maximum length of an answer of judge:MODEL in tokens; reasoning models need more.",
        min=1,
        max=2**24,
    )
    out: Path = out_folder("runs/detect")
    limit: int | None = limit_option()
    workers: int = workers_option("calls")
    models: LocalModels = LocalModels()
    detector_price: str | None = detector_price_option()
    limits: Limits = Limits()
    failures: Failures = Failures()
    output: Output = Output()


def detect(options: Detect) -> Results:
    """Ask about all turns, measure, and write and show the results."""
    detector = address.parse(options.detector)
    path = conversations_in(options.run)
    user = made_by(path)
    logs = conversations_in(options.human)
    # Answers are kept by text. So turns may change, as when `respond` tries again what failed.
    read = {"run": file_hash(path), "human": file_hash(logs)}
    names = {"run": lasting_name(path), "human": lasting_name(logs)}
    stamps = inputs.stamps(detector) | names
    files = inputs.files(detector)
    run = open_run("detect", options, files, stamps, reads=[path, logs])

    def is_to_do(results: Results) -> bool:
        return bool(results.get("failed") or results.get("read") != read)

    if done := finished(run, options, is_to_do):
        _check_read(done)
        return done
    warning = same_model(detector, user) if detector.kind == "judge" else ""
    if warning:
        warn(warning, ModelWarning, stacklevel=2)
    simulated = list(islice(read_conversations(path), options.limit))
    people = [as_log(one) for one in islice(read_conversations(logs), options.limit)]
    texts = _texts(simulated, people)
    budget = Budget(options.limits.caps, run.path("usage.jsonl"))
    asked = _load(options, detector, budget)
    check_caps(budget.caps, bool(budget.sides))
    found, errors = _ask(run, options, asked, budget, texts)
    results = {
        "read": read,
        "user": user or path.name,
        "detector": _name(detector, found),
        "warning": warning,
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
    _check_read(written)
    return written


def _check_read(results: Results) -> None:
    """Raise `ModelError` if the detector could read no text at all."""
    texts, unread = results["counts"]["texts"], results["counts"]["not read"]
    if texts and sum(unread.values()) == texts:
        raise ModelError(
            f"no text of {texts:,} was read: {', '.join(unread)}; --force asks about all again"
        )


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


# --- asking ---------------------------------------------------------------------------------------


def _load(options: Detect, parts: Address, budget: Budget) -> Detector:
    """Return the detector; one whose calls may be billed is counted."""
    price, block = read_detector_price(options.detector_price, parts, budget.caps)
    with console.status("loading the detector"):
        detector = loading.detector(
            parts,
            human_label=options.human_label,
            max_tokens=options.max_tokens,
            local=options.models.settings,
        )
    if parts.kind == "classifier":
        return detector
    side = add_side(budget, SIDE, parts, price)
    if isinstance(detector, JudgeDetector):
        judge = detector.judge
        return JudgeDetector(replace(judge, chat=CountedChat(judge.chat, side)))
    return CountedDetector(cast("Pangram", detector), side, block)


def read_detector_price(
    text: str | None, parts: Address, caps: Caps
) -> tuple[Price | None, int]:
    """Return the price of a token, and the block of words that are billed together, for a detector
    whose tokens are words.

    Raises:
        InputError: for a price of a model on this machine, and a budget in dollars without the
            price of a service.
    """
    if parts.kind == "judge":
        price = read_price(SIDE, text)
        check_price(caps, SIDE, parts, price)
        return price, 1
    if text and parts.kind == "classifier":
        raise InputError(
            f"--detector-price {text}: {parts} runs on this machine; leave it out"
        )
    if text:
        return _word_price(text)
    if caps.dollars is not None and parts.is_remote:
        raise InputError(
            f"--budget needs the price of {parts}; give --detector-price DOLLARS/WORDS, what each "
            "started block of words costs, such as 0.05/1000"
        )
    return None, 1


def _word_price(text: str) -> tuple[Price, int]:
    """Return a price such as `0.05/1000` for each word, and the words of a block."""
    with suppress(ValueError, ArithmeticError):
        dollars, block = text.split("/")
        price = Decimal(dollars) / int(block)
        if 0 <= price < 1 and int(block) > 0:
            return Price(price * 1_000_000, Decimal(0)), int(block)
    raise InputError(
        f"--detector-price {text}: for pangram give US dollars per started block of words, such as "
        "0.05/1000"
    )


def _show_estimate(detector: Detector, budget: Budget, texts: Sequence[str]) -> None:
    """Print, before the first call, how many are expected and what they may cost."""
    expected = Counter(calls=len(texts))
    match detector:
        case CountedDetector():
            basis = "a token is a word here, as it is billed"
            for text in texts:
                expected["tokens_in"] += billed_words(text, detector.block)
        case JudgeDetector():
            basis = PER_BYTES
            expected["tokens_out"] = len(texts) * detector.judge.max_tokens
            for text in texts:
                contents = [each["content"] for each in detector.request(text)]
                expected["tokens_in"] += estimate_tokens(contents)
        case _:
            return
    console.print(f"{len(texts):,} texts to ask about; estimate, with one call each:")
    show_estimate(budget, {SIDE: expected}, basis)


def _known(journal: Journal, texts: Sequence[str]) -> tuple[Detections, dict[str, str]]:
    """Return what is known of the texts without asking, and for others the ids of the tasks that
    the service made of them."""
    known = dict(journal.read(_parse))
    found: Detections = {}
    tasks: dict[str, str] = {}
    for text in texts:
        said = known.get(_text_id(text))
        if not has_words(text):
            found[text] = Detection(None, "no words")
        elif isinstance(said, Detection):
            found[text] = said
        elif said:
            tasks[text] = said
    return found, tasks


def _ask(
    run: Run, options: Detect, detector: Detector, budget: Budget, texts: Sequence[str]
) -> tuple[Detections, dict[str, str]]:
    """Return what the detector says of each text, and the errors of those that it did not answer.
    Answers are written as they come, and not asked for again."""
    journal = Journal(run.path("detections.jsonl"))
    found, tasks = _known(journal, texts)
    unsent = [text for text in texts if text not in found and text not in tasks]
    unknown = [*tasks, *unsent]
    has_read = any(one.p_human is not None for one in found.values())
    refused_in_a_row = 0
    _show_estimate(detector, budget, unsent)
    if isinstance(detector, CountedDetector):
        detector.detector.resume(
            tasks,
            lambda text, task: journal.add({"text": _text_id(text), "task": task}),
        )

    def ask(batch: Sequence[str]) -> tuple[Sequence[str], list[Detection] | ModelError]:
        try:
            answers = detector.detect(batch)
        except ModelError as error:
            # Once others were read, a request that is refused is about its text; but not if all
            # are refused from then on, such as for want of credits.
            nonlocal refused_in_a_row
            refused_in_a_row += 1
            is_of_text = error.reason == "bad request" and not error.permanent
            if not (is_of_text and has_read) or refused_in_a_row > GIVE_UP:
                return batch, error
            return batch, [Detection(None, str(error))] * len(batch)
        refused_in_a_row = 0
        for text, answer in zip(batch, answers, strict=True):
            journal.add(_line(text, answer))
        return batch, answers

    # A text that a call fails on takes no others with it, if calls may be billed.
    size = 1 if budget.sides else options.models.batch
    starts = range(0, len(unknown), size)
    batches = (unknown[start : start + size] for start in starts)
    errors: dict[str, str] = {}
    failed_in_a_row = 0
    run.unfinish()
    try:
        with progress_bar() as progress:
            job = progress.add_task("detecting", total=len(unknown))
            for batch, answers in parallel(ask, batches, options.workers):
                progress.advance(job, len(batch))
                if isinstance(answers, ModelError):
                    errors |= dict.fromkeys(batch, str(answers))
                    if batch[0] in tasks:
                        continue  # to ask for its result again costs nothing
                    failed_in_a_row += 1
                    if answers.permanent or failed_in_a_row == GIVE_UP:
                        budget.stop(str(answers))
                    continue
                found |= zip(batch, answers, strict=True)
                failed_in_a_row = 0
                has_read |= any(one.p_human is not None for one in answers)
                if not has_read and len(found) - len(texts) + len(unknown) >= UNUSABLE:
                    budget.stop(f"none of the first {UNUSABLE} texts was read")
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


def _parse(row: Mapping[str, Any]) -> tuple[str, Detection | str]:
    """Return the id of a text, and what is known of it: a result, else the id of its task."""
    id = take(row, "text", str)
    if "task" in row:
        return id, take(row, "task", str)
    p_human = take(row, "p_human", float, default=None)
    why, version = take(row, "why", str), take(row, "version", str)
    return id, Detection(p_human, why, version)


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

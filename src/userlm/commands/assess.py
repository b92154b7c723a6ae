"""`userlm assess`: how far a simulated user is from people. It runs other verbs, each in its own
folder in that of the run; what is finished is not repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from userlm import address, assets, inputs, loading
from userlm.address import Address
from userlm.assistants import ModelAssistant
from userlm.commands.assess_measures import (
    ends_of,
    measures_of,
    perplexity_of,
    rated,
    score_answers,
)
from userlm.commands.assess_stages import (
    ANSWERED,
    DETECT,
    REFERENCE,
    STAGES,
    Stage,
    has_answers,
    has_failures,
    is_complete,
    is_counted,
    run_stages,
    stages_of,
)
from userlm.commands.costs import (
    JUDGE_PRICE,
    Limits,
    check_caps,
    check_judge,
    check_price,
    estimate_tokens,
    price_option,
    read_price,
)
from userlm.commands.detect import detector_price_option, read_detector_price
from userlm.commands.options import (
    Failures,
    LocalModels,
    Output,
    Parts,
    User,
    limit_option,
    max_answer_tokens_option,
    option,
    out_folder,
    rated_user,
    recorded,
    seed_option,
    workers_option,
)
from userlm.commands.parts import in_parts
from userlm.commands.report import Report, report
from userlm.commands.steps import (
    Results,
    conversations_in,
    finish,
    finished,
    in_order,
    open_run,
    unshown,
)
from userlm.items import Kind
from userlm.json_files import read_json
from userlm.manifest import file_hash
from userlm.metrics.verdict import conclude
from userlm.rows import read_conversations, write_conversations
from userlm.runs import ITEMS, FinishedRun, Run, conversations_file
from userlm.show.terminal import console
from userlm.types import Conversation, InputError, ModelError

QUICK = 60
QUICK_TOKENS = 384
"""How many conversations `--quick` takes, and how many tokens each may have, by
`estimate_tokens`: a user's own tokenizer would give each user other conversations."""
QUICK_ITEMS = 20
MOST_ITEMS = 2000
"""How many test items of a kind are taken: with `--quick`, and without it, as in the paper."""


@dataclass(frozen=True, slots=True)
class Assess:
    """Measure how far a simulated user is from people: its turns after theirs, whole conversations
    if there is an assistant, and perplexity if it is a model that can be scored; and whether it
    stays a user, with its own intent.

    The conversations need intents (`userlm intents`). The limits hold for all calls together.

    $ userlm assess --user trained:runs/train --reference runs/intents --quick

    $ userlm assess --user prompted:openai:gpt-4o-mini --reference runs/intents
    --assistant openai:gpt-4o-mini --user-price 0.15/0.60 --price 0.15/0.60 --budget 5
    """

    user: User
    reference: Path = option(
        ...,
        "Real conversations with intents: a file, or a folder with test.jsonl.",
        recorded=False,
    )
    assistant: str | None = option(
        None,
        "A chat model (folder, hub id, openai:NAME, URL#NAME), clarifier, replay:FILE, ...: for "
        "whole conversations. Default: none, only single turns.",
    )
    out: Path = out_folder("runs/assess")
    quick: bool = option(
        False,
        f"Only {QUICK} conversations, drawn from those of at most {QUICK_TOKENS} tokens; short "
        f"simulated ones; only {QUICK_ITEMS} test items of each kind.",
        flag="--quick",
    )
    trained_on: Path | None = option(
        None, "The logs that the user was trained on, to find what it repeats of them."
    )
    role_items: Path | None = option(
        None,
        "Test items of user-role adherence (`userlm import --source role-items`). Default: the 60 "
        "of the package.",
    )
    intent_items: Path | None = option(
        None, "The same of intent adherence (`--source intent-items`)."
    )
    judge: str | None = option(
        None,
        "A chat model that judges the replies to test items, beside the rules (`userlm judge`). "
        "Default: none.",
    )
    detector: str | None = option(
        None,
        "How natural the turns are: pangram, classifier:MODEL or judge:MODEL. Default: none.",
    )
    human_label: str | None = option(
        None, "The label of classifier:MODEL that means: written by a person."
    )
    ratings: Path | None = option(
        None,
        "Ratings of people in the blind test of `userlm serve`: its ratings.jsonl. Those of a "
        "complete run may be added.",
        recorded=False,
    )
    max_turns: int = option(
        10, "Maximum number of user turns in whole conversations.", min=1
    )
    max_answer_tokens: int = max_answer_tokens_option()
    limit: int | None = limit_option()
    seed: int = seed_option()
    workers: int = workers_option()
    models: LocalModels = LocalModels()
    user_price: str | None = price_option("--user-price", "the user's model")
    price: str | None = price_option("--price", "the assistant's model")
    judge_price: str | None = price_option(JUDGE_PRICE, "the judge")
    detector_price: str | None = detector_price_option()
    limits: Limits = Limits()
    several: Parts = Parts()
    failures: Failures = Failures()
    output: Output = Output()


@in_parts
def assess(options: Assess, parts: Sequence[FinishedRun] = ()) -> Results:
    """Run the stages, compare user and people, and write a page; raise `ModelError` if a stage
    failed. The same command goes on with it.

    A part ends before anything is compared, judged or detected: merging does that.
    """
    user = options.user.parsed
    assistant = address.parse(options.assistant) if options.assistant else None
    path = conversations_in(options.reference)
    files = [path, *options.user.files]
    if options.trained_on:
        files.append(conversations_file(options.trained_on, "train"))
    item_files = _item_files(options)
    files += item_files.values()
    stamped = [user]
    if assistant:
        files += inputs.files(assistant)
        stamped.append(assistant)
    if options.judge:
        judging = address.parse(options.judge)
        files += inputs.files(judging)
        stamped.append(judging)
    if options.detector:
        detector = address.parse(options.detector)
        files += inputs.files(detector)
        stamped.append(detector)
    notes = {ITEMS: {kind: file_hash(path) for kind, path in item_files.items()}}
    stamps = inputs.stamps(*stamped)
    run = open_run("assess", options, files, stamps, parts=parts, notes=notes)
    ratings = rated(options.ratings, rated_user(run.manifest))

    def is_unfinished(results: Results) -> bool:
        same = ratings in (None, results.get("ratings"))
        return _is_unfinished(results) or not same

    is_part = options.several.part is not None
    with unshown(is_part):
        results = finished(run, options, is_unfinished)
    if results is None:
        if not parts:
            _check_before_paying(options, user, assistant)
        run.unfinish()
        counts = _write_reference(run, options, path)
        items = {}
        for kind, file in item_files.items():
            items[kind] = _write_items(run, options, kind, file)
        stages = stages_of(run, options, user, assistant)
        counted = {"counts": counts, "items": items, "ratings": ratings}
        results = _measure(run, options, stages, counted, parts)
    if is_part:
        console.print(
            f"{run.folder} is part {options.several.part}; `userlm merge` compares"
        )
    else:
        ran = [name for name in STAGES if is_complete(run, name)]
        report(Report([run.folder, *map(run.path, ran)], run.folder))
    for name, why in results["failed"].items():
        raise ModelError(f"{name}: {why}")
    return results


def _is_unfinished(results: Results) -> bool:
    """Whether the same command has something to try again."""
    return bool(results.get("failed") or results.get("incomplete"))


# --- before the first call ------------------------------------------------------------------------


def _check_before_paying(
    options: Assess, user: Address, assistant: Address | None
) -> None:
    """Raise `InputError` for what would only be found once turns were paid for."""
    caps = options.limits.caps
    if assistant:
        speaker = loading.assistant(
            assistant, seed=options.seed, local=options.models.settings
        )
        if isinstance(speaker, ModelAssistant):
            price = read_price("assistant", options.price)
            check_price(caps, "assistant", assistant, price)
    elif options.price:
        raise InputError("--price is for the assistant; give one, or leave it out")
    check_judge(caps, options.judge, options.judge_price, options.models.settings)
    if options.detector:
        detector = address.parse(options.detector)
        read_detector_price(options.detector_price, detector, caps)
        loading.detector(
            detector,
            human_label=options.human_label,
            local=options.models.settings,
        )
    elif options.detector_price or options.human_label:
        raise InputError(
            "--detector-price and --human-label are for a detector; give one with --detector, or "
            "leave them out"
        )
    is_called = user.is_model or (assistant is not None and assistant.is_model)
    is_called = is_called or bool(options.judge) or is_counted(options.detector)
    check_caps(caps, is_called)


def _write_reference(run: Run, options: Assess, path: Path) -> dict[str, int]:
    """Write the conversations of people that everything is measured on; return how many there are,
    and how many were left out by reason.

    Raises:
        InputError: if there is none with an intent.
    """
    counts: Counter[str] = Counter()

    def fitting() -> Iterator[Conversation]:
        for conversation in read_conversations(path):
            counts["in"] += 1
            tokens = estimate_tokens(turn.text for turn in conversation.turns)
            if conversation.intent is None:
                counts["dropped: no intent"] += 1
            elif options.quick and tokens > QUICK_TOKENS:
                counts[f"dropped: more than {QUICK_TOKENS} tokens"] += 1
            else:
                yield conversation

    kept = list(islice(fitting(), options.limit))
    if not kept:
        advice = "run `userlm intents` first, and give its folder"
        if counts["in"] > counts["dropped: no intent"]:
            advice = "leave --quick out"
        reasons = ", ".join(f"{name}: {count:,}" for name, count in counts.items())
        raise InputError(f"{path}: no conversation can be used ({reasons}); {advice}")
    if options.quick and len(kept) > QUICK:
        counts[f"dropped: not drawn by --quick, which takes {QUICK}"] = (
            len(kept) - QUICK
        )
        drawn = Random(options.seed).sample(range(len(kept)), QUICK)
        kept = [kept[place] for place in sorted(drawn)]
    write_conversations(run.path(REFERENCE), kept)
    return in_order({**counts, "out": len(kept)})


def _item_files(options: Assess) -> dict[Kind, Path]:
    """Return the files of test items."""
    given: dict[Kind, Path | None] = {
        "role": options.role_items,
        "intent": options.intent_items,
    }
    embedded = {"role": assets.role_items(), "intent": assets.intent_items()}
    return {
        kind: conversations_file(path) if path else embedded[kind]
        for kind, path in given.items()
    }


def _write_items(run: Run, options: Assess, kind: Kind, path: Path) -> dict[str, int]:
    """Write the test items of a kind that the user is asked, drawn by the seed if there are more;
    return how many there are, and how many are asked.

    Raises:
        InputError: if a row is no item of this kind.
    """
    found = list(read_conversations(path, kind=kind))
    most = QUICK_ITEMS if options.quick else MOST_ITEMS
    drawn = Random(options.seed).sample(range(len(found)), min(most, len(found)))
    kept = [found[place] for place in sorted(drawn)]
    write_conversations(run.path(f"{kind}.jsonl"), kept)
    return {"in": len(found), "out": len(kept)}


def _measure(
    run: Run,
    options: Assess,
    stages: Mapping[str, Stage],
    counted: Results,
    parts: Sequence[FinishedRun],
) -> Results:
    """Run the stages, score them, and write and show the results, with what was counted before.
    A part is not scored."""
    with unshown():
        left_out, failed = run_stages(run, options, stages, parts)
        if options.several.part:
            ran = {"left_out": left_out, "failed": failed}
            tried = [name for name in stages if name not in failed]
            incomplete = [name for name in tried if has_failures(run, name)]
            results = {**counted, **ran, "incomplete": incomplete}
            return run.finish(results, _is_unfinished(results))
        talked = [name for name in ANSWERED if has_answers(run, name)]
        scores = score_answers(run, talked, options.trained_on) if talked else {}
    tried = [name for name in stages if name not in failed]
    detected = None
    if DETECT in stages and is_complete(run, DETECT):
        detected = read_json(run.path(f"{DETECT}/results.json"))
    results = {
        **counted,
        "measures": measures_of(
            run, scores, detected, counted["ratings"], options.detector is not None
        ),
        "naturalness": detected,
        "perplexity": perplexity_of(run),
        "ends": ends_of(scores),
        "left_out": left_out,
        "failed": failed,
        "incomplete": [name for name in tried if has_failures(run, name)],
    }
    results["verdict"] = conclude(results, recorded(options)).record()
    return finish(run, options, results, _is_unfinished(results))

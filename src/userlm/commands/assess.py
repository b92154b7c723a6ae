"""`userlm assess`: how far a simulated user is from people. It runs other verbs, each in its own
folder in that of the run; what is finished is not repeated."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from userlm import address, assets, inputs, loading
from userlm.address import ASSISTANTS, SCORED, Address
from userlm.assistants import ModelAssistant
from userlm.commands.conversing import has_errors
from userlm.commands.costs import (
    Limits,
    check_price,
    estimate_tokens,
    price_option,
    read_price,
)
from userlm.commands.detect import (
    SIDE,
    Detect,
    detect,
    detector_price_option,
    read_detector_price,
)
from userlm.commands.judge import Judge, judge, positive_share
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
from userlm.commands.ppl import Ppl, has_unscored, ppl
from userlm.commands.report import Report, report
from userlm.commands.respond import Respond, respond
from userlm.commands.score import ENDINGS, HUMAN, Score, score
from userlm.commands.simulate import Simulate, simulate
from userlm.commands.steps import (
    Results,
    finish,
    finished,
    in_order,
    open_run,
    unshown,
)
from userlm.items import KINDS, Kind
from userlm.json_files import read_json
from userlm.manifest import file_hash
from userlm.metrics import adherence, catalog, naturalness
from userlm.metrics import ratings as blind_test
from userlm.metrics.end_references import ALWAYS
from userlm.metrics.ratings import RatedUser
from userlm.metrics.verdict import conclude
from userlm.models.budget import Amount, Caps, Price, spent
from userlm.rows import read_conversations, write_conversations
from userlm.runs import FinishedRun, Run, conversations_file, measure_record
from userlm.show.terminal import console, part_of_run
from userlm.types import Conversation, InputError, Measure, ModelError

QUICK = 60
QUICK_TOKENS = 384
"""How many conversations `--quick` takes, and how many tokens each may have, by
`estimate_tokens`: a user's own tokenizer would give each user other conversations."""
QUICK_TURNS = 5
QUICK_ANSWER = 64
"""The limits of a simulated conversation then, so that it is about as long: user turns, and tokens
of an answer."""

QUICK_ITEMS = 20
MOST_ITEMS = 2000
"""How many test items of a kind are taken: with `--quick`, and without it, as in the paper."""

RESPOND, SIMULATE, PPL, SCORE = "respond", "simulate", "ppl", "score"
DETECT = "detect"
"""The verbs, and the names of their folders."""
JUDGED: Mapping[Kind, str] = {kind: f"judge-{kind}" for kind in KINDS}
"""The folders of the verdicts on replies to test items."""
JUDGE_PRICE = "--judge-price"
PROMPTS: Mapping[Kind, str] = {"role": "user-role", "intent": "intent-adherence"}
"""By which prompts they are judged."""
STAGES = (RESPOND, SIMULATE, PPL, *KINDS, *JUDGED.values(), DETECT, SCORE)
"""`respond` also asks about the test items, in a folder for each kind of them."""
ANSWERED = (RESPOND, SIMULATE, *KINDS)
"""The stages whose conversations are scored."""
DIVIDED = (*ANSWERED, PPL)
"""The stages of a part. The others are about all conversations, so they run when parts are
merged."""
REFERENCE = "reference.jsonl"
RATINGS = "ratings"
ROBUSTNESS = "robustness"
"""The keys of the ratings of people and of the mean of both tests, beside the stages."""
NO_ASSISTANT = "no --assistant was given"
REPLAYED = "a user of the kind replay: its people were not asked these questions"
NO_DETECTOR = "no --detector was given; the two-sample AUROC needs none"
PERPLEXITY = ("perplexity", "perplexity ratio")
"""The measures of `ppl` that are shown; the others are in its folder."""


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


@dataclass(frozen=True, slots=True)
class Stage:
    """A verb that may call models.

    Attributes:
        run: runs it with these limits, or merges these parts of it.
        prices: the prices of its sides, by their names in its journal; empty if it calls no model
            whose calls are counted.
    """

    run: Callable[[Limits, Sequence[FinishedRun]], Results]
    prices: Mapping[str, Price | None]


@in_parts
def assess(options: Assess, parts: Sequence[FinishedRun] = ()) -> Results:
    """Run the stages, compare user and people, and write a page; raise `ModelError` if a stage
    failed. The same command goes on with it.

    A part ends before anything is compared, judged or detected: merging does that.
    """
    user = options.user.parsed
    assistant = address.parse(options.assistant) if options.assistant else None
    path = conversations_file(options.reference, "test")
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
    run = open_run("assess", options, files, inputs.stamps(*stamped), parts=parts)
    rated = {"ratings": _rated(options.ratings, rated_user(run.manifest))}

    def is_unfinished(results: Results) -> bool:
        same = rated["ratings"] in (None, results.get("ratings"))
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
        stages = _stages(run, options, user, assistant)
        counted = {"counts": counts, "items": items, **rated}
        results = _measure(run, options, stages, counted, parts)
    if is_part:
        console.print(
            f"{run.folder} is part {options.several.part}; `userlm merge` compares"
        )
    else:
        ran = [name for name in STAGES if _is_complete(run, name)]
        report(Report([run.folder, *map(run.path, ran)], run.folder))
    for name, why in results["failed"].items():
        raise ModelError(f"{name}: {why}")
    return results


def _rated(path: Path | None, user: RatedUser) -> Results | None:
    """Return the measure of the ratings of this user by people, by how many of them, how many
    ratings of others were left out, and the hash of the file; `None` if there is none.

    Raises:
        InputError: if all are of others.
    """
    if path is None:
        return None
    ratings = blind_test.read_ratings(path)
    own = [each for each in ratings if user.may_be(each.of)]
    left_out = len(ratings) - len(own)
    if left_out:
        names = {each.user for each in ratings if each not in own}
        of = " and ".join(sorted(name for name in names if name != user.name))
        if not of:
            of = f"{user.name} as it was with other files"
        whose = f"of {path} are not of {user.name}, but of {of}"
        if not own:
            raise InputError(
                f"--ratings: all {left_out} {whose}; give those of a blind test of this user"
            )
        console.print(
            f"{left_out} of {len(ratings)} ratings {whose}; they are left out",
            style="yellow",
        )
    nameless = sum(not each.user for each in own)
    if nameless:
        console.print(
            f"{nameless} of {len(ratings)} ratings of {path} do not say whose turns were rated (an "
            f"older version wrote them, or --blind was no run); they count as those of "
            f"{user.name}: take those of other users out of the file",
            style="yellow",
        )
    metric = catalog.metric_of(blind_test.NAME)
    measured = metric.described(blind_test.taken_for_person(own))
    return {
        "measure": measure_record(measured),
        "raters": len({rating.rater for rating in own}),
        "left_out": left_out,
        "file": file_hash(path),
    }


def _is_unfinished(results: Results) -> bool:
    """Whether the same command has something to try again."""
    return bool(results.get("failed") or results.get("incomplete"))


# --- before the first call ------------------------------------------------------------------------


def _check_before_paying(
    options: Assess, user: Address, assistant: Address | None
) -> None:
    """Raise `InputError` for what would only be found once turns were paid for."""
    limits = options.limits
    if assistant:
        speaker = loading.assistant(
            assistant, seed=options.seed, local=options.models.settings
        )
        if isinstance(speaker, ModelAssistant):
            price = read_price("assistant", options.price)
            check_price(limits.caps, "assistant", assistant, price)
    elif options.price:
        raise InputError("--price is for the assistant; give one, or leave it out")
    if options.judge:
        judging = address.parse(options.judge)
        loading.chat_model(judging, options.models.settings)
        check_price(limits.caps, "judge", judging, _judge_price(options), JUDGE_PRICE)
    elif options.judge_price:
        raise InputError(
            "--judge-price is for the judge; give one with --judge, or leave it out"
        )
    if options.detector:
        detector = address.parse(options.detector)
        read_detector_price(options.detector_price, detector, limits.caps)
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
    is_called = _is_model(user) or _is_model(assistant)
    is_called = is_called or bool(options.judge) or _is_counted(options.detector)
    if limits.caps != Caps() and not is_called:
        raise InputError(
            "--max-calls, --max-tokens-total and --budget are for models; none is called here"
        )


def _is_model(address: Address | None) -> bool:
    """Whether it is a user or an assistant whose calls are counted."""
    if address is None:
        return False
    return bool(address.form) or address.kind not in ASSISTANTS


def _judge_price(options: Assess) -> Price | None:
    text = options.judge_price
    return Price.parse(text, JUDGE_PRICE) if text else None


def _is_counted(detector: str | None) -> bool:
    """Whether it is a detector whose calls are counted."""
    return bool(detector) and address.parse(str(detector)).kind != "classifier"


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


# --- the stages -----------------------------------------------------------------------------------


def _stages(
    run: Run, options: Assess, user: Address, assistant: Address | None
) -> dict[str, Stage]:
    """Return the stages by the names of their folders."""
    user_price = read_price("user", options.user_price)
    own = {"user": user_price} if _is_model(user) else {}
    replies = partial(_respond, run, options)
    stages = {RESPOND: Stage(partial(replies, REFERENCE, RESPOND), own)}
    if assistant:
        both = dict(own)
        if _is_model(assistant):
            both["assistant"] = read_price("assistant", options.price)
        stages[SIMULATE] = Stage(partial(_simulate, run, options), both)
    if user.form in SCORED:
        model = {"model": user_price} if user.is_remote else {}
        stages[PPL] = Stage(partial(_ppl, run, options), model)
    if user.kind != "replay":
        for kind in KINDS:
            stages[kind] = Stage(partial(replies, f"{kind}.jsonl", kind), own)
        if options.judge:
            judging = {"judge": _judge_price(options)}
            for kind, name in JUDGED.items():
                stages[name] = Stage(partial(_judge, run, options, kind), judging)
    if options.detector:
        stages[DETECT] = Stage(partial(_detect, run, options), _detector_price(options))
    if options.several.part:
        return {name: each for name, each in stages.items() if name in DIVIDED}
    return stages


def _detector_price(options: Assess) -> dict[str, Price | None]:
    """Return the price of the detector, if its calls are counted."""
    if not _is_counted(options.detector):
        return {}
    parts = address.parse(str(options.detector))
    price, _ = read_detector_price(options.detector_price, parts, options.limits.caps)
    return {SIDE: price}


def _detect(
    run: Run, options: Assess, limits: Limits, parts: Sequence[FinishedRun]
) -> Results:
    if not _has_answers(run, RESPOND):
        raise ModelError("there are no responses")
    return detect(
        Detect(
            run.path(RESPOND),
            str(options.detector),
            run.path(REFERENCE),
            human_label=options.human_label,
            out=run.path(DETECT),
            workers=options.workers,
            models=options.models,
            detector_price=options.detector_price,
            limits=limits,
            failures=options.failures,
        )
    )


def _respond(
    run: Run,
    options: Assess,
    data: str,
    out: str,
    limits: Limits,
    parts: Sequence[FinishedRun],
) -> Results:
    return respond(
        Respond(
            options.user,
            run.path(data),
            run.path(out),
            seed=options.seed,
            workers=options.workers,
            models=options.models,
            user_price=options.user_price,
            limits=limits,
            several=_share(options),
            failures=options.failures,
        ),
        parts,
    )


def _simulate(
    run: Run, options: Assess, limits: Limits, parts: Sequence[FinishedRun]
) -> Results:
    turns = options.max_turns
    tokens = options.max_answer_tokens
    if options.quick:
        turns = min(turns, QUICK_TURNS)
        tokens = min(tokens, QUICK_ANSWER)
    return simulate(
        Simulate(
            options.user,
            str(options.assistant),
            run.path(REFERENCE),
            out=run.path(SIMULATE),
            max_turns=turns,
            max_answer_tokens=tokens,
            seed=options.seed,
            workers=options.workers,
            models=options.models,
            user_price=options.user_price,
            price=options.price,
            limits=limits,
            several=_share(options),
            failures=options.failures,
        ),
        parts,
    )


def _ppl(
    run: Run, options: Assess, limits: Limits, parts: Sequence[FinishedRun]
) -> Results:
    return ppl(
        Ppl(
            run.path(REFERENCE),
            options.user.user,
            run.path(PPL),
            tokenizer=options.user.settings.tokenizer,
            prompt=options.user.settings.prompt,
            seed=options.seed,
            workers=options.workers,
            models=options.models,
            price=options.user_price if options.user.parsed.is_remote else None,
            limits=limits,
            several=_share(options),
            failures=options.failures,
        ),
        parts,
    )


def _share(options: Assess) -> Parts:
    """The share of a stage, which runs where the whole does."""
    return replace(options.several, on=None)


def _judge(
    run: Run,
    options: Assess,
    kind: Kind,
    limits: Limits,
    parts: Sequence[FinishedRun],
) -> Results:
    if not _has_answers(run, kind):
        raise ModelError("there are no replies to judge")
    return judge(
        Judge(
            run.path(kind),
            str(options.judge),
            PROMPTS[kind],
            out=run.path(JUDGED[kind]),
            workers=options.workers,
            price=options.judge_price,
            models=options.models,
            limits=limits,
            failures=options.failures,
        )
    )


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
        left_out, failed = _run(run, options, stages, parts)
        if options.several.part:
            ran = {"left_out": left_out, "failed": failed}
            tried = [name for name in stages if name not in failed]
            incomplete = [name for name in tried if _has_errors(run, name)]
            results = {**counted, **ran, "incomplete": incomplete}
            return run.finish(results, _is_unfinished(results))
        talked = [name for name in ANSWERED if _has_answers(run, name)]
        scores = _score(run, options, talked) if talked else {}
    tried = [name for name in stages if name not in failed]
    detected = None
    if DETECT in stages and _is_complete(run, DETECT):
        detected = read_json(run.path(f"{DETECT}/results.json"))
    measures = _beside_people(scores) | _robustness(run, scores) | _judged(run)
    if counted["ratings"]:
        measures[RATINGS] = [{"user": counted["ratings"]["measure"], "human": None}]
    if measures:
        measures[DETECT] = _naturalness(detected, options)
    results = {
        **counted,
        "measures": measures,
        "naturalness": detected,
        "perplexity": _perplexity(run),
        "ends": _ends(scores),
        "left_out": left_out,
        "failed": failed,
        "incomplete": [name for name in tried if _has_errors(run, name)],
    }
    results["verdict"] = conclude(results, recorded(options)).record()
    return finish(run, options, results, _is_unfinished(results))


def _run(
    run: Run,
    options: Assess,
    stages: Mapping[str, Stage],
    parts: Sequence[FinishedRun],
) -> tuple[dict[str, str], dict[str, str]]:
    """Run the stages, or merge those of parts; return why some were left out, and why some failed.
    A failed one does not stop the others."""
    left_out = {}
    failed = {}
    if SIMULATE not in stages:
        left_out[SIMULATE] = NO_ASSISTANT
    left_out |= {kind: REPLAYED for kind in KINDS if kind not in stages}
    if PPL not in stages:
        kind = options.user.parsed.kind
        left_out[PPL] = f"a user of the kind {kind}: gives no log-probabilities"
    for part in parts:
        left_out |= part.results["left_out"]
        if part.results["failed"]:
            [why, *_] = part.results["failed"].values()
            raise InputError(f"{part.folder} failed ({why}); run its command again")
    for name, stage in stages.items():
        if name in left_out:
            continue
        done = [Run.read(part.path(name)) for part in parts if name in DIVIDED]
        try:
            with part_of_run(name):
                stage.run(_limits_of(run, options, stages, name), done)
        except ModelError as error:
            failed[name] = str(error)
            console.print(f"{name} failed: {error}", style="yellow")
        except InputError as error:
            if name != PPL:
                raise
            left_out[PPL] = str(error)  # such as a server without log-probabilities
    return left_out, failed


def _limits_of(
    run: Run, options: Assess, stages: Mapping[str, Stage], name: str
) -> Limits:
    """Return the limits of a stage: what all others, which run before or after it, leave of those
    of the whole."""
    if not stages[name].prices:
        return Limits()  # it would refuse limits on nothing
    used = Amount()
    for other, stage in stages.items():
        if other != name:
            used += spent(run.path(f"{other}/usage.jsonl"), stage.prices)
    return options.limits.less(used)


def _is_complete(run: Run, name: str) -> bool:
    return run.path(f"{name}/results.json").is_file()


def _has_errors(run: Run, name: str) -> bool:
    """Whether conversations of a complete stage ended in an error, or were not begun for a cap."""
    if not _is_complete(run, name):
        return False
    if name == PPL:
        return has_unscored(run.path(name))
    results = read_json(run.path(f"{name}/results.json"))
    is_judged = name == DETECT or name in JUDGED.values()
    return bool(results["failed"]) if is_judged else has_errors(results)


def _has_answers(run: Run, name: str) -> bool:
    """Whether a stage is there, and not all of it ended in an error."""
    if not _is_complete(run, name):
        return False
    stops = read_json(run.path(f"{name}/results.json"))["stops"]
    return any(stop != "error" for stop in stops)


# --- the measures ---------------------------------------------------------------------------------


def _score(run: Run, options: Assess, talked: Iterable[str]) -> Results:
    """Score, anew at each attempt: what was tried again since the last one has changed."""
    shutil.rmtree(run.path(SCORE), ignore_errors=True)
    runs = [run.path(name) for name in talked]
    with part_of_run(SCORE):
        return score(
            Score(
                runs,
                run.path(REFERENCE),
                trained_on=options.trained_on,
                out=run.path(SCORE),
            )
        )


def _beside_people(scores: Results) -> dict[str, list[Results]]:
    """Return each measure of the user, with its distance, beside people's, by stage."""
    human = {record["name"]: record for record in scores.get(HUMAN, ())}
    found: dict[str, list[Results]] = {}
    for stage in ANSWERED:
        if stage in scores:
            found[stage] = [
                {
                    "user": record,
                    "human": record.get("human", human.get(record["name"])),
                }
                for record in scores[stage]
            ]
    return found


def _robustness(run: Run, scores: Results) -> dict[str, list[Results]]:
    """Return the mean of both tests as a measure of a stage of its own, if both were scored."""
    if not set(KINDS) <= scores.keys():
        return {}
    replies: list[Conversation] = []
    for kind in KINDS:
        replies += read_conversations(run.path(f"{kind}/conversations.jsonl"))
    measured = catalog.metric_of(adherence.ROBUSTNESS).measure(replies, {})
    return {ROBUSTNESS: [{"user": measure_record(measured), "human": None}]}


def _judged(run: Run) -> dict[str, list[Results]]:
    """Return what the judge says of the replies to test items, beside the measures by the rules."""
    found = {}
    for kind, name in JUDGED.items():
        if _is_complete(run, name):
            share = positive_share(read_json(run.path(f"{name}/results.json")))
            test = adherence.NAMES[kind].removesuffix(" (rule)")
            record = {**share, "name": f"{test}{catalog.JUDGED}"}
            found[name] = [{"user": record, "human": None}]
    return found


def _naturalness(detected: Results | None, options: Assess) -> list[Results]:
    """Return how natural the user's turns are beside people's, or why that is not known."""
    if detected:
        return [
            {"user": one["user"], "human": one["human"]} for one in detected["measures"]
        ]
    why = "the detector did not answer" if options.detector else NO_DETECTOR
    metric = catalog.metric_of(naturalness.ALL_TURNS)
    unknown = metric.described(Measure("", None, None, None, (), why=why))
    return [{"user": measure_record(unknown), "human": None}]


def _ends(scores: Results) -> dict[str, Any] | None:
    """Return the threshold at which the user ends as often as people do, if there is one, and the
    F1 of always ending on the same turns."""
    endings = scores.get(ENDINGS, {}).get(RESPOND)
    if endings is None:
        return None
    equal = endings["equal"]
    always = [one for one in endings["comparison"] if one["user"] == ALWAYS]
    return {
        "threshold": equal["threshold"] if equal else None,
        "f1_of_always": always[0]["f1"]["value"] if always else None,
    }


def _perplexity(run: Run) -> dict[str, Any]:
    """Return the perplexity of each column of `ppl`, and the ratios of two of them."""
    if not _is_complete(run, PPL):
        return {}
    columns = read_json(run.path(f"{PPL}/results.json"))
    found = {}
    for column, records in columns.items():
        if column not in ("usage", "caps"):
            found[column] = next(one for one in records if one["name"] in PERPLEXITY)
    return found

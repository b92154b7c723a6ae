"""The stages of `assess`: other verbs, each in its own folder in that of the run, all within one
budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from userlm import address
from userlm.address import SCORED, Address
from userlm.commands.conversing import has_errors
from userlm.commands.costs import JUDGE_PRICE, Limits, read_price
from userlm.commands.detect import SIDE, Detect, detect, read_detector_price
from userlm.commands.judge import Judge, judge
from userlm.commands.options import Parts
from userlm.commands.ppl import Ppl, has_unscored, ppl
from userlm.commands.respond import Respond, respond
from userlm.commands.simulate import Simulate, simulate
from userlm.commands.steps import Results
from userlm.items import KINDS, Kind
from userlm.json_files import read_json
from userlm.models.budget import Amount, Price, spent
from userlm.runs import FinishedRun, Run
from userlm.show.terminal import console, part_of_run
from userlm.types import InputError, ModelError

if TYPE_CHECKING:
    from userlm.commands.assess import Assess

RESPOND, SIMULATE, PPL, SCORE = "respond", "simulate", "ppl", "score"
DETECT = "detect"
"""The verbs, and the names of their folders."""
JUDGED: Mapping[Kind, str] = {kind: f"judge-{kind}" for kind in KINDS}
"""The folders of the verdicts on replies to test items."""
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

QUICK_TURNS = 5
QUICK_ANSWER = 64
"""The limits of a simulated conversation with `--quick`, so that it is about as long: user turns,
and tokens of an answer."""

NO_ASSISTANT = "no --assistant was given"
REPLAYED = "a user of the kind replay: its people were not asked these questions"


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


def stages_of(
    run: Run, options: Assess, user: Address, assistant: Address | None
) -> dict[str, Stage]:
    """Return the stages by the names of their folders."""
    user_price = read_price("user", options.user_price)
    own = {"user": user_price} if user.is_model else {}
    replies = partial(_respond, run, options)
    stages = {RESPOND: Stage(partial(replies, REFERENCE, RESPOND), own)}
    if assistant:
        both = dict(own)
        if assistant.is_model:
            both["assistant"] = read_price("assistant", options.price)
        stages[SIMULATE] = Stage(partial(_simulate, run, options), both)
    if user.form in SCORED:
        model = {"model": user_price} if user.is_remote else {}
        stages[PPL] = Stage(partial(_ppl, run, options), model)
    if user.kind != "replay":
        for kind in KINDS:
            stages[kind] = Stage(partial(replies, f"{kind}.jsonl", kind), own)
        if options.judge:
            price = read_price("judge", options.judge_price, JUDGE_PRICE)
            judging = {"judge": price}
            for kind, name in JUDGED.items():
                stages[name] = Stage(partial(_judge, run, options, kind), judging)
    if options.detector:
        stages[DETECT] = Stage(partial(_detect, run, options), _detector_price(options))
    if options.several.part:
        return {name: each for name, each in stages.items() if name in DIVIDED}
    return stages


def _detector_price(options: Assess) -> dict[str, Price | None]:
    """Return the price of the detector, if its calls are counted."""
    if not is_counted(options.detector):
        return {}
    parts = address.parse(str(options.detector))
    price, _ = read_detector_price(options.detector_price, parts, options.limits.caps)
    return {SIDE: price}


def _detect(
    run: Run, options: Assess, limits: Limits, parts: Sequence[FinishedRun]
) -> Results:
    if not has_answers(run, RESPOND):
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
    if not has_answers(run, kind):
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


def run_stages(
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


def is_complete(run: Run, name: str) -> bool:
    """Whether a stage has results."""
    return run.path(f"{name}/results.json").is_file()


def has_failures(run: Run, name: str) -> bool:
    """Whether conversations of a complete stage ended in an error, or were not begun for a cap."""
    if not is_complete(run, name):
        return False
    if name == PPL:
        return has_unscored(run.path(name))
    results = read_json(run.path(f"{name}/results.json"))
    is_judged = name == DETECT or name in JUDGED.values()
    return bool(results["failed"]) if is_judged else has_errors(results)


def has_answers(run: Run, name: str) -> bool:
    """Whether a stage is there, and not all of it ended in an error."""
    if not is_complete(run, name):
        return False
    stops = read_json(run.path(f"{name}/results.json"))["stops"]
    return any(stop != "error" for stop in stops)


def is_counted(detector: str | None) -> bool:
    """Whether it is a detector whose calls are counted."""
    return bool(detector) and address.parse(str(detector)).kind != "classifier"

"""The parts of each verb's `results.json` that the report shows.

These types are checked when a run is read, so the other modules can rely on them. Names that
come from logs may be any string, so they are `Any` here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf

# Pydantic accepts `typing.TypedDict` only from Python 3.12 on.
from typing_extensions import TypedDict


def finite(value: Any) -> float | None:
    """Return a finite number as a float, `None` for anything else."""
    try:
        is_number = isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
        return None
    return float(value) if is_number else None


Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Counts = dict[Any, Count]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Percent = Annotated[float, Field(ge=0, le=100, strict=True)]
Threshold = Annotated[float, Field(gt=0, lt=1, strict=True)]
Loose = Annotated[float | None, BeforeValidator(finite)]
"""A number; anything else is shown as not measured."""
Text = InstanceOf[str]  # pydantic's own `str` rejects lone surrogates


class Options(TypedDict, total=False):
    """The options in `run.json` that the report computes with."""

    keep_turns: Count | None
    max_turns: Count | None


# --- import, clean, intents, train ----------------------------------------------------------------

Lengths = dict[Any, dict[Any, Amount] | None]
Spread = TypedDict("Spread", {"mean": Amount, "50 %": Amount, "largest": Amount})
People = TypedDict(
    "People",
    {
        "known": Count,
        "conversations of known people": Count,
        "conversations a person": Spread | None,
        "share of the heaviest 1 %": Share | None,
    },
)
NgramTable = TypedDict(
    "NgramTable",
    {
        "n-grams": Count,
        "counted one by one": Count,
        "bytes on disk": Count,
        "bytes in memory": Count,
    },
)


def _same_names(lengths: Lengths) -> Lengths:
    if len({tuple(spread) for spread in lengths.values() if spread}) > 1:
        raise ValueError("the lengths have different statistics")
    return lengths


def _spread_if_known(people: People) -> People:
    if people["known"] and None in people.values():
        raise ValueError("people are known, but not how many conversations each has")
    return people


class Writer(TypedDict):
    """The intents of one writer, and their leakage."""

    n: Count
    measured: Count
    leakage: Share | None
    quartiles: tuple[Share, Share, Share] | None


class Usage(TypedDict):
    """The usage of calls to a writer."""

    calls: Count
    possibly_billed: Count
    tokens_in: Count | None
    tokens_out: Count | None
    cost: Amount | None


class Data(TypedDict, total=False):
    """Of `import`, `clean` and `intents`."""

    counts: Counts
    splits: dict[Any, Counts]
    lengths: Annotated[Lengths, AfterValidator(_same_names)]
    people: Annotated[People, AfterValidator(_spread_if_known)]
    ngram_table: NgramTable
    languages: Counts
    countries: Counts
    models: Counts
    writers: dict[Any, Writer]
    usage: dict[Any, Usage | None]
    faults: Counts


class Evaluated(TypedDict, total=False):
    """A model on the validation split."""

    valid_perplexity: Loose


class SampleCounts(TypedDict):
    """Numbers of samples before a limit on tokens, and after it under both policies."""

    all: Count
    truncate: Count
    drop: Count


class Trained(TypedDict, total=False):
    """Of `train`."""

    conversations: Count | None
    samples: Count | None
    sample_counts: SampleCounts | None
    max_tokens: Count | None
    tokens: Count | None
    loss_tokens: Count | None
    dropped: Count | None
    parameters: Count | None
    steps: Count | None
    loss: Loose
    untrained: Evaluated | None
    best: Evaluated | None


# --- simulate, respond, ppl, score ----------------------------------------------------------------


class Guard(TypedDict):
    """How often a guard rejected drafts; see `guard.rates`."""

    turns: Count
    drafts: Count
    resampled: Count
    kept: Count
    stopped: Count
    why: Counts


class Conversing(TypedDict, total=False):
    """Of `simulate` and `respond`. `cut` has, by role, how many turns were cut at their maximum
    length."""

    stops: Counts | None
    silent: Count
    cut: Counts
    guard: Guard | None
    usage: dict[Any, Usage | None]


class Distance(TypedDict):
    """A measure less that of the human reference; see `stats.Estimate`."""

    value: Loose
    low: Loose
    high: Loose
    clusters: Count


class TellingNgram(TypedDict):
    """An n-gram that gives a side away; see `metrics.two_sample`."""

    text: Text
    simulated: Percent
    human: Percent


class OfFamily(TypedDict):
    """A measure of one family of tasks."""

    name: Text
    value: Loose
    low: Loose
    high: Loose
    n: Count
    missing: Count
    why: NotRequired[Text | None]


class Measured(TypedDict):
    """A measure; see `types.Measure`."""

    name: Text
    value: Loose
    low: Loose
    high: Loose
    n: Count
    missing: Count
    clusters: NotRequired[Count]
    better: Text
    unit: Text
    why: NotRequired[Text | None]
    stub: NotRequired[Text]
    distance: NotRequired[Distance]
    ngrams: NotRequired[list[TellingNgram]]
    outcomes: NotRequired[Counts]
    families: NotRequired[list[OfFamily]]
    by: NotRequired[Text]


Columns = dict[Any, list[Measured]]


class Compared(TypedDict):
    """A measure of a user, with its distance from people, and the same of people, if they have
    it."""

    user: Measured
    human: Measured | None


ItemCounts = TypedDict("ItemCounts", {"in": Count, "out": Count})
"""How many test items of a kind there are, and how many were asked."""


class Detected(TypedDict):
    """A measure of naturalness: of a user, of people, and of the assistant in people's logs."""

    user: Measured
    human: Measured
    assistant: Measured | None


class Known(TypedDict):
    """How well a detector tells texts whose writers are known, and length alone."""

    detector: Measured
    length: Measured


class DetectorName(TypedDict):
    """A detector, and how many texts each of its versions read."""

    name: Text
    versions: Counts


class Detections(TypedDict):
    """Of `detect`."""

    user: Text
    detector: DetectorName
    warning: Text
    measures: list[Detected]
    auroc: list[Known]
    usage: NotRequired[dict[Any, Usage | None]]


class Ends(TypedDict):
    """The threshold at which a user ends as often as people, and the F1 of always ending."""

    threshold: Threshold | None
    f1_of_always: Loose


class Assessed(TypedDict):
    """Of `assess`: its counts; by stage, by column of `ppl`, and by stage the reason why it
    was left out or failed; the stages in which some conversations ended in an error; by kind how
    many test items there are. Older ones do not know how the user ends."""

    counts: Counts
    measures: dict[Any, list[Compared]]
    items: NotRequired[dict[Any, ItemCounts]]
    naturalness: NotRequired[Detections | None]
    perplexity: dict[Any, Measured]
    ends: NotRequired[Ends | None]
    left_out: dict[Any, Text]
    failed: dict[Any, Text]
    incomplete: list[Text]


class CellResult(TypedDict):
    """An assistant with a user: how their conversations stopped, how many turns of each were cut at
    their maximum length, the measures of their tasks, and why it failed, if it did."""

    assistant: Text
    user: Text
    folder: Text
    stops: Counts
    cut: NotRequired[Counts]
    measures: list[Measured]
    failed: Text


class Spent(TypedDict):
    """What calls of models used; dollars at the prices that were given."""

    calls: Count
    tokens: Count
    dollars: Amount


class Evaluations(TypedDict):
    """Of `evaluate`."""

    cells: list[CellResult]
    spent: Spent


class CellMeasured(TypedDict):
    """An assistant with a user: its measures, and its score where all required facts were said."""

    assistant: Text
    user: Text
    folder: Text
    tasks: Count
    repeats: Count
    measures: list[Measured]
    covered: Measured


Difference = TypedDict(
    "Difference",
    {
        "a": Text,
        "b": Text,
        "with": list[Text],
        "measure": Text,
        "unit": Text,
        "value": Loose,
        "low": Loose,
        "high": Loose,
        "clusters": Count,
        "unpaired": Count,
    },
)
"""a - b in a measure, with the same users, or the same assistants."""


class SinglePrompt(Distance):
    """How much less an assistant solves when it is talked to than with a single prompt."""

    assistant: Text
    user: Text
    single: Measured


class AddedDemands(Distance):
    """How much more an assistant solves without the demands that a user adds."""

    assistant: Text
    user: Text


class Variance(TypedDict):
    """Where the variance of a score comes from; see `metrics.comparison.Split`."""

    assistant: Text
    users: Count
    task: Amount
    user: Amount | None
    both: Amount | None
    repeat: Amount | None


class Needed(TypedDict):
    """How many tasks would show a difference; `None` if that is not known."""

    a: Text
    b: Text
    points: Count
    repeats: Count
    tasks: Count | None


Within = TypedDict(
    "Within",
    {
        "assistant": Text,
        "measure": Text,
        "with": Count,
        "of": Count,
        "value": Loose,
        "low": Loose,
        "high": Loose,
        "clusters": Count,
    },
)
"""How many points more is solved where a conversation has something; in how many it has."""


class Place(TypedDict):
    """A conversation, and the run that it is in."""

    assistant: Text
    user: Text
    folder: Text
    id: Text


class WorstTask(TypedDict):
    """A task with the score of each assistant, and conversations in which it was not solved."""

    task: Text
    family: Text
    scores: dict[Any, Percent]
    failed: list[Place]


class BesidePeople(Distance):
    """How far the scores with a user agree with those with people."""

    user: Text
    measure: Text
    of: Text
    n: Count
    missing: Count


class Comparisons(TypedDict):
    """Of `compare`; `real` are the assistants that are no stubs."""

    cells: list[CellMeasured]
    real: list[Text]
    assistants: list[Difference]
    users: list[Difference]
    single: list[SinglePrompt]
    added: list[AddedDemands]
    variance: list[Variance]
    needed: list[Needed]
    failure: list[Within]
    worst: list[WorstTask]
    human: list[BesidePeople]


class Judged(TypedDict):
    """Of `judge`."""

    run: Text
    user: Text | None
    judge: Text
    prompt: Text
    hash: Text
    positive: Text
    warning: Text
    counts: Counts
    measures: list[Measured]
    agreement: list[Measured]
    usage: dict[Any, Usage | None]


class Rule(TypedDict):
    """How a user ends under one rule; see `metrics.termination`."""

    threshold: Threshold | None
    premature: Percent
    missed: Percent
    end_rate: Percent
    f1: Percent
    low: Loose
    high: Loose


class Sweep(TypedDict):
    """The same at every threshold."""

    threshold: list[Threshold]
    premature: list[Percent]
    missed: list[Percent]
    end_rate: list[Percent]
    f1: list[Percent]


def _complete(curve: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
    if (
        len({len(values) for values in curve.values()}) > 1
        or len(curve["threshold"]) < 2
    ):
        raise ValueError("a curve needs two thresholds, and shares for each")
    return curve


class Bin(TypedDict):
    """Responses with similar P(end), and the share at which the person ended."""

    n: Count
    p_end: Share
    ended: Share


class Comparison(TypedDict):
    """How a user ends beside users without a model; see `metrics.end_references`."""

    kind: Text
    user: Text
    people: Count
    ended: Percent | None
    end_rate: Percent | None
    f1: Measured
    auroc: Measured


class Uncalibrated(TypedDict):
    """Why no threshold can be suggested."""

    best: None
    why: Text
    note: NotRequired[Text]
    comparison: NotRequired[list[Comparison]]


class Calibration(TypedDict):
    """How a user ends at every threshold, and the suggested thresholds."""

    n: Count
    missing: Count
    people: Count
    ended: Percent
    now: Rule
    best: Rule
    equal: Rule | None
    sweep: Annotated[Sweep, AfterValidator(_complete)]
    ece: Share
    bins: list[Bin]
    user: NotRequired[Text]
    note: Text
    comparison: NotRequired[list[Comparison]]


class Endings(TypedDict):
    """Of `score`."""

    endings: dict[Any, Uncalibrated | Calibration]

"""All metrics, described once, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from userlm.metrics import (
    adherence,
    crowds,
    extrinsic,
    intrinsic,
    memorization,
    naturalness,
    ratings,
    two_sample,
)
from userlm.stats import (
    F1,
    FRACTION,
    MEAN,
    PERCENT,
    SIGNED_PERCENT,
    Estimate,
    Statistic,
    difference,
    independent_difference,
)
from userlm.types import Conversation, Measure

Needs = Literal[
    "log-probabilities",
    "responses",
    "conversations",
    "any",
    "tasks",
    "grades",
    "judged facts",
    "reference",
    "training turns",
    "detector",
    "ratings",
    "role items",
    "intent items",
    "both items",
]


Family = Literal[
    "How tasks go",
    "How easily it is told apart from people",
    "How it ends",
    "What it says",
    "How it writes",
    "How well it predicts people",
]
TASKS: Family = "How tasks go"
ENDS: Family = "How it ends"
TOLD: Family = "How easily it is told apart from people"
SAYS: Family = "What it says"
WRITES: Family = "How it writes"
PREDICTS: Family = "How well it predicts people"
CLUSTERS: Mapping[Needs, str] = {
    **dict.fromkeys(("tasks", "grades", "judged facts"), "task"),
    **dict.fromkeys(("role items", "intent items", "both items"), "test item"),
    "ratings": "pair",
}
"""What the intervals of measures are over, if not over people."""
JUDGED = " (judge)"
"""Ends the name of a measure that is also measured by a rule."""
FAMILIES = (TASKS, TOLD, ENDS, SAYS, WRITES, PREDICTS)
"""What measures are about, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: the name of its measure.
        about: what it measures, in one sentence.
        needs: what it is measured on: the `log-probabilities` of `userlm ppl`; `responses` to
            prefixes; whole `conversations`, logged or simulated; `any` of the two; conversations
            about `tasks`, or these with their `grades`, and the
            `judged facts` in them; any, beside the human `reference`, the
            `training turns` of the user or what a `detector` says of the turns; `ratings` of a
            blind test; responses to test items (`items`) of one kind, or to those of both.
        better: which values are better; `neither`: those close to the human reference.
        unit: the unit of value and interval.
        function: computes the measure from conversations, and from what else it needs: the tasks
            by id, the human reference, the training turns; `None` for metrics of `userlm ppl`,
            `userlm detect` and `two_sample`, which are computed together.
        statistic: what its value is of the rows, for differences of the same people; `None` if it
            is not computed from sums of the rows.
        family: what it is about: under this heading it is shown.
    """

    name: str
    about: str
    needs: Needs
    better: Literal["higher", "lower", "neither"] = "neither"
    unit: str = ""
    function: Callable[..., Measure] | None = None
    statistic: Statistic | None = None
    family: Family = SAYS

    def measure(
        self, conversations: Sequence[Conversation], beside: Mapping[Needs, Any]
    ) -> Measure:
        """Return the measure of the conversations; `beside` has what else metrics need."""
        assert self.function is not None
        inputs = [beside[self.needs]] if self.needs in beside else []
        return self.described(self.function(conversations, *inputs))

    def described(self, found: Measure) -> Measure:
        """Return the measure with what is known of it here."""
        return replace(found, name=self.name, better=self.better, unit=self.unit)

    def distance(self, found: Measure, human: Measure) -> Estimate:
        """Return the measure less that of people: on the same clusters where they share enough for
        an interval, else of all."""
        if self.statistic:
            paired = difference(found, human, self.statistic)
            if paired.low is not None:
                return paired
        if found.value is None or human.value is None:
            return Estimate(None, None, None, 0)
        low, high = independent_difference(found, human)
        clusters = min(found.clusters, human.clusters)
        return Estimate(found.value - human.value, low, high, clusters)


def _crowd(
    name: str,
    about: str,
    function: Callable[..., Measure],
    statistic: Statistic = PERCENT,
    family: Family = SAYS,
) -> Metric:
    """Return a property of turns, in percent."""
    return Metric(name, about, "any", "neither", "%", function, statistic, family)


def _outcome(
    name: str,
    about: str,
    needs: Needs,
    function: Callable[..., Measure],
    statistic: Statistic = PERCENT,
    better: Literal["higher", "neither"] = "neither",
    unit: str = "%",
) -> Metric:
    """Return a measure of conversations about tasks."""
    return Metric(name, about, needs, better, unit, function, statistic, TASKS)


METRICS = (
    Metric(
        "perplexity",
        "Perplexity of real user turns per token. It is only comparable between models with the "
        "same tokenizer.",
        "log-probabilities",
        "lower",
        family=PREDICTS,
    ),
    Metric(
        "bits per byte",
        "The same per byte of text, which is comparable between all models.",
        "log-probabilities",
        "lower",
        family=PREDICTS,
    ),
    Metric(
        "perplexity ratio",
        "Perplexity with the intent divided by perplexity without it, on the same turns: below 1 "
        "the intent helps. Another person's intent is the control.",
        "log-probabilities",
        "lower",
        family=PREDICTS,
    ),
    Metric(
        "human goals: perplexity ratio",
        "The same for goals that people wrote themselves, which were not generated from the turns "
        "to predict.",
        "log-probabilities",
        "lower",
        family=PREDICTS,
    ),
    Metric(
        "termination F1",
        "F1 of ending where the person ended, on prefixes of real conversations. Always ending may "
        "have a higher one: users without a model are beside it in “When to end a conversation”.",
        "responses",
        "higher",
        "%",
        intrinsic.termination,
        F1,
        ENDS,
    ),
    Metric(
        "termination AUROC",
        "How well P(end) separates real ends from other turns; 0.5 is chance.",
        "responses",
        "higher",
        function=intrinsic.termination_auroc,
        family=ENDS,
    ),
    Metric(
        "end rate",
        "Share of turns after the first at which the user ends the conversation instead.",
        "any",
        "neither",
        "%",
        intrinsic.end_rate,
        PERCENT,
        ENDS,
    ),
    Metric(
        adherence.NAMES["role"],
        "Share of replies that leave a multiple-choice question to an assistant who does not know: "
        "one or two of the choices named is an answer, and no adherence; nor is an end.",
        "role items",
        "higher",
        "%",
        adherence.user_role_adherence,
        PERCENT,
    ),
    Metric(
        adherence.NAMES["intent"],
        "Share of replies that stay with the question where the assistant suggests something else, "
        "by a rule of words, which is wrong about every seventh reply.",
        "intent items",
        "higher",
        "%",
        adherence.intent_adherence,
        PERCENT,
    ),
    Metric(
        adherence.ROBUSTNESS,
        "The mean of user-role and intent adherence.",
        "both items",
        "higher",
        "%",
        adherence.robustness,
        adherence.MEAN_OF_BOTH,
    ),
    Metric(
        two_sample.OVERALL,
        "How well a classifier of character n-grams, trained on half of the people, tells "
        "simulated turns from people's; 0.5 is chance. For humans: people from other people.",
        "reference",
        "lower",
        family=TOLD,
    ),
    Metric(
        two_sample.LENGTH_MATCHED,
        "The same among turns of similar length.",
        "reference",
        "lower",
        family=TOLD,
    ),
    Metric(
        two_sample.FIRST_TURNS,
        "The same of first turns.",
        "reference",
        "lower",
        family=TOLD,
    ),
    Metric(
        two_sample.LATER_TURNS,
        "The same of later turns.",
        "reference",
        "lower",
        family=TOLD,
    ),
    Metric(
        naturalness.ALL_TURNS,
        "Mean probability that a person wrote a turn, by a detector, which is named with its "
        "AUROC; it is comparable only with that of the same detector.",
        "detector",
        "neither",
        "%",
        statistic=PERCENT,
        family=TOLD,
    ),
    Metric(
        naturalness.FIRST_TURNS,
        "The same of first turns of 50 to 200 tokens (4 bytes a token), as in the paper.",
        "detector",
        "neither",
        "%",
        statistic=PERCENT,
        family=TOLD,
    ),
    Metric(
        ratings.NAME,
        "How often people took the simulated conversation for the person's in a blind test that "
        "shows both. At 50 % they cannot tell them apart.",
        "ratings",
        "higher",
        "%",
        statistic=PERCENT,
        family=TOLD,
    ),
    Metric(
        "first-turn diversity",
        "How different the first turns are: mean Jaccard distance of their words.",
        "any",
        "higher",
        "%",
        intrinsic.first_turn_diversity,
    ),
    Metric(
        "intent decomposition",
        "Share of a turn's content words that also occur in the intent. Close to people is better, "
        "not low: nonsense and a constant turn have 0.",
        "any",
        "neither",
        "%",
        intrinsic.intent_decomposition,
        PERCENT,
    ),
    Metric(
        "goal consistency",
        "That share less the same share for other people's intents. Close to people is better: "
        "nonsense, a constant turn and other people's turns have about 0, the intent word by word "
        "nearly 100.",
        "any",
        "neither",
        "%",
        intrinsic.goal_consistency,
        SIGNED_PERCENT,
    ),
    _outcome(
        "intent coverage",
        "Share of the required facts that the user said (matched by words, without a judge).",
        "tasks",
        extrinsic.intent_coverage,
        better="higher",
    ),
    _outcome(
        "intent coverage, all facts",
        "Share of all facts that the user said, required or not (matched by words).",
        "tasks",
        partial(extrinsic.intent_coverage, required_only=False),
    ),
    _outcome(
        f"intent coverage{JUDGED}",
        "Share of the required facts that the user said, by a judge.",
        "judged facts",
        extrinsic.judged_coverage,
        better="higher",
    ),
    _outcome(
        "repeats required facts",
        "Share of the conversations in which several turns of the user tell the same required fact "
        "(matched by words).",
        "tasks",
        extrinsic.repeats_required,
    ),
    _outcome(
        "spreads required facts",
        "Share of the conversations in which the user tells the required facts in several turns "
        "(matched by words).",
        "tasks",
        extrinsic.spreads_required,
    ),
    _outcome(
        "skips other facts",
        "Share of the conversations in which the user does not say one of the facts that are not "
        "required (matched by words).",
        "tasks",
        extrinsic.skips_not_required,
    ),
    _outcome(
        "adds demands",
        "Share of the conversations in which the user demands something that is not in the task, "
        "by a judge; how far judges agree with people on this is not known.",
        "grades",
        extrinsic.adds_demands,
    ),
    _outcome(
        "turn variance",
        "Variance of the number of user turns between conversations about one task (divided by n); "
        "mean over tasks.",
        "tasks",
        extrinsic.turn_variance,
        MEAN,
        unit="",
    ),
    _outcome(
        "turn variance, of a sample",
        "The same divided by n - 1, which does not depend on the number of conversations.",
        "tasks",
        extrinsic.sample_turn_variance,
        MEAN,
        unit="",
    ),
    _outcome(
        "fewest turns",
        "User turns in the shortest conversation about a task, mean over tasks: where the turn "
        "range begins.",
        "tasks",
        extrinsic.fewest_turns,
        MEAN,
        unit="turns",
    ),
    _outcome(
        "most turns",
        "User turns in the longest conversation about a task, mean over tasks: where it ends.",
        "tasks",
        extrinsic.most_turns,
        MEAN,
        unit="turns",
    ),
    _outcome(
        "unigram difference",
        "How different the words are that users say in conversations about one task: mean Jaccard "
        "distance of their stems, from 0 to 1; mean over tasks.",
        "tasks",
        extrinsic.unigram_difference,
        FRACTION,
        unit="",
    ),
    _outcome(
        "assistant score",
        "Share of the conversations in which the assistant solved the task.",
        "grades",
        extrinsic.assistant_score,
        better="higher",
    ),
    Metric(
        "turns per conversation",
        "Mean number of user turns; a conversation at the limit counts with the limit.",
        "conversations",
        "neither",
        "turns",
        intrinsic.turns_per_conversation,
        MEAN,
        ENDS,
    ),
    Metric(
        "words per turn",
        "Mean length of a user turn.",
        "any",
        "neither",
        "words",
        intrinsic.words_per_turn,
        MEAN,
        WRITES,
    ),
    _crowd(
        "reaction",
        "Share of a turn's content words that are in the answer before it, less the same share for "
        "answers in other conversations. Users who do not read the answer have about 0.",
        crowds.reaction,
        SIGNED_PERCENT,
    ),
    _crowd(
        "verbatim intent",
        "Share of a turn's runs of three words that are in the intent.",
        crowds.verbatim_intent,
    ),
    _crowd(
        "self-repetition",
        "Share of a turn's runs of three words that are in an earlier turn of the same user.",
        crowds.self_repetition,
    ),
    Metric(
        "verbatim overlap",
        "Mean over turns of the longest run of words that is in one turn of the training logs. "
        "People who were not trained on have some too.",
        "training turns",
        "neither",
        "words",
        memorization.verbatim_overlap,
        MEAN,
    ),
    Metric(
        "longest verbatim overlap",
        "The longest such run of all turns, which grows with their number.",
        "training turns",
        "neither",
        "words",
        memorization.longest_verbatim_overlap,
    ),
    _crowd("questions", "Share of turns that ask a question.", crowds.questions),
    _crowd("requests", "Share of turns that ask for something.", crowds.requests),
    _crowd("thanks", "Share of turns that thank.", crowds.thanks),
    _crowd(
        "corrections",
        "Share of turns after an answer that correct it.",
        crowds.corrections,
    ),
    _crowd(
        "lower-case start",
        "Share of turns whose first letter is small.",
        crowds.lower_case_start,
        family=WRITES,
    ),
    _crowd(
        "all lower-case",
        "Share of turns without a capital letter.",
        crowds.all_lower_case,
        family=WRITES,
    ),
    _crowd(
        "end punctuation",
        "Share of turns whose last character ends a sentence.",
        crowds.end_punctuation,
        family=WRITES,
    ),
    Metric(
        "out of vocabulary",
        "Share of a turn's words that the other half of the people never uses.",
        "reference",
        "neither",
        "%",
        crowds.out_of_vocabulary,
        PERCENT,
        WRITES,
    ),
    _crowd(
        "MATTR",
        "Share of different words in windows of 50 words.",
        crowds.mattr,
        family=WRITES,
    ),
    Metric(
        "HD-D",
        "Share of different words to expect in 42 random words of all turns.",
        "any",
        "neither",
        "%",
        crowds.hd_d,
        family=WRITES,
    ),
)
"""All metrics, in the order in which they are shown. A metric is added here and nowhere else."""


def about(name: str) -> str:
    """Return what a measure measures, in a sentence; empty if it is not listed here."""
    return next((metric.about for metric in METRICS if metric.name == name), "")


def family_of(name: str) -> Family:
    """Return what a measure is about; only `userlm ppl` and `judge` have measures that are not
    listed here."""
    families = (metric.family for metric in METRICS if metric.name == name)
    return next(families, SAYS if name.endswith(JUDGED) else PREDICTS)


def cluster_of(name: str) -> str:
    """Return what the interval of a measure is over: a `person`, `task`, `test item` or `pair`."""
    plain = name.removesuffix(JUDGED)
    needs = (one.needs for one in METRICS if one.name.partition(" (")[0] == plain)
    return CLUSTERS.get(next(needs, "any"), "person")


def metric_of(name: str) -> Metric:
    """Return the metric with this name."""
    return next(metric for metric in METRICS if metric.name == name)

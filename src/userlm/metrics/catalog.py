"""All metrics, described once, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from userlm.metrics import extrinsic, intrinsic
from userlm.types import Measure

Needs = Literal["log-probabilities", "responses", "conversations", "any", "tasks"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: the name of its measure.
        about: what it measures, in one sentence.
        needs: what it is measured on: the `log-probabilities` of `userlm ppl`; `responses` to
            prefixes; whole `conversations`, logged or simulated; `any` of the two; conversations
            about `tasks`.
        function: computes the measure from conversations, and from `tasks` by id if it needs them;
            `None` for metrics of `userlm ppl`.
    """

    name: str
    about: str
    needs: Needs
    function: Callable[..., Measure] | None = None


METRICS = (
    Metric(
        "perplexity",
        "Perplexity of real user turns per token. It is only comparable between models with the "
        "same tokenizer.",
        "log-probabilities",
    ),
    Metric(
        "bits per byte",
        "The same per byte of text, which is comparable between all models.",
        "log-probabilities",
    ),
    Metric(
        "perplexity ratio",
        "Perplexity with the intent divided by perplexity without it, on the same turns: below 1 "
        "the intent helps. Another person's intent is the control.",
        "log-probabilities",
    ),
    Metric(
        "human goals: perplexity ratio",
        "The same for goals that people wrote themselves, which were not generated from the turns "
        "to predict.",
        "log-probabilities",
    ),
    Metric(
        "termination F1",
        "F1 of ending where the person ended, on prefixes of real conversations.",
        "responses",
        intrinsic.termination,
    ),
    Metric(
        "termination AUROC",
        "How well P(end) separates real ends from other turns; 0.5 is chance.",
        "responses",
        intrinsic.termination_auroc,
    ),
    Metric(
        "first-turn diversity",
        "How different the first turns are: mean Jaccard distance of their words.",
        "any",
        intrinsic.first_turn_diversity,
    ),
    Metric(
        "intent decomposition",
        "Share of a turn's content words that also occur in the intent.",
        "any",
        intrinsic.intent_decomposition,
    ),
    Metric(
        "intent coverage",
        "Share of the required facts that the user said (matched by words, without a judge).",
        "tasks",
        extrinsic.intent_coverage,
    ),
    Metric(
        "assistant score",
        "Share of the conversations in which the assistant solved the task.",
        "tasks",
        extrinsic.assistant_score,
    ),
    Metric(
        "turns per conversation",
        "Mean number of user turns; a conversation at the limit counts with the limit.",
        "conversations",
        intrinsic.turns_per_conversation,
    ),
    Metric(
        "words per turn",
        "Mean length of a user turn.",
        "any",
        intrinsic.words_per_turn,
    ),
)

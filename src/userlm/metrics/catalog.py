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
        about: what it is, in one sentence.
        needs: what it is measured on: the `log-probabilities` of `userlm ppl`; `responses` to
            prefixes; whole `conversations`, logged or simulated; `any` of the two; conversations
            about `tasks`.
        function: from conversations, and `tasks` by id if it needs them, to the measure; `None` for
            what `userlm ppl` computes.
    """

    name: str
    about: str
    needs: Needs
    function: Callable[..., Measure] | None = None


METRICS = (
    Metric(
        "perplexity",
        "Of real user turns under the model, by token. Compares only models with one tokenizer.",
        "log-probabilities",
    ),
    Metric(
        "bits per byte",
        "The same by byte of text, so that it compares models with any tokenizer.",
        "log-probabilities",
    ),
    Metric(
        "perplexity ratio",
        "What knowing the intent changes, on the same turns: below 1 it helps. Somebody else's "
        "intent is the control.",
        "log-probabilities",
    ),
    Metric(
        "human goals: perplexity ratio",
        "The same where people wrote down their goals themselves: no intent was generated from the "
        "turns to predict.",
        "log-probabilities",
    ),
    Metric(
        "termination F1",
        "Ending when the person ended, and only then, on prefixes of real conversations.",
        "responses",
        intrinsic.termination,
    ),
    Metric(
        "termination AUROC",
        "How well P(end) tells real ends from other turns; 0.5 is chance.",
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
        "Share of a turn's content words that are the intent's own wording.",
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
        "Mean number of user turns; one that reached the limit counts with the limit.",
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

"""All metrics, described once, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from userlm.metrics import extrinsic, intrinsic
from userlm.types import Conversation, Measure, Task

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
        better: which values are better; `neither`: those close to the human reference.
        unit: the unit of value and interval.
        function: computes the measure from conversations, and from `tasks` by id if it needs them;
            `None` for metrics of `userlm ppl`.
    """

    name: str
    about: str
    needs: Needs
    better: Literal["higher", "lower", "neither"] = "neither"
    unit: str = ""
    function: Callable[..., Measure] | None = None

    def measure(
        self, conversations: Sequence[Conversation], tasks: Mapping[str, Task]
    ) -> Measure:
        """Return the measure of the conversations."""
        assert self.function is not None
        inputs = (conversations, tasks) if self.needs == "tasks" else (conversations,)
        found = self.function(*inputs)
        return replace(found, name=self.name, better=self.better, unit=self.unit)


METRICS = (
    Metric(
        "perplexity",
        "Perplexity of real user turns per token. It is only comparable between models with the "
        "same tokenizer.",
        "log-probabilities",
        "lower",
    ),
    Metric(
        "bits per byte",
        "The same per byte of text, which is comparable between all models.",
        "log-probabilities",
        "lower",
    ),
    Metric(
        "perplexity ratio",
        "Perplexity with the intent divided by perplexity without it, on the same turns: below 1 "
        "the intent helps. Another person's intent is the control.",
        "log-probabilities",
        "lower",
    ),
    Metric(
        "human goals: perplexity ratio",
        "The same for goals that people wrote themselves, which were not generated from the turns "
        "to predict.",
        "log-probabilities",
        "lower",
    ),
    Metric(
        "termination F1",
        "F1 of ending where the person ended, on prefixes of real conversations. Always ending may "
        "have a higher one: users without a model are beside it in “When to end a conversation”.",
        "responses",
        "higher",
        "%",
        intrinsic.termination,
    ),
    Metric(
        "termination AUROC",
        "How well P(end) separates real ends from other turns; 0.5 is chance.",
        "responses",
        "higher",
        function=intrinsic.termination_auroc,
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
    ),
    Metric(
        "intent coverage",
        "Share of the required facts that the user said (matched by words, without a judge).",
        "tasks",
        "higher",
        "%",
        extrinsic.intent_coverage,
    ),
    Metric(
        "assistant score",
        "Share of the conversations in which the assistant solved the task.",
        "tasks",
        "higher",
        "%",
        extrinsic.assistant_score,
    ),
    Metric(
        "turns per conversation",
        "Mean number of user turns; a conversation at the limit counts with the limit.",
        "conversations",
        "neither",
        "turns",
        intrinsic.turns_per_conversation,
    ),
    Metric(
        "words per turn",
        "Mean length of a user turn.",
        "any",
        "neither",
        "words",
        intrinsic.words_per_turn,
    ),
)
"""All metrics, in the order in which they are shown. A metric is added here and nowhere else."""

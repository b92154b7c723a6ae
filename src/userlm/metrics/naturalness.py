"""How natural turns are, by a detector, and how far the detector can be trusted on these logs.

A detector is known by what it says of texts whose writers are known: people's turns against the
assistant's in the same logs, and against the simulated ones. Length alone, which needs no detector,
stands beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from userlm.metrics.intrinsic import (
    Conversations,
    conversation_row,
    own_turns,
    turn_rows,
)
from userlm.stats import (
    MIN_CLUSTERS,
    PERCENT,
    Found,
    auroc_estimate,
    measure,
    numbered,
)
from userlm.text import words
from userlm.types import Detection, Measure, MeasureRow

ALL_TURNS = "naturalness"
FIRST_TURNS = "naturalness, first turns"
FROM_ASSISTANTS = "people from assistants"
FROM_SIMULATED = "people from simulated users"

SHORTEST, LONGEST = 50, 200
"""The tokens of the first turns that the paper measures."""
BYTES_PER_TOKEN = 4
"""The tokens of a turn are estimated, since each user has another tokenizer."""

Detections = Mapping[str, Detection]
"""What a detector says, by text."""
Score = Callable[[str], Found]
"""Returns (P(human), 1) for a text, or the reason why there is none."""


def by_detector(detections: Detections) -> Score:
    """Return the probability that a person wrote a text, by a detector."""

    def score(text: str) -> Found:
        found = detections[text]
        return found.why if found.p_human is None else (found.p_human, 1.0)

    return score


def by_length(text: str) -> Found:
    """Return a score that grows as the text gets shorter, from 0 to 1."""
    return 1 / (1 + len(words(text))), 1.0


def naturalness(conversations: Conversations, score: Score) -> list[Measure]:
    """Return 100 x the mean probability that a person wrote a turn: of all of the user's own turns,
    and of first turns of 50 to 200 tokens, as in the paper (section 5.4 of the notes on it).

    Rows have the stats (probability, 1).
    """
    kept = list(conversations)
    rows = turn_rows(kept, lambda turn: score(turn.text))
    first = list(_first_turns(kept, score))
    return [measure(rows, PERCENT, ALL_TURNS), _if_enough(first)]


def _first_turns(conversations: Conversations, score: Score) -> Iterator[MeasureRow]:
    for conversation in conversations:
        for turn in own_turns(conversation)[:1]:
            tokens = len(turn.text.encode()) / BYTES_PER_TOKEN
            if turn.k == 0 and SHORTEST <= tokens <= LONGEST:
                yield conversation_row(conversation, score(turn.text), "/0")


def _if_enough(rows: Sequence[MeasureRow]) -> Measure:
    found = measure(rows, PERCENT, FIRST_TURNS)
    if found.clusters >= MIN_CLUSTERS or found.missing == len(rows) > 0:
        return found
    why = (
        f"{found.clusters} people (or intents) have first turns of {SHORTEST} to {LONGEST} tokens; "
        f"{MIN_CLUSTERS} are needed"
    )
    return replace(found, value=None, low=None, high=None, why=why)


def assistant_naturalness(conversations: Conversations, score: Score) -> Measure:
    """Return the same mean of the assistant's turns."""
    return measure(list(_answers(conversations, score)), PERCENT, ALL_TURNS)


def auroc_from_assistants(people: Conversations, score: Score) -> Measure:
    """Return how well a score tells people's turns from the assistant's turns in the same logs:
    the probability that it is higher for one of people; 0.5 is chance."""
    kept = list(people)
    own = turn_rows(kept, lambda turn: score(turn.text))
    return _auroc(FROM_ASSISTANTS, own, list(_answers(kept, score)))


def auroc_from_simulated(
    people: Conversations, simulated: Conversations, score: Score
) -> Measure:
    """Return how well a score tells people's turns from simulated ones."""
    own, others = (
        turn_rows(side, lambda turn: score(turn.text)) for side in (people, simulated)
    )
    return _auroc(FROM_SIMULATED, own, others)


def _answers(conversations: Conversations, score: Score) -> Iterator[MeasureRow]:
    """Yield a row for each turn of the assistant."""
    for conversation in conversations:
        for i, turn in enumerate(conversation.turns):
            if turn.role == "assistant":
                name = f"/answer {i}"
                yield conversation_row(conversation, score(turn.text), name)


def _auroc(
    name: str, people: Sequence[MeasureRow], others: Sequence[MeasureRow]
) -> Measure:
    """Return the AUROC of the scores of people's turns against the others. Rows have the stats
    (score, 1 for people's, else 0)."""
    rows = []
    for side, is_person in ((people, 1.0), (others, 0.0)):
        for row in side:
            stats = row.stats and (row.stats[0], is_person)
            key = row.key if is_person else f"other: {row.key}"
            rows.append(replace(row, key=key, stats=stats))
    measured = [row.stats for row in rows if row.stats]
    if {is_person for _, is_person in measured} != {0.0, 1.0}:
        why = "no such turns on both sides"
        return Measure(name, None, None, None, tuple(rows), "higher", why=why)
    _, cluster_of = numbered([row.cluster for row in rows if row.stats])
    scores, positive = np.array(measured).T
    value, low, high, _ = auroc_estimate(scores, positive == 1, cluster_of)
    return Measure(name, value, low, high, tuple(rows), "higher")

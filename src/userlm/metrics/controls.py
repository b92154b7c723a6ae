"""How much an intent helps prediction, with controls. `userlm ppl` shows this.

Each conversation is scored in columns that differ in the system text: none, the intent, or another
person's intent. An intent that was generated from a conversation may contain words to predict, so
"better with intent" alone is weak evidence. There are three controls: another person's intent,
which must be worse than none (if it helped as much, intents would only say what kind of
conversation it is); later turns only; and only words that are not in the intent. Conversations with
goals that people wrote themselves are the strongest evidence and are reported separately.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random

from userlm.metrics.perplexity import (
    NLL,
    TOKENS,
    conversation_of,
    measures,
    person_of,
    subsets,
)
from userlm.stats import PERPLEXITY_RATIO, Rows, measure
from userlm.types import Conversation, Measure, MeasureRow

WITHOUT = "without intent"
WITH = "with intent"
OTHER = "another's intent"
"""The columns that are scored."""

OWN = "with / without"
OTHERS = "another's / without"
SPECIFIC = "with / another's"
RATIOS = {OWN: (WITH, WITHOUT), OTHERS: (OTHER, WITHOUT), SPECIFIC: (WITH, OTHER)}
"""The columns that compare two of them."""

HUMAN = "human goals"
GENERATED = "generated intents"
SOURCE = "source "
"""Subsets of the conversations: those with intents that people wrote, those with intents that were
generated, and (with its name appended) those from a source."""


# --- another's intent -----------------------------------------------------------------------------


def other_intents(conversations: Iterable[Conversation], seed: int) -> dict[str, str]:
    """Return another person's intent for each conversation with an intent, by id.

    It has a different text, and comes from the same source if possible. Conversations without such
    an intent are left out. All conversations form a circle, shuffled by the seed, and each gets the
    intent of the next one that fits, so nearly every intent is used once.
    """
    circle = [one for one in conversations if one.intent is not None]
    Random(seed).shuffle(circle)
    by_source: defaultdict[str, list[Conversation]] = defaultdict(list)
    for conversation in circle:
        by_source[_source(conversation)].append(conversation)
    found: dict[str, str] = {}
    for same_source in by_source.values():
        found |= _from_next(same_source, same_source)
    without = [conversation for conversation in circle if conversation.id not in found]
    return found | _from_next(without, circle)


def _from_next(
    takers: Sequence[Conversation], circle: Sequence[Conversation]
) -> dict[str, str]:
    """For each taker, by id, return the intent of the next conversation in the circle with another
    person and another intent."""
    people = {person_of(conversation) for conversation in circle}
    intents = {conversation.intent for conversation in circle}
    if len(people) < 2 or len(intents) < 2:
        return {}  # no intent can fit; the loop below would find that out slowly
    place = {conversation.id: i for i, conversation in enumerate(circle)}
    found: dict[str, str] = {}
    for taker in takers:
        after = place[taker.id] + 1
        for i in range(after, after + len(circle) - 1):
            giver = circle[i % len(circle)]
            fits = person_of(giver) != person_of(taker) and giver.intent != taker.intent
            if fits and giver.intent:
                found[taker.id] = giver.intent
                break
    return found


# --- figures --------------------------------------------------------------------------------------


def figures(
    scores: Mapping[str, Rows], conversations: Sequence[Conversation]
) -> dict[str, list[Measure]]:
    """Return all measures of each column, and then of the `RATIOS`.

    Measures of a subset are named `PART: MEASURE`; a source has only the first measure.

    Args:
        scores: the rows of `perplexity.score_turns`, by column.
    """
    found: defaultdict[str, list[Measure]] = defaultdict(list)
    for part, ids in _parts(conversations).items():
        rows: dict[str, Rows] = {}
        columns: dict[str, list[Measure]] = {}
        for column, scored in scores.items():
            rows[column] = [row for row in scored if conversation_of(row) in ids]
            columns[column] = measures(rows[column])
        for name, (column, baseline) in RATIOS.items():
            if column in rows and baseline in rows:
                columns[name] = ratios(rows[column], rows[baseline])
        for column, of_column in columns.items():
            shown = of_column[:1] if part.startswith(SOURCE) else of_column
            prefix = f"{part}: " if part else ""
            for one in shown:
                named = replace(one, name=prefix + one.name, better="lower")
                found[column].append(named)
    return dict(found)


def ratios(rows: Rows, baseline: Rows) -> list[Measure]:
    """Return the perplexity divided by the baseline's: exp(mean difference in nats per token).

    Only turns measured in both columns count, so an interval leaves the same people out of both.
    """
    found = []
    of_baseline = subsets(baseline)
    for name, counted in subsets(rows).items():
        before = {row.key: row for row in of_baseline[name]}
        both = [row for row in counted if row.key in before]
        paired = [_difference(row, before[row.key]) for row in both]
        ratio_name = name.replace("perplexity", "perplexity ratio")
        found.append(measure(paired, PERPLEXITY_RATIO, ratio_name))
    return found


def _difference(row: MeasureRow, before: MeasureRow) -> MeasureRow:
    if row.stats is None:
        return row
    if before.stats is None:
        return before
    nll = row.stats[NLL] - before.stats[NLL]
    return replace(row, stats=(nll, row.stats[TOKENS]))


def _parts(conversations: Sequence[Conversation]) -> Mapping[str, set[str]]:
    """Return the ids of all conversations (named ""), and of each non-empty subset; sources only if
    there are several."""
    with_intent = [one for one in conversations if one.intent is not None]
    human = {one.id for one in with_intent if one.meta.get("intent_by") == "human"}
    parts = {
        "": {one.id for one in conversations},
        HUMAN: human,
        GENERATED: {one.id for one in with_intent} - human,
    }
    sources: defaultdict[str, set[str]] = defaultdict(set)
    for conversation in conversations:
        sources[SOURCE + _source(conversation)].add(conversation.id)
    if len(sources) > 1:
        parts |= sorted(sources.items())
    return {part: ids for part, ids in parts.items() if ids}


def _source(conversation: Conversation) -> str:
    source = conversation.meta.get("source")
    return source if isinstance(source, str) and source else "unnamed"

"""What an intent changes, and whether that can be believed. `userlm ppl` shows it.

Each conversation is scored in columns that differ in what the model is told beforehand: nothing,
the intent, or the intent of somebody else. An intent that was drawn from a conversation may hold
the very words that are to be predicted, and then "better with intent" says little. So it is held
against three controls: somebody else's intent, which must be worse than none (one that helps as
much as the own tells what kind of conversation it is, and no more); later turns alone; and those
words alone that the intent does not hold. Conversations whose goals people wrote themselves are
reported apart; they carry the claim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random

from userlm.metrics.perplexity import NLL, TOKENS, conversation_of, measures, subjects
from userlm.stats import exp_ratio, measure
from userlm.types import Conversation, Measure, MeasureRow

WITHOUT, WITH, OTHER = "without intent", "with intent", "another's intent"
OWN, OTHERS, SPECIFIC = "with / without", "another's / without", "with / another's"
RATIOS = {OWN: (WITH, WITHOUT), OTHERS: (OTHER, WITHOUT), SPECIFIC: (WITH, OTHER)}
"""Columns that compare two others."""

HUMAN, DRAWN, SOURCE = "human goals", "drawn intents", "source "
"""Parts of the conversations: those with intents that people wrote beside them, those with intents
that anybody drew from them afterwards, and those from the source that is named then."""


def other_intents(conversations: Iterable[Conversation], seed: int) -> dict[str, str]:
    """For each conversation with an intent that of another one, by id: of another person, in other
    words, and from the same source where there is such. Where there is none at all it is left out.

    All stand in a circle, in an order drawn by the seed, and each takes from the next that fits: so
    nearly every intent is used once.
    """
    circle = [conversation for conversation in conversations if conversation.intent is not None]
    Random(seed).shuffle(circle)
    by_source: defaultdict[str, list[Conversation]] = defaultdict(list)
    for conversation in circle:
        by_source[_source(conversation)].append(conversation)
    taken = {id: intent for near in by_source.values() for id, intent in _from_next(near, near)}
    left = [conversation for conversation in circle if conversation.id not in taken]
    return taken | dict(_from_next(left, circle))


def _from_next(
    takers: Sequence[Conversation], circle: Sequence[Conversation]
) -> Iterator[tuple[str, str]]:
    """For each taker the intent of the next in the circle who is another person and wants something
    else."""
    if min(len(set(map(_person, circle))), len({one.intent for one in circle})) < 2:
        return
    place = {one.id: i for i, one in enumerate(circle)}
    for taker in takers:
        for step in range(1, len(circle)):
            other = circle[(place[taker.id] + step) % len(circle)]
            if _person(other) != _person(taker) and other.intent and other.intent != taker.intent:
                yield taker.id, other.intent
                break


def figures(
    scores: Mapping[str, Sequence[MeasureRow]], conversations: Sequence[Conversation]
) -> dict[str, list[Measure]]:
    """All measures of each column, and then of the `RATIOS`. Those of a part of the conversations
    are named
    `PART: MEASURE`; of a source there is the first alone.

    Args:
        scores: by column the rows of `perplexity.score_turns`.
    """
    found: defaultdict[str, list[Measure]] = defaultdict(list)
    for part, ids in _parts(conversations).items():
        here = {
            column: [r for r in rows if conversation_of(r) in ids]
            for column, rows in scores.items()
        }
        columns = {column: measures(rows) for column, rows in here.items()}
        columns |= {
            name: ratios(here[a], here[b])
            for name, (a, b) in RATIOS.items()
            if {a, b} <= here.keys()
        }
        for column, all in columns.items():
            kept = all[:1] if part.startswith(SOURCE) else all
            found[column] += [replace(m, name=f"{part}: {m.name}") for m in kept] if part else kept
    return dict(found)


def ratios(rows: Sequence[MeasureRow], baseline: Sequence[MeasureRow]) -> list[Measure]:
    """How many times the baseline's perplexity it is: exp(mean difference in nats a token), over
    the turns that were measured in both, so a resample draws the same people for both."""
    found = []
    for name, counted in subjects(rows).items():
        before = {row.key: row for row in subjects(baseline)[name]}
        paired = [_difference(row, before[row.key]) for row in counted if row.key in before]
        found.append(
            measure(
                name.replace("perplexity", "perplexity ratio"), paired, exp_ratio, better="lower"
            )
        )
    return found


def _difference(row: MeasureRow, before: MeasureRow) -> MeasureRow:
    if row.stats is None or before.stats is None:
        return row if row.stats is None else before
    return replace(row, stats=(row.stats[NLL] - before.stats[NLL], row.stats[TOKENS]))


def _parts(conversations: Sequence[Conversation]) -> Mapping[str, Collection[str]]:
    """The ids of all conversations, and of each part that holds some; of sources only if there are
    several."""
    told = {conversation.id for conversation in conversations if conversation.intent is not None}
    human = {
        conversation.id
        for conversation in conversations
        if conversation.meta.get("intent_by") == "human"
    }
    sources: defaultdict[str, set[str]] = defaultdict(set)
    for conversation in conversations:
        sources[SOURCE + _source(conversation)].add(conversation.id)
    parts = {"": set().union(*sources.values()), HUMAN: told & human, DRAWN: told - human}
    parts |= dict(sorted(sources.items())) if len(sources) > 1 else {}
    return {part: ids for part, ids in parts.items() if ids}


def _person(conversation: Conversation) -> str:
    return conversation.user or conversation.id


def _source(conversation: Conversation) -> str:
    source = conversation.meta.get("source")
    return source if isinstance(source, str) and source else "unnamed"

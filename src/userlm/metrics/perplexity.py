"""How well a model predicts what real people said. `userlm ppl` runs this on logs.

It is computed on the *content of real user turns*: no header, no header suffix, no closing token,
no end token. A row that is longer than the context length is truncated as in training, so every
model sees the same context. `forms` has the formats of conversations for models, `controls`
measures the effect of an intent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import exp, inf, isfinite, log

from userlm.flip import Row, TargetSpan
from userlm.metrics.forms import Form
from userlm.stats import (
    MEAN,
    PERPLEXITY,
    Array,
    Found,
    Rows,
    Statistic,
    measure,
    measure_row,
    ratio,
)
from userlm.text import word_spans, words
from userlm.types import Conversation, Measure, MeasureRow, Sample, Score

# The columns of a turn's `stats`. NLL is negative log-likelihood in nats. A pair (NLL, tokens) that
# was not measured is (0, 0).
NLL, TOKENS, BYTES = range(3)
"""NLL, tokens and UTF-8 bytes of the content of the turn."""
OUTSIDE = slice(3, 5)
"""NLL and tokens of the words of the content that are not in the intent."""
CLOSED = slice(5, 7)
"""NLL and tokens of the content with its closing token; of the end tokens in a row `ID/end`."""

MAX_NLL = 700.0
"""Nats. `exp` of more than 709 is not a number."""

END = "end"
"""The end of a conversation is a separate row, with this in place of the turn number."""


# --- scores of turns ------------------------------------------------------------------------------


def score_turns(
    asked: Sequence[tuple[Conversation, str | None]],
    model: Score,
    form: Form,
    max_tokens: int = 2048,
) -> list[list[MeasureRow]]:
    """Return the rows of each conversation: one for each user turn, and one for an observed end if
    the form has end tokens. All are scored in one call.

    Args:
        asked: conversations, each with the intent that the model gets, or `None`.
    """
    shown = [
        form.rows(replace(conversation, intent=given), max_tokens)
        for conversation, given in asked
    ]
    masked = [
        (row.ids, _mask(row, form)) for rendered in shown for row in rendered.rows
    ]
    scored = iter(model.score(masked))
    found = []
    for (conversation, _), rendered in zip(asked, shown, strict=True):
        rows = []
        for row in rendered.rows:
            logprobs = iter(next(scored))  # of the tokens that `_mask` picked
            for target in row.spans:
                stats = _stats(conversation, form, target, logprobs)
                rows.append(_turn(conversation, target.k, stats))
        for k in rendered.dropped:
            rows.append(_turn(conversation, k, f"does not fit {max_tokens} tokens"))
        found.append(rows)
    return found


def unscored(conversation: Conversation, why: str) -> list[MeasureRow]:
    """Return a missing row for each user turn of its own."""
    turns = range(conversation.first_own_turn, len(conversation.user_turns))
    return [_turn(conversation, k, why) for k in turns]


def _turn(conversation: Conversation, k: int, found: Found) -> MeasureRow:
    """Return the row of turn `k`; the number after the last user turn is the end."""
    name = END if Sample(conversation, k).target is None else k
    return measure_row(f"{conversation.id}/{name}", person_of(conversation), found)


def _mask(row: Row, form: Form) -> list[bool]:
    """A mask that is true at content, and at closing tokens if the form has end tokens."""
    mask = [False] * len(row.ids)
    for target in row.spans:
        stop = target.stop if form.ends else target.stop - 1
        mask[target.first : stop] = [True] * (stop - target.first)
    return mask


def _stats(
    conversation: Conversation,
    form: Form,
    target: TargetSpan,
    logprobs: Iterator[float],
) -> Found:
    content = [-next(logprobs) for _ in range(target.first, target.stop - 1)]
    closed = [*content, -next(logprobs)] if form.ends else []
    if not content:
        return "no words"
    sums = [0.0] * CLOSED.stop
    sums[CLOSED] = _sum(closed)
    text = Sample(conversation, target.k).target
    if text is not None:
        sums[NLL], sums[TOKENS] = _sum(content)
        sums[BYTES] = float(len(text.encode()))
        sums[OUTSIDE] = _sum(_outside(content, text, conversation.intent, form))
    return tuple(sums) if all(map(isfinite, sums)) else "not a number"


def _sum(nll: Sequence[float]) -> tuple[float, float]:
    return sum(nll), float(len(nll))


def _outside(
    nll: Sequence[float], text: str, intent: str | None, form: Form
) -> list[float]:
    """Return the NLL of the tokens of a turn that do not overlap a word of the intent, ignoring
    case; empty if there is no intent."""
    if intent is None:
        return []
    shown = form.header_suffix + text
    of_intent = set(words(intent))
    is_inside = [False] * len(shown)  # for each character
    for start, stop in word_spans(shown):
        if not of_intent.isdisjoint(words(shown[start:stop])):
            is_inside[start:stop] = [True] * (stop - start)
    # Without the header suffix, if it is a token.
    offsets = form.offsets(shown)[-len(nll) :]
    return [
        value
        for value, (start, stop) in zip(nll, offsets, strict=True)
        if not any(is_inside[start:stop])
    ]


# --- figures --------------------------------------------------------------------------------------


def measures(rows: Rows) -> list[Measure]:
    """Return all measures of the rows of one column; perplexity comes first."""
    by_name = subsets(rows)
    said = by_name["perplexity"]
    closed = _pairs(rows, CLOSED, "no end tokens")
    return [
        *(perplexity(counted, name) for name, counted in by_name.items()),
        perplexity(closed, "perplexity, + end tokens"),
        mean_of_conversations(said),
        bits_per_byte(said),
    ]


def subsets(rows: Rows) -> dict[str, list[MeasureRow]]:
    """Return rows of (NLL, tokens, ...), by the name of the perplexity."""
    said = [row for row in rows if not row.key.endswith(f"/{END}")]
    return {
        "perplexity": said,
        "perplexity, first turns": [row for row in said if row.key.endswith("/0")],
        "perplexity, later turns": [row for row in said if not row.key.endswith("/0")],
        "perplexity, outside the intent": _pairs(
            said, OUTSIDE, "no words outside an intent"
        ),
    }


def perplexity(rows: Rows, name: str = "perplexity") -> Measure:
    """Return exp(sum of NLL / sum of tokens): token-weighted, so comparable only between models
    with one tokenizer."""
    return measure(rows, PERPLEXITY, name)


def bits_per_byte(rows: Rows) -> Measure:
    """Return sum of NLL / (ln 2 x bytes): comparable between tokenizers."""

    def bits(sums: Array) -> Array:
        return ratio(sums[..., [NLL, BYTES]]) / log(2)

    return measure(rows, Statistic(bits, 0, inf), "bits per byte")


def mean_of_conversations(rows: Rows) -> Measure:
    """Return the mean of the perplexities of single conversations; short and long ones count the
    same."""
    by_conversation: defaultdict[str, list[MeasureRow]] = defaultdict(list)
    for turn in rows:
        by_conversation[conversation_of(turn)].append(turn)
    means = []
    for id, turns in by_conversation.items():
        nll = sum(turn.stats[NLL] for turn in turns if turn.stats)
        tokens = sum(turn.stats[TOKENS] for turn in turns if turn.stats)
        found: Found = turns[0].why
        if tokens and nll / tokens < MAX_NLL:
            found = (exp(nll / tokens), 1.0)
        elif tokens:
            found = "the perplexity is too large"
        means.append(measure_row(id, turns[0].cluster, found))
    return measure(means, MEAN, "perplexity, mean of conversations")


def person_of(conversation: Conversation) -> str:
    """Return the person behind a conversation; a conversation without a user counts as a separate
    person."""
    return conversation.user or conversation.id


def conversation_of(row: MeasureRow) -> str:
    """Return the id of a turn's conversation."""
    return row.key.rpartition("/")[0]


def _pairs(rows: Rows, columns: slice, why: str) -> list[MeasureRow]:
    """Return rows with one pair (NLL, tokens); a row is missing if it has no tokens."""
    pairs = []
    for turn in rows:
        found: Found = turn.why or why
        if turn.stats and turn.stats[columns][TOKENS]:
            found = turn.stats[columns]
        pairs.append(measure_row(turn.key, turn.cluster, found))
    return pairs

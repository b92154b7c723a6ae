"""How well a model predicts what real people said. `userlm ppl` runs this on logs.

The figure is over the *words of real user turns*: no header, no lead, no closing token, no ending.
A row that is longer than the window is shortened as in training, so every model sees the same
context. `forms` says how a model is shown a conversation, `controls` what an intent changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import exp, isfinite, log

from userlm.flip import Rendered, Row
from userlm.metrics.forms import Form
from userlm.stats import Array, exp_ratio, measure, ratio
from userlm.text import word_spans, words
from userlm.types import Conversation, Measure, MeasureRow, Score

NLL, TOKENS, BYTES, OUTSIDE, ENDED = 0, 1, 2, 3, 5
"""Where the sums of a turn stand in its `stats`: negative log-likelihood in nats and tokens of its
words, their UTF-8 bytes; then NLL and tokens of those words alone that the intent does not hold,
and NLL and tokens of the words with the token that closes them. A pair that was not measured is 0,
0. The ending is a row of its own, `ID/end`."""


# --- scores of turns ------------------------------------------------------------------------------


def score_turns(
    asked: Sequence[tuple[Conversation, str | None]],
    model: Score,
    form: Form,
    max_tokens: int = 2048,
) -> list[list[MeasureRow]]:
    """For each conversation, with the intent that the model is told or none: a row for each user
    turn, and one for an observed ending if the form has end tokens. All are scored in one call."""
    shown = [
        form.rows(replace(conversation, intent=told), max_tokens) for conversation, told in asked
    ]
    rows = [row for flipped in shown for row in flipped.rows]
    scored = iter(model.score([(row.ids, _mask(row, form)) for row in rows]))
    return [
        list(_turns(conversation, form, flipped, scored, max_tokens))
        for (conversation, _), flipped in zip(asked, shown, strict=True)
    ]


def unscored(conversation: Conversation, why: str) -> list[MeasureRow]:
    """A missing row for each user turn."""
    person = conversation.user or conversation.id
    return [
        MeasureRow(f"{conversation.id}/{k}", person, None, why)
        for k in range(len(conversation.user_turns))
    ]


def _mask(row: Row, form: Form) -> list[bool]:
    """True at words, and at closing tokens if the form has end tokens."""
    mask = [False] * len(row.ids)
    for target in row.targets:
        stop = target.stop - 1 + form.ends
        mask[target.first : stop] = [True] * (stop - target.first)
    return mask


def _turns(
    conversation: Conversation,
    form: Form,
    flipped: Rendered,
    scored: Iterator[list[float]],
    max_tokens: int,
) -> Iterator[MeasureRow]:
    person, said = conversation.user or conversation.id, conversation.user_turns
    for row in flipped.rows:
        logprobs = iter(next(scored))
        for target in row.targets:
            nll = [-next(logprobs) for _ in range(target.first, target.stop - 1)]
            ended = [*nll, -next(logprobs)] if form.ends else []
            sums = [*_sum(nll), 0.0, 0.0, 0.0, *_sum(ended)]
            if target.k == len(said):
                key, sums[NLL], sums[TOKENS] = "end", 0.0, 0.0
            else:
                key, text = str(target.k), said[target.k]
                sums[BYTES] = float(len(text.encode()))
                sums[OUTSIDE : OUTSIDE + 2] = _sum(_outside(nll, text, conversation.intent, form))
            why = "no words" if not nll else "" if all(map(isfinite, sums)) else "not a number"
            yield MeasureRow(f"{conversation.id}/{key}", person, None if why else tuple(sums), why)
    for k in flipped.dropped:
        key = "end" if k == len(said) else str(k)
        yield MeasureRow(
            f"{conversation.id}/{key}", person, None, f"does not fit {max_tokens} tokens"
        )


def _sum(nll: Sequence[float]) -> tuple[float, float]:
    return sum(nll), float(len(nll))


def _outside(nll: Sequence[float], text: str, intent: str | None, form: Form) -> list[float]:
    """Those of a turn's tokens that touch no word of the intent, in whatever case; none if there is
    no intent."""
    if intent is None or not nll:
        return []
    text, held = form.header_suffix + text, set(words(intent))
    inside = bytearray(len(text))
    for start, stop in word_spans(text):
        if not held.isdisjoint(words(text[start:stop])):
            inside[start:stop] = b"1" * (stop - start)
    offsets = form.offsets(text)[-len(nll) :]
    return [
        value
        for value, (start, stop) in zip(nll, offsets, strict=True)
        if not any(inside[start:stop])
    ]


# --- figures --------------------------------------------------------------------------------------


def measures(rows: Sequence[MeasureRow]) -> list[Measure]:
    """Everything that is said of the rows of one column; perplexity comes first."""
    found = [perplexity(counted, name) for name, counted in subjects(rows).items()]
    ended = perplexity(_at(rows, ENDED, "no end tokens"), "perplexity, + end tokens")
    said = _said(rows)
    return [*found, ended, mean_of_conversations(said), bits_per_byte(said)]


def subjects(rows: Sequence[MeasureRow]) -> dict[str, list[MeasureRow]]:
    """Rows of (NLL, tokens, ...) by the name of the perplexity that counts them."""
    said = _said(rows)
    return {
        "perplexity": said,
        "perplexity, first turns": [row for row in said if row.key.endswith("/0")],
        "perplexity, later turns": [row for row in said if not row.key.endswith("/0")],
        "perplexity, outside the intent": _at(said, OUTSIDE, "no words outside an intent"),
    }


def perplexity(rows: Sequence[MeasureRow], name: str = "perplexity") -> Measure:
    """exp(sum of NLL / sum of tokens): token-weighted, so comparable only between models with one
    tokenizer."""
    return measure(name, rows, exp_ratio, better="lower")


def bits_per_byte(rows: Sequence[MeasureRow], name: str = "bits per byte") -> Measure:
    """sum of NLL / (ln 2 x bytes): comparable between tokenizers."""

    def statistic(sums: Array) -> Array:
        return ratio(sums[..., [NLL, BYTES]]) / log(2)

    return measure(name, rows, statistic, better="lower")


def mean_of_conversations(
    rows: Sequence[MeasureRow], name: str = "perplexity, mean of conversations"
) -> Measure:
    """The mean of the conversations' own perplexities: short ones count as much as long ones."""
    by_conversation: defaultdict[str, list[MeasureRow]] = defaultdict(list)
    for row in rows:
        by_conversation[conversation_of(row)].append(row)
    means = []
    for id, turns in by_conversation.items():
        nll, tokens = (sum(turn.stats[i] for turn in turns if turn.stats) for i in (NLL, TOKENS))
        stats, why = ((exp(nll / tokens), 1.0), "") if tokens else (None, turns[0].why)
        means.append(MeasureRow(id, turns[0].cluster, stats, why))
    return measure(name, means, ratio, better="lower")


def conversation_of(row: MeasureRow) -> str:
    """The id of the conversation that a turn is of."""
    return row.key.rpartition("/")[0]


def _said(rows: Sequence[MeasureRow]) -> list[MeasureRow]:
    """The turns, without the endings."""
    return [row for row in rows if not row.key.endswith("/end")]


def _at(rows: Sequence[MeasureRow], at: int, why: str) -> list[MeasureRow]:
    """Rows of the (NLL, tokens) that stand there; missing where there are no tokens."""
    return [
        replace(row, stats=row.stats[at : at + 2])
        if row.stats and row.stats[at + 1]
        else replace(row, stats=None, why=row.why or why)
        for row in rows
    ]

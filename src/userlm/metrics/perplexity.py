"""How well a model predicts what real people said. `userlm ppl` runs this on logs.

The figure is over the *words of real user turns*: no header, no newline after it, no closing token, no ending.
A row that is longer than the window is shortened as in training, so every model sees the same context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import log

from userlm.flip import Template, render
from userlm.stats import Array, exp_ratio, measure, ratio
from userlm.types import Conversation, Measure, MeasureRow, Score


def score_turns(
    conversation: Conversation, model: Score, template: Template, max_tokens: int = 2048
) -> Iterator[MeasureRow]:
    """A row for each user turn: (negative log-likelihood in nats, tokens, UTF-8 bytes), all sums.

    With the conversation's intent as the system turn, or without a system turn if it has none.
    """
    flipped = render(conversation, template, max_tokens)
    scored = model.score([(row.ids, row.mask(words_only=True)) for row in flipped.rows])
    cluster = conversation.user or conversation.id
    said = conversation.user_turns
    for row, logprobs in zip(flipped.rows, scored, strict=True):
        at = 0
        for target in row.targets:
            count = target.stop - 1 - target.first
            part = logprobs[at : at + count]
            at += count
            if target.k == len(said):
                continue  # the ending
            stats = (-sum(part), float(count), float(len(said[target.k].encode()))) if count else None
            yield MeasureRow(f"{conversation.id}/{target.k}", cluster, stats, "" if count else "no words")
    for k in flipped.dropped:
        if k < len(said):
            why = f"intent and turn do not fit {max_tokens} tokens"
            yield MeasureRow(f"{conversation.id}/{k}", cluster, None, why)


def without_intent(conversation: Conversation) -> Conversation:
    """The same conversation, nothing said of what the user is after."""
    return replace(conversation, intent=None)


def perplexity(rows: list[MeasureRow], name: str = "perplexity") -> Measure:
    """exp(sum of NLL / sum of tokens): token-weighted, so comparable only between models with one tokenizer."""
    return measure(name, rows, exp_ratio, better="lower")


def bits_per_byte(rows: list[MeasureRow], name: str = "bits per byte") -> Measure:
    """sum of NLL / (ln 2 x bytes): comparable between tokenizers."""

    def statistic(sums: Array) -> Array:
        return ratio(sums[..., [0, 2]]) / log(2)

    return measure(name, rows, statistic, better="lower")

"""Which conversations to keep. `userlm clean` runs `decide`.

Each filter returns its reason to drop a conversation, or `None`. The method is that of "Flipping
the Dialogue" (arXiv 2510.06552): English only, no template prompts, and a split by person.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from userlm.data import duplicates
from userlm.data.language import language, language_code
from userlm.data.ngrams import Ngrams, first_words, own_ngrams
from userlm.data.split import SHARES, Shares, person_hash, split
from userlm.data.summary import Summary
from userlm.rows import SPLITS
from userlm.types import Conversation

DUPLICATES = ("keep", "exact", "near")
FLAGS = ("toxic", "toxic_source", "redacted")
"""Flags that a log may set in `meta`. `toxic_source`: the log has toxic conversations only."""
_DUPLICATE_REASONS = {"exact": "duplicate", "near": "near-duplicate"}


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that decide whether a conversation is kept, and in which split.

    Attributes:
        languages: codes or names; `None`: all.
        flagged: keep conversations that the log flags as toxic or redacted.
        ngram: the length of the template filter's n-grams, in words.
        template_limit: an n-gram that occurs more often marks a template; `None`: keep templates.
        duplicates: `keep` them, or drop `exact` ones, or `near` ones too.
        similarity: the threshold for near-duplicates; see `duplicates.near`.
        shares: of people, for train, valid and test.
        seed: the seed of the split.
    """

    languages: tuple[str, ...] | None = ("en",)
    flagged: bool = False
    ngram: int = 7
    template_limit: int | None = 100
    duplicates: str = "keep"
    similarity: float = 0.7
    shares: Shares = SHARES
    seed: int = 0

    def reason(self, conversation: Conversation, code: str) -> str | None:
        """Return why a conversation is dropped, without a look at the others; `code` is its
        language."""
        reason = foreign(code, self.languages)
        if reason is None and not self.flagged:
            reason = flagged(conversation)
        return reason


@dataclass(slots=True)
class Decisions:
    """The decision for each conversation, in the order of the logs.

    Attributes:
        reasons: why it is dropped; `None` if it is kept.
        splits: the index in `SPLITS` of its split.
        copies: for each dropped duplicate, by index, the id of the conversation that is kept.
        table: the cost of counting n-grams; see `Ngrams.table`.
        figures: see `Summary.figures`.
    """

    reasons: list[str | None] = field(default_factory=list)
    splits: bytearray = field(default_factory=bytearray)
    copies: dict[int, str] = field(default_factory=dict)
    table: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


def decide(
    conversations: Iterable[Conversation], rules: Rules, scratch: Path
) -> Decisions:
    """Read all conversations once and return the decision for each.

    Memory use is a few dozen bytes per conversation, or half a kilobyte with near-duplicates.

    Args:
        scratch: a file for the n-grams while they are counted.
    """
    decisions = Decisions()
    summary = Summary()
    ngrams = Ngrams(scratch, rules.ngram)
    said = duplicates.Said(rules.duplicates, rules.similarity)
    # Indices of the conversations that no filter has dropped so far.
    fit = array("Q")
    try:
        for i, conversation in enumerate(conversations):
            code = language(conversation)
            reason = rules.reason(conversation, code)
            decisions.reasons.append(reason)
            name = split(conversation, rules.seed, rules.shares)
            decisions.splits.append(SPLITS.index(name))
            if reason is not None:
                continue
            fit.append(i)
            summary.add(conversation, person_hash(conversation, rules.seed), code)
            if rules.template_limit is not None:
                ngrams.add(conversation)
            if rules.duplicates != "keep":
                said.add(conversation)
        stays = np.ones(len(fit), dtype=np.bool_)
        if rules.template_limit is not None:
            _, is_template = ngrams.above(rules.template_limit)
            decisions.table = ngrams.table
            for at in np.flatnonzero(is_template).tolist():
                decisions.reasons[fit[at]] = "template prompt"
            stays &= ~is_template
    finally:
        ngrams.close()
    splits = np.frombuffer(decisions.splits, dtype=np.uint8)
    splits = splits[np.array(fit, dtype=np.int64)]
    if rules.duplicates != "keep":
        candidates = np.flatnonzero(stays)
        # Train first: of duplicates in train and test, the one in train is kept.
        order = candidates[np.argsort(splits[candidates], kind="stable")]
        copy_of = said.copies(order)
        for at in np.flatnonzero(copy_of >= 0).tolist():
            decisions.reasons[fit[at]] = _DUPLICATE_REASONS[rules.duplicates]
            decisions.copies[fit[at]] = said.ids[copy_of[at]]
            stays[at] = False
    parts = {name: stays & (splits == i) for i, name in enumerate(SPLITS)}
    decisions.figures = summary.figures(parts)
    return decisions


def foreign(code: str, languages: Collection[str] | None = ("en",)) -> str | None:
    """Return `language: zh`, for example, if the language is not wanted.

    Args:
        languages: the codes or names of the wanted languages; `None` means all.
    """
    if languages is None or code in languages or code in map(language_code, languages):
        return None
    return f"language: {code}"


def flagged(
    conversation: Conversation, *, toxic: bool = True, redacted: bool = True
) -> str | None:
    """Return `toxic` or `redacted` if the log says so; see `FLAGS`."""
    meta = conversation.meta
    if toxic and (meta.get("toxic") is True or meta.get("toxic_source") is True):
        return "toxic"
    return "redacted" if redacted and meta.get("redacted") is True else None


def template(
    conversation: Conversation, often: Mapping[int, int], n: int = 7
) -> tuple[str, int] | None:
    """Return the most frequent n-gram of the first user turn, and its count; `None` if there is
    none.

    All conversations with a frequent n-gram are dropped; none is kept as an example. A text of
    fewer than `n` words has no n-gram. The method is the paper's; the limit of 100 is from the only
    public re-implementation.

    Args:
        often: the frequent n-grams, from `Ngrams.above`.
    """
    counts = [often.get(key, 0) for key in own_ngrams(conversation, n)]
    if not any(counts):
        return None
    place = counts.index(max(counts))
    words = first_words(conversation)[place : place + n]
    return " ".join(words), counts[place]

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
"""What a log may say about itself in `meta`. `toxic_source`: a log of toxic conversations alone."""
_DUPLICATE_REASONS = {"exact": "duplicate", "near": "near-duplicate"}


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides whether a conversation stays, and in which split.

    Attributes:
        languages: codes or names; `None`: all.
        flagged: keep what its log calls toxic or redacted.
        ngram: words in an n-gram of the template filter.
        template_limit: an n-gram that occurs more often marks a template; `None`: keep templates.
        duplicates: `keep`, or drop what another user said before, `exact`ly or `near`ly.
        similarity: from which two conversations are near-duplicates; see `duplicates.near`.
        shares: of people, for train, valid and test.
        seed: of the split.
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
        """Return why a conversation is dropped, whatever the others are; `code` is its language."""
        reason = foreign(code, self.languages)
        if reason is None and not self.flagged:
            reason = flagged(conversation)
        return reason


@dataclass(slots=True)
class Decisions:
    """What becomes of each conversation, in the order of the logs.

    Attributes:
        reasons: why it is dropped; `None`: it stays.
        splits: the index in `SPLITS` of its split.
        copies: for those dropped as duplicates, by index, the id of the conversation that stays.
        table: what counting n-grams took; see `Ngrams.table`.
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
    """Read all conversations once and return what becomes of each.

    What stays in memory is a few dozen bytes a conversation, and half a kilobyte if near-duplicates
    are sought.

    Args:
        scratch: a file for the n-grams while they are counted.
    """
    decisions = Decisions()
    summary = Summary()
    ngrams = Ngrams(scratch, rules.ngram)
    said = duplicates.Said(rules.duplicates, rules.similarity)
    # Indices of the conversations that have no reason of their own to go.
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
        # Train first: a conversation that is in train and in test stays in train.
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
    """Return `language: zh` for a language that is not wanted.

    Args:
        languages: the codes or names of those that are; `None`: all are.
    """
    if languages is None or code in languages or code in map(language_code, languages):
        return None
    return f"language: {code}"


def flagged(
    conversation: Conversation, *, toxic: bool = True, redacted: bool = True
) -> str | None:
    """Return `toxic` or `redacted` where the log says so; see `FLAGS`."""
    meta = conversation.meta
    if toxic and (meta.get("toxic") is True or meta.get("toxic_source") is True):
        return "toxic"
    return "redacted" if redacted and meta.get("redacted") is True else None


def template(
    conversation: Conversation, often: Mapping[int, int], n: int = 7
) -> tuple[str, int] | None:
    """Return the most frequent n-gram of the first user turn, and its count; `None` if there is
    none.

    All conversations with a frequent n-gram are dropped, not all but one. A text of fewer than `n`
    words has none. The method is the paper's; the limit of 100 is that of the one public
    re-implementation.

    Args:
        often: the frequent n-grams, as `Ngrams.above` gives them.
    """
    counts = [often.get(key, 0) for key in own_ngrams(conversation, n)]
    if not any(counts):
        return None
    place = counts.index(max(counts))
    words = first_words(conversation)[place : place + n]
    return " ".join(words), counts[place]

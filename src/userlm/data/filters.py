"""Which conversations to keep. `userlm clean` runs `decide`.

`FILTERS` describes each reason to drop a conversation, once. The method is that of "Flipping
the Dialogue" (arXiv 2510.06552): English only, no template prompts, and a split by person.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from userlm.data import duplicates
from userlm.data.language import label_of, language, language_code
from userlm.data.ngrams import Ngrams, first_words, own_ngrams
from userlm.data.split import SHARES, Shares, person_hash, split
from userlm.data.summary import Summary
from userlm.rows import SPLITS
from userlm.types import Conversation

_TRUE = ("true", "t", "yes", "y", "1", "1.0")
FLAGS = ("toxic", "toxic_source", "redacted")
"""Flags that a log may set in `meta`. `toxic_source`: the log has toxic conversations only."""


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
        for each in FILTERS:
            if each.reason and each.is_on(self):
                details = each.reason(conversation, code, self)
                if details is not None:
                    return f"{each.name}: {details}" if details else each.name
        return None


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
                decisions.reasons[fit[at]] = TEMPLATE.name
            stays &= ~is_template
    finally:
        ngrams.close()
    splits = np.frombuffer(decisions.splits, dtype=np.uint8)
    splits = splits[np.array(fit, dtype=np.int64)]
    if rules.duplicates != "keep":
        candidates = np.flatnonzero(stays)
        # Train first: of duplicates in train and test, the one in train is kept.
        copy_of = said.copies(candidates, splits[candidates])
        reason = EXACT.name if EXACT.is_on(rules) else NEAR.name
        for at in np.flatnonzero(copy_of >= 0).tolist():
            decisions.reasons[fit[at]] = reason
            decisions.copies[fit[at]] = said.ids[copy_of[at]]
            stays[at] = False
    parts = {name: stays & (splits == i) for i, name in enumerate(SPLITS)}
    decisions.figures = summary.figures(parts)
    return decisions


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


# --- the filters ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """A reason to drop conversations.

    Attributes:
        name: the reason.
        about: what is dropped, in one sentence.
        is_on: whether the rules ask for it.
        reason: returns details of the reason to drop a conversation (empty if there are none), or
            `None` to keep it, from the conversation, the code of its language and the rules.
            Filters without it compare conversations; `decide` knows them.
        evidence: returns what the decision rests on, in words; by default `about` is shown.
    """

    name: str
    about: str
    is_on: Callable[[Rules], bool]
    reason: Callable[[Conversation, str, Rules], str | None] | None = None
    evidence: Callable[[Conversation, str, Rules], str] | None = None


def foreign(conversation: Conversation, code: str, rules: Rules) -> str | None:
    """Return `zh, by label`, for example, if the language is not wanted; `by identifier` if the log
    states none, or another one."""
    wanted = rules.languages
    if wanted is None or code in wanted or code in map(language_code, wanted):
        return None
    by = "label" if code == label_of(conversation) else "identifier"
    return f"{code}, by {by}"


def toxic(conversation: Conversation, code: str, rules: Rules) -> str | None:
    """Return no details if the log says that it is toxic; see `FLAGS`."""
    return _marked(conversation, "toxic", "toxic_source")


def redacted(conversation: Conversation, code: str, rules: Rules) -> str | None:
    """Return no details if the log says that it is redacted."""
    return _marked(conversation, "redacted")


def _marked(conversation: Conversation, *flags: str) -> str | None:
    """Return no details if one of the flags is set."""
    return "" if any(is_set(conversation.meta.get(flag)) for flag in flags) else None


def is_set(flag: Any) -> bool:
    """Return whether a flag is true; tables and databases write numbers or texts for it."""
    return str(flag).strip().lower() in _TRUE


def _language_source(conversation: Conversation, code: str, rules: Rules) -> str:
    label = conversation.meta.get("language")
    by = "by py3langid, from the turns"
    if code == label_of(conversation):
        by = f"its log says {label!r}"
    elif isinstance(label, str) and label.strip():
        by += f", although its log says {label!r}"
    wanted = "all are kept"
    if rules.languages is not None:
        wanted = f"kept: {', '.join(rules.languages)}"
    return f"{code}, {by}; {wanted}"


def _flags(conversation: Conversation, code: str, rules: Rules) -> str:
    meta = conversation.meta
    flags = [f"{name}: {meta[name]}" for name in FLAGS if name in meta]
    return ", ".join(flags) or "the log says nothing about it"


TEMPLATE = Filter(
    "template prompt",
    "An n-gram of the first turn occurs more often than --template-limit.",
    lambda rules: rules.template_limit is not None,
)
EXACT = Filter(
    "duplicate",
    "The user says the same as in another conversation.",
    lambda rules: rules.duplicates == "exact",
)
NEAR = Filter(
    "near-duplicate",
    "The user says nearly the same as in another conversation, or in its beginning.",
    lambda rules: rules.duplicates == "near",
)
FILTERS = (
    Filter(
        "language",
        "The language is none of --languages.",
        lambda rules: True,
        foreign,
        _language_source,
    ),
    Filter(
        "toxic",
        "The log flags it as toxic.",
        lambda rules: not rules.flagged,
        toxic,
        _flags,
    ),
    Filter(
        "redacted",
        "The log removed personal data from it.",
        lambda rules: not rules.flagged,
        redacted,
        _flags,
    ),
    TEMPLATE,
    EXACT,
    NEAR,
)
"""All reasons to drop a conversation, in the order in which they are checked. A filter that looks
at one conversation is added here and nowhere else."""

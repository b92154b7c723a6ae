"""Which conversations to keep, and who learns from them. `userlm clean` runs `decide`.

Each filter gives its reason to drop a conversation, or `None`. The method is that of "Flipping the
Dialogue" (arXiv 2510.06552): English only, no template prompts, and a split by people.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from userlm.data import duplicates
from userlm.data.ngrams import ngram_hashes, word_hashes
from userlm.data.summary import Summary
from userlm.rows import SPLITS, naming
from userlm.text import stable_hash
from userlm.types import Conversation, InputError

# --- all of it together ---------------------------------------------------------------------------

DUPLICATES = ("keep", "exact", "near")


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides whether a conversation stays, and in which split.

    Attributes:
        languages: codes or names; `None`: all.
        flagged: keep what its log calls toxic or redacted.
        ngram: words in an n-gram of the template filter.
        template_limit: an n-gram that occurs more often marks a template; `None`: keep templates.
        duplicates: `keep`, or drop what is said `exact`ly, or `near`ly, as somebody did before.
        similarity: from which two are nearly the same; see `duplicates.near`.
        shares: of train, valid and test, in people.
        seed: of the split.
    """

    languages: tuple[str, ...] | None = ("en",)
    flagged: bool = False
    ngram: int = 7
    template_limit: int | None = 100
    duplicates: str = "keep"
    similarity: float = 0.7
    shares: tuple[float, float, float] = (0.90, 0.05, 0.05)
    seed: int = 0

    def unfit(self, conversation: Conversation, code: str) -> str | None:
        """The reason that lies in a conversation alone; `code`: its language."""
        return foreign(code, self.languages) or (None if self.flagged else flagged(conversation))


@dataclass(slots=True)
class Decisions:
    """What becomes of each conversation, in the order of the logs.

    Attributes:
        reasons: why it is dropped; `None`: it stays.
        splits: the index in `SPLITS` where it belongs.
        copies: for those dropped as duplicates, by index, the id of the conversation that stays.
        table: what counting n-grams took; see `Ngrams.table`.
        figures: see `Summary.figures`.
    """

    reasons: list[str | None] = field(default_factory=list)
    splits: bytearray = field(default_factory=bytearray)
    copies: dict[int, str] = field(default_factory=dict)
    table: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


def decide(conversations: Iterable[Conversation], rules: Rules, scratch: Path) -> Decisions:
    """Read all conversations once and decide about each.

    What stays in memory is a few dozen bytes a conversation, and half a kilobyte if near-duplicates
    are sought.

    Args:
        scratch: a file for the n-grams while they are counted.
    """
    decisions, summary, ngrams = Decisions(), Summary(), Ngrams(scratch, rules.ngram)
    fit, ids, keys, signatures = array("Q"), list[str](), array("Q"), duplicates.Signatures()
    try:
        for i, conversation in enumerate(conversations):
            code = language(conversation)
            reason = rules.unfit(conversation, code)
            decisions.reasons.append(reason)
            drawn = draw(conversation, rules.seed)
            decisions.splits.append(SPLITS.index(_split(drawn, rules.shares)))
            if reason is not None:
                continue
            fit.append(i)
            summary.add(conversation, drawn, code)
            if rules.template_limit is not None:
                ngrams.add(conversation)
            if rules.duplicates != "keep":
                ids.append(conversation.id)
            if rules.duplicates == "exact":
                keys.append(duplicates.exact_key(conversation))
            elif rules.duplicates == "near":
                signatures.add(conversation)
        stays = np.ones(len(fit), dtype=np.bool_)
        if rules.template_limit is not None:
            _, hit = ngrams.above(rules.template_limit)
            decisions.table = ngrams.table
            for at in np.flatnonzero(hit).tolist():
                decisions.reasons[fit[at]] = "template prompt"
            stays &= ~hit
    finally:
        ngrams.close()
    where = np.frombuffer(decisions.splits, dtype=np.uint8)[np.array(fit, dtype=np.int64)]
    if rules.duplicates != "keep":
        left = np.flatnonzero(stays)
        order = left[
            np.argsort(where[left], kind="stable")
        ]  # what is in train and in test stays in train
        first = (
            duplicates.exact(np.array(keys, dtype=np.uint64), order)
            if rules.duplicates == "exact"
            else duplicates.near(signatures.matrix(), order, rules.similarity)
        )
        reason = "duplicate" if rules.duplicates == "exact" else "near-duplicate"
        for at in left[first[left] >= 0].tolist():
            decisions.reasons[fit[at]] = reason
            decisions.copies[fit[at]] = ids[first[at]]
            stays[at] = False
    decisions.figures = summary.figures(
        {name: stays & (where == i) for i, name in enumerate(SPLITS)}
    )
    return decisions


# --- language -------------------------------------------------------------------------------------

_TABLE = """
    af Afrikaans sq Albanian am Amharic ar Arabic hy Armenian az Azerbaijani eu Basque be Belarusian
    bn Bengali nb Bokmal bs Bosnian bg Bulgarian ca Catalan zh Chinese hr Croatian cs Czech da Danish
    nl Dutch en English eo Esperanto et Estonian fi Finnish fr French gl Galician lg Ganda ka Georgian
    de German el Greek gu Gujarati he Hebrew hi Hindi hu Hungarian is Icelandic id Indonesian ga Irish
    it Italian ja Japanese kk Kazakh ko Korean la Latin lv Latvian lt Lithuanian mk Macedonian ms Malay
    mi Maori mr Marathi mn Mongolian no Norwegian nn Nynorsk fa Persian pl Polish pt Portuguese
    pa Punjabi ro Romanian ru Russian sr Serbian sn Shona sk Slovak sl Slovene so Somali st Sotho
    es Spanish sw Swahili sv Swedish tl Tagalog ta Tamil te Telugu th Thai ts Tsonga tn Tswana
    tr Turkish uk Ukrainian ur Urdu uz Uzbek vi Vietnamese cy Welsh xh Xhosa yo Yoruba zu Zulu
    und Nolang und Unknown
""".split()
LANGUAGES = dict(zip(_TABLE[1::2], _TABLE[::2], strict=True))
"""English names of languages, as WildChat and LMSYS write them, to ISO 639 codes; `und`:
undetermined."""

_CODES = {name.lower(): code for name, code in LANGUAGES.items()}
_SURE = 0.5
_ENOUGH = 4000


@lru_cache(maxsize=1024)
def language_code(label: str) -> str:
    """`English`, `en`, `en-US` and `EN` are all `en`; a name that is not in `LANGUAGES` stays as it
    is."""
    if not label.isprintable():
        label = "".join(letter for letter in label if letter.isprintable())
    label = label.strip().lower()
    return _CODES.get(label) or label.replace("_", "-").partition("-")[0] or "und"


def language(conversation: Conversation) -> str:
    """The language as an ISO code: what the log says, else what py3langid says about the user's
    turns.

    Only a probability above 0.5 counts: below it, a short text in ASCII letters is taken for
    English ("numpy variance" is not Malagasy), and anything else is `und`.
    """
    label = conversation.meta.get("language")
    if isinstance(label, str) and label.strip():
        return language_code(label)
    text = "\n".join(conversation.user_turns)[:_ENOUGH]
    code, probability = _identify(text)
    if probability >= _SURE:
        return code
    letters = [letter for letter in text if letter.isalpha()]
    ascii_letters = sum(letter.isascii() for letter in letters)
    return "en" if letters and ascii_letters > len(letters) / 2 else "und"


def foreign(code: str, languages: Collection[str] | None = ("en",)) -> str | None:
    """`language: zh` for a language that is not among those wanted (codes or names); `None` wants
    them all."""
    if languages is None or code in languages or code in map(language_code, languages):
        return None
    return f"language: {code}"


def _identify(text: str) -> tuple[str, float]:
    code, probability = _identifier().classify(text)
    return str(code), float(probability)


@lru_cache(maxsize=1)
def _identifier():  # type: ignore[no-untyped-def]
    from py3langid.langid import (  # its model takes a moment to unpack
        MODEL_FILE,
        LanguageIdentifier,
    )

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


# --- what the log says about itself ---------------------------------------------------------------


def flagged(conversation: Conversation, *, toxic: bool = True, redacted: bool = True) -> str | None:
    """`toxic` or `redacted`, where the log says so. `toxic_source`: a log made of nothing else."""
    meta = conversation.meta
    if toxic and (meta.get("toxic") is True or meta.get("toxic_source") is True):
        return "toxic"
    return "redacted" if redacted and meta.get("redacted") is True else None


# --- template prompts -----------------------------------------------------------------------------


class Ngrams:
    """How often each word n-gram stands in the first user turns of all conversations.

    Words are what lies between white space, lower-cased; an n-gram counts as often as it stands in
    a text. The n-grams lie on the disk, 8 bytes each, until all are there. Then they are counted in
    two passes: first by the first bits of their hashes, in a table so large that a bucket holds a
    quarter of `limit` on average (nothing is frequent in a bucket that is not); then one by one,
    but only those in a bucket that holds more than `limit`.

    Args:
        path: a file to use meanwhile; `close` deletes it.
        n: words in an n-gram.
    """

    def __init__(self, path: Path, n: int = 7) -> None:
        if n < 1:
            raise InputError(f"n-grams of {n} words: give n >= 1")
        self.n, self._path = n, path
        self._file = path.open("w+b")
        self._words: list[str] = []  # of the texts whose n-grams are not yet in the file
        self._lengths: list[int] = []
        self._sizes: list[NDArray[np.int64]] = []
        self.total = 0  # n-grams
        self.table: dict[str, int] = {}
        """What counting took: n-grams, how many different ones were counted one by one, and
        bytes."""

    def add(self, conversation: Conversation) -> None:
        """Count the n-grams of one more first turn."""
        words = _opening(conversation)
        self._words += words
        self._lengths.append(len(words))
        if len(self._words) > 1 << 18:
            self._flush()

    def above(self, limit: int) -> tuple[dict[int, int], NDArray[np.bool_]]:
        """The n-grams that occur more often, as hash and count, and for each text in turn whether
        it has one."""
        self._flush()
        bits = max(LEAST_BITS, min(MOST_BITS, (4 * self.total // max(limit, 1)).bit_length()))
        shift = np.uint64(64 - bits)
        buckets = np.zeros(1 << bits, dtype=np.int64)
        for _, hashes in self._read():
            buckets += np.bincount((hashes >> shift).astype(np.intp), minlength=len(buckets))
        keys, counts = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        for _, hashes in self._read():
            full = hashes[buckets[(hashes >> shift).astype(np.intp)] > limit]
            more, times = np.unique(full, return_counts=True)
            keys, place = np.unique(np.concatenate([keys, more]), return_inverse=True)
            added = np.concatenate([counts, times])
            counts = np.zeros(len(keys), dtype=np.int64)
            np.add.at(counts, place, added)
        often = counts > limit
        self.table = {
            "n-grams": self.total,
            "counted one by one": len(keys),
            "bytes on disk": 8 * self.total,
        }
        self.table["bytes in memory"] = buckets.nbytes + keys.nbytes + counts.nbytes
        ends = (
            np.cumsum(np.concatenate(self._sizes)) if self._sizes else np.zeros(0, dtype=np.int64)
        )
        hit = np.zeros(len(ends), dtype=np.bool_)
        for at, hashes in self._read() if often.any() else ():
            found = np.flatnonzero(np.isin(hashes, keys[often])) + at
            hit[np.searchsorted(ends, found, side="right")] = True
        return dict(zip(keys[often].tolist(), counts[often].tolist(), strict=True)), hit

    def close(self) -> None:
        """Delete the file."""
        try:
            with naming(self._path):
                self._file.close()  # which writes what is left, and on a full disk fails
        finally:
            self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        lengths = np.array(self._lengths, dtype=np.int64)
        hashes, sizes = ngram_hashes(word_hashes(self._words), lengths, self.n)
        with naming(self._path):
            self._file.write(hashes.tobytes())
        self._sizes.append(sizes)
        self.total += len(hashes)
        self._words, self._lengths = [], []

    def _read(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """The n-grams, a part of the file at a time, each part with the number of its first
        n-gram."""
        with naming(self._path):
            self._file.seek(0, os.SEEK_SET)  # what is not yet on the disk goes there
        at = 0
        while block := self._file.read(1 << 23):
            hashes = np.frombuffer(block, dtype=np.uint64)
            yield at, hashes
            at += len(hashes)


LEAST_BITS, MOST_BITS = 15, 25
"""Of the hash of an n-gram, to count it by: from 256 kB to 256 MB, and as much again while a block
is counted."""


def template(
    conversation: Conversation, often: Mapping[int, int], n: int = 7
) -> tuple[str, int] | None:
    """The most frequent of the n-grams of the first user turn that `Ngrams.above` found, and its
    count.

    All conversations that have one go, not all but one. A text of fewer than `n` words never does.
    The method is the paper's; the limit of 100 is that of the one re-implementation that is public.
    """
    counts = [often.get(key, 0) for key in own_ngrams(conversation, n)]
    if not any(counts):
        return None
    place = counts.index(max(counts))
    return " ".join(_opening(conversation)[place : place + n]), counts[place]


def own_ngrams(conversation: Conversation, n: int = 7) -> list[int]:
    """The hashes of the n-grams of the first user turn, in order."""
    words = word_hashes(_opening(conversation))
    return [int(key) for key in ngram_hashes(words, np.array([len(words)]), n)[0]]


def _opening(conversation: Conversation) -> list[str]:
    first = next(iter(conversation.user_turns), "")
    return first.lower().split()


# --- splits ---------------------------------------------------------------------------------------


def person(conversation: Conversation) -> str:
    """Whom a conversation belongs to, for splits: the user, else its tree of replies, else itself
    alone."""
    if conversation.user is not None:
        return conversation.user
    tree = conversation.meta.get("tree")
    return conversation.id if tree is None else f"{conversation.meta.get('source', '')}/{tree}"


def split(
    conversation: Conversation,
    seed: int = 0,
    shares: tuple[float, float, float] = (0.90, 0.05, 0.05),
) -> Literal["train", "valid", "test"]:
    """Where a conversation goes: one draw for each person, so nobody is in two splits.

    The draw is a hash of seed and person, not a shuffle: it needs no pass over the logs, and when
    logs are added nobody moves from one split to another. The price is that the shares hold on
    average, in each country as in all, and not to the person. WildChat's people are addresses in a
    country, as in the paper.

    Args:
        shares: of people, for train, valid and test; they sum to 1.
    """
    return _split(draw(conversation, seed), shares)


def draw(conversation: Conversation, seed: int) -> int:
    """64 bits, the same for all conversations of a person, and no others'."""
    return stable_hash(seed, person(conversation))


def _split(drawn: int, shares: tuple[float, float, float]) -> Literal["train", "valid", "test"]:
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise InputError(f"shares {shares}: give three numbers from 0 to 1 that sum to 1")
    place = drawn / 2**64
    if place < shares[0]:
        return "train"
    return "valid" if place < shares[0] + shares[1] else "test"

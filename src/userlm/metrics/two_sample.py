"""How well a classifier tells simulated turns from those of people (a two-sample test; Lopez-Paz
and Oquab, 2017).

A logistic regression on character n-grams is trained on one half of the people and tested on the
other. It needs no detector of others: only the user's own logs. Even crowds of people differ, so
people are told from other people in the same way: the floor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from userlm.metrics.crowds import halves
from userlm.metrics.intrinsic import Conversations, cluster_name, own_turns
from userlm.stats import (
    MIN_CLUSTERS,
    Array,
    Flags,
    Indices,
    auroc_estimate,
    numbered,
)
from userlm.text import words
from userlm.types import Conversation, Measure, MeasureRow

OVERALL = "two-sample AUROC"
LENGTH_MATCHED = "two-sample AUROC, length-matched"
FIRST_TURNS = "two-sample AUROC, first turns"
LATER_TURNS = "two-sample AUROC, later turns"

SIZES = (2, 3, 4)
"""Characters in an n-gram."""
BITS = 18
"""Bits of an n-gram's hash."""
CHARACTERS = 1000
"""What counts of a longer turn."""
PENALTY = 1.0  # on the squared weights; the loss is summed over turns
STEPS = 150
STEP = 4.0
MOMENTUM = 0.9
TELLING = 8
"""How many n-grams are shown of each side."""

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class TellingNgram:
    """An n-gram that gives a side away; shares are of its tested turns, in percent."""

    text: str
    simulated: float
    human: float


class Turns(NamedTuple):
    """Turns of both sides, one entry each.

    Attributes:
        keys: their names in `scores.jsonl`.
        number: the number of the turn in its conversation, from 0.
    """

    keys: list[str]
    texts: list[str]
    number: Indices
    simulated: Flags
    clusters: list[str]


class Features(NamedTuple):
    """Which n-grams each turn has: row and column of each entry that is not 0, and its value; the
    squares of a row sum to 1."""

    row: Indices
    column: Indices
    value: Array
    rows: int


def compare(
    simulated: Conversations, people: Conversations
) -> tuple[list[Measure], list[TellingNgram]]:
    """Return the AUROC of telling simulated turns from people's: overall, among turns of similar
    length, of first turns and of later turns; and the n-grams that tell most.

    Half of the clusters of both sides train it. Rows are the tested turns; their stats are the
    log-odds of being simulated, and 1 if it is, else 0.
    """
    measures, telling = _compared(simulated, people)
    return measures, list(telling)


def floor(people: Conversations) -> list[Measure]:
    """Return the same for people against other people: one half of them stands for simulated
    users."""
    measures, _ = _compared(*two_sides(people))
    return measures


def two_sides(people: Conversations) -> tuple[list[Conversation], list[Conversation]]:
    """Return one half of the people and the other, divided independently of training and test."""
    sides: tuple[list[Conversation], list[Conversation]] = ([], [])
    kept = list(people)
    side_of = halves(map(cluster_name, kept), "side")
    for person in kept:
        sides[1 - side_of[cluster_name(person)]].append(person)
    return sides


def _compared(
    simulated: Conversations, people: Conversations
) -> tuple[list[Measure], Iterable[TellingNgram]]:
    """Return `compare`; what tells most is found when it is asked for."""
    names = (OVERALL, LENGTH_MATCHED, FIRST_TURNS, LATER_TURNS)
    turns = _turns(simulated, people)
    half_of = halves(turns.clusters)
    tested = np.array([half_of[cluster] for cluster in turns.clusters], dtype=bool)
    if why := _too_few(turns, tested):
        return [Measure(name, None, None, None, (), why=why) for name in names], []
    features = _features(turns.texts)
    weights = _fit(features, turns.simulated, ~tested)
    scores = _scores(features, weights)
    lengths = np.array([len(words(text)).bit_length() for text in turns.texts])
    one_length = np.zeros_like(lengths)
    is_first = turns.number == 0
    measures = [
        _measure(OVERALL, turns, scores, tested, one_length),
        _measure(LENGTH_MATCHED, turns, scores, tested, lengths),
        _measure(FIRST_TURNS, turns, scores, tested & is_first, one_length),
        _measure(LATER_TURNS, turns, scores, tested & ~is_first, one_length),
    ]
    return measures, _telling(turns, features, weights, tested)


def _turns(simulated: Conversations, people: Conversations) -> Turns:
    found = Turns([], [], np.zeros(0, int), np.zeros(0, bool), [])
    number = []
    sides = []
    for is_simulated, conversations in ((True, simulated), (False, people)):
        prefix = "" if is_simulated else "human: "
        for conversation in conversations:
            for turn in own_turns(conversation):
                found.keys.append(f"{prefix}{conversation.id}/{turn.k}")
                found.texts.append(turn.text)
                found.clusters.append(cluster_name(conversation))
                number.append(turn.k)
                sides.append(is_simulated)
    return found._replace(number=np.array(number, int), simulated=np.array(sides, bool))


def _too_few(turns: Turns, tested: Flags) -> str:
    """Return why there are too few people to train and to test, else nothing."""
    for is_simulated in (True, False):
        for is_tested in (True, False):
            here = (turns.simulated == is_simulated) & (tested == is_tested)
            found = {turns.clusters[i] for i in np.flatnonzero(here)}
            if len(found) < MIN_CLUSTERS:
                return (
                    f"{MIN_CLUSTERS} people (or intents) of each side are needed to train the "
                    "classifier, and as many others to test it"
                )
    return ""


def _measure(
    name: str, turns: Turns, scores: Array, wanted: Flags, length: Indices
) -> Measure:
    """Return the AUROC of the wanted turns, each compared with those of the same length."""
    at = np.flatnonzero(wanted)
    rows = []
    for i in at:
        stats = (float(scores[i]), float(turns.simulated[i]))
        rows.append(MeasureRow(turns.keys[i], turns.clusters[i], stats))
    found = None
    if len(at):
        _, cluster_of = numbered([turns.clusters[i] for i in at])
        positive = turns.simulated[at]
        found = auroc_estimate(scores[at], positive, cluster_of, length[at])
    if not found or found.value is None:
        why = "no such turns on both sides"
        return Measure(name, None, None, None, tuple(rows), why=why)
    return Measure(name, found.value, found.low, found.high, tuple(rows))


# --- the classifier -------------------------------------------------------------------------------


def _characters(texts: Sequence[str]) -> tuple[Indices, Indices]:
    """Return the characters of all texts, and the number of each one's text. Each text is cut, with
    single spaces, and one before and after it."""
    padded = [f" {_SPACE.sub(' ', text[:CHARACTERS]).strip()} " for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32)
    text_of = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
    return codes.astype(np.intp), text_of


def _ngrams(texts: Sequence[str]) -> Iterator[tuple[int, Indices, Indices, Indices]]:
    """Yield for each size: the size, where its n-grams start, their texts and their columns."""
    codes, text_of = _characters(texts)
    for size in SIZES:
        hashes = np.zeros(max(len(codes) - size + 1, 0), dtype=np.uint64)
        for place in range(size):
            hashes *= np.uint64(0x100000001B3)
            hashes += codes[place : place + len(hashes)].astype(np.uint64)
        column = (hashes * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - BITS)
        first = text_of[: len(hashes)]
        inside = first == text_of[size - 1 :]  # not across two texts
        yield (
            size,
            np.flatnonzero(inside),
            first[inside],
            column[inside].astype(np.intp),
        )


def _features(texts: Sequence[str]) -> Features:
    pairs = [(row << BITS) | column for _, _, row, column in _ngrams(texts)]
    entries = np.sort(np.concatenate(pairs))
    # numpy's `unique` hashes, which takes many times as long.
    entries = entries[np.append(True, entries[1:] != entries[:-1])]
    row = entries >> BITS
    sizes = np.bincount(row, minlength=len(texts))
    return Features(row, entries & ((1 << BITS) - 1), sizes[row] ** -0.5, len(texts))


def _scores(features: Features, weights: Array) -> Array:
    """Return the log-odds of being simulated."""
    parts = features.value * weights[features.column]
    return np.asarray(np.bincount(features.row, parts, features.rows), float)


def _fit(features: Features, simulated: Flags, trained: Flags) -> Array:
    """Return the weights of the logistic regression, by gradient descent with Nesterov's momentum.
    Both sides weigh the same, whatever their numbers of turns."""
    rows = np.flatnonzero(trained)
    is_simulated = simulated[rows]
    share = np.where(
        is_simulated, 0.5 / is_simulated.sum(), 0.5 / (~is_simulated).sum()
    )
    kept = trained[features.row]
    row = features.row[kept]
    column = features.column[kept]
    # Frequent columns come first: what is near each other in memory is read faster.
    held = np.bincount(column, minlength=1 << BITS)
    columns = np.argsort(-held, kind="stable")[: np.count_nonzero(held)]
    column = _numbered(columns, 1 << BITS)[column]
    # Entries of a row are together already; in another order, those of a column are.
    row_starts = np.searchsorted(row, rows)
    value = features.value[kept][row_starts]
    row_by_column = _numbered(rows, len(trained))[
        row[np.argsort(column, kind="stable")]
    ]
    column_starts = np.cumsum(held[columns]) - held[columns]
    penalty = PENALTY / len(rows)
    found = np.zeros(len(columns))
    velocity = np.zeros(len(columns))
    for _ in range(STEPS):
        ahead = found + MOMENTUM * velocity
        scores = value * np.add.reduceat(ahead[column], row_starts)
        wrong = share * (1 / (1 + np.exp(-scores)) - is_simulated)
        slope = np.add.reduceat((value * wrong)[row_by_column], column_starts)
        velocity = MOMENTUM * velocity - STEP * (slope + penalty * ahead)
        found += velocity
    weights = np.zeros(1 << BITS)
    weights[columns] = found
    return weights


def _numbered(kept: Indices, size: int) -> Indices:
    """Return the place of each number below `size` among those that are kept; 0 for others."""
    places = np.zeros(size, int)
    places[kept] = np.arange(len(kept))
    return places


def _telling(
    turns: Turns, features: Features, weights: Array, tested: Flags
) -> Iterator[TellingNgram]:
    """Yield the n-grams that separate the tested turns most: those of simulated users, then those
    of people. No two share two characters in a row."""
    shares = []
    means = []
    for side in (turns.simulated & tested, ~turns.simulated & tested):
        of_side = side[features.row]
        has = features.column[of_side]
        shares.append(np.bincount(has, minlength=1 << BITS) / side.sum())
        value = features.value[of_side]
        means.append(np.bincount(has, value, minlength=1 << BITS) / side.sum())
    for sign in (1, -1):
        wanted = sign * weights > 0
        pulls = np.where(wanted, weights * (means[0] - means[1]), 0)
        columns = np.argsort(-pulls, kind="stable")[: 20 * TELLING]
        texts = _ngrams_of(turns.texts, columns[pulls[columns] > 0])
        chosen: list[str] = []
        for column, text in texts.items():
            # Overlapping n-grams tell the same.
            parts = {text[i : i + 2] for i in range(len(text) - 1)}
            is_new = not any(part in other for part in parts for other in chosen)
            if is_new and len(chosen) < TELLING:
                chosen.append(text)
                simulated, human = (float(100 * share[column]) for share in shares)
                yield TellingNgram(text, simulated, human)


def _ngrams_of(texts: Sequence[str], columns: Indices) -> dict[int, str]:
    """Return the n-gram of each column, in their order; of several the first, shortest one."""
    codes, _ = _characters(texts)
    is_wanted = np.zeros(1 << BITS, bool)
    is_wanted[columns] = True
    found: dict[int, str] = {}
    for size, starts, _, column in _ngrams(texts):
        at = np.flatnonzero(is_wanted[column])
        shared, first = np.unique(column[at], return_index=True)
        for one, start in zip(shared.tolist(), starts[at[first]].tolist(), strict=True):
            found.setdefault(one, "".join(map(chr, codes[start : start + size])))
    return {column: found[column] for column in columns.tolist()}

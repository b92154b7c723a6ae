"""How often the 95 % intervals of each kind of statistic hold the true value.

    python bench/intervals.py --data ../shared/data

A sample is a number of clusters (people, intents, tasks), drawn with replacement from a finite
population whose value is known. Populations are made (clusters of unequal size that differ, with an
intra-cluster correlation of 0.2; tasks with ten conversations each, and a correlation of 0.5), or
are the people of real logs: with `--data`, how many words
each said a turn, how often they asked, and perplexities made for turns of these lengths. A row says
how many of the intervals held the true value, and the median ratio of their ends (of differences,
shares and ranks: their median length); `-` where fewer than half of the samples had an interval.
The last column has the percentage of samples without one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import HEAVY_HEAD, MARKDOWN
from rich.console import Console
from rich.table import Table

from userlm.metrics.agreement import KAPPA
from userlm.metrics.comparison import (
    GAIN,
    Pair,
    kendall,
    ranks,
    spearman,
)
from userlm.metrics.intrinsic import diversity_estimate
from userlm.stats import (
    F1,
    FRACTION,
    MEAN,
    PERCENT,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    Array,
    Estimate,
    Indices,
    Statistic,
    auroc,
    auroc_estimate,
    estimate,
    paired_difference,
)
from userlm.text import words

CLUSTERS = (5, 8, 30, 120)
AT_FEW = 8
PEOPLE = 4000
"""The number of clusters in a population that is made."""

ICC = 0.2
REPEATS = 10
"""Conversations about a task."""
TASK_ICC = 0.5
"""The intra-cluster correlation of what is solved: most tasks are solved nearly always or nearly
never."""
LOGS = ("halie", "realhumaneval", "oasst1_en_val", "star")
"""Logs that name their people."""


@dataclass(frozen=True)
class Kind:
    """A statistic of a population.

    Attributes:
        clusters: the size of the population.
        estimate: the estimate from a sample, given as the numbers of its clusters.
        is_ratio: whether the width is shown as the ratio of the ends, not as their difference.
        is_unique: whether a sample holds a cluster at most once: a pair of an item with itself is
            no pair.
    """

    name: str
    clusters: int
    truth: float
    estimate: Callable[[Indices], Estimate]
    is_ratio: bool = False
    is_unique: bool = False


@dataclass(frozen=True)
class Coverage:
    """Attributes: the shares are in percent; `width` is a median."""

    kind: str
    clusters: int
    held: float | None
    width: float | None
    without: float


# --- populations that are made --------------------------------------------------------------------


def made(rng: np.random.Generator) -> Iterator[Kind]:
    """Yield all kinds of statistics on populations that are made."""
    sizes = _sizes(rng)
    person = np.repeat(np.arange(PEOPLE), sizes)

    lengths = np.exp(2 + 0.8 * _correlated(rng, person))
    yield of_sums("mean", _sums(person, lengths, np.ones(len(person))), MEAN)
    for share in (0.05, 0.5, 0.95):
        has = _coins(rng, person, share)
        yield of_sums(
            f"share near {share}", _sums(person, has, np.ones(len(person))), PERCENT
        )
    tokens = np.ceil(lengths)
    letters = np.ceil(tokens * np.exp(1.5 + 0.2 * _correlated(rng, person)))
    yield of_sums("ratio of sums", _sums(person, letters, tokens), MEAN)
    nll = tokens * (3 + 0.5 * _correlated(rng, person))
    yield of_sums("perplexity", _sums(person, nll, tokens), PERPLEXITY)
    gain = tokens * (-0.1 + 0.3 * _correlated(rng, person))
    yield of_sums("paired ratio", _sums(person, gain, tokens), PERPLEXITY_RATIO)

    for ends in (0.1, 0.3):
        ended = _coins(rng, person, ends)
        said = np.where(ended, _coins(rng, person, 0.6), _coins(rng, person, 0.2))
        outcomes = (ended * said, (1 - ended) * said, ended * (1 - said))
        yield of_sums(f"F1, {ends:.0%} ends", _sums(person, *outcomes), F1)

    ended = _coins(rng, person, 0.3) == 1
    noise = _correlated(rng, person)
    for area, shift in ((0.5, 0.0), (0.75, 0.9539), (0.95, 2.3262)):
        yield _of_ranks(f"AUROC {area}", noise + shift * ended, ended, sizes)

    level = rng.normal(size=PEOPLE)[person]
    for name, a_share, b_share in (("0.5", 0.5, 0.6), ("0.05", 0.05, 0.05)):
        sides = [_coins(rng, person, share, level) for share in (a_share, b_share)]
        of_sides = [_sums(person, one, np.ones(len(person))) for one in sides]
        yield _of_two(f"difference of shares near {name}", *of_sides, PERCENT)
    other = np.exp(2.1 + 0.8 * (0.4 * level + _correlated(rng, person)) / 1.1)
    means = [_sums(person, one, np.ones(len(person))) for one in (lengths, other)]
    yield _of_two("difference of means", *means, MEAN)
    yield _of_pairs("pairwise diversity", rng)
    for same in (0.8, 0.95):
        yield _of_labels(f"Cohen's kappa, {same:.0%} alike", rng.spawn(1)[0], same)


def of_tasks(rng: np.random.Generator) -> Iterator[Kind]:
    """Yield what is measured of conversations about tasks, and differences between assistants."""
    task = np.repeat(np.arange(PEOPLE), REPEATS)
    level = rng.normal(size=PEOPLE)[task]
    ones = np.ones(len(task))
    for a_share, b_share in ((0.05, 0.05), (0.5, 0.6), (0.9, 0.95)):
        sides = []
        for share in (a_share, b_share):
            # An assistant finds other tasks hard than the other one does, to some extent.
            own = 0.9 * level + math.sqrt(1 - 0.9**2) * rng.normal(size=PEOPLE)[task]
            solved = _coins(rng, task, share, own, TASK_ICC)
            sides.append(_sums(task, solved, ones))
        yield of_sums(f"score of tasks near {a_share}", sides[0], PERCENT)
        yield _of_two(f"difference of scores of tasks near {a_share}", *sides, PERCENT)
    # The cells of tests/scripted_speakers.py: a user who forgets a fact in 20 to 80 % of the
    # conversations about a task; an assistant that then cannot solve it, and one that guesses.
    forgets = rng.choice([0.2, 0.4, 0.6, 0.8], PEOPLE)[task]
    waits = _sums(task, (rng.random(len(task)) >= forgets).astype(float), ones)
    guesses = _sums(task, (rng.random(len(task)) < 0.25).astype(float), ones)
    yield of_sums("scripted grid of tasks: score", waits, PERCENT)
    yield _of_two("scripted grid of tasks: difference", waits, guesses, PERCENT)
    one = np.ones(PEOPLE)
    length = np.exp(0.8 + 0.5 * rng.normal(size=PEOPLE))
    turns = np.clip(rng.poisson(length[:, None], (PEOPLE, REPEATS)), 1, 8)
    for name, value in (
        ("turn variance of tasks", turns.var(axis=1)),
        ("most turns of tasks", turns.max(axis=1)),
    ):
        yield of_sums(name, np.stack([value, one], axis=1), MEAN)
    unlike = rng.beta(4, 3, PEOPLE)
    yield of_sums(
        "unigram difference of tasks", np.stack([unlike, one], axis=1), FRACTION
    )


def _sizes(rng: np.random.Generator) -> Indices:
    """How many items each cluster has: few have many."""
    return np.maximum(1, np.round(rng.lognormal(1.2, 0.9, PEOPLE))).astype(int)


def _correlated(rng: np.random.Generator, person: Indices) -> Array:
    """Standard normal numbers of items, correlated inside each cluster."""
    of_person = rng.normal(size=person.max() + 1)[person]
    own = rng.normal(size=len(person))
    return math.sqrt(ICC) * of_person + math.sqrt(1 - ICC) * own


def _coins(
    rng: np.random.Generator,
    person: Indices,
    share: float,
    level: Array | None = None,
    icc: float = ICC,
) -> Array:
    """1 for about this share of the items, else 0; by their cluster's own share (beta), or by their
    cluster's level and own noise."""
    if level is None:
        weight = 1 / icc - 1
        own = rng.beta(share * weight, (1 - share) * weight, PEOPLE)
        return (rng.random(len(person)) < own[person]).astype(float)
    shown = math.sqrt(icc) * level + math.sqrt(1 - icc) * rng.normal(size=len(person))
    return (shown < np.quantile(shown, share)).astype(float)


def _sums(person: Indices, *columns: Array) -> Array:
    return np.stack([np.bincount(person, column) for column in columns], axis=1)


# --- tasks ----------------------------------------------------------------------------------------


def of_comparisons(rng: np.random.Generator) -> Iterator[Kind]:
    """Yield what `userlm compare` says of conversations about tasks, which differ in how often they
    are solved."""
    for repeats in (1, 10):
        for score in (0.5, 0.9):
            yield _of_scores(rng.spawn(1)[0], repeats, score)
    yield _of_failures(rng.spawn(1)[0])
    for name, agreement in (("Kendall's tau", kendall), ("Spearman's rho", spearman)):
        yield _of_human_scores(rng.spawn(1)[0], name, agreement)


def _solved(rng: np.random.Generator, chance: Array, repeats: int) -> Array:
    """1 for each conversation that is solved: (tasks, repeats)."""
    return (rng.random((len(chance), repeats)) < chance[:, None]).astype(float)


def _of_scores(rng: np.random.Generator, repeats: int, score: float) -> Kind:
    """Two assistants, the second one about 10 points worse; each finds other tasks hard, too."""
    level = rng.normal(size=PEOPLE)
    sides = []
    for share in (score, score - 0.1):
        own = level + rng.normal(size=PEOPLE) + 1.5 * math.log(share / (1 - share))
        solved = _solved(rng, 1 / (1 + np.exp(-own)), repeats).sum(axis=1)
        sides.append(np.stack([solved, np.full(PEOPLE, repeats)], axis=1))
    name = f"difference of scores near {score}, {repeats} repeats"
    return _of_two(name, *sides, PERCENT)


def _of_failures(rng: np.random.Generator) -> Kind:
    """What about half of ten conversations have, which are solved 20 points less often."""
    has = _solved(rng, rng.beta(2, 2, PEOPLE), 10)
    chance = 0.25 + 0.7 * rng.beta(2, 2, PEOPLE)[:, None] - 0.2 * has
    solved = (rng.random(has.shape) < chance).astype(float)
    with_it, without = has.sum(axis=1), (1 - has).sum(axis=1)
    apart = (solved * has).sum(axis=1) * without - (solved * (1 - has)).sum(
        axis=1
    ) * with_it
    sums = np.stack([apart, with_it * without], axis=1) / 10
    return of_sums("gain within tasks", sums, GAIN)


def _of_human_scores(
    rng: np.random.Generator, name: str, agreement: Callable[[Array, Array], float]
) -> Kind:
    """Scores of tasks with people and with a user, ten conversations each."""
    tasks = PEOPLE // 4
    level = rng.normal(size=tasks)
    scores = []
    for _ in range(2):
        chance = 1 / (1 + np.exp(-level - 0.7 * rng.normal(size=tasks)))
        scores.append(100 * _solved(rng, chance, 10).mean(axis=1))
    human, simulated = scores

    def of_sample(sample: Indices) -> Estimate:
        pairs = [Pair(str(i), human[i], simulated[i]) for i in sample]
        return ranks(pairs)[name]

    truth = agreement(human, simulated)
    return Kind(name, tasks, truth, of_sample, is_unique=True)


# --- kinds of statistics --------------------------------------------------------------------------


def of_sums(name: str, sums: Array, statistic: Statistic) -> Kind:
    """Return a statistic of column sums: (clusters, columns)."""
    truth = float(statistic.of(sums.sum(axis=0)))
    return Kind(
        name,
        len(sums),
        truth,
        lambda sample: estimate(sums[sample], statistic),
        is_ratio=math.isinf(statistic.most),
    )


def _of_two(name: str, a: Array, b: Array, statistic: Statistic) -> Kind:
    truth = float(statistic.of(a.sum(axis=0)) - statistic.of(b.sum(axis=0)))

    def of_sample(sample: Indices) -> Estimate:
        return paired_difference(a[sample], b[sample], statistic)

    return Kind(name, len(a), truth, of_sample)


def _of_labels(name: str, rng: np.random.Generator, same: float) -> Kind:
    """Two labellings of the same items, with two labels, of which so many are the same."""
    person = np.repeat(np.arange(PEOPLE), _sizes(rng))
    first = _coins(rng, person, 0.7)
    is_same = _coins(rng, person, same)
    second = np.where(is_same == 1, first, 1 - first)
    sums = _sums(person, is_same, first, 1 - first, second, 1 - second)
    return of_sums(name, sums, KAPPA)


def _of_ranks(name: str, scores: Array, ended: Array, sizes: Indices) -> Kind:
    first = np.cumsum(sizes) - sizes
    truth = auroc(scores[ended], scores[~ended])
    assert truth is not None

    def of_sample(sample: Indices) -> Estimate:
        cluster_of = np.repeat(np.arange(len(sample)), sizes[sample])
        starts = np.repeat(first[sample] - np.cumsum(sizes[sample]), sizes[sample])
        items = starts + sizes[sample][cluster_of] + np.arange(len(cluster_of))
        if ended[items].all() or not ended[items].any():
            return Estimate(None, None, None, len(sample))
        return auroc_estimate(scores[items], ended[items], cluster_of)

    return Kind(name, len(sizes), truth, of_sample)


def _of_pairs(name: str, rng: np.random.Generator) -> Kind:
    """Mean Jaccard distance of first turns: each cluster prefers its own words."""
    clusters = PEOPLE // 4
    texts: list[list[set[str]]] = []
    for _ in range(clusters):
        own = rng.zipf(1.3, 12) % 997
        count = max(1, round(rng.lognormal(0.5, 0.6)))
        texts.append([])
        for _ in range(count):
            size = int(rng.integers(4, 16))
            drawn = np.where(
                rng.random(size) < 0.3, rng.choice(own, size), rng.zipf(1.3, size) % 997
            )
            texts[-1].append(set(map(str, drawn)))

    def of_sample(sample: Sequence[int] | Indices) -> Estimate:
        word_sets = [one for cluster in sample for one in texts[cluster]]
        names = [str(cluster) for cluster in sample for _ in texts[cluster]]
        return diversity_estimate(word_sets, names)[1]

    truth = of_sample(range(clusters)).value
    assert truth is not None
    return Kind(name, clusters, truth, of_sample, is_unique=True)


# --- people of real logs --------------------------------------------------------------------------


def real(folder: Path, rng: np.random.Generator) -> Iterator[Kind]:
    """Yield statistics of the people of each log."""
    for log in LOGS:
        # Each turn once: the threads of a tree share their first turns.
        people: defaultdict[str, dict[tuple[str, str], str]] = defaultdict(dict)
        with gzip.open(folder / f"{log}.jsonl.gz", "rt") as lines:
            for line in lines:
                row = json.loads(line)
                for message in row["messages"]:
                    text = message["content"]
                    if message["role"] == "user" and words(text):
                        place = row.get("tree") or row["id"]
                        people[row["user_id"] or row["id"]][place, text] = text
        texts = [list(said.values()) for said in people.values()]
        turns = [len(said) for said in texts]
        spoken = [sum(len(words(text)) for text in said) for said in texts]
        asked = [sum("?" in text for text in said) for said in texts]
        name = f"{log}, {len(people)} people"
        yield of_sums(f"words a turn: {name}", _columns(spoken, turns), MEAN)
        yield of_sums(f"share of questions: {name}", _columns(asked, turns), PERCENT)
        # What a model makes of these turns is made: nats a word, and its gain by an intent.
        tokens = np.array([len(words(text)) for said in texts for text in said])
        person = np.repeat(np.arange(len(people)), turns)
        nll = tokens * (3 + 0.5 * _correlated(rng, person))
        gain = tokens * (-0.1 + 0.3 * _correlated(rng, person))
        of_nll, of_gain = (_sums(person, one, tokens) for one in (nll, gain))
        yield of_sums(f"perplexity: {name}", of_nll, PERPLEXITY)
        yield of_sums(f"paired ratio: {name}", of_gain, PERPLEXITY)


def _columns(*columns: Sequence[int]) -> Array:
    return np.array(columns, float).T


# --- coverage -------------------------------------------------------------------------------------


def coverage(kind: Kind, clusters: int, repetitions: int, seed: int) -> Coverage:
    """Return how often the intervals of samples of so many clusters hold the true value."""
    rng = np.random.default_rng([seed, clusters])
    held = []
    widths = []
    for _ in range(repetitions):
        sample = rng.choice(kind.clusters, clusters, replace=not kind.is_unique)
        _, low, high, _ = kind.estimate(sample)
        if low is None or high is None:
            continue
        held.append(low <= kind.truth <= high)
        widths.append(high / low if kind.is_ratio else high - low)
    without = 100 * (1 - len(held) / repetitions)
    if without > 50:
        return Coverage(kind.name, clusters, None, None, without)
    return Coverage(
        kind.name,
        clusters,
        100 * float(np.mean(held)),
        float(np.median(widths)),
        without,
    )


def is_right(found: Coverage) -> bool:
    """Return whether it is 92 to 98 %; with few clusters it may be more."""
    if found.held is None:
        return True
    return found.held >= 92 and (found.clusters <= AT_FEW or found.held <= 98)


def _cell(found: Coverage) -> str:
    if found.held is None:
        return "-"
    mark = "" if is_right(found) else " !"
    return f"{found.held:.1f} ({found.width:.3g}){mark}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of real logs")
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--markdown", action="store_true", help="print for docs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rng = np.random.default_rng(arguments.seed)
    kinds = [*made(rng), *of_tasks(np.random.default_rng(arguments.seed))]
    kinds += of_comparisons(rng)
    if arguments.data:
        kinds += real(arguments.data, rng)
    head = ("kind", "value", *(f"{n} clusters" for n in CLUSTERS), "without, %")
    table = Table(*head, box=MARKDOWN if arguments.markdown else HEAVY_HEAD)
    found = []
    for kind in kinds:
        if arguments.only not in kind.name:
            continue
        row = [
            coverage(kind, n, arguments.repetitions, arguments.seed) for n in CLUSTERS
        ]
        found += row
        none = ", ".join(f"{one.without:.0f}" for one in row)
        table.add_row(kind.name, f"{kind.truth:.3g}", *map(_cell, row), none)
    Console(width=150).print(table)
    wrong = sum(not is_right(one) for one in found)
    print(f"{len(found)} cells, {wrong} outside 92 to 98 % (few clusters: above 92 %)")
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(one) for one in found], indent=1))


if __name__ == "__main__":
    main()

"""When a user should leave who goes by P(end): the threshold of `--end-threshold`, and how true
P(end) is.

`userlm score` calibrates it on what `userlm respond` made of real conversations, where it is known
at each turn whether the person left. First turns cannot be endings and are not in it. All shares
are in percent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from userlm.stats import Array, f1_percent, measure
from userlm.types import Measure, MeasureRow

_SMALL = [
    round(digit * 10.0**power, 7) for power in range(-6, -1) for digit in (1, 1.5, 2, 3, 5, 7)
]
THRESHOLDS = (
    *_SMALL,
    *(i / 100 for i in range(10, 91)),
    *(round(1 - p, 7) for p in reversed(_SMALL)),
)
"""What can be suggested: 0.000001 to 0.999999, in steps that are about even in the odds. They do
not come from the data, so a suggestion is a number that a person would type, and there are few to
choose from."""

BINS = 10

RULES = {"now": "now", "best": "best F1", "equal": "equal rate"}
"""Fields of `Endings`, and how they are called where they are shown."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """What a user does by one rule for leaving, beside what people did. In percent.

    Attributes:
        above: the user leaves when P(end) is at least this; `None`: what it did in the run.
        early: at how many of the turns where the person went on it leaves: too early.
        late: at how many of those where the person left it stays: too long.
        leaves: at how many of all it leaves.
        f1, low, high: of leaving, as in `intrinsic.termination`, with a 95 % interval over people.
    """

    above: float | None
    early: float
    late: float
    leaves: float
    f1: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """The same for all `THRESHOLDS`, each of them for all people. The items of the five belong
    together."""

    above: tuple[float, ...]
    early: tuple[float, ...]
    late: tuple[float, ...]
    leaves: tuple[float, ...]
    f1: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bin:
    """So many answers with much the same P(end): its mean, and how often the person left, both from
    0 to 1."""

    n: int
    p_end: float
    ended: float


@dataclass(frozen=True, slots=True)
class Endings:
    """How the endings of one user can be tuned.

    Attributes:
        n, missing: answers with P(end), and without.
        why: there is nothing to suggest, and this is the reason; or empty.
        people: how many there are behind the answers.
        ended: at how many of them, in percent, the person left.
        now: what the user did in the run: it drew the end, unless the run says otherwise.
        best: the threshold with the highest F1.
        equal: the threshold at which it leaves as often as people do.
        ece: expected calibration error of P(end), from 0 to 1; lower is better.
    """

    n: int
    missing: int
    why: str = ""
    people: int = 0
    ended: float | None = None
    now: Leaving | None = None
    best: Leaving | None = None
    equal: Leaving | None = None
    curve: Curve | None = None
    ece: float | None = None
    bins: tuple[Bin, ...] = ()


def spelled(threshold: float) -> str:
    """As it is typed: one of `THRESHOLDS` in full, without an exponent."""
    return f"{threshold:.7f}".rstrip("0")


def calibrate(termination: Measure, chances: Measure) -> Endings:
    """The curve over all thresholds, and two of them to suggest.

    A threshold that is judged by the people it was chosen on looks better than it is. So each
    person's answers are judged at the threshold that all others give, and the figures of `best` and
    `equal` are those; `above` and the curve are of all people together.

    Args:
        termination, chances: `intrinsic.termination` and `intrinsic.termination_auroc` of the same
            answers.
    """
    answers = [
        (chance.cluster, (*chance.stats, *done.stats))
        for chance, done in zip(chances.rows, termination.rows, strict=True)
        if chance.stats and done.stats
    ]
    n, missing = len(answers), len(chances.rows) - len(answers)
    if not answers:
        reasons = Counter(row.why for row in chances.rows)
        return Endings(
            n, missing, reasons.most_common(1)[0][0] if reasons else "no answer after a first turn"
        )
    names = sorted({name for name, _ in answers})
    place = {name: i for i, name in enumerate(names)}
    who = np.array([place[name] for name, _ in answers], dtype=np.intp)
    p_end, gone, right, wrong, _ = np.array([stats for _, stats in answers]).T
    ended, left = gone == 1, right + wrong  # TP + FP: the user left
    bins = reliability(p_end, ended)
    share = 100 * float(ended.mean())
    found = Endings(n, missing, "", len(names), share, ece=calibration_error(bins), bins=bins)
    if ended.all() or not ended.any():
        return replace(found, why=f"the person left at {'every' if ended.any() else 'no'} answer")
    if len(names) == 1:
        return replace(found, why="one person alone, and nobody to check a threshold on")

    passed = np.searchsorted(np.array(THRESHOLDS), p_end, side="right").astype(np.intp)
    counts = _counts(who, passed, ended, len(names), len(THRESHOLDS))
    together = counts.sum(axis=0)

    def judged(choose: Callable[[Array], NDArray[np.intp]]) -> Leaving:
        elsewhere = choose(together - counts)  # for each person, the threshold of all others
        return _leaving(
            THRESHOLDS[int(choose(together))], counts[np.arange(len(names)), elsewhere], names
        )

    early, late, leaves = _shares(together)
    columns = (np.array(THRESHOLDS), early, late, leaves, f1_percent(together))
    return replace(
        found,
        now=_leaving(None, _counts(who, left.astype(np.intp), ended, len(names), 1)[:, 0], names),
        best=judged(lambda sums: _middle_of_the_highest(np.nan_to_num(f1_percent(sums)))),
        equal=judged(
            lambda sums: _middle_of_the_highest(-abs(sums[..., 1] - sums[..., 2]))
        ),  # FP = FN
        curve=Curve(*(tuple(column.tolist()) for column in columns)),
    )


def _counts(
    who: NDArray[np.intp],
    passed: NDArray[np.intp],
    ended: NDArray[np.bool_],
    people: int,
    rules: int,
) -> Array:
    """TP, FP, FN and TN of each person under each rule, leaving being the positive: (people, rules,
    4).

    Args:
        passed: by how many of the rules the user leaves at an answer: the first so many.
    """

    def leaving(which: NDArray[np.bool_]) -> tuple[Array, Array]:
        places = who[which] * (rules + 1) + passed[which]
        counts = np.bincount(places, minlength=people * (rules + 1)).reshape(people, rules + 1)
        leaves = counts[:, :0:-1].cumsum(axis=1)[:, ::-1]
        return leaves, counts.sum(axis=1, keepdims=True) - leaves

    (tp, fn), (fp, tn) = leaving(ended), leaving(~ended)
    return np.stack([tp, fp, fn, tn], axis=-1).astype(np.float64)


def _middle_of_the_highest(values: Array) -> NDArray[np.intp]:
    """Where along the last axis the highest value stands; of several, the middle one, which has
    most room."""
    highest = values == values.max(axis=-1, keepdims=True)
    rank = highest.cumsum(axis=-1)
    return np.asarray((rank == (rank[..., -1:] + 1) // 2).argmax(axis=-1))


def _leaving(above: float | None, counts: Array, names: Sequence[str]) -> Leaving:
    """From the counts of each person: (people, 4)."""
    rows = [
        MeasureRow(name, name, tuple(own)) for name, own in zip(names, counts.tolist(), strict=True)
    ]
    f1 = measure("F1", rows, f1_percent)
    early, late, leaves = (float(share) for share in _shares(counts.sum(axis=0)))
    return Leaving(above, early, late, leaves, f1.value, f1.low, f1.high)


def _shares(counts: Array) -> tuple[Array, Array, Array]:
    """Too early, too late, and left at all, in percent, from (..., 4)."""
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    return 100 * fp / (fp + tn), 100 * fn / (tp + fn), 100 * (tp + fp) / (tp + fp + fn + tn)


def reliability(p_end: Array, ended: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Up to `BINS` bins of equally many answers, by P(end); answers with the same are in the same
    bin."""
    ordered = np.sort(p_end)
    edges = np.unique(ordered[np.arange(BINS) * len(ordered) // BINS])
    of = np.searchsorted(edges, p_end, side="right") - 1
    counts = np.bincount(of)
    means, shares = np.bincount(of, p_end) / counts, np.bincount(of, ended) / counts
    return tuple(
        Bin(int(n), float(p), float(share))
        for n, p, share in zip(counts, means, shares, strict=True)
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance of P(end) from the share of endings, bins weighted by their size (Naeini et
    al., 2015; with
    bins of equal mass: Nixon et al., 2019). With few answers it is above zero even for a P(end)
        that is true."""
    return sum(one.n * abs(one.p_end - one.ended) for one in bins) / sum(one.n for one in bins)

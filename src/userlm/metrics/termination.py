"""Choose a threshold on P(end) for `--end-threshold`, and measure how well P(end) is calibrated.

`userlm score` does this on the responses of `userlm respond`, where it is known at each turn
whether the person ended. First turns cannot be ends and are left out. All shares are in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mode

import numpy as np

from userlm.metrics.intrinsic import why_one_kind
from userlm.stats import (
    F1,
    FN,
    FP,
    Array,
    Flags,
    Indices,
    estimate,
    f1_percent,
    numbered,
)
from userlm.types import Measure

_DIGITS = (1, 1.5, 2, 3, 5, 7)
_SMALL = [round(digit * 10.0**power, 7) for power in range(-6, -1) for digit in _DIGITS]
_MIDDLE = [percent / 100 for percent in range(10, 91)]
_LARGE = [round(1 - small, 7) for small in reversed(_SMALL)]
THRESHOLDS = (*_SMALL, *_MIDDLE, *_LARGE)
"""Candidate thresholds: 0.000001 to 0.999999, about evenly spaced in the log odds. They do not
depend on the data, so they are round numbers, and there are few."""

MAX_END_RATE = 95
"""A threshold at which a user ends at this share of all turns or more, in percent, means "always
end" and is not suggested."""

BINS = 10
"""Maximum number of bins of `reliability`."""


@dataclass(frozen=True, slots=True)
class EndRule:
    """How a user ends under one rule, compared with people; in percent.

    Attributes:
        threshold: the user ends when P(end) is at least this; `None`: as it did in the run.
        premature: of the turns where the person continued, the share where the user ends.
        missed: of the turns where the person ended, the share where the user continues.
        end_rate: the share of all turns at which the user ends.
        f1, low, high: the F1 of ending as in `intrinsic.termination`, with a 95 % interval over
            people.
    """

    threshold: float | None
    premature: float
    missed: float
    end_rate: float
    f1: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ThresholdSweep:
    """The fields of `EndRule` for each of the `THRESHOLDS`, on all people: five lists of the same
    length."""

    threshold: tuple[float, ...]
    premature: tuple[float, ...]
    missed: tuple[float, ...]
    end_rate: tuple[float, ...]
    f1: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bin:
    """`n` responses with similar P(end): its mean, and how often the person ended, from 0 to 1."""

    n: int
    p_end: float
    ended: float


@dataclass(frozen=True, slots=True)
class EndCalibration:
    """How well one user ends, and which thresholds would be better.

    Attributes:
        n, missing: the number of responses with and without P(end).
        why: the reason why no threshold is suggested; empty if one is.
        people: the number of people behind the responses.
        ended: the share of the responses, in percent, at which the person ended.
        now: how the user ended in the run: by sampling, unless the run's options say otherwise.
        best: the threshold with the highest F1, if it may be suggested; see `calibrate`.
        equal: the threshold at which the user ends as often as people do, if both may be suggested.
        sweep: all thresholds.
        ece: expected calibration error of P(end), from 0 to 1; lower is better.
        bins: see `reliability`.
    """

    n: int
    missing: int
    why: str = ""
    people: int = 0
    ended: float | None = None
    now: EndRule | None = None
    best: EndRule | None = None
    equal: EndRule | None = None
    sweep: ThresholdSweep | None = None
    ece: float | None = None
    bins: tuple[Bin, ...] = ()


def format_threshold(threshold: float) -> str:
    """Return one of `THRESHOLDS` as decimal text, without an exponent."""
    return f"{threshold:.7f}".rstrip("0")


def calibrate(termination: Measure, auroc: Measure) -> EndCalibration:
    """Return the sweep over all thresholds, and the two that are suggested.

    No threshold is suggested unless the interval of the AUROC is above 0.5, since otherwise P(end)
    may not tell ends from other turns; nor one that means "always end" (`MAX_END_RATE`), nor one
    with an F1 that is not above that of always ending. `why` is the reason.

    A threshold looks too good on the people that it was chosen on. So the responses of each person
    are evaluated at the threshold that is chosen on all other people; this gives the shares and F1
    of `best` and `equal`. The suggested threshold itself and the sweep use all people.

    Args:
        termination, auroc: `intrinsic.termination` and `intrinsic.termination_auroc` of the same
            responses.
    """
    clusters: list[str] = []
    stats: list[tuple[float, ...]] = []
    for chance, outcome in zip(auroc.rows, termination.rows, strict=True):
        if chance.stats and outcome.stats:
            clusters.append(chance.cluster)
            stats.append((*chance.stats, *outcome.stats))
    n = len(stats)
    missing = len(auroc.rows) - n
    if not stats:
        reasons = [row.why for row in auroc.rows]
        most_frequent = mode(reasons or ["no response after a first turn"])
        return EndCalibration(n, missing, most_frequent)

    p_end, person_ended, tp, fp, _ = np.array(stats).T
    ended = person_ended == 1
    people, person_of = numbered(clusters)
    why = why_one_kind(ended.tolist())
    if not why and len(people) == 1:
        why = "only one person, but a threshold must be checked on another"
    bins = reliability(p_end, ended)
    found = EndCalibration(
        n,
        missing,
        why,
        people=len(people),
        ended=100 * float(ended.mean()),
        ece=calibration_error(bins),
        bins=bins,
    )
    if why:
        return found

    thresholds = np.array(THRESHOLDS)
    by_threshold = _counts(person_of, p_end[:, None] >= thresholds, ended)
    in_the_run = _counts(person_of, (tp + fp == 1)[:, None], ended)
    everybody = by_threshold.sum(axis=0)
    columns = (thresholds, *_shares(everybody), f1_percent(everybody))
    best = _suggestion(by_threshold, _best_f1)
    equal = _suggestion(by_threshold, _equal_rate)
    always = always_ending_f1(int(ended.sum()), n)
    why = _why_no_auroc(auroc) or _why_always_ending(best, by_threshold, always)
    equal_is_right = not _why_always_ending(equal, by_threshold, always)
    return replace(
        found,
        why=why,
        now=_rule(None, in_the_run[:, 0]),
        best=None if why else best,
        equal=equal if equal_is_right and not why else None,
        sweep=ThresholdSweep(*(tuple(column.tolist()) for column in columns)),
    )


def always_ending_f1(ends: int, turns: int) -> float:
    """Return the F1, in percent, of ending at each of the turns, of which people ended at `ends`;
    not a number if they never did."""
    return float(f1_percent(np.array([ends, turns - ends, 0.0])))


def _why_no_auroc(auroc: Measure) -> str:
    """Return why P(end) does not carry a threshold; empty if it does."""
    if auroc.low is None or auroc.high is None:
        return "the AUROC of P(end) has no interval, so it may be that of chance"
    if auroc.low > 0.5:
        return ""
    return (
        f"P(end) may tell ends from other turns no better than chance: the interval of its AUROC, "
        f"{auroc.low:.2f} to {auroc.high:.2f}, is not above 0.5"
    )


def _why_always_ending(rule: EndRule, counts: Array, always: float) -> str:
    """Return why a threshold is no better than to end always; empty if it is better.

    Args:
        counts: the counts of each person at each threshold.
        always: the F1 of always ending.
    """
    assert rule.threshold is not None
    at = THRESHOLDS.index(rule.threshold)
    _, _, end_rate = map(float, _shares(counts[:, at].sum(axis=0)))
    highest = max(end_rate, rule.end_rate)
    if highest >= MAX_END_RATE:
        return (
            f"the best one ends at {highest:.1f} % of all turns, which is nearly always"
        )
    if rule.f1 is not None and rule.f1 > always:
        return ""
    return (
        f"on people it was not chosen on, the best threshold has an F1 of {rule.f1 or 0:.1f} %, "
        f"which is not above the {always:.1f} % of always ending"
    )


def _counts(person_of: Indices, ends: Flags, ended: Flags) -> Array:
    """Return TP, FP, FN and TN of each person under each rule, where ending is the positive.

    Args:
        person_of: the index of the person of each response.
        ends: whether the user ends at a response under a rule: (responses, rules).
        ended: whether the person ended.

    Returns:
        (people, rules, 4).
    """
    by_person = ended[:, None]
    outcomes = [
        ends & by_person,
        ends & ~by_person,
        ~ends & by_person,
        ~ends & ~by_person,
    ]
    counts = np.zeros((person_of.max() + 1, ends.shape[1], len(outcomes)))
    np.add.at(counts, person_of, np.stack(outcomes, axis=-1))
    return counts


def _suggestion(counts: Array, choose: Callable[[Array], Indices]) -> EndRule:
    """Return the threshold that `choose` finds on all people, evaluated on people it was not chosen
    on.

    Args:
        counts: the counts of each person at each threshold.
        choose: from counts, (..., thresholds, 4), to the index of a threshold, (...).
    """
    everybody = counts.sum(axis=0)
    # For each person, chosen on all others.
    chosen_on_others = choose(everybody - counts)
    judged = counts[np.arange(len(counts)), chosen_on_others]
    return _rule(THRESHOLDS[int(choose(everybody))], judged)


def _best_f1(counts: Array) -> Indices:
    return _middle_of_the_highest(np.nan_to_num(f1_percent(counts)))


def _equal_rate(counts: Array) -> Indices:
    """Return the index where the user ends as often as people do: FP = FN."""
    return _middle_of_the_highest(-abs(counts[..., FP] - counts[..., FN]))


def _middle_of_the_highest(values: Array) -> Indices:
    """The index of the highest value along the last axis; in a tie, the middle one, which is
    farthest from worse values."""
    highest = values == values.max(axis=-1, keepdims=True)
    # 1 from the first highest value on, 2 from the second, ...
    rank = highest.cumsum(axis=-1)
    middle = (rank[..., -1:] + 1) // 2
    return np.asarray((rank == middle).argmax(axis=-1))


def _rule(threshold: float | None, counts: Array) -> EndRule:
    """Return the `EndRule` from the counts of each person, (people, 4)."""
    f1, low, high, _ = estimate(counts[:, : FN + 1], F1)
    premature, missed, end_rate = map(float, _shares(counts.sum(axis=0)))
    return EndRule(threshold, premature, missed, end_rate, f1, low, high)


def _shares(counts: Array) -> tuple[Array, Array, Array]:
    """Premature ends, missed ends and all ends, in percent, from (..., 4)."""
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    premature = 100 * fp / (fp + tn)
    missed = 100 * fn / (tp + fn)
    end_rate = 100 * (tp + fp) / (tp + fp + fn + tn)
    return premature, missed, end_rate


def reliability(p_end: Array, ended: Flags) -> tuple[Bin, ...]:
    """Return up to `BINS` bins by P(end), with about the same number of responses in each.
    Responses with the same P(end) are in the same bin."""
    ordered = np.sort(p_end)
    starts = np.arange(BINS) * len(ordered) // BINS
    edges = np.unique(ordered[starts])
    bin_of = np.searchsorted(edges, p_end, side="right") - 1
    sizes = np.bincount(bin_of)
    means = np.bincount(bin_of, p_end) / sizes
    shares = np.bincount(bin_of, ended) / sizes
    return tuple(map(Bin, sizes.tolist(), means.tolist(), shares.tolist()))


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean distance of P(end) from the share of ends, with bins weighted by size.

    The expected calibration error of Naeini et al. (2015); with bins of equal mass: Nixon et al.
    (2019). With few responses it is above zero even for a P(end) that is perfectly calibrated.
    """
    distances = sum(one.n * abs(one.p_end - one.ended) for one in bins)
    return distances / sum(one.n for one in bins)

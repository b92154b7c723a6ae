"""The threshold sweep: how often a user ends too early or too late at each threshold of P(end)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from userlm.show.blocks import (
    Axis,
    Chart,
    Figure,
    Group,
    Interval,
    Line,
    Mark,
    Part,
    Point,
    Quote,
    Section,
    Series,
    Small,
    Table,
    Text,
    Value,
)
from userlm.show.finished import Finished
from userlm.show.formats import axis, finite, plain, probability, threshold

Sweep = Mapping[str, Any]
"""A `finished.Sweep`, or `finished.Endings` if there is nothing to suggest."""

RULES = {
    "now": ("now", "circle"),
    "best": ("best F1", "diamond"),
    "equal": ("equal rate", "square"),
}
SHARES = {"premature end": "early", "missed end": "late", "ends": "leaves", "F1": "f1"}
"""The names of the shares, and their keys in the results; F1 is the last."""

INTRO = (
    "A user that reports P(end) can end a conversation by a threshold (--end-threshold) instead of "
    "sampling the end. Real conversations tell where a person ended: at a turn where the person "
    "went on, ending is premature; where the person ended, going on is a missed end. At the equal "
    "rate the user ends as often as people do. In the table each person is judged at the threshold "
    "that all others give; the curves are for all of them together. A calibrated P(end) lies on "
    "the dashed diagonal."
)
TICKS = (0.5, 0.01, 0.99, 0.1, 0.9, 0.001, 0.999, 0.0001, 0.9999, 0.00001, 0.99999)
"""Thresholds to label under the curves as far as there is room, the first ones first."""
TABLE_THRESHOLDS = (0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
"""Those in the table that stands for the curves."""


def section(runs: Sequence[Finished], colours: Mapping[str, str]) -> Section:
    """Return the section about thresholds; equal ones are shown once."""
    found: dict[str, Sweep] = {}
    groups = []
    for run in runs:
        for name, sweep in run.endings.items():
            if found.get(name) != sweep:
                label = f"{name} ({run.name})" if name in found else name
                found[label] = sweep
                groups.append(_group(Quote(label, 70, colours.get(name, "c0")), sweep))
    title = "When to end a conversation"
    return Section("thresholds", "Thresholds", title, tuple(groups), INTRO)


def _group(label: Quote, sweep: Sweep) -> Group:
    if sweep["best"] is None:
        text = Text(("No threshold to suggest: ", Quote(sweep["why"], 300), "."))
        return Group((text,), label)
    missing = f" ({sweep['missing']:,} more have no P(end))" if sweep["missing"] else ""
    people = f"{sweep['n']:,} turns of {sweep['people']:,} people{missing}"
    answers = (f"{people}, who ended the conversation at ", *_share(sweep["ended"]), " of them.")
    note = (" Note: ", Quote(sweep["note"], 300), ".") if sweep["note"] else ()
    ece = ("expected calibration error ", Value(sweep["ece"], probability(sweep["ece"])))
    curves = curve_chart(label.text, sweep)
    bins = calibration_chart(label.text, sweep)
    plots = (
        Figure("Ending by a threshold", "", curves, label.colour, _curve_table(sweep)),
        Figure("Is P(end) calibrated?", ece, bins, label.colour, _bin_table(sweep)),
        _rule_table(sweep),
    )
    return Group((Text((*answers, *note)), Group(plots, look="plots")), label, label.colour)


def _share(share: float) -> tuple[Part, ...]:
    return (Value(share, f"{share:.1f}"), " %")


def _rule_table(sweep: Sweep) -> Table:
    rows: list[tuple[Line, ...]] = []
    for key, (name, shape) in RULES.items():
        rule = sweep[key]
        above = "" if rule["above"] is None else threshold(rule["above"])
        shares = [_share(rule[share]) for share in SHARES.values()]
        low, high = finite(rule["low"]), finite(rule["high"])
        if low is not None and high is not None:
            interval = Interval(Value(low, f"{low:.1f}"), Value(high, f"{high:.1f}"))
            shares[-1] += (Small(interval),)
        rows.append(((Mark(shape), f" {name}"), above, *shares))
    return Table(("", "--end-threshold", *SHARES), tuple(rows), look="table rules")


def _curve_table(sweep: Sweep) -> Table:
    curve = sweep["curve"]
    at = [i for i, above in enumerate(curve["above"]) if above in TABLE_THRESHOLDS]
    rows = []
    for name, share in SHARES.items():
        rows.append((name, *(f"{curve[share][i]:.1f} %" for i in at)))
    head = ("--end-threshold", *(threshold(curve["above"][i]) for i in at))
    return Table(head, tuple(rows))


def _bin_table(sweep: Sweep) -> Table:
    rows = []
    for one in sweep["bins"]:
        rows.append((f"{one['n']:,}", Quote(probability(one["p_end"])), f"{one['ended']:.3f}"))
    return Table(("turns", "mean P(end)", "share where the person ended"), tuple(rows))


def curve_chart(label: str, sweep: Sweep) -> Chart:
    """Return the curves over the log odds of the threshold, where they are not level."""
    low, high = domain(sweep)
    curve = sweep["curve"]
    at = [_log_odds(above) for above in curve["above"]]
    series = []
    for name, look in (("premature end", "line"), ("missed end", "line dashed")):
        points = zip(at, curve[SHARES[name]], strict=True)
        series.append(Series(tuple(p for p in points if low <= p[0] <= high), look, name))
    marks = []
    told = []
    for key, (name, shape) in RULES.items():
        above, early, late = sweep[key]["above"], sweep[key]["early"], sweep[key]["late"]
        x = None if above is None else _log_odds(above)
        marks += [Point(x, early, shape), Point(x, late, shape, hollow=True)]
        rule = name if above is None else f"{name} ({threshold(above)})"
        told.append(f"{rule}: {early:.0f} % and {late:.0f} %")
    return Chart(
        f"Premature and missed ends of {plain(label)}, by threshold. {'; '.join(told)}",
        Axis(
            "ends when P(end) is at least",
            low,
            high,
            tuple((_log_odds(above), threshold(above)) for above in TICKS),
        ),
        axis("", 0, 100, 5, "%"),
        tuple(series),
        tuple(marks),
        beside="now",
    )


def domain(sweep: Sweep) -> tuple[float, float]:
    """Return the log odds between which the curves move and the suggestions lie."""
    curve = sweep["curve"]
    points = list(zip(curve["above"], curve["early"], curve["late"], strict=True))
    ends = [sweep["best"]["above"], sweep["equal"]["above"]]
    for before, after in pairwise(points):
        if before[1:] != after[1:]:
            ends += [before[0], after[0]]
    at = [_log_odds(above) for above in ends if above is not None]
    low, high = min(at), max(at)
    return (low, high) if low < high else (low - 1, high + 1)


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def calibration_chart(label: str, sweep: Sweep) -> Chart:
    """Return P(end) against how often the person ended; if calibrated, it is the diagonal."""
    bins = tuple((one["p_end"], one["ended"]) for one in sweep["bins"])
    told = ", ".join(f"{p_end:.2f}: {ended:.2f}" for p_end, ended in bins)
    return Chart(
        f"{plain(label)}: P(end) and how often the person ended. {told}",
        axis("mean P(end) of each bin", 0, 1, 5),
        axis("share of turns at which the person ended", 0, 1, 5),
        (Series(((0, 0), (1, 1)), "reference"), Series(bins)),
        tuple(Point(*point) for point in bins),
    )

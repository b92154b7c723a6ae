"""The threshold sweep: how often a user ends too early or too late at each threshold of P(end)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from userlm.metrics.termination import format_threshold
from userlm.show.blocks import (
    Axis,
    Block,
    Chart,
    Figure,
    Group,
    Line,
    Mark,
    Point,
    Quote,
    Row,
    Section,
    Series,
    Small,
    Table,
    Text,
    Value,
    interval,
)
from userlm.show.finished import Finished
from userlm.show.formats import axis, number, plain
from userlm.show.measures import asked, measured

Endings = Mapping[str, Any]
"""A `results.Calibration`, or `results.Uncalibrated` if there is nothing to suggest."""

RULES = {
    "now": ("now", "circle"),
    "best": ("best F1", "diamond"),
    "equal": ("equal rate", "square"),
}
SHARES = {
    "premature end": "premature",
    "missed end": "missed",
    "ends": "end_rate",
    "F1": "f1",
}
"""The names of the shares, and their keys in the results; F1 is the last."""

COMPARISON = "Beside users without a model"
COMPARISON_NOTE = (
    "On the same turns. The goodbye rule ends if the last turn of the assistant says goodbye, or "
    "that of the user says goodbye or thanks, by a short list of English words. Visible features "
    "are a logistic regression on lengths, question marks and thanks, fitted to other people of "
    "this log. A user that is not above them does not know when to end."
)
INTRO = (
    "A user that reports P(end) can end a conversation by a threshold (--end-threshold) instead of "
    "sampling the end. Real conversations show where a person ended. A premature end is an end "
    "where the person continued; a missed end is a turn where the person ended but the user "
    "continues. At the equal "
    "rate the user ends as often as people do. In the table, each person is evaluated at the "
    "threshold chosen on all others; the curves use all people together. A calibrated P(end) is on "
    "the dashed diagonal."
)
TICKS = (0.5, 0.01, 0.99, 0.1, 0.9, 0.001, 0.999, 0.0001, 0.9999, 0.00001, 0.99999)
"""Thresholds to label under the curves if there is room, in order of priority."""
TABLE_THRESHOLDS = (0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
"""Thresholds in the table that replaces the curves."""


def section(runs: Sequence[Finished], colours: Mapping[str, str]) -> Section:
    """Return the section about thresholds; equal ones are shown once."""
    found: dict[str, Endings] = {}
    groups = []
    for run in runs:
        for name, endings in run.endings.items():
            if found.get(name) != endings:
                label = f"{name} ({run.name})" if name in found else name
                found[label] = endings
                groups.append(
                    _group(Quote(label, 70, colours.get(name, "c0")), endings)
                )
    intro = (*asked(runs, found), INTRO)
    title = "When to end a conversation"
    return Section("thresholds", "Thresholds", title, groups, intro)


def _group(label: Quote, endings: Endings) -> Group:
    compared = list(_comparison(endings))
    told = endings.get("note")
    note = (" Note: ", Quote(told, 300), ".") if told else ()
    if endings["best"] is None:
        why = ("No threshold to suggest: ", Quote(endings["why"], 300), ".")
        return Group([*compared, Text((*why, *note))], label)
    missing = (
        f" ({endings['missing']:,} more have no P(end))" if endings["missing"] else ""
    )
    people = f"{endings['n']:,} turns of {endings['people']:,} people{missing}"
    answers = (
        f"{people}, who ended the conversation at ",
        Value(endings["ended"], 1),
        " % of them.",
    )
    plots: list[Block] = [
        Figure(
            "Ending by a threshold",
            "",
            curve_chart(label.text, endings),
            label.look,
            _curve_table(endings["sweep"]),
        ),
        Figure(
            "Is P(end) calibrated?",
            ("expected calibration error ", Value(endings["ece"], 3)),
            calibration_chart(label.text, endings),
            label.look,
            _bin_table(endings["bins"]),
        ),
        _rule_table(endings),
    ]
    options = " or ".join(dict.fromkeys(map(format_threshold, _suggested(endings))))
    advice = (
        "To end by one: ",
        Quote(f"--user {endings.get('user')} --end-threshold {options}", 300),
        "; F1 is ",
        Value(endings["now"]["f1"], 1),
        " % now and ",
        Value(endings["best"]["f1"], 1),
        " % at the best threshold.",
    )
    texts = (Text((*answers, *note)), Text(advice))
    plotted = Group(plots, look="plots")
    return Group((*compared, *texts, plotted), label, label.look)


def _comparison(endings: Endings) -> Iterator[Table]:
    """Yield the table of users without a model beside this one, if the results have it."""
    rows: list[Row] = []
    kind = ""
    for one in endings.get("comparison", ()):
        turns: Line = ""
        if one["kind"] != kind:
            kind = one["kind"]
            ended = () if one["ended"] is None else (Value(one["ended"], 1), " % ends")
            counted = f"{one['f1']['n']:,} turns of {one['people']:,} people, "
            turns = (Quote(kind), Small((counted, *ended)))
        ends = "" if one["end_rate"] is None else (Value(one["end_rate"], 1), " %")
        f1 = measured(one["f1"], 1)
        rows.append((turns, Quote(one["user"]), ends, f1, measured(one["auroc"], 2)))
    if rows:
        head = ("turns", "user", "ends", "F1", "AUROC")
        yield Table(head, rows, "table", COMPARISON, COMPARISON_NOTE)


def _rules(endings: Endings) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield name and shape of each rule that there is, and the rule."""
    for key, (name, shape) in RULES.items():
        if rule := endings[key]:
            yield name, shape, rule


def _suggested(endings: Endings) -> list[float]:
    """Return the thresholds that are suggested."""
    return [rule["threshold"] for _, _, rule in _rules(endings) if rule["threshold"]]


def _rule_table(endings: Endings) -> Table:
    rows: list[Row] = []
    for name, shape, rule in _rules(endings):
        above = "" if rule["threshold"] is None else format_threshold(rule["threshold"])
        early, late, ends, f1 = (
            (Value(rule[share], 1), " %") for share in SHARES.values()
        )
        ends_of_f1 = interval(rule["low"], rule["high"], 1)
        rows.append(
            ((Mark(shape), f" {name}"), above, early, late, ends, (*f1, ends_of_f1))
        )
    return Table(("", "--end-threshold", *SHARES), rows, "table rules", details=True)


def _curve_table(curve: Mapping[str, Sequence[float]]) -> Table:
    at = [i for i, above in enumerate(curve["threshold"]) if above in TABLE_THRESHOLDS]
    rows: list[Row] = []
    for name, key in SHARES.items():
        rows.append((name, *(f"{curve[key][i]:.1f} %" for i in at)))
    return Table(
        ("--end-threshold", *(format_threshold(curve["threshold"][i]) for i in at)),
        rows,
    )


def _bin_table(bins: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (f"{b['n']:,}", Quote(number(b["p_end"], 3)), f"{b['ended']:.3f}") for b in bins
    ]
    return Table(("turns", "mean P(end)", "share where the person ended"), rows)


def curve_chart(label: str, endings: Endings) -> Chart:
    """Return the curves over the log odds of the threshold, where they are not flat."""
    low, high = domain(endings)
    curve = endings["sweep"]
    at = [log_odds(above) for above in curve["threshold"]]
    series = []
    for name, look in (("premature end", "line"), ("missed end", "line dashed")):
        points = zip(at, curve[SHARES[name]], strict=True)
        series.append(
            Series([point for point in points if low <= point[0] <= high], look, name)
        )
    marks = []
    told = []
    for name, shape, rule in _rules(endings):
        above = rule["threshold"]
        premature = rule["premature"]
        missed = rule["missed"]
        x = above and log_odds(above)
        marks += [Point(x, premature, shape), Point(x, missed, shape, hollow=True)]
        called = f"{name} ({format_threshold(above)})" if above else name
        told.append(f"{called}: {premature:.0f} % and {missed:.0f} %")
    below = [(log_odds(above), format_threshold(above)) for above in TICKS]
    return Chart(
        f"Premature and missed ends of {plain(label)}, by threshold. {'; '.join(told)}",
        Axis("ends when P(end) is at least", low, high, below),
        axis("", 0, 100, 5, "%"),
        series,
        marks,
        beside="now",
    )


def domain(endings: Endings) -> tuple[float, float]:
    """Return the range of log odds that contains all changes of the curves and the suggestions."""
    curve = endings["sweep"]
    ends = _suggested(endings)
    for before, after in pairwise(
        zip(curve["threshold"], curve["premature"], curve["missed"], strict=True)
    ):
        if before[1:] != after[1:]:
            ends += [before[0], after[0]]
    at = [log_odds(above) for above in ends if above]
    low = min(at)
    high = max(at)
    return (low, high) if low < high else (low - 1, high + 1)


def log_odds(share: float) -> float:
    """Return the logarithm of the odds."""
    return math.log(share / (1 - share))


def calibration_chart(label: str, endings: Endings) -> Chart:
    """Return the calibration plot: P(end) against how often the person ended."""
    bins = [(one["p_end"], one["ended"]) for one in endings["bins"]]
    told = ", ".join(f"{p_end:.2f}: {ended:.2f}" for p_end, ended in bins)
    return Chart(
        f"{plain(label)}: P(end) and how often the person ended. {told}",
        axis("mean P(end) of each bin", 0, 1, 5),
        axis("share of turns at which the person ended", 0, 1, 5),
        [Series([(0, 0), (1, 1)], "reference"), Series(bins)],
        [Point(*point) for point in bins],
    )

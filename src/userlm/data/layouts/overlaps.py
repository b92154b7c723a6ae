"""Exports of overlapping times: which rows of a conversation several files have.

With times (`united`) it is certain; without (`merged`) rows are compared at the ends of the files.
Both return the rows that stay, in order, and those that an earlier file has, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from typing import Any

from userlm.data.layouts.common import Place
from userlm.data.layouts.fields import Row

Placed = tuple[Row, Place]
"""A row of a conversation, and where it stands."""
_Compared = tuple[Row, Placed]
"""A row as all exports of it write it, and as it stands there."""
_Node = tuple[Placed, list["_Node"]]
"""A row, and new ones of later files that stand before it."""


def by_file(rows: Iterable[Placed]) -> list[list[Placed]]:
    return [list(each) for _, each in groupby(rows, lambda placed: placed[1].file)]


def oldest_first(
    rows: list[Placed], time: Callable[[Placed], Any], newest_first: bool
) -> list[Placed]:
    """Return the rows of a file; reversed if it has the newest ones first.

    Args:
        newest_first: whether the whole file has them so, which counts if these have one time.
    """
    first, last = time(rows[0]), time(rows[-1])
    is_reversed = first > last or (first == last and newest_first)
    for newer, older in pairwise(rows):
        is_reversed = is_reversed and time(newer) >= time(older)
    return rows[::-1] if is_reversed else rows


def united(
    files: Sequence[Sequence[Placed]], key: Callable[[Row], str]
) -> tuple[list[Placed], list[Placed]]:
    """Return each row of some files as often as the file that has it most often, and the others.

    New rows of a later file stand before the next row that earlier ones have, too.
    """
    known: defaultdict[str, list[_Node]] = defaultdict(list)
    repeated: list[Placed] = []
    rest: list[_Node] = []  # what stands before no other row
    for later in files:
        matched: Counter[str] = Counter()
        own: list[tuple[str, _Node]] = []
        new: list[_Node] = []
        for placed in later:
            name = key(placed[0])
            if matched[name] == len(known[name]):
                new.append((placed, []))
                own.append((name, new[-1]))
                continue
            _, before = known[name][matched[name]]
            before += new
            new = []
            matched[name] += 1
            repeated.append(placed)
        rest += new
        for name, node in own:
            known[name].append(node)
    return _flat(rest), repeated


def _flat(nodes: Sequence[_Node]) -> list[Placed]:
    """Return the rows of some nodes, each after those that stand before it."""
    flat: list[Placed] = []
    ahead = list(reversed(nodes))
    while ahead:
        placed, before = ahead.pop()
        if before:
            ahead += [(placed, []), *reversed(before)]
        else:
            flat.append(placed)
    return flat


def merged(
    rows: Sequence[Placed], comparable: Callable[[Row], Row]
) -> tuple[Sequence[Placed], Sequence[Placed]]:
    """Return the rows of a conversation without those that a later file has again, and these.

    Exports of overlapping times both have the rows between, one at its end and the other at its
    beginning; or one has all rows of the other.
    """
    first, *others = by_file(rows)
    if not others:
        return first, []
    repeated: list[_Compared] = []
    kept = _compared(first, comparable)
    for file in others:
        later = _compared(file, comparable)
        _, count = _beginning(later, kept)
        start, count_before = _beginning(kept, later)
        # Files may be given in any order; but one row alone may be a second "thanks".
        if count_before > max(count, 1):
            end = start + count_before
            repeated += later[start:end]
            kept = [*later[:start], *kept, *later[end:]]
        else:
            repeated += later[:count]
            kept += later[count:]
    return [placed for _, placed in kept], [placed for _, placed in repeated]


def _compared(
    rows: Sequence[Placed], comparable: Callable[[Row], Row]
) -> list[_Compared]:
    return [(comparable(row), (row, place)) for row, place in rows]


def _beginning(
    rows: Sequence[_Compared], others: Sequence[_Compared]
) -> tuple[int, int]:
    """Return where others have all of these rows, or else end with the first of them, and how many
    they have. Thousands of equal rows take no longer (search of Knuth, Morris and Pratt)."""
    wanted = [row for row, _ in rows]
    borders = [0]  # for each row: how many first ones the rows up to it end with

    def matched_with(row: Row, matched: int) -> int:
        while matched and row != wanted[matched]:
            matched = borders[matched - 1]
        return matched + (row == wanted[matched])

    for row in wanted[1:]:
        borders.append(matched_with(row, borders[-1]))
    matched = 0
    for end, (row, _) in enumerate(others, 1):
        matched = matched_with(row, matched)
        if matched == len(wanted):
            return end - matched, matched
    return len(others) - matched, matched

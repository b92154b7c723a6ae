"""Tables as LaTeX, for a paper: `\\input` the file; it needs the package booktabs and nothing else.

All text is escaped; a character that LaTeX may not know is written as its number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from userlm.show.blocks import (
    Block,
    Group,
    Interval,
    Line,
    Link,
    Mark,
    Page,
    Quote,
    Reasons,
    Row,
    Small,
    Table,
    Value,
)
from userlm.show.formats import MARK, cut, number, plain

MAIN = ("published", "verdict")
REST = ("assess", "apart")
"""The parts of a page whose tables are written. Of each block of the others only the first table is
among the main ones."""
FINDINGS = r"p{.2\linewidth}lp{.6\linewidth}"
"""The columns of a table of sentences."""
NARROW = 4
"""Columns: in a wider table, details stand below what they belong to."""
ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # after \\ it would be a length
    "]": "{]}",
    "`": r"\textasciigrave{}",
    "–": "--",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    "␣": r"\textvisiblespace{}",
}
_SPECIAL = re.compile(r"[^A-Za-z0-9 .,:;!?()/*+='@-]")


def render(page: Page) -> str:
    """Return the tables of some sections of a page, the main ones first; empty if it has none."""
    main: list[str] = []
    rest: list[str] = []
    for name in (*MAIN, *REST):
        for section in page.sections:
            blocks = section.blocks if section.id == name else ()
            for block in blocks:
                first, *others = [*_tables([block], section.title), ""]
                main.append(first)
                (main if name in MAIN else rest).extend(others)
    parts = [f"% {MARK}", *main, "% The rest:\n", *rest]
    return "\n".join(part for part in parts if part) if any(main) else ""


def _tables(blocks: Sequence[Block], heading: Line) -> Iterator[str]:
    """Yield the tables of some blocks; those with one head are one."""
    alike: dict[Row, list[Table]] = {}
    for block in blocks:
        match block:
            case Table() if block.rows:
                alike.setdefault(block.head, []).append(block)
            case Group(inner, title):
                yield from _tables(inner, (heading, " – ", title))
    for tables in alike.values():
        yield _table(tables, heading)


def escape(text: str) -> str:
    """Return text in which nothing is a command."""
    return _SPECIAL.sub(_escaped, re.sub(r"\s+", " ", plain(text)))


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in ESCAPES:
        return ESCAPES[character]
    return rf"\texttt{{U+{ord(character):04X}}}"


def _table(tables: Sequence[Table], heading: Line) -> str:
    first = tables[0]
    columns = "l" + "r" * (len(first.head) - 1)
    row = _stacked if len(first.head) > NARROW else _row
    if first.look == "findings":
        columns = FINDINGS
        row = _brief
    notes = [escape(table.note) for table in tables]
    title = escape(first.title) if len(tables) == 1 else ""
    parts = (_line(heading).strip(), title, *notes)
    caption = " ".join(_sentence(part) for part in parts if part)
    body = []
    for table in tables:
        if len(tables) > 1:
            name = rf"\emph{{{escape(table.title)}}}"
            body.append(rf"\multicolumn{{{len(table.head)}}}{{l}}{{{name}}} \\")
        body += map(row, table.rows)
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        row(first.head),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return text if text[-1] in ".?!" else f"{text}."


def _row(cells: Row) -> str:
    return " & ".join(_line(cell).strip() for cell in cells) + r" \\"


def _brief(cells: Row) -> str:
    """Return a row without details, which would make a table of sentences longer than a page."""
    return _row([_parted(cell)[0] for cell in cells])


def _stacked(cells: Row) -> str:
    """Return a row whose words and details stand below one another, so that it is narrow."""
    shown = []
    for place, cell in enumerate(cells):
        value, details = map(_line, _parted(cell))
        lines = value.split() if place else [value]
        lines += [details.strip()] if details else []
        stack = r"\\".join(lines)
        side = "r" if place else "l"
        shown.append(rf"\shortstack[{side}]{{{stack}}}")
    return " & ".join(shown) + r" \\"


def _parted(cell: Line) -> tuple[Line, Line]:
    """Return what a cell says, and its details."""
    parts = cell if isinstance(cell, tuple) else (cell,)
    details = tuple(part for part in parts if isinstance(part, Small | Interval))
    return tuple(part for part in parts if part not in details), details


def _line(line: Line) -> str:
    match line:
        case tuple():
            return "".join(map(_line, line))
        case str():
            return escape(line)
        case Quote(text, limit):
            return escape(cut(text, limit))
        case Value(value, digits):
            return _number(value, digits)
        case Interval(low, high, digits):
            return f" ({_number(low, digits)} to {_number(high, digits)})"
        case Link(text):
            return _line(text)
        case Small(detail):
            inside = _line(detail)
            return f" ({inside})" if inside else ""
        case Reasons(counts):
            return escape(", ".join(f"{why} {count:,}" for why, count in counts))
        case Mark():
            return ""


def _number(value: float, digits: int) -> str:
    shown = number(value, digits)
    return f"${shown.replace(',', '{,}')}$" if value < 0 else shown

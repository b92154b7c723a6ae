"""Tables as LaTeX, for a paper: `\\input` the file; it needs the package booktabs and nothing else.

All text is escaped; a character that LaTeX may not know is written as its number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from userlm.show.blocks import (
    Block,
    Group,
    Interval,
    Line,
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

SECTIONS = ("published", "assess")
"""The parts of a page whose tables are written."""
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
    """Return the tables of some sections of a page; empty if it has none of them."""
    tables = []
    for section in page.sections:
        if section.id in SECTIONS:
            for block in section.blocks:
                tables += list(_tables(block, section.title))
    return "\n".join([f"% {MARK}", *tables]) if tables else ""


def _tables(block: Block, heading: Line) -> Iterator[str]:
    match block:
        case Table() if block.rows:
            yield _table(block, heading)
        case Group(blocks, title):
            for inner in blocks:
                yield from _tables(inner, (heading, " – ", title))


def escape(text: str) -> str:
    """Return text in which nothing is a command."""
    return _SPECIAL.sub(_escaped, re.sub(r"\s+", " ", plain(text)))


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in ESCAPES:
        return ESCAPES[character]
    return rf"\texttt{{U+{ord(character):04X}}}"


def _table(table: Table, heading: Line) -> str:
    columns = "l" + "r" * (len(table.head) - 1)
    parts = (_line(heading).strip(), escape(table.title), escape(table.note))
    caption = " ".join(_sentence(part) for part in parts if part)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _row(table.head),
        r"\midrule",
        *map(_row, table.rows),
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

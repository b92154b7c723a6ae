"""A page as Markdown, without drawings, for a mail or a diff.

Text from files is put in code spans and code blocks, so that it cannot become markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from userlm.show.blocks import (
    Block,
    Conversations,
    Facts,
    Figure,
    Group,
    Interval,
    Line,
    Link,
    Mark,
    Measures,
    Page,
    Pair,
    Pairs,
    Quote,
    Reasons,
    Said,
    Small,
    Table,
    Text,
    Tokens,
    Transcript,
    Transcripts,
    Value,
)
from userlm.show.formats import MARK, cut, number, plain

TRANSCRIPTS = 3  # of each run
TURN_CHARACTERS = 2_000


SIGNS = {"circle": "●", "diamond": "◆", "square": "■", "triangle": "▲"}
"""The characters of markers, where a text names them. In cells they point at drawings."""


def render(page: Page) -> str:
    """Return the page."""
    paragraphs = [
        MARK,
        f"# {inline(page.title)}",
        page.lead,
        *map(inline, page.notices),
    ]
    for section in page.sections:
        body = [text for block in section.blocks for text in _block(block, 3)]
        if body:
            paragraphs.append(f"## {section.title}")
            if section.intro:
                paragraphs.append(inline(section.intro))
            paragraphs += body
    return ("\n\n".join(paragraphs) + "\n").encode("utf-8", "replace").decode()


def inline(line: Line, cell: bool = False) -> str:
    """Return a line as Markdown; in a table cell, pipes are escaped too."""
    match line:
        case tuple():
            return "".join(inline(part, cell) for part in line)
        case str():
            return line
        case Quote(text, limit):
            return code(cut(text, limit), cell)
        case Value(value, digits):
            return number(value, digits)
        case Interval(low, high, digits):
            return f" ({number(low, digits)} to {number(high, digits)})"
        case Mark(shape):
            return "" if cell else SIGNS.get(shape, "")
        case Reasons(counts):
            return ", ".join(
                f"{code(cut(why, 200), cell)} {count:,}" for why, count in counts
            )
        case Link(text):
            return inline(text, cell)
        case Small(detail):
            return f" ({inline(detail, cell)})" if detail else ""


def code(text: object, cell: bool = False) -> str:
    """Return a code span, in which nothing is markup."""
    line = " ".join(plain(text).split()) or " "
    if cell:
        line = line.replace("|", "\\|")
    ticks = "`" * (_longest_ticks(line) + 1)
    pad = " " if line[0] in "` " or line[-1] in "` " else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def fenced(text: object) -> str:
    """Return a code block, whose fence is longer than any in the text."""
    inside = plain(text)
    fence = "`" * max(3, _longest_ticks(inside) + 1)
    return f"{fence}text\n{inside}\n{fence}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _block(block: Block, level: int) -> Iterator[str]:
    """Return the paragraphs of a block, with a heading of this level."""
    match block:
        case Text(line):
            yield inline(line)
        case Table():
            yield from _table(block, level)
        case Measures(tables=tables):
            for table in tables:
                yield from _table(table, level)
        case Figure(table=table):
            if table is not None:
                yield f"**{inline(block.title)}** {inline(block.note)}".rstrip()
                yield from _table(table, level)
        case Transcripts(items, total):
            shown = items[:TRANSCRIPTS]
            yield f"{len(shown)} of {total:,}."
            for transcript in shown:
                yield from _transcript(transcript, level)
        case Conversations(runs):
            for of_run in runs:
                yield f"{'#' * level} {code(of_run.name)}"
                yield f"{inline(of_run.about)}."
                yield from _block(of_run, level + 1)
        case Pairs(items):
            for pair in items:
                yield from _pair(pair, level)
        case Tokens(tokens):
            yield fenced("".join(token.text for token in tokens))
        case Group():
            below = level + 1 if block.title else level
            body = [text for inner in block.blocks for text in _block(inner, below)]
            if body and block.title:
                yield f"{'#' * level} {inline(block.title)}"
            yield from body


def _table(table: Table, level: int) -> Iterator[str]:
    if table.title:
        yield f"{'#' * level} {table.title}"
    if table.rows:
        texts = []
        for row in (table.head, ("---",) * len(table.head), *table.rows):
            cells = " | ".join(inline(cell, cell=True).strip() for cell in row)
            texts.append(f"| {cells} |")
        yield "\n".join(texts)
    if table.note:
        yield table.note


def _transcript(transcript: Transcript, level: int) -> Iterator[str]:
    yield f"{'#' * level} {code(cut(transcript.id, 80))}"
    if transcript.intent:
        yield f"Intent: {code(cut(transcript.intent, 400))}"
    for said in transcript.turns:
        yield f"**{said.label}**" + _aside(said)
        yield fenced(cut(said.text, TURN_CHARACTERS))
        yield from _facts(said.facts)
        yield from _rejected(said)
    ending = transcript.ending
    yield f"*{ending.label}: {ending.text}*" + _aside(ending)
    yield from _rejected(ending)
    yield from _facts((*ending.facts, *transcript.facts))


def _pair(pair: Pair, level: int) -> Iterator[str]:
    yield f"{'#' * level} {code(cut(pair.title, 200))}"
    for name, turns in (
        ("The turn before", pair.before[-1:]),
        ("The person", pair.person),
        ("The simulated user", pair.user),
    ):
        if turns:
            yield f"**{name}**"
        for said in turns:
            if said.role == "end":
                yield f"*{said.label}: {said.text}*"
            else:
                yield f"{said.label}:\n{fenced(cut(said.text, TURN_CHARACTERS))}"


def _aside(said: Said) -> str:
    chance = "" if said.p_end is None else f"; P(end) {code(number(said.p_end, 3))}"
    return chance + "".join(f"; {inline(mark)}" for mark in said.marks)


def _facts(facts: Facts) -> Iterator[str]:
    for name, values in facts:
        yield f"{code(name)}: {code(cut(', '.join(values), 600))}"


def _rejected(said: Said) -> Iterator[str]:
    for text, why in said.rejected:
        yield f"rejected ({code(cut(why, 160))}): {code(cut(text, 160))}"

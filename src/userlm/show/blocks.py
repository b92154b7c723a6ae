"""What is to be seen, without markup. Renderers know these blocks and nothing else.

A plain `str` is our own text. Text that comes from a file is untrusted and stands in a `Quote`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Counts: TypeAlias = Sequence[tuple[str, int]]

# --- parts of a line ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quote:
    """Text from a file, cut after `limit` characters. `look` is `badge` for a warning, or the
    colour of what the text names."""

    text: str
    limit: int = 160
    look: str = ""


@dataclass(frozen=True)
class Value:
    """A number, shown with so many decimals."""

    value: float
    digits: int = 2


@dataclass(frozen=True)
class Interval:
    """A confidence interval, if both ends are known."""

    low: float | None
    high: float | None
    digits: int = 2


@dataclass(frozen=True)
class Reasons:
    """Reasons, each with how often it was given."""

    counts: Counts


@dataclass(frozen=True)
class Mark:
    """The shape that stands for a series: circle, square, triangle or diamond."""

    shape: str


@dataclass(frozen=True)
class Small:
    """A detail, smaller and on a line of its own."""

    line: Line


Part: TypeAlias = str | Quote | Value | Interval | Reasons | Mark | Small
Line: TypeAlias = Part | tuple[Part, ...]
Row: TypeAlias = Sequence[Line]
Facts: TypeAlias = Sequence[tuple[str, Sequence[str]]]
"""Names and their values."""

# --- drawings: their numbers and labels -----------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A part of a whole, and beside it what was lost last."""

    part: float
    lost: float
    whole: float


@dataclass(frozen=True)
class Strip:
    """A value with its interval on a scale, and the human reference as a dashed line."""

    value: float
    low: float | None
    high: float | None
    scale: tuple[float, float]
    shape: str
    reference: float | None = None


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`. A tick whose label would touch an earlier one is left out."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Series:
    """Points joined by a line; `look` is a class of the page's style sheet."""

    points: Sequence[tuple[float, float]]
    look: str = "line"
    name: str = ""


@dataclass(frozen=True)
class Point:
    """A mark; without an `x` it stands beside the plot."""

    x: float | None
    y: float
    shape: str = "circle"
    hollow: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines, bars and marks over two axes.

    Attributes:
        label: what a screen reader says.
        bars: heights of bars of width 1, the first from `x` 0 to 1.
        beside: the label of the marks that stand beside the plot.
    """

    label: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    points: Sequence[Point] = ()
    bars: Sequence[float] = ()
    beside: str = ""


Drawing: TypeAlias = Bar | Strip | Chart

# --- blocks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    line: Line


@dataclass(frozen=True)
class Table:
    """Rows under a head; without rows only title and note are shown.

    Attributes:
        look: a class of the page's style sheet.
        drawings: one for each row, or none at all.
    """

    head: Row
    rows: Sequence[Row]
    look: str = ""
    title: str = ""
    note: str = ""
    drawings: Sequence[Drawing | None] = ()


@dataclass(frozen=True)
class Measurement:
    """A measure in one run: its value with interval, and how many items stand behind it."""

    label: Quote
    badge: Line
    value: tuple[Part, ...]
    counted: str
    strip: Strip | None


@dataclass(frozen=True)
class Panel:
    """A measure in all runs, on one scale; the arrow points to where it is better, if it does."""

    title: Quote
    arrow: str
    unit: Line
    note: str
    rows: Sequence[Measurement]
    axis: Axis | None


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption; `table` says the same where nothing can be drawn."""

    title: Line
    note: Line
    drawing: Drawing | None
    colour: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class Said:
    """A turn and what is known about it, or the end of a conversation and why it ended.

    Attributes:
        marks: what is unusual about it.
        facts: the rest of its `meta`: names and values.
        rejected: drafts that the guard rejected, and why.
    """

    role: str
    label: str
    text: str
    p_end: float | None
    marks: Sequence[Line]
    facts: Facts
    rejected: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Transcript:
    """A conversation."""

    id: str
    title: str
    outcome: str
    intent: str
    turns: Sequence[Said]
    ending: Said
    facts: Facts


@dataclass(frozen=True)
class Transcripts:
    """The first conversations of a file that holds `total`."""

    items: Sequence[Transcript]
    total: int
    path: str


@dataclass(frozen=True)
class Group:
    """Blocks under a heading.

    Attributes:
        look: how they are laid out: `panels`, `plots`, `tables`, `pair`, folded under its
            title (`fold`), or one below the other.
    """

    blocks: Sequence[Block]
    title: Line = ""
    colour: str = ""
    look: str = ""


Block: TypeAlias = Text | Table | Panel | Figure | Transcripts | Group


@dataclass(frozen=True)
class Section:
    """A part of a page; without blocks it is left out.

    Attributes:
        link: its name in the list of sections.
        intro: what a reader must know first.
        search: whether its transcripts can be searched.
    """

    id: str
    link: str
    title: str
    blocks: Sequence[Block]
    intro: Line = ""
    search: bool = False


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    lead: str
    notices: Sequence[Line]
    sections: Sequence[Section]

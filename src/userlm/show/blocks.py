"""The content of a report without markup. Renderers only use these blocks.

A plain `str` is our own text. Text from a file is untrusted and is wrapped in a `Quote`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Where: TypeAlias = Literal["everywhere", "details", "page"]
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
    """A number, and how many decimals to show."""

    value: float
    digits: int = 2


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float
    digits: int = 2


def interval(low: float | None, high: float | None, digits: int = 2) -> Part:
    """Return the interval, or nothing if an end is not known."""
    return "" if low is None or high is None else Interval(low, high, digits)


@dataclass(frozen=True)
class Reasons:
    """Reasons and their counts."""

    counts: Counts


@dataclass(frozen=True)
class Mark:
    """The marker of a series: circle, square, triangle or diamond. `look` is its colour, if that is
    not the one of its place."""

    shape: str
    look: str = ""


@dataclass(frozen=True)
class Link:
    """A link to a conversation on the same page; see `transcripts.anchor`."""

    text: Quote
    anchor: str


@dataclass(frozen=True)
class Small:
    """A detail, in small print on a separate line."""

    line: Line


Part: TypeAlias = str | Quote | Value | Interval | Reasons | Mark | Link | Small
Line: TypeAlias = Part | tuple["Line", ...]
Row: TypeAlias = Sequence[Line]
Facts: TypeAlias = Sequence[tuple[str, Sequence[str]]]
"""Names and their values."""

# --- drawings: numbers and labels -----------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A share of a total, and next to it the share that was lost in the last step."""

    part: float
    lost: float
    whole: float


@dataclass(frozen=True)
class Strip:
    """A value with its interval on a scale, and the human reference as a dashed line. `look` is its
    colour, if that is not the one of its place."""

    value: float
    low: float | None
    high: float | None
    scale: tuple[float, float]
    shape: str
    reference: float | None = None
    look: str = ""


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
    """A mark; without an `x` it is drawn next to the plot."""

    x: float | None
    y: float
    shape: str = "circle"
    hollow: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines, bars and marks over two axes.

    Attributes:
        label: the text for screen readers.
        bars: heights of bars of width 1, the first from `x` 0 to 1.
        beside: the label of the marks next to the plot.
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
    """A paragraph; `look` is a class of the page's style sheet."""

    line: Line
    look: str = "hint"


@dataclass(frozen=True)
class Table:
    """A table with a header; without rows only title and note are shown.

    Attributes:
        look: a class of the page's style sheet.
        drawings: one for each row, or empty.
        axis: the scale of the drawings, below them.
        details: whether the terminal shows it with `--details` only.
    """

    head: Row
    rows: Sequence[Row]
    look: str = ""
    title: str = ""
    note: str = ""
    drawings: Sequence[Drawing | None] = ()
    axis: Axis | None = None
    details: bool = False


MISSING = "not measured"
NOT_MEASURED = f"{MISSING}: "
"""What stands in place of a value, alone or before the reason."""


@dataclass(frozen=True)
class Measurement:
    """A measure in one run: its value with interval, and the number of measured items."""

    label: Quote
    badge: Line
    value: tuple[Part, ...]
    counted: str
    strip: Strip | None


@dataclass(frozen=True)
class Panel:
    """A measure in all runs, on one scale; the arrow, if any, points to better values."""

    title: Quote
    arrow: str
    unit: Line
    note: str
    rows: Sequence[Measurement]
    axis: Axis | None


@dataclass(frozen=True)
class Panels:
    """The measures that carry a story, drawn. Renderers without drawings leave them out: each is
    also among the `Measures`, or in a table."""

    items: Sequence[Panel]


@dataclass(frozen=True)
class Measures:
    """Measures of several runs side by side: in `tables`; for the terminal, also line by line."""

    panels: Sequence[Panel]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption; `table` has the same data for renderers without drawings."""

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
        facts: names and values from the rest of its `meta`.
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
    """A conversation.

    Attributes:
        anchor: where a link to it points, on any page that has it.
        stop: why it stopped.
        solved: whether its task was solved; `None` if that is not known, or there is none.
        rejected: how many drafts the guard rejected.
        human: how human a classifier finds it, higher if more; `None` if none read it.
    """

    id: str
    title: str
    outcome: str
    intent: str
    turns: Sequence[Said]
    ending: Said
    facts: Facts
    anchor: str = ""
    stop: str = ""
    solved: bool | None = None
    rejected: int = 0
    human: float | None = None


@dataclass(frozen=True)
class Transcripts:
    """The first conversations of a file with `total` conversations."""

    items: Sequence[Transcript]
    total: int
    path: str
    name: str = ""
    about: Line = ""


@dataclass(frozen=True)
class Conversations:
    """The conversations of all runs of a page, to search in and to read."""

    runs: Sequence[Transcripts]


@dataclass(frozen=True)
class Pair:
    """What a person said and did from a place on, and a simulated user in the same place.

    Attributes:
        title: what the person wanted.
        before: the turns before, which both have.
    """

    id: str
    title: str
    before: Sequence[Said]
    person: Sequence[Said]
    user: Sequence[Said]


@dataclass(frozen=True)
class Pairs:
    """Conversations of people and of a simulated user side by side."""

    items: Sequence[Pair]


@dataclass(frozen=True)
class Token:
    """A token of a row. `kind` is `system`, `context`, `control`, `trained` (a header suffix or
    closing token that is trained) or `content` (what perplexity counts)."""

    text: str
    kind: str


@dataclass(frozen=True)
class Tokens:
    """A row as a model sees it."""

    tokens: Sequence[Token]


@dataclass(frozen=True)
class Group:
    """Blocks under a heading.

    Attributes:
        look: how they are laid out: `panels`, `plots`, `tables`, `pair`, collapsed under its title
            (`fold`; the terminal shows these with `--details` only), or one below the other.
        details: whether the terminal shows only its title without `--details`.
    """

    blocks: Sequence[Block]
    title: Line = ""
    colour: str = ""
    look: str = ""
    details: bool = False


Block: TypeAlias = (
    Text
    | Table
    | Panels
    | Measures
    | Figure
    | Transcripts
    | Conversations
    | Pairs
    | Tokens
    | Group
)


@dataclass(frozen=True)
class Section:
    """A part of a page; without blocks it is left out.

    Attributes:
        link: its name in the table of contents.
        intro: an introduction for the reader.
        where: whether the terminal shows it too, always or with `--details` only.
    """

    id: str
    link: str
    title: str
    blocks: Sequence[Block]
    intro: Line = ""
    where: Where = "everywhere"


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: what the runs are about.
        lead: which runs they are.
        notices: what to know before anything on it is believed.
    """

    title: Line
    lead: str
    notices: Sequence[Line]
    sections: Sequence[Section]

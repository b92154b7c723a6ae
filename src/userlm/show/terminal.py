"""The terminal: progress and notes on standard error, the blocks of a page on standard output."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import TextIO, TypeVar, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.file_proxy import FileProxy
from rich.panel import Panel as Box
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as Job
from rich.segment import Segment
from rich.table import Table as Grid
from rich.text import Text as Styled

from userlm.show.blocks import (
    NOT_MEASURED,
    Block,
    Conversations,
    Figure,
    Group,
    Interval,
    Line,
    Link,
    Measures,
    Page,
    Pair,
    Pairs,
    Panel,
    Quote,
    Reasons,
    Said,
    Small,
    Table,
    Text,
    Token,
    Tokens,
    Transcript,
    Transcripts,
    Value,
)
from userlm.show.formats import HIDDEN_RUN, cut, number, plain
from userlm.types import Turn

T = TypeVar("T")

TRANSCRIPTS = 1
"""Maximum number of conversations shown of each run."""
TURNS = 6
CHARACTERS = 400
"""The same for their turns, and for the characters of a turn."""
TOKEN_STYLES = {
    "system": ("yellow", "yellow3"),
    "context": ("default", "bright_black"),
    "control": ("magenta", "magenta"),
    "trained": ("black on cyan", "black on dark_cyan"),
    "content": ("black on green", "black on dark_sea_green4"),
}
"""Two styles for each kind of token, for tokens in turn."""
MEASURE_WIDTH = 20
INTERVAL_WIDTH = 16
VALUE_WIDTH = 10
GAP = 2
"""Columns of the terminal for the name of a measure, and for a value with and without its
interval, and between two columns."""
REFRESH_SECONDS = 0.1
"""Minimum time between two updates of a progress bar, which are slow with millions of items."""

# --- what reaches the terminal --------------------------------------------------------------------


_render = Console.render  # as it is without `guard_streams`


class Terminal(Console):
    """A console on which any text can be printed: texts of models, logs, servers and file names may
    hold escape sequences that change the title or the clipboard. Hidden characters are shown, as in
    `formats.plain`; of links only the text is. The styles and cursor movements of rich itself still
    reach the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        match renderable:
            case str():
                renderable = plain(renderable)
            case Styled():
                renderable = _visible(renderable)
        for segment in _render(self, renderable, options):
            if segment.style and segment.style.link:
                segment = Segment(segment.text, segment.style.update_link(None))
            yield segment


def _visible(text: Styled) -> Styled:
    """`plain` for a text with styles. Before the layout, which would cut off what is longer than it
    was."""
    ends = [end for run in HIDDEN_RUN.finditer(text.plain) for end in run.span()]
    parts = text.divide(ends)
    for part in parts:
        part.plain = plain(part.plain)
    return text.blank_copy().join(parts)


def open_terminal(*, stderr: bool = False) -> Terminal:
    """Return a console on standard output or error, on which a text has no markup."""
    return Terminal(stderr=stderr, markup=False, emoji=False, highlight=False)


console = open_terminal(stderr=True)


class _Stream(FileProxy):
    """A text stream that shows hidden characters, for what is not printed on a `Terminal`: prints,
    warnings, logs and tracebacks of libraries, which may quote any text.

    As a `FileProxy`, rich writes its own styles and cursor movements past it, and puts no other one
    in front while a progress bar is shown, which would obey the commands in a text."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(console, stream)

    def write(self, text: str) -> int:
        """Write the text; return its length."""
        start, rest = cast("re.Match[str]", _BAR.match(text)).groups()
        self.rich_proxied_file.write(start + plain(rest))
        return len(text)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream; a `FileProxy` has none."""
        return cast("TextIO", self.rich_proxied_file).encoding

    def flush(self) -> None:
        """Flush the stream; nothing is kept here."""
        self.rich_proxied_file.flush()


_BAR = re.compile(r"((?:\x1b\[A)+\Z|\r?)(.*)", re.DOTALL)
"""What moves the cursor in the progress bars of tqdm, which show downloads: a carriage return
before the bar, or a text of nothing but steps up. And the rest of the text."""


def guard_streams() -> None:
    """Let all that Python prints from now on show hidden characters instead of sending them."""
    # Typer's errors and help come from a console of its own, which passes by the streams.
    Console.render = Terminal.render  # type: ignore[assignment, method-assign]
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Python has none if it was closed before the program began.
        if stream is not None and not isinstance(stream, _Stream):
            setattr(sys, name, _Stream(stream))


# --- progress -------------------------------------------------------------------------------------


class Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Job) -> Styled:
        return Styled(
            f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed"
        )


_PART = ContextVar("part", default="")


@contextmanager
def part_of_run(name: str) -> Iterator[None]:
    """Let the progress bars in this block begin with the name of a part of a longer run."""
    before = _PART.set(f"{name}: ")
    try:
        yield
    finally:
        _PART.reset(before)


def progress_bar() -> Progress:
    """Return a bar with rate and time left."""
    return Progress(
        TextColumn(f"{_PART.get()}{{task.description}}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        # As long as a run: a batch may take longer than the usual half minute, and the rate of the
        # last, shorter one is not that of all.
        speed_estimate_period=float("inf"),
    )


def track(items: Iterable[T], doing: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show progress; no progress without a name of what is done."""
    if not doing:
        yield from items
        return
    with progress_bar() as progress:
        job = progress.add_task(doing, total=total)
        done = 0
        shown = monotonic()
        for done, item in enumerate(items, 1):
            yield item
            if monotonic() - shown > REFRESH_SECONDS:
                progress.update(job, completed=done)
                shown = monotonic()
        progress.update(job, completed=done)


# --- blocks ---------------------------------------------------------------------------------------


def show_page(page: Page, details: bool) -> None:
    """Print the sections of a page that are not for the page alone; long ones with `details`."""
    show((Text(notice) for notice in page.notices), details)
    shown = ("everywhere", "details") if details else ("everywhere",)
    for section in page.sections:
        if section.where in shown:
            show(section.blocks, details)
    show([Text("")])


def show(blocks: Iterable[Block], details: bool = True) -> None:
    """Print blocks on standard output, as wide as the terminal is now."""
    out = open_terminal()
    for block in blocks:
        for part in _renderables(block, details, out.width):
            out.print(part)


def inline(line: Line) -> Styled:
    """Return a line as rich text."""
    match line:
        case tuple():
            return Styled.assemble(*map(inline, line))
        case str():
            return Styled(plain(line))
        case Quote(text, limit, look):
            return Styled(plain(cut(text, limit)), "yellow" if look == "badge" else "")
        case Value(value, digits):
            return Styled(number(value, digits))
        case Interval(low, high, digits):
            return Styled(f" ({number(low, digits)} to {number(high, digits)})")
        case Reasons(counts):
            reasons = [f"{plain(cut(why, 100))} {count:,}" for why, count in counts]
            return Styled("\n".join(reasons))
        case Link(text):
            return inline(text)
        case Small(detail):
            shown = inline(detail)
            return Styled.assemble(" (", shown, ")", style="dim") if shown else Styled()
    return Styled()


def _renderables(block: Block, details: bool, width: int) -> Iterator[RenderableType]:
    match block:
        case Text(line):
            yield inline(line)
        case Table() if details or not block.details:
            yield from _table(block, details)
        case Measures(panels, tables):
            if details:
                yield _lines(panels)
            else:
                for table in tables:
                    yield from _matrices(table, width)
        case Figure(title, note, table=table) if details or table is None:
            if note:
                yield inline((title, ": ", note))
            if table:
                yield from _table(table, details)
        case Transcripts(items=items):
            for talk in items[:TRANSCRIPTS]:
                yield transcript(talk)
        case Conversations(runs):
            for of_run in runs:
                yield Styled.assemble(
                    (plain(of_run.name), "bold"), ": ", inline(of_run.about)
                )
                yield from _renderables(of_run, details, width)
        case Pairs(items=items):
            for one in items[:TRANSCRIPTS]:
                yield _pair(one)
        case Tokens(tokens):
            yield _tokens(tokens)
        case Group(title=title, details=True) if not details:
            yield Styled.assemble(inline(title), ": --details", style="dim")
        case Group(parts, title, look=look) if details or look != "fold":
            if title and look != "tables":
                yield inline(title)
            for part in parts:
                yield from _renderables(part, details, width)


def _tokens(tokens: Sequence[Token]) -> Styled:
    """Return a row of tokens. Those that are trained have a background, of two shades in turn, so
    that one ends visibly where the next begins."""
    shown = Styled()
    for at, token in enumerate(tokens):
        style = TOKEN_STYLES[token.kind][at % 2]
        text = plain(token.text).replace("\n", "↵")
        shown.append(text, style=style)
        if "\n" in token.text:
            shown.append("\n")
    return shown


def _table(table: Table, details: bool) -> Iterator[RenderableType]:
    if table.title and (table.rows or details):
        yield Styled(table.title, "bold")
    if len(table.rows) == 1:
        # One row is easier to read from top to bottom.
        grid = Grid.grid(padding=(0, 2, 0, 0))
        for head, cell in zip(table.head, table.rows[0], strict=True):
            if shown := inline(cell):
                grid.add_row(inline(head), shown)
        yield grid
    elif table.rows:
        grid = _grid()
        for head, cell in zip(table.head, table.rows[0], strict=True):
            is_text = isinstance(cell, Quote | Reasons | tuple)
            grid.add_column(
                inline(head), justify="left" if is_text else "right", overflow="fold"
            )
        for row in table.rows:
            grid.add_row(*map(inline, row))
        yield grid
    if table.note and details:
        yield Styled(table.note, "dim")


def _grid() -> Grid:
    return Grid(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def _matrices(table: Table, width: int) -> Iterator[RenderableType]:
    """Yield measures as rows and runs as columns: values, and their intervals if there is room. If
    the runs do not fit side by side, there are several tables, each with the human reference."""
    at = range(1, len(table.head))
    humans = [i for i in at if _is_human(table.head[i])]
    others = [i for i in at if i not in humans]
    room = width - MEASURE_WIDTH
    has_room = len(at) * INTERVAL_WIDTH <= room
    together = max(1, room // VALUE_WIDTH - len(humans))
    for start in range(0, max(1, len(others)), together):
        columns = [*others[start : start + together], *humans]
        yield _matrix(table, columns, has_room, room // len(columns) - GAP)
    if not has_room:
        yield Styled("95 % intervals and counts: --details", "dim")


def _is_human(label: Line) -> bool:
    return isinstance(label, Quote) and label.look == "human"


def _matrix(table: Table, columns: Sequence[int], has_room: bool, most: int) -> Grid:
    """Return some columns, each at most so wide."""
    grid = _grid()
    grid.add_column("measure", min_width=MEASURE_WIDTH, overflow="fold")
    for i in columns:
        head = inline(table.head[i])
        grid.add_column(head, justify="right", overflow="fold", max_width=most)
    for row in table.rows:
        cells = [row[i] for i in columns]
        if any(cells):
            grid.add_row(inline(row[0]), *(_value(cell, has_room) for cell in cells))
    return grid


def _value(cell: Line, has_room: bool) -> Styled:
    """Return the value in a cell of measures; below it the interval, and how many clusters stand
    behind it and items are missing."""
    parts = cell if isinstance(cell, tuple) else (cell,)
    if parts[0] == NOT_MEASURED:
        return Styled("–" if not has_room else "not measured", "dim")
    value = [part for part in parts if not isinstance(part, Interval | Small)]
    shown = inline(tuple(value))
    below = [part for part in parts if isinstance(part, Interval | Small)]
    for part in below if has_room else ():
        for detail in inline(part).plain.strip(" ()").split(", "):
            if not detail.startswith("n "):
                shown.append(f"\n{detail}", style="dim")
    return shown


def _lines(panels: Sequence[Panel]) -> Grid:
    """Return a line for each measure and run, with intervals and counts."""
    grid = _grid()
    grid.add_column("measure", min_width=MEASURE_WIDTH)
    grid.add_column("value, 95 % interval", justify="right")
    grid.add_column("n", justify="right", no_wrap=True)
    for panel in panels:
        name = inline((panel.title, f" {panel.arrow} ", panel.unit))
        name.stylize("bold")
        grid.add_row(name)
        for row in panel.rows:
            label = inline(("  ", row.label, " ", row.badge))
            grid.add_row(label, inline(row.value), row.counted.removeprefix("n "))
    return grid


# --- conversations --------------------------------------------------------------------------------


def transcript(talk: Transcript) -> Box:
    """Return the first turns of a conversation in a box."""
    lines = Styled()
    if talk.intent:
        lines.append(f"{plain(cut(talk.intent, CHARACTERS))}\n", style="dim")
    for said in talk.turns[:TURNS]:
        marks = [part for mark in said.marks for part in ("; ", inline(mark))]
        label = Styled.assemble(said.label, *marks, "> ")
        label.stylize("bold")
        lines.append_text(label)
        lines.append(f"{plain(cut(said.text, CHARACTERS))}\n")
    lines.append(f"{talk.ending.label}: {talk.ending.text}", style="dim")
    # A title that is a string would be read as markup.
    return Box(lines, title=Styled(plain(talk.id)), title_align="left")


def _pair(pair: Pair) -> Box:
    """Return what a person and a simulated user said in the same place, in two columns."""
    grid = Grid.grid(padding=(0, 2, 0, 0), expand=True)
    for _ in range(2):
        grid.add_column(ratio=1, overflow="fold")
    grid.add_row(Styled("the person", "bold"), Styled("the simulated user", "bold"))
    grid.add_row(_side(pair.person), _side(pair.user))
    return Box(grid, title=Styled(plain(cut(pair.title, 60))), title_align="left")


def _side(turns: Sequence[Said]) -> Styled:
    lines = [f"{one.label}> {cut(one.text, CHARACTERS)}" for one in turns[:TURNS]]
    return Styled(plain("\n".join(lines)))


def show_turn(turn: Turn) -> None:
    """Print a turn with its speaker; a stub is labelled."""
    stub = f" ({turn.meta['stub']}, a stub)" if "stub" in turn.meta else ""
    console.print(Styled.assemble((f"{turn.role}{stub}> ", "bold"), turn.text))

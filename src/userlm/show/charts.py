"""Drawings as SVG, without a library. Their colours come from the style sheet of the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup, escape

from userlm.show.blocks import Axis, Bar, Chart, Drawing, Strip

WIDTH = 320
STRIP = (6.0, 314.0)  # where the scale of a strip starts and ends
LABEL_WIDTH = 40  # labels of ticks that are closer would touch
TICK_LABEL = 16  # below the plot
AXIS_TITLE = 30  # below the plot
LEGEND_STEP = 116
BAR_GAP = 3


@dataclass(frozen=True)
class Box:
    """Where the plot lies in its drawing, in pixels."""

    left: float
    right: float
    roof: float
    floor: float


PLOT = Box(34.0, 310.0, 18.0, 156.0)
NARROW_PLOT = Box(34.0, 276.0, 18.0, 156.0)  # leaves room for marks at BESIDE
BESIDE = 302.0
HISTOGRAM = Box(34.0, 314.0, 16.0, 126.0)


def draw(drawing: Drawing) -> Markup:
    """Return the SVG element of a drawing."""
    match drawing:
        case Bar():
            return _bar(drawing)
        case Strip():
            return _strip(drawing)
        case Chart():
            return _chart(drawing)


def scale(
    value: float, domain: tuple[float, float], pixels: tuple[float, float]
) -> float:
    """Return where a value lies between two pixels, to a tenth of one."""
    share = (value - domain[0]) / (domain[1] - domain[0])
    return round(pixels[0] + share * (pixels[1] - pixels[0]), 1)


def key(shape: str, look: str = "") -> Markup:
    """Return the marker of a series, for use before its name."""
    return _svg(12, 12, f"key-mark {look}", [_shape(shape, 6, 6)])


# Bars and strips are hidden from screen readers: their numbers are in the text next to them.


def _bar(bar: Bar) -> Markup:
    def share(count: float) -> float:
        return 100 * min(max(count, 0) / bar.whole, 1) if bar.whole else 0

    left = share(bar.part)
    before = share(bar.part + bar.lost)
    parts = [f'<rect class="bar" width="{left:.2f}%" height="100%"/>']
    if bar.lost:
        width = f"{before - left:.2f}"
        parts.append(
            f'<rect class="lost" x="{left:.2f}%" width="{width}%" height="100%"/>'
        )
    return Markup(f'<svg class="share-bar" aria-hidden="true">{"".join(parts)}</svg>')


def _strip(strip: Strip) -> Markup:
    across = partial(scale, domain=strip.scale, pixels=STRIP)
    parts = [_rule("track", STRIP[0], 8, STRIP[1], 8)]
    if strip.reference is not None:
        x = across(strip.reference)
        parts.append(_rule("reference", x, 0, x, 16))
    if strip.low is not None and strip.high is not None:
        low = across(strip.low)
        high = across(strip.high)
        parts.append(
            f'<path class="whisker" d="M{low} 4V12M{low} 8H{high}M{high} 4V12"/>'
        )
    parts.append(_shape(strip.shape, across(strip.value), 8))
    return _svg(WIDTH, 16, f"strip {strip.look}", parts)


def scale_below(axis: Axis) -> Markup:
    """Return the scale under the strips of a panel."""
    parts = list(_ticks_below(axis, Box(*STRIP, 0, 0)))
    if not axis.title:
        return _svg(WIDTH, 18, "axis", parts)
    parts.append(_text(WIDTH / 2, AXIS_TITLE, axis.title, "middle", "unit"))
    return _svg(WIDTH, AXIS_TITLE + 4, "axis", parts)


def _chart(chart: Chart) -> Markup:
    box = PLOT
    if chart.bars:
        box = HISTOGRAM
    elif chart.beside:
        box = NARROW_PLOT

    across = partial(
        scale, domain=(chart.x.low, chart.x.high), pixels=(box.left, box.right)
    )
    up = partial(
        scale, domain=(chart.y.low, chart.y.high), pixels=(box.floor, box.roof)
    )
    parts = [_text(box.left, 10, chart.y.title, "start", "unit"), *_grid(chart.y, box)]
    parts += _ticks_below(chart.x, box)
    parts.append(_text(box.right, box.floor + AXIS_TITLE, chart.x.title, "end", "unit"))
    for i, height in enumerate(chart.bars):
        x = across(i) + BAR_GAP / 2
        width = across(i + 1) - BAR_GAP / 2 - x
        size = f'width="{width:.1f}" height="{box.floor - up(height):.1f}"'
        if height:
            parts.append(f'<rect class="bar" x="{x:.1f}" y="{up(height)}" {size}/>')
    for i, series in enumerate(chart.series):
        places = [f"{across(x)} {up(y)}" for x, y in series.points]
        parts.append(f'<path class="{series.look}" d="M{"L".join(places)}"/>')
        if series.name:
            x = box.left + LEGEND_STEP * i
            parts.append(f'<path class="{series.look}" d="M{x} 6h22"/>')
            parts.append(_text(x + 27, 10, series.name, "start", "unit"))
    for point in chart.points:
        x = BESIDE if point.x is None else across(point.x)
        look = "mark open" if point.hollow else "mark"
        parts.append(_shape(point.shape, x, up(point.y), look))
    if chart.beside:
        parts.append(_text(BESIDE, box.floor + TICK_LABEL, chart.beside, "middle"))
    return _svg(WIDTH, int(box.floor) + AXIS_TITLE + 4, "plot", parts, chart.label)


def _grid(axis: Axis, box: Box) -> Iterator[str]:
    for value, label in axis.ticks:
        y = scale(value, (axis.low, axis.high), (box.floor, box.roof))
        yield _rule("grid", box.left, y, box.right, y)
        yield _text(box.left - 5, round(y + 3.5, 1), label, "end")
    yield _rule("base", box.left, box.floor, box.right, box.floor)


def _ticks_below(axis: Axis, box: Box) -> Iterator[str]:
    labelled: list[float] = []
    for value, label in axis.ticks:
        x = scale(value, (axis.low, axis.high), (box.left, box.right))
        has_room = all(abs(x - other) > LABEL_WIDTH for other in labelled)
        if has_room and box.left <= x <= box.right:
            labelled.append(x)
            yield _rule("tick", x, box.floor, x, box.floor + 4)
            yield _text(x, box.floor + TICK_LABEL, label, "middle")


def _shape(shape: str, x: float, y: float, look: str = "mark") -> str:
    """Series have a shape as well as a colour, for readers who cannot tell colours apart."""
    if shape == "circle":
        return f'<circle class="{look}" cx="{x}" cy="{y}" r="4.5"/>'
    half = 5.5 if shape == "diamond" else 4.2
    paths = {
        "diamond": f"M{x} {y - half}l{half} {half}l-{half} {half}l-{half} -{half}z",
        "square": f"M{x - half:.1f} {y - half:.1f}h{2 * half}v{2 * half}h-{2 * half}z",
        "triangle": f"M{x} {y - 5.2:.1f}l5.2 9.4h-10.4z",
    }
    return f'<path class="{look}" d="{paths[shape]}"/>'


def _rule(look: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{look}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'


def _text(x: float, y: float, text: str, anchor: str, look: str = "label") -> str:
    return f'<text class="{look}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(
    width: int, height: int, look: str, parts: Iterable[str], label: str = ""
) -> Markup:
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return Markup(
        f'<svg class="{look}" viewBox="0 0 {width} {height}" {role}>{"".join(parts)}</svg>'
    )

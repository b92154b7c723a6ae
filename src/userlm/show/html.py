"""Render a page as self-contained HTML that is safe to open, whatever text the runs contain.

Text from files is escaped, its hidden characters are shown by their numbers, each turn has its own
text direction, and long turns are cut. The page loads nothing and runs only its own script (see its
Content-Security-Policy).
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from userlm.show import charts
from userlm.show.blocks import (
    Bar,
    Interval,
    Line,
    Mark,
    Page,
    Quote,
    Reasons,
    Small,
    Value,
)
from userlm.show.formats import HIDDEN_RUN, code_point, cut, lines, number, plural

OPEN_CHARACTERS = 2_000  # of a turn, shown at once
MAX_CHARACTERS = 20_000  # of a turn, in the page; the rest is in the run folder


def render(page: Page) -> str:
    """Return the page."""
    html = _template().render(page=page)
    return html.encode("utf-8", "replace").decode()


def visible(text: object) -> Markup:
    """Return the escaped text, with markup around hidden characters, so that text cannot imitate
    them."""
    escaped = str(escape(lines(text)))
    return Markup(
        HIDDEN_RUN.sub(
            lambda run: f'<span class="odd">{code_point(run)}</span>', escaped
        )
    )


def inline(line: Line) -> Markup:
    """Return a line as HTML."""
    match line:
        case tuple():
            return Markup("").join(inline(part) for part in line)
        case str():
            return visible(line)
        case Quote(text, limit, look):
            quoted = visible(cut(text, limit))
            return Markup(f'<span class="{look}">{quoted}</span>') if look else quoted
        case Value(value, digits):
            return Markup('<data value="{}">{}</data>').format(
                repr(value), number(value, digits)
            )
        case Interval(low, high, digits):
            ends = inline((Value(low, digits), ", ", Value(high, digits)))
            return Markup(f' <span class="interval">[{ends}]</span>')
        case Reasons(counts):
            return Markup("; ").join(_reason(why, count) for why, count in counts)
        case Mark(shape, look):
            return charts.key(shape, look)
        case Small(detail):
            return Markup(f"<small>{inline(detail)}</small>") if detail else Markup("")


def _reason(why: str, count: int) -> Markup:
    return Markup(f"<span>{visible(cut(why, 300))}&nbsp;<b>{count:,}</b></span>")


def _column_class(line: Line) -> str:
    """Numbers are aligned to the right, quoted text to the left, reasons have room to wrap."""
    match line:
        case Reasons():
            return "why"
        case Quote():
            return "text"
    return "n"


@cache
def _template() -> Template:
    source = files("userlm").joinpath("assets/report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escaped,
    )
    environment.filters.update(
        {
            "block": lambda block: type(block).__name__,
            "column_class": _column_class,
            "cut": cut,
            "draw": charts.draw,
            "gauge": lambda share: charts.draw(Bar(share, 0, 1)),
            "line": inline,
            "opening": lambda text: text[:OPEN_CHARACTERS],
            "plural": plural,
            "probability": lambda value: inline(Value(value, 3)),
            "rest": lambda text: text[OPEN_CHARACTERS:MAX_CHARACTERS],
            "scale_below": charts.scale_below,
        }
    )
    known = {
        "open_characters": OPEN_CHARACTERS,
        "max_characters": MAX_CHARACTERS,
        "policy": _policy(source),
    }
    return environment.from_string(source, globals=known)


def _escaped(value: Any) -> Any:
    """Escape a value of the template, unless it is our own markup."""
    return (
        visible(value)
        if isinstance(value, str) and not isinstance(value, Markup)
        else value
    )


def _policy(source: str) -> Markup:
    """Nothing may be loaded; the style and the script of the page are known by their hashes."""
    hashes = {}
    for name in ("style", "script"):
        inside = source.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
        hashes[name] = b64encode(sha256(inside.encode()).digest()).decode()
    rules = (
        f"style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'"
    )
    return Markup(f"default-src 'none'; {rules}; base-uri 'none'; form-action 'none'")

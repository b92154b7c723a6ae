"""Render a page as self-contained HTML that is safe to open, whatever text the runs contain.

Text from files is escaped, its hidden characters are shown by their numbers, each turn has its own
text direction, and long turns are cut. The page loads nothing and runs only its own script (see its
Content-Security-Policy). Conversations are in it twice: the first ones as elements, for paper and
for readers without scripts; and as many as fit as JSON, of which its script shows a screen at a
time, as text and never as markup.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from userlm.show import charts
from userlm.show.blocks import (
    Bar,
    Conversations,
    Facts,
    Interval,
    Line,
    Link,
    Mark,
    Page,
    Quote,
    Reasons,
    Said,
    Small,
    Transcript,
    Value,
)
from userlm.show.formats import (
    HIDDEN_RUN,
    code_point,
    cut,
    lines,
    number,
    plain,
    plural,
)

OPEN_CHARACTERS = 2_000  # of a turn, shown at once
MAX_CHARACTERS = 20_000  # of a turn, in the page; the rest is in the run folder
PAGE_CHARACTERS = 50_000_000  # of all conversations in the page, as JSON
FIRST = 3  # conversations of each run, shown without the script


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
        case Link(text, anchor):
            return Markup('<a href="#{}">{}</a>').format(anchor, inline(text))
        case Small(detail):
            return Markup(f"<small>{inline(detail)}</small>") if detail else Markup("")


def flat(line: Line) -> str:
    """Return a line as text, without its small print; for titles and attributes."""
    match line:
        case tuple():
            return "".join(map(flat, line))
        case str():
            return plain(line)
        case Quote(text, limit):
            return plain(cut(text, limit))
        case Value(value, digits):
            return number(value, digits)
    return ""


# --- conversations as data ------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedded:
    """Conversations as JSON, and how many of each run are in it."""

    json: Markup
    counts: Sequence[int]


def embedded(conversations: Conversations) -> Embedded:
    """Return as many of the conversations as fit a page; runs share the room equally."""
    names = [of_run.name for of_run in conversations.runs]
    left = PAGE_CHARACTERS
    talks: list[str] = []
    counts = []
    for i, of_run in enumerate(conversations.runs):
        room = left / (len(names) - i)
        own = []
        for talk in of_run.items:
            text = _json(_record(talk, i))
            room -= len(text)
            if room < 0:
                break
            own.append(text)
        left -= sum(map(len, own))
        talks += own
        counts.append(len(own))
    runs = _json(list(map(_spelled, names)))
    inside = ",\n".join(talks)
    return Embedded(Markup(f'{{"runs":{runs},"talks":[{inside}]}}'), counts)


def _json(value: Any) -> str:
    """Return JSON in which nothing ends or begins an element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _record(talk: Transcript, run: int) -> dict[str, Any]:
    """Return a conversation for the script of the page, which shows every text as text. What is
    empty or not known is left out."""
    p_end = [
        said.p_end for said in (*talk.turns, talk.ending) if said.p_end is not None
    ]
    found = {
        "run": run,
        "anchor": talk.anchor,
        "id": _spelled(cut(talk.id, 80)),
        "title": _spelled(cut(talk.title, 200)),
        "intent": _spelled(cut(talk.intent, 2000)),
        "outcome": _spelled(talk.outcome),
        "stop": _spelled(cut(talk.stop, 40)),
        "rejected": talk.rejected,
        "turns": list(map(_turn, talk.turns)),
        "ending": _turn(talk.ending),
        "facts": _facts(talk.facts),
    }
    optional = {
        "solved": talk.solved,
        "human": talk.human,
        "p": p_end[-1] if p_end else None,
    }
    known = {name: value for name, value in optional.items() if value is not None}
    return {
        name: value for name, value in found.items() if value or name == "run"
    } | known


def _turn(said: Said) -> dict[str, Any]:
    found: dict[str, Any] = {
        "role": said.role,
        "label": _spelled(said.label),
        "text": _spelled(said.text[:MAX_CHARACTERS]),
        "marks": [_spelled(flat(mark)) for mark in said.marks],
        "facts": _facts(said.facts),
        "rejected": [
            (_spelled(cut(text or "no text", 600)), _spelled(cut(why, 160)))
            for text, why in said.rejected
        ],
    }
    shown = {name: value for name, value in found.items() if value}
    if len(said.text) > MAX_CHARACTERS:
        shown["characters"] = len(said.text)
    if said.p_end is not None:
        shown["p"] = number(said.p_end, 3)
        shown["share"] = round(100 * min(max(said.p_end, 0), 1))
    return shown


def _facts(facts: Facts) -> list[tuple[str, list[str]]]:
    return [
        (_spelled(cut(name, 60)), list(map(_spelled, values))) for name, values in facts
    ]


def _spelled(text: str) -> str:
    """Return the text with the numbers of hidden characters between two null characters, of which
    no others are left. The script of the page marks them, as `visible` does."""
    return HIDDEN_RUN.sub(lambda run: f"\0{code_point(run)}\0", lines(text))


# --- the template ---------------------------------------------------------------------------------


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
            "embedded": embedded,
            "flat": lambda line: Markup(escape(flat(line))),
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
        "first": FIRST,
        "megabytes": PAGE_CHARACTERS // 1_000_000,
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

"""Formats of numbers and untrusted text."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from userlm.show.blocks import Axis

MARK = "<!-- written by userlm -->"
"""Begins each page, as HTML and as Markdown: another file is not overwritten."""

# Control characters except tab and newline; direction marks, embeddings, overrides and isolates;
# zero-width characters other than joiners; line separators; lone surrogates, which no file can
# hold; tag characters.
_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
HIDDEN_RUN = re.compile(f"([{_HIDDEN}])\\1*")
"""One hidden character, or several equal ones in a row."""


def plain(text: object) -> str:
    """Return the text with hidden characters written as `⟨U+202E⟩`, a run of them as
    `⟨U+202E ×9⟩`."""
    return HIDDEN_RUN.sub(lambda run: f"⟨{code_point(run)}⟩", lines(text))


def code_point(run: re.Match[str]) -> str:
    """Return the name of a match of `HIDDEN_RUN`: `U+202E ×9`."""
    times = f" ×{len(run[0]):,}" if len(run[0]) > 1 else ""
    return f"U+{ord(run[1]):04X}{times}"


def lines(text: object) -> str:
    """Return the text with one kind of line break."""
    return str(text).replace("\r\n", "\n").replace("\r", "\n")


def cut(text: str, limit: int) -> str:
    """Return the first `limit` characters and, if there are more, their number."""
    return (
        text if len(text) <= limit else f"{text[:limit]} … ({len(text):,} characters)"
    )


def json_text(value: Any) -> str:
    """Return a string as it is, anything else as JSON, cut to 600 characters."""
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=str)
    )
    return cut(text, 600)


def called(address: str) -> str:
    """Return a user, an assistant or a model as people call it: without the folder, the hub or the
    server that it is on."""
    kind, colon, rest = address.partition(":")
    if not colon:
        return address.rstrip("/").rpartition("/")[2] or address
    match kind:
        case "prompted" | "swapped" | "profile":
            return f"{called(rest)} ({kind})"
        case "replay":
            return "people (replayed)"
        case "http" | "https":
            return address.partition("#")[2] or address
    return called(rest)


def plural(count: int, noun: str) -> str:
    """Return `1 turn`, `2 turns`, `2 people`."""
    if count == 1:
        return f"{count:,} {noun}"
    return f"{count:,} people" if noun == "person" else f"{count:,} {noun}s"


def number(value: float, digits: int = 2) -> str:
    """Return a number with this many decimals, and without decimals from 10,000. With three
    decimals it is a probability, which is `<0.001` if it would round to zero."""
    if digits == 3 and 0 < value < 0.0005:
        return "<0.001"
    shown = round(value, digits) + 0.0  # no "-0.0"
    return f"{shown:,.{digits}f}" if abs(value) < 10_000 else f"{value:,.0f}"


def short_number(value: float) -> str:
    """Return the number, without decimals if it is whole."""
    return f"{value:,.0f}" if value == int(value) else number(value)


def percent(part: float, whole: float) -> str:
    """Return a share with one decimal, or with more if it would round to zero."""
    share = 100 * part / whole if whole else 0
    return f"{share:.1g} %" if 0 < share < 0.05 else f"{share:.1f} %"


def axis(title: str, low: float, high: float, steps: int, unit: str = "") -> Axis:
    """Return an axis with round ticks that spans the values."""
    at = ticks(low, high, steps)
    return Axis(title, at[0], at[-1], [(value, _tick(value) + unit) for value in at])


def _tick(value: float) -> str:
    return f"{value:,g}" if abs(value) < 1e6 else f"{value:.0e}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from below `low` to above `high`.

    They are 1, 2 or 5 times a power of ten apart, in about `count` steps.
    """
    if high <= low:
        half = abs(low) / 10 or 0.5
        low -= half
        high += half
    smallest_step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(smallest_step))
    steps = [factor * power for factor in (1, 2, 5, 10)]
    step = next(step for step in steps if step >= smallest_step * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step)))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, digits) for i in range(first, last + 1)]

"""Texts with the usual characters in place of unusual, escaped and hidden ones, for `pii`."""

from __future__ import annotations

import re
from array import array
from bisect import bisect
from functools import lru_cache

# Spaces that do not break or are narrow, hyphens, fullwidth forms.
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FULLWIDTH = 0xFF21 - ord("A")
_UNUSUAL = (
    "\xa0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
    "\u2010\u2011\ufe63\uff0d０１２３４５６７８９＋（）＠．"
) + "".join(chr(ord(letter) + _FULLWIDTH) for letter in _LETTERS)
_USUAL = " " * 15 + "-" * 4 + "0123456789+()@." + _LETTERS
_PLAIN = str.maketrans(_UNUSUAL, _USUAL)
# Dashes and the minus are also written after a number, as in "415-555-0132—or".
_DASH = re.compile(
    "(?<=[0-9)])[\u2012-\u2015\u2212](?=[0-9(])|(?<= )[\u2012-\u2015\u2212](?= )"
)
_IS_UNUSUAL = re.compile(rf"[{_UNUSUAL}\u2012-\u2015\u2212]")


def plain(text: str) -> str:
    """Return the text, of the same length, with the usual spaces, dashes and digits."""
    if text.isascii() or not _IS_UNUSUAL.search(text):
        return text
    return _DASH.sub("-", text.translate(_PLAIN))


# Characters without width, and what is escaped: in JSON any character, in Markdown what addresses
# and numbers have between letters and digits, for a URL or HTML an @ or a +, for a URL also white
# space. The first class is what makes the search fast.
_WITHOUT_WIDTH = "\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
_HIDDEN = re.compile(
    rf"[%&\\{_WITHOUT_WIDTH}]"
    "(?:(?<=%)(?:40|2[Bb]|20|0[9AaDd])"
    "|(?<=&)(?:commat|plus|#0{0,4}(?:64|43)|#[Xx]0{0,4}(?:40|2[Bb]));"
    r"|(?<=\\)(?:u[0-9A-Fa-f]{4}|[bfnrt/\"@_.+()-])|(?<![%&\\]))"
)
_NO_WIDTH = re.compile(f"[{_WITHOUT_WIDTH}]")
_ESCAPED = dict(zip('bfnrt/"@_.+()-', '\b\f\n\r\t/"@_.+()-', strict=True))


def hides(text: str) -> bool:
    """Return whether `shown_text` differs from the text; a quick search first excludes most."""
    may = not text.isascii() or any(cue in text for cue in "%&\\")
    return may and _HIDDEN.search(text) is not None


class Places:
    """For each character of a shown text, its place in the text as it is. It takes memory for each
    piece between hidden characters, not for each character."""

    def __init__(self) -> None:
        self._starts = array("q")  # of the pieces, in the shown text
        self._places = array("q")  # and in the text

    def add(self, start: int, place: int) -> None:
        """Add a piece, from left to right."""
        self._starts.append(start)
        self._places.append(place)

    def __getitem__(self, shown: int) -> int:
        piece = bisect(self._starts, shown) - 1
        return self._places[piece] + shown - self._starts[piece]


@lru_cache(maxsize=1)  # the patterns ask for the same text, one after the other
def shown_text(text: str) -> tuple[str, Places]:
    """Return the text as it is shown, and the places of its characters in `text`."""
    parts: list[str] = []
    places = Places()
    length = end = 0
    for match in _HIDDEN.finditer(text):
        if match.start() > end:
            places.add(length, end)
            parts.append(text[end : match.start()])
            length += match.start() - end
        if character := _unescaped(match[0]):
            places.add(length, match.start())
            parts.append(character)
            length += 1
        end = match.end()
    places.add(length, end)
    return "".join(parts) + text[end:], places


def end_of(text: str, place: int) -> int:
    """Return the place after the character at a place, which may be escaped."""
    hidden = _HIDDEN.match(text, place)
    return hidden.end() if hidden else place + 1


def _unescaped(hidden: str) -> str:
    """Return the character that an escape stands for; an empty text for one without width."""
    if len(hidden) == 1:
        return ""
    if hidden[0] == "\\":
        name = hidden[1:]
        character = _ESCAPED.get(name) or chr(int(name[1:], 16))
        return "" if _NO_WIDTH.match(character) else character
    if hidden[0] == "%":
        return chr(int(hidden[1:], 16))
    is_at = any(name in hidden for name in ("40", "64", "commat"))
    return "@" if is_at else "+"

"""Keys, of which no text that is shown or written has one."""

from __future__ import annotations

import os
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

KEY_MASK = "[key]"
"""What stands where somebody repeated a key."""
SHORTEST_SECRET = 8
"""Characters. A shorter key is made up for a server that needs none, such as `ollama`."""
SHORTEST_PART = 12
"""Characters at the beginning of a key that are masked like all of it."""
LONGEST_PATTERN = 32
"""Characters by which a key is known in another form, and what follows without a space is masked
with them: the pattern of a whole token would take seconds to compile."""
_KEY_VARIABLE = re.compile(
    r"(\A|_)(KEY|TOKEN|SECRET|PASSWORD)\Z|\AUSERLM_API_KEY_", re.IGNORECASE
)
_KEY = re.compile(r"(?![./~])(?=\S*[a-z])(?=\S*[0-9])\S{12,}", re.IGNORECASE)
"""No word or path, which a variable may hold in place of a key."""


def environment_keys() -> dict[str, str]:
    """Return the keys in the environment, each with its variable: what code of others may read and
    repeat."""
    return {
        key: name
        for name, value in os.environ.items()
        if _KEY_VARIABLE.search(name) and _KEY.fullmatch(key := value.strip())
        if key.isascii()  # as all that an HTTP header may hold
    }


def without_keys(value: T) -> T:
    """Return a text, or a value of JSON with all its texts, without the keys in the environment."""
    keys = environment_keys()

    def masked(part: Any) -> Any:
        if isinstance(part, str):
            for key in sorted(keys, key=len, reverse=True):
                part = _mask_whole(part, key)
            return part
        if isinstance(part, list):
            return [*map(masked, part)]
        if isinstance(part, dict):
            return {masked(name): masked(each) for name, each in part.items()}
        return part

    return masked(value) if keys else value


def mask_key(text: str, key: str | None) -> str:
    """Return the text without the key, which a server may repeat: as it is, in another case, in
    base64 or hexadecimal, with escapes of URLs, JSON or HTML. Of a short key only as it is."""
    if not key:
        return text
    if len(key) < SHORTEST_SECRET:
        return text.replace(key, KEY_MASK)
    text = _mask_whole(text, key)
    if key[:SHORTEST_PART] in text:  # a server may quote a part
        for length in range(len(key) - 1, SHORTEST_PART - 1, -1):
            text = text.replace(key[:length], KEY_MASK)
    return text


def _mask_whole(text: str, key: str) -> str:
    """Return the text without the key in any form, which may go on with words that it begins with:
    a variable may hold `administrator1`."""
    return _key_pattern(key).sub(KEY_MASK, text.replace(key, KEY_MASK))


def mask_keys(text: str, keys: Iterable[str | None]) -> str:
    """Return the text without any of the keys, of which one may begin like another."""
    for key in sorted(filter(None, keys), key=len, reverse=True):
        text = mask_key(text, key)
    return text


@cache
def _key_pattern(key: str) -> re.Pattern[str]:
    known = key[:LONGEST_PATTERN]
    data = known.encode()
    forms = {known, data.hex()}
    # Base64 makes four characters of three bytes. If one or two bytes stand before the key, 2 or 3
    # characters depend on them, and the last one depends on what follows.
    for bytes_before, dependent in enumerate((0, 2, 3)):
        padded = bytes(bytes_before) + data
        for encode in (b64encode, urlsafe_b64encode):
            coded = encode(padded).decode().rstrip("=")
            last = len(coded) if len(padded) % 3 == 0 else -1
            forms.add(coded[dependent:last])
    first = {re.escape(form[0]) for form in forms}
    patterns = ("".join(map(_escaped, form)) for form in sorted(forms))
    # The characters that a match may begin with come first: the search is faster.
    begin = rf"(?=[\\%&{''.join(sorted(first))}])"
    rest = r"[\w.~+/=\\%&#;-]*" if len(key) > LONGEST_PATTERN else ""
    return re.compile(rf"{begin}(?:{'|'.join(patterns)}){rest}", re.IGNORECASE)


def _escaped(character: str) -> str:
    """Return a pattern for a character, as it is or escaped, in any case."""
    escapes = []
    for code in sorted({ord(character.lower()), ord(character.upper())}):
        escapes += [
            rf"\\{{1,8}}(?:u\{{?0{{0,4}}{code:x}\}}?|x{code:02x})",
            rf"%(?:25){{0,4}}{code:02x}",
            rf"&(?:amp;){{0,4}}\#(?:0{{0,4}}{code}|x0{{0,4}}{code:x});",
        ]
    return rf"(?:{re.escape(character)}|\\{{1,8}}{re.escape(character)}|{'|'.join(escapes)})"

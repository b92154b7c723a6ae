"""What a log says about the user, as one sentence for the system turn. It is a simple way to
simulate groups of users.

`userlm intents --condition language,country` puts it into `meta`; `Conversation.system` adds it to
the intent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from userlm.data.language import LANGUAGES, language_code
from userlm.types import Conversation

LONGEST = 80  # characters of a value; a longer text is not a trait of a person
_NAMES = {code: name for name, code in LANGUAGES.items()}
_UNKNOWN = ("", "none", "null", "nan", "unknown", "nolang", "und", "prefer not to say")


def traits(conversation: Conversation, fields: Sequence[str]) -> dict[str, str]:
    """Return the values of these fields of `meta`, in order. Missing values are left out, never
    guessed."""
    known = {}
    for field in fields:
        value = conversation.meta.get(field)
        if not isinstance(value, str | int | float):
            continue
        text = " ".join(str(value).split())
        if text.lower() in _UNKNOWN or len(text) > LONGEST:
            continue
        if field == "language":
            text = _NAMES.get(language_code(text), text)
        known[field] = text
    return known


def sentence(known: Mapping[str, str]) -> str:
    """Return the condition as a sentence, such as `About the user: language English, country
    Chile.`"""
    parts = [f"{field.replace('_', ' ')} {value}" for field, value in known.items()]
    return f"About the user: {', '.join(parts)}."

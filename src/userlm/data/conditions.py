"""What a log says of the person, in one sentence for the system turn: the smallest honest form of
sub-populations.

`userlm intents --condition language,country` puts it into `meta`; `Conversation.system` adds it to
the intent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from userlm.data.clean import LANGUAGES, language_code
from userlm.types import Conversation

LONGEST = 80  # characters of a value; what is longer is no trait
_NAMES = {code: name for name, code in LANGUAGES.items()}
_UNKNOWN = frozenset(("", "none", "null", "nan", "unknown", "nolang", "und", "prefer not to say"))


def told_of(conversation: Conversation, fields: Sequence[str]) -> dict[str, str]:
    """What `meta` says in these fields, in their order; what it does not say is left out, nothing
    is guessed."""
    told = {}
    for field in fields:
        value = conversation.meta.get(field)
        if not isinstance(value, str | int | float):
            continue
        text = " ".join(str(value).split())
        if text.lower() in _UNKNOWN or len(text) > LONGEST:
            continue
        told[field] = _NAMES.get(language_code(text), text) if field == "language" else text
    return told


def in_a_sentence(told: Mapping[str, str]) -> str:
    """`About the user: language English, country Chile.`"""
    known = (f"{field.replace('_', ' ')} {value}" for field, value in told.items())
    return f"About the user: {', '.join(known)}."

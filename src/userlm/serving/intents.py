"""The intent of the user, found in what a request gives."""

from __future__ import annotations

import re

from userlm.data.intents import MAX_WORDS
from userlm.text import INTENT_PREFIX

_INTENT = re.compile(
    r"\s+".join(map(re.escape, INTENT_PREFIX.split()))
    # A line that starts in lower case continues the sentence.
    + r"\s(?:[^\n]|\n(?=[ \t]*[a-z]))+?"
    # The sentence ends at a full stop (not that of "e.g."), before a new paragraph or list item, or
    # at the end of the text.
    r"(?:(?<!\b\w)[.!?](?=\s+[^a-z\s]|\s*\Z|[\"'”’)\]])|(?=[\"”]?\n[ \t]*[^a-z\t ])|\Z)"
)


def find_intent(
    given: str | None, system: str, default: str | None
) -> tuple[str | None, list[str]]:
    """Return the intent, and notes.

    The intent is `given` (empty for no intent), else the sentence of the system text that starts
    like an intent, else the content of its `<scenario>`, `<goal>` or `<task>`, else the whole
    system text, else `default`.
    """
    if given is not None:
        note = "the system message was not used: userlm.intent has the intent"
        return given.strip() or None, [note] if system else []
    if not system:
        note = "no intent was given, so the user has no particular goal"
        return default, [] if default else [note]
    # With a newline at the end, an intent without a full stop would not be found.
    system = system.strip()
    sentences = [" ".join(match[0].split()) for match in _INTENT.finditer(system)]
    if not sentences:
        return _tagged(system) or (system, [])
    count = len(set(sentences))
    notes = []
    if count > 1:
        notes.append(f"the system message has {count} intents; the first was used")
    elif sentences[0] != " ".join(system.split()):
        notes.append(
            "only the sentence with the intent was used from the system message"
        )
    return sentences[0], notes


def find_description(given: str | None, system: str) -> str | None:
    """Return the text from which the intent is still to be written: the whole system text, or what
    is in its tags if that is longer than an intent. `None` if there is an intent, or no text."""
    if given is not None or not system or _INTENT.search(system.strip()):
        return None
    content, _ = _tagged(system) or (system, [])
    is_short = content is not system and len(content.split()) <= MAX_WORDS
    return None if is_short else content


def _tagged(system: str) -> tuple[str, list[str]] | None:
    """Return the content of the first of `<scenario>`, `<goal>` and `<task>` that there is, and a
    note."""
    for name in ("scenario", "goal", "task"):
        # Each is searched once: many that are not closed take no more time than one.
        opening = re.search(f"<{name}>", system, re.IGNORECASE)
        rest = system[opening.end() :] if opening else ""
        if closing := re.search(f"</{name}>", rest, re.IGNORECASE):
            content = rest[: closing.start()].strip()
            if content:
                return content, [f"the intent is the <{name}> of the system message"]
    return None

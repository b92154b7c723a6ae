"""Every prompt is a file here. Inserted values are not changed, whatever they contain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files

PLACE = re.compile(r"\{(\w+)\}")
"""Where a prompt has a value."""


def text(name: str) -> str:
    """Return the prompt `name`, with its places."""
    return files(__package__).joinpath(f"{name}.md").read_text(encoding="utf-8").strip()


def filled(prompt: str, values: Mapping[str, str]) -> str:
    """Return a prompt with each `{place}` replaced by its value, in one pass."""
    return PLACE.sub(lambda place: values[place[1]], prompt)


def fill(name: str, values: Mapping[str, str]) -> str:
    """Return the prompt `name` with its places filled in."""
    return filled(text(name), values)


def fence(text: str) -> str:
    """Return a line of equals signs that the text does not contain, to put it between two."""
    line = "===="
    while line in text:
        line += "="
    return line


def hashes(beginning: str = "") -> dict[str, str]:
    """The name and SHA-256 of every prompt whose name begins so, sorted by name, for the record of
    a run."""
    found = {}
    for file in files(__package__).iterdir():
        if file.name.startswith(beginning) and file.name.endswith(".md"):
            found[file.name] = sha256(file.read_bytes()).hexdigest()
    return dict(sorted(found.items()))

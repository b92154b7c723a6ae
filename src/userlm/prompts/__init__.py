"""Every prompt, as a file. `fill` puts values in; nothing that stands in a value is taken for a
place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files


def fill(name: str, values: Mapping[str, str]) -> str:
    """The prompt `name`, each `{place}` replaced by its value, all at once."""
    text = files(__package__).joinpath(f"{name}.md").read_text(encoding="utf-8").strip()
    return re.sub(r"\{(\w+)\}", lambda place: values[place[1]], text)


def hashes() -> dict[str, str]:
    """The name and SHA-256 of every prompt, for the record of a run."""
    found = (file for file in files(__package__).iterdir() if file.name.endswith(".md"))
    return {
        file.name: sha256(file.read_bytes()).hexdigest()
        for file in sorted(found, key=lambda f: f.name)
    }

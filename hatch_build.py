"""Puts README into the metadata of the package, with whole addresses: an index page has no files
that its links could lead to."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(\]\()(?!https?:|#)([^)\s]+)")
IMAGE = re.compile(r'(<img src=")(?!https?:)([^"]+)')


def whole_addresses(text: str, repository: str) -> str:
    """Return a text in Markdown whose links and images lead to files of the repository."""
    text = LINK.sub(rf"\1{repository}/blob/main/\2", text)
    return IMAGE.sub(rf"\1{repository}/raw/main/\2", text)


class Readme(MetadataHookInterface):
    """The hook that hatchling calls."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme`, which pyproject.toml calls dynamic."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        whole = whole_addresses(text, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": whole}

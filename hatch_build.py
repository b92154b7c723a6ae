"""Puts README into the metadata of the package, with whole addresses: an index page has no files
that its links could lead to."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def whole_addresses(text: str, repository: str) -> str:
    """Return a text in Markdown whose links and images lead to files of the repository."""

    def whole(link: re.Match[str]) -> str:
        is_image, shown, path = link.groups()
        page = "raw" if is_image else "blob"
        return f"{is_image}[{shown}]({repository}/{page}/main/{path})"

    return LINK.sub(whole, text)


class Readme(MetadataHookInterface):
    """The hook that hatchling calls."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme`, which pyproject.toml calls dynamic."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        whole = whole_addresses(text, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": whole}

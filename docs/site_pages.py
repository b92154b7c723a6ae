"""Copy the pages of docs/ for the site, into build/docs: links to other files of the repository
become whole addresses, and what Markdown reads otherwise there than on GitHub is adapted.

    .venv/bin/python docs/site_pages.py

`make docs` runs this; on the pages themselves links are relative, so that they lead somewhere in a
checkout, too.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent


def for_site(page: str, repository: str) -> str:
    """Return a page whose links to files outside docs/ lead to the repository. In the tables of
    the site a bar in code is no end of a cell, and needs no backslash."""
    page = re.sub(r"\]\(\.\./(?=\S)", f"]({repository}/blob/main/", page)
    row = re.compile(r"^\|.*", re.MULTILINE)
    code = re.compile(r"`[^`]*`")
    return row.sub(lambda found: code.sub(_with_bars, found[0]), page)


def _with_bars(code: re.Match[str]) -> str:
    return code[0].replace(r"\|", "|")


def copy_pages(into: Path) -> None:
    """Write the pages and what they show into a folder, in place of what is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = project["project"]["urls"]["Repository"]
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for file in DOCS.iterdir():
        if file.suffix == ".md":
            page = for_site(file.read_text(encoding="utf-8"), repository)
            (into / file.name).write_text(page, encoding="utf-8")
        elif file.is_file() and file.suffix != ".py":
            shutil.copy(file, into)


if __name__ == "__main__":
    copy_pages(ROOT / "build" / "docs")

"""`report`: one page of finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from userlm.commands.options import argument, option
from userlm.commands.steps import Results, check_page, write_page
from userlm.show.terminal import console


@dataclass(frozen=True, slots=True)
class Report:
    """Make a page about finished runs: results with intervals, plots, transcripts and how each run
    was made.

    $ userlm report runs/import runs/clean runs/train runs/score
    """

    runs: list[Path] = argument(..., "Folders of finished runs, of any command.")
    out: Path = option(
        Path("runs/report"), "Output folder for report.html and report.md."
    )


def report(options: Report) -> Results:
    """Write the page as HTML and Markdown."""
    from userlm.show import html, markdown  # heavy: jinja2, pydantic
    from userlm.show.finished import read_run
    from userlm.show.page import describe

    pages = {kind: options.out / f"report.{kind}" for kind in ("html", "md")}
    for path in pages.values():
        check_page(path, "--out")
    page = describe([read_run(run) for run in options.runs])
    write_page(pages["html"], html.render(page))
    write_page(pages["md"], markdown.render(page))
    console.print(f"report: {pages['html']}")
    return {kind: str(path) for kind, path in pages.items()}

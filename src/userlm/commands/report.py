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
        Path("runs/report"),
        "Output folder for report.html, report.md and, of `assess`, the tables in report.tex.",
    )


def report(options: Report) -> Results:
    """Write the page as HTML and Markdown, and tables of users as LaTeX, if there are any."""
    from userlm.show import html, latex, markdown  # heavy: jinja2, pydantic
    from userlm.show.finished import MOST_TRANSCRIPTS, read_runs
    from userlm.show.page import describe

    pages = {kind: options.out / f"report.{kind}" for kind in ("html", "md", "tex")}
    for path in pages.values():
        check_page(path, "--out")
    page = describe(read_runs(options.runs, MOST_TRANSCRIPTS))
    texts = {
        "html": html.render(page),
        "md": markdown.render(page),
        "tex": latex.render(page),
    }
    written = {kind: path for kind, path in pages.items() if texts[kind]}
    for kind, path in written.items():
        write_page(path, texts[kind])
    console.print(f"report: {pages['html']}")
    return {kind: str(path) for kind, path in written.items()}

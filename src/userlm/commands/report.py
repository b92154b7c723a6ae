"""`report`: one page of finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from userlm.commands.options import argument, option
from userlm.commands.steps import Results
from userlm.json_files import replacing
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

    page = describe([read_run(run) for run in options.runs])
    options.out.mkdir(parents=True, exist_ok=True)
    texts = {"html": html.render(page), "md": markdown.render(page)}
    written: Results = {}
    for kind, text in texts.items():
        path = options.out / f"report.{kind}"
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
        written[kind] = str(path)
    console.print(f"report: {written['html']}")
    return written

"""`report`: one page of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from userlm.commands.options import Results
from userlm.rows import replacing
from userlm.terminal import console

DEFAULT_FOLDER = Path("runs/report")


def report(
    runs: Annotated[
        list[Path], Argument(help="Folders of finished runs, of any command.")
    ],
    out: Annotated[
        Path, Option(help="Output folder for report.html and report.md.")
    ] = DEFAULT_FOLDER,
) -> Results:
    """Make a page about finished runs: results with intervals, plots, transcripts and how each run
    was made."""
    from userlm.show import html, markdown  # heavy: jinja2, pydantic
    from userlm.show.finished import read_run
    from userlm.show.page import describe

    page = describe([read_run(run) for run in runs])
    out.mkdir(parents=True, exist_ok=True)
    texts = {"html": html.render(page), "md": markdown.render(page)}
    written: Results = {}
    for kind, text in texts.items():
        path = out / f"report.{kind}"
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
        written[kind] = str(path)
    console.print(f"report: {written['html']}")
    return written

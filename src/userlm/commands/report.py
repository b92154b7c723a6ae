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
    runs: Annotated[list[Path], Argument(help="Finished run folders, of any verb.")],
    out: Annotated[Path, Option(help="Folder for report.html and report.md.")] = DEFAULT_FOLDER,
) -> Results:
    """Make one page of finished runs: figures with intervals, plots, transcripts, and how each run
    was made."""
    from userlm import report as page  # heavy: jinja2

    found = [page.read_run(run) for run in runs]
    out.mkdir(parents=True, exist_ok=True)
    texts = {"html": page.html(found), "md": page.markdown(found)}
    written: Results = {}
    for kind, text in texts.items():
        path = out / f"report.{kind}"
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
        written[kind] = str(path)
    console.print(f"report: {written['html']}")
    return written

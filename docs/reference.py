"""Write docs/cli.md, the reference of the command line, from the options of each verb.

    .venv/bin/python docs/reference.py

A test compares the file with what this writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Literal, get_args, get_origin

from userlm import cli
from userlm.commands.options import Described, described, description

NAMES = {Path: "path", int: "integer", float: "number", str: "text", bool: "flag"}

HEAD = """# Command line

`userlm VERB --help` shows the same. Options can be read from a TOML file with `--config FILE`; its
keys are the long names of the options. This page is written by `docs/reference.py`."""


def reference() -> str:
    """Return the page."""
    paragraphs = [HEAD]
    links = [f"[{verb}](#userlm-{verb})" for verb in cli.VERBS]
    paragraphs.append(" · ".join(links))
    for verb, (options, _) in cli.VERBS.items():
        paragraphs.append(f"## userlm {verb}")
        said = description(options).split("\n\n")
        paragraphs += [part for part in said if not part.startswith("$ ")]
        examples = [part[2:] for part in said if part.startswith("$ ")]
        paragraphs.append("\n".join(["```bash", *examples, "```"]))
        paragraphs += _tables(list(described(options)))
    return "\n\n".join(paragraphs) + "\n"


def _tables(options: list[Described]) -> Iterator[str]:
    """A table for each heading of the help."""
    panels = dict.fromkeys(option.shown.rich_help_panel for option in options)
    for panel in panels:
        if panel:
            yield f"**{panel}**"
        rows = ["| option | value | default | |", "|---|---|---|---|"]
        for option in options:
            if option.shown.rich_help_panel == panel:
                rows.append(_row(option))
        yield "\n".join(rows)


def _row(option: Described) -> str:
    default = option.default
    shown = f"`{default}`"
    if default is MISSING:
        shown = "required"
    elif default is None or default is False:
        shown = ""
    elif isinstance(default, tuple):
        shown = " ".join(f"`{one}`" for one in default)
    elif default is True:
        shown = f"on; `--no-{option.name.replace('_', '-')}`"
    help_text = option.shown.help.replace("\\[", "[").replace("|", "\\|")
    return f"| `{option.label}` | {_type(option)} | {shown} | {help_text} |"


def _type(option: Described) -> str:
    """Choices, else the kind of value."""
    if option.shown.metavar:
        return str(option.shown.metavar)
    kinds = [option.type, *get_args(option.type)]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if any(get_origin(kind) is list for kind in kinds):
        return "several values"
    return next(NAMES[kind] for kind in kinds if kind in NAMES)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(reference(), encoding="utf-8")

"""Write docs/cli.md from the options of each verb, and docs/python.md from the docstrings of what
`import userlm` gives.

    .venv/bin/python docs/reference.py

A test compares the files with what this writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from textwrap import indent
from typing import Any, Literal, get_args, get_origin

import userlm
from userlm import cli
from userlm.commands.options import Described, described, description

NAMES = {Path: "path", int: "integer", float: "number", str: "text", bool: "flag"}

HEAD = """# Command line

`userlm VERB --help` shows the same. Options can be read from a TOML file with `--config FILE`; its
keys are the long names of the options. This page is written by `docs/reference.py`."""


PYTHON_HEAD = """# Python

What `import userlm` gives. Importing it loads no torch, opens no socket and reads no key. Other
modules of the package may change without notice. This page is written by `docs/reference.py` from
the docstrings."""

SECTIONS = {
    "Users, assistants, models": ["user", "assistant", "chat_model", "Sampling"],
    "Guards": ["Guard", "PAPER"],
    "Conversations": [
        *("Conversation", "Turn", "Origin", "Speaker", "Reply"),
        *("read_conversations", "write_conversations"),
    ],
    "Runs": ["converse", "simulate", "respond", "Episode"],
    "Evaluating a bot": ["evaluate", "Task", "Fact", "Measure"],
    "Training": ["samples", "Sample", "render", "Template"],
    "Errors": ["InputError", "ModelError", "ModelWarning"],
}
"""Every public name, under its heading."""

FITS = 88


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


def python_reference() -> str:
    """Return the page about Python."""
    described = [name for names in SECTIONS.values() for name in names]
    missing = set(userlm.__all__).symmetric_difference(described)
    assert not missing, f"SECTIONS and userlm.__all__ differ in {missing}"
    paragraphs = [PYTHON_HEAD]
    links = [f"[{name}](#{name.lower()})" for name in described]
    paragraphs.append(" · ".join(links))
    for heading, names in SECTIONS.items():
        paragraphs.append(f"## {heading}")
        for name in names:
            paragraphs += [f"### {name}", *_public(name, getattr(userlm, name))]
    return "\n\n".join(paragraphs) + "\n"


def _public(name: str, thing: Any) -> Iterator[str]:
    """The paragraphs of a function, a class with its methods and properties, or a value."""
    if not callable(thing):
        kind = type(thing).__name__
        yield f"A [{kind}](#{kind.lower()}): `{thing!r}`"
        return
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    is_protocol = getattr(thing, "_is_protocol", False)
    if is_error:
        yield _code(f"class {name}({thing.__base__.__name__})")
    elif not is_protocol:
        yield _code(_signature(name, thing))
    yield from _docstring(thing)
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        if not member.startswith("_"):
            yield from _member(f"{name}.{member}", value)


def _member(name: str, value: Any) -> Iterator[str]:
    """The paragraphs of a method or a property; none for a field."""
    if isinstance(value, property):
        yield f"**`{name}`**"
        yield from _docstring(value)
    elif isinstance(value, classmethod) or inspect.isfunction(value):
        yield _code(_signature(name, getattr(value, "__func__", value), is_method=True))
        yield from _docstring(value)


def _code(text: str) -> str:
    return f"```py\n{text}\n```"


def _signature(name: str, thing: Callable[..., Any], is_method: bool = False) -> str:
    """The signature, one parameter a line where it does not fit one line."""
    found = inspect.signature(thing)
    parameters = list(found.parameters.values())[int(is_method) :]
    parts = []
    for at, parameter in enumerate(parameters):
        first_named = parameter.kind is parameter.KEYWORD_ONLY
        if first_named and (at == 0 or parameters[at - 1].kind != parameter.kind):
            parts.append("*")
        parts.append(_parameter(parameter))
    returned = ""
    if found.return_annotation not in (inspect.Signature.empty, "None", None):
        returned = f" -> {found.return_annotation}"
    line = f"{name}({', '.join(parts)}){returned}"
    if len(line) <= FITS:
        return line
    return f"{name}(\n" + indent(",\n".join(parts), "    ") + f",\n){returned}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_KEYWORD: "**", parameter.VAR_POSITIONAL: "*"}
    shown = stars.get(parameter.kind, "") + parameter.name
    if parameter.annotation is not parameter.empty:
        shown += f": {parameter.annotation}"
    default = parameter.default
    if default is parameter.empty:
        return shown
    if inspect.isfunction(default):
        return f"{shown} = {default.__name__}"
    if is_dataclass(default):  # as it stands in the source: with the fields' defaults
        return f"{shown} = {type(default).__name__}()"
    shown_default = repr(default)
    return f"{shown} = {'{}' if shown_default == '<factory>' else shown_default}"


def _docstring(thing: Any) -> Iterator[str]:
    """A docstring as paragraphs; its sections (`Args:`) as lists."""
    for block in (inspect.getdoc(thing) or "").split("\n\n"):
        heading, *lines = block.splitlines()
        if not re.fullmatch("(Args|Attributes|Raises):", heading):
            yield block
            continue
        yield f"{heading}"
        items = re.sub(r"\n {8}", " ", "\n".join(lines)).splitlines()
        yield "\n".join(_item(line.strip()) for line in items)


def _item(line: str) -> str:
    """`name, other: what it is` as an item of a list."""
    names, colon, said = line.partition(": ")
    assert colon, f"no description: {line}"
    marked = ", ".join(f"`{name}`" for name in names.split(", "))
    return f"- {marked}: {said}"


if __name__ == "__main__":
    here = Path(__file__)
    here.with_name("cli.md").write_text(reference(), encoding="utf-8")
    here.with_name("python.md").write_text(python_reference(), encoding="utf-8")

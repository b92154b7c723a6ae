"""The command line: `userlm VERB`, for the verbs of `commands` and `demo`.

Options can also be read from a TOML file, `userlm VERB --config FILE`. Its keys are the long names
of the options without the leading dashes, with `-` or `_`. The command line overrides the file.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
import warnings
from difflib import get_close_matches
from errno import EDQUOT, ENOSPC
from keyword import iskeyword
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TextIO, get_args, get_origin

import typer

import userlm
from userlm import commands
from userlm.commands.options import command, description, option_types
from userlm.demo import Demo, demo
from userlm.models.event_loops import cancel
from userlm.show.terminal import guard_streams, open_terminal
from userlm.terminal_input import discard
from userlm.types import InputError, ModelError, ModelWarning

VERBS = {**commands.VERBS, "demo": (Demo, demo)}

TOML_TYPES: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("an integer", (int,)),
    float: ("a number", (int, float)),
    str: ("a string", (str,)),
    Path: ("a string", (str,)),
    list[Path]: ("a list of paths", (list,)),
    list[str]: ("a list of strings", (list,)),
}
"""For each option type: its name in messages, and the Python types that a TOML value may have."""

app = typer.Typer(
    help="User language models: models that play the user in a conversation with an AI assistant.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"userlm {userlm.__version__}")
        raise typer.Exit


@app.callback(
    epilog="`userlm COMMAND --config FILE` reads options from a TOML file, such as lr = 1e-4, at "
    "the top or in a table \\[train]."
)
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="Read the command's options from this TOML file."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    if config is not None and (verb := context.invoked_subcommand):
        options, _ = VERBS[verb]
        types = option_types(options)
        context.default_map = {verb: read_config(config, verb, types)}


for _name, (_options, _run) in VERBS.items():
    app.command(_name, help=description(_options))(command(_options, _run))


def read_config(
    path: Path,
    verb: str,
    types: dict[str, Any],
) -> dict[str, Any]:
    """Return the options of a verb from a TOML file: the top-level keys and those in the verb's
    table.

    Args:
        types: the types of the verb's options, by name.

    Raises:
        InputError: the message names the file, line and option.
    """
    try:
        text = path.read_text(encoding="utf-8")
        parsed = tomllib.loads(text)
    except OSError as error:
        raise InputError(
            f"{path}: cannot read this configuration: {error.strerror}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    tables = {key: value for key, value in parsed.items() if isinstance(value, dict)}
    for key in tables:
        del parsed[key]
        if key not in VERBS:
            raise _unknown_option(path, text, key, "table", list(VERBS))
    values = {}
    for key, value in (parsed | tables.get(verb, {})).items():
        name = key.replace("-", "_")
        name += "_" * iskeyword(name)  # `as` and `for` name no field of a class
        if name not in types:
            raise _unknown_option(
                path, text, key, f"option for `userlm {verb}`", list(types)
            )
        if wanted := _mismatch(types[name], value):
            line = _line_of(text, key)
            raise InputError(
                f"{path}, line {line}: {key} is {value!r}; it must be {wanted}"
            )
        values[name] = value
    return values


def _mismatch(option_type: Any, value: Any) -> str:
    """Return which type the value should have; empty if it already has it."""
    choices = (
        get_args(option_type)
        if get_origin(option_type) is UnionType
        else (option_type,)
    )
    # Choices are checked with the other options.
    plain = [str if get_origin(choice) is Literal else choice for choice in choices]
    known = [TOML_TYPES[choice] for choice in plain if choice in TOML_TYPES]
    for _, types in known:
        items = value if type(value) is list else []
        if type(value) in types and all(type(item) is str for item in items):
            return ""
    return known[0][0]


def _unknown_option(
    path: Path,
    text: str,
    key: str,
    what: str,
    known: list[str],
) -> InputError:
    near = get_close_matches(key.replace("-", "_"), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return InputError(
        f"{path}, line {_line_of(text, key)}: {key!r} is not a known {what}; {hint}"
    )


def _line_of(text: str, key: str) -> int:
    """The line of a TOML file that sets a key or opens a table."""
    pattern = re.compile(rf"[\s\[\"']*{re.escape(key)}[\"'\]]*\s*(=|$)")
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.match(line):
            return number
    return 1


def main() -> None:
    """Run the command line.

    Exit codes: 0 success, 1 a model or this machine failed, 2 wrong input, 130 Ctrl-C.
    """
    guard_streams()
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", ModelWarning)
    try:
        app(_config_first(sys.argv[1:]))
    except InputError as error:
        _say(error)
        sys.exit(2)
    except ModelError as error:
        _say(error)
        sys.exit(1)
    except OSError as error:
        advice = ""
        if error.errno in (ENOSPC, EDQUOT):
            advice = "; free some space, then run the same command again"
        _say(f"{error.filename or 'this machine'}: {error.strerror or error}{advice}")
        sys.exit(1)
    except SystemExit as stop:
        if (
            not stop.code
            and "train" in sys.argv
            and os.environ.get("WORLD_SIZE", "1") != "1"
        ):
            sys.stdout.flush()
            sys.stderr.flush()
            # One of several processes: a thread of its process group may hold a tensor for a moment
            # longer, and aborts the process if Python ends meanwhile (pytorch pull request 179291).
            os._exit(0)
        if stop.code != 130:
            raise
        # Typer turns Ctrl-C into this code.
        is_run = sys.argv[1:2] not in (["serve"], ["chat"])
        _say("stopped; the same command resumes it" if is_run else "stopped")
        cancel("bots")
        discard()  # the next line runs nothing that waits for an exit
        # A normal exit would wait minutes for threads that wait for a model.
        os._exit(130)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a `ModelWarning` as a sentence, without the source line; show others as Python does."""
    if issubclass(category, ModelWarning):
        _say(f"note: {message}")
    else:
        sys.stderr.write(
            warnings.formatwarning(message, category, filename, lineno, line)
        )


def _config_first(arguments: list[str]) -> list[str]:
    """Turn `userlm train --config c.toml` into `userlm --config c.toml train`."""
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            return [*arguments[i : i + 2], *arguments[:i], *arguments[i + 2 :]]
        if argument.startswith("--config="):
            return [argument, *arguments[:i], *arguments[i + 1 :]]
    return arguments


def _say(message: object) -> None:
    open_terminal(stderr=True).print(f"userlm: {message}", soft_wrap=True)

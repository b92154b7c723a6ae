"""The functions of `commands` as a command line: `userlm VERB`.

Options can also stand in a TOML file, `userlm VERB --config FILE`: the option's long name without
the dashes, `-` or `_` alike. What is given on the command line wins.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from errno import EDQUOT, ENOSPC
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TextIO, get_args, get_origin, get_type_hints

import typer
from rich.console import Console

from userlm import commands, demo
from userlm.types import InputError, ModelError, ModelWarning

VERBS: dict[str, Callable[..., Any]] = {
    "import": commands.import_,
    "clean": commands.clean,
    "intents": commands.intents,
    "train": commands.train,
    "ppl": commands.ppl,
    "respond": commands.respond,
    "simulate": commands.simulate,
    "score": commands.score,
    "report": commands.report,
    "demo": demo.demo,
    "chat": commands.chat,
    "serve": commands.serve,
}

app = typer.Typer(
    help="User language models: models that play the user in a conversation with an AI assistant.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(
    epilog="`userlm VERB --config FILE` takes options from a TOML file: lr = 1e-4, alone or in a "
    "table \\[train]."
)
def root(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="Take options of the verb from this TOML file.")
    ] = None,
) -> None:
    if config is not None and (verb := context.invoked_subcommand):
        kinds = {
            name: kind for name, kind in get_type_hints(VERBS[verb]).items() if name != "return"
        }
        context.default_map = {verb: read_config(config, verb, kinds)}


for _name, _function in VERBS.items():
    app.command(_name)(_function)


def read_config(path: Path, verb: str, known: dict[str, Any]) -> dict[str, Any]:
    """The options for a verb in a TOML file: those at the top and those under the verb's own name.

    Args:
        known: the kinds of the verb's options, by name.

    Raises:
        InputError: naming file, line and option.
    """
    try:
        text = path.read_text(encoding="utf-8")
        parsed = tomllib.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot read this configuration: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    tables = {key: value for key, value in parsed.items() if isinstance(value, dict)}
    options = {key: value for key, value in parsed.items() if key not in tables} | tables.get(
        verb, {}
    )
    for key in tables:
        if key not in VERBS:
            raise _unknown_option(path, text, key, "table", list(VERBS))
    values = {}
    for key, value in options.items():
        name = key.replace("-", "_")
        if name not in known:
            raise _unknown_option(path, text, key, f"option for `userlm {verb}`", list(known))
        _check_kind(known[name], value, f"{path}, line {_line_of(text, key)}: {key}")
        values[name] = value
    return values


def _check_kind(hint: Any, value: Any, where: str) -> None:
    """Raise `InputError` if a value is not of an option's kind."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        str: isinstance(value, str),
        Path: isinstance(value, str),
        list[Path]: isinstance(value, list) and all(isinstance(item, str) for item in value),
        list[str]: isinstance(value, list) and all(isinstance(item, str) for item in value),
    }
    if not any(fits.get(kind, False) for kind in kinds):
        names = {
            bool: "true or false",
            int: "an integer",
            float: "a number",
            list[Path]: "a list of paths",
        }
        names[list[str]] = "a list of strings"
        wanted = names.get(next(kind for kind in kinds if kind in fits), "a string")
        raise InputError(f"{where} is {value!r}; it must be {wanted}")


def _unknown_option(path: Path, text: str, key: str, what: str, known: list[str]) -> InputError:
    near = get_close_matches(key.replace("-", "_"), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return InputError(f"{path}, line {_line_of(text, key)}: {key!r} is no {what}; {hint}")


def _line_of(text: str, key: str) -> int:
    """The line of a TOML file on which a key or table is set."""
    pattern = re.compile(rf"[\s\[\"']*{re.escape(key)}[\"'\]]*\s*(=|$)")
    return next(
        (number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1
    )


def main() -> None:
    """Run the command line. Exit codes: 0 fine, 1 a model or the machine failed, 2 wrong input, 130
    Ctrl-C."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", ModelWarning)
    try:
        app(_config_first(sys.argv[1:]))
    except InputError as error:
        sys.exit(_say(error, 2))
    except ModelError as error:
        sys.exit(_say(error, 1))
    except OSError as error:
        advice = (
            "; free some space, then run the same command again"
            if error.errno in (ENOSPC, EDQUOT)
            else ""
        )
        sys.exit(_say(f"{error.filename or 'the machine'}: {error.strerror or error}{advice}", 1))
    except SystemExit as over:
        if over.code == 130:  # Ctrl-C, which typer turns into this
            again = "" if "serve" in sys.argv[1:2] else "; the same command takes it up again"
            _say(f"stopped{again}", 130)
            os._exit(
                130
            )  # threads that wait for a model would hold up an ordinary exit for minutes
        raise


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours as a sentence, since where in the code it was noticed helps nobody; all others as Python
    does."""
    if issubclass(category, ModelWarning):
        _say(f"note: {message}", 0)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _config_first(arguments: list[str]) -> list[str]:
    """`userlm train --config c.toml` as `userlm --config c.toml train`."""
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            return [*arguments[i : i + 2], *arguments[:i], *arguments[i + 2 :]]
        if argument.startswith("--config="):
            return [argument, *arguments[:i], *arguments[i + 1 :]]
    return arguments


def _say(error: object, code: int) -> int:
    Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False).print(
        f"userlm: {error}"
    )
    return code

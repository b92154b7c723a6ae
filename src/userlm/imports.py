"""Code of others: Python objects by name, such as a bot or the function of a check, whether such
code may run, and what its errors say."""

from __future__ import annotations

import sys
import traceback
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from sysconfig import get_path
from typing import Any

from userlm.keys import without_keys
from userlm.types import InputError

RAISED = (Exception, SystemExit, CancelledError)
"""What code of others may raise, beside Ctrl-C; the last one if it has an event loop of its own."""


_UNLESS: ContextVar[str] = ContextVar("unless", default="")
"""The option without which no code of others runs; empty if any may."""


@contextmanager
def code_refused(unless: str) -> Iterator[None]:
    """Run no bot, no function of a check and no code of answers outside of a sandbox in this block,
    since somebody else may have named them.

    Args:
        unless: the option that allows it; empty if it is given.
    """
    token = _UNLESS.set(unless)
    try:
        yield
    finally:
        _UNLESS.reset(token)


def check_code_may_run(what: str) -> None:
    """Raise `InputError` where code is refused; see `code_refused`."""
    if option := _UNLESS.get():
        raise InputError(
            f"what failed needs {what}, which the files of others may name; give {option} if you "
            "know what it does, to run it now"
        )


def find_object(name: str) -> Any:
    """Return the object `MODULE:NAME`, or `MODULE:NAME.ATTRIBUTE`. Modules in the current folder
    are found, too.

    Raises:
        InputError: if there is none, or its module cannot be imported.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError(f"{name}: write MODULE:NAME, as in my_module:my_function")
    check_code_may_run(f"py:{name}")
    search_here()
    try:
        return attrgetter(attribute)(import_module(module))
    except RAISED as error:
        first = attribute.partition(".")[0]
        known = vars(sys.modules[module]) if module in sys.modules else {}
        near = [] if first in known else get_close_matches(first, known, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"{name}: cannot be imported ({describe_error(error)}){meant}"
        ) from None


def describe_error(error: BaseException) -> str:
    """Return what an error says, without keys, after the line in the code of others from which it
    comes."""
    try:
        what = without_keys(f"{type(error).__name__}: {error}".removesuffix(": "))
    except Exception:  # that of an error of their own may fail too
        what = type(error).__name__
    here = str(Path(__file__).parent)
    not_theirs = (here, get_path("stdlib"), get_path("purelib"), "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(not_theirs):
            # The line stands first, since an error may be long.
            return f"{Path(frame.filename).name}, line {frame.lineno}: {what}"
    return what


def search_here() -> None:
    """Find Python modules in the current folder, too."""
    if "" not in sys.path:
        sys.path.insert(0, "")

"""Python objects by name: a speaker of the user's own, the function of a check."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from userlm.types import InputError


def find_object(name: str) -> Any:
    """Return the object `MODULE:NAME`. Modules in the current folder are found, too.

    Raises:
        InputError: if there is none, or its module cannot be imported.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError(f"{name!r}: write MODULE:NAME, as in my_module:my_function")
    search_here()
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # whatever a module of others raises when it is imported
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{name}: cannot be imported ({why})") from None


def search_here() -> None:
    """Find Python modules in the current folder, too."""
    if "" not in sys.path:
        sys.path.insert(0, "")

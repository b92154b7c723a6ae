"""Save models and checkpoints in folders that are written atomically."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import GenerationConfig

from userlm.models.local import LocalModel
from userlm.models.templates import added_ids


def save(
    local: LocalModel,
    folder: Path,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a Hugging Face folder whose chat template in transformers and vLLM gives the format of
    training.

    Args:
        folder: replaced once the new one is complete; see `restore`.
        state_dict: the full weights, if the model has only a part of them; by default its own.
        dtype: the precision of floating-point weights in the folder; by default as they are.

    Raises:
        OSError: such as ENOSPC for a full disk; an older folder is kept.
    """
    model = local.model
    tokenizer = local.tokenizer
    template = local.template()
    # `close` of plain text is an ordinary newline, which must not stop a generation.
    added = added_ids(tokenizer).values()
    stop_ids = [
        id for id in dict.fromkeys((template.close, template.end)) if id in added
    ]
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=0.8,
        eos_token_id=stop_ids,
        pad_token_id=stop_ids[0],
    )
    model.config.eos_token_id = stop_ids[0]
    for name in (
        "is_local",
        "local_files_only",
    ):
        # the way it was loaded here is irrelevant
        tokenizer.init_kwargs.pop(name, None)
    own = model.state_dict(keep_vars=True)
    # Tied weights have several names and one parameter; only the first name is written.
    names = {id(weight): name for name, weight in reversed(own.items())}
    weights = {}
    for name in names.values():
        weight = (state_dict or own)[name].detach()
        if dtype is not None and weight.is_floating_point() and weight.dtype != dtype:
            weight = weight.to("cpu", dtype)  # a second copy may not fit the GPU
        weights[name] = weight
    with replacing_folder(folder) as partial, full_disk(folder):
        model.save_pretrained(partial, state_dict=weights)
        if dtype is not None:
            model.config.dtype = dtype
            model.config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        # The class name that transformers before 5 also knows.
        settings = partial / "tokenizer_config.json"
        text = settings.read_text(encoding="utf-8")
        text = text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"')
        settings.write_text(text, encoding="utf-8")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder next to `folder`, which replaces it if no error occurs."""
    partial = folder.with_name(f"{folder.name}.partial")
    old = partial.with_suffix(".old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path) -> None:
    """Put the older folder back if the process was killed between the two renames of
    `replacing_folder`."""
    old = folder.with_name(f"{folder.name}.old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Raise the usual `OSError` if safetensors or torch report a full disk in their own way."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if (
            "os error 28" not in str(error)
            and shutil.disk_usage(folder.parent).free > 2**20
        ):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None


# --- checkpoints to resume from -------------------------------------------------------------------


@dataclass(slots=True)
class Progress:
    """The progress of a run: steps, the best validation perplexity, and validations since then.

    It is part of a checkpoint, so a resumed run continues to count patience.
    """

    step: int = 0
    best: float = math.inf
    waited: int = 0

    def is_better(self, perplexity: float) -> bool:
        """Record a validation; return whether it is the best so far."""
        if perplexity < self.best:
            self.best = perplexity
            self.waited = 0
            return True
        self.waited += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def resume(accelerator: Accelerator, folder: Path) -> None:
    """Load the checkpoint of the folder, if there is one.

    It restores weights, optimizer, random states and the registered `Progress`. The order of rows
    depends only on the seed.
    """
    if accelerator.is_main_process:
        for name in ("checkpoint", "model", "adapter"):
            restore(folder / name)
    accelerator.wait_for_everyone()
    if checkpoint := latest_checkpoint(folder):
        accelerator.load_state(str(checkpoint))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint to resume from, if there is one."""
    checkpoint = folder / "checkpoint"
    return checkpoint if checkpoint.is_dir() else None


def save_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Write weights, optimizer and progress atomically. Call it in every process."""
    checkpoint = folder / "checkpoint"
    with replacing_folder(checkpoint) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        with full_disk(checkpoint):
            accelerator.save_state(f"{checkpoint}.partial")
        accelerator.wait_for_everyone()


def tidy(folder: Path) -> None:
    """Remove what a complete run does not need: its checkpoint, and incomplete folders of a killed
    process."""
    for name in (
        "checkpoint*",
        "model.*",
        "adapter.*",
        "rows",
        "rows-valid",
        "tokenizer*",
    ):
        for path in folder.glob(name):
            shutil.rmtree(path)

"""Save models and checkpoints in folders that are written atomically."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import GenerationConfig

from userlm.json_files import read_json, take, write_json
from userlm.models.engine import first_line
from userlm.models.local import LocalModel
from userlm.models.templates import added_ids
from userlm.types import InputError

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
"""The files of a checkpoint."""


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
    # `id` would hide the function that is used below: Python 3.12 fails there.
    stop_ids = [
        token
        for token in dict.fromkeys((template.close, template.end))
        if token in added
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


FORMAT = 1
"""The format version of checkpoints."""

_OPTIONS = StateDictOptions(
    full_state_dict=True, cpu_offload=True, flatten_optimizer_state_dict=True
)


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


def resume(
    accelerator: Accelerator, folder: Path, model: Any, optimizer: Any
) -> Progress:
    """Load the checkpoint of the folder into model and optimizer, if there is one; return its
    progress. Call it in every process.

    The order of rows and the random numbers of a step depend on the seed alone.

    Raises:
        InputError: if the checkpoint is damaged, or from another version.
    """
    if accelerator.is_main_process:
        for name in ("checkpoint", "model", "adapter"):
            restore(folder / name)
    accelerator.wait_for_everyone()
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        return Progress()
    state = _read_state(checkpoint)
    try:
        tied = take(state, "tied", dict)
        numbers = take(state, "optimizer", dict)
        progress = Progress(
            take(state, "step", int),
            take(state, "best", float),
            take(state, "waited", int),
        )
        weights: dict[str, Any] = load_file(checkpoint / WEIGHTS)
        tensors = load_file(checkpoint / OPTIMIZER)
        weights |= {name: weights[first] for name, first in tied.items()}
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise InputError(
            f"{checkpoint} is damaged ({first_line(error)}); choose another --out"
        ) from None
    options = StateDictOptions(full_state_dict=True)
    # The optimizer first: to allocate its state, torch takes a step with a rate of zero.
    moments = {**tensors, **numbers}
    set_optimizer_state_dict(model, optimizer.optimizer, moments, options=options)
    set_model_state_dict(model, weights, options=options)
    return progress


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """The part of a checkpoint that is JSON. Other versions wrote pickles, which may run code."""
    path = checkpoint / STATE
    state = read_json(path) if path.is_file() else {}
    if state.get("format") != FORMAT:
        raise InputError(
            f"{checkpoint} was written by another version of userlm, and cannot be resumed from; "
            "choose another --out"
        )
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint to resume from, if there is one."""
    checkpoint = folder / "checkpoint"
    return checkpoint if checkpoint.is_dir() else None


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    model: Any,
    optimizer: Any,
    progress: Progress,
) -> None:
    """Write weights, optimizer and progress atomically, as tensors and JSON. Call it in every
    process; the main one collects what is sharded."""
    weights = get_model_state_dict(model, options=_OPTIONS)
    moments = get_optimizer_state_dict(model, optimizer.optimizer, options=_OPTIONS)
    checkpoint = folder / "checkpoint"
    if accelerator.is_main_process:
        with replacing_folder(checkpoint) as partial, full_disk(checkpoint):
            tied = _save_tensors(weights, partial / WEIGHTS)
            _save_tensors(moments, partial / OPTIMIZER)
            numbers = {
                name: value
                for name, value in moments.items()
                if not isinstance(value, torch.Tensor)
            }
            state = {
                "format": FORMAT,
                **asdict(progress),
                "tied": tied,
                "optimizer": numbers,
            }
            write_json(partial / STATE, state)
    accelerator.wait_for_everyone()


def _save_tensors(values: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Write the tensors among the values. Those that share their memory, as tied weights do, are
    written once: return the other names, each with the name that is written."""
    written: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[tuple[int, torch.Size], str] = {}
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            continue
        first = names.setdefault((value.data_ptr(), value.shape), name)
        if first == name or not value.numel():
            written[name] = value.contiguous()
        else:
            tied[name] = first
    save_file(written, path)
    return tied


_REPLACED = ("checkpoint", "model", "adapter", "tokenizer")
"""The folders that `replacing_folder` writes."""


def tidy(folder: Path) -> None:
    """Remove what a complete run does not need: its checkpoint, and incomplete folders of a killed
    process."""
    cut_off = [
        f"{name}{suffix}" for name in _REPLACED for suffix in (".old", ".partial")
    ]
    for name in ("checkpoint", "rows", "rows-valid", "tokenizer", *cut_off):
        shutil.rmtree(folder / name, ignore_errors=True)

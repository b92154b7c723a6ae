"""Adapters (LoRA) as peft writes them, merged into their base model without peft: W + scale·BA.

An adapter folder has peft's two files, and the tokenizer of the tuned model. Its configuration
names the base model, and in `revision` the hash of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from userlm.json_files import read_json, take
from userlm.manifest import file_hash
from userlm.types import InputError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
"""The names that peft gives the files."""
SOURCE = "source.json"
"""Where converted weights came from, and the `sha256` of that."""

_OTHERS = (
    "use_dora use_rslora use_qalora fan_in_fan_out modules_to_save rank_pattern alpha_pattern "
    "layer_replication lora_bias"
).split()
"""What an adapter may have beside W + scale·BA."""
_PREFIX = "base_model.model."
_DOWN = ".lora_A.weight"
_UP = ".lora_B.weight"
_ROWS = ".token_adapter.trainable_tokens_delta"
"""Parts of the names of peft's tensors; despite its name the last holds the new rows."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder.

    Attributes:
        base: the name of the base model.
        base_hash: the hash of its weights, see `weights_hash`; `None` if it is not known.
        scale: the factor of BA.
        rows: the ids of the tokens whose rows are replaced, for each embedding layer.
    """

    folder: Path
    base: str
    base_hash: str | None
    scale: float
    rows: Mapping[str, list[int]]


def read_adapter(folder: Path) -> Adapter | None:
    """Return the adapter in a folder; `None` if it has none. Raises `InputError` if it names no
    base model, or is of a kind that cannot be merged here, or lies beside a whole model."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    if (folder / "config.json").is_file():
        # transformers would hand it to peft, which imports what it names
        raise InputError(
            f"{folder} has a whole model (config.json) and an adapter ({CONFIG}); move one of them "
            "to another folder"
        )
    config = read_json(path)
    others = [name for name in _OTHERS if config.get(name)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        others.append("peft_type or bias")
    if others:
        raise InputError(
            f"{path}: this kind of adapter ({', '.join(others)}) is not merged here; merge it with "
            "peft and give the whole model"
        )
    try:
        return Adapter(
            folder,
            take(config, "base_model_name_or_path", str),
            take(config, "revision", str, default=None),
            config["lora_alpha"] / config["r"],
            take(config, "trainable_token_indices", dict, default={}),
        )
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise InputError(f"{path}: {error}; is the file damaged?") from None


def weights_hash(folder: Path) -> str | None:
    """Return the SHA-256 of the weights in a folder: of the file that they were converted from, if
    that is recorded; `None` if there are none."""
    source = folder / SOURCE
    if source.is_file():
        return str(read_json(source)["sha256"])
    files = sorted(folder.glob("*.safetensors"))
    return file_hash(*files) if files else None


def check_base(adapter: Adapter, folder: Path) -> None:
    """Raise `InputError` if the weights in the folder are not those that the adapter belongs to."""
    if adapter.base_hash and adapter.base_hash != weights_hash(folder):
        raise InputError(
            f"{adapter.folder}: this adapter belongs to other weights of {adapter.base} than those "
            f"in {folder}; fetch its base model again, or train another adapter"
        )


@torch.no_grad()
def merge(model: Any, adapter: Adapter) -> None:
    """Add an adapter to its base model, in place. It is computed in float32.

    Raises:
        InputError: if it does not fit the model.
    """
    try:
        tensors = load_file(adapter.folder / WEIGHTS)
        for name, tensor in tensors.items():
            if name.endswith(_DOWN):
                weight = _weight(model, name, _DOWN)
                up = tensors[name.removesuffix(_DOWN) + _UP].float()
                change = adapter.scale * (up @ tensor.float())
                weight.copy_(weight.float() + change.to(weight.device))
            elif name.endswith(_ROWS):
                module = name.removeprefix(_PREFIX).removesuffix(_ROWS)
                weight = _weight(model, name, _ROWS)
                weight[adapter.rows[module]] = tensor.to(weight)
            elif not name.endswith(_UP):
                raise ValueError(f"unknown tensor {name}")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{adapter.folder / WEIGHTS} cannot be read: {error}"
        ) from None
    except (LookupError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{adapter.folder}: this adapter does not fit its base model {adapter.base}: {error}"
        ) from None


def _weight(model: Any, name: str, ending: str) -> torch.Tensor:
    """The weight that a tensor of the adapter changes."""
    module = name.removeprefix(_PREFIX).removesuffix(ending)
    weight: torch.Tensor = model.get_submodule(module).weight
    return weight

"""Low-rank adapters (LoRA): a few trainable weights added to a frozen model."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from userlm.models.adapters import WEIGHTS, weights_hash
from userlm.models.local import LocalModel
from userlm.models.templates import added_ids
from userlm.training.checkpoints import full_disk, replacing_folder, restore
from userlm.training.layers import detach_embeddings, layer_names
from userlm.types import InputError


def with_lora(
    local: LocalModel,
    rank: int,
    seed: int = 0,
    *,
    trainable_layers: int | None = None,
    base: str | None = None,
) -> LocalModel:
    """Return the frozen model with added trainable weights in float32.

    They are low-rank adapters on all linear layers (Hu et al., 2022), and the control tokens' rows
    in the input embeddings and the output layer. Without those rows a base model could not learn to
    open, close and end a turn, since they are almost untrained in it.

    Args:
        seed: the seed of the random half of the adapters. The other half is zero, so the model is
            unchanged at first.
        trainable_layers: the number of upper layers with adapters; the control tokens then get no
            rows of their own in the input embeddings. `None`: all layers.
        base: the name under which others find the base model; `None` for a folder of this machine.

    Raises:
        InputError: if peft is not installed, the output layer has a bias, or the model has fewer
            layers.
    """
    peft = _peft()
    model = local.model
    inputs = model.get_input_embeddings()
    outputs = model.get_output_embeddings()
    if outputs.bias is not None:  # peft's layer of trained rows ignores a bias
        raise InputError(
            f"{local.name}: its output layer has a bias, which LoRA cannot keep; train all weights"
        )
    template = local.template()
    used = {*template.headers["user"], template.close, template.end}
    ids = sorted(used & set(added_ids(local.tokenizer).values()))
    tied = outputs.weight is inputs.weight
    layers = (inputs,) if tied else (inputs, outputs)
    lower: list[str] = []
    if trainable_layers is not None:
        lower, _ = layer_names(local, trainable_layers)
        layers = (inputs,) if tied else (outputs,)
    names = [name for name, module in model.named_modules() if module in layers]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,  # adapters count twice (Biderman et al., 2024)
        target_modules="all-linear",
        exclude_modules="|".join(rf"{re.escape(name)}\..+" for name in lower) or None,
        trainable_token_indices=dict.fromkeys(names, ids),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        adapted = peft.get_peft_model(model, config)
    if trainable_layers is not None:
        detach_embeddings(adapted)
    config.base_model_name_or_path = base
    config.revision = weights_hash(Path(local.name)) if base else None
    return LocalModel(adapted, local.tokenizer, local.name, template=template)


def has_adapter(local: LocalModel) -> bool:
    """Return whether the model comes from `with_lora`."""
    return any(".lora_A." in name for name, _ in local.model.named_parameters())


def save_adapter(local: LocalModel, folder: Path) -> None:
    """Write what `with_lora` trains, as peft reads it, and the tokenizer, so that the folder can be
    loaded with its base model. `folder`: as in `checkpoints.save`."""
    weights = _weights(local)
    with replacing_folder(folder) as partial, full_disk(folder):
        contiguous = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(contiguous, partial / WEIGHTS)
        local.model.peft_config["default"].save_pretrained(partial)
        local.tokenizer.save_pretrained(partial)


def load_adapter(local: LocalModel, folder: Path) -> None:
    """Load what `save_adapter` wrote, in place: optimizers keep the same parameters.

    Raises:
        InputError: if it was written from another model or with another rank.
    """
    peft = _peft()
    restore(folder)
    weights = load_file(folder / WEIGHTS)
    own = _weights(local)
    if weights.keys() != own.keys() or any(
        weights[name].shape != own[name].shape for name in own
    ):
        raise InputError(
            f"{folder}: this adapter belongs to another base model or rank; give another folder"
        )
    peft.set_peft_model_state_dict(local.model, weights)


def merge(local: LocalModel) -> LocalModel:
    """Return the model of `with_lora` as an ordinary model with the same logits. The weights are
    reused."""
    merged = local.model.merge_and_unload()
    return LocalModel(merged, local.tokenizer, local.name, template=local.template())


def _weights(local: LocalModel) -> dict[str, torch.Tensor]:
    """What `with_lora` trains, under peft's names. By default peft would look for the base model on
    the hub, to see whether its vocabulary has grown."""
    return dict(
        _peft().get_peft_model_state_dict(local.model, save_embedding_layers=False)
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(
            f"LoRA needs the library peft ({error}): pip install 'userlm[lora]'"
        ) from None
    return peft

"""Train the upper layers of a model alone.

Nothing below them is trained, so autograd records nothing there: no activation of the lower layers
is kept, and no gradient is computed for them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import ModuleList

from userlm.models.local import LocalModel
from userlm.types import InputError


def layer_names(local: LocalModel, trainable: int) -> tuple[list[str], list[str]]:
    """Return the names of the lower transformer layers, and those of the upper `trainable` ones.

    Raises:
        InputError: if the model has fewer layers, or none that can be found.
    """
    count = local.model.config.get_text_config().num_hidden_layers
    if trainable > count:
        raise InputError(
            f"--trainable-layers {trainable}: give at most {count}, as many as {local.name} has"
        )
    for name, module in local.model.named_modules():
        if isinstance(module, ModuleList) and len(module) == count:
            names = [f"{name}.{i}" for i in range(count)]
            return names[: count - trainable], names[count - trainable :]
    raise InputError(
        f"--trainable-layers: the layers of {local.name} are not in one list; leave the option out"
    )


def freeze_below(local: LocalModel, trainable: int) -> None:
    """Freeze, in place, all that comes before the upper `trainable` layers. They, the final norm
    and the output layer stay trainable."""
    _, [first, *_] = layer_names(local, trainable)
    model = local.model
    for name, weight in model.named_parameters():  # in the order of the forward pass
        if name.startswith(f"{first}."):
            break
        weight.requires_grad_(False)
    # may share its weights with the input embeddings
    model.get_output_embeddings().weight.requires_grad_(True)
    detach_embeddings(model)


def detach_embeddings(model: Any) -> None:
    """Let no gradient into the input embeddings. Trained weights that they share with the output
    layer get its gradient alone."""

    def detach(module: Any, args: Any, embedded: Tensor) -> Tensor:
        return embedded.detach()

    model.get_input_embeddings().register_forward_hook(detach)

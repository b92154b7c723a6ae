"""Training the upper layers alone."""

from typing import Any

import pytest
import torch
from test_base import base_llama, loss_of
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from userlm.models.local import LocalModel
from userlm.training.base import from_base
from userlm.training.layers import freeze_below, layer_names
from userlm.training.lora import merge, with_lora
from userlm.types import InputError


def four_layers(tied: bool, seed: int = 0) -> LocalModel:
    torch.manual_seed(seed)
    like = base_llama(tied)
    config = LlamaConfig(**{**like.model.config.to_dict(), "num_hidden_layers": 4})
    ready, _ = from_base(LocalModel(LlamaForCausalLM(config), like.tokenizer))
    return ready


def trained(local: LocalModel) -> dict[str, torch.nn.Parameter]:
    weights = local.model.named_parameters()
    return {name: weight for name, weight in weights if weight.requires_grad}


def gradients(local: LocalModel) -> dict[str, torch.Tensor]:
    """The gradients of the loss, by the name of the weight."""
    local.model.zero_grad()
    loss_of(local).backward()
    weights = local.model.named_parameters()
    return {name: weight.grad for name, weight in weights if weight.grad is not None}


def saved_megabytes(local: LocalModel) -> float:
    """What autograd keeps for the backward pass, without the weights."""
    weights = {weight.data_ptr() for weight in local.model.parameters()}
    kept: dict[
        int, torch.UntypedStorage
    ] = {}  # alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(local)
    return sum(storage.nbytes() for storage in kept.values()) / 1e6


def learn(local: LocalModel) -> None:
    optimizer = torch.optim.AdamW(trained(local).values(), lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        gradients(local)
        optimizer.step()


@pytest.mark.parametrize("tied", [True, False])
def test_the_upper_layers_learn_as_in_a_full_run_and_the_lower_ones_stay(tied):
    whole = gradients(four_layers(tied))
    local = four_layers(tied)
    freeze_below(local, 1)
    found = gradients(local)
    shared = {"model.embed_tokens.weight"} if tied else {"lm_head.weight"}
    upper = {name for name in whole if name.startswith("model.layers.3.")}
    assert found.keys() == upper | shared | {"model.norm.weight"}
    for name in found.keys() - {"model.embed_tokens.weight"}:
        torch.testing.assert_close(found[name], whole[name], rtol=1e-5, atol=1e-8)
    before = {name: w.clone() for name, w in local.model.named_parameters()}
    learn(local)
    changed = {
        name
        for name, weight in local.model.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert changed == found.keys()


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_on_the_upper_layers_learn_as_if_all_had_some(tied):
    pytest.importorskip("peft")
    whole = with_lora(four_layers(tied), rank=4)
    local = with_lora(four_layers(tied), rank=4, trainable_layers=2)
    held = dict(whole.model.named_parameters())
    for name, weight in trained(local).items():
        if ".lora_B." in name:  # zero at first, so that A would have no gradient
            torch.nn.init.normal_(held[name], std=0.02)
        weight.data.copy_(held[name])
    found = gradients(local)
    expected = gradients(whole)
    adapted = {name.partition("layers.")[2][:1] for name in found if "lora" in name}
    assert adapted == {"2", "3"}
    for name in found:
        if not (tied and "trainable_tokens" in name):
            torch.testing.assert_close(
                found[name], expected[name], rtol=1e-5, atol=1e-8
            )
    # several processes would wait for the gradient of a weight that gets none
    assert found.keys() == trained(local).keys()
    frozen = four_layers(tied).model.state_dict()
    learn(local)
    merged = merge(local).model.state_dict()
    lower = [name for name in frozen if ".0." in name or ".1." in name]
    assert len(lower) == 18
    assert all(torch.equal(frozen[name], merged[name]) for name in lower)


@pytest.mark.parametrize("lora", [None, 4])
def test_nothing_is_kept_of_the_lower_layers(lora):
    def kept(trainable: int) -> float:
        if lora:
            return saved_megabytes(
                with_lora(four_layers(True), lora, trainable_layers=trainable)
            )
        local = four_layers(True)
        freeze_below(local, trainable)
        return saved_megabytes(local)

    one, two, three = map(kept, (1, 2, 3))
    assert two - one == pytest.approx(three - two) and two - one > 0.1 * one
    embedded: list[Any] = []
    local = with_lora(four_layers(True), 4, trainable_layers=1)
    [lower, *_] = layer_names(four_layers(True), 1)[0]
    layer = local.model.get_submodule(f"base_model.model.{lower}")
    layer.register_forward_hook(lambda *seen: embedded.append(seen[2].requires_grad))
    loss_of(local)
    assert embedded == [False]


def test_what_comes_before_the_layers_is_frozen_whatever_its_name():
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=3, n_head=2, n_positions=64)
    local = LocalModel(GPT2LMHeadModel(config), base_llama().tokenizer)
    freeze_below(local, 1)
    names = trained(local).keys()
    assert "transformer.wpe.weight" not in names
    assert {"transformer.wte.weight", "transformer.ln_f.weight"} < names  # tied
    assert {name.split(".")[2] for name in names if ".h." in name} == {"2"}


def test_more_layers_than_there_are_is_an_error():
    with pytest.raises(
        InputError,
        match=r"--trainable-layers 5: give at most 4, as many as model has",
    ):
        layer_names(four_layers(True), 5)

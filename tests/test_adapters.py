"""Adapters that are merged on load, without peft, into the small model; here one of one layer."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from fake_gguf import write_model
from safetensors.torch import load_file, save_file

from userlm import assets, inputs, loading
from userlm.address import LocalSettings
from userlm.commands import Train, train
from userlm.json_files import write_json, write_lines
from userlm.models import small
from userlm.rows import to_record
from userlm.training.base import from_base
from userlm.training.lora import merge, save_adapter, with_lora
from userlm.types import Conversation, InputError

CPU = LocalSettings(1, "cpu", "float32")
IDS = torch.tensor([[1, 70, 71, 2, 3, 90, 91]])
"""With the end token, 3, in place of `<repo_name>`."""


def write_small(seed: int = 0) -> None:
    """Put a small model where `userlm fetch` would."""
    folder = assets.small()
    folder.parent.mkdir(exist_ok=True)
    write_model(folder.parent / "a.gguf", seed)
    small.convert(folder.parent / "a.gguf", folder)
    write_json(folder / "source.json", {"sha256": f"hash of {seed}"})


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """An adapter with random weights, and the logits of peft's own merge."""
    monkeypatch.setenv("USERLM_CACHE", str(tmp_path / "cache"))
    write_small()
    ready, _ = from_base(loading.load_model(loading.checkpoint("small"), CPU))
    local = with_lora(ready, 4, base="small")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in local.model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    save_adapter(local, tmp_path / "adapter")
    return tmp_path / "adapter", logits(merge(local))


@torch.no_grad()
def logits(local) -> torch.Tensor:
    return local.model(IDS).logits


def change(path, **values) -> None:
    write_json(path, json.loads(path.read_text()) | values)


def test_an_adapter_is_loaded_without_peft_as_what_peft_merges(adapter, monkeypatch):
    folder, expected = adapter
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = loading.load_model(loading.checkpoint(str(folder)), CPU)
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    base = loading.load_model(loading.checkpoint("small"), CPU)
    assert (logits(base) - expected).abs().max() > 0.1
    template = loaded.template()
    assert (template.close, template.end) == (2, 3)
    assert loading.user(f"trained:{folder}", local=CPU)


def test_it_is_merged_in_float32_and_then_rounded(adapter):
    folder, _ = adapter
    whole = loading.load_model(str(folder), CPU).model.state_dict()
    half = loading.load_model(str(folder), LocalSettings(1, "cpu", "bfloat16"))
    for name, weight in half.model.state_dict().items():
        assert torch.equal(weight, whole[name].bfloat16()), name


def test_its_configuration_names_the_base_and_its_hash(adapter):
    config = json.loads((adapter[0] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "small"
    assert config["revision"] == "hash of 0"
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_another_base_is_refused(adapter, tmp_path):
    folder, _ = adapter
    assets.small().rename(tmp_path / "old")
    with pytest.raises(InputError, match="small is not here yet"):
        loading.load_model(str(folder), CPU)
    write_small(seed=1)
    with pytest.raises(InputError, match=r"belongs to other weights of small than"):
        loading.load_model(str(folder), CPU)


def test_an_adapter_is_not_taken_from_memory_after_its_base_model_changed(
    adapter, tmp_path
):
    folder, _ = adapter
    first = loading.local_model(str(folder), CPU)
    assert loading.local_model(str(folder), CPU) is first
    assets.small().rename(tmp_path / "old")
    write_small(seed=1)
    with pytest.raises(InputError, match="other weights"):
        loading.local_model(str(folder), CPU)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"use_dora": True}, r"this kind of adapter \(use_dora\) is not merged here"),
        ({"rank_pattern": {"q_proj": 2}}, r"\(rank_pattern\)"),
        ({"peft_type": "IA3"}, r"\(peft_type or bias\)"),
        ({"base_model_name_or_path": None}, "'base_model_name_or_path' is missing"),
        ({"r": 0}, "division by zero; is the file damaged"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(adapter, values, why):
    change(adapter[0] / "adapter_config.json", **values)
    with pytest.raises(InputError, match=why):
        loading.load_model(str(adapter[0]), CPU)


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight", (4, 64), "7"),
        ("base_model.model.other", (1,), "unknown tensor base_model.model.other"),
        (
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
            (4, 60),
            "must match",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(adapter, name, tensor, why):
    path = adapter[0] / "adapter_model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(tensor)}, path)
    with pytest.raises(InputError, match=f"does not fit its base model small: .*{why}"):
        loading.load_model(str(adapter[0]), CPU)


def test_an_adapter_beside_a_whole_model_is_not_handed_to_peft(adapter):
    folder = assets.small()
    for path in adapter[0].glob("adapter_*"):
        (folder / path.name).write_bytes(path.read_bytes())
    change(folder / "adapter_config.json", megatron_config={}, megatron_core="this")
    with pytest.raises(InputError, match="has a whole model"):
        loading.load_model(str(folder), CPU)
    with pytest.raises(InputError, match="has a whole model"):
        inputs.files(str(folder))


def test_weights_that_are_damaged_are_named(adapter):
    (adapter[0] / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors cannot be read"):
        loading.load_model(str(adapter[0]), CPU)


@pytest.mark.slow
def test_what_was_trained_from_a_named_base_is_loaded_from_the_adapter_alone(
    adapter, tmp_path
):
    talk = Conversation("a", intent="be S").say("hi").say("Hello.").close("end")
    write_lines(tmp_path / "train.jsonl", [to_record(talk)])
    options = Train(
        tmp_path / "train.jsonl",
        "small",
        tmp_path / "run",
        steps=1,
        lora=2,
        lr=0.01,
        device="cpu",
    )
    train(options)
    whole = loading.load_model(loading.checkpoint(str(tmp_path / "run")), CPU)
    merged = loading.load_model(str(tmp_path / "run" / "adapter"), CPU)
    torch.testing.assert_close(logits(merged), logits(whole))
    by_path = replace(options, base=str(assets.small()), out=tmp_path / "by-path")
    train(by_path)
    with pytest.raises(InputError, match="'base_model_name_or_path' is missing"):
        loading.load_model(str(tmp_path / "by-path" / "adapter"), CPU)

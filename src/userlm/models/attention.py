"""Many rows in one forward pass, end to end, without padding, and none sees another.

Positions restart with every row, and attention is causal within a row. Logits are computed where a
token is wanted, and only there, so a large vocabulary costs for what is predicted and not for what
is read.

Rows are kept apart by an attention function of our own behind transformers' attention interface: on
a GPU in half precision torch's variable-length flash attention, elsewhere a loop of causal
attention over the rows.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from userlm.types import InputError

DOCUMENT_MASKING = "userlm_document_masking"
MaskedIds = tuple[Sequence[int], Sequence[bool]]
"""Token ids, and for each whether it is to be predicted."""


def balanced_bins(lengths: Sequence[int], budget: int, multiple: int = 1) -> list[list[int]]:
    """Bins of at most `budget` each, as indices into `lengths`: as few as can be easily found, and
    evenly filled.

    The longest first, each into the bin that holds least (Graham, 1969). What is longer than the
    budget makes room for itself in all bins.

    Args:
        multiple: the number of bins is one of this, so that so many processes get as much each;
            some may be empty.
    """
    roof = max([budget, *lengths])
    count = math.ceil(sum(lengths) / roof / multiple) * multiple
    while True:
        held: list[list[int]] = [[] for _ in range(count)]
        heap = [(0, b) for b in range(count)]
        for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            full, b = heapq.heappop(heap)
            held[b].append(i)
            heapq.heappush(heap, (full + lengths[i], b))
        if all(full <= roof for full, _ in heap):
            return held
        count += multiple


def target_logits(model: Any, rows: Sequence[MaskedIds]) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits that predict the masked tokens of all rows, shape (masked, vocabulary), and those
    tokens.

    To be called within `document_masking`. In the order of the rows; the model's own precision.

    Raises:
        ValueError: if the first token of a row is masked; nothing stands before it.
    """
    if any(len(mask) and mask[0] for _, mask in rows):
        raise ValueError("the first token of a row has nothing before it and cannot be predicted")
    device = model.device
    ids = torch.tensor([[token for row, _ in rows for token in row]], device=device)
    index = (
        torch.tensor([wanted for _, mask in rows for wanted in mask], dtype=torch.bool)
        .nonzero()[:, 0]
        .to(device)
    )
    lengths = [len(row) for row, _ in rows]
    logits = model(
        input_ids=ids,
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(device),
        use_cache=False,
        logits_to_keep=index - 1,
        row_lengths=lengths,
        row_starts=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
    ).logits[0]
    return logits, ids[0, index]


@contextmanager
def attending(model: Any, implementation: str) -> Iterator[None]:
    """Within it, the model attends in this way, and in no other."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def document_masking(model: Any) -> AbstractContextManager[None]:
    """Within it, the model keeps packed rows apart, and can do nothing but packed rows."""
    return attending(model, DOCUMENT_MASKING)


@torch.no_grad()
def check_document_masking(model: Any, name: str, longest: int) -> None:
    """Try it: a packed row must get the logits that it gets alone, and those of the model's own
    attention.

    Args:
        longest: how long rows can be, in tokens.

    Raises:
        InputError: if it does not. Architectures that carry more than attention from token to
            token, such as state spaces, mix packed rows.
    """
    rope = getattr(model.config, "rope_parameters", None) or {}
    usual = rope.get("original_max_position_embeddings") or longest
    if rope.get("rope_type") in ("longrope", "dynamic") and longest > usual:
        raise InputError(
            f"{name}: its positions change with the longest row of a pack; give --max-tokens "
            f"{usual} at most"
        )
    rows = [
        ([7 * i + j for j in range(n)], [j > 0 for j in range(n)]) for i, n in enumerate((9, 14, 5))
    ]
    with document_masking(model):
        packed = target_logits(model, rows)[0].float()
        alone = torch.cat([target_logits(model, [row])[0].float() for row in rows])
    inputs = (torch.tensor([ids], device=model.device) for ids, _ in rows)
    plain = torch.cat(
        [model(input_ids=ids, use_cache=False).logits[0, :-1].float() for ids in inputs]
    )
    worst = float(max((packed - alone).abs().max(), (packed - plain).abs().max()) / plain.std())
    if not worst <= (1e-3 if model.dtype == torch.float32 else 0.1):
        raise InputError(
            f"{name}: this architecture ({model.config.model_type}) does not keep packed rows "
            "apart (logits off "
            f"by {worst:.2g} of their spread); give one with plain attention, such as Llama, "
            "Qwen2 or Mistral"
        )


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    row_lengths: Sequence[int] | None = None,
    row_starts: torch.Tensor | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row, as transformers' attention interface wants it.

    query, key, value: (1, heads or groups, tokens, size); the result: (1, tokens, heads, size).
    """
    if row_lengths is None or row_starts is None:
        raise InputError(
            f"{module.config.model_type}: this architecture does not tell its attention where "
            "rows begin"
        )
    check_window(module, sliding_window)
    if softcap is not None or s_aux is not None:
        raise InputError(
            f"{module.config.model_type}: attention with caps or sinks is not packed; give "
            "another model"
        )
    if _varlen is not None and value.is_cuda and value.dtype in (torch.bfloat16, torch.float16):
        # Under autocast the rotary embedding leaves queries and keys in float32; the kernel wants
        # one dtype.
        flat = [states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value)]
        if key.shape[1] != query.shape[1]:
            flat[1:] = [
                states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in flat[1:]
            ]
        longest, window = (
            max(row_lengths),
            (-1 if sliding_window is None else sliding_window - 1, 0),
        )
        out = _varlen(
            *flat, row_starts, row_starts, longest, longest, scale=scaling, window_size=window
        )
        return out[None], None
    parts = []
    for stop, length in zip(accumulate(row_lengths), row_lengths, strict=True):
        q, k, v = (states[:, :, stop - length : stop] for states in (query, key, value))
        band = None
        if sliding_window is not None and length > sliding_window:
            whole = torch.ones(length, length, dtype=torch.bool, device=q.device)
            band = whole.tril() & whole.triu(1 - sliding_window)
        parts.append(
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=band,
                dropout_p=dropout,
                is_causal=band is None,
                scale=scaling,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def check_window(module: Any, window: int | None) -> None:
    """Raise `InputError` for a layer whose sliding window is told in its mask alone, which is not
    made here."""
    kinds = getattr(module.config, "layer_types", None)
    slides = (
        kinds[module.layer_idx] == "sliding_attention"
        if kinds
        else getattr(module.config, "sliding_window", None)
    )
    if slides and window is None:
        raise InputError(
            f"{module.config.model_type}: this architecture tells its sliding window in a mask "
            "alone"
        )


def _no_mask(*_: Any, **__: Any) -> None:
    """Rows are kept apart by `_attend`; a mask over all tokens would be quadratic in them."""


def _find_varlen() -> Any:
    """torch's variable-length flash attention; `None` where it is absent or called otherwise
    (before 2.11)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in signature(varlen_attn).parameters else None


_varlen = _find_varlen()

AttentionInterface.register(DOCUMENT_MASKING, _attend)
AttentionMaskInterface.register(DOCUMENT_MASKING, _no_mask)

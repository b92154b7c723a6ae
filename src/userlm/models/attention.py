"""Attention over many rows in one forward pass, without padding.

The rows are concatenated to one long sequence, and each attends only to itself. A mask for that
would be quadratic in the number of all tokens, so an attention function of our own is registered in
transformers' attention interface. Training and scoring pack whole rows, whose positions start at 0.
Generation packs the new tokens of conversations, each with the keys and values of its earlier
tokens in a `CacheRow`.

The function loops over the rows with torch's attention. On a GPU, where a kernel a row would cost
more than the attention, whole rows in half precision go through torch's variable-length flash
attention instead, and so do all cache rows with a single new token.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from userlm.models.kv_cache import CacheRow
from userlm.types import InputError

DOCUMENT_MASKING = "userlm_document_masking"

MaskedIds = tuple[Sequence[int], Sequence[bool]]
"""Token ids, and a mask of the tokens to predict."""

TRIAL_PROMPTS = (range(9), range(7, 21), range(14, 19))
"""Three short prompts to test an architecture; any tokens work."""


# --- packing --------------------------------------------------------------------------------------


def balanced_bins(
    lengths: Sequence[int], budget: int, multiple: int = 1
) -> list[list[int]]:
    """Return few, evenly filled bins with a total length of at most `budget`, as indices into
    `lengths`.

    The longest come first, each into the emptiest bin (Graham, 1969). If a single length exceeds
    the budget, it becomes the budget of all bins.

    Args:
        multiple: the number of bins is a multiple of this, so that this many processes get equally
            many; some bins may be empty.
    """
    budget = max([budget, *lengths])
    count = math.ceil(sum(lengths) / budget / multiple) * multiple
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while True:
        bins: list[list[int]] = [[] for _ in range(count)]
        totals = [(0, n) for n in range(count)]  # a heap: the emptiest bin comes first
        for i in longest_first:
            total, n = totals[0]
            bins[n].append(i)
            heapq.heapreplace(totals, (total + lengths[i], n))
        if all(total <= budget for total, _ in totals):
            return bins
        count += multiple


@dataclass(frozen=True, slots=True)
class PackedRows:
    """What the attention needs to know about the rows of a forward pass.

    Attributes:
        lengths: the number of tokens of each row in this pass.
        starts: where each row starts, and the end of the last one; int32.
        cache: for each row its earlier tokens; empty if the rows are whole.
        boundaries: those of the keys of rows with one new token, by their lengths; all layers with
            the same window share them.
    """

    lengths: list[int]
    starts: Tensor
    cache: Sequence[CacheRow] = ()
    boundaries: dict[tuple[int, ...], Tensor] = field(default_factory=dict)


def packed_logits(
    model: Any,
    rows: Sequence[Sequence[int]],
    places: Tensor | None = None,
    cache: Sequence[CacheRow] = (),
) -> Tensor:
    """Run packed rows through the model, within `document_masking`.

    Args:
        places: where logits are computed, as indices into the tokens of all rows; by default at the
            last token of each row.
        cache: for each row its earlier tokens, to which these are added.

    Returns:
        The logits, (places, vocabulary), in the model's own precision.
    """
    ids: list[int] = []
    positions: list[int] = []
    for i, row in enumerate(rows):
        known = len(cache[i].ids) if cache else 0
        ids += row
        positions += range(known, known + len(row))
    lengths = [len(row) for row in rows]
    device = model.device
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    logits: Tensor = model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        use_cache=False,
        logits_to_keep=starts[1:] - 1 if places is None else places,
        packed_rows=PackedRows(lengths, starts, cache),
    ).logits[0]
    return logits


def target_logits(
    model: Any, rows: Sequence[MaskedIds], packed: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the logits that predict the masked tokens of rows, (masked, vocabulary), in the
    model's own precision, and those tokens.

    Logits are computed only for the masked tokens, since with a large vocabulary all logits would
    cost more than the rest of the model.

    Args:
        packed: call it within `document_masking`. Otherwise there is a single row, and the model
            uses its own attention.

    Raises:
        ValueError: if the first token of a row is masked, since there is nothing before it.
    """
    ids: list[int] = []
    masks: list[bool] = []
    for row, mask in rows:
        if len(mask) and mask[0]:
            raise ValueError(
                "the first token of a row has nothing before it to predict it from"
            )
        ids += row
        masks += mask
    tokens = torch.tensor(ids, device=model.device)
    targets = torch.tensor(masks, dtype=torch.bool).nonzero()[:, 0].to(model.device)
    if packed:
        logits = packed_logits(model, [row for row, _ in rows], targets - 1)
    else:
        out = model(input_ids=tokens[None], use_cache=False, logits_to_keep=targets - 1)
        logits = out.logits[0]
    return logits, tokens[targets]


# --- choosing and testing the attention of a model ------------------------------------------------


@contextmanager
def document_masking(model: Any) -> Iterator[None]:
    """Enable document masking of the model within the block; it can only process packed rows
    there."""
    # `set_attn_implementation` does the same, but walks through all modules to check them, which
    # takes too long for each step of a generation.
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = DOCUMENT_MASKING
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def check_document_masking(model: Any, name: str, longest: int) -> None:
    """Test document masking: packed rows must get the same logits as single rows with the model's
    own attention.

    Args:
        longest: the length of the longest row, in tokens.

    Raises:
        InputError: if they do not. Architectures that pass information between tokens in other ways
        than attention, such as state space models, mix packed rows.
    """
    check_positions(model, name, longest)
    rows = [(ids, [False] + [True] * len(ids[1:])) for ids in TRIAL_PROMPTS]
    with document_masking(model):
        packed, _ = target_logits(model, rows)
    alone = [target_logits(model, [row], packed=False)[0] for row in rows]
    if not same_logits(model, packed, torch.cat(alone)):
        raise InputError(
            f"{name}: this architecture ({model.config.model_type}) mixes packed rows, so it "
            "cannot be used; give a model with plain attention, such as Llama, Qwen2 or Mistral"
        )


def check_kv_cache(model: Any, name: str, longest: int) -> None:
    """Raise `InputError` for an architecture that cache rows do not support, where a short test
    would not show it.

    Args:
        longest: the length of the longest sequence, in tokens.
    """
    check_positions(model, name, longest)
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if not {"full_attention", "sliding_attention"}.issuperset(kinds):
        raise InputError(f"{name}: no KV cache for some of its kinds of layers")


def check_positions(model: Any, name: str, longest: int) -> None:
    """Raise `InputError` if positions depend on the longest row of a forward pass (LongRoPE,
    dynamic NTK), so that rows in the same pass would change each other."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    usual = rope.get("original_max_position_embeddings") or longest
    if rope.get("rope_type") in ("longrope", "dynamic") and longest > usual:
        raise InputError(
            f"{name}: its positions change with the longest row of a pack; give --max-tokens "
            f"{usual} or less"
        )


def same_logits(model: Any, found: Tensor, expected: Tensor) -> bool:
    """Whether two computations of the same logits agree, up to rounding in the model's
    precision."""
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    expected = expected.float()
    difference = (found.float() - expected).abs().max()
    return bool(difference <= tolerance * expected.std())  # false for NaN


def _check_layer(
    module: Any, sliding_window: int | None, options: dict[str, Any]
) -> None:
    """Raise `InputError` for a layer whose attention has features that ours lacks."""
    config = module.config
    for option in ("softcap", "s_aux", "position_bias"):
        if options.get(option) is not None:
            raise InputError(
                f"{config.model_type}: attention with caps, sinks or a bias (here {option}) is not "
                "supported; give another model"
            )
    kinds = getattr(config, "layer_types", None)
    slides = getattr(config, "sliding_window", None)
    if kinds:
        slides = kinds[module.layer_idx] == "sliding_attention"
    if slides and sliding_window is None:
        raise InputError(
            f"{config.model_type}: this architecture defines its sliding window only in the "
            "attention mask, which is not supported; give another model"
        )


# --- attention ------------------------------------------------------------------------------------


def _attend_rows(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed_rows: PackedRows | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row.

    As transformers' attention interface requires, query, key and value are (1, heads or groups,
    tokens, size), and the result is (1, tokens, heads, size).
    """
    if packed_rows is None:
        raise InputError(
            f"{module.config.model_type}: this architecture does not pass row boundaries to its "
            "attention; give another model"
        )
    _check_layer(module, sliding_window, options)
    lengths = packed_rows.lengths
    if packed_rows.cache:
        cached = _attend_cached(
            module.layer_idx, query, key, value, packed_rows, scaling, sliding_window
        )
        return cached, None
    if _has_varlen(value):
        starts = packed_rows.starts
        longest = max(lengths)
        states = _varlen_states(query, key, value)
        before = -1 if sliding_window is None else sliding_window - 1
        out = _varlen(
            *states,
            starts,
            starts,
            longest,
            longest,
            scale=scaling,
            window_size=(before, 0),
        )
        return out[None], None
    pieces = [torch.split(states, lengths, 2) for states in (query, key, value)]
    dropout = options.get("dropout", 0.0)
    parts = [
        _attend(queries, keys, values, scaling, sliding_window, dropout)
        for queries, keys, values in zip(*pieces, strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _has_varlen(states: Tensor) -> bool:
    """Whether variable-length flash attention can be used."""
    half = states.dtype in (torch.bfloat16, torch.float16)
    return bool(_varlen) and states.is_cuda and half


def _attend_cached(
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed_rows: PackedRows,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attention of the new tokens of each row to all of its tokens; the result is (1, tokens,
    heads, size)."""
    pieces = [
        torch.split(states, packed_rows.lengths, 2) for states in (query, key, value)
    ]
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for row, queries, keys, values in zip(packed_rows.cache, *pieces, strict=True):
        rows.append((queries, *row.write(layer, keys, values)))
    single: list[int] = []
    if _has_varlen(value):
        single = [i for i, length in enumerate(packed_rows.lengths) if length == 1]
    parts: dict[int, Tensor] = {}
    if single:
        found = _attend_single([rows[i] for i in single], packed_rows, scaling, window)
        if len(single) == len(rows):
            return found
        each = torch.split(found.transpose(1, 2), 1, 2)
        parts = dict(zip(single, each, strict=True))
    for i, (queries, keys, values) in enumerate(rows):
        if i not in parts:
            parts[i] = _attend(queries, keys, values, scaling, window)
    in_order = [parts[i] for i in range(len(rows))]
    return torch.cat(in_order, 2).transpose(1, 2).contiguous()


def _attend_single(
    rows: Sequence[tuple[Tensor, Tensor, Tensor]],
    packed_rows: PackedRows,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attention of the one new token of each row, in one kernel; (1, rows, heads, size).

    A single token sees everything, so it needs no mask, and the heads that share keys can be the
    tokens of a row.

    Args:
        rows: query, keys and values of each row.
    """
    _, heads, _, size = rows[0][0].shape
    seen = [keys.shape[2] for _, keys, _ in rows]
    if window is not None:
        seen = [min(length, window) for length in seen]
    keys, values = (
        torch.cat([row[kind][0, :, -n:] for row, n in zip(rows, seen, strict=True)], 1)
        for kind in (1, 2)
    )
    groups = keys.shape[0]
    shared = heads // groups
    boundaries = packed_rows.boundaries
    for lengths in (seen, [shared] * len(rows)):
        if tuple(lengths) not in boundaries:
            boundaries[tuple(lengths)] = torch.tensor(
                [0, *accumulate(lengths)], dtype=torch.int32, device=keys.device
            )
    queries = torch.cat([row[0] for row in rows])  # (rows, heads, 1, size)
    grouped = queries.view(-1, groups, shared, size).transpose(1, 2)
    out = _varlen(
        grouped.reshape(-1, groups, size).to(values.dtype),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        boundaries[(shared,) * len(rows)],
        boundaries[tuple(seen)],
        shared,
        max(seen),
        scale=scaling,
    )
    found: Tensor = out.view(-1, shared, groups, size).transpose(1, 2)
    return found.reshape(1, -1, heads, size)


def _varlen_states(query: Tensor, key: Tensor, value: Tensor) -> Iterator[Tensor]:
    """Return query, key and value as flash attention needs them: (tokens, heads, size), in one
    dtype."""
    heads = query.shape[1]
    for states in (query, key, value):
        # Under autocast, the rotary embedding leaves queries and keys in float32.
        flat = states[0].transpose(0, 1).to(value.dtype)
        groups = states.shape[1]
        yield flat if groups == heads else flat.repeat_interleave(heads // groups, 1)


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float | None,
    window: int | None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention of the last tokens of a row, the queries, to all of it."""
    new = query.shape[2]
    if window is not None:
        seen = window + new - 1  # the first of the new tokens sees the farthest back
        keys = keys[:, :, -seen:]
        values = values[:, :, -seen:]
    before = keys.shape[2] - new
    if new == 1 and before:
        # A single token sees everything, so it needs no mask, and the heads that share keys can be
        # put into the token dimension. That is much faster than repeating the keys for each head.
        grouped = query.view(1, keys.shape[1], -1, query.shape[3])
        out = F.scaled_dot_product_attention(grouped, keys, values, scale=scaling)
        return out.reshape(query.shape)
    mask = None
    if before or (window is not None and new > window):
        whole = torch.ones(new, before + new, dtype=torch.bool, device=query.device)
        mask = whole.tril(before)
        if window is not None:
            mask = mask.triu(before + 1 - window)
    return F.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,  # without a mask torch has faster kernels
        scale=scaling,
        enable_gqa=True,
    )


def _no_mask(*_: Any, **__: Any) -> None:
    """Transformers needs no mask: `_attend_rows` separates the rows itself."""


def _find_varlen() -> Any:
    """torch's variable-length flash attention; `None` before torch 2.11, where it is missing or
    supports no sliding window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in signature(varlen_attn).parameters else None


_varlen = _find_varlen()

AttentionInterface.register(DOCUMENT_MASKING, _attend_rows)
AttentionMaskInterface.register(DOCUMENT_MASKING, _no_mask)

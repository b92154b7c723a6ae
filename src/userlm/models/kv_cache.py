"""The keys and values of conversations, a row for each, and attention over them.

A row is kept between the turns of its conversation. Tokens of many rows go through a model
together, end to end, without padding; an attention function of our own behind transformers'
attention interface shows each its own row only. On every device that is a loop of torch's attention
over the rows. It was measured on CPUs; it never ran on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from userlm.models.attention import check_window
from userlm.types import InputError

KV_CACHE = "userlm_kv_cache"


class CacheRow:
    """The keys and values of a sequence of tokens in all layers.

    Attributes:
        ids: the tokens whose keys and values are held.
        prompt: how many of them were asked for; the others were drawn.
        logits: behind the prompt, float32; `None` if they are not known.
        capacity: how many tokens there is memory for.
        layers: keys and values by layer, each (groups, capacity, size); made when first written to.
        used: when it was given back; the clock is that of `KVCache`.
    """

    __slots__ = ("busy", "capacity", "ids", "layers", "logits", "prompt", "used")

    def __init__(self, capacity: int) -> None:
        self.ids: list[int] = []
        self.prompt, self.capacity, self.used, self.busy = 0, capacity, 0, False
        self.logits: torch.Tensor | None = None
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put what is new, (groups, tokens, size), behind that of `ids`; all that there is then."""
        if layer not in self.layers:
            self.layers[layer] = (_room(keys, self.capacity), _room(values, self.capacity))
        held_keys, held_values = self.layers[layer]
        start, stop = len(self.ids), len(self.ids) + keys.shape[1]
        held_keys[:, start:stop] = keys
        held_values[:, start:stop] = values
        return held_keys[:, :stop], held_values[:, :stop]

    def copy(self, other: CacheRow, tokens: int, capacity: int) -> None:
        """Hold the first tokens of a row, another or this one, in new memory."""
        for layer, (held_keys, held_values) in other.layers.items():
            keys, values = _room(held_keys, capacity), _room(held_values, capacity)
            keys[:, :tokens], values[:, :tokens] = held_keys[:, :tokens], held_values[:, :tokens]
            self.layers[layer] = keys, values
        self.ids, self.capacity = other.ids[:tokens], capacity


def _room(states: torch.Tensor, capacity: int) -> torch.Tensor:
    return states.new_empty(states.shape[0], capacity, states.shape[2])


class KVCache:
    """The rows that are kept, within a budget; the least recently used go first.

    Args:
        budget: bytes.
        token, fixed: bytes of a token, and of what else a row holds.
        most: how many rows.
        window: tokens of the longest.
        exact: a row serves the very same prompt only, so that what is drawn does not depend, not by
            a rounding error, on what was asked before.
    """

    def __init__(
        self, budget: int, token: int, fixed: int, most: int, window: int, exact: bool
    ) -> None:
        self.budget, self.token, self.fixed, self.most = budget, token, fixed, most
        self.window, self.exact = window, exact
        self.kept: list[CacheRow] = []
        self._clock = 0

    def bytes(self, but: CacheRow | None = None) -> int:
        """What all rows may come to, but one."""
        return sum(row.capacity * self.token + self.fixed for row in self.kept if row is not but)

    def nearest(self, ids: list[int]) -> tuple[CacheRow | None, int]:
        """The row that knows most of a prompt, and how many tokens; all of them only if their
        logits are known."""
        best, most = None, 0
        for row in sorted(self.kept, key=lambda row: (row.busy, -row.used)):
            shared = common(row.ids, ids, most)
            if shared == len(ids) and (row.prompt != shared or row.logits is None):
                shared -= 1
            if shared > most and (shared == len(ids) or not self.exact):
                best, most = row, shared
        return best, most

    def take(self, ids: list[int], tokens: int) -> CacheRow | None:
        """A row that holds as much of a prompt as is known, with room for so many tokens; `None` if
        there is no memory before others are done.

        The row that shares most with the prompt is taken over if nobody uses it and its own prompt
        is the
        beginning of this one: it is the next turn of its conversation, or the same turn drawn
        again. Otherwise it may be wanted yet, and what is shared is copied, which costs next to
        nothing.
        """
        best, shared = self.nearest(ids)
        over = (
            best if best and not best.busy and min(best.prompt, len(best.ids)) <= shared else None
        )
        capacity = tokens
        if over:
            wider = min(self.window, max(tokens, over.capacity * 3 // 2))
            capacity = over.capacity if over.capacity >= tokens else wider
        if not self._make_room(capacity, over):
            return None
        row = over or CacheRow(capacity)
        logits = best.logits if best and shared == len(ids) else None
        if best and (best is not row or capacity > row.capacity):
            row.copy(best, shared, capacity)
        if row is not over:
            self.kept.append(row)
        del row.ids[shared:]
        row.prompt, row.logits, row.busy = len(ids), logits, True
        return row

    def give_back(self, row: CacheRow) -> None:
        """Nobody uses it for now."""
        self._clock += 1
        row.busy, row.used = False, self._clock

    def clear(self) -> None:
        """Drop all that nobody uses."""
        self.kept = [row for row in self.kept if row.busy]

    def _make_room(self, capacity: int, over: CacheRow | None) -> bool:
        """Drop free rows until one of this capacity, in the place of `over`, is within the budget;
        if nobody is using any, it may exceed that."""
        free = sorted(
            (row for row in self.kept if not row.busy and row is not over),
            key=lambda row: -row.used,
        )
        more = capacity * self.token + self.fixed
        while (
            self.bytes(but=over) + more > self.budget or len(self.kept) + (over is None) > self.most
        ):
            if not free:
                return not any(row.busy for row in self.kept)
            self.kept.remove(free.pop())
        return True


def common(held: list[int], ids: list[int], least: int = 0) -> int:
    """How many tokens two sequences share at their beginning; 0 if they are not more than
    `least`."""
    if held[: least + 1] != ids[: least + 1]:
        return 0
    pairs = zip(held, ids, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(held), len(ids)))


# --- attention ------------------------------------------------------------------------------------


def check_attention(config: Any, window: int) -> None:
    """Raise `InputError` for what a short trial would not show: attention or positions that change
    further on."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise InputError(f"{config.model_type}: layers of {', '.join(sorted(kinds))}")
    rope = getattr(config, "rope_parameters", None) or {}
    usual = rope.get("original_max_position_embeddings") or window
    if rope.get("rope_type") in ("longrope", "dynamic") and window > usual:
        raise InputError(f"{config.model_type}: positions that change with the length")


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cache_rows: Sequence[tuple[CacheRow, int, int]] | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row, as transformers' attention interface wants it.

    query, key, value: (1, heads or groups, tokens, size); the result: (1, tokens, heads, size).

    Args:
        cache_rows: rows, and where in the tokens stands what is new in each.
    """
    if cache_rows is None or softcap is not None or s_aux is not None or position_bias is not None:
        raise InputError(f"{module.config.model_type}: there are no rows for attention like this")
    check_window(module, sliding_window)
    parts = []
    for row, begin, stop in cache_rows:
        keys, values = row.write(module.layer_idx, key[0, :, begin:stop], value[0, :, begin:stop])
        parts.append(
            _attend_row(query[:, :, begin:stop], keys[None], values[None], scaling, sliding_window)
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _attend_row(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Of the last tokens of a row to all of it; (1, heads or groups, tokens, size) each."""
    new, all_ = query.shape[2], keys.shape[2]
    if window is not None and all_ > window + new - 1:  # the first that anybody sees
        keys, values = keys[:, :, -(window + new - 1) :], values[:, :, -(window + new - 1) :]
        all_ = window + new - 1
    if new == 1:  # the heads that share keys stand in for tokens: the keys need not be repeated
        grouped = query.view(1, keys.shape[1], -1, query.shape[3])
        return F.scaled_dot_product_attention(grouped, keys, values, scale=scaling).reshape(
            query.shape
        )
    band = None
    if all_ > new or (window is not None and all_ > window):
        band = torch.ones(new, all_, dtype=torch.bool, device=query.device).tril(all_ - new)
        if window is not None:
            band = band.triu(all_ - new + 1 - window)
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=band, is_causal=band is None, scale=scaling, enable_gqa=True
    )


def _no_mask(*_: Any, **__: Any) -> None:
    """Rows are kept apart by `_attend`."""


AttentionInterface.register(KV_CACHE, _attend)
AttentionMaskInterface.register(KV_CACHE, _no_mask)

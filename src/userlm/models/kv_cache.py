"""The KV cache: the keys and values of conversations, kept between their turns.

Each conversation has a row of its own, a contiguous block of memory, so that torch's attention can
read it in place: a next turn then costs only its new tokens. Rows are found by the longest prefix
that they share with a prompt, and the least recently used rows are dropped when memory is short.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor


@dataclass(slots=True, eq=False)
class CacheRow:
    """The keys and values of one sequence of tokens, in all layers.

    Attributes:
        capacity: the number of tokens that fit its memory.
        ids: the tokens whose keys and values are stored.
        prompt_length: the number of prompt tokens among them; the others were sampled.
        logits: the logits at the end of the prompt, float32; `None` if they are not known.
        layers: keys and values by layer, each (1, groups, capacity, size); allocated when needed.
        busy: whether a request is using the row.
        last_used: when it was released, on the clock of its `KVCache`.
    """

    capacity: int
    ids: list[int] = field(default_factory=list)
    prompt_length: int = 0
    logits: Tensor | None = None
    layers: dict[int, list[Tensor]] = field(default_factory=dict)
    busy: bool = False
    last_used: int = 0

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens, (1, groups, tokens, size), after those of `ids`;
        return all keys and values of the layer. The engine extends `ids` after all layers are
        written."""
        new = (keys, values)
        if layer not in self.layers:
            self.layers[layer] = [_allocate(states, self.capacity) for states in new]
        start = len(self.ids)
        stop = start + keys.shape[2]
        for held, states in zip(self.layers[layer], new, strict=True):
            held[:, :, start:stop] = states
        all_keys, all_values = self.layers[layer]
        return all_keys[:, :, :stop], all_values[:, :, :stop]

    def token_bytes(self) -> int:
        """The bytes of one token in all layers."""
        states = chain.from_iterable(self.layers.values())
        return sum(state[:, :, 0].nbytes for state in states)

    def copy_from(self, other: CacheRow, length: int, capacity: int) -> None:
        """Copy the first tokens of a row (this one or another) to new memory of this row."""
        for layer, states in other.layers.items():
            copies = [_allocate(state, capacity) for state in states]
            for copy, state in zip(copies, states, strict=True):
                copy[:, :, :length] = state[:, :, :length]
            self.layers[layer] = copies
        self.ids = other.ids[:length]


def _allocate(states: Tensor, capacity: int) -> Tensor:
    return states.new_empty(*states.shape[:2], capacity, states.shape[3])


@dataclass(eq=False)
class KVCache:
    """All cache rows, within a memory budget.

    Attributes:
        budget: bytes of all rows.
        token_bytes, row_bytes: the bytes per token, and the other bytes per row.
        max_rows: the maximum number of rows.
        context_length: the maximum number of tokens of one row.
        exact: reuse a row only for exactly the same prompt. Logits differ in their last bits if a
            prompt is processed in two parts, so samples would depend on earlier requests.
    """

    budget: int
    token_bytes: int
    row_bytes: int
    max_rows: int
    context_length: int
    exact: bool
    rows: list[CacheRow] = field(default_factory=list)
    clock: int = 0

    def size(self, rows: Iterable[CacheRow]) -> int:
        """The bytes of these rows once they are full."""
        return sum(row.capacity * self.token_bytes + self.row_bytes for row in rows)

    def longest_prefix(self, ids: list[int]) -> tuple[CacheRow | None, int]:
        """Return the row that shares the longest prefix with a prompt, and the prefix length.

        The whole prompt only counts if the logits at its end are known; otherwise its last token
        must be processed again.
        """
        best = None
        longest = 0
        for row in sorted(self.rows, key=lambda row: (row.busy, -row.last_used)):
            shared = shared_prefix(row.ids, ids, longest)
            if shared == len(ids) and (
                row.prompt_length != shared or row.logits is None
            ):
                shared -= 1
            if shared > longest and (shared == len(ids) or not self.exact):
                best = row
                longest = shared
        return best, longest

    def acquire(self, ids: list[int], length: int) -> CacheRow | None:
        """Return a row, now busy, with the longest known prefix of a prompt and room for `length`
        tokens; `None` if there is no memory until other requests finish.

        The row with the longest prefix is reused if it is free and its own prompt is the beginning
        of this one: the next turn of a conversation, or the same turn sampled again. Any other row
        may still be needed, so the prefix is copied from it, which costs almost nothing.
        """
        best, shared = self.longest_prefix(ids)
        row = CacheRow(0)
        if best and not best.busy and min(best.prompt_length, len(best.ids)) <= shared:
            row = best
        capacity = row.capacity
        if capacity < length:
            # a row that is reused grows by at least half, so that few turns need a copy
            capacity = min(self.context_length, max(length, capacity * 3 // 2))
        if not self._make_room(capacity, row):
            return None
        logits = best.logits if best and shared == len(ids) else None
        if best and (row is not best or capacity > row.capacity):
            row.copy_from(best, shared, capacity)
        if row is not best:
            self.rows.append(row)
        del row.ids[shared:]
        row.capacity = capacity
        row.prompt_length = len(ids)
        row.logits = logits
        row.busy = True
        return row

    def release(self, row: CacheRow) -> None:
        """Mark a row as free: it is kept for later turns until its memory is needed."""
        self.clock += 1
        row.busy = False
        row.last_used = self.clock

    def drop_free_rows(self) -> None:
        """Delete all rows that no request uses."""
        self.rows = [row for row in self.rows if row.busy]

    def _make_room(self, capacity: int, row: CacheRow) -> bool:
        """Drop free rows until this one fits, in its new capacity, beside the others; return if it
        does. A single row always fits, since its request could never run otherwise."""
        wanted = CacheRow(capacity)
        others = [other for other in self.rows if other is not row]
        while others and (
            len(others) >= self.max_rows or self.size([wanted, *others]) > self.budget
        ):
            free = [other for other in others if not other.busy]
            if not free:
                return False
            oldest = min(free, key=lambda other: other.last_used)
            others.remove(oldest)
            self.rows.remove(oldest)
        return True


def shared_prefix(held: list[int], ids: list[int], least: int = 0) -> int:
    """Return the number of tokens that two sequences share at their start; 0 if it is not more than
    `least`."""
    if held[: least + 1] != ids[: least + 1]:  # excludes most rows without a loop
        return 0
    for i, (a, b) in enumerate(zip(held, ids, strict=False)):
        if a != b:
            return i
    return min(len(held), len(ids))


def default_budget(device: torch.device, enough: int) -> int:
    """Return the bytes for rows: half of the free memory of a GPU; a quarter of that of the host or
    its container, which others need too, and not more than is enough."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free // 2)
    try:
        memory = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:  # not Linux
        return min(2**31, enough)
    available = re.search(r"MemAvailable: +(\d+) kB", memory)
    limits = [int(available[1]) * 1024 if available else 2**33]
    # the limit of a container: cgroup 2 and 1
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limit = Path("/sys/fs/cgroup", file).read_text(encoding="ascii")
            limits.append(int(limit))
    return min(min(limits) // 4, enough)

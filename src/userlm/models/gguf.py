"""Read a GGUF file: its metadata, and its tensors as float32.

Only what one pinned file needs (`models.small`): version 3, and three kinds of tensors. The format
is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 32
"""Tensors begin at multiples of this many bytes, unless the metadata says otherwise."""

_NUMBERS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {
    10: "Q",
    11: "q",
    12: "d",
}
"""The codes of `struct` for the kinds of values in the metadata."""
_STRING = 8
_ARRAY = 9

_F32 = np.dtype("<f4")
_Q4_1 = np.dtype([("scale", "<f2"), ("least", "<f2"), ("pairs", "u1", 16)])
"""A block of 32 weights of 4 bits: the first 16 are the low halves of the bytes."""
_Q8_0 = np.dtype([("scale", "<f2"), ("steps", "i1", 32)])
_BLOCKS = {0: (_F32, 1), 3: (_Q4_1, 32), 8: (_Q8_0, 32)}
"""For each kind of tensor: a block, and how many weights it holds."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor as it lies in the file. `shape` is as in torch: the last dimension lies together."""

    shape: tuple[int, ...]
    blocks: NDArray[Any]

    def floats(self) -> NDArray[np.float32]:
        """The weights."""
        blocks = self.blocks
        if blocks.dtype == _F32:
            return blocks.reshape(self.shape)
        scale = blocks["scale"].astype(np.float32)[:, None]
        if blocks.dtype == _Q8_0:
            weights = scale * blocks["steps"]
        else:
            pairs = blocks["pairs"]
            steps = np.concatenate([pairs & 15, pairs >> 4], axis=1)
            weights = scale * steps + blocks["least"].astype(np.float32)[:, None]
        return np.asarray(weights.reshape(self.shape), np.float32)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Packed]]:
    """Return the metadata and the tensors of a file, by name; raise `ValueError` for a file of
    another version or with another kind of tensor."""
    file = _Reader(path.read_bytes())
    magic, version = file.unpack("4sI")
    if (magic, version) != (b"GGUF", 3):
        raise ValueError(f"{path} is not a GGUF file of version 3")
    tensors, fields = file.unpack("QQ")
    metadata = {}
    for _ in range(fields):
        name = file.string()
        metadata[name] = file.value(file.number("I"))
    places = []
    for _ in range(tensors):
        name = file.string()
        shape = file.unpack(f"{file.number('I')}Q")[::-1]
        kind, offset = file.unpack("IQ")
        if kind not in _BLOCKS:
            raise ValueError(f"{path}: {name} is of kind {kind}, which is not read")
        places.append((name, shape, kind, offset))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    start = -(-file.at // alignment) * alignment
    found = {}
    for name, shape, kind, offset in places:
        block, size = _BLOCKS[kind]
        count = prod(shape) // size
        blocks = np.frombuffer(file.raw, block, count, start + offset)
        found[name] = Packed(shape, blocks)
    return metadata, found


class _Reader:
    """The bytes of a file, and where the next value begins."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    def unpack(self, codes: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{codes}", self.raw, self.at)
        self.at += struct.calcsize(f"<{codes}")
        return values

    def number(self, code: str) -> Any:
        return self.unpack(code)[0]

    def string(self) -> str:
        length = self.number("Q")
        return str(self.number(f"{length}s").decode())

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        kind, length = self.unpack("IQ")
        if kind in _NUMBERS:
            return list(self.unpack(f"{length}{_NUMBERS[kind]}"))
        return [self.value(kind) for _ in range(length)]

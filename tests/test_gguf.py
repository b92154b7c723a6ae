"""The values of a GGUF file, worked out by hand from its bytes."""

import struct

import numpy as np
import pytest
from fake_gguf import F32, Q4_1, Q8_0, write

from userlm.models.gguf import read


def test_metadata_of_every_kind_is_read(tmp_path):
    path = tmp_path / "a.gguf"
    known = {"a": True, "b": 7, "c": 0.5, "d": "né", "e": [1, 2, 3], "f": ["x", "yz"]}
    write(path, known, {})
    assert read(path) == (known, {})


def test_floats_are_as_they_are_and_the_last_dimension_lies_together(tmp_path):
    path = tmp_path / "a.gguf"
    first = (np.float32([[1, 2, 3], [4, 5, 6]]), (2, 3))
    second = (np.float32([7]), (1,))  # at byte 32, since the first takes 24
    write(
        path,
        {"general.name": "odd length"},
        {
            name: (shape, F32, array.tobytes())
            for name, (array, shape) in {"a": first, "b": second}.items()
        },
    )
    _, tensors = read(path)
    assert tensors["a"].floats().tolist() == [[1, 2, 3], [4, 5, 6]]
    assert tensors["b"].floats().tolist() == [7]


def test_four_bits_are_a_scale_times_a_step_plus_the_least(tmp_path):
    """Two blocks: 0.5 q - 2, where byte j holds j as weight j and 15 - j as weight j + 16; and
    2 q + 1 with all steps 15."""
    path = tmp_path / "a.gguf"
    nibbles = bytes(j | (15 - j) << 4 for j in range(16))
    raw = struct.pack("<ee", 0.5, -2) + nibbles
    raw += struct.pack("<ee", 2, 1) + b"\xff" * 16
    write(path, {}, {"a": ((2, 32), Q4_1, raw)})
    first, second = read(path)[1]["a"].floats().tolist()
    assert first == [0.5 * j - 2 for j in [*range(16), *range(15, -1, -1)]]
    assert second == [31] * 32


def test_eight_bits_are_a_scale_times_a_step(tmp_path):
    path = tmp_path / "a.gguf"
    raw = struct.pack("<e32b", 0.25, *range(-16, 16))
    write(path, {}, {"a": ((32,), Q8_0, raw)})
    weights = read(path)[1]["a"].floats()
    assert weights.dtype == np.float32
    assert weights.tolist() == [0.25 * step for step in range(-16, 16)]


def test_other_versions_and_kinds_are_refused(tmp_path):
    path = tmp_path / "a.gguf"
    write(path, {}, {}, version=2)
    with pytest.raises(ValueError, match="not a GGUF file of version 3"):
        read(path)
    write(path, {}, {"a.weight": ((32,), 2, bytes(18))})
    with pytest.raises(ValueError, match=r"a\.weight is of kind 2, which is not read"):
        read(path)

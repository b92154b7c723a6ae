"""A part of an input: one of n disjoint shares, by a hash of the id, so that n runs do the work of
one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from userlm.text import stable_hash
from userlm.types import InputError


@dataclass(frozen=True, slots=True)
class Part:
    """Part `number`, from 1, of `of`."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `1/4`; raises `InputError` for anything else."""
        numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if numbers and 1 <= int(numbers[1]) <= int(numbers[2]):
            return cls(int(numbers[1]), int(numbers[2]))
        raise InputError(
            f"--part {text}: give I/N with I from 1 to N, such as 1/4 for the first of four parts"
        )

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, id: str) -> bool:
        """Whether what has this id belongs to the part. It is the same in every process, and does
        not depend on what else there is."""
        return stable_hash("part", id) % self.of == self.number - 1

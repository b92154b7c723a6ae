"""The rows of token ids that a server scored. `userlm ppl` runs this.

A long conversation has several rows. If it is stopped between them, its turns cannot be written
yet, but the rows were paid for.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from userlm.journal import Journal
from userlm.json_files import take


class ScoredRows:
    """The log-probabilities of rows, one line of a journal each. It is thread-safe.

    Args:
        path: the journal. Only the offsets of its lines are kept in memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._journal = Journal(path)
        self._offsets = {key: offset for offset, key in self._journal.lines(_parse)}

    def find(self, ids: Sequence[int], mask: Sequence[bool]) -> list[float] | None:
        """What was found for the masked tokens, or `None`."""
        offset = self._offsets.get(_key(ids, mask))
        return None if offset is None else self._journal.line(offset)["logprobs"]

    def add(
        self, ids: Sequence[int], mask: Sequence[bool], logprobs: Sequence[float]
    ) -> None:
        """Record a row."""
        key = _key(ids, mask)
        self._offsets[key] = self._journal.add({"row": key, "logprobs": list(logprobs)})

    def close(self, is_needed: bool) -> None:
        """Close the journal, and delete it if no later attempt needs it."""
        self._journal.close()
        if not is_needed:
            self._path.unlink()


def _key(ids: Sequence[int], mask: Sequence[bool]) -> str:
    return sha256(array("q", ids).tobytes() + bytes(mask)).hexdigest()


def _parse(row: Mapping[str, Any]) -> str:
    take(row, "logprobs", list)
    key: str = take(row, "row", str)
    return key

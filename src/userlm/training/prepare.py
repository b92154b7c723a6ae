"""Conversations flipped once, into flat files that every process of a training run maps into
memory.

A folder holds ids.bin (token ids of all rows, end to end), rows.npy, targets.npy, and counts.json,
which is
written last: with it the folder is complete. Memory stays flat, whatever the number of
conversations; texts are encoded in blocks, on all cores.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from userlm.flip import Encode, EncodeAll, Rendered, Row, Target, Template, render
from userlm.rows import replacing
from userlm.types import Conversation

BLOCK = 512  # conversations encoded at once


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedDataset:
    """Rendered conversations.

    Attributes:
        ids: token ids of all rows, one after the other.
        rows: (rows, 4): number of the conversation, where its ids start, how many, where its
            targets start.
        targets: (samples, 4): the fields of `flip.Target`.
        conversations: how many gave a row.
        without_system_turn: how many of them have no system turn, since nothing is known of what the user wants.
        languages: how many of them have which label of a language.
        dropped: samples for which no room could be made.
        without_user_turn: conversations without any user turn; nothing can be learned from them.
    """

    ids: NDArray[np.uint32]
    rows: NDArray[np.int64]
    targets: NDArray[np.int32]
    conversations: int
    without_system_turn: int
    languages: Mapping[str, int]
    dropped: int
    without_user_turn: int

    @property
    def samples(self) -> int:
        return len(self.targets)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def row(self, i: int) -> Row:
        _, start, length, first = self.rows[i].tolist()
        last = int(self.rows[i + 1, 3]) if i + 1 < len(self.rows) else len(self.targets)
        targets = tuple(Target(*fields) for fields in self.targets[first:last].tolist())
        return Row(tuple(self.ids[start : start + length].tolist()), targets)


def prepare(
    conversations: Iterable[Conversation],
    template: Template,
    folder: Path,
    max_tokens: int = 2048,
    overlong: Literal["truncate", "drop"] = "truncate",
    encode_all: EncodeAll | None = None,
    spell: Callable[..., Rendered] = render,
) -> TokenizedDataset:
    """Flip every conversation into the files of `folder`.

    Args:
        spell: how a conversation becomes rows: `flip.render`, or `flip.document`.
        encode_all: many texts to ids at once, the same as `template.encode` gives; by default one
            by one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, targets = array("q"), array("i")
    number = without_system_turn = dropped = without_user_turn = written = 0
    languages: Counter[str] = Counter()
    stream = iter(conversations)
    with (folder / "ids.bin").open("wb") as ids:
        while block := list(islice(stream, BLOCK)):
            encode = template.encode if encode_all is None else _memory(block, template, encode_all)
            spelling = replace(template, encode=encode)
            for conversation in block:
                if not conversation.user_turns:
                    without_user_turn += 1
                    continue
                flipped = spell(conversation, spelling, max_tokens, overlong)
                dropped += len(flipped.dropped)
                for row in flipped.rows:
                    rows.extend((number, written, len(row.ids), len(targets) // 4))
                    for target in row.targets:
                        targets.extend((target.k, target.start, target.first, target.stop))
                    ids.write(np.asarray(row.ids, dtype=np.uint32).tobytes())
                    written += len(row.ids)
                if flipped.rows:
                    number += 1
                    without_system_turn += conversation.system is None
                    languages[str(conversation.meta.get("language", ""))] += 1
    np.save(folder / "rows.npy", np.frombuffer(rows, dtype=np.int64).reshape(-1, 4))
    np.save(folder / "targets.npy", np.frombuffer(targets, dtype=np.int32).reshape(-1, 4))
    counts: dict[str, Any] = {
        "conversations": number,
        "without_system_turn": without_system_turn,
        "dropped": dropped,
        "without_user_turn": without_user_turn,
    }
    counts |= {"languages": dict(languages.most_common())}
    with replacing(folder / "counts.json") as partial:
        partial.write_text(json.dumps(counts), encoding="utf-8")
    return load(folder)


def is_complete(folder: Path) -> bool:
    return (folder / "counts.json").is_file()


def load(folder: Path) -> TokenizedDataset:
    """What `prepare` wrote; the ids stay on the disk until they are used."""
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    rows, targets = np.load(folder / "rows.npy"), np.load(folder / "targets.npy")
    ids = (
        np.memmap(folder / "ids.bin", dtype=np.uint32, mode="r")
        if len(rows)
        else np.zeros(0, np.uint32)
    )
    return TokenizedDataset(ids, rows, targets, **counts)


def _memory(block: Sequence[Conversation], template: Template, encode_all: EncodeAll) -> Encode:
    """An encoder that knows all turns of the block already."""
    said = {
        template.header_suffix + turn.text for conversation in block for turn in conversation.turns
    }
    said |= {
        template.header_suffix + told
        for conversation in block
        if (told := conversation.system) is not None
    }
    texts = list(said)
    known = dict(zip(texts, encode_all(texts), strict=True))

    def encode(text: str) -> list[int]:
        found = known.get(text)
        return template.encode(text) if found is None else found

    return encode

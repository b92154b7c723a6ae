"""Tokenize conversations once, into flat files that all processes of a run map into memory.

A folder holds ids.bin (the token ids of all rows, end to end), rows.npy, targets.npy and
counts.json. That file is written last and means that the folder is complete. Memory use does not
grow with the number of conversations, and texts are encoded in blocks, on all cores.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from userlm.flip import (
    EncodeAll,
    Overlong,
    Rendered,
    Row,
    TargetSpan,
    Template,
    render,
    render_document,
    swap_roles,
    transcript,
)
from userlm.json_files import replacing
from userlm.types import Conversation, InputError

Side = Literal["user", "assistant", "both"]
"""Whose turns a model is trained on. `both`: the conversation as plain text, as a base model reads
it."""

BLOCK = 512  # conversations encoded in one block

ROW_FIELDS = ("conversation", "start", "length", "first_target", "samples")
ROW = np.dtype([(name, np.int64) for name in ROW_FIELDS])
"""A row: the number of its conversation, where its ids start and how many they are, the index of
its first target, and how many targets it has (one for each sample)."""
TARGET = np.dtype([(field.name, np.int32) for field in fields(TargetSpan)])
"""See `flip.TargetSpan`."""


def training_view(
    conversation: Conversation, side: Side, intent: bool = True
) -> Conversation:
    """Return the conversation as a model of this side sees it.

    Args:
        intent: whether a user model gets its system turn; the other sides never get one.
    """
    if side == "assistant":
        return swap_roles(conversation)
    if side == "both":
        return transcript(conversation.without_system())
    return conversation if intent else conversation.without_system()


def training_rows(
    view: Conversation,
    template: Template,
    side: Side,
    max_tokens: int | None = None,
    overlong: Overlong = "truncate",
) -> Rendered:
    """Return the rows from which a model of this side learns a `training_view`."""
    tokenize = render_document if side == "both" else render
    return tokenize(view, template, max_tokens, overlong)


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedDataset:
    """Tokenized conversations.

    Attributes:
        ids: the token ids of all rows, one row after the other.
        rows: of dtype `ROW`; the rows of one conversation are neighbours.
        targets: of dtype `TARGET`, one for each sample.
        languages: the number of conversations by language label.
        conversations: the number of conversations with a row; languages and system turns are
            counted on these.
        without_system_turn: the number without system turn, because the user's goal is unknown.
        dropped: samples that do not fit a row.
        sample_counts: the number of samples before the limit on tokens (`all`), and after it under
            both policies, whichever is used: `truncate`, `drop`.
        without_user_turn: the number of conversations without a turn to train on.
    """

    ids: NDArray[np.uint32]
    rows: NDArray[np.void]
    targets: NDArray[np.void]
    languages: Mapping[str, int]
    conversations: int = 0
    without_system_turn: int = 0
    dropped: int = 0
    without_user_turn: int = 0
    sample_counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return len(self.targets)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def loss_tokens(self) -> int:
        return int((self.targets["stop"] - self.targets["start"]).sum())

    def row(self, i: int) -> Row:
        """Return row `i` as `flip.render` made it."""
        _, start, length, first_target, samples = self.rows[i].item()
        ids = self.ids[start : start + length].tolist()
        targets = self.targets[first_target : first_target + samples].tolist()
        return Row(tuple(ids), tuple(TargetSpan(*values) for values in targets))


def prepare(
    conversations: Iterable[Conversation],
    template: Template,
    folder: Path,
    max_tokens: int = 2048,
    overlong: Overlong = "truncate",
    encode_all: EncodeAll | None = None,
    side: Side = "user",
    intent: bool = True,
) -> TokenizedDataset:
    """Tokenize every conversation into the files of `folder`, and load them.

    Args:
        encode_all: many texts to ids at once, the same ids as `template.encode` gives; by default
            the texts are encoded one by one.
        side, intent: see `training_view`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = array("q")  # flat: the fields of the rows, one row after the other
    targets = array("i")
    counts: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    sample_counts = Counter(all=0, truncate=0, drop=0)
    start = 0
    views = (
        training_view(conversation, side, intent) for conversation in conversations
    )
    with (folder / "ids.bin").open("wb") as ids_file:
        for view, ready in _encoded(views, template, encode_all):
            if not view.user_turns:
                counts["without_user_turn"] += 1
                continue
            by_policy = _both_policies(view, ready, side, max_tokens)
            _count_samples(by_policy, sample_counts)
            rendered = by_policy[overlong]
            counts["dropped"] += len(rendered.dropped)
            for row in rendered.rows:
                first_target = len(targets) // len(fields(TargetSpan))
                number = counts["conversations"]
                length = len(row.ids)
                rows.extend((number, start, length, first_target, len(row.spans)))
                for span in row.spans:
                    targets.extend((span.k, span.start, span.first, span.stop))
                array("I", row.ids).tofile(ids_file)
                start += length
            if rendered.rows:
                counts["conversations"] += 1
                counts["without_system_turn"] += view.system is None
                languages[str(view.meta.get("language", ""))] += 1
    np.save(folder / "rows.npy", np.frombuffer(rows, ROW))
    np.save(folder / "targets.npy", np.frombuffer(targets, TARGET))
    with replacing(folder / "counts.json") as partial:
        record = {
            **counts,
            "sample_counts": sample_counts,
            "languages": dict(languages.most_common()),
        }
        partial.write_text(json.dumps(record), encoding="utf-8")
    return load(folder)


def _both_policies(
    view: Conversation, template: Template, side: Side, max_tokens: int
) -> dict[Overlong, Rendered]:
    """Return the rows under each policy, which are the same where all fits."""
    dropped = truncated = training_rows(view, template, side, max_tokens, "drop")
    if dropped.dropped:
        truncated = training_rows(view, template, side, max_tokens, "truncate")
    return {"truncate": truncated, "drop": dropped}


def _count_samples(
    by_policy: Mapping[Overlong, Rendered], sample_counts: Counter[str]
) -> None:
    for policy, rendered in by_policy.items():
        sample_counts[policy] += sum(len(row.spans) for row in rendered.rows)
    dropped = by_policy["drop"]
    sample_counts["all"] += len(dropped.dropped)
    sample_counts["all"] += sum(len(row.spans) for row in dropped.rows)


def is_complete(folder: Path) -> bool:
    """Return whether `prepare` has finished this folder."""
    return (folder / "counts.json").is_file()


def load(folder: Path) -> TokenizedDataset:
    """Return what `prepare` wrote; the ids stay on the disk until they are used.

    Raises:
        InputError: if the folder is damaged.
    """
    try:
        counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        rows = np.load(folder / "rows.npy", allow_pickle=False)
        targets = np.load(folder / "targets.npy", allow_pickle=False)
        ids = np.zeros(0, np.uint32)
        if len(rows):  # an empty file cannot be mapped
            ids = np.memmap(folder / "ids.bin", dtype=np.uint32, mode="r")
        if rows.dtype != ROW or targets.dtype != TARGET:
            raise ValueError("its arrays are of another type")
        return TokenizedDataset(ids, rows, targets, **counts)
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise InputError(
            f"{folder} is damaged ({error}); choose another --out"
        ) from None


def _encoded(
    views: Iterator[Conversation], template: Template, encode_all: EncodeAll | None
) -> Iterator[tuple[Conversation, Template]]:
    """Yield each view with a template that has its texts encoded already."""
    while block := list(islice(views, BLOCK)):
        ready = _encode_block(block, template, encode_all) if encode_all else template
        for view in block:
            yield view, ready


def _encode_block(
    block: Sequence[Conversation], template: Template, encode_all: EncodeAll
) -> Template:
    """Return the template with all texts of the block encoded already, in one call."""
    contents = {turn.text for view in block for turn in view.turns}
    contents.update(view.system for view in block if view.system is not None)
    texts = [template.header_suffix + content for content in contents]
    known = dict(zip(texts, encode_all(texts), strict=True))

    def encode(text: str) -> list[int]:
        return known[text] if text in known else template.encode(text)

    return replace(template, encode=encode)

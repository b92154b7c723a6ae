"""Conversations in the form in which the Hugging Face hub keeps data sets: parquet files and a
card.

`--hub` of `userlm clean` and `userlm intents` writes them to hub/ in the run folder. `userlm
import` reads them back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from userlm.rows import dumps, naming
from userlm.types import Conversation

SPLIT_NAMES = {"train": "train", "valid": "validation", "test": "test", "conversations": "train"}
"""Our names of splits, and those of the hub."""
ROWS = 50_000  # conversations in a file, and so in memory


def export(folder: Path, splits: Mapping[str, Iterable[Conversation]]) -> dict[str, int]:
    """Write `data/SPLIT-00000-of-0000N.parquet`, and say how many conversations each split has.

    A person becomes a number, in the order in which people come up: who they are is nobody's
    business, and a split by person can still be made.
    """
    import polars as pl

    text = pl.String()
    message = pl.Struct({"role": text, "content": text})
    schema = {
        "id": text,
        "messages": pl.List(message),
        "intent": text,
        "user": text,
        "ended": pl.Boolean(),
    }
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for left in data.iterdir():  # of an attempt that was interrupted
        left.unlink()
    people: dict[str, str] = {}
    counts: dict[str, int] = {}
    for split, conversations in splits.items():
        name, rows, parts = SPLIT_NAMES[split], (_row(c, people) for c in conversations), 0
        counts[name] = 0
        while part := list(islice(rows, ROWS)):
            packed = BytesIO()  # polars raises errors of its own for a disk that is full
            pl.DataFrame(part, schema={**schema, "meta": text}).write_parquet(packed)
            path = data / f"{name}-{parts:05d}.parquet"
            with naming(path):
                path.write_bytes(packed.getbuffer())
            parts += 1
            counts[name] += len(part)
        for i in range(parts):
            (data / f"{name}-{i:05d}.parquet").rename(
                data / f"{name}-{i:05d}-of-{parts:05d}.parquet"
            )
    return {name: count for name, count in counts.items() if count}


def _row(conversation: Conversation, people: dict[str, str]) -> dict[str, Any]:
    user = conversation.user
    return {
        "id": conversation.id,
        "messages": [{"role": turn.role, "content": turn.text} for turn in conversation.turns],
        "intent": conversation.intent,
        "user": None if user is None else people.setdefault(user, f"person-{len(people)}"),
        "ended": conversation.ended,
        "meta": dumps(dict(conversation.meta)),
    }


def card(counts: Mapping[str, int], results: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The card (README.md): what is inside, how it was made, how to load it, what to mind.

    Args:
        counts: conversations in each split, as `export` gives them.
        results: of the run; `counts` and, from `clean`, `splits`, `lengths` and `languages` are
            told.
        manifest: of the run, as in run.json.
    """
    total = sum(counts.values())
    codes = [
        code
        for code in results.get("languages", {})
        if re.fullmatch("[a-z]{2,3}", code) and code != "und"
    ]
    title = "# Conversations with an AI assistant, from the user's side"
    parts = ["\n".join(_front(counts, codes[:20], total)), title]
    parts.append(
        f"{total:,} conversations between people and assistants, prepared with userlm to train or "
        "measure user "
        "language models: models that play the user."
    )
    known = results.get("splits", {})
    ours = {name: split for split, name in SPLIT_NAMES.items() if split in known}
    parts.append("## What is inside")
    head = ["split", "conversations", *(("people", "user turns", "samples") if known else ())]
    rows = [
        [name, f"{count:,}", *(f"{known[ours[name]][what]:,}" for what in head[2:] if name in ours)]
        for name, count in counts.items()
    ]
    parts.append(_table(head, rows))
    if known:
        parts.append(
            "No person is in two splits. A conversation of K user turns gives K samples, and one "
            "more, "
            "the user leaves, where the ending was observed (`ended`)."
        )
    if lengths := {name: spread for name, spread in results.get("lengths", {}).items() if spread}:
        head = ["", *next(iter(lengths.values()))]
        parts.append(
            _table(
                head, ([name, *(f"{v:,.4g}" for v in s.values())] for name, s in lengths.items())
            )
        )
    parts += ["## Columns", _table(["column", "what it holds"], _COLUMNS)]
    parts += ["## How it was made", *_made(results, manifest)]
    parts += ["## Load it", _LOAD, "## Mind", _MIND]
    return "\n\n".join(parts) + "\n"


_COLUMNS = (
    ("`id`", "of the conversation"),
    ("`messages`", "the turns, `role` (user or assistant) and `content`"),
    ("`intent`", "what the user is after, one sentence; null if nobody wrote it"),
    (
        "`user`",
        "the person, as a number that means nothing outside of this data set; null if unknown",
    ),
    (
        "`ended`",
        "whether the ending was observed: the assistant answered, and the user said no more",
    ),
    (
        "`meta`",
        "what else the log says (language, country, model, time), and who wrote the intent: JSON",
    ),
)
_LOAD = """```python
from datasets import load_dataset

data = load_dataset("OWNER/NAME")
```"""
_MIND = (
    "The words are those of real people and of models. They hold errors, opinions and possibly "
    "personal data "
    "that no filter found; `meta` holds whatever else the logs said. Where a log names nobody, "
    "each conversation "
    "counts as one person. The licence and the terms of the logs hold here too: fill in `license` "
    "above, and what "
    "the logs are, before you publish."
)


def _front(counts: Mapping[str, int], languages: list[str], total: int) -> Iterator[str]:
    limits = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
    yield "---"
    if languages:
        yield "language:"
        yield from (f'- "{code}"' for code in languages)  # a bare `no` is false in YAML
    yield from ("task_categories:", "- text-generation", "tags:", "- user-simulation", "- userlm")
    yield "size_categories:"
    yield f"- {next((name for limit, name in limits if total < limit), '1M<n<10M')}"
    if counts:
        yield from ("configs:", "- config_name: default", "  data_files:")
    for name in counts:
        yield f"  - split: {name}"
        yield f"    path: data/{name}-*"
    yield "---"


def _made(results: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    options = {
        key: value
        for key, value in manifest["options"].items()
        if value is not None and key != "join"
    }
    if "writer" in options:
        options["writer"] = results.get(
            "model", options["writer"]
        )  # no address of a server, no path
    given = ", ".join(f"{key} {value}" for key, value in options.items())
    yield (
        f"`userlm {manifest['verb']}`, version "
        f"{manifest['versions'].get('userlm', 'unknown')}; "
        f"{given}."
    )
    rows = [(name, f"{count:,}") for name, count in results.get("counts", {}).items()]
    yield _table(["counted", "conversations or times"], rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)

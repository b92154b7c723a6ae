"""Export conversations as a Hugging Face dataset: parquet files and a dataset card.

`--hub` of `userlm clean` and `userlm intents` writes them to hub/ in the run folder. `userlm
import` reads them back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from userlm.json_files import dumps, naming
from userlm.types import Conversation, messages_of

SPLIT_NAMES = {
    "train": "train",
    "valid": "validation",
    "test": "test",
    "conversations": "train",
}
"""Our split names, and those of the hub."""
ROWS = 50_000  # conversations in a file, and so in memory
SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
}
"""The hub's size categories, each with its upper bound in rows."""
_LANGUAGE = re.compile("[a-z]{2,3}")
_LABEL = re.compile(
    rf"(dropped: language: )(?!{_LANGUAGE.pattern}(, by \w+)?\Z).*", re.DOTALL
)
"""A count of dropped conversations whose language is no code, but text of a log."""


def export(
    folder: Path, splits: Mapping[str, Iterable[Conversation]], name: str
) -> dict[str, int]:
    """Write `data/SPLIT-00000-of-0000N.parquet`, and return how many conversations each split has.

    Users become numbers, in order of appearance: the dataset does not show who they are, but can
    still be split by person.

    Args:
        name: of this export, to tell its people from those of another one.
    """
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for path in data.iterdir():  # files of an interrupted attempt
        path.unlink()
    people: dict[str, str] = {}
    counts: dict[str, int] = {}
    for split, conversations in splits.items():
        theirs = SPLIT_NAMES[split]
        rows = (_row(conversation, people, name) for conversation in conversations)
        paths: list[Path] = []
        while part := list(islice(rows, ROWS)):
            path = data / f"{theirs}-{len(paths):05d}.parquet"
            _write(path, part)
            paths.append(path)
            counts[theirs] = counts.get(theirs, 0) + len(part)
        for path in paths:
            path.rename(path.with_stem(f"{path.stem}-of-{len(paths):05d}"))
    return counts


def _row(
    conversation: Conversation, people: dict[str, str], name: str
) -> dict[str, Any]:
    user = conversation.user
    if user is not None:
        user = people.setdefault(user, f"person-{name}-{len(people)}")
    return {
        "id": conversation.id,
        "messages": messages_of(conversation.turns),
        "intent": conversation.intent,
        "user": user,
        "ended": conversation.ended,
        "meta": dumps(dict(conversation.meta)),
    }


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import polars as pl

    text = pl.String()
    message = pl.Struct({"role": text, "content": text})
    schema = {
        "id": text,
        "messages": pl.List(message),
        "intent": text,
        "user": text,
        "ended": pl.Boolean(),
        "meta": text,
    }
    packed = BytesIO()  # polars raises its own errors for a full disk
    pl.DataFrame(rows, schema=schema).write_parquet(packed)
    with naming(path):
        path.write_bytes(packed.getbuffer())


def card(
    counts: Mapping[str, int], results: Mapping[str, Any], manifest: Mapping[str, Any]
) -> str:
    """Return the dataset card (README.md): contents, how it was made, how to load it, known limits.

    Args:
        counts: conversations in each split, as `export` returns them.
        results: the results of the run; `counts` and, from `clean`, `splits`, `lengths` and
            `languages` are shown.
        manifest: the contents of run.json.
    """
    options = {
        key: value for key, value in manifest["options"].items() if value is not None
    }
    options.pop("join", None)  # a path
    if "writer" in options:
        # Without server address and path.
        options["writer"] = results.get("model", options["writer"])
    languages = results.get("languages", {})
    codes = [code for code in languages if _LANGUAGE.fullmatch(code) and code != "und"]
    steps: Counter[str] = Counter()
    for name, count in results.get("counts", {}).items():
        steps[_LABEL.sub(r"\1other", name)] += count
    splits = results.get("splits", {})
    total = sum(counts.values())
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    source = (
        files("userlm")
        .joinpath("assets/dataset_card.md.j2")
        .read_text(encoding="utf-8")
    )
    return environment.from_string(source).render(
        results=results,
        verb=manifest["verb"],
        version=manifest["versions"].get("userlm", "unknown"),
        options=", ".join(f"{key} {value}" for key, value in options.items()),
        counts=counts,
        steps=steps,
        total=total,
        size=next((name for limit, name in SIZES.items() if total < limit), "1M<n<10M"),
        languages=codes[:20],
        figures={SPLIT_NAMES[split]: figures for split, figures in splits.items()},
    )

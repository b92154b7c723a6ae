"""What the verbs share: options, the files of a run folder, counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from userlm.data import hub
from userlm.rows import SPLITS, count_rows, read_conversations, replacing
from userlm.runs import Run, measure_record
from userlm.terminal import console
from userlm.types import Conversation, InputError, Measure

Results = dict[str, Any]

EMBEDDED_USER = "trained:userlm-tiny"

Out = Annotated[Path, Option(help="Folder of this run.")]
Seed = Annotated[int, Option(help="Seed of everything random.")]
Limit = Annotated[int | None, Option(help="Use only the first so many.", min=1, max=2**31)]
Workers = Annotated[int, Option(help="How many conversations at once.", min=1)]
Temperature = Annotated[
    float | None, Option(help="Of the user's draws; 0 is greedy. Default: each user's own.")
]
TopP = Annotated[
    float | None, Option(help="Nucleus of the user's draws. Default: each user's own.")
]
EndAbove = Annotated[
    float | None,
    Option(
        help="The user leaves when P(end) is at least this, and only then. Default: when it draws "
        "the end.",
        min=0,
        max=1,
    ),
]
GuardSpec = Annotated[
    str | None,
    Option(
        "--guard",
        help="Drafts to draw again: paper, or parts with commas: no-end, words=3-25, no-repeat, "
        "...",
    ),
]
UserTokenizer = Annotated[
    str | None,
    Option(
        "--tokenizer", help="Of a trained user on a server. Default: what has the model's name."
    ),
]
Batch = Annotated[
    int,
    Option(
        help="Conversations that a model on this machine serves at once; 1: repeatable to the bit.",
        min=1,
    ),
]
Hub = Annotated[
    bool, Option(help="Also write hub/: parquet files and a dataset card, ready for the hub.")
]
MaxTokens = Annotated[
    int, Option(help="Longest row, in tokens; longer ones are shortened from the left.", min=16)
]


def conversations_file(path: Path, split: str = "test") -> Path:
    """The conversations of a run folder (`conversations.jsonl`, else those of the split), or the
    file itself."""
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path} does not exist; give a run folder or a file of conversations")
        return path
    if (path / "run.json").is_file() and not (path / "results.json").is_file():
        raise InputError(f"{path} is not complete; run its command again first")
    for name in ("conversations.jsonl", f"{split}.jsonl"):
        if (path / name).is_file():
            if not (path / name).stat().st_size:
                raise InputError(
                    f"{path / name} holds no conversation (few people?); give another file or "
                    "--shares"
                )
            return path / name
    raise InputError(
        f"{path} holds neither conversations.jsonl nor {split}.jsonl; give the folder of a run"
    )


def split_files(path: Path) -> dict[str, Path]:
    splits = {
        split: path / f"{split}.jsonl" for split in SPLITS if (path / f"{split}.jsonl").is_file()
    }
    return splits or {"conversations": conversations_file(path)}


def count_total(files: Sequence[Path], limit: int | None) -> int | None:
    counted = count_rows(files)
    return limit if counted is None else min(counted, limit or counted)


def finished(run: Run) -> Results | None:
    if (results := run.results) is not None:
        console.print(f"{run.folder} is complete already; nothing to do", style="dim")
    return results


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def measure_results(columns: Mapping[str, Iterable[Measure]], stubs: Mapping[str, str]) -> Results:
    results: Results = {}
    for name, measures in columns.items():
        stub = {"stub": stubs.get(name, "")}
        results[name] = [measure_record(found) | stub for found in measures]
    return results


def stub_speakers(conversations: Iterable[Conversation]) -> str:
    """Return the names of the stubs that speak in the conversations."""
    spoke = {turn.meta["stub"] for c in conversations for turn in c.turns if "stub" in turn.meta}
    return ", ".join(sorted(spoke))


def write_hub(run: Run, results: Mapping[str, Any]) -> None:
    """The splits of a run as parquet with a card, in hub/."""
    found = {name: run.path(f"{name}.jsonl") for name in hub.SPLIT_NAMES}
    splits = {
        name: read_conversations(path, may_be_empty=True)
        for name, path in found.items()
        if path.is_file()
    }
    folder = run.path("hub")
    counts = hub.export(folder, splits)
    with replacing(folder / "README.md") as partial:
        partial.write_text(hub.card(counts, results, run.manifest), encoding="utf-8")
    console.print(
        f"{folder}: to publish it, `hf upload OWNER/NAME {folder} . --repo-type dataset --private`"
    )

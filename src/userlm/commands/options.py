"""What several verbs share: option types, and small steps of every run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from userlm import address
from userlm.data import hub
from userlm.rows import count_rows, read_conversations, replacing
from userlm.runs import Run, measure_record
from userlm.terminal import console
from userlm.types import Conversation, Measure, Speaker

Results = dict[str, Any]

EMBEDDED_USER = "trained:userlm-tiny"

Out = Annotated[Path, Option(help="Output folder of this run.")]
Seed = Annotated[int, Option(help="Random seed.")]
Limit = Annotated[
    int | None, Option(help="Use only the first LIMIT items.", min=1, max=2**31)
]
Workers = Annotated[int, Option(help="Number of concurrent conversations.", min=1)]
User = Annotated[
    str,
    Option(
        help="trained:MODEL, profile:, prompted: or swapped:MODEL, replay:FILE, script:FILE or "
        "py:MODULE:NAME."
    ),
]
Temperature = Annotated[
    float | None,
    Option(help="Temperature of the user; 0 is greedy. Default: depends on the user."),
]
TopP = Annotated[
    float | None, Option(help="Top-p of the user. Default: depends on the user.")
]
EndThreshold = Annotated[
    float | None,
    Option(
        help="End the conversation if and only if P(end) is at least this. Default: end when the "
        "end token is sampled.",
        min=0,
        max=1,
    ),
]
GuardSpec = Annotated[
    str | None,
    Option(
        "--guard",
        help="Rules for drafts; a draft that breaks one is resampled. Either paper, or "
        "comma-separated: no-end, words=3-25, no-repeat, ...",
    ),
]
UserTokenizer = Annotated[
    str | None,
    Option(
        "--tokenizer",
        help="Tokenizer of a trained user on a server. Default: the model's name as hub id.",
    ),
]
Batch = Annotated[
    int,
    Option(
        help="Batch size of a local model, in conversations; 1 gives bit-exact results.",
        min=1,
    ),
]
Hub = Annotated[bool, Option(help="Also write hub/: parquet files and a dataset card.")]
MaxTokens = Annotated[
    int,
    Option(
        help="Maximum row length in tokens; longer rows lose their oldest turns.",
        min=16,
    ),
]


@dataclass(frozen=True, slots=True)
class UserOptions:
    """Which user, and how it is sampled; see `address.user`."""

    user: str
    temperature: float | None = None
    top_p: float | None = None
    end_threshold: float | None = None
    guard: str | None = None
    batch: int = address.BATCH
    tokenizer: str | None = None

    def load(self, seed: int = 0) -> Speaker:
        """The user."""
        return address.user(
            self.user,
            seed=seed,
            temperature=self.temperature,
            top_p=self.top_p,
            end_threshold=self.end_threshold,
            guard=self.guard,
            batch=self.batch,
            tokenizer=self.tokenizer,
        )

    @property
    def is_prompted(self) -> bool:
        """Whether the user needs an intent."""
        return address.parse(self.user).form in ("prompted", "swapped")


def count_total(files: Sequence[Path], limit: int | None) -> int | None:
    """Return the number of rows for a progress bar; `None` if counting would take long."""
    counted = count_rows(files)
    if counted is None or limit is None:
        return limit if counted is None else counted
    return min(counted, limit)


def finished(
    run: Run, has_failures: Callable[[Results], object] = lambda results: False
) -> Results | None:
    """Return the results of a complete run; `None` if it is not complete, or if it has failures.
    Then it is resumed: these are tried again, and the rest is kept."""
    results = run.results
    if results is None:
        return None
    if has_failures(results):
        run.path("results.json").unlink()
        return None
    console.print(f"{run.folder} is complete already; nothing to do", style="dim")
    return results


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts, sorted by name."""
    return dict(sorted(counts.items()))


def measure_results(
    columns: Mapping[str, Iterable[Measure]], stubs: Mapping[str, str]
) -> Results:
    """Return the measures by column, in the form of `results.json`."""
    results: Results = {}
    for name, measures in columns.items():
        stub = {"stub": stubs.get(name, "")}
        results[name] = [measure_record(measure) | stub for measure in measures]
    return results


def stub_speakers(conversations: Iterable[Conversation]) -> str:
    """Return the names of the stub assistants in the conversations."""
    names: set[str] = set()
    for conversation in conversations:
        names.update(
            turn.meta["stub"] for turn in conversation.turns if "stub" in turn.meta
        )
    return ", ".join(sorted(names))


def write_hub(run: Run, results: Mapping[str, Any]) -> None:
    """Write the splits of a run as parquet with a card, in hub/."""
    splits = {}
    for name in hub.SPLIT_NAMES:
        path = run.path(f"{name}.jsonl")
        if path.is_file():
            splits[name] = read_conversations(path, may_be_empty=True)
    folder = run.path("hub")
    counts = hub.export(folder, splits)
    with replacing(folder / "README.md") as partial:
        partial.write_text(hub.card(counts, results, run.manifest), encoding="utf-8")
    console.print(
        f"{folder}: to publish it, `hf upload OWNER/NAME {folder} . --repo-type dataset --private`"
    )

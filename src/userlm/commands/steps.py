"""Small steps that several verbs share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from userlm.commands.options import Output, check, given, recorded
from userlm.data import hub
from userlm.json_files import dumps, replacing
from userlm.manifest import as_json, environment, other_inputs
from userlm.rows import count_rows, read_conversations
from userlm.runs import (
    REPLACED,
    FinishedRun,
    Run,
    conversations_file,
    measure_record,
)
from userlm.show.formats import MARK, plural
from userlm.show.terminal import console, show_page
from userlm.text import stable_hash
from userlm.types import Conversation, InputError, Measure

T = TypeVar("T")
R = TypeVar("R")
Results = dict[str, Any]
GIVEN, PEOPLE, TASK_FILES = "given", "people", "task files"
"""The keys of run.json for all options of a part, also those that do not identify a run; for the
hash of the file of people, intents or tasks; and for that of the tasks that end conversations."""
FEW = 5
"""A split with fewer conversations is hardly one."""
AHEAD = 16  # items queued for each worker, so that a slow answer does not block others


class RunOptions(Protocol):
    """The options of a verb that makes a run."""

    @property
    def out(self) -> Path: ...

    @property
    def output(self) -> Output: ...


def open_run(
    verb: str,
    options: RunOptions,
    inputs: Iterable[Path] = (),
    stamps: Mapping[str, str] | None = None,
    reads: Iterable[Path] = (),
    parts: Sequence[FinishedRun] = (),
    notes: Mapping[str, Any] | None = None,
) -> Run:
    """Start the run of these options, or resume it; see `Run.open`.

    Args:
        notes: what run.json has besides.
        parts: the runs that become this one, which is said to be made where they were. None of
            them may lie in its folder.
    """
    check(options)
    asked = recorded(options)
    noted = dict(notes or {})
    if asked.get("part") is not None:
        noted[GIVEN] = as_json(given(options))
    elif parts:
        made = parts[0].manifest
        noted |= {name: made.get(name) for name in environment()}
    run = Run.open(
        options.out,
        verb,
        asked,
        inputs,
        stamps,
        anew=options.output.force,
        reads=[*reads, *(part.path("run.json") for part in parts)],
        notes=noted,
    )
    for part in parts:
        changed = other_inputs(part.manifest["inputs"], run.manifest["inputs"])
        if changed:
            raise InputError(
                f"{part.folder} is of other inputs than there are now ({changed}); run the parts "
                "again"
            )
    kept = [path.name for path in run.path(REPLACED).glob("*")]
    if kept and kept != ["run.json"] and _IS_SHOWN.get():
        console.print(
            f"the run that this one replaces is kept in {run.path(REPLACED)} until this one is "
            "complete",
            style="dim",
        )
    return run


def conversations_in(path: Path) -> Path:
    """Return `conversations_file`; say so if a folder stands for a test split of a few
    conversations, and has more to train on."""
    file = conversations_file(path)
    train = file.with_name("train.jsonl")
    if not path.is_dir() or file.name != "test.jsonl" or not train.is_file():
        return file
    with file.open("rb") as lines:
        count = sum(1 for _ in islice(lines, FEW))
    if count < FEW and train.stat().st_size > file.stat().st_size and _IS_SHOWN.get():
        console.print(
            f"{path} means {file}, which has only {plural(count, 'conversation')}; another file, "
            f"such as {train}, can be given by name",
            style="yellow",
            soft_wrap=True,
        )
    return file


def count_total(files: Sequence[Path], limit: int | None) -> int | None:
    """Return the number of rows for a progress bar; `None` if counting would take long."""
    counted = count_rows(files)
    if counted is None or limit is None:
        return limit if counted is None else counted
    return min(counted, limit)


def finished(
    run: Run,
    options: RunOptions,
    has_failures: Callable[[Results], object] = lambda results: False,
) -> Results | None:
    """Show and return the results of a complete run; `None` if it is not complete, or if it has
    failures. Then it is resumed: these are tried again, and the rest is kept. Its results too,
    until `Run.unfinish`: a mistake in an option costs nothing."""
    results = run.results
    if results is None or has_failures(results):
        return None
    run.delete_replaced()  # `Run.finish` may have been cut off
    console.print(
        f"{run.folder} is complete already, so nothing is done again; --force begins anew",
        style="dim",
    )
    show_run(run.folder, options.output.details)
    return results


def finish(
    run: Run, options: RunOptions, results: Results, has_failures: bool = False
) -> Results:
    """Write the results of the run and show what a person needs to decide; see `Run.finish`."""
    written = run.finish(results, has_failures)
    show_run(run.folder, options.output.details)
    return written


_IS_SHOWN = ContextVar("is_shown", default=True)


@contextmanager
def unshown(is_so: bool = True) -> Iterator[None]:
    """Show nothing of the runs that finish in this block: they are parts of another one."""
    before = _IS_SHOWN.set(_IS_SHOWN.get() and not is_so)
    try:
        yield
    finally:
        _IS_SHOWN.reset(before)


def show_run(folder: Path, details: bool) -> None:
    """Print what the report says about a finished run; nothing if it is `unshown`."""
    if not _IS_SHOWN.get():
        return
    from userlm.show.finished import read_run  # heavy: pydantic
    from userlm.show.page import describe

    console.print(f"{folder}:", style="dim", soft_wrap=True)
    show_page(describe([read_run(folder)]), details)


def check_page(path: Path, option: str) -> None:
    """Raise `InputError` if there is a file that is no page of this program."""
    if path.exists():
        with path.open("rb") as file:
            head = file.read(len(MARK) + 100)
        if MARK.encode() not in head:
            raise InputError(
                f"{path} is no page that userlm wrote, so it is not overwritten; move it, or "
                f"choose another {option}"
            )


def write_page(path: Path, text: str) -> None:
    """Write a page atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts, sorted by name."""
    return dict(sorted(counts.items()))


def in_parallel(
    job: Callable[[T], R], items: Iterable[T], workers: int
) -> Iterator[tuple[T, R]]:
    """Yield each item with the result of the job, in order; `workers` of them run at the same
    time."""
    pool = ThreadPoolExecutor(workers)
    running: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            running.append((item, pool.submit(job, item)))
            if len(running) >= workers * AHEAD:
                first, future = running.popleft()
                yield first, future.result()
        for first, future in running:
            yield first, future.result()
    finally:  # after Ctrl-C or an error, start nothing new
        pool.shutdown(wait=False, cancel_futures=True)


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
            str(turn.meta["stub"]) for turn in conversation.turns if "stub" in turn.meta
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
    what = dumps([run.manifest["options"], [*run.manifest["inputs"].values()]])
    counts = hub.export(folder, splits, f"{stable_hash(what):016x}"[:8])
    with replacing(folder / "README.md") as partial:
        partial.write_text(hub.card(counts, results, run.manifest), encoding="utf-8")
    console.print(
        f"{folder}: to publish it, `hf upload OWNER/NAME {folder} . --repo-type dataset --private`"
    )

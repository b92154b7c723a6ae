"""`score`: measures of simulated users, and of people with the same functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from userlm.commands.options import (
    Out,
    Results,
    finished,
    measure_results,
    stub_speakers,
)
from userlm.guard import Guard
from userlm.metrics.catalog import METRICS, Needs
from userlm.metrics.scores import score_line
from userlm.metrics.termination import calibrate
from userlm.rows import read_conversations, write_lines
from userlm.runs import FinishedRun, Run, conversations_file
from userlm.tasks import read_tasks, task_of
from userlm.terminal import show_end_calibration, show_measures, track
from userlm.types import Conversation, InputError, Measure, Task, without_outcome

HUMAN = "human"
"""The column of the human reference."""
ENDINGS = "endings"
"""The key of results.json, beside the columns, that holds the end calibration of each column."""


CONVERSATIONS: Sequence[Needs] = ("any", "conversations")
RESPONSES: Sequence[Needs] = ("any", "responses")
"""What metrics may need, so that they can be measured on whole conversations, or on responses."""


def score(
    runs: Annotated[list[Path], Argument(help="Folders of `simulate` and `respond`.")],
    human: Annotated[
        Path | None,
        Option(help="Real conversations, for the human reference: a folder or a file."),
    ] = None,
    tasks: Annotated[
        Path | None, Option(help="The tasks that were talked about (.jsonl).")
    ] = None,
    out: Out = Path("runs/score"),
) -> Results:
    """Measure simulated users, and real people with the same functions. Intervals are over people
    or intents.

    For a `respond` run it also suggests values for --end-threshold, from when the people ended.
    """
    inputs = _inputs(runs, human)
    logs = conversations_file(human, "test") if human else None
    others = [path for path in (logs, tasks) if path]
    options = {"human": logs, "tasks": tasks}
    run = Run.open(out, "score", options, [*inputs.values(), *others])
    if done := finished(run):
        _show(done)
        return done
    known = {task.id: task for task in read_tasks(tasks)} if tasks else {}
    columns: dict[str, list[Measure]] = {}
    stubs: dict[str, str] = {}
    endings: Results = {}
    for name, path in track(list(inputs.items()), "scoring", len(inputs)):
        conversations = list(read_conversations(path))
        stubs[name] = stub_speakers(conversations)
        made = Run.read(path.parent) if (path.parent / "run.json").is_file() else None
        if made and made.verb == "respond":
            columns[name] = _measures(conversations, RESPONSES)
            endings[name] = _end_calibration(made, columns[name])
        elif any(task_of(conversation, known) for conversation in conversations):
            columns[name] = _measures(conversations, (*CONVERSATIONS, "tasks"), known)
        else:
            columns[name] = _measures(conversations, CONVERSATIONS)
    if logs:
        people = [_as_log(conversation) for conversation in read_conversations(logs)]
        columns[HUMAN] = _measures(people, CONVERSATIONS)
    write_lines(run.path("scores.jsonl"), _lines(columns))
    results = measure_results(columns, stubs)
    if endings:
        results[ENDINGS] = endings
    run.finish(results)
    _show(results)
    return results


def _inputs(runs: Sequence[Path], human: Path | None) -> dict[str, Path]:
    """The file of conversations of each run, by the name of its column."""
    inputs = {run.name: conversations_file(run) for run in runs}
    if len(inputs) < len(runs) or (human and HUMAN in inputs):
        raise InputError(
            "two columns would have the same name (runs are named by their folders); rename one "
            "folder"
        )
    if ENDINGS in inputs:
        raise InputError(
            f"no run can be called '{ENDINGS}': results.json holds something else there; rename "
            "the folder"
        )
    return inputs


def _measures(
    conversations: Sequence[Conversation],
    available: Sequence[Needs],
    tasks: Mapping[str, Task] | None = None,
) -> list[Measure]:
    """All metrics that need no more than what is available."""
    found = []
    for metric in METRICS:
        if metric.function and metric.needs in available:
            inputs = (
                (conversations, tasks) if metric.needs == "tasks" else (conversations,)
            )
            found.append(metric.function(*inputs))
    return found


def _as_log(conversation: Conversation) -> Conversation:
    """The conversation as a log of its own, even if a run of ours wrote it down."""
    return replace(conversation, meta=without_outcome(conversation.meta), origin=None)


def _end_calibration(run: FinishedRun, measures: Iterable[Measure]) -> dict[str, Any]:
    """The end calibration of a `respond` run, with its user and a note on its options."""
    by_name = {measure.name: measure for measure in measures}
    found = calibrate(by_name["termination F1"], by_name["termination AUROC"])
    return {
        **asdict(found),
        "user": str(run.options.get("user")),
        "note": _end_options(run.options),
    }


def _end_options(options: Mapping[str, Any]) -> str:
    """What in the options of a run decided when its user ends, if it did not sample the end."""
    threshold = options.get("end_threshold")
    guard = options.get("guard")
    if threshold is not None:
        return f"the run was made with --end-threshold {threshold}, so 'now' is that threshold"
    if guard is not None and Guard.parse(guard).no_end:
        return (
            f"the run was made with --guard {guard}, so 'now' is a user who may not end"
        )
    return ""


def _lines(columns: Mapping[str, Iterable[Measure]]) -> Iterator[dict[str, Any]]:
    for column, measures in columns.items():
        for measure in measures:
            for row in measure.rows:
                yield score_line(column, measure.name, row)


def _show(results: Results) -> None:
    columns = dict(results)
    endings = columns.pop(ENDINGS, {})
    show_measures("measures", columns)
    for name, found in endings.items():
        show_end_calibration(name, found)

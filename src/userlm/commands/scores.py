"""`score` and `report`: measures of users, and one page of finished runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from userlm.metrics import extrinsic, intrinsic
from userlm.metrics.ending import calibrate
from userlm.rows import read_conversations, read_json, replacing, write_lines
from userlm.runs import Run, conversations_file, verb_of
from userlm.tasks import read_tasks, task_of
from userlm.terminal import console, show_endings, show_measures, track
from userlm.types import Conversation, InputError, Measure, Task, without_outcome


def score(
    runs: Annotated[list[Path], Argument(help="Folders of `simulate` and `respond`.")],
    human: Annotated[
        Path | None, Option(help="Real conversations for the human row: a folder or a file.")
    ] = None,
    tasks: Annotated[Path | None, Option(help="The tasks that were talked about (.jsonl).")] = None,
    out: Out = Path("runs/score"),
) -> Results:
    """Measure simulated users, and real people with the same functions. Intervals are over people
    or intents.

    Of a `respond` run it also finds thresholds for --end-threshold, by when the people really left.
    """
    inputs = {run.name: conversations_file(run) for run in runs}
    if len(inputs) < len(runs) or (human and "human" in inputs):
        raise InputError(
            "two rows would have the same name (runs are named by their folders); rename one folder"
        )
    if "endings" in inputs:
        raise InputError(
            "no run can be called 'endings': results.json holds something else there; rename the "
            "folder"
        )
    people = conversations_file(human, "test") if human else None
    extra = [path for path in (people, tasks) if path]
    run = Run.open(out, "score", {"human": people, "tasks": tasks}, [*inputs.values(), *extra])
    if done := finished(run):
        _show(done)
        return done
    known = {task.id: task for task in read_tasks(tasks)} if tasks else {}
    columns: dict[str, dict[str, Measure]] = {}
    stubs: dict[str, str] = {}
    endings: Results = {}
    for name, path in track(list(inputs.items()), "scoring", len(inputs)):
        conversations = list(read_conversations(path))
        asked = verb_of(path.parent) == "respond"
        found = _of_responses(conversations) if asked else _of_simulations(conversations, known)
        columns[name] = {m.name: m for m in found}
        stubs[name] = stub_speakers(conversations)
        if asked:
            made = read_json(path.parent / "run.json").get("options", {})
            tuned = calibrate(columns[name]["termination F1"], columns[name]["termination AUROC"])
            endings[name] = asdict(tuned) | {
                "user": str(made.get("user")),
                "note": _end_options(made),
            }
    if people:
        logs = [
            replace(log, meta=without_outcome(log.meta), origin=None)
            for log in read_conversations(people)
        ]
        columns["human"] = {m.name: m for m in _of_people(logs)}
    write_lines(run.path("scores.jsonl"), _score_lines(columns))
    results = run.finish(
        measure_results(columns, stubs) | ({"endings": endings} if endings else {})
    )
    _show(results)
    return results


def _show(results: Results) -> None:
    show_measures("measures", {name: part for name, part in results.items() if name != "endings"})
    for name, found in results.get("endings", {}).items():
        show_endings(name, found)


def _end_options(options: Mapping[str, Any]) -> str:
    """What in the options of a run decided how its user leaves, if not its draws."""
    if (above := options.get("end_threshold")) is not None:
        return f"the run was made with --end-threshold {above}, so 'now' is that threshold"
    if (guard := options.get("guard")) is not None and Guard.parse(guard).no_end:
        return f"the run was made with --guard {guard}, so 'now' is a user who may not leave"
    return ""


def _of_people(conversations: Sequence[Conversation]) -> list[Measure]:
    return [
        intrinsic.first_turn_diversity(conversations),
        intrinsic.intent_decomposition(conversations),
        intrinsic.words_per_turn(conversations),
        intrinsic.turns_per_conversation(conversations),
    ]


def _of_simulations(
    conversations: Sequence[Conversation], tasks: Mapping[str, Task]
) -> list[Measure]:
    measures = _of_people(conversations)
    if any(task_of(conversation, tasks) for conversation in conversations):
        measures.append(extrinsic.intent_coverage(conversations, tasks))
        measures.append(extrinsic.assistant_score(conversations, tasks))
    return measures


def _of_responses(responses: Sequence[Conversation]) -> list[Measure]:
    return [
        intrinsic.first_turn_diversity(
            [response for response in responses if response.first_own_turn() == 0]
        ),
        intrinsic.intent_decomposition(responses),
        intrinsic.words_per_turn(responses),
        intrinsic.termination(responses),
        intrinsic.termination_auroc(responses),
    ]


def _score_lines(columns: Mapping[str, Mapping[str, Measure]]) -> Iterator[dict[str, Any]]:
    for name, measures in columns.items():
        for measure in measures.values():
            for row in measure.rows:
                line = {"run": name, "measure": measure.name, "key": row.key, "stats": row.stats}
                yield line | ({"why": row.why} if row.why else {})


def report(
    runs: Annotated[list[Path], Argument(help="Finished run folders, of any verb.")],
    out: Annotated[Path, Option(help="Folder for report.html and report.md.")] = Path(
        "runs/report"
    ),
) -> Results:
    """One page from finished runs: figures with intervals, plots, transcripts, and how it was
    made."""
    from userlm.show import html, markdown
    from userlm.show.finished import read_run
    from userlm.show.page import describe

    page = describe([read_run(run) for run in runs])
    out.mkdir(parents=True, exist_ok=True)
    written = {"html": out / "report.html", "md": out / "report.md"}
    for kind, text in (("html", html.render(page)), ("md", markdown.render(page))):
        with replacing(written[kind]) as partial:
            partial.write_text(text, encoding="utf-8")
    console.print(f"report: {written['html']}")
    return {kind: str(path) for kind, path in written.items()}

"""`score`: measures of simulated users, and of people with the same functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from userlm.commands.costs import Limits
from userlm.commands.grading import (
    TASKS_HELP,
    Grading,
    can_grade_more,
    grade_all,
    judge_inputs,
    tasks_inputs,
    unanswered,
)
from userlm.commands.options import (
    Failures,
    LocalModels,
    Output,
    argument,
    option,
    out_folder,
    workers_option,
)
from userlm.commands.steps import (
    Results,
    conversations_in,
    finish,
    finished,
    measure_results,
    open_run,
    stub_speakers,
)
from userlm.guard import Guard
from userlm.items import KINDS, kind_of
from userlm.json_files import write_lines
from userlm.metrics import adherence, catalog
from userlm.metrics.catalog import Needs
from userlm.metrics.end_references import compare
from userlm.metrics.extrinsic import Graded, by_family
from userlm.metrics.memorization import training_turns
from userlm.metrics.scores import score_line
from userlm.metrics.termination import calibrate
from userlm.metrics.two_sample import OVERALL, TellingNgram, floor
from userlm.metrics.two_sample import compare as compare_crowds
from userlm.rows import read_conversations, read_rows
from userlm.runs import FinishedRun, Run, conversations_file, measure_record
from userlm.show.terminal import console, track
from userlm.stats import PERCENT
from userlm.tasks import by_id, read_tasks, task_of
from userlm.types import (
    Conversation,
    InputError,
    Measure,
    Sample,
    Task,
    without_outcome,
)

HUMAN = "human"
"""The column of the human reference."""
ENDINGS = "endings"
"""The key of results.json for the end calibration of each column; its other keys are the
columns."""


CONVERSATIONS: Sequence[Needs] = ("any", "conversations")
RESPONSES: Sequence[Needs] = ("any", "responses")
ITEMS: Mapping[frozenset[str | None], Sequence[Needs]] = {
    frozenset(("role",)): ("role items",),
    frozenset(("intent",)): ("intent items",),
    frozenset(KINDS): ("role items", "intent items", "both items"),
}
"""The values of `Metric.needs` that can be measured on whole conversations, on responses, or on
responses to test items of these kinds."""

TASK_NEEDS: Sequence[Needs] = ("tasks", "grades", "judged facts")
"""The values of `Metric.needs` of what is measured by task."""

Outcomes = Mapping[str, Mapping[str, int]]
"""By the name of a measure of test items, how often users did what."""


@dataclass(frozen=True, slots=True)
class Score:
    """Measure simulated users, and real people with the same functions; intervals are over people
    or intents.

    For a `respond` run it also suggests values for --end-threshold, based on when the people ended.

    $ userlm score runs/simulate runs/respond --human runs/intents
    """

    runs: list[Path] = argument(
        ..., "Run folders of `simulate` and `respond`, or files."
    )
    human: Path | None = option(
        None,
        "Real conversations, for the human reference: a file, or a folder with test.jsonl.",
    )
    tasks: str | None = option(None, TASKS_HELP)
    trained_on: Path | None = option(
        None, "The logs that the users were trained on: a folder or a file."
    )
    out: Path = out_folder("runs/score")
    grading: Grading = Grading()
    workers: int = workers_option("answers that are graded")
    models: LocalModels = LocalModels()
    limits: Limits = Limits()
    failures: Failures = Failures()
    output: Output = Output()


def score(options: Score) -> Results:
    """Measure the runs and write the measures; raise `ModelError` if too much of a run failed."""
    tasks = by_id(read_tasks(options.tasks)) if options.tasks else {}
    paths, stamps = tasks_inputs(options.tasks, tasks.values())
    judge_files, judge_stamps = judge_inputs(options.grading.judge)
    inputs = _inputs(options.runs, options.human)
    logs = conversations_in(options.human) if options.human else None
    trained_on = options.trained_on
    training = conversations_file(trained_on, "train") if trained_on else None
    others = [path for path in (logs, training, *paths, *judge_files) if path]
    resolved = replace(options, human=logs, trained_on=training)
    stamps |= judge_stamps
    run = open_run("score", resolved, [*inputs.values(), *others], stamps)
    failed = _show_failed(inputs)
    unsafe_local = options.grading.unsafe_local
    done = finished(
        run,
        options,
        lambda _: (
            unanswered(run)[0] or can_grade_more(run, tasks.values(), unsafe_local)
        ),
    )
    results = done or _measure_all(run, resolved, inputs, tasks)
    missing, asked = unanswered(run)
    how = "are missing, since the judge gave no answer, or none that can be used"
    options.failures.check(missing, asked, what="verdicts", how=how)
    for name, (errors, total) in failed.items():
        options.failures.check(errors, total, f"{name}: ")
    return results


def _show_failed(inputs: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """Print and return how many conversations of each run ended in an error, and how many it
    has."""
    found = {}
    for name, path in inputs.items():
        # Only this field is needed; what else a row has is checked where it is measured.
        failed = Counter(line.row.get("stop") == "error" for line in read_rows(path))
        found[name] = (failed[True], failed.total())
        if failed[True]:
            console.print(
                f"{name}: {failed[True]:,} of {failed.total():,} conversations ended in an error",
                style="yellow",
            )
    return found


def _measure_all(
    run: Run,
    options: Score,
    inputs: Mapping[str, Path],
    known: Mapping[str, Task],
) -> Results:
    """Measure each run, and the human reference; write and show the results. The options name
    files.

    Args:
        known: the tasks by id.
    """
    runs = {name: _run_at(path.parent) for name, path in inputs.items()}
    talks = {}
    for name, path in inputs.items():
        if not _is_of_responses(runs[name]):  # which have no outcome
            talks[name] = path
    graded = grade_all(run, options, talks, known)
    beside = _beside(options)
    people = _people(options, beside)
    limits: dict[str, int | None] = {}
    columns: dict[str, list[Measure]] = {}
    ngrams: dict[str, list[TellingNgram]] = {}
    outcomes: dict[str, Outcomes] = {}
    stubs: dict[str, str] = {}
    endings: Results = {}
    for name, path in track(list(inputs.items()), "scoring", len(inputs)):
        conversations = list(read_conversations(path))
        stubs[name] = stub_speakers(conversations)
        columns[name], outcomes[name] = _of_items(conversations)
        if columns[name]:
            # What says something about conversations with people says nothing about items.
            conversations = [one for one in conversations if not kind_of(one)]
            if not conversations:
                continue
        made = runs[name]
        if not known and any(_has_task(one) for one in conversations):
            _show_tasks_missing(name, made)
        needed = dict(beside)
        if people:
            limits[name] = people.limit(made)
            reference = needed["reference"] = people.cut(limits[name])
        if made and _is_of_responses(made):
            columns[name] += _measures(conversations, RESPONSES, needed)
            calibration = _end_calibration(made, columns[name])
            endings[name] = {**calibration, "comparison": _comparison(conversations)}
        else:
            needed |= _of_tasks(conversations, known, graded[name], options)
            columns[name] += _measures(conversations, CONVERSATIONS, needed)
        if people:
            found, ngrams[name] = compare_crowds(conversations, reference)
            columns[name] += _described(found)
    if people:
        columns[HUMAN] = people.measures(None)
    write_lines(run.path("scores.jsonl"), _lines(columns))
    results = measure_results(columns, stubs)
    if people:
        for name, limit in limits.items():
            _add_distances(results[name], columns[name], people, limit)
    _add_outcomes(results, outcomes)
    _add_families(results, columns, known)
    _add_ngrams(results, ngrams)
    if endings:
        results[ENDINGS] = endings
    return finish(run, options, results, has_failures=bool(unanswered(run)[0]))


def _beside(options: Score) -> dict[Needs, Any]:
    """Return what metrics need beside the conversations that they measure."""
    if not options.trained_on:
        return {}
    return {"training turns": training_turns(read_conversations(options.trained_on))}


def _people(options: Score, beside: Mapping[Needs, Any]) -> _People | None:
    """Return the human reference; `None` if there is none."""
    if not options.human:
        return None
    return _People(list(map(as_log, read_conversations(options.human))), beside)


def _run_at(folder: Path) -> FinishedRun | None:
    return Run.read(folder) if (folder / "run.json").is_file() else None


def _is_of_responses(made: FinishedRun | None) -> bool:
    return made is not None and made.verb == "respond"


def _of_tasks(
    conversations: Iterable[Conversation],
    known: Mapping[str, Task],
    graded: Graded,
    options: Score,
) -> dict[Needs, Any]:
    """Return what measures of tasks need, if a conversation is about one."""
    if not any(task_of(conversation, known) for conversation in conversations):
        return {}
    needed: dict[Needs, Any] = {"tasks": known, "grades": graded}
    if options.grading.judge:
        needed["judged facts"] = graded
    return needed


def _add_ngrams(results: Results, ngrams: Mapping[str, Sequence[TellingNgram]]) -> None:
    for name, telling in ngrams.items():
        records = {record["name"]: record for record in results[name]}
        records[OVERALL]["ngrams"] = [asdict(one) for one in telling]


def _has_task(conversation: Conversation) -> bool:
    """Return whether a run made it for a task."""
    return conversation.origin is not None and conversation.origin.task is not None


def _show_tasks_missing(name: str, made: FinishedRun | None) -> None:
    inputs = ", ".join(made.manifest.get("inputs", {})) if made else ""
    was = f" (inputs of the run: {inputs})" if inputs else ""
    console.print(
        f"{name} has conversations about tasks: for the assistant score, give their file with "
        f"--tasks{was}",
        style="yellow",
        soft_wrap=True,
    )


def _add_families(
    results: Results,
    columns: Mapping[str, Iterable[Measure]],
    known: Mapping[str, Task],
) -> None:
    """Add to each measure of tasks what it is for each family, if there are several."""
    if len({task.family for task in known.values()}) < 2:
        return
    for column, measures in columns.items():
        for record, found in zip(results[column], measures, strict=True):
            metric = catalog.metric_of(found.name)
            if metric.needs in TASK_NEEDS:
                families = by_family(found, known, metric.statistic or PERCENT)
                record["families"] = [
                    measure_record(replace(one, name=family or "none"))
                    for family, one in families.items()
                ]


def _inputs(runs: Sequence[Path], human: Path | None) -> dict[str, Path]:
    """Return the path of the conversations of each run, by column name."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):  # such as the `respond` of several assessments
        names = [f"{run.resolve().parent.name}/{run.name}" for run in runs]
    inputs = dict(zip(names, map(conversations_in, runs), strict=True))
    if len(inputs) < len(runs) or (human and HUMAN in inputs):
        raise InputError(
            "two columns would have the same name (runs are named by their folders); rename one "
            "folder"
        )
    if ENDINGS in inputs:
        raise InputError(
            f"no run can be called '{ENDINGS}': results.json uses this key for something else; "
            f"rename the folder"
        )
    return inputs


def _measures(
    conversations: Sequence[Conversation],
    available: Sequence[Needs],
    beside: Mapping[Needs, Any],
) -> list[Measure]:
    """Return the measures of all metrics whose needs are met. `beside` has the tasks by id, if
    there is a conversation about one of them, and the human reference."""
    found = []
    for metric in catalog.METRICS:
        if metric.function and metric.needs in (*available, *beside):
            found.append(metric.measure(conversations, beside))
    return found


def _of_items(conversations: Sequence[Conversation]) -> tuple[list[Measure], Outcomes]:
    """Return the measures of the test items among the conversations, and what users did."""
    kinds = {kind_of(one) for one in conversations} - {None}
    tested = [one for one in conversations if kind_of(one)]
    outcomes = {
        adherence.NAMES[kind]: adherence.outcomes(tested, kind) for kind in KINDS
    }
    return _measures(tested, ITEMS.get(frozenset(kinds), ()), {}), outcomes


def _described(measures: Iterable[Measure]) -> list[Measure]:
    return [catalog.metric_of(one.name).described(one) for one in measures]


@dataclass(frozen=True, slots=True)
class _People:
    """The human reference.

    Attributes:
        conversations: those of real people.
        beside: what else metrics need.
    """

    conversations: Sequence[Conversation]
    beside: Mapping[Needs, Any]
    _measured: dict[int | None, list[Measure]] = field(default_factory=dict)

    def limit(self, made: FinishedRun | None) -> int | None:
        """Return the limit on user turns of a run of `simulate`, if some real conversation reaches
        it."""
        options = made.options if made and made.verb == "simulate" else {}
        limit = options.get("max_turns")
        longest = max((len(one.user_turns) for one in self.conversations), default=0)
        return limit if isinstance(limit, int) and limit <= longest else None

    def cut(self, limit: int | None) -> list[Conversation]:
        """Return the conversations as they would be if they were simulated ones with this limit on
        user turns, whose end is not seen if they reach it. Otherwise people would differ from a
        user who does exactly the same."""
        found = []
        for one in self.conversations:
            if limit is not None and len(one.user_turns) >= limit:
                one = replace(one, turns=Sample(one, limit).context, ended=False)
            found.append(one)
        return found

    def measures(self, limit: int | None) -> list[Measure]:
        """Return the measures of the conversations that are cut so."""
        if limit not in self._measured:
            cut = self.cut(limit)
            needed: dict[Needs, Any] = {**self.beside, "reference": cut}
            found = _measures(cut, CONVERSATIONS, needed)
            self._measured[limit] = [*found, *_described(floor(cut))]
        return self._measured[limit]


def _add_distances(
    records: Sequence[dict[str, Any]],
    measures: Sequence[Measure],
    people: _People,
    limit: int | None,
) -> None:
    """Add to the record of each measure how far it is from people's, where that has it too; and
    people's, if it is of conversations that are cut at a limit."""
    human = {measure.name: measure for measure in people.measures(limit)}
    for record, measure in zip(records, measures, strict=True):
        if beside := human.get(measure.name):
            metric = catalog.metric_of(measure.name)
            record["distance"] = metric.distance(measure, beside)._asdict()
            if limit is not None:
                record["human"] = {**measure_record(beside), "max_turns": limit}


def _add_outcomes(results: Results, outcomes: Mapping[str, Outcomes]) -> None:
    """Add to each measure of test items, by column and name, how often users did what."""
    for column, counted in outcomes.items():
        for record in results[column]:
            if found := counted.get(record["name"]):
                record["outcomes"] = found


def as_log(conversation: Conversation) -> Conversation:
    """Return the conversation as if it were a log, even if one of our runs recorded it."""
    origin = conversation.origin if conversation.stop is None else None
    return replace(conversation, meta=without_outcome(conversation.meta), origin=origin)


def _end_calibration(run: FinishedRun, measures: Iterable[Measure]) -> dict[str, Any]:
    """The end calibration of a `respond` run, with its user and a note on its options."""
    by_name = {measure.name: measure for measure in measures}
    found = calibrate(by_name["termination F1"], by_name["termination AUROC"])
    try:
        note = _end_options(run.options)
    except InputError as error:
        raise InputError(f"{run.path('run.json')}: {error}") from None
    return {**asdict(found), "user": str(run.options.get("user")), "note": note}


def _comparison(responses: Sequence[Conversation]) -> list[dict[str, Any]]:
    """How the user ends beside users without a model."""
    found = []
    for one in compare(responses):
        measures = {
            "f1": measure_record(replace(one.f1, unit="%")),
            "auroc": measure_record(one.auroc),
        }
        shares = {"ended": one.ended, "end_rate": one.end_rate}
        found.append(
            {"kind": one.kind, "user": one.user, "people": one.people}
            | shares
            | measures
        )
    return found


def _end_options(options: Mapping[str, Any]) -> str:
    """Return a note if options of the run, and not sampling, decided when the user ends."""
    threshold = options.get("end_threshold")
    guard = options.get("guard")
    if threshold is not None:
        return f"the run was made with --end-threshold {threshold}, so 'now' is that threshold"
    if isinstance(guard, str) and Guard.parse(guard).no_end:
        return f"the run was made with --guard {guard}, so 'now' is a user that may not end"
    return ""


def _lines(columns: Mapping[str, Iterable[Measure]]) -> Iterator[dict[str, Any]]:
    for column, measures in columns.items():
        for measure in measures:
            for row in measure.rows:
                yield score_line(column, measure.name, row)

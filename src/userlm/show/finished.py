"""Finished run folders, read and checked. Reading changes nothing in them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from heapq import nsmallest
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from userlm.json_files import take
from userlm.metrics.scores import MEASURED, score_row
from userlm.rows import SPLITS, from_record
from userlm.runs import HASHES, ITEMS, Run, cell_folder, scored_column
from userlm.show import data
from userlm.show.blocks import Counts, Table
from userlm.show.noted import Notebook, Noted, Notes, Talks, first_of, rows, some_rows
from userlm.show.results import (
    Assessed,
    Columns,
    Comparisons,
    Conversing,
    Data,
    Detections,
    Endings,
    Evaluations,
    Judged,
    Measured,
    Options,
    Trained,
    finite,
)
from userlm.text import stable_hash, words
from userlm.types import FAILED, Conversation, InputError, MeasureRow

TALKING = ("simulate", "serve")
"""Verbs whose conversations are shown: simulated ones, and those of the playground."""
SPEAKING = (*TALKING, "respond")
"""Verbs in which a simulated user speaks."""
STAGES = {
    "respond": "single turns, each after a person's real conversation up to there",
    "simulate": "whole conversations of the user with the assistant",
}
"""What a user was asked for in `assess`, by stage."""
EXTRACTIVE = "intents: extractive"
HUMAN = "human"
"""The column of people in a score."""

TRANSCRIPTS = 3  # of each run, where no page needs more
MOST_TRANSCRIPTS = 20_000  # of each run, on a page
PAIRS = 10  # of `assess`, each beside the person's own
TURN_BINS = (*map(str, range(10)), "10+")
WORD_BINS = (
    "0",
    "1",
    "2–3",
    "4–7",
    "8–15",
    "16–31",
    "32–63",
    "64–127",
    "128–255",
    "256+",
)

Missing = dict[tuple[str, str], Counter[str]]
"""By column and measure: why items could not be measured, and how many."""


@dataclass(frozen=True)
class Lengths:
    """Counts of conversations in `TURN_BINS`, and of user turns in `WORD_BINS`. A failed
    conversation has no known length. Conversations are added one by one."""

    turns: list[int] = field(default_factory=lambda: [0] * len(TURN_BINS))
    words: list[int] = field(default_factory=lambda: [0] * len(WORD_BINS))
    failed: list[str] = field(default_factory=list)

    def add_words(self, said: Iterable[str]) -> None:
        """Add user turns."""
        for text in said:
            self.words[word_bin(len(words(text)))] += 1

    def add_turns(self, conversation: Conversation) -> None:
        """Add a conversation."""
        if conversation.stop in FAILED:
            self.failed.append(conversation.id)
        else:
            self.turns[min(len(conversation.user_turns), len(TURN_BINS) - 1)] += 1


@dataclass(frozen=True)
class Stage:
    """The counts of a stage: in, out, dropped by reason, and others."""

    unit: str
    incoming: int | None
    outgoing: int | None
    reasons: Counts
    notes: Counts


@dataclass(frozen=True)
class Finished:
    """The parts of a finished run that the report shows.

    Attributes:
        name: the name of its folder, used as heading of columns and sections.
        results: what its `results.json` holds, checked; nothing if it holds only measures.
        columns: measures by column: the runs that were scored, or with and without intent.
        rows: those of an assessment by stage and measure, if its user stands beside another one;
            those of `score` and `ppl` by column and measure, if there are several of them.
        endings: by column, a `Calibration`, or `Uncalibrated` if there is no threshold to suggest.
        log: the steps of training, each with the loss.
        talks: the first conversations of each user with each assistant.
        notes: of a score: what it found in single conversations.
        drawn: some responses and conversations of an assessment, by stage, each with the person's
            own conversation.
        lengths: the lengths of simulated users' turns and conversations; those of humans for data
            stages.
        stubs: the parts that were not made by a language model.
        stage: the counts of a data stage.
        tables: what `clean` and `intents` report of the data.
    """

    name: str
    folder: Path
    verb: str
    manifest: Mapping[str, Any]
    results: Mapping[str, Any]
    columns: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    missing: Missing = field(default_factory=dict)
    rows: Mapping[tuple[str, str], tuple[MeasureRow, ...]] = field(default_factory=dict)
    endings: Mapping[str, Any] = field(default_factory=dict)
    log: Sequence[tuple[int, float]] = ()
    talks: Sequence[Talks] = ()
    notes: Notes = field(default_factory=dict)
    drawn: Mapping[str, Sequence[tuple[Conversation, Conversation]]] = field(
        default_factory=dict
    )
    lengths: Lengths = field(default_factory=Lengths)
    stubs: Sequence[str] = ()
    stage: Stage | None = None
    tables: Sequence[Table] = ()

    @property
    def is_human(self) -> bool:
        """Whether its conversations are by humans."""
        return self.verb in ("clean", "intents")

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of its command."""
        return self.manifest.get("options") or {}

    @property
    def user(self) -> str:
        """The address of its user; the name of the run if there may be many, as in `serve`."""
        return str(self.options.get("user") or self.name)

    @property
    def people(self) -> str | None:
        """The hash of the file of people, intents or tasks that it is about, since others may have
        the same ids, such as 1, 2 and so on; `None` if it is not known."""
        inputs = self.manifest.get("inputs") or {}
        # Most verbs name it first.
        first = None if self.verb == "simulate" else next(iter(inputs.values()), None)
        found = self.manifest.get("people", first)
        return found if isinstance(found, str) else None

    def may_be_paired(self, other: Finished, stage: str = "") -> bool:
        """Return whether the same id may be the same person, or test item, in both."""
        people = [
            (run.manifest.get(ITEMS) or {}).get(stage, run.people)
            for run in (self, other)
        ]
        return people[0] == people[1] or None in people


def read_run(folder: str | Path, most: int = TRANSCRIPTS) -> Finished:
    """Return what is shown of a finished run; line files are read as streams.

    Args:
        most: how many of its conversations are kept.

    Raises:
        InputError: if a folder is not a finished run, or a file in it is damaged.
    """
    folder = Path(folder)
    read = Run.read(folder)
    name = folder.resolve().name
    run = Finished(name, folder, read.verb, read.manifest, read.results)
    _checked(run, Options, run.options, "run.json", "leave the folder out")
    match run.verb:
        case "import":
            return _with_stage(run)
        case "clean" | "intents":
            names = [f"{split}.jsonl" for split in ("test", "valid", "train")]
            # `intents` writes only the files that it was given.
            there = [name for name in names if (folder / name).is_file()]
            name = there[0] if there else "conversations.jsonl"
            return _with_lengths(_with_stage(run), name, 0)
        case "train":
            return _with_training(run)
        case "ppl" | "score":
            return _with_measures(run)
        case "judge":
            return replace(run, results=_checked(run, Judged, run.results))
        case "detect":
            detected = _checked(run, Detections, run.results)
            return replace(run, results=detected, missing=_missing(run))
        case "assess":
            if part := run.options.get("part"):
                raise InputError(
                    f"{folder} is part {part}, in which nothing is compared; merge the parts "
                    f"first: userlm merge {folder} ... --out FOLDER"
                )
            run = replace(
                _with_stage(run), results=_checked(run, Assessed, run.results)
            )
            return replace(run, drawn=_drawn(folder), talks=_assessed_talks(run, most))
        case "evaluate":
            run = replace(run, results=_checked(run, Evaluations, run.results))
            return replace(run, talks=_evaluated_talks(run, most))
        case "compare":
            run = replace(run, results=_checked(run, Comparisons, run.results))
            return replace(run, talks=_failed_talks(run))
        case "simulate" | "respond" | "serve":
            run = replace(run, results=_checked(run, Conversing, run.results))
            if run.verb == "serve" and not (folder / "conversations.jsonl").exists():
                raise InputError(
                    f"{folder} has ratings of a blind test and no conversations; leave it out, and "
                    f"see what they say with userlm assess --ratings {folder}/ratings.jsonl"
                )
            return _with_lengths(run, "conversations.jsonl", most)
    raise InputError(
        f"{folder} is a run of {run.verb!r}, which a report cannot show; leave it out"
    )


def read_runs(folders: Iterable[str | Path], most: int = TRANSCRIPTS) -> list[Finished]:
    """Return what is shown of finished runs together; see `read_run`. Of what may be compared, the
    rows are read too."""
    runs = [read_run(folder, most) for folder in folders]
    for run in runs:
        if run.verb == "score":
            _check_scored(run, runs)
    counts = Counter(run.verb for run in runs)
    compared = [verb for verb in ("assess", "ppl") if counts[verb] > 1]
    found = []
    for run in runs:
        if run.verb in compared or _compares_columns(run, runs):
            run = replace(run, rows=_measured_rows(run))
        found.append(run)
    return found


def _check_scored(score: Finished, runs: Iterable[Finished]) -> None:
    """Raise `InputError` if a run beside a score has other conversations than the one of its name
    that was scored."""
    for run in runs:
        path = run.folder / "conversations.jsonl"
        if run.verb in SPEAKING and path.is_file():
            inputs = score.manifest["inputs"]
            scored_column(path, score.folder, score.columns, inputs)


def alike(run: Finished, runs: Iterable[Finished]) -> list[list[str]]:
    """Return the columns of a score whose users can be compared: those of runs of one verb, with
    the same assistant."""
    asked = {}
    for other in runs:
        if other.verb in SPEAKING:
            asked[other.name] = (other.verb, other.options.get("assistant"))
    groups: dict[Any, list[str]] = defaultdict(list)
    for name in run.columns if run.verb == "score" else ():
        if name in asked:
            groups[asked[name]].append(name)
    return [*groups.values()]


def _compares_columns(run: Finished, runs: Iterable[Finished]) -> bool:
    """Whether two columns of a score that can be compared have a measure in common."""
    for first, *others in alike(run, runs):
        shared = [run.columns[first].keys() & run.columns[one].keys() for one in others]
        if any(shared):
            return True
    return False


def _measured_rows(run: Finished) -> dict[tuple[str, str], tuple[MeasureRow, ...]]:
    """Return the rows of the measures by column, or stage, and name."""
    found: dict[tuple[str, str], list[MeasureRow]] = defaultdict(list)
    stages = {"user": "detect"}  # the column of the user in a run of `detect`
    for folder in (".", "score", "detect"):
        path = run.folder / folder / "scores.jsonl"
        if path.is_file():
            for column, name, row in rows(path, _score):
                stage = column if folder != "detect" else stages.get(column)
                if stage:
                    found[stage, name].append(row)
    return {key: tuple(own) for key, own in found.items()}


def _score(line: Mapping[str, Any]) -> tuple[str, str, MeasureRow]:
    return take(line, "column", str), take(line, "metric", str), score_row(line)


def _checked(
    run: Finished,
    kind: Any,
    values: Mapping[str, Any],
    file: str = "results.json",
    advice: str = "delete that file and run the command again",
) -> Any:
    """The values of a file as the type `kind` of `show.results`; an error names the key that is
    damaged."""
    try:
        return _validator(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        where = f"{run.folder / file}: {key!r} is damaged ({first['msg']})"
        raise InputError(f"{where}; {advice}") from None


@cache  # making one takes as long as reading a small run
def _validator(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


# --- import, clean, intents, train ----------------------------------------------------------------


def _with_stage(run: Finished) -> Finished:
    filled = {key: value for key, value in run.results.items() if value != {}}
    results: Data = _checked(run, Data, filled)
    counts = results.get("counts", {})
    in_tables = SPLITS if "splits" in results else ()
    notes = []
    for name, count in sorted(counts.items()):
        if name.partition(":")[0] not in ("in", "out", "dropped", *in_tables):
            notes.append((name.removeprefix("note: "), count))
    reasons = data.dropped(counts)
    stage = Stage("conversations", counts.get("in"), counts.get("out"), reasons, notes)
    tables = list(data.tables(results))
    return replace(run, results=results, stage=stage, tables=tables)


def _with_training(run: Finished) -> Finished:
    losses = rows(run.folder / "log.jsonl", _step_and_loss)
    # The row of step 0 is only a validation.
    log = [(step, loss) for step, loss in losses if loss is not None]
    results: Trained = _checked(run, Trained, run.results)
    samples = results.get("samples") or 0
    dropped = results.get("dropped") or 0
    reasons = [("does not fit the model", dropped)] if dropped else []
    notes = [("conversations", results.get("conversations") or 0)]
    stage = Stage("samples", samples + dropped, samples, reasons, notes)
    return replace(run, results=results, log=log, stage=stage)


def _step_and_loss(row: Mapping[str, Any]) -> tuple[int, float | None]:
    step = take(row, "step", int)
    if not 0 <= step < 2**63:
        raise ValueError("field 'step' is no number of a step")
    return step, finite(row.get("loss"))


# --- ppl, score -----------------------------------------------------------------------------------


def _with_measures(run: Finished) -> Finished:
    measured = dict(run.results)
    # A scored run may itself be named "endings"; its value is then a list of measures.
    if run.verb == "score" and isinstance(measured.get("endings"), Mapping):
        found = _checked(run, Endings, {"endings": measured.pop("endings")})
        run = replace(run, endings=found["endings"])
    results: Conversing = {}
    if run.verb == "ppl" and "usage" in measured:
        results = _checked(run, Conversing, {"usage": measured.pop("usage")})
        del measured["caps"]
    if run.verb == "ppl":
        measured.pop(HASHES, None)
    checked: Columns = _checked(run, Columns, measured)
    columns = {}
    for name, measures in checked.items():
        # There may be many sources, which `userlm ppl` prints.
        shown = [one for one in measures if not one["name"].startswith("source ")]
        columns[name] = {one["name"]: one for one in shown}
    run = replace(run, results=results, columns=columns)
    if run.verb == "ppl":
        return replace(run, missing=_missing(run))
    notebook = Notebook()
    missing = _missing(run, notebook)
    return replace(run, missing=missing, notes=notebook.read_tasks(run.folder))


def _missing(run: Finished, notebook: Notebook | None = None) -> Missing:
    """Return why items could not be measured; the notebook gets the lines that it wants."""

    def is_wanted(raw: bytes) -> bool:
        return MEASURED not in raw or (notebook is not None and notebook.wants(raw))

    missing: Missing = defaultdict(Counter)
    for line in some_rows(run.folder / "scores.jsonl", is_wanted):
        is_end = run.verb == "ppl" and str(line.get("key")).endswith("/end")
        if line.get("stats") is None and not is_end:
            why = str(line.get("why") or "no reason given")
            missing[str(line.get("column")), str(line.get("metric"))][why] += 1
        if notebook:
            notebook.add_score(line)
    return missing


# --- conversations --------------------------------------------------------------------------------


def _with_lengths(run: Finished, file: str, most: int) -> Finished:
    """Return a run with the lengths of its conversations and the first of these. Only turns of the
    simulated user are counted, not the logged turns before them."""
    shown: list[Conversation] = []
    lengths = Lengths()
    stubs: set[str] = set()
    example = None
    total = 0
    for conversation in rows(run.folder / file, from_record):
        total += 1
        said = conversation.user_turns
        lengths.add_words(said[conversation.first_own_turn :])
        if conversation.meta.get("intent_by") == "extractive":
            stubs.add(EXTRACTIVE)
        if run.verb == "respond":
            # the number of turns before a response depends on the log, not on the user
            continue
        lengths.add_turns(conversation)
        if run.verb in TALKING:
            found = [turn.meta.get("stub") for turn in conversation.turns]
            stubs |= {f"assistant: {name}" for name in found if name}
        if len(shown) < most:
            shown.append(conversation)
        if example is None and conversation.ended and 2 <= len(said) <= 4:
            example = conversation
    if run.is_human and example:
        run = replace(run, tables=[*run.tables, data.samples_table(example)])
    run = replace(run, lengths=lengths, stubs=sorted(stubs))
    if run.verb not in TALKING:
        return run
    # The playground has any users and assistants.
    user, assistant = (
        str(run.options.get(name) or "") for name in ("user", "assistant")
    )
    path = str(run.folder / file)
    return replace(run, talks=[Talks(run.name, user, assistant, path, shown, total)])


def _assessed_talks(run: Finished, most: int) -> list[Talks]:
    """Return the whole conversations of an assessment."""
    path = run.folder / "simulate" / "conversations.jsonl"
    if not path.is_file():
        return []
    shown, total = first_of(rows(path, from_record), most)
    scores = run.folder / "score"
    notes: Notes = (
        Notebook().read(scores) if (scores / "scores.jsonl").is_file() else {}
    )
    user, assistant = (str(run.options.get(name)) for name in ("user", "assistant"))
    return [Talks("simulate", user, assistant, str(path), shown, total, notes)]


def _evaluated_talks(run: Finished, most: int) -> list[Talks]:
    """Return the conversations of each cell."""
    found = []
    for cell in run.results["cells"]:
        folder = cell_folder(run.folder, cell["folder"])
        path = folder / "conversations.jsonl"
        if path.is_file():
            shown, total = first_of(rows(path, from_record), most)
            scores = folder / "score"
            is_scored = (scores / "scores.jsonl").is_file()
            notes: Notes = Notebook().read(scores) if is_scored else {}
            names = (folder.name, cell["user"], cell["assistant"])
            found.append(Talks(*names, str(path), shown, total, notes))
    return found


def _failed_talks(run: Finished) -> list[Talks]:
    """Return the conversations about the hardest tasks, by the run that each is from."""
    names = {}
    for cell in run.results["cells"]:
        names[cell["assistant"], cell["user"]] = Path(cell["folder"]).name
    by_cell: dict[tuple[str, str], list[Conversation]] = defaultdict(list)
    path = run.folder / "failed.jsonl"
    for talk in rows(path, from_record):
        by_cell[str(talk.meta.get("assistant")), str(talk.meta.get("user"))].append(
            talk
        )
    found = []
    for (assistant, user), talks in by_cell.items():
        name = names.get((assistant, user), f"{assistant}--{user}")
        notes = {}
        for talk in talks:
            why = str(talk.meta.get("verdict") or "")
            notes[name, talk.id] = Noted(solved=False, verdict=why)
        found.append(Talks(name, user, assistant, str(path), talks, len(talks), notes))
    return found


def word_bin(count: int) -> int:
    """Return the index in `WORD_BINS` of a turn with `count` words: each bin is twice as wide."""
    return min(count.bit_length(), len(WORD_BINS) - 1)


def _drawn(folder: Path) -> dict[str, list[tuple[Conversation, Conversation]]]:
    """Return some conversations of each stage, with those of the people that they start from. They
    are drawn by their ids, so that users of the same people are shown in the same places."""
    paths = {}
    for stage in ("respond", "simulate"):
        path = folder / stage / "conversations.jsonl"
        if path.is_file():
            paths[stage] = path
    reference = folder / "reference.jsonl"
    if not paths or not reference.is_file():
        return {}
    stages = {}
    for stage, path in paths.items():
        talks = rows(path, from_record)
        stages[stage] = _draw(talks, PAIRS // len(paths), stage)
    needed = {log for talks in stages.values() for log in talks}
    logs = {one.id: one for one in rows(reference, from_record) if one.id in needed}
    found = {}
    for stage, drawn in stages.items():
        found[stage] = [(logs[log], drawn[log]) for log in drawn if log in logs]
    return found


def _draw(
    talks: Iterable[Conversation], count: int, stage: str
) -> dict[str, Conversation]:
    """Return so many conversations by the logs that they start from, one for each log."""
    one_of: dict[str, Conversation] = {}
    for talk in talks:
        log = (talk.origin.conversation if talk.origin else None) or talk.id
        one_of[log] = min(talk, one_of.get(log, talk), key=_place)
    chosen = nsmallest(count, one_of, key=partial(stable_hash, stage))
    return {log: one_of[log] for log in chosen}


def _place(talk: Conversation) -> int:
    return stable_hash(talk.id)

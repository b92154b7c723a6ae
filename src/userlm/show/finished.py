"""Finished run folders, read and checked. Reading changes nothing in them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from userlm.rows import SPLITS, from_record, read_json, read_rows
from userlm.show import data
from userlm.show.blocks import Counts, Table
from userlm.show.checks import Percent, Share, Threshold, checked
from userlm.show.formats import finite
from userlm.text import words
from userlm.types import FAILED, Conversation, InputError

T = TypeVar("T")
EXTRACTIVE = "intents: extractive"

TRANSCRIPTS = 20  # of each run
TURN_BINS = (*map(str, range(10)), "10+")
WORD_BINS = ("0", "1", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127", "128–255", "256+")


class Measured(TypedDict):
    """A measure as `results.json` holds it; see `types.Measure`."""

    name: str
    value: Any  # a number or None; it may be negative
    low: Any
    high: Any
    n: int
    missing: int
    better: str
    unit: str
    why: str


Missing = dict[tuple[str, str], Counter[str]]
"""By column and measure: why items could not be measured, and how many."""


@dataclass(frozen=True)
class Lengths:
    """How many conversations fall into each of `TURN_BINS`, and user turns into each of
    `WORD_BINS`; a conversation that failed has no known length. Conversations are added one by
    one."""

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
    """What came into a stage, what it passed on, what it dropped and why, and what else it
    counted."""

    unit: str
    incoming: int | None
    outgoing: int | None
    reasons: Counts
    notes: Counts


class Guard(TypedDict):
    """How often a guard stepped in; see `guard.rates`."""

    turns: int
    drafts: int
    resampled: int
    kept: int
    stopped: int
    why: dict[str, int]


class Rule(TypedDict):
    """What a user does that ends the conversation by one rule; see `metrics`."""

    above: Threshold | None
    early: Percent
    late: Percent
    leaves: Percent
    f1: Percent


class Curve(TypedDict):
    """The same for every threshold."""

    above: list[Threshold]
    early: list[Percent]
    late: list[Percent]
    leaves: list[Percent]
    f1: list[Percent]


class Bin(TypedDict):
    """Answers with similar P(end), and the share of them at which the person ended."""

    n: int
    p_end: Share
    ended: Share


class Endings(TypedDict):
    """Of how many answers P(end) is known, and why no threshold can be suggested."""

    n: int
    missing: int
    why: str
    note: str


class Sweep(Endings):
    """What a user does at every threshold, and the thresholds to suggest."""

    people: int
    ended: Percent
    now: Rule
    best: Rule
    equal: Rule
    curve: Curve
    ece: Share
    bins: list[Bin]


@dataclass(frozen=True)
class Finished:
    """A finished run, as much of it as is shown.

    Attributes:
        name: the name of its folder; it heads columns and sections.
        columns: measures by column: the runs that were scored, or with and without intent.
        endings: by column, a `Sweep`, or `Endings` if there is no threshold to suggest.
        guard: what a guard did in it.
        log: step and loss of a training run.
        transcripts: the first `TRANSCRIPTS` conversations of a simulation.
        total: the number of its conversations.
        lengths: of what its simulated users said; of what humans said, for the stages of data.
        stubs: what in it was not made by a language model.
        stage: what went through a stage of data.
        tables: what `clean` and `intents` report of the data.
    """

    name: str
    folder: Path
    verb: str
    manifest: Mapping[str, Any]
    results: Mapping[str, Any]
    columns: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    missing: Missing = field(default_factory=dict)
    endings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    guard: Guard | None = None
    log: Sequence[tuple[int, float]] = ()
    transcripts: Sequence[Conversation] = ()
    total: int = 0
    lengths: Lengths | None = None
    stubs: Sequence[str] = ()
    stage: Stage | None = None
    tables: Sequence[Table] = ()

    @property
    def is_human(self) -> bool:
        """Whether humans held the conversations in it."""
        return self.verb in ("clean", "intents")

    @property
    def stub_assistants(self) -> str:
        """The names of the stub assistants in it."""
        names = [stub.partition(": ") for stub in self.stubs]
        return ", ".join(name for kind, _, name in names if kind == "assistant")

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of its command."""
        return self.manifest.get("options") or {}


def read_run(folder: str | Path) -> Finished:
    """Return what is shown of a finished run; line files are read as streams.

    Raises:
        InputError: for a folder that is no finished run, or a file in it that is damaged.
    """
    run = _opened(Path(folder))
    match run.verb:
        case "import":
            return _with_stage(run)
        case "clean" | "intents":
            # `intents` for a single file writes no splits
            has_splits = (run.folder / "test.jsonl").is_file()
            name = "test.jsonl" if has_splits else "conversations.jsonl"
            return _with_conversations(_with_stage(run), name)
        case "train":
            return _with_training(run)
        case "ppl" | "score":
            return _with_measures(run)
        case "simulate" | "respond":
            return _with_conversations(_with_guard(run), "conversations.jsonl")
    raise InputError(
        f"{folder} is a run of {run.verb!r}, which has no place in a report; leave it out"
    )


def _opened(folder: Path) -> Finished:
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder; give the folders of finished runs, such as runs/score"
        )
    if not (folder / "run.json").is_file():
        runs = sorted(folder.glob("*/run.json"))
        hint = f"give those in it, such as {runs[0].parent}" if runs else "give the folder of a run"
        raise InputError(f"{folder} holds no run.json, so it is no run; {hint}")
    manifest = read_json(folder / "run.json")
    if not isinstance(manifest.get("options", {}), dict):
        raise InputError(f"{folder / 'run.json'}: 'options' is damaged; leave the folder out")
    verb = str(manifest.get("verb"))
    if not (folder / "results.json").is_file():
        raise InputError(
            f"{folder} is not finished; run its command again (userlm {verb}), or leave it out"
        )
    results = read_json(folder / "results.json")
    return Finished(folder.resolve().name, folder, verb, manifest, results)


def _part(run: Finished, key: str, build: Callable[[Mapping[str, Any]], T]) -> T:
    """What is built from the results; an error names `key` as the part that is damaged."""
    try:
        return build(run.results)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        where = f"{run.folder / 'results.json'}: {key!r} is damaged ({error!r})"
        raise InputError(f"{where}; delete that file and run the command again") from None


# --- import, clean, intents, train ----------------------------------------------------------------


def _with_stage(run: Finished) -> Finished:
    stage = _part(run, "counts", _stage) if "counts" in run.results else None
    shown = [(key, build) for key, build in data.TABLES if run.results.get(key, {}) != {}]
    tables = [_part(run, key, build) for key, build in shown]
    return replace(run, stage=stage, tables=tables)


def _stage(results: Mapping[str, Any]) -> Stage:
    counts: dict[str, int] = checked(results["counts"], dict[str, int])
    in_tables = SPLITS if "splits" in results else ()
    notes = []
    for name, count in sorted(counts.items()):
        if name.partition(":")[0] not in ("in", "out", "dropped", *in_tables):
            notes.append((name.removeprefix("note: "), count))
    reasons = data.dropped(counts)
    return Stage("conversations", counts.get("in"), counts.get("out"), reasons, notes)


def _with_training(run: Finished) -> Finished:
    log = []
    for row in _rows(run.folder / "log.jsonl"):
        step = row.get("step")
        loss = finite(row.get("loss"))
        if isinstance(step, int) and loss is not None:
            log.append((step, loss))
    return replace(run, log=log, stage=_part(run, "samples", _training_stage))


def _training_stage(results: Mapping[str, Any]) -> Stage:
    names = ("conversations", "samples", "dropped")
    counts = checked({name: results.get(name) or 0 for name in names}, dict[str, int])
    conversations, samples, dropped = counts.values()
    reasons = [("does not fit the model", dropped)] if dropped else []
    notes = [("conversations", conversations)]
    return Stage("samples", samples + dropped, samples, reasons, notes)


# --- ppl, score -----------------------------------------------------------------------------------


def _with_measures(run: Finished) -> Finished:
    results = dict(run.results)
    endings: Mapping[str, Mapping[str, Any]] = {}
    # A run that was scored may be called "endings" itself; it has a list of measures.
    if run.verb == "score" and isinstance(results.get("endings"), Mapping):
        del results["endings"]
        endings = _part(run, "endings", _endings)
    columns = {name: _part(run, name, partial(_measures, name)) for name in results}
    return replace(run, columns=columns, endings=endings, missing=_missing(run))


def _measures(column: str, results: Mapping[str, Any]) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for record in results[column]:
        values = {key: finite(record[key]) for key in ("value", "low", "high")}
        why = record.get("why") or "nothing to measure"
        measured: Measured = checked({**record, **values, "why": why}, Measured)
        if not measured["name"].startswith("source "):  # there are many; `userlm ppl` prints them
            found[measured["name"]] = measured
    return found


def _endings(results: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    endings: Mapping[str, Any] = results["endings"]
    for part in endings.values():
        if part["best"] is None:
            checked(part, Endings)
            continue
        curve = checked(part, Sweep)["curve"]
        if len({len(values) for values in curve.values()}) > 1 or len(curve["above"]) < 2:
            raise ValueError("a curve needs two thresholds, and shares for each")
    return endings


def _missing(run: Finished) -> Missing:
    """Lines of `ppl` are `{"column": str, "rows": [[key, cluster, stats, why], ...]}`, lines of
    `score` are one item each."""
    missing: Missing = defaultdict(Counter)
    for line in _rows(run.folder / "scores.jsonl"):
        if run.verb == "ppl":
            for key, _, stats, why in line.get("rows") or ():
                if not stats and not str(key).endswith("/end"):
                    missing[str(line.get("column")), "user turns"][str(why)] += 1
        elif line.get("stats") is None:
            why = str(line.get("why") or "no reason given")
            missing[str(line.get("run")), str(line.get("measure"))][why] += 1
    return missing


# --- conversations --------------------------------------------------------------------------------


def _with_conversations(run: Finished, file: str) -> Finished:
    """Count only what the user of the run said, not the logged turns before it."""
    shown: list[Conversation] = []
    lengths = Lengths()
    stubs: set[str] = set()
    example = None
    total = 0
    for conversation in _conversations(run.folder / file):
        total += 1
        said = conversation.user_turns
        lengths.add_words(said[conversation.first_own_turn() :])
        if conversation.meta.get("intent_by") == "extractive":
            stubs.add(EXTRACTIVE)
        if run.verb == "respond":  # a response stands after a log, which has its own length
            continue
        lengths.add_turns(conversation)
        if run.verb == "simulate":
            found = [turn.meta.get("stub") for turn in conversation.turns]
            stubs |= {f"assistant: {name}" for name in found if name}
        if len(shown) < TRANSCRIPTS:
            shown.append(conversation)
        if example is None and conversation.ended and 2 <= len(said) <= 4:
            example = conversation
    if run.is_human and example:
        run = replace(run, tables=[*run.tables, data.samples_table(example)])
    run = replace(run, transcripts=shown, total=total)
    return replace(run, lengths=lengths, stubs=sorted(stubs))


def _with_guard(run: Finished) -> Finished:
    if run.results.get("guard") is None:
        return run
    return replace(run, guard=_part(run, "guard", lambda found: checked(found["guard"], Guard)))


def word_bin(count: int) -> int:
    """Return the index in `WORD_BINS` of a turn with `count` words: each bin is twice as wide."""
    return min(count.bit_length(), len(WORD_BINS) - 1)


# --- line files -----------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a line file, which may be empty, but not missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path} is missing; delete the folder and run its command again")
    for line in read_rows(path, may_be_empty=True):
        if line.error:
            raise InputError(
                f"{path}, line {line.number}: {line.error}; delete the folder and run it again"
            )
        yield line.row


def _conversations(path: Path) -> Iterator[Conversation]:
    for number, row in enumerate(_rows(path), 1):
        try:
            yield from_record(row)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: {error}; delete the folder and run it again"
            ) from None

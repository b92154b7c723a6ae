"""The cells that `compare` reads: each is an assistant with a user, that is a run of `simulate` and
what `score --tasks` says of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from userlm.commands.evaluate import AGAIN, CONTROLS, KEPT, REPLAYED
from userlm.commands.options import rated_user
from userlm.commands.score import ENDINGS
from userlm.commands.steps import TASK_FILES
from userlm.metrics.catalog import METRICS, TASKS
from userlm.metrics.ratings import RatedUser
from userlm.metrics.scores import score_row
from userlm.rows import read_conversations, read_parsed
from userlm.runs import CELLS, FinishedRun, Run, scored_column
from userlm.types import Conversation, InputError, MeasureRow

ASSISTANT_SCORE = "assistant score"
_OF_TASKS = [one.name for one in METRICS if one.family == TASKS]
MEASURES = (
    ASSISTANT_SCORE,
    *(name for name in _OF_TASKS if name != ASSISTANT_SCORE),
    *KEPT,
)
"""What cells are compared by, the most important first."""

ASSISTANT = ("assistant", "system", "greeting", "max_answer_tokens")
USER = (
    *("user", "temperature", "top_p", "end_threshold"),
    *("guard", "tokenizer", "prompt"),
)
"""The options of `simulate` that make an assistant and a user what they are, its address first."""
TEXTS = ("assistant", "system", "greeting", "user", "guard", "tokenizer", "prompt")
"""Those that are texts."""
SHARED = ("seed", "max_turns", "keep_turns")
GRADED = ("judge", "upstream_grading")
"""Those of `simulate` and of `score` that all cells must share to be comparable."""


@dataclass(frozen=True, slots=True)
class Cell:
    """An assistant with a user.

    Attributes:
        assistant, user: their names in this comparison.
        is_control: whether the assistant is one of `CONTROLS`.
        version: what the user is besides its name, if that is known.
        folder: the run of `simulate`.
        files: what it was read from.
        tasks: the hash of the tasks whose checks ended conversations; `None` if it is not known.
        shared: what must be the same in all cells, by name.
        intents: what users wanted, by task.
        families: the family of each task; empty if there is none.
        reasons: why each conversation has its grade.
        rows: those of each of `MEASURES`, by name; their clusters are tasks.
    """

    assistant: str
    user: str
    is_control: bool
    version: RatedUser
    folder: Path
    files: Sequence[Path]
    tasks: str | None
    shared: Mapping[str, Any]
    intents: Mapping[str, str]
    families: Mapping[str, str]
    reasons: Mapping[str, str]
    rows: Mapping[str, Sequence[MeasureRow]]


def read_cells(folders: Sequence[Path]) -> list[Cell]:
    """Return the cells of runs of `score`, of runs of `simulate` with such a run in their folder
    score/, or of whole grids.

    Raises:
        InputError: if a folder is none of these, or the cells cannot be compared.
    """
    found: list[tuple[FinishedRun, FinishedRun, str]] = []
    places = []
    for folder in folders:
        for scored in _scored(folder):
            for column, run in _columns(scored):
                found.append((run, scored, column))
                places.append(folder if (folder / CELLS).is_dir() else run.folder)
    options = [run.options for run, _, _ in found]
    users = _with_replayed([run for run, _, _ in found], _names(options, USER))
    assistants = _apart(_names(options, ASSISTANT), users, places)
    cells = []
    for one, assistant, user in zip(found, assistants, users, strict=True):
        cells.append(_read(*one, assistant, user))
    _check(cells)
    return cells


# --- which runs -----------------------------------------------------------------------------------


def _scored(folder: Path) -> Iterator[FinishedRun]:
    """Yield the runs of `score` that a folder stands for."""
    run = Run.read(folder)
    if run.verb == "score":
        yield run
        return
    if (folder / CELLS).is_dir():
        inside = [cell / "score" for cell in sorted((folder / CELLS).iterdir())]
        advice = "run `userlm evaluate` again, or give the score/ of each other cell"
    elif run.verb == "simulate":
        inside = [folder / "score"]
        advice = f"run `userlm score {folder} --tasks FILE` and give its folder"
    else:
        raise InputError(
            f"{folder} is no run of `score --tasks`, and no grid of `evaluate`; give one of these"
        )
    for scored in inside:
        if not scored.is_dir():
            raise InputError(f"{scored.parent} has no scores to compare; {advice}")
    yield from map(Run.read, inside)


def _columns(scored: FinishedRun) -> Iterator[tuple[str, FinishedRun]]:
    """Yield the runs of `simulate` that were scored, by the names of their columns."""
    inputs = scored.manifest["inputs"]
    for path in inputs:
        file = Path(path)
        if file.name != "conversations.jsonl":
            continue
        if scored.folder.resolve().parent.name == file.parent.name:
            # The score of a cell lies in its folder, which may have been moved with the grid.
            file = scored.folder.parent / file.name
        if not file.is_file():
            raise InputError(
                f"{file}, which {scored.folder} is about, is not there; run this in the folder "
                "where `score` was run"
            )
        run = Run.read(file.parent)
        if run.verb == "simulate":
            _check_texts(run)
            name = scored_column(file, scored.folder, scored.results, inputs)
            yield name or run.folder.name, run


def _check_texts(run: FinishedRun) -> None:
    """Raise `InputError` if an option that makes an assistant or a user what it is has no text."""
    for name in TEXTS:
        value = run.options.get(name)
        is_missing = value is None and name not in ("assistant", "user")
        if not (isinstance(value, str) or is_missing):
            raise InputError(
                f"{run.path('run.json')}: {name!r} is damaged; leave the folder out"
            )


def _names(options: Sequence[Mapping[str, Any]], identity: Sequence[str]) -> list[str]:
    """Return the address of each side and, where two of the same address are different, the options
    in which they are."""
    address, *others = identity
    variants: dict[Any, list[tuple[Any, ...]]] = defaultdict(list)
    for one in options:
        variants[one.get(address)].append(tuple(one.get(name) for name in others))
    names = []
    for one in options:
        alike = variants[one.get(address)]
        differing = [
            f"{name}={one.get(name)}"
            for at, name in enumerate(others)
            if len({str(variant[at]) for variant in alike}) > 1
        ]
        more = f" ({', '.join(differing)})" if differing else ""
        names.append(f"{one.get(address)}{more}")
    return names


def _apart(
    assistants: Sequence[str], users: Sequence[str], places: Sequence[Path]
) -> list[str]:
    """Return the names of assistants. One that talks with the same user in several places, such as
    a bot before and after a change, is named after these."""
    cells = Counter(zip(assistants, users, strict=True))
    several = {assistant for (assistant, _), count in cells.items() if count > 1}
    paths = [place.resolve() for place in places]
    is_short = len({path.name for path in paths}) == len(set(paths))
    names = []
    for assistant, path in zip(assistants, paths, strict=True):
        place = path.name if is_short else f"{path.parent.name}/{path.name}"
        names.append(f"{assistant} ({place})" if assistant in several else assistant)
    return names


def _with_replayed(runs: Sequence[FinishedRun], users: Sequence[str]) -> list[str]:
    """Return the names of users. One that says another one's turns again is named after that."""
    folders = [str(run.folder.resolve()) for run in runs]
    pairs = list(zip(folders, users, strict=True))
    by_folder = dict(pairs)
    named = []
    for folder, user in pairs:
        original = by_folder.get(folder.removesuffix(AGAIN), user)
        named.append(user if original == user else f"{original}{REPLAYED}")
    return named


# --- one cell -------------------------------------------------------------------------------------


def _read(
    run: FinishedRun, scored: FinishedRun, column: str, assistant: str, user: str
) -> Cell:
    talks = run.path("conversations.jsonl")
    task_of = {}
    intents = {}
    for conversation in read_conversations(talks):
        task = _task(conversation)
        task_of[conversation.id] = task
        intents[task] = conversation.intent or ""
    scores, grades = scored.path("scores.jsonl"), scored.path("grades.jsonl")
    rows: dict[str, list[MeasureRow]] = {}
    for line in _lines(scores):
        name = line.get("metric")
        if line.get("column") == column and name in MEASURES:
            row = _row(scores, line)
            task = task_of.get(row.key, row.cluster)
            rows.setdefault(name, []).append(replace(row, cluster=task))
    if ASSISTANT_SCORE not in rows:
        raise InputError(
            f"{scored.folder} has no {ASSISTANT_SCORE} of {column!r}; run `score` with --tasks"
        )
    families = {}
    reasons = {}
    for line in _lines(grades):
        families[str(line.get("task"))] = str(line.get("family") or "")
        if line.get("run") == column:
            reasons[str(line.get("conversation"))] = str(line.get("reason") or "")
    graded = {name: scored.options.get(name) for name in GRADED}
    graded["tasks"] = _graders(scored)
    settings = {name: run.options.get(name) for name in SHARED}
    shared = {**settings, **graded}
    files = (talks, scores, grades)
    is_control = run.options.get("assistant") in CONTROLS
    # What is said again differs by cell.
    is_original = not user.endswith(REPLAYED)
    version = rated_user(run.manifest) if is_original else RatedUser()
    names = (assistant, user, is_control, version)
    about = (intents, families, reasons)
    tasks = run.manifest.get(TASK_FILES)
    return Cell(*names, run.folder, files, tasks, shared, *about, rows)


def _task(conversation: Conversation) -> str:
    origin = conversation.origin
    return (origin and origin.task) or conversation.id.rpartition("#")[0]


def _graders(scored: FinishedRun) -> list[str]:
    """The hashes of all that graded: files of tasks, code of their checks, and what a judge is."""
    human, trained_on = map(scored.options.get, ("human", "trained_on"))
    columns = [name for name in scored.results if name != ENDINGS]
    runs = len(columns) - bool(human)
    # The conversations come first. Whatever is not known to be something else graded them.
    inputs = [*scored.manifest["inputs"].items()][runs:]
    return sorted(str(was) for path, was in inputs if path not in (human, trained_on))


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    return read_parsed(path, lambda line: line.row, may_be_empty=True)


def _row(path: Path, line: Mapping[str, Any]) -> MeasureRow:
    try:
        return score_row(line)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}; run `score` again with --force") from None


# --- can they be compared? ------------------------------------------------------------------------


def _check(cells: Sequence[Cell]) -> None:
    """Raise `InputError` with the first thing in which two cells differ that must be the same."""
    if len(cells) < 2:
        raise InputError("there is one run to compare; give two or more")
    first = cells[0]
    names = Counter((cell.assistant, cell.user) for cell in cells)
    [((assistant, user), count)] = names.most_common(1)
    if count > 1:
        raise InputError(f"{assistant} with {user} is given {count} times")
    users: dict[str, Cell] = {}
    for cell in cells:
        same = users.setdefault(cell.user, cell)
        if not same.version.may_be(cell.version):
            raise InputError(
                f"{same.folder} and {cell.folder} cannot be compared: {cell.user} is another user "
                "in each, since a file behind it, a prompt or its server has changed"
            )
    for cell in cells[1:]:
        both = f"{first.folder} and {cell.folder} cannot be compared"
        for name, value in first.shared.items():
            if cell.shared[name] != value:
                shown = f"{value} and {cell.shared[name]}"
                if name == "tasks":
                    shown = "a file, the code of a check, or what the judge is"
                raise InputError(f"{both}: {name} differs ({shown})")
        for task in sorted(first.intents.keys() | cell.intents.keys()):
            if first.intents.get(task) != cell.intents.get(task):
                what = f"the intents of {task!r} differ"
                if task not in first.intents or task not in cell.intents:
                    what = f"only one of them has the task {task!r}"
                raise InputError(f"{both}: {what}")
        if None not in (first.tasks, cell.tasks) and first.tasks != cell.tasks:
            raise InputError(
                f"{both}: a file of tasks, or the code of a check, changed between them, which may "
                "have ended conversations; simulate both with the same"
            )

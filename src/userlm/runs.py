"""The run folder: the interface between stages.

    run.json             written first: verb, options, inputs with their hashes, versions, host
    turns.jsonl          a line for each answered call, appended as it comes
    conversations.jsonl  a line for each finished conversation
    scores.jsonl         a line for each measured item: a value, or null and why
    results.json         written last; its presence means "complete"

A folder that holds `run.json` without `results.json` was interrupted. The same command resumes it,
and ends with the same files as an uninterrupted run.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from userlm.json_files import dump, naming, read_json, write_json
from userlm.lines import BUFFER
from userlm.manifest import (
    FORMAT,
    check_same,
    environment,
    extended,
    file_hash,
    request,
)
from userlm.rows import SPLITS
from userlm.text import stable_hash
from userlm.types import InputError, Measure

CELLS = "cells"
"""The folder of the cells in the folder of a run of `evaluate`."""
ITEMS = "items"
"""The key of run.json for the hash of each file of test items, by its stage."""
HASHES = "hashes"
"""The key of results.json for the hashes of the rows of a part."""


class Run:
    """A run folder that is open for writing. No other process can open it meanwhile."""

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        lock: IO[bytes] | None,
        is_extended: bool = False,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._lock = lock
        # Its files know nothing of that until `unfinish` or `finish`: a mistake costs nothing.
        self._is_extended = is_extended

    @classmethod
    def open(
        cls,
        folder: str | Path,
        verb: str,
        options: Mapping[str, Any],
        inputs: Iterable[str | Path] = (),
        stamps: Mapping[str, str] | None = None,
        anew: bool = False,
        reads: Iterable[str | Path] = (),
        notes: Mapping[str, Any] | None = None,
    ) -> Run:
        """Start a run, or resume the same one, perhaps `extended`.

        Args:
            inputs: files; their contents are hashed.
            stamps: inputs that are not files, each with a text that changes with its contents.
            reads: further files that it reads, which may change until it is resumed.
            notes: what run.json has besides, in place of what it would say of this machine.
            anew: set aside what an earlier run left in the folder, whatever it was, until this one
                is complete. One that was begun so and is not complete is resumed.

        Raises:
            InputError: if the folder has a run with other options or inputs, holds a link, or is
            not a run folder.
        """
        folder = Path(folder)
        paths = [Path(path) for path in inputs]
        asked = request(verb, options, paths, stamps or {})
        manifest_path = folder / "run.json"
        check_may_be_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Lock the folder before anything in it is read or changed. A run that wrote only its
        # options, for example because of a wrong address, can start over.
        lock = _lock(folder)
        if anew:
            _check_outside(folder, [*paths, *map(Path, reads)])
            if not _is_same_attempt(folder, asked):
                _set_aside(folder, verb, options)
        elif _is_being_set_aside(folder):
            raise InputError(
                f"{folder}: --force was cut off while it set a run aside; give --force again"
            )
        if manifest_path.is_file() and _contents(folder) != [manifest_path]:
            manifest = read_json(manifest_path)
            _check_format(folder, manifest)
            known = extended(manifest, asked)
            check_same(folder, known, asked)
            return cls(folder, known, lock, is_extended=known != manifest)
        manifest = {**asked, **environment(), **(notes or {})}
        write_json(manifest_path, manifest)
        return cls(folder, manifest, lock)

    @staticmethod
    def read(folder: str | Path) -> FinishedRun:
        """Read a finished run without changing its folder.

        Raises:
            InputError: if the folder is not a run folder, or its run is not finished.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(
                f"{folder} is not a folder; give the folder of a finished run, such as runs/score"
            )
        if not (folder / "run.json").is_file():
            inside = sorted(path.parent.name for path in folder.glob("*/run.json"))
            hint = "give the folder of a run"
            if inside:
                hint = f"give the run folders in it, such as {folder / inside[0]}"
            raise InputError(f"{folder} has no run.json, so it is not a run; {hint}")
        _check_inside(folder)
        manifest = read_json(folder / "run.json")
        _check_format(folder, manifest)
        parts = {
            "options": manifest.get("options"),
            "inputs": manifest.get("inputs", {}),
        }
        for name, part in parts.items():
            if not isinstance(part, dict):
                raise InputError(
                    f"{folder / 'run.json'}: {name!r} is damaged; leave the folder out"
                )
        if not (folder / "results.json").is_file():
            verb = manifest.get("verb")
            raise InputError(
                f"{folder} is not finished; run its command again (userlm {verb}), or leave it out"
            )
        return FinishedRun(folder, manifest, read_json(folder / "results.json"))

    def path(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.folder / name

    @property
    def nonce(self) -> str:
        """A text that no other run has; it stays the same when this one is resumed."""
        begun = self.path("run.json").stat().st_mtime_ns
        return f"{stable_hash(str(self.folder.resolve()), begun):016x}"

    @property
    def results(self) -> dict[str, Any] | None:
        """The results of the finished run; `None` while it is not complete."""
        path = self.path("results.json")
        return read_json(path) if path.is_file() and not self._is_extended else None

    def finish(
        self, results: Mapping[str, Any], has_failures: bool = False
    ) -> dict[str, Any]:
        """Write the results, and delete the run that this one replaces, unless there are failures,
        which the same command tries again. This is the last step of a run.

        The results of a part have the hashes of its rows, which are merged, perhaps elsewhere.
        """
        if self._is_extended:
            self.unfinish()
        written = dict(results)
        if self.manifest["options"].get("part"):
            written[HASHES] = rows_of(self.folder)
        write_json(self.path("results.json"), written)
        if not has_failures:
            self.delete_replaced()
        return written

    def check_inputs(self, sizes: Mapping[Path, int]) -> None:
        """Raise `InputError` if a file is not what it was when the run began, with these sizes: of
        files that are read one after the other, the later ones would be of another run. Files may
        grow."""
        for path, size in sizes.items():
            begun = self.manifest["inputs"][str(path)]
            if file_hash(path, size=size) != begun:
                raise changed(path)

    def unfinish(self) -> None:
        """Delete the results of an earlier attempt, before this one changes the run."""
        self.path("results.json").unlink(missing_ok=True)
        if self._is_extended:
            write_json(self.path("run.json"), self.manifest)
            self._is_extended = False

    def delete_replaced(self) -> None:
        """Delete the run that this one, now complete, replaces."""
        # Without run.json first: a half of a run does not count as set aside.
        (self.path(REPLACED) / "run.json").unlink(missing_ok=True)
        shutil.rmtree(self.path(REPLACED), ignore_errors=True)


@dataclass(frozen=True)
class FinishedRun:
    """A complete run, read by `Run.read`: its folder, run.json (`manifest`) and results.json."""

    folder: Path
    manifest: Mapping[str, Any]
    results: Mapping[str, Any]

    @property
    def verb(self) -> str:
        return str(self.manifest.get("verb"))

    @property
    def options(self) -> Mapping[str, Any]:
        options: Mapping[str, Any] = self.manifest["options"]
        return options

    def path(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.folder / name


def check_may_be_run(folder: Path) -> None:
    """Raise `InputError` if a folder is there that is no run folder, or holds a link: a run would
    change what it points to."""
    is_file = folder.exists() and not folder.is_dir()
    is_run = (folder / "run.json").is_file() or _is_being_set_aside(folder)
    if is_file or (_contents(folder) and not is_run):
        raise InputError(
            f"{folder} exists and is not a run folder; choose another --out"
        )
    _check_links(folder)


def changed(path: Path) -> InputError:
    """Return the error of a file that is not what it was when the run began."""
    return InputError(
        f"{path} changed while it was read; run the command again with another --out"
    )


def rows_of(folder: Path) -> dict[str, str]:
    """Return the hash of each file of rows in a run folder and the folders in it."""
    found = {}
    for path in sorted(folder.rglob("*.jsonl")):
        name = path.relative_to(folder)
        if REPLACED not in name.parts:
            found[name.as_posix()] = file_hash(path)
    return found


def lasting_name(path: Path) -> str:
    """Return the name of a file and its folder, which stay the same if both are moved."""
    return f"{path.resolve().parent.name}/{path.name}"


def scored_column(
    path: Path, score: Path, columns: Iterable[str], inputs: Mapping[str, Any]
) -> str | None:
    """Return the column that a file of conversations has in a run of `score`: the name of its run,
    or of the file, with that of the folder around it where two have the same; `None` if it has
    none.

    Args:
        columns: those of the run of `score`, in their order, and `inputs` those of its run.json.

    Raises:
        InputError: if the column is about other conversations.
    """
    # A column has the name under which its run was given, which may be a link.
    names = (*_columns_of(path), *_columns_of(path.resolve()))
    # The runs come first in both. The names of inputs are relative to where they were scored.
    scored = dict(zip(columns, inputs.values(), strict=False))
    column = next((name for name in names if name in scored), None)
    # Not of any input: another of the runs may have got this name since, with the same ids.
    if column and file_hash(path) != scored[column]:
        raise InputError(
            f"{score} is about other conversations than those in {path} now; score these (its "
            "command, with --force), or leave one of them out"
        )
    return column


def _columns_of(path: Path) -> tuple[str, str]:
    """Return what the column of a file of conversations may be called."""
    place = path.parent if path.name == "conversations.jsonl" else path
    return place.name, f"{place.resolve().parent.name}/{place.name}"


def cell_folder(grid: Path, named: str) -> Path:
    """Return the folder of a cell in that of a run of `evaluate`, by what its results say. They may
    be of somebody else, so it is never another place."""
    return grid / CELLS / Path(named).name


def is_stale(folder: Path, path: Path) -> bool:
    """Return whether the run in a folder is of a file that has changed since."""
    if not (folder / "run.json").is_file():
        return False
    used: Mapping[str, str] = read_json(folder / "run.json")["inputs"]
    return used.get(str(path)) != file_hash(path)


def take_over(folder: Path, path: Path) -> None:
    """Let the run in a folder go on, unfinished, with a file that has changed since: all that it
    wrote is kept."""
    (folder / "results.json").unlink(missing_ok=True)
    record = read_json(folder / "run.json")
    record["inputs"][str(path)] = file_hash(path)
    write_json(folder / "run.json", record)


def discard(folder: Path) -> None:
    """Delete the run in a folder. run.json goes last, so that a kill leaves a run."""
    for path in _contents(folder):
        if path.name != "run.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "run.json").unlink()


def rename_input(folder: Path, path: Path) -> None:
    """Let the run in a folder know a file under the name that it has now, if both were moved or are
    named from elsewhere."""
    if not (folder / "run.json").is_file():
        return
    record = read_json(folder / "run.json")

    def now(name: Any, kind: str = "") -> Any:
        is_it = isinstance(name, str) and Path(name).parts[-2:] == path.parts[-2:]
        return f"{kind}{path}" if is_it and name.startswith(kind) else name

    inputs = {now(name): hash for name, hash in record["inputs"].items()}
    options = dict(record["options"])
    if "user" in options:
        options["user"] = now(options["user"], "replay:")
    if inputs != record["inputs"] or options != record["options"]:
        write_json(
            folder / "run.json", {**record, "inputs": inputs, "options": options}
        )


def conversations_file(path: Path, split: str = "test") -> Path:
    """Return the file itself, or the conversations of a run folder: `conversations.jsonl`, else
    the file of the split.

    Raises:
        InputError: if there is no such file, or the run is not finished.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(
                f"{path} does not exist; give a run folder or a file of conversations"
            )
        return path
    _check_readable(path)
    for name in ("conversations.jsonl", f"{split}.jsonl"):
        file = path / name
        if file.is_file():
            if not file.stat().st_size:
                raise InputError(
                    f"{file} has no conversations (too few people?); give another file or other "
                    f"--shares"
                )
            return file
    advice = "the folder of a run"
    if (path / "respond/conversations.jsonl").is_file():
        advice = f"one of the runs in it, such as {path / 'respond'}"
    raise InputError(
        f"{path} has neither conversations.jsonl nor {split}.jsonl; give {advice}"
    )


def _check_readable(folder: Path) -> None:
    """Raise `InputError` if a folder has an unfinished run, one of another version, or links that
    lead out of it."""
    if (folder / "run.json").is_file():
        _check_inside(folder)
        _check_format(folder, read_json(folder / "run.json"))
        if not (folder / "results.json").is_file():
            raise InputError(f"{folder} is not complete; run its command again first")


def split_files(path: Path) -> dict[str, Path]:
    """The files of a folder by split, or `conversations_file` if it has no splits."""
    _check_readable(path)
    files = {split: path / f"{split}.jsonl" for split in SPLITS}
    found = {split: file for split, file in files.items() if file.is_file()}
    return found or {"conversations": conversations_file(path)}


# --- files that a run writes ----------------------------------------------------------------------


class Outputs:
    """Line files that are committed together, so that they are consistent after a crash.

    `commit(state)` makes everything written so far, and `state`, permanent. Opening them again
    removes what was written after the last commit and restores `state`. `progress.json` has the
    sizes.
    """

    def __init__(self, run: Run, *names: str) -> None:
        self._progress = run.path("progress.json")
        saved = read_json(self._progress) if self._progress.is_file() else {}
        self.state: dict[str, Any] = saved.get("state", {})
        self._files: dict[str, IO[bytes]] = {}
        for name in names:
            path = run.path(name)
            path.touch()
            os.truncate(path, saved.get("sizes", {}).get(name, 0))
            self._files[name] = path.open("ab", buffering=BUFFER)

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Append a line to one of the files."""
        with naming(self._files[name].name):
            self._files[name].write(dump(record) + b"\n")

    def commit(self, state: Mapping[str, Any]) -> None:
        """Make everything written so far permanent."""
        for file in self._files.values():
            with naming(file.name):
                file.flush()
                os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in self._files.items()}
        write_json(self._progress, {"sizes": sizes, "state": state})

    def close(self) -> None:
        """Close the files after the last line, and remove the progress file."""
        for file in self._files.values():
            with naming(file.name):
                file.close()
        self._progress.unlink(missing_ok=True)


def measure_record(measure: Measure) -> dict[str, Any]:
    """Return a measure in the form of `results.json`; its rows go to `scores.jsonl`.

    `why` is the reason of the measure, else the most frequent one of missing rows, or empty.
    """
    reasons = Counter(row.why for row in measure.rows if row.stats is None and row.why)
    why = next((reason for reason, _ in reasons.most_common(1)), "")
    return {
        "name": measure.name,
        "value": measure.value,
        "low": measure.low,
        "high": measure.high,
        "n": measure.n,
        "clusters": measure.clusters,
        "missing": measure.missing,
        "better": measure.better,
        "unit": measure.unit,
        "why": measure.why or why,
    }


REPLACED = ".replaced"
"""The folder in a run folder for the run that `--force` replaces, until the new one is complete."""

_SAVED = "adapter checkpoint model"
_HUB = "hub/data hub/README.md"
_WRITTEN = {
    "import": "conversations.jsonl dropped.jsonl",
    "clean": f"train.jsonl valid.jsonl test.jsonl dropped.jsonl {_HUB}",
    "intents": "train.jsonl valid.jsonl test.jsonl conversations.jsonl asked.jsonl usage.jsonl "
    + _HUB,
    "respond": "conversations.jsonl turns.jsonl usage.jsonl",
    "simulate": "conversations.jsonl turns.jsonl usage.jsonl",
    "score": "scores.jsonl grades.jsonl facts.jsonl added.jsonl asked.jsonl usage.jsonl",
    "compare": "failed.jsonl",
    "tasks": "tasks.jsonl asked.jsonl usage.jsonl",
    "serve": "conversations.jsonl ratings.jsonl",
    "judge": "verdicts.jsonl asked.jsonl usage.jsonl",
    "assess": "reference.jsonl role.jsonl intent.jsonl respond simulate ppl role intent judge-role "
    "judge-intent detect score report.html report.md report.tex",
    "evaluate": "cells",
    "ppl": "scores.jsonl rows.jsonl usage.jsonl",
    "detect": "scores.jsonl detections.jsonl usage.jsonl",
    "train": f"log.jsonl rows rows-valid tokenizer {_SAVED}",
}
"""What the run of each verb writes into its folder, beside the files of every run. Trackers add to
their folders, which stay."""
_ONLY_WITH = {
    "hub/data": "hub",
    "hub/README.md": "hub",
    "adapter": "lora",
    "rows-valid": "valid",
}
"""What a run writes only if it has an option."""


def _written(verb: str, options: Mapping[str, Any]) -> list[str]:
    """Return what a run of the verb may write, the results first and run.json last."""
    names = [
        name
        for name in _WRITTEN.get(verb, "").split()
        if name not in _ONLY_WITH or options.get(_ONLY_WITH[name])
    ]
    for name in _SAVED.split():
        if name in names:  # a save that was cut off; see `checkpoints.replacing_folder`
            names += [f"{name}.old", f"{name}.partial"]
    return ["results.json", "progress.json", *names, "run.json"]


def _contents(folder: Path) -> list[Path]:
    """Return the files of a folder, except hidden ones."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _set_aside(folder: Path, verb: str, options: Mapping[str, Any]) -> None:
    """Move what the earlier run wrote to a hidden folder, from where it is deleted once the new run
    is complete; anything else in the folder stays. If an earlier attempt set a run aside already,
    what that attempt wrote is deleted, unless it has results.

    run.json goes last, so a kill at any point leaves a folder that `--force` goes on from: without
    run.json in the hidden folder, not everything is there.

    Args:
        verb, options: those of the new run.

    Raises:
        InputError: if the folder is no run folder, has results beside a run that was set aside, or
        the new run would overwrite what the earlier one did not write.
    """
    written = _earlier_files(folder)
    for name in _written(verb, options):
        if (folder / name).exists() and name not in written:
            raise InputError(
                f"--force would overwrite {folder / name}, which the run there did not write; move "
                "it, or choose another --out"
            )
    replaced = folder / REPLACED
    is_aside = (replaced / "run.json").is_file()
    if (folder / "results.json").exists():
        if is_aside and len(_contents(replaced)) > 1:
            raise InputError(
                f"{folder} has a run with failures, which its command tries again, and {replaced} "
                "the run before it; choose another --out, or delete the latter"
            )
        is_aside = (
            False  # `finish` was cut off, or --force began the run in an empty folder
        )
        shutil.rmtree(replaced, ignore_errors=True)
    replaced.mkdir(exist_ok=True)
    if not written and not is_aside:
        write_json(replaced / "run.json", {})  # it says that --force began the run
    for name in written:
        path, aside = folder / name, replaced / name
        if path.exists() and not is_aside:
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_same_attempt(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Return whether `--force` began the run in a folder, it is the requested one, and it is not
    complete: its answers were paid for, and the same command resumes it."""
    manifest_path = folder / "run.json"
    if not (manifest_path.is_file() and (folder / REPLACED / "run.json").is_file()):
        return False
    try:
        check_same(folder, extended(read_json(manifest_path), asked), asked)
    except InputError:
        return False
    return True


def _earlier_files(folder: Path) -> list[str]:
    """Return what the run in a folder may have written; nothing if it was set aside just now."""
    if not (folder / "run.json").is_file():
        return []
    manifest = read_json(folder / "run.json")
    verb, options = manifest.get("verb"), manifest.get("options")
    if verb not in _WRITTEN or not isinstance(options, dict):
        raise InputError(
            f"{folder / 'run.json'} is not that of a run, so --force deletes nothing; choose "
            "another --out"
        )
    return _written(verb, options)


def _is_being_set_aside(folder: Path) -> bool:
    """Return whether `_set_aside` was cut off: one of the two runs has no run.json."""
    replaced = folder / REPLACED
    if not _contents(replaced) or (folder / "results.json").is_file():
        return False
    return not all((each / "run.json").is_file() for each in (folder, replaced))


def _check_outside(folder: Path, inputs: Iterable[Path]) -> None:
    """Raise `InputError` if an input lies in the folder, or a link to it does."""
    own = folder.resolve()
    for path in inputs:
        named = {parent.resolve() for parent in path.absolute().parents}
        if own in named.union(path.resolve().parents):
            raise InputError(
                f"--force would delete {path}, which this run reads; choose another --out"
            )


def _check_links(folder: Path) -> None:
    """Raise `InputError` if there is a link in a run folder, which may come from somebody else: a
    run would change what the link points to."""
    for path in _links(folder):
        # The tracker makes links there that it never writes through.
        if path.parent != folder / "wandb":
            raise InputError(
                f"{path} is a link, and a run would change what it points to; delete it, or "
                "choose another --out"
            )


def _check_inside(folder: Path) -> None:
    """Raise `InputError` if a link in a run folder leads out of it: the run may come from somebody
    else, and what is shown or exported of it would have the reader's own files."""
    own = os.path.realpath(folder)
    for path in _links(folder):
        is_read = path.relative_to(folder).parts[0] not in (*_SAVED.split(), "wandb")
        if is_read and not Path(os.path.realpath(path)).is_relative_to(own):
            raise InputError(
                f"{path} is a link that leads out of {folder}, and is not followed; put what it "
                "points to in its place, or leave the folder out"
            )


def _links(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        paths = (Path(parent, name) for name in (*folders, *files))
        yield from filter(Path.is_symlink, paths)


def _check_format(folder: Path, manifest: Mapping[str, Any]) -> None:
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{folder} was written by another version of userlm, whose files this version cannot "
            f"read; run its command again with another --out"
        )


def _lock(folder: Path) -> IO[bytes] | None:
    """Keep other processes out of a run folder while the returned file is open (if the system has
    locks)."""
    try:
        import fcntl
    except ImportError:
        return None
    file = (folder / ".lock").open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise InputError(
            f"another process is working in {folder}; wait for it or choose another --out"
        ) from None
    except OSError:  # a file system without locks
        return None
    return file

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
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from userlm.json_files import dump, naming, read_json, replacing, take, write_json
from userlm.lines import BUFFER, parse_line
from userlm.manifest import FORMAT, check_same, environment, request
from userlm.rows import SPLITS
from userlm.text import has_words
from userlm.types import Conversation, InputError, Measure, Reply, Speaker

T = TypeVar("T")


class Run:
    """A run folder that is open for writing. No other process can open it meanwhile."""

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], lock: IO[bytes] | None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._lock = lock

    @classmethod
    def open(
        cls,
        folder: str | Path,
        verb: str,
        options: Mapping[str, Any],
        inputs: Iterable[str | Path] = (),
        stamps: Mapping[str, str] | None = None,
        anew: bool = False,
    ) -> Run:
        """Start a run, or resume the same one.

        Args:
            inputs: files; their contents are hashed.
            stamps: inputs that are not files, each with a text that changes with its contents.
            anew: set aside what an earlier run left in the folder, whatever it was, until this one
                is complete.

        Raises:
            InputError: if the folder has a run with other options or inputs, or is not a run
            folder.
        """
        folder = Path(folder)
        asked = request(verb, options, [Path(path) for path in inputs], stamps or {})
        manifest_path = folder / "run.json"
        is_file = folder.exists() and not folder.is_dir()
        if is_file or (_contents(folder) and not manifest_path.is_file()):
            raise InputError(
                f"{folder} exists and is not a run folder; choose another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        # Lock the folder before anything in it is read or changed. A run that wrote only its
        # options, for example because of a wrong address, can start over.
        lock = _lock(folder)
        if anew:
            _set_aside(folder, inputs)
        if manifest_path.is_file() and _contents(folder) != [manifest_path]:
            manifest = read_json(manifest_path)
            _check_format(folder, manifest)
            check_same(folder, manifest, asked)
            return cls(folder, manifest, lock)
        manifest = {**asked, **environment()}
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
    def results(self) -> dict[str, Any] | None:
        """The results of the finished run; `None` while it is not complete."""
        path = self.path("results.json")
        return read_json(path) if path.is_file() else None

    def finish(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Write the results, and delete the run that this one replaces. This is the last step of a
        run."""
        write_json(self.path("results.json"), results)
        shutil.rmtree(self.path(REPLACED), ignore_errors=True)
        return dict(results)


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
    raise InputError(
        f"{path} has neither conversations.jsonl nor {split}.jsonl; give the folder of a run"
    )


def _check_readable(folder: Path) -> None:
    """Raise `InputError` if a folder has an unfinished run, or one of another version."""
    if (folder / "run.json").is_file():
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


class Journal:
    """A line file that threads append to. An incomplete last line from a crash is removed on
    opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.touch()
        self._whole_bytes = _whole_lines(path)
        os.truncate(path, self._whole_bytes)
        self._file = path.open("ab")

    def read(self, parse: Callable[[dict[str, Any]], T]) -> Iterator[T]:
        """Yield the parsed lines of an earlier attempt; see `lines`."""
        for _, parsed in self.lines(parse):
            yield parsed

    def lines(self, parse: Callable[[dict[str, Any]], T]) -> Iterator[tuple[int, T]]:
        """Yield the parsed lines of an earlier attempt, each with its offset in bytes.

        Args:
            parse: raises `ValueError` for a line that this program did not write, as `take` does.

        Raises:
            InputError: if `parse` does; it names the line.
        """
        lines = _lines_with_offsets(self.path)
        for number, (offset, _, row) in enumerate(lines, 1):
            if offset >= self._whole_bytes:
                return
            try:
                parsed = parse(row)
            except (ValueError, TypeError) as error:
                raise _damaged(self.path, number, f": {error}") from None
            yield offset, parsed

    def line(self, offset: int) -> dict[str, Any]:
        """The line at an offset in bytes."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return parse_line(0, file.readline()).row

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a line and flush it to the operating system."""
        with self._lock, naming(self.path):
            self._file.write(dump(row) + b"\n")
            self._file.flush()

    def close(self, order: Callable[[Mapping[str, Any]], Any] | None = None) -> None:
        """Close it. With an `order` its lines are sorted by it, so that the file does not depend on
        the order of threads."""
        self._file.close()
        if order is None:
            return
        lines = _lines_with_offsets(self.path)
        places = sorted((order(row), offset, size) for offset, size, row in lines)
        with (
            self.path.open("rb") as file,
            replacing(self.path) as partial,
            partial.open("wb", BUFFER) as ordered,
        ):
            for _, offset, size in places:
                file.seek(offset)
                ordered.write(file.read(size))


def _whole_lines(path: Path) -> int:
    """The number of bytes up to the end of the last whole line."""
    size = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n") or parse_line(0, raw).error:
                if file.read(1):  # a crash damages only the last line
                    raise _damaged(path, number)
                break
            size += len(raw)
    return size


def _damaged(path: Path, number: int, why: str = "") -> InputError:
    return InputError(
        f"{path}, line {number} is damaged{why}; repair it, or begin anew with --force"
    )


def _lines_with_offsets(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield each line of a journal: its offset and its size in bytes, and its row."""
    offset = 0
    with path.open("rb", buffering=BUFFER) as file:
        for raw in file:
            yield offset, len(raw), parse_line(0, raw).row
            offset += len(raw)


def _answer_key(row: Mapping[str, Any]) -> tuple[str, int]:
    """The conversation and the turn of a line of `Answers`; `ValueError` if it is none."""
    for name, kind in (("text", str), ("stop", str), ("meta", dict)):
        take(row, name, kind, default=None)
    return take(row, "id", str), take(row, "n", int)


class Answers:
    """The answered turns of a run, one line of a journal each. Only offsets are kept in memory."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._offsets = {key: offset for offset, key in journal.lines(_answer_key)}

    def find(self, id: str, n: int) -> Reply | None:
        """The recorded reply at turn `n` of a conversation, or `None`."""
        offset = self._offsets.get((id, n))
        if offset is None:
            return None
        row = self._journal.line(offset)
        return Reply(row.get("text") or "", row.get("stop"), row.get("meta") or {})

    def add(self, conversation: Conversation, reply: Reply) -> None:
        """Record the reply to a conversation."""
        row: dict[str, Any] = {
            "id": conversation.id,
            "n": len(conversation.turns),
            "role": conversation.next_role,
            "text": reply.text,
        }
        if reply.stop:
            row["stop"] = reply.stop
        if reply.meta:
            row["meta"] = dict(reply.meta)
        self._journal.add(row)


class Recorded:
    """A speaker whose replies are recorded. A recorded reply is not generated again."""

    def __init__(self, speaker: Speaker, answers: Answers) -> None:
        self._speaker = speaker
        self._answers = answers

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the recorded reply, or get and record the speaker's reply."""
        recorded = self._answers.find(conversation.id, len(conversation.turns))
        if recorded:
            return recorded
        reply = self._speaker.reply(conversation)
        # other types are errors, which the caller reports
        if isinstance(reply, Reply) and (has_words(reply.text) or reply.stop):
            self._answers.add(conversation, reply)
        return reply


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
        "missing": measure.missing,
        "better": measure.better,
        "unit": measure.unit,
        "why": measure.why or why,
    }


REPLACED = ".replaced"
"""The folder in a run folder for the run that `--force` replaces, until the new one is complete."""

_JSON_LINES = (
    "asked conversations dropped log scores test train turns usage valid".split()
)
_WRITTEN = frozenset(
    (
        *("run.json", "results.json", "progress.json", "report.html", "report.md"),
        *(f"{name}.jsonl" for name in _JSON_LINES),
        *("adapter", "checkpoint", "hub", "model", "rows", "rows-valid", "tokenizer"),
        # of trackers
        *("userlm", "mlruns", "wandb"),
    )
)
"""What runs write into their folders."""


def _contents(folder: Path) -> list[Path]:
    """Return the files of a folder, except hidden ones."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _set_aside(folder: Path, inputs: Iterable[str | Path]) -> None:
    """Move what an earlier run wrote to a hidden folder, from where it is deleted once the new run
    is complete; anything else in the folder stays. If an earlier attempt set a run aside already,
    what that attempt wrote is deleted.

    Raises:
        InputError: if the folder is no run folder, or if the new run reads from it.
    """
    if not _contents(folder):
        return
    manifest = read_json(folder / "run.json")
    if not (isinstance(manifest.get("verb"), str) and "options" in manifest):
        raise InputError(
            f"{folder / 'run.json'} is not that of a run, so --force deletes nothing; choose "
            "another --out"
        )
    own = folder.resolve()
    for path in inputs:
        if own in Path(path).resolve().parents:
            raise InputError(
                f"--force would delete {path}, which this run reads; choose another --out"
            )
    replaced = folder / REPLACED
    is_first = not replaced.exists()
    replaced.mkdir(exist_ok=True)
    for path in _contents(folder):
        if path.name not in _WRITTEN:
            continue
        if is_first:
            path.rename(replaced / path.name)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


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

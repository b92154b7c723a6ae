"""The run folder: the interface between stages.

    run.json             written first: verb, options, inputs with their hashes, versions, host
    turns.jsonl          a line for each answered call, appended as it comes
    conversations.jsonl  a line for each finished conversation
    results.json         written last; its presence means "complete"

A folder that holds `run.json` without `results.json` was interrupted. The same command resumes it,
and ends with the same files as an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from userlm import prompts
from userlm.rows import BUFFER, dump, naming, parse_line, read_json, replacing, write_json
from userlm.types import Conversation, InputError, Measure, Reply, Speaker


class Run:
    """One folder, one truth: what was asked, what was answered, what came out."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], lock: IO[bytes] | None) -> None:
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
    ) -> Run:
        """Begin a run, or take up the same one again.

        Args:
            inputs: files, whose contents are hashed.
            stamps: inputs that are no files, each with a text that changes when their contents do.

        Raises:
            InputError: if the folder holds a run with other options or inputs, or anything else.
        """
        folder, paths = Path(folder), [Path(path) for path in inputs]
        if any(re.search(r"(?i)https?:[^\s#]*@", str(value)) for value in options.values()):
            raise InputError("a URL with a password is not taken, since options are written down")
        for path in paths:
            if not path.is_file():
                raise InputError(f"{path} does not exist")
        asked: dict[str, Any] = {
            "verb": verb,
            "options": {key: _json_value(value) for key, value in options.items()},
            "inputs": {str(path): _sha256(path) for path in paths} | dict(stamps or {}),
        }
        manifest_path = folder / "run.json"
        begun = (
            [path for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
        )
        if (begun and not manifest_path.is_file()) or (folder.exists() and not folder.is_dir()):
            raise InputError(f"{folder} exists and is no run folder; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)  # before anything in it is looked at or changed
        begun = [path for path in folder.iterdir() if path.name[0] != "."]
        if begun == [manifest_path]:  # it got no further, such as for an address that was wrong
            manifest_path.unlink()
        elif manifest_path.is_file():
            manifest = read_json(manifest_path)
            manifest["inputs"] = list(manifest.get("inputs", {}).items())  # their order counts, too
            asked["inputs"] = list(asked["inputs"].items())
            for part in ("verb", "options", "inputs"):
                if manifest.get(part) != asked[part]:
                    was, now = _first_difference(manifest.get(part), asked[part])
                    raise InputError(
                        f"{folder} holds a run with other {part} ({was} there, {now} now); "
                        "choose another --out or delete the folder"
                    )
            return cls(folder, manifest, lock)
        manifest = {**asked, **_surroundings()}
        write_json(manifest_path, manifest)
        return cls(folder, manifest, lock)

    def path(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.folder / name

    @property
    def results(self) -> dict[str, Any] | None:
        """What the finished run found; `None` while it is not complete."""
        path = self.path("results.json")
        return read_json(path) if path.is_file() else None

    def finish(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Write the results, last of all."""
        write_json(self.path("results.json"), results)
        return dict(results)


class Outputs:
    """Line files that grow together and survive a crash together.

    `commit(state)` makes all that was written so far, and `state`, last. Opening them again cuts
    off what came after the last commit and gives `state` back. Numbers of bytes are kept in
    `progress.json`.
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
        """Make everything up to here last."""
        for file in self._files.values():
            with naming(file.name):
                file.flush()
                os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in self._files.items()}
        write_json(self._progress, {"sizes": sizes, "state": state})

    def close(self) -> None:
        """Close the files after the last commit; there is no progress to remember any more."""
        for file in self._files.values():
            with naming(file.name):
                file.close()
        self._progress.unlink(missing_ok=True)


class Journal:
    """A line file to which threads append; a line torn by a crash is cut off when it is opened
    again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.touch()
        self._whole = 0
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n") or parse_line(0, raw).error:
                    if file.read(1):  # no crash of ours leaves that
                        raise InputError(
                            f"{path}, line {number} is damaged; mend it, or delete the folder"
                        )
                    break
                self._whole += len(raw)
        os.truncate(path, self._whole)
        self._file = path.open("ab")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What an earlier attempt wrote."""
        return [row for _, row in self.lines()]

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """What an earlier attempt wrote, line by line, and where each lies."""
        for at, _, row in _places(self.path):
            if at >= self._whole:
                return
            yield at, row

    def line(self, at: int) -> dict[str, Any]:
        """The line that lies there."""
        with self.path.open("rb") as file:
            file.seek(at)
            return parse_line(0, file.readline()).row

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a line; it is on its way to the disk when this returns."""
        with self._lock, naming(self.path):
            self._file.write(dump(row) + b"\n")
            self._file.flush()

    def close(self, order: Callable[[Mapping[str, Any]], Any] | None = None) -> None:
        """Close it; with an `order`, its lines are put in it, so that they do not tell which thread
        was first."""
        self._file.close()
        if order is None:
            return
        places = sorted((order(row), at, size) for at, size, row in _places(self.path))
        with (
            self.path.open("rb") as file,
            replacing(self.path) as new,
            new.open("wb", BUFFER) as ordered,
        ):
            for _, at, size in places:
                file.seek(at)
                ordered.write(file.read(size))


def _places(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Where each line of a journal lies, how many bytes it has, and its row."""
    at = 0
    with path.open("rb", buffering=BUFFER) as file:
        for raw in file:
            yield at, len(raw), parse_line(0, raw).row
            at += len(raw)


class Answers:
    """The turns of a run that were answered, each on a line of a journal; only where it lies is
    kept in memory."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._places = {(row["id"], row["n"]): at for at, row in journal.lines()}

    def find(self, id: str, n: int) -> Reply | None:
        """What an earlier attempt got as the turn at this place of a conversation; `None`:
        nothing."""
        at = self._places.get((id, n))
        if at is None:
            return None
        row = self._journal.line(at)
        return Reply(row["text"], row.get("stop"), row.get("meta") or {})

    def add(self, conversation: Conversation, reply: Reply) -> None:
        """Write down what was answered."""
        row = {"id": conversation.id, "n": len(conversation.turns), "role": conversation.next_role}
        optional = {"stop": reply.stop, "meta": dict(reply.meta)}
        said = {"text": reply.text} | {name: value for name, value in optional.items() if value}
        self._journal.add(row | said)


class Recorded:
    """A speaker whose answers are kept: what was answered in an earlier attempt is not asked
    again."""

    def __init__(self, speaker: Speaker, answers: Answers) -> None:
        self._speaker, self._answers = speaker, answers

    def reply(self, conversation: Conversation, /) -> Reply:
        """The recorded answer, or the speaker's own, which is then recorded."""
        if known := self._answers.find(conversation.id, len(conversation.turns)):
            return known
        reply = self._speaker.reply(conversation)
        if isinstance(reply, Reply) and (
            reply.text or reply.stop
        ):  # else whoever asked will say what is wrong
            self._answers.add(conversation, reply)
        return reply


def measure_record(measure: Measure) -> dict[str, Any]:
    """A measure as `results.json` holds it; its rows go to `scores.jsonl`.

    `why` is the most frequent reason of missing rows, or empty.
    """
    why = Counter(row.why for row in measure.rows if row.stats is None and row.why).most_common(1)
    return {
        "name": measure.name,
        "value": measure.value,
        "low": measure.low,
        "high": measure.high,
        "n": measure.n,
        "missing": measure.missing,
        "better": measure.better,
        "unit": measure.unit,
        "why": why[0][0] if why else "",
    }


def verb_of(folder: Path) -> str | None:
    """Which verb made a run folder; `None` if it is none."""
    path = folder / "run.json"
    return str(read_json(path).get("verb")) if path.is_file() else None


def _lock(folder: Path) -> IO[bytes] | None:
    """Keep other processes out of a run folder for as long as the file is open (where the system
    can)."""
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


def _json_value(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return str(value)


def _first_difference(was: Any, now: Any) -> tuple[str, str]:
    if isinstance(was, list) and isinstance(now, list):
        was_inputs, now_inputs = (", ".join(path for path, _ in pairs) for pairs in (was, now))
        if was_inputs != now_inputs:
            return was_inputs, now_inputs
        changed = next(path for (path, a), (_, b) in zip(was, now, strict=True) if a != b)
        return f"{changed} as it was", f"{changed} changed"
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *now]:
            if was.get(key) != now.get(key):
                return f"{key}={was.get(key)!r}", f"{key}={now.get(key)!r}"
    return repr(was), repr(now)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _surroundings() -> dict[str, Any]:
    """What the results may depend on besides options and inputs."""
    versions = {"python": platform.python_version()}
    for name in ("userlm", "torch", "transformers", "tokenizers", "numpy", "openai"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    host = f"{platform.machine()}, {os.cpu_count()} cores"
    return {"versions": versions, "git": _commit(), "host": host, "prompts": prompts.hashes()}


def _commit() -> str | None:
    """The commit of the package, when it runs from a checkout."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

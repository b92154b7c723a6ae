"""Conversations in files, and the run folder: the interface between stages.

    run.json             written first: verb, options, inputs with their hashes, versions, machine
    turns.jsonl          a line for each answered call, appended as it comes
    conversations.jsonl  a line for each finished conversation
    results.json         written last; its presence means "complete"

A folder that holds `run.json` without `results.json` was interrupted. The same command takes it up again, and
ends with the same files as if nothing had happened.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import re
import subprocess
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from typing import IO, Any

from userlm import prompts
from userlm.types import Conversation, InputError, Measure, Reply, Speaker, Turn, encodable

try:
    import orjson
except ModuleNotFoundError:  # as on a machine that only trains: slower, with the same result
    orjson = None  # type: ignore[assignment]

SPLITS = ("train", "valid", "test")
BUFFER = 1 << 20  # bytes: a conversation fills the usual buffer alone


# --- conversations ---------------------------------------------------------------------------------------


_FIELDS = frozenset(("id", "turns", "intent", "user", "stop", "ended", "meta"))


def to_record(conversation: Conversation) -> dict[str, Any]:
    """A conversation as a JSON object; what is empty is left out."""
    turns = [
        {"role": t.role, "text": t.text} | ({"meta": dict(t.meta)} if t.meta else {}) for t in conversation.turns
    ]
    record: dict[str, Any] = {"id": conversation.id, "turns": turns}
    optional = {
        "intent": conversation.intent,
        "user": conversation.user,
        "stop": conversation.stop,
        "ended": conversation.ended,
        "meta": dict(conversation.meta),
    }
    return record | {key: value for key, value in optional.items() if value}


def from_record(record: Mapping[str, Any]) -> Conversation:
    """The conversation that `to_record` wrote; raises `ValueError` that names the wrong field."""
    if unknown := record.keys() - _FIELDS:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}; if this is a log, run `userlm import` first")
    turns = take(record, "turns", list)
    spoken = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise ValueError(f"turns[{i}] is not an object")
        text, meta = turn.get("text"), turn.get("meta")
        if not isinstance(text, str) or (meta is not None and not isinstance(meta, dict)):  # most are well
            text = take(turn, "text", str, f"turns[{i}].text")
            meta = take(turn, "meta", dict, f"turns[{i}].meta", default={})
        spoken.append(Turn(turn.get("role", ""), text, meta or {}))
    return Conversation(
        id=take(record, "id", str),
        turns=tuple(spoken),
        intent=take(record, "intent", str, default=None) or None,
        user=take(record, "user", str, default=None) or None,
        stop=take(record, "stop", str, default=None),
        ended=take(record, "ended", bool, default=False),
        meta=take(record, "meta", dict, default={}),
    )


def read_conversations(path: str | Path, may_be_empty: bool = False) -> Iterator[Conversation]:
    """Conversations from a `.jsonl`, `.jsonl.gz` or `.parquet` file, as this package writes them.

    Args:
        may_be_empty: see `read_rows`.

    Raises:
        InputError: naming file, line and field.
    """
    seen: set[int] = set()  # ids, by their hashes: a file may hold millions
    for line in read_rows(path, may_be_empty):
        if line.error:
            raise InputError(f"{path}, line {line.number}: {line.error}")
        try:
            conversation = from_record(line.row)
        except ValueError as error:
            raise InputError(f"{path}, line {line.number}: {error}") from None
        if hash(conversation.id) in seen:
            first = next(one.number for one in read_rows(path) if one.row.get("id") == conversation.id)
            raise InputError(
                f"{path}, line {line.number}: id {conversation.id!r} was already used on line {first}; "
                "give each conversation its own"
            )
        seen.add(hash(conversation.id))
        yield conversation


def write_conversations(path: str | Path, conversations: Iterable[Conversation]) -> int:
    """Write them to a `.jsonl`, `.jsonl.gz` or `.parquet` file, all or nothing; how many there were."""
    path = Path(path)
    if path.suffix == ".parquet":
        return _write_parquet(path, conversations)
    count = 0
    with replacing(path) as partial, _open_write(partial, path) as file:
        for conversation in conversations:
            file.write(dump(to_record(conversation)) + b"\n")
            count += 1
    return count


def _write_parquet(path: Path, conversations: Iterable[Conversation]) -> int:
    import polars as pl

    rows = [
        {
            "id": c.id,
            "turns": [{"role": t.role, "text": t.text, "meta": dumps(dict(t.meta))} for t in c.turns],
            "intent": c.intent,
            "user": c.user,
            "stop": c.stop,
            "ended": c.ended,
            "meta": dumps(dict(c.meta)),
        }
        for c in conversations
    ]
    with replacing(path) as partial:
        pl.DataFrame(rows, schema=_parquet_columns()).write_parquet(partial)
    return len(rows)


def _parquet_columns() -> dict[str, Any]:
    import polars as pl

    text = pl.String()
    turn = pl.Struct({"role": text, "text": text, "meta": text})
    columns = dict.fromkeys(("id", "intent", "user", "stop", "meta"), text)
    return {**columns, "turns": pl.List(turn), "ended": pl.Boolean()}


# --- rows of any file ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file: its object, or its text and what is wrong with it, in two words and in a sentence."""

    number: int
    row: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    error: str = ""
    raw: str = ""


KINDS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""The files that `read_rows` reads."""


def read_rows(
    path: str | Path,
    may_be_empty: bool = False,
    unread: Callable[[Collection[str]], Collection[str]] = lambda columns: (),
    upto: int | None = None,
) -> Iterator[Line]:
    """The objects of a file of one of the `KINDS`, bad lines among them, one by one; of a file that grows
    meanwhile those that it held when reading began. Only `.json` (an array, or one object) is read at once.

    Args:
        may_be_empty: a file without a row is fine, as in a run folder; else it is an error.
        unread: given the columns of a parquet file, those to leave out.
        upto: of a file of lines read at most so many bytes: what it held earlier.

    Raises:
        InputError: for a file that is missing, empty, cut short or of an unknown kind.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {kind}; give a file of a kind that is known ({', '.join(KINDS)})")
    if (size := path.stat().st_size) == 0:
        if may_be_empty:
            return
        raise InputError(f"{path} is empty; give a file with one conversation a line")
    if path.suffix == ".parquet":
        yield from _read_parquet(path, may_be_empty, unread)
        return
    if not path.name.endswith(KINDS):
        raise InputError(f"{path}: its kind is unknown; known are {', '.join(KINDS)}")
    number, any_text = 0, False
    packed, size = path.suffix == ".gz", size if upto is None else min(size, upto)
    try:
        with path.open("rb", buffering=BUFFER) as whole, _unzipped(whole, size) if packed else whole as file:
            if path.name.endswith((".json", ".json.gz")):
                yield from _read_json(path, file.read())
                return
            for number, raw in enumerate(file, 1):
                if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise InputError(f"{path} is UTF-16; turn it to UTF-8: iconv -f UTF-16 -t UTF-8")
                if not packed and (size := size - len(raw)) < 0:  # written since reading began
                    if raw[:size].strip() and not (line := _parse(number, raw[:size])).error:
                        yield line
                    return
                if raw.isspace():
                    continue
                any_text = True
                yield _parse(number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        no_gzip = number == 0 and isinstance(error, gzip.BadGzipFile)
        broken = "is no gzip file" if no_gzip else f"is cut short or damaged after line {number}"
        raise InputError(f"{path} {broken}; fetch it again, or unpack what is left with `gzip -dc`") from None
    if not any_text and not may_be_empty:
        raise InputError(f"{path} holds no lines; give a file with one conversation a line")


def _unzipped(file: IO[bytes], size: int) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=_Upto(file, size), mode="rb")  # type: ignore[call-overload, no-any-return]


class _Upto:
    """The first so many bytes of a file that may grow."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, most: int = -1) -> bytes:
        """At most so many of them."""
        found = self._file.read(self._left if most < 0 else min(most, self._left))
        self._left -= len(found)
        return found


def _read_json(path: Path, raw: bytes) -> Iterator[Line]:
    try:
        value = _loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(value, dict | list):
        raise InputError(f"{path} holds no array and no object; give an array with one conversation an item")
    for number, row in enumerate([value] if isinstance(value, dict) else value, 1):
        if isinstance(row, dict | list) and is_deep(row):
            yield Line(number, reason="nested too deep", error=_DEEP)
        else:
            yield Line(number, row) if isinstance(row, dict) else _no_object(number, row, dumps(row))


def _loads(raw: bytes) -> Any:
    if orjson is not None:
        try:
            return orjson.loads(raw)  # which takes more levels
        except ValueError:
            pass  # as in `_parse`
    return json.loads(raw)


def _parse(number: int, raw: bytes) -> Line:
    if orjson is not None:
        try:
            row = orjson.loads(raw)
        except ValueError:
            pass  # the slow way knows more forms (NaN, lone surrogates) and says what is wrong
        else:
            if isinstance(row, dict):
                if raw.count(b"[") + raw.count(b"{") > DEEPEST and is_deep(row):
                    return Line(number, reason="nested too deep", error=_DEEP, raw=raw.decode().rstrip("\n"))
                return Line(number, row)
            return _no_object(number, row, raw.decode().rstrip("\n"))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        kept = raw.decode("utf-8", "backslashreplace").rstrip("\n")
        where = f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"
        return Line(number, reason="not UTF-8", error=where, raw=kept)
    try:
        row = json.loads(text)
    except RecursionError:
        return Line(number, reason="nested too deep", error=_DEEP, raw=text.rstrip("\n"))
    except ValueError as error:
        where = f" (column {error.colno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        said = f"is not JSON{where}; write one JSON object a line"
        return Line(number, reason="not JSON", error=said, raw=text.rstrip("\n"))
    if isinstance(row, dict) and is_deep(row):
        return Line(number, reason="nested too deep", error=_DEEP, raw=text.rstrip("\n"))
    return Line(number, row) if isinstance(row, dict) else _no_object(number, row, text.rstrip("\n"))


DEEPEST = 200
"""Levels of lists and objects in a row; what is deeper is no log, and cannot be written again."""
_DEEP = f"is nested more than {DEEPEST} levels deep"


def is_deep(value: Any, levels: int = DEEPEST) -> bool:
    """Whether lists and objects lie deeper in each other."""
    level = [value]
    for _ in range(levels):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for several in inner for one in several if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _no_object(number: int, value: Any, raw: str) -> Line:
    kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a number or boolean")
    return Line(number, reason="not an object", error=f"is {kind}, not a JSON object", raw=raw)


def _read_parquet(
    path: Path, may_be_empty: bool, unread: Callable[[Collection[str]], Collection[str]]
) -> Iterator[Line]:
    import polars as pl

    try:
        frame = pl.scan_parquet(path, glob=False)
        schema = frame.collect_schema()
        ours = all(schema.get(name) == kind for name, kind in _parquet_columns().items())
        frame = frame.drop(unread(schema.names()))
        batches = (batch.to_dicts() for batch in frame.collect_batches(chunk_size=500))
        i = 0
        for i, row in enumerate(chain.from_iterable(batches), 1):
            yield _unpack(i, row) if ours else Line(i, row)
        if not i and not may_be_empty:
            raise InputError(f"{path} holds no rows; give a file with one conversation a row")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is no readable parquet file: {reason}") from None


def _unpack(number: int, row: dict[str, Any]) -> Line:
    """A row of our own parquet files, in which `meta` is a text."""
    try:
        for holder in (row, *(turn for turn in row["turns"] or () if turn)):
            holder["meta"] = json.loads(holder["meta"] or "{}")
    except (ValueError, RecursionError):
        return Line(number, reason="not JSON", error="holds a field 'meta' that is not JSON", raw=dumps(row))
    return Line(number, reason="nested too deep", error=_DEEP) if is_deep(row) else Line(number, row)


# --- the run folder --------------------------------------------------------------------------------------


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
            "options": {key: _plain(value) for key, value in options.items()},
            "inputs": {str(path): _sha256(path) for path in paths} | dict(stamps or {}),
        }
        manifest_path = folder / "run.json"
        begun = [path for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
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

    `commit(state)` makes all that was written so far, and `state`, last. Opening them again cuts off what
    came after the last commit and gives `state` back. Numbers of bytes are kept in `progress.json`.
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
    """A line file to which threads append; a line torn by a crash is cut off when it is opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.touch()
        self._whole = 0
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n") or _parse(0, raw).error:
                    if file.read(1):  # no crash of ours leaves that
                        raise InputError(f"{path}, line {number} is damaged; mend it, or delete the folder")
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
            return _parse(0, file.readline()).row

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a line; it is on its way to the disk when this returns."""
        with self._lock, naming(self.path):
            self._file.write(dump(row) + b"\n")
            self._file.flush()

    def close(self, order: Callable[[Mapping[str, Any]], Any] | None = None) -> None:
        """Close it; with an `order`, its lines are put in it, so that they do not tell which thread was first."""
        self._file.close()
        if order is None:
            return
        places = sorted((order(row), at, size) for at, size, row in _places(self.path))
        with self.path.open("rb") as file, replacing(self.path) as new, new.open("wb", BUFFER) as ordered:
            for _, at, size in places:
                file.seek(at)
                ordered.write(file.read(size))


def _places(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Where each line of a journal lies, how many bytes it has, and its row."""
    at = 0
    with path.open("rb", buffering=BUFFER) as file:
        for raw in file:
            yield at, len(raw), _parse(0, raw).row
            at += len(raw)


class Answers:
    """The turns of a run that were answered, each on a line of a journal; only where it lies is kept in memory."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._places = {(row["id"], row["n"]): at for at, row in journal.lines()}

    def find(self, id: str, n: int) -> Reply | None:
        """What an earlier attempt got as the turn at this place of a conversation; `None`: nothing."""
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
    """A speaker whose answers are kept: what was answered in an earlier attempt is not asked again."""

    def __init__(self, speaker: Speaker, answers: Answers) -> None:
        self._speaker, self._answers = speaker, answers

    def reply(self, conversation: Conversation, /) -> Reply:
        """The recorded answer, or the speaker's own, which is then recorded."""
        if known := self._answers.find(conversation.id, len(conversation.turns)):
            return known
        reply = self._speaker.reply(conversation)
        if isinstance(reply, Reply) and (reply.text or reply.stop):  # else whoever asked will say what is wrong
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


# --- small things ----------------------------------------------------------------------------------------


def count_rows(paths: Iterable[Path]) -> int | None:
    """How many rows there are, for a progress bar; `None` where counting would itself take long."""
    count = 0
    for path in paths:
        try:
            if path.suffix == ".parquet":
                count += _count_parquet(path)
                continue
            if not path.name.endswith((".jsonl", ".jsonl.gz")) or path.stat().st_size > 1 << 30:
                return None
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
                while block := file.read(1 << 20):
                    count += block.count(b"\n")
        except (EOFError, zlib.error, OSError):
            return None  # whoever reads it will say what is wrong
    return count


def _count_parquet(path: Path) -> int:
    import polars as pl

    try:
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise OSError from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run folder; raises `InputError` if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}; delete the folder and run its command again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is no JSON object; delete the folder and run its command again")
    return value


def verb_of(folder: Path) -> str | None:
    """Which verb made a run folder; `None` if it is none."""
    path = folder / "run.json"
    return str(read_json(path).get("verb")) if path.is_file() else None


def dumps(value: Any) -> str:
    """JSON on one line, the same bytes for the same value."""
    return dump(value).decode()


def dump(value: Any) -> bytes:
    """`dumps` in UTF-8."""
    if orjson is not None:
        try:
            return orjson.dumps(value, default=str, option=orjson.OPT_PASSTHROUGH_DATETIME)
        except (TypeError, ValueError):
            pass  # a lone surrogate, a key that is no text, a huge number
    text = json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))
    return encodable(text).encode()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, all or nothing."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file, all or nothing."""
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(dump(row) + b"\n" for row in rows)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let a write that fails name its file; of Python's own errors only those of opening do."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming(path):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _open_write(partial: Path, path: Path) -> Iterator[BufferedIOBase]:
    if path.name.endswith(".jsonl.gz"):  # without name or time stamp: the same lines give the same bytes
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
            yield packed
    elif path.suffix == ".jsonl":
        with partial.open("wb") as plain:
            yield plain
    else:
        raise InputError(f"{path}: its kind is unknown; give a .jsonl, .jsonl.gz or .parquet file")


_REQUIRED = object()


def take(row: Mapping[str, Any], name: str, kind: type, shown: str = "", default: Any = _REQUIRED) -> Any:
    """A field of a JSON object; raises `ValueError` that names it when it is missing or of another kind."""
    value = row.get(name)
    if value is None:
        if default is _REQUIRED:
            raise ValueError(f"field {shown or name!r} is missing")
        return default
    if not isinstance(value, kind):
        raise ValueError(f"field {shown or name!r} must be a {kind.__name__}, not {type(value).__name__}")
    return value


def _lock(folder: Path) -> IO[bytes] | None:
    """Keep other processes out of a run folder for as long as the file is open (where the system can)."""
    try:
        import fcntl
    except ImportError:
        return None
    file = (folder / ".lock").open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise InputError(f"another process is working in {folder}; wait for it or choose another --out") from None
    except OSError:  # a file system without locks
        return None
    return file


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
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
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return {"versions": versions, "git": _commit(), "machine": machine, "prompts": prompts.hashes()}


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

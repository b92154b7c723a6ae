"""Where exported conversations come from: the files, the runs that made them, the grades, and the
licences as far as they are known.

Each exported row names its source, `NAME@HASH`; what is known of that stands in the lineage beside
the file. The hash is that of the conversations, so that rows of several exports can be put
together. As in the cards of models and data sets, there are names of files and models, but neither
folders of the host nor addresses of servers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from userlm import assets
from userlm.address import parse
from userlm.data.layouts import SOURCES
from userlm.json_files import read_json, take
from userlm.lines import Line
from userlm.loading import model_folder
from userlm.manifest import file_hash
from userlm.rows import read_parsed
from userlm.runs import (
    Run,
    cell_folder,
    conversations_file,
    scored_column,
    split_files,
)
from userlm.types import Conversation, InputError

GRADES = "grades.jsonl"
"""The file of a run of `score` that says which conversations solved their task."""

OPTIONS = (
    "seed repeats keep_turns max_turns temperature top_p end_threshold guard max_answer_tokens "
    "limit"
).split()
"""The options of a run that a lineage has beside its speakers. Prompts are not among them: they may
be nobody else's business."""

LICENSES = {
    # The cards of WildChat and WildChat-1M-Full; that of 1M first said ImpACT LR.
    "wildchat": "ODC-BY",
    "oasst": "Apache-2.0",  # the card of oasst1
    # The README of the set's own repository.
    "prism": "CC-BY-4.0, answers of models CC-BY-NC-4.0 and as their providers say",
    "lmsys": "LMSYS-Chat-1M Dataset License Agreement",  # the set's card
}
"""The licences of public sets of logs, and where they were read. That of Arena's is not known: its
sets look alike, and their cards differ (of 33k CC-BY-4.0 with answers CC-BY-NC-4.0, of 55k
Apache-2.0, of 140k CC-BY-4.0 with answers as their providers say)."""

_HASH_LENGTH = 12  # characters: enough to tell files apart


@dataclass(frozen=True, slots=True)
class Source:
    """A file of conversations.

    Attributes:
        key: its name and hash, as rows name it.
        lineage: what is known of it.
        grades: whether each graded conversation solved its task, by id; `None`: it cannot be said.
        reasons: what decided it, by id.
        prefix: stands before the ids of its conversations if there are several files, in which the
            same ids may be used.
    """

    path: Path
    key: str
    lineage: Mapping[str, Any]
    grades: Mapping[str, bool | None]
    reasons: Mapping[str, str]
    prefix: str = ""

    def solved(self, conversation: Conversation) -> bool | None:
        """Return whether a conversation solved its task, by its grade, by the harness that it was
        imported from, or since it stopped for that; `None` if nobody says."""
        if conversation.id in self.grades:
            return self.grades[conversation.id]
        said = conversation.meta.get("solved")
        if isinstance(said, bool):
            return said
        return True if conversation.stop == "solved" else None

    @property
    def speakers(self) -> tuple[str, str]:
        """The user and the assistant, empty if they are not known."""
        return self.lineage.get("user") or "", self.lineage.get("assistant") or ""


# --- which files ----------------------------------------------------------------------------------


def find(places: Sequence[Path], scores: Path | None = None) -> list[Source]:
    """Return the files of conversations that runs and files stand for; of a run of `evaluate`,
    those of its cells, without controls and turns that were said again.

    Args:
        scores: a run of `score` with their grades; by default that in the folder of each.

    Raises:
        InputError: if one of them is no finished run or file, has several files, is given twice, or
            has grades that are of other conversations.
    """
    files = [file for place in places for file in _files(place)]
    graded = _read_grades(scores) if scores else None
    sources = [_source(file, graded) for file in files]
    keys = [source.key for source in sources]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{key.partition('@')[0]} is given twice; leave one out")
    if len(sources) == 1:
        return sources
    return [replace(source, prefix=f"{source.key}:") for source in sources]


def _files(place: Path) -> Iterator[Path]:
    if place.is_dir() and (place / "run.json").is_file():
        run = Run.read(place)
        if run.verb == "evaluate":
            asked = run.options.get("assistant") or ()
            for cell in run.results.get("cells", ()):
                named = str(cell["folder"])
                if cell["assistant"] in asked and not named.endswith("--replay"):
                    yield conversations_file(cell_folder(place, named))
            return
        splits = split_files(place)
        if len(splits) > 1:
            names = ", ".join(path.name for path in splits.values())
            first = next(iter(splits.values()))
            raise InputError(f"{place} has {names}; say which, such as {first}")
    yield conversations_file(place)


@dataclass(frozen=True, slots=True)
class _Graded:
    """The grades of a run of `score`.

    Attributes:
        columns: those of its results.json, in their order.
        inputs: those of its run.json.
        runs: whether each conversation was solved, and why, by the names of runs and by ids.
    """

    folder: Path
    columns: Iterable[str]
    inputs: Mapping[str, Any]
    runs: Mapping[str, Mapping[str, tuple[bool | None, str]]]


def _source(path: Path, graded: _Graded | None) -> Source:
    folder = path.parent
    name = folder.resolve().name if path.stem == "conversations" else path.name
    sha256 = file_hash(path)
    lineage: dict[str, Any] = {
        "file": f"{folder.resolve().name}/{path.name}",
        "sha256": sha256,
    }
    if (folder / "run.json").is_file():
        lineage |= _of_run(read_json(folder / "run.json"))
    if graded is None and (folder / "score" / GRADES).is_file():
        graded = _read_grades(folder / "score")
    grades: Mapping[str, tuple[bool | None, str]] = {}
    if graded:
        column = scored_column(path, graded.folder, graded.columns, graded.inputs)
        grades = graded.runs.get(column or "", {})
    return Source(
        path,
        f"{name}@{sha256[:_HASH_LENGTH]}",
        lineage,
        {id: solved for id, (solved, _) in grades.items()},
        {id: reason for id, (_, reason) in grades.items()},
    )


def _read_grades(run: Path) -> _Graded:
    scored = Run.read(run)
    path = scored.path(GRADES)
    if not path.is_file():
        raise InputError(f"{run} has no {GRADES}; give a run of `score` with --tasks")
    found: dict[str, dict[str, tuple[bool | None, str]]] = {}

    def parse_grade(line: Line) -> None:
        solved = take(line.row, "solved", bool, default=None)
        reason = take(line.row, "reason", str, default="")
        of_run = found.setdefault(take(line.row, "run", str), {})
        of_run[take(line.row, "conversation", str)] = (solved, reason)

    for _ in read_parsed(path, parse_grade, may_be_empty=True):
        pass
    return _Graded(run, scored.results, scored.manifest.get("inputs", {}), found)


# --- who made them --------------------------------------------------------------------------------


def _of_run(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the lineage has of a run: its speakers, options, inputs and versions."""
    options = manifest.get("options") or {}
    found: dict[str, Any] = {"verb": manifest.get("verb")}
    licenses = {}
    for side in ("user", "assistant"):
        if isinstance(address := options.get(side), str):
            found[side] = shown(address)
            licenses[side] = license_of(address)
    if licenses:
        found["licenses"] = licenses
    given = {name: options.get(name) for name in OPTIONS}
    found["options"] = {
        name: value for name, value in given.items() if value is not None
    }
    are_logs = manifest.get("verb") == "import"
    found["inputs"] = dict(_inputs(dict(manifest.get("inputs") or {}), are_logs))
    found["versions"] = manifest.get("versions")
    found["git"] = manifest.get("git")
    return found


def shown(address: str) -> str:
    """Return an address without folders of the host, addresses of servers, and what a command is
    given, where a key may stand."""
    parts = parse(address)
    form = f"{parts.form}:" if parts.form else ""
    match parts.scheme:
        case "http" | "https":
            return f"{form}{parts.scheme}#{parts.name}"
        case "cmd":
            return "cmd"
        case "replay" | "script" | "bot":
            return f"{form}{parts.scheme}:{Path(parts.name).name}"
        case "" if _is_place(parts.name):
            return form + _short(parts.name)
    return address


def _is_place(name: str) -> bool:
    """Return whether the name of a model is that of a folder, and not a hub id."""
    return Path(name).expanduser().is_dir() or name.count("/") != 1 or name[0] in "/.~"


def _short(path: str) -> str:
    """Return the last two names of a path."""
    return "/".join(part for part in Path(path).parts[-2:] if part != "/")


def _inputs(inputs: Mapping[str, Any], are_logs: bool) -> Iterator[tuple[str, Any]]:
    """Yield the name and the hash of each input.

    Args:
        are_logs: whether they are raw logs, which lie in any folder, and not in one of a run.
    """
    seen: Counter[str] = Counter()
    for path, stamp in inputs.items():
        if "://" in str(stamp):  # the address of a server
            continue
        name = path.partition("?")[0]  # a query may have a key
        if "://" not in path:
            name = Path(path).name if are_logs else _short(path)
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})", stamp


def license_of(address: str) -> dict[str, str | None]:
    """Return the licence of a model, the name of its base model and the licence of that, as its
    card has them; `None` is not known."""
    parts = parse(address)
    if parts.scheme:
        return {"license": None}
    if parts.name in assets.SMALL:
        return {"license": _LICENSE_OF_SMALL}
    card = _front_matter(model_folder(parts.name) / "README.md")
    license, base = _field(card, "license"), _field(card, "base_model")
    if base is None:
        return {"license": license}
    base_license = _LICENSE_OF_SMALL if base == assets.SMALL_ID else None
    return {"license": license, "base_model": base, "base_license": base_license}


_LICENSE_OF_SMALL = "apache-2.0"


def _front_matter(path: Path) -> str:
    """Return the first part of a card, in YAML; empty if there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return found[1] if found else ""


def _field(card: str, name: str) -> str | None:
    """Return a field, or the first of its list."""
    found = re.search(rf"^{name}:[ \t]*(?:\n- *)?[\"']?([\w./-]+)", card, re.MULTILINE)
    return found[1] if found else None


# --- what the logs were ---------------------------------------------------------------------------


def log_of(conversation: Conversation) -> str:
    """Return the public set or the layout of logs that a conversation is from or continues; empty
    if it is not known."""
    name = conversation.meta.get("source")
    return name if isinstance(name, str) and name in SOURCES else ""

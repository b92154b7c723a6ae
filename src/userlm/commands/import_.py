"""`userlm import`: from raw logs to conversations."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from userlm.commands.options import (
    Output,
    Parts,
    argument,
    limit_option,
    option,
    out_folder,
)
from userlm.commands.parts import in_parts, total
from userlm.commands.steps import (
    Results,
    count_total,
    finish,
    finished,
    in_order,
    open_run,
)
from userlm.data import files, layouts
from userlm.data.joining import Joining, SharedTurns
from userlm.data.layouts.common import Found, Imported
from userlm.data.layouts.fields import Rejected
from userlm.data.layouts.mapped import Map
from userlm.json_files import write_lines
from userlm.lines import LONGEST_LOG, MOST_VALUES, Line
from userlm.rows import READABLE, from_record, kind_of, read_rows, to_record
from userlm.runs import FinishedRun, Outputs, Run
from userlm.show.formats import plural
from userlm.show.terminal import console, track
from userlm.tables import NOT_CSV, TABLES, Quotes
from userlm.types import Conversation, InputError

COMMIT_EVERY = 5000  # conversations between two commits
EMPTY = "note: empty files"
GREW = "note: files that grew while they were read"
UNLISTED = "note: dropped lines that dropped.jsonl does not list"
USED_BEFORE = "duplicate id"
"""Why a conversation is dropped whose id an earlier one has."""
MOST_LISTED = 1_000_000
"""Dropped lines in dropped.jsonl: what is written about a short one has a hundred times its size,
so a small packed file could fill the disk."""
LONGEST_REASON = 300
"""Characters of a reason on the terminal; dropped.jsonl has all of it."""
UNUSED_COLUMNS = {"openai_moderation", "detoxify_moderation", "header"}
"""Large columns of WildChat that add nothing to its column `toxic`."""


@dataclass(frozen=True, slots=True)
class Import:
    """Read raw logs into conversations. Bad lines go to dropped.jsonl with the reason.

    $ userlm import logs/*.jsonl --out runs/import

    $ userlm import hf://datasets/allenai/WildChat-1M --limit 10000
    """

    logs: list[str] = argument(
        ...,
        f"Files ({', '.join(READABLE)}), folders, globs, hf://datasets/OWNER/NAME, or other URLs.",
    )
    out: Path = out_folder("runs/import")
    source: str | None = option(
        None,
        f"Layout of the logs: {', '.join(layouts.SOURCES)}. Default: detected for each line.",
    )
    map: str | None = option(
        None,
        "Fields of rows in no known layout: role=FIELD,text=FIELD and id=FIELD if a row is one "
        "message, or messages=FIELD if it has a list of them; and user=, intent=, and time= of "
        "messages, which orders them. A field in a field is a.b.",
    )
    roles: str | None = option(
        None,
        "With --map, what the roles are called, such as customer=user,agent=assistant.",
    )
    quotes: Quotes = option(
        "auto",
        "How tables are quoted: csv, with quotes around values and doubled within them; backslash, "
        "with a backslash before those within values, as MySQL and Spark write them; text, quotes "
        "are text and a line is a row, as `mysql -B` and COPY of Postgres write them; auto, csv, "
        "if it surely is.",
    )
    strict: bool = option(False, "Stop at the first bad line instead of skipping it.")
    max_line: int = option(
        LONGEST_LOG >> 20,
        "Set aside lines and items of more megabytes than this; they may fill the memory.",
        min=1,
    )
    limit: int | None = limit_option()
    several: Parts = Parts()
    output: Output = Output()


@in_parts
def import_(options: Import, parts: Sequence[FinishedRun] = ()) -> Results:
    """Import the logs into a run folder. A part has whole files, and does not join what belongs
    together, since that may be in others: merging does."""
    out = options.out
    if options.source is not None and options.source not in layouts.SOURCES:
        known = ", ".join(layouts.SOURCES)
        raise InputError(
            f"--source {options.source}: unknown layout; choose one of {known}"
        )
    if options.source and options.map:
        raise InputError("give --source, a known layout, or --map, and not both")
    if options.roles and not options.map:
        raise InputError("--roles is for --map; add it")
    if options.limit and (options.several.part or parts):
        raise InputError(
            "--limit counts the lines of all files in order, which a part does not read; leave it "
            "out, or give fewer files"
        )
    fields = Map.parse(options.map, options.roles) if options.map else None
    found = []
    for file in files.find(options.logs):
        if not (file.path and out.resolve() in file.path.resolve().parents):
            found.append(file)
        elif options.output.force and file.name in map(str, options.logs):
            raise InputError(
                f"--force may delete {file.name}, which lies in {out}; choose another --out"
            )
    if not found:
        raise InputError(
            f"all logs are inside {out}, the output folder; choose another --out"
        )
    for place in options.logs:
        for sentence in files.left_out(place, out):
            console.print(sentence, style="yellow", markup=False)
    local = [file.path for file in found if file.path]
    if fields and len(local) == len(found):
        _check_columns(fields, local, options)
    stamps = {file.name: file.stamp for file in found if not file.path}
    begun = {path: path.stat() for path in local}
    # The names are without the secrets that URLs may have.
    shown = replace(options, logs=[file.name for file in found])
    run = open_run("import", shown, local, stamps, parts=parts)
    if done := finished(run, options):
        return done
    if parts:
        for name in ("conversations.jsonl", "dropped.jsonl", "progress.json"):
            run.path(name).unlink(missing_ok=True)
    importing = _Import(run, found, options, layouts.Gathered(fields))
    imported = list(map(_Imported, parts))
    for number, file in enumerate(found):
        by = next((part for part in imported if file.name in part.files), None)
        if by and importing.take(file.name, by):
            continue
        if options.several.share.has(file.name):
            importing.read(number, file, begun)
    whole = options.limit is None or importing.lines < options.limit
    importing.keep(importing.gathered.found(whole), len(found))
    # A copy that a killed attempt left may be of a file that is no longer wanted.
    shutil.rmtree(run.path(".copies"), ignore_errors=True)
    return finish(run, options, importing.finish())


class _Imported:
    """What a part imported, file by file in the order of the whole.

    Attributes:
        files: the counts of each file, by name.
    """

    def __init__(self, part: FinishedRun) -> None:
        self.files: Mapping[str, Mapping[str, int]] = part.results["files"]
        paths = (part.path("conversations.jsonl"), part.path("dropped.jsonl"))
        self._kept, self._dropped = (read_rows(path, True) for path in paths)

    def next_file(
        self, name: str
    ) -> tuple[list[Conversation], list[Mapping[str, Any]]]:
        """Return the conversations of the next file, and its dropped lines."""
        counts = self.files[name]
        kept = islice(self._kept, counts.get("out", 0))
        listed = _dropped(counts) - counts.get(UNLISTED, 0)
        dropped = islice(self._dropped, listed)
        return [from_record(line.row) for line in kept], [line.row for line in dropped]


def _dropped(counts: Mapping[str, int]) -> int:
    return sum(n for name, n in counts.items() if name.startswith("dropped: "))


class _Import:
    """An import in progress. It can be resumed after any commit.

    Attributes:
        done_files, done_items: what an earlier attempt finished: whole files, and items of the
            next.
        files: in a part, the counts of each file that was read, by name.
        lines: how many lines were read.
        examples: for each reason why lines are dropped, what is wrong with the first of them.
        gathered_lines: by file, how many lines belong to conversations that span several lines.
            These are kept in memory until the end, so another attempt reads the lines again.
    """

    def __init__(
        self,
        run: Run,
        found: Sequence[files.LogFile],
        options: Import,
        gathered: layouts.Gathered,
    ) -> None:
        self._run = run
        self._options = options
        self._is_part = options.several.part is not None
        self._names = _unique_names(found)
        self._shown = dict(zip(self._names, (file.name for file in found), strict=True))
        self._outputs = Outputs(run, "conversations.jsonl", "dropped.jsonl")
        state = self._outputs.state
        self.done_files: int = state.get("file", 0)
        self.done_items: int = state.get("items", 0)
        self.lines: int = state.get("lines", 0)
        self.gathered_lines: dict[str, int] = state.get("gathered", {})
        self.counts: Counter[str] = Counter(state.get("counts", {}))
        self.files: dict[str, dict[str, int]] = state.get("files", {})
        self.examples: dict[str, str] = state.get("examples", {})
        self._listed = min(_dropped(self.counts), MOST_LISTED)
        self.gathered = gathered
        self._path = run.path("conversations.jsonl")
        self._joining = Joining(are_whole=gathered.takes_messages)
        self._shared = SharedTurns()
        # The place of each id in the file. Ids are kept as hashes: 64 bits are enough for many
        # millions.
        self._seen: dict[int, int] = {}
        for conversation in self._written():
            self._shared.owned(conversation)
            self._add(conversation)

    def read(
        self, number: int, file: files.LogFile, begun: Mapping[Path, os.stat_result]
    ) -> None:
        """Read one file, unless an earlier attempt did.

        Args:
            begun: what each was at the start; it may only grow.
        """
        name = self._names[number]
        was_read = number < self.done_files
        most: int | None = None
        if was_read:
            if name not in self.gathered_lines:
                return
            most = self.gathered_lines[name]
        elif self._options.limit is not None:
            most = self._options.limit - self.lines
            if most == 0:
                return
        with files.local(file, self._run.path(".copies")) as path:
            was = begun.get(path, path.stat())
            size = was.st_size
            may_be_empty = len(self._names) > 1
            rows = _rows(path, self._options, size, may_be_empty)
            doing = f"importing {file.name.rpartition('/')[2]}"
            lines = _Counted(
                track(islice(rows, most), doing, count_total([path], most))
            )
            self.keep(
                layouts.find(lines, self._options.source, name, self.gathered), number
            )
            now = path.stat()
        if now.st_size < size or now.st_ino != was.st_ino:
            how = "cut short" if now.st_size < size else "replaced"
            raise InputError(
                f"{file.name} was {how} while it was read; import it into another --out"
            )
        if was_read:
            return
        if not lines.count:
            self.counts[EMPTY] += 1
        if now.st_size > size:
            self.counts[GREW] += 1
        if name in self.gathered.files:
            self.gathered_lines[name] = lines.count
        self.lines += lines.count
        if self._is_part:
            self._count_file(file.name, lines.count)
        self._commit(number + 1, 0)

    def _count_file(self, name: str, lines: int) -> None:
        """Keep the counts of a file of a part, which was read just now.

        Raises:
            InputError: if a conversation of the file may go on in a file of another part.
        """
        if self.gathered.files:
            raise InputError(
                f"{name} has a message or a span a line, and the others of its conversation may be "
                "in another part; import such files without --part"
            )
        before = total(self.files.values())
        self.files[name] = {**(self.counts - before), "in": lines}

    def take(self, name: str, part: _Imported) -> bool:
        """Take over what a part imported from a file. Return whether that is what one run would: a
        file with an id that an earlier one has must be read again, since a line may be dropped, or
        kept that the part dropped."""
        kept, dropped = part.next_file(name)
        is_known = any(hash(conversation.id) in self._seen for conversation in kept)
        if is_known or f"dropped: {USED_BEFORE}" in part.files[name]:
            return False
        for conversation in kept:
            self._write(Found(name, Line(0), Imported(conversation), None))
        for row in dropped[: MOST_LISTED - self._listed]:
            self._outputs.write("dropped.jsonl", row)
            self.examples.setdefault(row["reason"], row["error"])
        listed = min(len(dropped), MOST_LISTED - self._listed)
        self._listed += listed
        counts = Counter(part.files[name])
        self.lines += counts.pop("in")
        del counts["out"]
        if unlisted := _dropped(counts) - listed:
            counts[UNLISTED] = unlisted
        self.counts.update(counts)
        return True

    def keep(self, items: Iterable[Found], file_number: int) -> None:
        """Write the conversations of a file, or at the end those that span several lines; skip what
        an earlier attempt wrote."""
        for number, item in enumerate(items, 1):
            if (file_number, number) <= (self.done_files, self.done_items):
                continue
            rejected = self._write(item)
            if self._options.strict and rejected:
                raise InputError(
                    f"{self._shown[item.file]}, line {item.line.number}: {rejected}"
                )
            if number % COMMIT_EVERY == 0:
                self._commit(file_number, number)

    def _write(self, item: Found) -> Rejected | None:
        """Write a conversation if its id is new, else why it was rejected."""
        rejected = item.rejected
        record: dict[str, Any] = {}
        if item.imported is not None:
            conversation = item.imported.conversation
            for note, times in item.imported.notes.items():
                self.counts[f"note: {note}"] += times
            before = self._seen.get(hash(conversation.id))
            if before is None or self._joining.are_one(conversation, before):
                # Turns of a row that is dropped are in no other, so they are not shared.
                if not self._is_part:
                    conversation = self._shared.owned(conversation)
                self._add(conversation)
                self.counts["out"] += 1
                self._outputs.write("conversations.jsonl", to_record(conversation))
                return None
            record = to_record(conversation)
            rejected = Rejected(
                USED_BEFORE, f"the id {conversation.id!r} was used before"
            )
        assert rejected is not None
        self.counts[f"dropped: {rejected.reason}"] += 1
        self.examples.setdefault(rejected.reason, str(rejected))
        if self._listed == MOST_LISTED:
            self.counts[UNLISTED] += 1
            return rejected
        self._listed += 1
        dropped = {
            "file": self._shown[item.file],
            "line": item.line.number,
            "reason": rejected.reason,
            "error": str(rejected),
        }
        if item.line.error:
            dropped["raw"] = item.line.raw
        else:
            dropped["row"] = item.line.row or record
        self._outputs.write("dropped.jsonl", dropped)
        return rejected

    def _add(self, conversation: Conversation) -> None:
        """Note a conversation that is written. If its id was used, it is a call of the same one."""
        key = hash(conversation.id)
        before = self._seen.get(key)
        self._seen[key] = self._joining.add(conversation, before)

    def _commit(self, file_number: int, items: int) -> None:
        state = {
            "file": file_number,
            "items": items,
            "lines": self.lines,
            "gathered": self.gathered_lines,
            "files": self.files,
            "counts": self.counts,
            "examples": self.examples,
        }
        self._outputs.commit(state)

    def finish(self) -> Results:
        """Close the files and return the results."""
        self.counts["in"] = self.lines
        if self._is_part:
            self._outputs.close()
        elif self.counts["out"]:
            self._outputs.close()
            self._join()
        else:
            raise InputError(
                f"none of the {self.lines} lines is a conversation{self._main_reason()}; the "
                f"reasons are in {self._run.path('dropped.jsonl')}"
            )
        if field := self.gathered.no_time():
            console.print(
                f"time={field}: no value of this field is a time that is read, so the rows of each "
                "conversation stay in the order of the files; leave it out, or name another field "
                "(docs/data.md says which times are read)",
                style="yellow",
                markup=False,
            )
        if grew := self.counts[GREW]:
            console.print(
                f"{grew} grew while they were read: the new lines are missing; import again into "
                f"another --out"
            )
        if aside := self.counts[f"dropped: {NOT_CSV}"]:
            console.print(
                f"{plural(aside, 'line')} set aside as {NOT_CSV}: dropped.jsonl says why; if "
                "quotes are plain text in a table, import it with --quotes text; if most lines may "
                "be within a quote that one of them opens, mend that one and import again",
                style="yellow",
            )
        results: Results = {"counts": in_order(self.counts)}
        if self._is_part:
            results["files"] = self.files
        return results

    def _main_reason(self) -> str:
        """Return the most frequent reason why lines are dropped, with its first example."""
        dropped = Counter(
            {why: self.counts[f"dropped: {why}"] for why in self.examples}
        )
        for why, count in dropped.most_common(1):
            example = shorten(self.examples[why], LONGEST_REASON, placeholder=" …")
            return f"; {count} of them: {example}"
        return ""

    def _join(self) -> None:
        """Put conversations together that the log holds in several rows.

        If this is interrupted, another attempt imports everything again.
        """
        plan = self._joining.plan(self._written())
        has_same_ids = len(self._seen) < len(self._joining)
        if plan or has_same_ids:
            joined = plan.apply(self._written)
            if has_same_ids:
                ids = Counter(hash(each.id) for each in plan.apply(self._written))
                joined = _with_own_ids(joined, ids)
            write_lines(self._path, map(to_record, joined))
            self.counts["out"] -= plan.merged
            self.counts["note: merged lines"] += plan.merged

    def _written(self) -> Iterator[Conversation]:
        for line in read_rows(self._path, may_be_empty=True):
            if line.error:
                raise InputError(
                    f"{self._path}, line {line.number}: {line.error}; begin anew with --force"
                )
            yield from_record(line.row)


class _Counted:
    """The lines, counted as they are read."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = lines
        self.count = 0

    def __iter__(self) -> Iterator[Line]:
        for line in self._lines:
            self.count += 1
            yield line


def _with_own_ids(
    conversations: Iterable[Conversation], ids: Mapping[int, int]
) -> Iterator[Conversation]:
    """Yield conversations. Of several with one id, since not all calls of it go on from another,
    the later ones get a number, and of none is it known whether it ended.

    Args:
        ids: how often there is each, by its hash.
    """
    seen: Counter[int] = Counter()
    for conversation in conversations:
        if ids[hash(conversation.id)] > 1:
            tree = {"tree": conversation.id}  # for one split
            meta = {**tree, **conversation.meta}
            conversation = replace(conversation, ended=False, meta=meta)
        id = conversation.id
        while count := seen[hash(id)]:
            seen[hash(id)] += 1
            id = f"{conversation.id}/{count + 1}"
        seen[hash(id)] += 1
        yield conversation if id == conversation.id else replace(conversation, id=id)


def _check_columns(fields: Map, paths: Sequence[Path], options: Import) -> None:
    """Raise `InputError` if some logs are tables, and none has the column of a field. Rows of JSON
    need not have all their fields, so only the whole log could tell."""
    if not all(kind_of(path.name) in (*TABLES, ".parquet") for path in paths):
        return
    columns: dict[str, None] = {}
    for path in paths:
        rows = _rows(path, options, path.stat().st_size)
        columns |= dict.fromkeys(next((line.row for line in rows if line.row), ()))
    if columns:
        fields.check_columns(list(columns))


def _rows(
    path: Path, options: Import, size: int, may_be_empty: bool = True
) -> Iterator[Line]:
    longest = options.max_line << 20
    return read_rows(
        path, may_be_empty, _unread, size, longest, MOST_VALUES, options.quotes
    )


def _unread(columns: Collection[str]) -> Collection[str]:
    return UNUSED_COLUMNS.intersection(columns) if "toxic" in columns else ()


def _unique_names(found: Sequence[files.LogFile]) -> list[str]:
    """Return a unique name for each file, for the ids of rows without an id."""
    stems = []
    for file in found:
        name = file.name.rpartition("/")[2]
        stems.append(name[: -len(kind_of(name))])
    return [
        stem if stems.count(stem) == 1 else f"{i}:{stem}"
        for i, stem in enumerate(stems)
    ]

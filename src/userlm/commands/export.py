"""`export`: conversations of runs in the formats of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from userlm.commands.options import OUTPUT, argument, check, option
from userlm.commands.steps import Results, in_order
from userlm.exports import inspect_log, lineage, protobuf, spans, table, training
from userlm.exports.lineage import LICENSES, Source
from userlm.exports.training import Talk
from userlm.json_files import replacing, write_file, write_json
from userlm.manifest import environment
from userlm.rows import read_conversations
from userlm.show.terminal import console, track
from userlm.types import FAILED, InputError, Role

Format = Literal[
    "messages", "prompt-completion", "dpo", "otel", "inspect", "sharegpt", "parquet"
]
LINES = (".jsonl", ".jsonl.gz")
ENDINGS = {"inspect": (".eval",), "parquet": (".parquet",)}
LINEAGE = ".lineage.json"
"""Ends the name of the file with the lineage, which stands beside the export."""


@dataclass(frozen=True, slots=True)
class Export:
    """Write conversations in the format of a trainer, a tracing tool or a harness, and beside it
    where they come from.

    $ userlm export runs/evaluate --as dpo --out pairs.jsonl

    $ userlm export runs/simulate --as messages --for user --out flipped.jsonl
    """

    runs: list[Path] = argument(
        ...,
        "Folders of runs, also of `evaluate`, or files of conversations; one of train.jsonl, "
        "valid.jsonl and test.jsonl by name.",
    )
    as_: Format = option(..., "The format.", flag="--as")
    out: Path | None = option(
        None,
        "The file: .jsonl or .jsonl.gz; .eval for inspect, .parquet for parquet.",
    )
    for_: Literal["assistant", "user"] = option(
        "assistant",
        "Whose turns are trained: in messages, prompt-completion and sharegpt.",
        flag="--for",
    )
    scores: Path | None = option(
        None,
        "A run of `score` whose grades say what was solved. Default: score/ in each run.",
    )
    keep_failed: bool = option(
        False,
        "Keep conversations that an error, the guard or the context length ended.",
        flag="--keep-failed",
    )
    to: str | None = option(
        None, "With otel: also send the spans to this server, by OTLP over HTTP."
    )
    force: bool = option(
        False, "Write over a file that is there.", flag="--force", panel=OUTPUT
    )


def export(options: Export) -> Results:
    """Write the file and its lineage, and return the counts."""
    check(options)
    _check(options)
    sources = lineage.find(options.runs, options.scores)
    _check_not_read(options.out, sources)
    selected = _Selected(options, sources)
    if options.out is None:
        rows = sum(1 for _ in _sent(options, selected))
        selected.check(rows)
    else:
        with replacing(options.out) as partial:
            rows = _write(options, partial, selected)
            selected.check(rows)
            # Another process may have written it meanwhile.
            _check_is_new(options.out, options.force)
            write_json(_beside(options.out), selected.lineage(rows))
    counts = in_order(selected.counts)
    where = f"{options.out or options.to}: {rows:,} rows of {options.as_}"
    console.print("; ".join([where, *(f"{name}: {n:,}" for name, n in counts.items())]))
    return {"rows": rows, "counts": counts}


def _beside(out: Path) -> Path:
    return out.with_name(out.name + LINEAGE)


def _check(options: Export) -> None:
    """Raise `InputError` for options that do not fit each other, or a file that is there."""
    if options.to and options.as_ != "otel":
        raise InputError("--to is for --as otel")
    if options.to:
        protobuf.url_of(options.to)
    if options.for_ == "user" and options.as_ not in training.FORMATS:
        raise InputError(
            f"--for user is for {', '.join(training.FORMATS)}; {options.as_} has no such side"
        )
    if options.out is None:
        if not options.to:
            raise InputError("give --out, the file to write")
        return
    endings = ENDINGS.get(options.as_, LINES)
    if not options.out.name.endswith(endings):
        raise InputError(
            f"--out {options.out}: {options.as_} is written to {' or '.join(endings)}"
        )
    _check_is_new(options.out, options.force)


def _check_is_new(out: Path, force: bool) -> None:
    for path in (out, _beside(out)):
        if path.exists() and not force:
            raise InputError(
                f"{path} is there already; choose another --out, or give --force"
            )


def _check_not_read(out: Path | None, sources: Sequence[Source]) -> None:
    """Raise `InputError` if the file to write is one that is exported."""
    if out and out.resolve() in [source.path.resolve() for source in sources]:
        raise InputError(f"--out {out} is what is exported; choose another file")


@dataclass
class _Selected:
    """The conversations that are exported, counted as they are read."""

    options: Export
    sources: Sequence[Source]
    counts: Counter[str] = field(default_factory=Counter)
    logs: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Talk]:
        side: Role = self.options.for_
        trains = self.options.as_ in training.FORMATS
        for talk in track(self._all(), "exporting"):
            conversation = talk.conversation
            why = training.left_out(conversation, side, trains)
            if conversation.stop in FAILED and not self.options.keep_failed:
                why = f"stopped by {conversation.stop}"
            if why:
                self.counts[f"left out: {why}"] += 1
                continue
            self.counts["conversations"] += 1
            if log := lineage.log_of(conversation):
                self.logs[log] += 1
            yield talk

    def _all(self) -> Iterator[Talk]:
        for source in self.sources:
            for conversation in read_conversations(source.path, may_be_empty=True):
                yield Talk(source, conversation)

    def check(self, rows: int) -> None:
        """Raise `InputError` if there is no row to write."""
        if rows:
            return
        reasons = "; ".join(
            f"{name}: {n:,}" for name, n in in_order(self.counts).items()
        )
        advice = ""
        if self.options.as_ == "dpo":
            advice = (
                ". A pair needs two conversations about one task, one solved and one not, that "
                "differ first in an answer: give runs with --repeats, of several assistants with "
                "the same --seed, or of the user `single`"
            )
        raise InputError(f"nothing to export ({reasons or 'no conversations'}){advice}")

    def lineage(self, rows: int) -> dict[str, Any]:
        """Return what stands beside the export."""
        logs = {
            name: {"conversations": count, "license": LICENSES.get(name)}
            for name, count in in_order(self.logs).items()
        }
        return {
            "userlm": environment()["versions"].get("userlm"),
            "as": self.options.as_,
            "for": self.options.for_,
            "rows": rows,
            "counts": in_order(self.counts),
            "runs": {source.key: source.lineage for source in self.sources},
            "logs": logs,
        }


def _write(options: Export, path: Path, selected: _Selected) -> int:
    """Write the file and return the number of its rows."""
    match options.as_:
        case "inspect":
            return inspect_log.write(path, selected, selected.sources)
        case "parquet":
            return table.write(path, selected)
        case "otel":
            rows = _sent(options, selected)
        case "dpo":
            rows = training.dpo(selected, selected.counts, path.parent)
        case name:
            make = training.FORMATS[name]
            rows = chain.from_iterable(make(talk, options.for_) for talk in selected)
    assert options.out is not None
    return write_file(path, rows, is_packed=options.out.suffix == ".gz")


def _sent(options: Export, selected: _Selected) -> Iterator[dict[str, Any]]:
    """Yield the spans of each conversation, and send them if a server is given."""
    sender = protobuf.Sender(protobuf.url_of(options.to)) if options.to else None
    for talk in selected:
        exported = spans.export(talk)
        yield exported
        if sender:
            sender.add(exported)
    if sender:
        sender.send()

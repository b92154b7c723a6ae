"""`import` and `clean`: from raw logs to conversations that were filtered and split by person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from userlm import flip
from userlm.commands.shared import (
    Limit,
    Out,
    Results,
    Seed,
    conversations_file,
    count_total,
    finish_counts,
    finished,
)
from userlm.data import clean as cleaning
from userlm.data import sources
from userlm.store import (
    SPLITS,
    Outputs,
    Run,
    read_conversations,
    read_rows,
    to_record,
)
from userlm.terminal import show_counts, track
from userlm.types import Conversation, InputError

COMMIT_EVERY = 2000  # lines between two commits of a stage that streams


def import_(
    logs: Annotated[list[Path], Argument(help="Files (.jsonl, .jsonl.gz, .parquet) or folders of them.")],
    out: Out = Path("runs/import"),
    source: Annotated[
        str | None,
        Option(help=f"Layout of the logs: {', '.join(sources.SOURCES)}. Default: guessed line by line."),
    ] = None,
    strict: Annotated[bool, Option(help="Stop at the first bad line instead of setting it aside.")] = False,
    limit: Limit = None,
) -> Results:
    """Read raw logs into conversations. Bad lines are set aside in dropped.jsonl with the reason."""
    if source is not None and source not in sources.SOURCES:
        raise InputError(f"--source {source}: unknown layout; there are {', '.join(sources.SOURCES)}")
    files = _log_files(logs)
    run = Run.open(out, "import", {"source": source, "strict": strict, "limit": limit}, files)
    if done := finished(run):
        return done
    outputs = Outputs(run, "conversations.jsonl", "dropped.jsonl")
    counts = Counter(outputs.state.get("counts", {}))
    begin = (outputs.state.get("file", 0), outputs.state.get("line", 0))
    seen = {line.row["id"] for line in read_rows(run.path("conversations.jsonl"), may_be_empty=True)}
    lines = ((i, file, line) for i, file in enumerate(files) for line in read_rows(file))
    names = _unique_names(files)
    for i, file, line in track(islice(lines, limit), "importing", count_total(files, limit)):
        if (i, line.number) <= begin:
            continue
        counts["in"] += 1
        try:
            if line.error:
                raise sources.Rejected(line.reason, f"the line {line.error}")
            imported = sources.convert(line.row, source, f"{names[i]}-{line.number}")
            conversation = imported.conversation
            if conversation.id in seen:
                raise sources.Rejected("duplicate id", f"the id {conversation.id!r} was used before")
        except sources.Rejected as error:
            if strict:
                raise InputError(f"{file}, line {line.number}: {error}") from None
            counts[f"dropped: {error.reason}"] += 1
            where = {"file": str(file), "line": line.number, "reason": error.reason, "error": str(error)}
            outputs.write("dropped.jsonl", where | ({"raw": line.raw} if line.error else {"row": line.row}))
        else:
            seen.add(conversation.id)
            counts["out"] += 1
            for note, count in imported.notes.items():
                counts[f"note: {note}"] += count
            outputs.write("conversations.jsonl", to_record(conversation))
        if counts["in"] % COMMIT_EVERY == 0:
            outputs.commit({"file": i, "line": line.number, "counts": counts})
    if not counts["out"]:
        show_counts(str(run.folder), counts)
        raise InputError(
            f"none of the {counts['in']} lines is a conversation; {run.path('dropped.jsonl')} says why"
        )
    return finish_counts(run, outputs, counts)


def clean(
    logs: Annotated[Path, Argument(help="Imported conversations: a run folder or a file.")] = Path("runs/import"),
    out: Out = Path("runs/clean"),
    languages: Annotated[str, Option(help="Languages to keep, comma-separated codes; 'all' keeps all.")] = "en",
    flagged: Annotated[bool, Option(help="Keep conversations flagged as toxic or redacted.")] = False,
    ngram: Annotated[int, Option(help="Length of the template filter's word n-grams.", min=1)] = 7,
    template_limit: Annotated[
        int, Option(help="Drop a conversation whose first turn has an n-gram that occurs more often.", min=0)
    ] = 100,
    shares: Annotated[str, Option(help="Shares of train, valid and test, in percent of the people.")] = "90/5/5",
    seed: Seed = 0,
    limit: Limit = None,
) -> Results:
    """Filter conversations, each drop with a reason, and split them 90/5/5 by person."""
    path = conversations_file(logs)
    parts = _shares(shares)
    options = {"languages": languages, "flagged": flagged, "ngram": ngram, "template_limit": template_limit}
    run = Run.open(out, "clean", {**options, "shares": shares, "seed": seed, "limit": limit}, [path])
    if done := finished(run):
        return done
    wanted = None if languages == "all" else tuple(code.strip() for code in languages.split(","))

    def unfit(conversation: Conversation) -> str | None:
        return cleaning.foreign(conversation, wanted) or (None if flagged else cleaning.flagged(conversation))

    def read() -> Iterator[Conversation]:
        return islice(read_conversations(path), limit)

    total = count_total([path], limit)
    table = cleaning.count_ngrams(
        (c for c in track(read(), "counting n-grams", total) if not unfit(c)), ngram, above=template_limit
    )
    outputs = Outputs(run, *(f"{split}.jsonl" for split in SPLITS), "dropped.jsonl")
    counts = Counter(outputs.state.get("counts", {}))
    for number, conversation in enumerate(track(read(), "cleaning", total), 1):
        if number <= outputs.state.get("line", 0):
            continue
        counts["in"] += 1
        if reason := unfit(conversation) or cleaning.template(conversation, table, ngram, template_limit):
            counts[f"dropped: {reason}"] += 1
            dropped = replace(conversation, meta={**conversation.meta, "dropped": reason})
            outputs.write("dropped.jsonl", to_record(dropped))
        else:
            split = cleaning.split(conversation, seed, parts)
            counts["out"] += 1
            counts[f"{split}: conversations"] += 1
            counts[f"{split}: samples"] += sum(1 for _ in flip.samples(conversation))
            outputs.write(f"{split}.jsonl", to_record(conversation))
        if number % COMMIT_EVERY == 0:
            outputs.commit({"line": number, "counts": counts})
    return finish_counts(run, outputs, counts)


def _log_files(paths: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz", ".parquet")))
            if not inside:
                raise InputError(f"{path} holds no .jsonl, .jsonl.gz or .parquet file")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path} does not exist; give log files or folders of them")
    return files


def _unique_names(files: Sequence[Path]) -> list[str]:
    """For each file a name that no other has, for the ids of rows that carry none."""
    stems = [re.sub(r"\.(jsonl|jsonl\.gz|parquet)$", "", file.name) for file in files]
    return [stem if stems.count(stem) == 1 else f"{i}:{stem}" for i, stem in enumerate(stems)]


def _shares(shares: str) -> tuple[float, float, float]:
    parts = shares.split("/")
    if len(parts) != 3 or not all(part.isdigit() for part in parts) or sum(map(int, parts)) != 100:
        raise InputError(f"--shares {shares}: write three numbers that add up to 100, such as 90/5/5")
    train, valid, test = (int(part) / 100 for part in parts)
    return train, valid, test

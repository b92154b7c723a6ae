"""`ppl`: how well a model predicts people, and what an intent changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from userlm import address
from userlm.commands.options import (
    Limit,
    MaxTokens,
    Out,
    Results,
    Seed,
    finished,
    measure_results,
)
from userlm.metrics import controls as intents
from userlm.metrics.controls import (
    DRAWN,
    HUMAN,
    OTHER,
    OTHERS,
    OWN,
    RATIOS,
    SOURCE,
    SPECIFIC,
    WITH,
    WITHOUT,
)
from userlm.metrics.forms import Form
from userlm.metrics.perplexity import score_turns, unscored
from userlm.rows import read_conversations, read_rows, write_lines
from userlm.runs import Journal, Run, conversations_file
from userlm.terminal import console, progress_bar
from userlm.types import Conversation, InputError, MeasureRow, ModelError, Score

BATCH = 32
"""Conversations that are scored, and written down, together."""
GIVE_UP = 3
"""Conversations of a batch that fail, and none that does not, until the run is given up."""

Asked = tuple[Conversation, str, str | None]
"""A conversation, the column, and the intent that the model is told there."""
Line = dict[str, Any]
"""A line of scores.jsonl: id, column, whether the model was told an intent, a row a turn, and what
failed."""
Records = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By column and name what results.json holds."""


def ppl(
    data: Annotated[Path, Argument(help="Conversations: a folder (its test.jsonl) or a file.")],
    model: Annotated[
        str,
        Option(
            help="A user model: folder, training run or hub id; base:MODEL for a base model, "
            "prompted:MODEL for a "
            "chat model that plays the user. Each may be on a server: http://HOST:PORT/v1#NAME."
        ),
    ],
    out: Out = Path("runs/ppl"),
    controls: Annotated[
        bool, Option(help="Also with the intent of somebody else: a third pass.")
    ] = True,
    max_tokens: MaxTokens = 2048,
    tokenizer: Annotated[
        str | None,
        Option(
            help="Folder or hub id, for a model on a server; default: what has the model's name."
        ),
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Annotated[int, Option(help="Rows at once, on a server.", min=1)] = 16,
    device: Annotated[
        str | None, Option(help="Such as cuda or cpu; default: a GPU if there is one.")
    ] = None,
) -> Results:
    """Perplexity of real user turns without intent, with it and with another person's; intervals
    over people."""
    path = conversations_file(data, "test")
    options = {
        "model": model,
        "tokenizer": tokenizer,
        "controls": controls,
        "max_tokens": max_tokens,
    }
    inputs = [path, *address.files(model)]
    run = Run.open(out, "ppl", {**options, "limit": limit, "seed": seed}, inputs)
    title = f"user turns of {path.name} under {model}"
    if done := _finished_without_errors(run):
        _show(title, done)
        return done
    conversations = list(islice(read_conversations(path), limit))
    _say_what_is_missing(conversations, path)
    with console.status("loading the model"):
        scorer, form, context_length = address.scorer(
            model, tokenizer=tokenizer, workers=workers, device=device
        )
    if context_length is not None and context_length < max_tokens:
        console.print(f"rows are cut to the model's context length of {context_length} tokens")
        max_tokens = context_length
    others = intents.other_intents(conversations, seed) if controls else None
    lines = _lines(run, _asked(conversations, others), scorer, form, max_tokens)
    columns = [WITHOUT, WITH, OTHER] if controls else [WITHOUT, WITH]
    figures = intents.figures({column: _rows(lines, column) for column in columns}, conversations)
    results = run.finish(
        measure_results({name: {m.name: m for m in all} for name, all in figures.items()}, {})
    )
    _show(title, results)
    return results


def _say_what_is_missing(conversations: Sequence[Conversation], path: Path) -> None:
    silent = sum(not conversation.user_turns for conversation in conversations)
    untold = sum(conversation.intent is None for conversation in conversations)
    if silent == len(conversations):
        raise InputError(f"{path}: no conversation has a user turn, so there is nothing to predict")
    if silent:
        console.print(
            f"{silent:,} of {len(conversations):,} have no user turn: nothing to predict there"
        )
    if untold:
        console.print(
            f"{untold:,} of {len(conversations):,} have no intent: scored without one only"
        )


# --- scoring, in a journal ------------------------------------------------------------------------


def _asked(
    conversations: Iterable[Conversation], others: Mapping[str, str] | None
) -> list[list[Asked]]:
    """Every conversation in every column, in order."""
    return [
        [(conversation, WITHOUT, None), (conversation, WITH, conversation.intent)]
        + ([] if others is None else [(conversation, OTHER, others.get(conversation.id))])
        for conversation in conversations
    ]


def _lines(
    run: Run, asked: Sequence[Sequence[Asked]], model: Score, form: Form, max_tokens: int
) -> list[Line]:
    """The lines of scores.jsonl, in order; those of an earlier attempt are kept, unless they tell
    of an error."""
    journal = Journal(run.path("scores.jsonl"))
    lines = {(line["id"], line["column"]): line for line in journal.rows if "error" not in line}
    missing = [[one for one in same if (one[0].id, one[1]) not in lines] for same in asked]
    waiting = [same for same in missing if same]
    errors: dict[str, str] = {}
    with progress_bar() as progress:
        job = progress.add_task("scoring", total=len(waiting))
        for start in range(0, len(waiting), BATCH):
            batch = waiting[start : start + BATCH]
            for line in _score_or_say(batch, model, form, max_tokens):
                journal.add(line)
                lines[line["id"], line["column"]] = line
                errors |= {line["id"]: line["error"]} if "error" in line else {}
            progress.advance(job, len(batch))
    journal.close()
    if errors:
        again = "the same command tries these again"
        first = next(iter(errors.values()))
        console.print(
            f"{len(errors)} could not be scored ({again}), the first: {first}", style="yellow"
        )
    ordered = [lines[conversation.id, column] for same in asked for conversation, column, _ in same]
    write_lines(run.path("scores.jsonl"), ordered)
    return ordered


def _score_or_say(
    batch: Sequence[Sequence[Asked]], model: Score, form: Form, max_tokens: int
) -> list[Line]:
    """The lines of some conversations. If the model fails on them together, each is tried alone.

    Raises:
        ModelError: if it would fail on all others, or did on the first few.
    """
    if len(batch) > 1:
        try:
            return _score([one for same in batch for one in same], model, form, max_tokens)
        except ModelError as error:
            if error.permanent:
                raise
    lines: list[Line] = []
    failed = 0
    for i, same in enumerate(batch):
        try:
            lines += _score(same, model, form, max_tokens)
        except ModelError as error:
            failed += 1
            if error.permanent or i + 1 == failed == GIVE_UP:
                raise
            gaps = [_line(one, unscored(one[0], error.reason)) for one in same]
            lines += [line | {"error": str(error)} for line in gaps]
    return lines


def _score(asked: Sequence[Asked], model: Score, form: Form, max_tokens: int) -> list[Line]:
    """All of them in one call; a conversation for which there is nothing to tell the model is
    missing."""
    can = [column == WITHOUT or told is not None for _, column, told in asked]
    scorable = [(one[0], one[2]) for one, yes in zip(asked, can, strict=True) if yes]
    scored = iter(score_turns(scorable, model, form, max_tokens))
    lines = []
    for one, yes in zip(asked, can, strict=True):
        why = "no intent" if one[0].intent is None else "no other intent"
        lines.append(_line(one, next(scored) if yes else unscored(one[0], why)))
    return lines


def _line(asked: Asked, rows: Sequence[MeasureRow]) -> Line:
    conversation, column, told = asked
    plain = [[row.key, row.cluster, row.stats, row.why] for row in rows]
    return {"id": conversation.id, "column": column, "intent": told is not None, "rows": plain}


def _rows(lines: Iterable[Line], column: str) -> list[MeasureRow]:
    return [
        MeasureRow(key, cluster, tuple(stats) if stats else None, why)
        for line in lines
        if line["column"] == column
        for key, cluster, stats, why in line["rows"]
    ]


def _finished_without_errors(run: Run) -> Results | None:
    """A run in which some conversations could not be scored is taken up again."""
    if run.results and any(
        "error" in line.row for line in read_rows(run.path("scores.jsonl"), may_be_empty=True)
    ):
        run.path("results.json").unlink()
    return finished(run)


# --- what is shown --------------------------------------------------------------------------------


def _show(title: str, results: Results) -> None:
    """The measures of all conversations, of each kind of intents that is not all of them, and of
    the sources; and what holds of them."""
    found = {
        column: {record["name"]: record for record in records}
        for column, records in results.items()
    }
    told, compared = [c for c in found if c not in RATIOS], [c for c in found if c in RATIOS]
    parts = list(dict.fromkeys(name.rpartition(": ")[0] for name in found[WITHOUT]))
    kinds = [part for part in parts if part in (HUMAN, DRAWN)]
    whole = found[WITHOUT]["perplexity"]["n"]
    out = Console(markup=False, emoji=False, highlight=False)
    for part in [
        "",
        *(kind for kind in kinds if found[WITHOUT][f"{kind}: perplexity"]["n"] < whole),
    ]:
        out.print(f"{title}: {part}" if part else title)
        for columns in (told, compared):
            names = [name for name in found[columns[0]] if name.rpartition(": ")[0] == part]
            rows = {
                name.rpartition(": ")[2]: [found[column][name] for column in columns]
                for name in names
            }
            out.print(_table(columns, rows))
        out.print(_counts(found, told, f"{part}: perplexity" if part else "perplexity"))
    if sources := [part for part in parts if part.startswith(SOURCE)]:
        rows = {
            part.removeprefix(SOURCE): [
                found[WITHOUT][f"{part}: perplexity"],
                *(found[column][f"{part}: perplexity ratio"] for column in compared),
            ]
            for part in sources
        }
        out.print(f"{title}: by source (intervals are in results.json)")
        out.print(_table([WITHOUT, *compared], rows, intervals=False))
    for kind in kinds:
        out.print(_claim(found, kind))


def _table(
    columns: Sequence[str], rows: Mapping[str, Sequence[Mapping[str, Any]]], intervals: bool = True
) -> Table:
    """A line for each name, under `perplexity` without that word."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for column in columns:
        table.add_column(column.replace(" / ", "\n/ "), justify="right", no_wrap=True)
    for name, records in rows.items():
        shown = re.sub(r"^perplexity( ratio)?, ", "  ", name)
        table.add_row(shown, *(_cell(record, intervals) for record in records))
    return table


def _cell(record: Mapping[str, Any], interval: bool) -> str:
    if record["value"] is None:
        return f"not measured\n{record['why']}"
    digits = (
        3
        if "ratio" in record["name"]
        else 2
        if record["value"] < 100
        else 1
        if record["value"] < 1000
        else 0
    )
    value, low, high = (
        "" if record[key] is None else f"{record[key]:,.{digits}f}"
        for key in ("value", "low", "high")
    )
    return f"{value}\n{low} to {high}" if interval and low else value


def _counts(found: Records, columns: Sequence[str], name: str) -> str:
    """How many turns stand behind a perplexity, in each column."""
    by_count: dict[str, list[str]] = {}
    for column in columns:
        record = found[column][name]
        gaps = f" ({record['missing']:,} missing: {record['why']})" if record["missing"] else ""
        by_count.setdefault(f"{record['n']:,}{gaps}", []).append(column)
    return "user turns " + "; ".join(
        f"{', '.join(columns)}: {count}" for count, columns in by_count.items()
    )


def _claim(found: Records, kind: str) -> str:
    """In words what the ratios say, of the intents of one kind."""
    own, ratio = found[OWN], f"{kind}: perplexity ratio"
    answers = {
        "the intent helps": _holds(own[ratio], below=True),
        "on later turns": _holds(own[f"{ratio}, later turns"], below=True),
        "on words outside of it": _holds(own[f"{ratio}, outside the intent"], below=True),
    }
    if OTHERS in found:
        answers["another's intent is worse than none"] = _holds(found[OTHERS][ratio], below=False)
        answers["the own is better than another's"] = _holds(found[SPECIFIC][ratio], below=True)
    return f"{kind}: " + "; ".join(f"{claim}: {answer}" for claim, answer in answers.items())


def _holds(ratio: Mapping[str, Any], below: bool) -> str:
    """Whether a ratio is below 1, or above it, with all of its interval."""
    if ratio["low"] is None:
        return "not known"
    if ratio["low"] <= 1 <= ratio["high"]:
        return "not clear"
    return "yes" if (ratio["high"] < 1) == below else "no"

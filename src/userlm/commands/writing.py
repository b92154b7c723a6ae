"""`intents`: what each user was after."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from userlm.commands.shared import (
    Limit,
    Out,
    Results,
    count_total,
    finished,
    in_order,
    split_files,
)
from userlm.data import intents as writing
from userlm.store import (
    Run,
    read_conversations,
    write_conversations,
)
from userlm.terminal import console, show_counts, track
from userlm.types import Conversation


def intents(
    data: Annotated[Path, Argument(help="Conversations: the folder of `clean`, or a file.")] = Path("runs/clean"),
    out: Out = Path("runs/intents"),
    overwrite: Annotated[bool, Option(help="Write a new intent where there is one already.")] = False,
    limit: Limit = None,
) -> Results:
    """Give each conversation an intent: one generic sentence on what the user is after.

    The writer is extractive: it picks key phrases from the user's turns. It is an offline stand-in for a
    language model, and its intents are marked as such.
    """
    paths = split_files(data)
    run = Run.open(out, "intents", {"overwrite": overwrite, "limit": limit}, paths.values())
    if done := finished(run):
        return done
    counts: Counter[str] = Counter()
    leaks: list[float | None] = []

    def write(conversation: Conversation) -> Conversation:
        counts["in"] += 1
        if conversation.intent is not None and not overwrite:
            counts["note: had an intent"] += 1
            leaks.append(writing.leakage(conversation.intent, conversation))
            return conversation
        intent = writing.extractive(conversation)
        if intent is not None and (reason := writing.check(intent, conversation)):
            counts[f"note: no intent, {reason}"] += 1
            intent = None
        elif intent is None:
            counts["note: no intent, nothing to say"] += 1
        else:
            counts["out"] += 1
            leaks.append(writing.leakage(intent, conversation))
        meta = {**conversation.meta, "intent_by": "extractive"} if intent else conversation.meta
        return replace(conversation, intent=intent, meta=meta)

    for name, path in paths.items():
        found = read_conversations(path, may_be_empty=True)  # few people: nobody in a split
        conversations = track(islice(found, limit), f"intents for {name}", count_total([path], limit))
        write_conversations(run.path(f"{name}.jsonl"), map(write, conversations))
    known = [leak for leak in leaks if leak is not None]
    leakage = sum(known) / len(known) if known else None
    written = counts["out"] > 0
    show_counts("intents (written by the extractive stand-in)" if written else "intents", counts)
    if leakage is not None:
        console.print(f" share of a first turn's content words found in its intent: {leakage:.2f}")
    return run.finish({"counts": in_order(counts), "leakage": leakage})

"""Print the tables that check the paper's findings on small models, in Markdown.

    python recipes/small/findings.py FOLDER

FOLDER holds the runs of findings.sh: ppl/SOURCE/MODEL of `userlm ppl`; respond-, talk-, tasks-
and gsm8k-USER of `userlm respond` and `simulate`; score of `userlm score`. "–" means not run.
Values and intervals of one run are those in its results; comparisons of two runs are computed here,
with the functions of the package. assess-USER are runs of `userlm assess`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from userlm.json_files import read_json
from userlm.metrics import extrinsic, intrinsic
from userlm.metrics.controls import (
    GENERATED,
    HUMAN,
    OTHER,
    RATIOS,
    WITH,
    WITHOUT,
    ratios,
)
from userlm.metrics.scores import score_row
from userlm.rows import read_conversations, read_rows
from userlm.runs import measure_record
from userlm.stats import (
    F1,
    FN,
    MEAN,
    PERCENT,
    SIGNED_PERCENT,
    TP,
    Statistic,
    difference,
    measure,
)
from userlm.tasks import read_tasks
from userlm.types import Conversation, Measure, MeasureRow, Task

SOURCES = {
    "people": "held-out people",
    "wildchat": "WildChat",
    "chats": "ShareGPT",
    "goals": "iKAT",
}
USERLM = "userlm-small"
PROMPTED = "assistant-small, prompted"
MODELS = {
    "small": "SmolLM2 as a base model",
    "assistant-small": PROMPTED,
    "userlm-small": USERLM,
    "with-intent": "a shorter run",
    "no-intent": "the same without intents",
    "userlm-tiny": "userlm-tiny",
}
USERS = {
    "userlm": USERLM,
    "prompted": PROMPTED,
    "swapped": "assistant-small, swapped",
    "tiny": "userlm-tiny",
}
PAIRS = (
    *((USERLM, other) for other in MODELS if other != USERLM),
    ("with-intent", "no-intent"),
)
"""The models that are compared: the first and the second."""
GIVEN = (WITHOUT, WITH, OTHER)

CLAIMS = {
    f"held-out people, {HUMAN}": ("people", f"{HUMAN}: "),
    "held-out people, all": ("people", ""),
    f"WildChat, all {GENERATED}": ("wildchat", ""),
    f"ShareGPT, all {GENERATED}": ("chats", ""),
    f"iKAT, all {HUMAN}": ("goals", ""),
}
"""Row label: the source, and the prefix of the measures of that part of its conversations."""

WORDS = (
    "first-turn diversity",
    "intent decomposition",
    "goal consistency",
    "words per turn",
)
TALKS = {
    "respond": ("after real prefixes", (*WORDS, "termination AUROC")),
    "talk": ("with `assistant-small`", (*WORDS, "turns per conversation")),
    "tasks": (
        "the package's tasks, with `oracle`",
        ("intent coverage", "words per turn"),
    ),
    "gsm8k": ("GSM8K in facts, with `oracle`", ("intent coverage", "words per turn")),
}
"""The settings in which users speak, and the measures of each."""

ASSESSED = {
    "people": "people, replayed",
    "userlm": USERLM,
    "tiny": "userlm-tiny",
    "prompted": PROMPTED,
    "constant": "a constant turn",
}
"""The users of `assess`, in the order in which they are expected to be like people."""
STAGES = {"respond": "single turns", "simulate": "whole conversations"}

Compared = tuple[
    Callable[[Sequence[Conversation], Mapping[str, Task]], Measure], Statistic
]
COMPARED: Mapping[str, Compared] = {
    "intent decomposition": (
        lambda talks, _: intrinsic.intent_decomposition(talks),
        PERCENT,
    ),
    "goal consistency": (
        lambda talks, _: intrinsic.goal_consistency(talks),
        SIGNED_PERCENT,
    ),
    "words per turn": (lambda talks, _: intrinsic.words_per_turn(talks), MEAN),
    "turns per conversation": (
        lambda talks, _: intrinsic.turns_per_conversation(talks),
        MEAN,
    ),
    "intent coverage": (extrinsic.intent_coverage, PERCENT),
}
"""The measures that compare two users. Diversity and AUROC are over pairs of turns."""

Record = Mapping[str, Any]
"""A measure as it is in a results.json."""


# --- what the runs hold ---------------------------------------------------------------------------


def finished(*runs: Path) -> bool:
    return all((run / "results.json").is_file() for run in runs)


def record(run: Path, column: str, name: str) -> Record | None:
    """Return one measure of a run; `None` if it was not run."""
    results = read_json(run / "results.json") if finished(run) else {}
    return next((one for one in results.get(column, ()) if one["name"] == name), None)


@cache
def scored(run: Path) -> Mapping[str, Sequence[MeasureRow]]:
    """Return the turns that `userlm ppl` scored, by column."""
    found: dict[str, list[MeasureRow]] = {column: [] for column in GIVEN}
    for line in read_rows(run / "scores.jsonl"):
        found[line.row["column"]].append(score_row(line.row))
    return found


def said(run: Path) -> list[Conversation]:
    return list(read_conversations(run / "conversations.jsonl", may_be_empty=True))


# --- cells ----------------------------------------------------------------------------------------


def shown(
    value: float | None, low: float | None, high: float | None, digits: int = 2
) -> str:
    if value is None:
        return "–"
    if abs(value) >= 100:
        digits = 1 if abs(value) < 1000 else 0
    interval = "" if low is None else f" [{low:,.{digits}f}, {high:,.{digits}f}]"
    return f"{value:,.{digits}f}{interval}"


def cell(found: Record | None, digits: int = 2) -> str:
    """Value and interval, or why there is none."""
    if found is None:
        return "–"
    if found["value"] is None:
        return f"not measured: {found['why']}"
    return shown(found["value"], found["low"], found["high"], digits)


def counted(found: Record | None) -> str:
    gaps = f" ({found['missing']:,} missing)" if found and found["missing"] else ""
    return f"{cell(found)}, n {found['n']:,}{gaps}" if found else "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- perplexity -----------------------------------------------------------------------------------


def of_models(folder: Path, name: str) -> str:
    """Return the table of a measure for all models on all sources."""
    columns = [(source, given) for source in SOURCES for given in GIVEN]
    rows = []
    for model, label in MODELS.items():
        found = [
            record(folder / "ppl" / source / model, given, name)
            for source, given in columns
        ]
        rows.append([label, *map(cell, found)])
    return table(
        ["", *(f"{SOURCES[source]}, {given}" for source, given in columns)], rows
    )


def turns_of(run: Path) -> str:
    """Return the numbers of turns and of people behind a perplexity."""
    found = record(run, WITHOUT, "perplexity")
    if found is None:
        return "–"
    people = {row.cluster for row in scored(run)[WITHOUT] if row.stats}
    gaps = f", {found['missing']:,} missing" if found["missing"] else ""
    return f"{found['n']:,} turns of {len(people):,}{gaps}"


def of_intents(folder: Path) -> str:
    """Return the table of what the intent changes for the user model: on all turns, on later turns,
    and on words outside the intent."""
    rows = []
    for part, (source, prefix) in CLAIMS.items():
        for turns in ("", ", later turns", ", outside the intent"):
            name = f"{prefix}perplexity ratio{turns}"
            found = [
                record(folder / "ppl" / source / USERLM, column, name)
                for column in RATIOS
            ]
            rows.append([f"{part}{turns}", *(cell(one, 3) for one in found)])
    return table(["", *RATIOS], rows)


def of_training(folder: Path) -> str:
    """Return the table of a model's perplexity divided by that of another, on the turns that both
    were measured on."""
    given = {
        "both without intent": (WITHOUT, WITHOUT),
        "both with intent": (WITH, WITH),
        "the first alone with intent": (WITH, WITHOUT),
    }
    rows = []
    for one, other in PAIRS:
        for source, label in SOURCES.items():
            mine = folder / "ppl" / source / one
            theirs = folder / "ppl" / source / other
            cells = ["–"] * len(given)
            if finished(mine, theirs):
                pairs = (
                    (scored(mine)[a], scored(theirs)[b]) for a, b in given.values()
                )
                cells = [cell(measure_record(ratios(a, b)[0]), 3) for a, b in pairs]
            rows.append([f"{MODELS[one]} / {MODELS[other]}: {label}", *cells])
    return table(["the first / the second", *given], rows)


# --- talk -----------------------------------------------------------------------------------------


def of_users(folder: Path) -> str:
    """Return the table of what users say, and how two of them differ."""
    score = folder / "score"
    rows = []
    for kind, (where, names) in TALKS.items():
        for name in names:
            people = "human" if kind == "respond" else f"{kind}-people"
            found = [
                record(score, run, name)
                for run in (*(f"{kind}-{user}" for user in USERS), people)
            ]
            rows.append(
                [f"{name}, {where}", *map(counted, found), apart(folder, kind, name)]
            )
    return table(["", *USERS.values(), "humans", f"{USERLM} less prompted"], rows)


def apart(folder: Path, kind: str, name: str) -> str:
    """Return user model minus prompted, on the same people or tasks."""
    runs = folder / f"{kind}-userlm", folder / f"{kind}-prompted"
    if name not in COMPARED or not finished(*runs):
        return "–"
    function, statistic = COMPARED[name]
    tasks = {task.id: task for task in read_tasks(folder / "tasks.jsonl")}
    a, b = (function(said(run), tasks) for run in runs)
    return shown(*difference(a, b, statistic)[:3])


def endings(folder: Path) -> dict[str, Measure]:
    """Return the termination F1 of both users, and of always and never ending, on the turns that
    both users answered."""
    runs = {USERLM: folder / "respond-userlm", PROMPTED: folder / "respond-prompted"}
    if not finished(*runs.values()):
        return {}
    mine, theirs = (intrinsic.termination(said(run)).rows for run in runs.values())
    both = {row.key for row in mine if row.stats} & {
        row.key for row in theirs if row.stats
    }
    same: dict[str, Sequence[MeasureRow]] = {}
    for name, own in ((USERLM, mine), (PROMPTED, theirs)):
        same[name] = [row for row in own if row.key in both]
    real = [(row, row.stats[TP] + row.stats[FN]) for row in same[USERLM] if row.stats]
    same["always ends"] = [
        replace(row, stats=(ended, 1 - ended, 0.0)) for row, ended in real
    ]
    same["never ends"] = [replace(row, stats=(0.0, 0.0, ended)) for row, ended in real]
    return {name: measure(own, F1, name) for name, own in same.items()}


def of_endings(folder: Path) -> str:
    found = endings(folder)
    if not found:
        return "–"
    mine = found[USERLM]
    ended = sum(row.stats[TP] + row.stats[FN] for row in mine.rows if row.stats)
    people = len({row.cluster for row in mine.rows})
    rows = []
    for name, one in found.items():
        gap = "" if one is mine else shown(*difference(mine, one, F1)[:3])
        rows.append([name, cell(measure_record(one)), gap])
    answers = (
        f"{mine.n:,} turns of {people:,} people; at {ended:,.0f} of them the person ended the "
        "conversation."
    )
    return (
        table(["", "termination F1, %", f"{USERLM} less it"], rows) + f"\n\n{answers}"
    )


# --- users beside people --------------------------------------------------------------------------


def of_assessed(folder: Path) -> str:
    """Return how far each user is from people by each measure, and by how many measures a
    difference is shown."""
    runs = {user: folder / f"assess-{user}" for user in ASSESSED}
    if not finished(*runs.values()):
        return "–"
    found = {user: distances(run) for user, run in runs.items()}
    head = ["", "humans", *ASSESSED.values()]
    rows = [
        [name, people, *(of[name][1] for of in found.values())]
        for name, (people, _, _) in next(iter(found.values())).items()
    ]
    differ = ["a difference is shown"]
    for of in found.values():
        measured = [is_shown for _, _, is_shown in of.values() if is_shown is not None]
        differ.append(f"{sum(measured)} of {len(measured)}")
    return table(head, [*rows, [differ[0], "", *differ[1:]]])


def distances(run: Path) -> dict[str, tuple[str, str, bool | None]]:
    """Return for each measure and stage people's value, the distance of the user from it, and
    whether its interval excludes 0; `None` if there is no interval."""
    found = {}
    for stage, compared in read_json(run / "results.json")["measures"].items():
        for one in compared:
            human, apart = one["human"], one["user"].get("distance")
            if human is None or apart is None:
                continue
            low, high = apart["low"], apart["high"]
            is_shown = None if low is None else low > 0 or high < 0
            found[f"{human['name']}, {STAGES[stage]}"] = (
                cell({**human, "low": None}),
                shown(apart["value"], low, high),
                is_shown,
            )
    return found


# --- the page -------------------------------------------------------------------------------------

PAGE = """## Perplexity of user turns

Lower is better; in brackets 95 % intervals over people (conversations, where no person is named).

{perplexity}

Bits per byte, which do not depend on the tokenizer:

{bits}

The number of turns and people behind each row:

{turns}

## What the intent changes for userlm-small

Ratios of two perplexities on the same turns, paired by person. Another's intent is from the same
source.

{intents}

## One model and another

Ratios of two perplexities on the same turns, paired by person; below 1 the first predicts people
better. They are per token of the first: another tokenizer or format may split a turn into more or
fewer tokens.

{training}

## Users in conversation

In brackets 95 % intervals over people, intents or tasks; diversity, decomposition and coverage are
in percent. `oracle` is a stub assistant: no language model answered. Humans are the same real
conversations, or their turns replayed to the assistant.

{users}

## When they end

On the same turns for all, without first turns; intervals over people.

{endings}

## Five users beside people

The distance of each user from the same people, with its 95 % interval (`userlm assess --quick`).

{assessed}"""


def page(folder: Path) -> str:
    turns = []
    for model, label in MODELS.items():
        counts = [turns_of(folder / "ppl" / source / model) for source in SOURCES]
        turns.append([label, *counts])
    return PAGE.format(
        perplexity=of_models(folder, "perplexity"),
        bits=of_models(folder, "bits per byte"),
        turns=table(["", *SOURCES.values()], turns),
        intents=of_intents(folder),
        training=of_training(folder),
        users=of_users(folder),
        endings=of_endings(folder),
        assessed=of_assessed(folder),
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(page(Path(sys.argv[1])))

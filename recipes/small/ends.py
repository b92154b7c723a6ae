"""Chats whose ends a user model is asked for, and how well it tells them from other turns.

    python recipes/small/ends.py OUT FOLDER

OUT is the folder of run.sh. FOLDER gets ends.jsonl: held-out chats of at most eight turns. Once
`userlm respond --no-first` on it has written FOLDER/respond-ends, a table is printed: F1 and AUROC,
by source, of the user as it sampled, of the user with the threshold that is best on the other
people, and of users without a language model on the same turns.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from findings import shown, table

from userlm.metrics import intrinsic
from userlm.metrics.end_references import ALWAYS, GOODBYES, USER, VISIBLE, compare
from userlm.metrics.termination import calibrate
from userlm.rows import read_conversations, write_conversations
from userlm.types import Conversation, Measure

SOURCES = (
    ("WildChat", "wildchat", "allenai", 65),
    ("Chatbot Arena", "people", "chatbot_arena", 60),
    ("RealHumanEval", "people", "clinicalml", 22),
    ("ShareGPT", "chats", "ShareGPT", 60),
)
"""Name, held-out set, the start of `meta.source`, and the most conversations."""
TURNS = 8
SHOWN = (USER, ALWAYS, GOODBYES, VISIBLE)


def select(out: Path) -> list[Conversation]:
    found: list[Conversation] = []
    for _, name, source, most in SOURCES:
        held = read_conversations(out / "data" / name / "test.jsonl")
        fitting = [c for c in held if is_from(c, source) and len(c.user_turns) <= TURNS]
        found += random.Random(0).sample(fitting, min(most, len(fitting)))
    return found


def is_from(conversation: Conversation, source: str) -> bool:
    return str(conversation.meta.get("source")).startswith(source)


def by_source(responses: list[Conversation]) -> str:
    groups = {"all": responses}
    for label, _, source, _ in SOURCES:
        groups[label] = [c for c in responses if is_from(c, source)]
    head = ["", "turns, people", "the person ended", "user", "F1, %", "AUROC"]
    lines = []
    for label, group in groups.items():
        rows = [
            one for one in compare(group) if one.kind == "all" and one.user in SHOWN
        ]
        front = [
            label,
            f"{rows[0].f1.n:,} of {rows[0].people:,}",
            f"{rows[0].ended:.1f} %",
        ]
        for one in rows:
            lines.append([*front, one.user, cell(one.f1, 1), cell(one.auroc, 2)])
            front = ["", "", ""]
            if one.user == USER:
                lines.append([*front, *at_its_threshold(group)])
    return table(head, lines)


def at_its_threshold(group: list[Conversation]) -> tuple[str, str, str]:
    found = calibrate(intrinsic.termination(group), intrinsic.termination_auroc(group))
    if found.best is None:
        return f"{USER}, own threshold", "none to suggest", ""
    name = f"{USER}, threshold {found.best.threshold}"
    return name, shown(found.best.f1, found.best.low, found.best.high, 1), ""


def cell(found: Measure, digits: int) -> str:
    return shown(found.value, found.low, found.high, digits)


def main(out: Path, folder: Path) -> None:
    if not (folder / "ends.jsonl").exists():
        write_conversations(folder / "ends.jsonl", select(out))
    if (folder / "respond-ends/results.json").exists():
        path = folder / "respond-ends/conversations.jsonl"
        print(by_source(list(read_conversations(path))))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

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


def table(responses: list[Conversation]) -> str:
    groups = {"all": responses}
    for label, _, source, _ in SOURCES:
        groups[label] = [c for c in responses if is_from(c, source)]
    lines = ["| | turns, people | the person ended | user | F1, % | AUROC |"]
    lines.append("| --- | --: | --: | --- | --: | --: |")
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
            lines.append(line(*front, one.user, cell(one.f1, 1), cell(one.auroc, 2)))
            front = ["", "", ""]
            if one.user == USER:
                lines.append(line(*front, *at_its_threshold(group)))
    return "\n".join(lines)


def at_its_threshold(group: list[Conversation]) -> tuple[str, str, str]:
    found = calibrate(intrinsic.termination(group), intrinsic.termination_auroc(group))
    if found.best is None:
        return f"{USER}, own threshold", "none to suggest", ""
    name = f"{USER}, threshold {found.best.threshold}"
    best = Measure("", found.best.f1, found.best.low, found.best.high, ())
    return name, cell(best, 1), ""


def cell(found: Measure, digits: int) -> str:
    if found.value is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main(out: Path, folder: Path) -> None:
    if not (folder / "ends.jsonl").exists():
        write_conversations(folder / "ends.jsonl", select(out))
    if (folder / "respond-ends/results.json").exists():
        path = folder / "respond-ends/conversations.jsonl"
        print(table(list(read_conversations(path))))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

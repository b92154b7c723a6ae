"""Print first turns of three kinds of user, shuffled, for readers who do not know which is which.

    python recipes/small/sheet.py OUT FOLDER [SEED]

OUT is the folder of recipes/small/run.sh. FOLDER gets sheet.md, to be read; key.json, with who said
what, to be opened afterwards; and, once readers have written a file each (a line `NUMBER yes|no
yes|no` for: on the subject? a person's?), counts are printed by the same command.

30 held-out intents: iKAT topics that people wrote, and extractive intents of WildChat and Chatbot
Arena that name at least a third of the content words of the first turn, since others name no
subject. For each one first turn of userlm-small, of the person, and of the prompted assistant, with
their default sampling. SEED, by default 11, chooses the intents and seeds the users. Turns are cut
to 200 characters.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from userlm import loading
from userlm.data.intents import leakage
from userlm.rows import read_conversations
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation

SHOWN = 200  # characters
GROUPS = (("goals", "", 10), ("wildchat", "", 10), ("people", "chatbot_arena", 10))
NAMED = 1 / 3
USERS = {"userlm-small": "trained:userlm-small", "prompted": "prompted:assistant-small"}
PEOPLE = "people"


def main(out: Path, folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "key.json"
    if not key.exists():
        write_sheet(out, folder, seed)
    said = json.loads(key.read_text(encoding="utf-8"))
    for path in sorted(folder.glob("reader-*.txt")):
        print_counts(path, said)


def write_sheet(out: Path, folder: Path, seed: int) -> None:
    logs = chosen(out, seed)
    talks = [Conversation(log.id, intent=log.intent) for log in logs]
    turns = {PEOPLE: [log.user_turns[0] for log in logs]}
    for name, address in USERS.items():
        user = loading.user(address, seed=seed)
        with ThreadPoolExecutor(len(talks)) as pool:
            turns[name] = [reply.text for reply in pool.map(user.reply, talks)]
    places = [(name, i) for name in turns for i in range(len(logs))]
    random.Random(seed).shuffle(places)
    lines = ["# First turns", ""]
    said = {}
    for number, (name, i) in enumerate(places, 1):
        text = " ".join(turns[name][i].split())
        cut = text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
        said[number] = {"user": name, "intent": talks[i].intent, "text": text}
        lines += [
            f"{number}. Intent: {goal(talks[i])}",
            f"   Turn: {cut or '(empty)'}",
            "",
        ]
    (folder / "sheet.md").write_text("\n".join(lines), encoding="utf-8")
    (folder / "key.json").write_text(
        json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8"
    )


def chosen(out: Path, seed: int) -> list[Conversation]:
    found: list[Conversation] = []
    for name, source, count in GROUPS:
        logs = [
            with_prefix(log)
            for log in read_conversations(out / "data" / name / "test.jsonl")
            if str(log.meta.get("source", "")).startswith(source)
        ]
        named = [
            log
            for log in logs
            if name == "goals" or (leakage(log.intent or "", log) or 0) >= NAMED
        ]
        by_intent = {log.intent: log for log in named}  # topics occur several times
        found += random.Random(seed).sample(list(by_intent.values()), count)
    return found


def with_prefix(log: Conversation) -> Conversation:
    """Return the log with a sentence as intent; a topic of iKAT is a few words."""
    intent = log.intent or ""
    if intent.startswith(INTENT_PREFIX):
        return log
    sentence = f"{INTENT_PREFIX}talk about this: {intent[:1].lower()}{intent[1:]}."
    return Conversation(log.id, log.turns, sentence, log.user, meta=log.meta)


def goal(talk: Conversation) -> str:
    return (talk.intent or "").removeprefix(INTENT_PREFIX)


def print_counts(path: Path, said: dict[str, dict[str, str]]) -> None:
    """Print how many turns of each user a reader took for a person's and on the subject."""
    on_subject, person, both = Counter[str](), Counter[str](), Counter[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        number, *marks = line.split()
        user = said[number]["user"]
        yes = [mark == "yes" for mark in marks]
        on_subject[user] += yes[0]
        person[user] += yes[1]
        both[user] += all(yes)
    print(path.name)
    for user in (PEOPLE, *USERS):
        print(
            f"  {user:13} on the subject {on_subject[user]:2}, a person's {person[user]:2}, "
            f"both {both[user]:2} of 30"
        )


def arguments(given: Sequence[str]) -> tuple[Path, Path, int]:
    if len(given) not in (3, 4):
        sys.exit(__doc__)
    return Path(given[1]), Path(given[2]), int(given[3]) if len(given) == 4 else 11


if __name__ == "__main__":
    main(*arguments(sys.argv))

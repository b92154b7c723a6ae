"""Select what `userlm-small` learns from, and the held-out people.

    python recipes/small/mix.py RUN OUT [HELD_OUT]

RUN is a run of `userlm intents` over the logs of recipes/tiny. OUT gets train.jsonl and
valid.jsonl, and a folder for each held-out set, with its test.jsonl: people/ (people of the
sources that it learns from), wildchat/, chats/ (ShareGPT) and goals/ (iKAT, with goals that people
wrote), of which nothing is learned. The numbers are printed and stored in counts.json.

The held-out conversations are fixed: HELD_OUT, by default held_out.txt beside this script, names
them, a set and an id a line, and was written before the first training. Whatever the split of RUN,
these are held out; one that is missing is an error. A file that is not there yet is written, from
the test split of RUN.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from userlm.rows import read_conversations, write_conversations
from userlm.text import ngrams, words
from userlm.types import Conversation

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tiny"))
from mix import source_of, toxic  # noqa: E402

SEED = 0
UNSEEN = {
    "allenai/WildChat": "wildchat",
    "ShareGPT92K": "chats",
    "TREC iKAT": "goals",
}
MOST = {"chats": 150, "goals": 70, "wildchat": 115, "people": 500}
"""The most conversations of a held-out set."""
LEARNED = {
    "chatbot_arena_conversations": 2000,
    "OpenAssistant/oasst1": 4000,
    "clinicalml/realhumaneval": 230,
    "stanford-crfm/halie": 250,
    "MultiWOZ": 150,
    "RasaHQ/STAR": 100,
}
"""The most conversations of a source to learn from. Talk that is not with an AI assistant is few:
it teaches goals that people wrote, and goodbyes."""
VALID = 100
LONGEST_TURN = 100  # words; a longer one is mostly pasted text
TURNS = 12  # in a conversation; later ones are of quizzes without an end
SAME = 0.4
"""Two first turns with this share of their word trigrams in common are of one group. A group is
either learned from or held out."""


def main(run: Path, out: Path, fixed: Path) -> None:
    everything = {c.id: c for c in read_all(run)}
    held = held_out(run, everything, fixed)
    names = {c.id for group in held.values() for c in group}
    seen = openings(c for group in held.values() for c in group)
    pool = [c for c in everything.values() if c.id not in names and learnable(c)]
    candidates = [c for c in pool if not is_known(c, seen)]
    random.Random(SEED).shuffle(candidates)
    taken: list[Conversation] = []
    for source, most in LEARNED.items():
        mine = [c for c in candidates if source_name(c).startswith(source)]
        taken += [shortened(c) for c in mine[:most]]
    random.Random(SEED).shuffle(taken)
    valid, train = taken[:VALID], taken[VALID:]
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("valid", valid)):
        write_conversations(out / f"{split}.jsonl", rows)
    for name, group in held.items():
        (out / name).mkdir(exist_ok=True)
        write_conversations(out / name / "test.jsonl", group)
    counts = {
        "left out, opening like one held out": len(pool) - len(candidates),
        "held out": {name: sources(group) for name, group in held.items()},
        "learned": {"train": sources(train), "valid": sources(valid)},
        "words": word_counts(train),
    }
    (out / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
    print(json.dumps(counts, indent=1))


def read_all(run: Path) -> Iterator[Conversation]:
    for split in ("train", "valid", "test"):
        for conversation in read_conversations(run / f"{split}.jsonl", True):
            meta = {**conversation.meta, "split": split}
            yield replace(conversation, meta=meta)


def held_out(
    run: Path, everything: dict[str, Conversation], fixed: Path
) -> dict[str, list[Conversation]]:
    """Return the held-out sets that the file names; a new choice is written to it."""
    if fixed.exists():
        chosen: dict[str, list[Conversation]] = {}
        for line in fixed.read_text(encoding="utf-8").splitlines():
            name, id = line.split("\t")
            if id not in everything:
                sys.exit(f"{run}: {id}, which {fixed.name} holds out, is missing")
            chosen.setdefault(name, []).append(everything[id])
        return chosen
    groups: dict[str, list[Conversation]] = {"people": [], "wildchat": []}
    for conversation in everything.values():
        source = source_name(conversation)
        where = next((to for name, to in UNSEEN.items() if source.startswith(name)), "")
        if not where and conversation.meta["split"] == "test":
            # The roles of oasst1 train are guesses: too noisy to measure on.
            where = "" if source.startswith("OpenAssistant/oasst1 train") else "people"
        if where and conversation.intent and not toxic(conversation):
            groups.setdefault(where, []).append(conversation)
    chosen = {name: sample(group, MOST[name]) for name, group in groups.items()}
    lines = [f"{name}\t{c.id}\n" for name, group in chosen.items() for c in group]
    fixed.write_text("".join(lines), encoding="utf-8")
    return chosen


def sample(group: Sequence[Conversation], most: int) -> list[Conversation]:
    """Return at most so many, the same number of each source where there are enough."""
    by_source: dict[str, list[Conversation]] = {}
    for conversation in random.Random(SEED).sample(group, len(group)):
        by_source.setdefault(source_name(conversation), []).append(conversation)
    chosen: list[Conversation] = []
    while len(chosen) < most and any(by_source.values()):
        for mine in by_source.values():
            if mine and len(chosen) < most:
                chosen.append(mine.pop())
    return chosen


def learnable(conversation: Conversation) -> bool:
    return (
        source_of(conversation) is not None
        and not source_name(conversation).startswith(tuple(UNSEEN))
        # All of a person who is held out is held out.
        and conversation.meta["split"] != "test"
        and conversation.intent is not None
        and not toxic(conversation)
        and len(words(conversation.user_turns[0])) <= LONGEST_TURN
    )


def shortened(conversation: Conversation) -> Conversation:
    """Return the conversation up to its first long turn, and without an end if it is cut."""
    turns = conversation.turns[:TURNS]
    for at, turn in enumerate(turns):
        if turn.role == "user" and len(words(turn.text)) > LONGEST_TURN:
            turns = turns[:at]
            break
    if turns == conversation.turns:
        return conversation
    return replace(conversation, turns=turns, ended=False)


def openings(conversations: Iterable[Conversation]) -> dict[tuple[str, ...], set[str]]:
    """Return which conversations have a word trigram in their first turn; a turn of fewer words
    counts as one."""
    found: dict[tuple[str, ...], set[str]] = {}
    for conversation in conversations:
        for gram in grams(conversation):
            found.setdefault(gram, set()).add(conversation.id)
    return found


def grams(conversation: Conversation) -> set[tuple[str, ...]]:
    said = [
        re.sub(r"\W", "", word.lower()) for word in words(conversation.user_turns[0])
    ]
    return set(ngrams(said, 3)) or {tuple(said)}


def is_known(conversation: Conversation, seen: dict[tuple[str, ...], set[str]]) -> bool:
    """Whether the first turn shares `SAME` of its trigrams with that of one held out."""
    mine = grams(conversation)
    shared = Counter(id for gram in mine for id in seen.get(gram, ()))
    return max(shared.values(), default=0) >= SAME * len(mine)


def source_name(conversation: Conversation) -> str:
    return str(conversation.meta.get("source", ""))


def sources(conversations: Iterable[Conversation]) -> dict[str, int]:
    return dict(Counter(source_name(c) for c in conversations).most_common())


def word_counts(conversations: Iterable[Conversation]) -> dict[str, int]:
    """Return the words of users, with AI assistants and with people."""
    counts = Counter[str]()
    for conversation in conversations:
        source = source_of(conversation)
        assert source is not None
        said = sum(len(turn.split()) for turn in conversation.user_turns)
        counts["with AI assistants" if source.ai else "with people"] += said
    return dict(counts)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    paths = [Path(path) for path in sys.argv[1:]]
    main(*paths[:2], paths[2] if len(paths) == 3 else HERE / "held_out.txt")

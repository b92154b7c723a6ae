"""Compare samplings of first turns of userlm-small, on validation conversations.

    python recipes/small/sampling.py OUT [TEMPERATURE/TOP_P ...]

OUT is the folder of recipes/small/run.sh. For each sampling and two seeds one first turn is drawn
for the intent of each validation conversation with an AI assistant; they are kept in OUT/sampling.
Prints how they stand beside the first turns of people: the two-sample AUROC with its 95 % interval,
first-turn diversity (the mean over seeds), words a turn and verbatim intent.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from userlm import loading
from userlm.metrics import crowds, two_sample
from userlm.metrics.intrinsic import first_turn_diversity
from userlm.rows import read_conversations, write_conversations
from userlm.text import words
from userlm.types import Conversation, Measure
from userlm.users import with_sampling

SEEDS = (1, 2)
SAMPLINGS = (
    "1.0/0.8",
    "0.8/0.9",
    "0.8/0.8",
    "0.7/0.8",
    "0.6/0.9",
    "0.6/0.8",
    "0.5/0.8",
)
WITH_PEOPLE = ("MultiWOZ", "RasaHQ")
"""Sources that are no talk with an AI assistant."""


def main(out: Path, samplings: Sequence[str]) -> None:
    logs = []
    for log in read_conversations(out / "data" / "valid.jsonl"):
        if not str(log.meta.get("source", "")).startswith(WITH_PEOPLE):
            logs.append(log)
    people = [said(log, log.user_turns[0]) for log in logs]
    print(
        "| temperature/top_p | two-sample AUROC | diversity | words | verbatim intent, % |"
    )
    print("| --- | --: | --: | --: | --: |")
    print(line("people", [people], two_sample.floor(people)[0]))
    folder = out / "sampling"
    folder.mkdir(exist_ok=True)
    for sampling in samplings:
        drawn = [draw(folder, logs, sampling, seed) for seed in SEEDS]
        both = [one for turns in drawn for one in turns]
        measures, _ = two_sample.compare(both, people)
        print(line(sampling, drawn, measures[0]), flush=True)


def draw(
    folder: Path, logs: Sequence[Conversation], sampling: str, seed: int
) -> list[Conversation]:
    """Return first turns, drawn once."""
    path = folder / f"{sampling.replace('/', '-')}-{seed}.jsonl"
    if not path.exists():
        temperature, top_p = map(float, sampling.split("/"))
        user = with_sampling(
            loading.user("trained:userlm-small"),
            seed=seed,
            temperature=temperature,
            top_p=top_p,
        )
        talks = [Conversation(log.id, intent=log.intent) for log in logs]
        with ThreadPoolExecutor(len(talks)) as pool:
            replies = list(pool.map(user.reply, talks))
        turns = [reply.text for reply in replies]
        write_conversations(path, map(said, logs, turns))
    return list(read_conversations(path))


def said(log: Conversation, text: str) -> Conversation:
    """Return a conversation of one turn; each intent is one person."""
    return Conversation(log.id, intent=log.intent, user=log.id).say(text or ".")


def line(name: str, drawn: Sequence[Sequence[Conversation]], test: Measure) -> str:
    both = [one for turns in drawn for one in turns]
    diversity = statistics.mean(
        first_turn_diversity(turns).value or 0 for turns in drawn
    )
    length = statistics.mean(len(words(one.user_turns[0])) for one in both)
    verbatim = crowds.verbatim_intent(both)
    cells = (
        f"{test.value:.2f} [{test.low:.2f}, {test.high:.2f}]",
        f"{diversity:.1f}",
        f"{length:.1f}",
        f"{verbatim.value:.1f} [{verbatim.low:.1f}, {verbatim.high:.1f}]",
    )
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:] or SAMPLINGS)

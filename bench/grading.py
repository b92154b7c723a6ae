"""How often the grader is wrong: numbers read, talk taken for an answer, facts found.

    python bench/grading.py --logs LOGS --gsm8k gsm8k.jsonl.gz --shards lic_shards.jsonl.gz [--fit]

- LOGS: the folder `results/logs/math/snowball-stateful` of the public repository
  ArthurSilvaDantas/lost_in_conversation_stateful: Lost in Conversation's math tasks with four
  assistants. A model said of each answer whether it is an attempt, and copied the number out of it;
  the number and the one of GSM8K decide whether it is right. 162 attempts of which it copied
  nothing have no label.
- Tasks are split in two by the hash of their ids. The rules and points were made on the
  half *looked at*. On the other one they were measured when they were done: 3.8 % of right answers
  failed (11 of 20 in one conversation, that says "3 hours and 47 minutes (or 227 minutes)" 11
  times) and 0.4 % of wrong ones passed. Then quantities of two units got a rule, so the figures of
  the *other half* are no longer of answers that nobody looked at.
- `attempt_corrections.jsonl`: labels by hand of attempts where that model is wrong, such as a
  summary of facts in which the right number happens to stand. Only attempts where grader and label
  disagree were read, so the corrected figures favour the grader.
- `attempt_labels.jsonl`: labels by hand of 100 answers of the other half, half of them talk in the
  eyes of that model, at most one of each conversation, labelled after the rule was done.
- Facts: each wording of a fact (as a simulated user said it) with each fact of its task.
- Conversations, 10 a task. Repeats: all facts, one a turn, as they stand in the file; and a turn
  more, which says one of them again in other words. How often is that repeat found, and how often
  is one found where there is none? By each turn alone, and by `facts.told_in`, which compares
  turns. Left out: all facts in other words, and all but one. How often is that one found to be left
  out, and how often is any where none is?
- `--fit` fits the points of `final_answer.POINTS` to the half that was looked at.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from userlm import facts
from userlm.final_answer import (
    POINTS,
    attempted_number,
    final_number,
    mentions,
    upstream_number,
)
from userlm.rows import read_rows
from userlm.text import numbers
from userlm.types import NO_ATTEMPT, RIGHT, WRONG

HERE = Path(__file__).parent
SHARE = facts.SHARE
HALVES = ("looked at", "other half")
Read = Callable[[str], str | None]
READERS: dict[str, Read] = {
    "the last number, as upstream": upstream_number,
    "final number": final_number,
    "final number of an attempt": attempted_number,
}


@dataclass(frozen=True)
class Answer:
    """An answer in the logs.

    Attributes:
        number: which answer of its conversation it is, from 1.
        wanted: the right number.
        copied: the number that the model copied out of it; `None` if it is talk, or nothing was
            copied.
        label: `RIGHT`, `WRONG`, `NO_ATTEMPT`, or `None` if it is an attempt without a label.
        half: of its task, an index into `HALVES`.
    """

    conversation: str
    number: int
    text: str
    wanted: str
    copied: str | None
    label: str | None
    half: int

    @property
    def key(self) -> tuple[str, int]:
        return self.conversation, self.number


def half_of(task: str) -> int:
    return int(sha256(task.encode()).hexdigest(), 16) % 2


def read_answers(folder: Path, gold: dict[str, str]) -> Iterator[Answer]:
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            index = row["task_id"].rpartition("/")[2]
            yield from of_conversation(row, gold[f"gsm8k-test-{index}"])


def of_conversation(row: dict[str, Any], answer: str) -> Iterator[Answer]:
    wanted = final_number(answer)
    assert wanted
    text = ""
    number = 0
    for event in row["trace"]:
        content = event["content"]
        if event["role"] == "assistant":
            text = content
            number += 1
        if event["role"] != "log":
            continue
        copied = None
        if content["type"] == "answer-evaluation":
            found = numbers(content["exact_answer"])
            copied = found[-1] if found else None
            label = None
            if copied:
                label = RIGHT if copied == wanted else WRONG
        elif content["type"] == "system-verification":
            if content["response"]["response_type"] == "answer_attempt":
                continue  # its evaluation follows
            label = NO_ATTEMPT
        else:
            continue
        half = half_of(row["task_id"])
        yield Answer(row["conv_id"], number, text, wanted, copied, label, half)


def read_labels(name: str, answers: Sequence[Answer]) -> dict[tuple[str, int], str]:
    """Return labels by hand; the text of each answer must still be the one that was read."""
    texts = {answer.key: answer.text for answer in answers}
    labels = {}
    for line in read_rows(HERE / name):
        row = line.row
        key = (row["id"], row["answer"])
        assert sha256(texts[key].encode()).hexdigest()[:16] == row["sha256"], key
        labels[key] = row["label"]
    return labels


def show_numbers(answers: Sequence[Answer], labels: dict[tuple[str, int], str]) -> None:
    print(f"{'':44}{'right answers failed':>24}{'wrong ones passed':>24}")
    for half, name in enumerate(HALVES):
        for how, known in (("", {}), (", corrected", labels)):
            own = [answer for answer in answers if answer.half == half]
            right = [one for one in own if known.get(one.key, one.label) == RIGHT]
            wrong = [one for one in own if known.get(one.key, one.label) == WRONG]
            for reader, read in READERS.items():
                failed = sum(read(one.text) != one.wanted for one in right)
                passed = sum(read(one.text) == one.wanted for one in wrong)
                shown = f"{share(failed, len(right))}{share(passed, len(wrong))}"
                print(f"{name + how:24}{reader:30}{shown}")


def show_attempts(
    answers: Sequence[Answer], labels: dict[tuple[str, int], str]
) -> None:
    by_key = {answer.key: answer for answer in answers}
    talk = [by_key[key] for key, label in labels.items() if label == "TALK"]
    attempts = [by_key[key] for key, label in labels.items() if label == "ATTEMPT"]
    print(
        f"\n{'100 by hand':24}{'':30}{'talk taken as attempt':>24}{'missed attempts':>24}"
    )
    for reader, read in READERS.items():
        false = sum(read(one.text) is not None for one in talk)
        missed = sum(read(one.text) is None for one in attempts)
        print(
            f"{'':24}{reader:30}{share(false, len(talk))}{share(missed, len(attempts))}"
        )
    print(
        f"\n{'talk, as a model says':24}{'':30}{'taken as attempt':>24}{'as right':>24}"
    )
    for half, name in enumerate(HALVES):
        own = [one for one in answers if one.half == half and one.label == NO_ATTEMPT]
        for reader, read in READERS.items():
            false = sum(read(one.text) is not None for one in own)
            right = sum(read(one.text) == one.wanted for one in own)
            print(
                f"{name:24}{reader:30}{share(false, len(own))}{share(right, len(own))}"
            )


def share(n: int, total: int) -> str:
    return f"{n:6} of {total:5}{100 * n / total:7.2f} %   "


# --- facts ----------------------------------------------------------------------------------------


def show_facts(path: Path) -> None:
    wordings = list(read_wordings(path))
    print(f"\n{'facts':24}{'share':>6}{'P':>8}{'R':>8}{'F1':>8}")
    for half, name in enumerate(HALVES):
        own = [one for one in wordings if half_of(one[0]) == half]
        show_f1(own, f"{name}, equal words", 0.75, is_weighted=False)
        for wanted in (0.45, 0.5, 0.55, 0.6, 0.65):
            show_f1(own, name, wanted, is_weighted=True)


Wording = tuple[str, tuple[str, ...], int, str]
"""A task, its facts, the place of a fact, and other words for it."""


def read_wordings(path: Path) -> Iterator[Wording]:
    for line in read_rows(path):
        row = line.row
        shards = row["shards"]
        own = row["shards_exact"] or []
        if len(own) != len(shards):
            own = [shard["shard"] for shard in shards]
        for at, shard in enumerate(shards[1:], 1):
            for variant in shard["variants"]:
                if variant.strip().lower() != own[at].strip().lower():
                    yield row["task_id"], tuple(own), at, variant


def show_f1(
    wordings: Sequence[Wording], name: str, wanted: float, is_weighted: bool
) -> None:
    facts.SHARE = wanted
    counts: Counter[tuple[bool, bool]] = Counter()
    for _, own, at, variant in wordings:
        for place, fact in enumerate(own):
            found = facts.said(fact, [variant], own if is_weighted else ())
            counts[found, place == at] += 1
    hits = counts[True, True]
    precision = hits / (hits + counts[True, False])
    recall = hits / (hits + counts[False, True])
    f1 = 2 * precision * recall / (precision + recall)
    print(f"{name:24}{wanted:6.2f}{precision:8.3f}{recall:8.3f}{f1:8.3f}")


# --- conversations --------------------------------------------------------------------------------


WAYS = ("each turn alone", "turns compared")
LEFT_OUT = "left out"


def show_conversations(path: Path, seed: int = 0) -> None:
    print(f"\n{'conversations':24}{'':30}{'found of one':>24}{'found of none':>24}")
    for half, name in enumerate(HALVES):
        rng = np.random.default_rng(seed)
        told: dict[tuple[str, ...], dict[int, list[str]]] = {}
        for task, own, at, wording in read_wordings(path):
            if half_of(task) == half:
                told.setdefault(own, {}).setdefault(at, []).append(wording)
        found: Counter[tuple[str, bool]] = Counter()
        for own, wordings in told.items():
            for _ in range(10):
                one = int(rng.choice(list(wordings)))
                said = {at: str(rng.choice(texts)) for at, texts in wordings.items()}
                others = [text for at, text in said.items() if at != one]
                for way in WAYS:
                    twice = repeated(own, [*own, said[one]], way)
                    found[way, True] += one in twice
                    found[way, False] += bool(repeated(own, own, way))
                found[LEFT_OUT, True] += not facts.said(own[one], others, own)
                found[LEFT_OUT, False] += any(
                    not facts.said(own[at], list(said.values()), own) for at in said
                )
        total = 10 * len(told)
        for way in (*WAYS, LEFT_OUT):
            what = way if way == LEFT_OUT else f"repeats, {way}"
            shown = share(found[way, True], total) + share(found[way, False], total)
            print(f"{name:24}{what:30}{shown}")


def repeated(own: Sequence[str], turns: Sequence[str], way: str) -> set[int]:
    """Return the places of the facts that several turns tell."""
    told = facts.told_in(own, turns)
    if way == "each turn alone":
        told = [
            [k for k, turn in enumerate(turns) if facts.said(fact, [turn], own)]
            for fact in own
        ]
    return {at for at, found in enumerate(told) if len(found) >= 2}


# --- the points -----------------------------------------------------------------------------------


def show_fit(answers: Sequence[Answer], steps: int = 400) -> None:
    """Print weights of a conditional logistic regression: of the numbers of an answer, which one
    was copied? Two points are one unit of log-odds. Answers of one conversation are alike, so each
    weighs one by the root of their number."""
    names = list(POINTS)
    own = [one for one in answers if one.half == 0 and one.copied]
    count = Counter(one.conversation for one in own)
    rows = []
    for one in own:
        found = mentions(one.text)
        is_it = np.array([mention.number == one.copied for mention in found])
        if is_it.any():
            has = [[name in mention.evidence for name in names] for mention in found]
            weight = count[one.conversation] ** -0.5
            rows.append((np.array(has, float), is_it, weight))
    points = np.zeros(len(names))
    mean = np.zeros(len(names))
    square = np.zeros(len(names))
    for step in range(1, steps + 1):
        gradient = -points / len(rows)
        for has, is_it, weight in rows:
            score = has @ points
            p = np.exp(score - score.max())
            p /= p.sum()
            target = p * is_it / (p * is_it).sum()
            gradient += weight * ((target - p) @ has) / len(rows)
        # Adam
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        size = np.sqrt(square / (1 - 0.99**step)) + 1e-8
        points += 0.08 * mean / (1 - 0.9**step) / size
    print("\npoints: in use, fitted")
    for name, fitted in zip(names, points, strict=True):
        print(f"{name:28}{POINTS[name]:+4}{2 * fitted:+8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    if options.logs:
        gold = {line.row["id"]: line.row["answer"] for line in read_rows(options.gsm8k)}
        answers = [
            answer for answer in read_answers(options.logs, gold) if answer.text.strip()
        ]
        print(
            f"{len(answers):,} answers: {dict(Counter(one.label for one in answers))}"
        )
        show_numbers(answers, read_labels("attempt_corrections.jsonl", answers))
        show_attempts(answers, read_labels("attempt_labels.jsonl", answers))
        if options.fit:
            show_fit(answers)
    if options.shards:
        show_facts(options.shards)
        facts.SHARE = SHARE
        show_conversations(options.shards)


if __name__ == "__main__":
    main()

"""How often the grader is wrong on answers that nobody looked at while its rule was made.

    python bench/gold_answers.py RUNS [RUN ...]

RUNS is a checkout of StanchPillow55/Algoverse-Self-Correction-Classification (at 1e32ba51c), and a
RUN a `traces.jsonl` in it, by default those of claude-3-haiku and gpt-4o-mini on GSM8K: prose, no
form asked for, up to three turns of correcting oneself.

There is no label but the number of GSM8K: an answer counts as right if that number stands in its
last two sentences. So some labels are wrong, and what is printed is an upper bound. Many answers of
claude-3-haiku were cut off by a limit; these, which do not end like a text, are shown apart.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from userlm.final_answer import upstream_number
from userlm.grading import Grader
from userlm.rows import read_rows
from userlm.text import numbers
from userlm.types import RIGHT, Conversation, NumberCheck, Turn

TASKS = "data/gsm8k/test_1k.jsonl"
RUNS = (
    "runs/fullscale_claude-haiku_gsm8k_20250916T065436Z/traces.jsonl",
    "runs/fullscale_gpt-4o-mini_gsm8k_20250916T023606Z/traces.jsonl",
)
SENTENCE = re.compile(r"\n+|(?<=[.!?])\s+")
WHOLE = re.compile(r"[.!?)\]}*\"'`$]\s*$")
"""The end of a text that was not cut off."""


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        right: whether its last two sentences have the number of GSM8K.
        passed, upstream: whether our rule, and that of Lost in Conversation, take it as right.
        whole: whether it was not cut off.
    """

    right: bool
    passed: bool
    upstream: bool
    whole: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUNS")
    parser.add_argument("runs", nargs="*", default=RUNS, metavar="RUN")
    given = parser.parse_args()
    gold = {
        str(line.row["id"]): str(line.row["answer"]).rpartition("####")[2].strip()
        for line in read_rows(given.folder / TASKS)
    }
    seen: set[str] = set()
    print("| | answers | right ones failed | wrong ones passed | the same, upstream |")
    print("| --- | --: | --: | --: | --: |")
    for run in given.runs:
        found = list(answers(given.folder / run, gold, seen))
        name = Path(run).parent.name.split("_")[1]
        for whole in (True, False):
            own = [one for one in found if one.whole == whole]
            print(row(f"{name}, {'whole' if whole else 'cut off'}", own))


def answers(path: Path, gold: dict[str, str], seen: set[str]) -> Iterator[Answer]:
    """Yield the answers of a run that are not in `seen`, to which they are added."""
    for line in read_rows(path):
        number = gold[str(line.row["problem_id"])]
        turns: list[Turn] = []
        for one in line.row["turns"]:  # type: ignore[attr-defined]
            text = one["response_text"]
            turns += [Turn("user", one["prompt"]), Turn("assistant", text)]
            if text.strip() and "API_ERROR" not in text and text not in seen:
                seen.add(text)
                yield answer(text, number, turns)


def answer(text: str, gold: str, turns: Sequence[Turn]) -> Answer:
    wanted = abs(Fraction(gold.replace(",", "")))
    sentences = [part for part in SENTENCE.split(text) if re.search(r"\w", part)]
    last = numbers(" ".join(sentences[-2:]).replace("{,}", ","))
    verdict = Grader().answer(NumberCheck(gold), text, Conversation(turns=tuple(turns)))
    upstream = upstream_number(text)
    return Answer(
        wanted in {abs(Fraction(number)) for number in last},
        verdict.label == RIGHT,
        upstream is not None and upstream == upstream_number(gold),
        bool(WHOLE.search(text)),
    )


def row(name: str, found: Sequence[Answer]) -> str:
    right = [one for one in found if one.right]
    wrong = [one for one in found if not one.right]
    failed, passed = (
        share([not one.passed for one in right]),
        share([one.passed for one in wrong]),
    )
    theirs = (
        f"{share([not one.upstream for one in right])}, "
        f"{share([one.upstream for one in wrong])}"
    )
    return f"| {name} | {len(found):,} | {failed} | {passed} | {theirs} |"


def share(found: Sequence[bool]) -> str:
    part = 100 * sum(found) / len(found) if found else 0
    return f"{sum(found):,} of {len(found):,} ({part:.1f} %)"


if __name__ == "__main__":
    main()

"""Statistics of a set of conversations: the data report, which `userlm clean` writes to
results.json."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from userlm.text import word_batches
from userlm.types import Conversation

QUANTILES = (0.1, 0.5, 0.9, 0.99)

Mask = NDArray[np.bool_]


class Summary:
    """Statistics of many conversations, from a few bytes each. The call of `figures` at the end
    says which of them count."""

    def __init__(self) -> None:
        self._people = array("Q")
        self._named = array("b")  # whether the log names the user
        self._samples = array("I")
        self._lengths = array("I")  # in user turns
        self._turns = array("I")  # user turns that no other conversation has
        self._words = array("I")  # of each user turn
        self._answers = array("I")
        self._characters = array("I")  # of each answer
        self._kinds: dict[tuple[str, str, str], int] = {}  # language, country and model
        self._kind = array("I")

    def add(self, conversation: Conversation, person: int, language: str) -> None:
        """Add a conversation; `person` is the 64-bit hash that decides its split."""
        meta = conversation.meta
        own_turns = conversation.user_turns[conversation.first_own_turn :]
        words = [sum(map(len, word_batches(text))) for text in own_turns]
        answers = [
            len(turn.text) for turn in conversation.turns if turn.role == "assistant"
        ]
        self._people.append(person)
        self._named.append(conversation.user is not None)
        self._samples.append(len(words) + conversation.ended)
        self._lengths.append(len(conversation.user_turns))
        self._turns.append(len(words))
        self._words.extend(words)
        self._answers.append(len(answers))
        self._characters.extend(answers)
        country = str(meta.get("country") or "")
        model = str(meta.get("model") or "")
        number = self._kinds.setdefault((language, country, model), len(self._kinds))
        self._kind.append(number)

    def figures(self, splits: Mapping[str, Mask]) -> dict[str, Any]:
        """Return the report.

        Args:
            splits: for each split, which of the added conversations are in it.

        Raises:
            AssertionError: if a person is in two splits, which is a bug.
        """
        people = np.array(self._people)
        turns = np.array(self._turns)
        samples = np.array(self._samples)
        kept = np.logical_or.reduce(list(splits.values()))
        report: dict[str, Any] = {"splits": {}}
        for name, inside in splits.items():
            report["splits"][name] = {
                "conversations": int(inside.sum()),
                "people": len(np.unique(people[inside])),
                "user turns": int(turns[inside].sum()),
                "samples": int(samples[inside].sum()),
            }
        total = sum(split["people"] for split in report["splits"].values())
        assert total == len(np.unique(people[kept])), "a person is in two splits"
        report["lengths"] = self._length_figures(kept)
        named = kept & np.array(self._named, dtype=np.bool_)
        _, each = np.unique(people[named], return_counts=True)
        report["people"] = {
            "known": len(each),
            "conversations of known people": int(each.sum()),
            "conversations a person": _spread(each),
            "share of the heaviest 1 %": _heaviest_share(each),
        }
        for column, name in enumerate(("languages", "countries", "models")):
            report[name] = self._counts(column, kept)
        return report

    def _length_figures(self, kept: Mask) -> dict[str, dict[str, float] | None]:
        turns = np.array(self._turns)
        answers = np.array(self._answers)
        words = np.array(self._words)[np.repeat(kept, turns)]
        characters = np.array(self._characters)[np.repeat(kept, answers)]
        turns = turns[kept]
        lengths = np.array(self._lengths)[kept]
        # The index in `words` of each conversation's first turn.
        starts = np.cumsum(turns) - turns
        has_first_turn = (turns > 0) & (turns == lengths)
        return {
            "user turns a conversation": _spread(lengths),
            "words a user turn": _spread(words),
            "words a first turn": _spread(words[starts[has_first_turn]]),
            "characters an answer": _spread(characters),
        }

    def _counts(self, column: int, kept: Mask) -> dict[str, int]:
        """Return the number of conversations by language, country or model."""
        kinds = np.array(self._kind, dtype=np.int64)[kept]
        numbers = np.bincount(kinds, minlength=len(self._kinds)).tolist()
        counts: Counter[str] = Counter()
        for kind, number in zip(self._kinds, numbers, strict=True):
            counts[kind[column] or "not known"] += number
        return {name: count for name, count in counts.most_common() if count}


def _spread(values: NDArray[Any]) -> dict[str, float] | None:
    """Return mean, quantiles and the largest; `None` if there are no values."""
    if not len(values):
        return None
    spread = {"mean": round(float(values.mean()), 2)}
    quantiles = np.quantile(values, QUANTILES, method="inverted_cdf").tolist()
    for share, value in zip(QUANTILES, quantiles, strict=True):
        spread[f"{100 * share:.0f} %"] = float(value)
    return {**spread, "largest": float(values.max())}


def _heaviest_share(each: NDArray[Any]) -> float | None:
    """Return the share (0 to 1) of the conversations that come from the most active 1 % of
    people."""
    if not len(each):
        return None
    count = max(len(each) // 100, 1)
    most = np.sort(each)[-count:]
    return round(float(most.sum() / each.sum()), 4)

"""What a set of conversations is like, in figures: the data report. `userlm clean` keeps it in
results.json."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from userlm.types import Conversation

QUANTILES = (0.1, 0.5, 0.9, 0.99)


class Summary:
    """Figures of many conversations, a few bytes for each; which of them count is decided in the
    end."""

    def __init__(self) -> None:
        self._people, self._known = array("Q"), array("b")
        self._turns, self._samples = array("I"), array("I")
        self._words, self._answers = (
            array("I"),
            array("I"),
        )  # words of user turns; characters of answers
        self._answered = array("I")
        self._kinds: dict[tuple[str, str, str], int] = {}
        self._kind = array("I")

    def add(self, conversation: Conversation, person: int, language: str) -> None:
        """Take one more in; `person`: 64 bits that tell who it belongs to for the split, be it only
        itself."""
        meta, said = conversation.meta, conversation.user_turns
        answers = [len(turn.text) for turn in conversation.turns if turn.role == "assistant"]
        self._people.append(person)
        self._known.append(conversation.user is not None)
        self._turns.append(len(said))
        self._samples.append(len(said) + conversation.ended)
        self._words.extend([len(text.split()) for text in said])
        self._answered.append(len(answers))
        self._answers.extend(answers)
        kind = (language, str(meta.get("country") or ""), str(meta.get("model") or ""))
        self._kind.append(self._kinds.setdefault(kind, len(self._kinds)))

    def figures(self, parts: Mapping[str, NDArray[np.bool_]]) -> dict[str, Any]:
        """The report.

        Args:
            parts: for each split, which of the conversations that were added are in it.

        Raises:
            AssertionError: if a person is in two splits, which must not be.
        """
        people, turns = np.array(self._people), np.array(self._turns)
        kept = np.logical_or.reduce(list(parts.values()))
        of = {name: set(people[inside].tolist()) for name, inside in parts.items()}
        everyone = set(people[kept].tolist())
        assert len(everyone) == sum(map(len, of.values())), "somebody is in two splits"
        samples, known = np.array(self._samples), np.array(self._known, dtype=np.bool_)
        per_turn = np.repeat(kept, turns)
        firsts = np.zeros(len(per_turn), dtype=np.bool_)
        firsts[(np.cumsum(turns) - turns)[turns > 0]] = True
        words, answers = np.array(self._words), np.array(self._answers)
        answered = np.repeat(kept, np.array(self._answered))
        each = np.unique(people[kept & known], return_counts=True)[1]
        return {
            "splits": {
                name: {
                    "conversations": int(inside.sum()),
                    "people": len(of[name]),
                    "user turns": int(turns[inside].sum()),
                    "samples": int(samples[inside].sum()),
                }
                for name, inside in parts.items()
            },
            "lengths": {
                "user turns a conversation": _spread(turns[kept]),
                "words a user turn": _spread(words[per_turn]),
                "words a first turn": _spread(words[per_turn & firsts]),
                "characters an answer": _spread(answers[answered]),
            },
            "people": {
                "known": len(each),
                "conversations of known people": int(each.sum()),
                "conversations a person": _spread(each),
                "share of the heaviest 1 %": _heaviest(each),
            },
            **{
                name: self._counted(i, kept)
                for i, name in enumerate(("languages", "countries", "models"))
            },
        }

    def _counted(self, field: int, kept: NDArray[np.bool_]) -> dict[str, int]:
        counts: Counter[str] = Counter()
        kinds = list(self._kinds)
        numbers = np.bincount(np.array(self._kind, dtype=np.int64)[kept], minlength=len(kinds))
        for kind, count in zip(kinds, numbers.tolist(), strict=True):
            counts[kind[field]] += count
        return {name or "not known": count for name, count in counts.most_common() if count}


def _spread(values: NDArray[Any]) -> dict[str, float] | None:
    """Mean, quantiles and the largest; `None` of nothing."""
    if not len(values):
        return None
    found = np.quantile(values, QUANTILES, method="inverted_cdf")
    shown: Sequence[tuple[float, Any]] = list(zip(QUANTILES, found, strict=True))
    quantiles = {f"{100 * share:.0f} %": float(value) for share, value in shown}
    return {"mean": round(float(values.mean()), 2), **quantiles, "largest": float(values.max())}


def _heaviest(each: NDArray[Any]) -> float | None:
    """The share (0 to 1) of the conversations that the 1 % of people with most of them have."""
    if not len(each):
        return None
    most = np.sort(each)[::-1][: max(len(each) // 100, 1)]
    return round(float(most.sum() / each.sum()), 4)

"""Conversations of a run, and what `score` found in single ones: how human a classifier finds them,
whether their task was solved, and which turn said which fact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from userlm.json_files import take
from userlm.lines import parse_line
from userlm.metrics.two_sample import OVERALL
from userlm.rows import parsed, read_parsed
from userlm.types import Conversation, InputError

T = TypeVar("T")

ADVICE = "; delete that file and results.json, and run its command again"

PEOPLE = "human: "
"""Begins the keys of people's turns in the rows of the classifier."""


@dataclass
class Noted:
    """What is known of one conversation.

    Attributes:
        log_odds: of each turn that a classifier read: how much it takes it for a simulated one.
        verdict: why its task counts as solved, or not.
        said: facts of the task, by the number of the user's turn that says them.
        unsaid: required facts that no turn says.
    """

    log_odds: list[float] = field(default_factory=list)
    solved: bool | None = None
    verdict: str = ""
    said: dict[int, list[str]] = field(default_factory=dict)
    unsaid: list[str] = field(default_factory=list)

    @property
    def human(self) -> float | None:
        """How human the classifier finds it, higher if more."""
        return -fmean(self.log_odds) if self.log_odds else None


Notes = Mapping[tuple[str, str], Noted]
"""By the column of the score, and the id of the conversation."""


@dataclass(frozen=True)
class Talks:
    """Conversations of a user with an assistant.

    Attributes:
        name: the name of their run, in links to them too.
        shown: the first ones.
        total: how many there are.
    """

    name: str
    user: str
    assistant: str
    path: str
    shown: Sequence[Conversation] = ()
    total: int = 0
    notes: Notes = field(default_factory=dict)

    def noted(self, talk: Conversation) -> Noted:
        """Return what is known of a conversation."""
        return self.notes.get((self.name, talk.id)) or Noted()


class Notebook:
    """Takes the lines of a score, and gives the `Notes`."""

    def __init__(self) -> None:
        self.notes: defaultdict[tuple[str, str], Noted] = defaultdict(Noted)

    def read(self, folder: Path) -> Notes:
        """Return what a whole score says."""
        for line in some_rows(folder / "scores.jsonl", self.wants):
            self.add_score(line)
        return self.read_tasks(folder)

    def wants(self, raw: bytes) -> bool:
        """Return whether `add_score` may need a line with this text."""
        return f'"{OVERALL}"'.encode() in raw

    def read_tasks(self, folder: Path) -> Notes:
        """Return it with what the score says of tasks, if there are any."""
        for name, add in (("grades", self._add_grade), ("facts", self._add_fact)):
            path = folder / f"{name}.jsonl"
            if path.is_file():
                for _ in rows(path, add):
                    pass
        return self.notes

    def add_score(self, line: Mapping[str, Any]) -> None:
        """Add a line of scores.jsonl."""
        if line.get("metric") != OVERALL or not line.get("stats"):
            return
        key = str(line.get("key"))
        if not key.startswith(PEOPLE):
            id, _, _ = key.rpartition("/")
            self.notes[str(line.get("column")), id].log_odds.append(
                float(line["stats"][0])
            )

    def _add_grade(self, line: Mapping[str, Any]) -> None:
        found = self._of(line)
        solved = line.get("solved")
        found.solved = solved if isinstance(solved, bool) else None
        found.verdict = str(line.get("reason") or "")

    def _add_fact(self, line: Mapping[str, Any]) -> None:
        found = self._of(line)
        fact = take(line, "fact", str)
        turns = take(line, "user", list)
        if not all(isinstance(turn, int) for turn in turns):
            raise ValueError("field 'user' is no list of numbers")
        for turn in turns:
            found.said.setdefault(turn, []).append(fact)
        if not turns and line.get("required"):
            found.unsaid.append(fact)

    def _of(self, line: Mapping[str, Any]) -> Noted:
        return self.notes[take(line, "run", str), take(line, "conversation", str)]


def rows(path: Path, parse: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
    """Yield the parsed rows of a line file, which may be empty, but not missing or damaged."""
    _check_is_there(path)
    yield from read_parsed(path, lambda line: parse(line.row), ADVICE, True)


def some_rows(
    path: Path, is_wanted: Callable[[bytes], bool]
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a line file whose text is wanted: a score has up to a million others, and
    to parse them takes most of the time of a report."""
    _check_is_there(path)
    with path.open("rb") as file:
        numbered = enumerate(file, 1)
        lines = (parse_line(number, raw) for number, raw in numbered if is_wanted(raw))
        yield from parsed(path, lines, lambda line: line.row, ADVICE)


def _check_is_there(path: Path) -> None:
    if not path.is_file():
        raise InputError(
            f"{path} is missing; delete results.json there and run its command again"
        )


def first_of(
    conversations: Iterable[Conversation], most: int
) -> tuple[list[Conversation], int]:
    """Return the first conversations, and the number of all."""
    left = iter(conversations)
    shown = list(islice(left, most))
    return shown, len(shown) + sum(1 for _ in left)

"""Where the intents of `userlm intents` come from: they exist already, or a writer writes them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from userlm.data.extractive import extractive
from userlm.data.intents import NOTHING, check, write
from userlm.data.layouts.fields import id_of
from userlm.json_files import take
from userlm.lines import Line
from userlm.models.budget import CAP
from userlm.models.call_cache import CallCache
from userlm.rows import read_parsed
from userlm.text import stable_hash, words
from userlm.types import Conversation, Message, Sampling

EXTRACTIVE = "extractive"
NO_INTENT = "no intent, "
"""What stands before the reason in the note of a conversation without one."""
LONGEST_GOAL = 2000  # characters; a longer text is likely a page of instructions


@dataclass(frozen=True, slots=True)
class Intent:
    """An intent, or why there is none.

    Attributes:
        by: `extractive`, `human`, `joined`, or the name of a model; empty if the log does not say.
        note: the name of the count that it adds to.
        error: the error message, if the model could not answer.
    """

    text: str | None
    by: str = ""
    note: str = ""
    error: str = ""


# --- intents that exist ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Existing:
    """Intents that need no writer.

    Attributes:
        joined: intents by id, from --join.
        goals: whether the goal that a person wrote with a log is its intent.
        overwrite: whether intents in the logs are replaced.
    """

    joined: Mapping[str, str]
    goals: bool
    overwrite: bool

    def find(self, conversation: Conversation) -> Intent | None:
        """Return the existing intent of a conversation, if there is one."""
        if conversation.intent is not None and not self.overwrite:
            by = conversation.meta.get("intent_by")
            known_by = by if isinstance(by, str) else ""
            return Intent(conversation.intent, known_by, "had an intent")
        for name in joined_names(conversation.id):
            if name in self.joined:
                return Intent(self.joined[name], "joined", "joined")
        goal, _ = human_goal(conversation)
        if self.goals and goal:
            return Intent(goal, "human", "human goal")
        return None


def joined_names(id: str) -> tuple[str, ...]:
    """Return the ids that a joined file may use for a conversation: its id, and for WildChat the
    hash at the start of its id."""
    hashed = re.match(r"([0-9a-f]{32})-\d+$", id)
    return (id, hashed[1]) if hashed else (id,)


def human_goal(conversation: Conversation) -> tuple[str, str]:
    """Return the goal that a person wrote with a log. If it is not used, return an empty text and
    the reason; if there is no goal, both are empty."""
    goal = conversation.meta.get("goal")
    text = " ".join(goal.split()) if isinstance(goal, str) else ""
    if len(text) > LONGEST_GOAL:
        return "", "too long"
    if text and len(words(text)) < 2:
        return "", "one word"  # the name of an exercise
    return text, ""


def _joined_row(line: Line) -> tuple[str, str]:
    name = id_of(line.row, "id") or take(line.row, "id", str)
    intent: str = take(line.row, "intent", str, default="")
    return name, " ".join(intent.split())


def read_joined(paths: Iterable[Path]) -> tuple[dict[str, str], Counter[str]]:
    """Read the files of --join; return intents by id, and counts of what was skipped.

    Raises:
        InputError: the message names the file, line and field.
    """
    joined: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for path in paths:
        rows = read_parsed(path, _joined_row, "; give rows of id and intent")
        for name, intent in rows:
            if not intent:
                counts["note: joined file, empty intent"] += 1
            elif name in joined:
                counts["note: joined file, duplicate id"] += 1
            else:
                joined[name] = intent
    return joined, counts


# --- writers --------------------------------------------------------------------------------------


def extract(conversation: Conversation) -> Intent:
    """Return the extractive intent, or why there is none."""
    intent = extractive(conversation)
    reason = NOTHING if intent is None else check(intent, conversation)
    if reason:
        return Intent(None, note=f"{NO_INTENT}{reason}")
    return Intent(intent, EXTRACTIVE, "written")


@dataclass(frozen=True, slots=True)
class ModelWriter:
    """A chat model that writes intents.

    Attributes:
        name: its name for `meta`.
        tries: the maximum number of calls for an intent.
    """

    name: str
    cache: CallCache
    sampling: Sampling
    tries: int

    def write(self, conversation: Conversation) -> Intent:
        """Return the intent that the model writes, or why there is none."""
        error = ""

        def ask(number: int, messages: Sequence[Message]) -> tuple[str | None, str]:
            nonlocal error
            seed = stable_hash(conversation.id, number) % 2**63
            sampling = replace(self.sampling, seed=seed)
            answer = self.cache.ask(conversation.id, number, messages, sampling)
            error = answer.error
            return answer.text, answer.reason

        text, reason = write(conversation, ask, self.tries)
        if not error and reason != NOTHING:
            self.cache.count_use(conversation.id, text is not None)
        if text is not None:
            return Intent(text, self.name, "written")
        if error:
            is_capped = error.startswith(CAP)
            reason = "cap reached" if is_capped else f"call failed: {reason}"
        return Intent(None, note=f"{NO_INTENT}{reason}", error=error)

"""Rows for trainers: messages, prompt-completion and dpo, as TRL takes them, and ShareGPT.

Only words are in them: no thought, no tool call, nothing of `meta`. The side that is trained is the
`assistant` of a row. For a user model the roles are swapped, its intent is the system message, and
where the end was observed, its last message is the end token.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from userlm.exports.lineage import Source
from userlm.json_files import dump, loads
from userlm.rows import from_record, to_record
from userlm.text import END_TOKEN
from userlm.types import OTHER_ROLE, Conversation, Message, Role, Sample, messages_of

Row = dict[str, Any]


class Talk(NamedTuple):
    """A conversation and the file that it is from."""

    source: Source
    conversation: Conversation

    @property
    def id(self) -> str:
        """An id that no other conversation of the export has."""
        return f"{self.source.prefix}{self.conversation.id}"


_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def own_turns(conversation: Conversation, side: Role) -> list[int]:
    """Return the places of the turns of a side that are the conversation's own: not those of the
    log that it continues, and no greeting."""
    first = Sample(conversation, conversation.first_own_turn).at
    turns = conversation.turns[first:]
    return [i for i, turn in enumerate(turns, first) if turn.role == side]


def messages(talk: Talk, side: Role) -> Iterator[Row]:
    """Yield the row of a conversation, up to the last turn of the side."""
    yield {
        **_named(talk),
        "messages": _whole(talk.conversation, side),
        "intent": talk.conversation.intent,
        "ended": talk.conversation.ended,
    }


def sharegpt(talk: Talk, side: Role) -> Iterator[Row]:
    """Yield the row of a conversation; `complete` is whether its end was observed."""
    said = _whole(talk.conversation, side)
    row = _named(talk)
    if said[0]["role"] == "system":
        row["system"] = said.pop(0)["content"]
    row["conversations"] = [
        {"from": _SHAREGPT[one["role"]], "value": one["content"]} for one in said
    ]
    yield {**row, "complete": talk.conversation.ended}


def prompt_completion(talk: Talk, side: Role) -> Iterator[Row]:
    """Yield a row for each turn of the side, and the end of a user. A first turn without an intent
    has no prompt, which trainers do not take, so it has no row."""
    whole = _whole(talk.conversation, side)
    told = int(whole[0]["role"] == "system")
    places = [told + place for place in own_turns(talk.conversation, side)]
    if len(whole) > told + len(talk.conversation.turns):
        places.append(len(whole) - 1)  # the end
    for place in places:
        if place:
            yield {
                **_named(talk),
                "prompt": whole[:place],
                "completion": [whole[place]],
            }


def _named(talk: Talk) -> Row:
    return {"id": talk.id, "run": talk.source.key}


def _whole(conversation: Conversation, side: Role) -> list[Message]:
    """Return the messages up to the last own turn of the side, which is the `assistant` in them."""
    last = own_turns(conversation, side)[-1]
    turns = conversation.turns[: last + 1]
    if side == "assistant":
        return messages_of(turns)
    said: list[Message] = [
        {"role": OTHER_ROLE[turn.role], "content": turn.text}
        for turn in conversation.turns[: None if conversation.ended else last + 1]
    ]
    if conversation.system:
        said.insert(0, {"role": "system", "content": conversation.system})
    if conversation.ended:
        said.append({"role": "assistant", "content": END_TOKEN})
    return said


# --- preferences ----------------------------------------------------------------------------------


def dpo(talks: Iterable[Talk], counts: Counter[str], folder: Path) -> Iterator[Row]:
    """Yield pairs of answers to the same prompt: one from a conversation that solved its task, and
    one from a conversation about the same task that did not.

    A pair is the first turn in which two conversations differ, if it is the assistant's. Where that
    is a turn of the user, the prompts differ, and there is no pair. Each conversation has at most
    one, with the one that it shares most turns with.

    Args:
        counts: gets how many tasks and conversations had no pair, and why.
        folder: has the conversations in the meantime, so that the memory holds those of a task.
    """
    for task, about in _by_task(talks, counts, folder):
        solved, unsolved = _by_outcome(about)
        if not (solved and unsolved):
            what = "solved in none" if not solved else "solved in all"
            counts[f"tasks that were {what} of their graded conversations"] += 1
            continue
        seen = set()
        for one, others, is_solved in (
            *((one, unsolved, True) for one in solved),
            *((one, solved, False) for one in unsolved),
        ):
            best = max(others, key=lambda other: _shared(one, other))
            chosen, rejected = (one, best) if is_solved else (best, one)
            shared = _shared(one, best)
            if shared < 0:
                counts["conversations that differ first in a turn of the user"] += 1
                continue
            row = _pair(task, chosen, rejected, shared)
            key = repr((row["prompt"], row["chosen"], row["rejected"]))
            if key not in seen:
                seen.add(key)
                yield row


def _by_task(
    talks: Iterable[Talk], counts: Counter[str], folder: Path
) -> Iterator[tuple[str, list[Talk]]]:
    """Yield each task with the conversations about it."""
    places: defaultdict[str, list[tuple[Source, int]]] = defaultdict(list)
    with TemporaryFile(dir=folder) as file:
        for talk in talks:
            if task := task_of(talk.conversation):
                places[task].append((talk.source, file.tell()))
                file.write(dump(to_record(talk.conversation)) + b"\n")
            else:
                counts["conversations without a task"] += 1
        for task, of_task in places.items():
            about = []
            for source, place in of_task:
                file.seek(place)
                about.append(Talk(source, from_record(loads(file.readline()))))
            yield task, about


def task_of(conversation: Conversation) -> str:
    """Return the id of the task of a conversation; empty if there is none."""
    return (conversation.origin and conversation.origin.task) or ""


def _by_outcome(about: Sequence[Talk]) -> tuple[list[Talk], list[Talk]]:
    """Return the conversations about a task that solved it, and those that did not.

    Without grades, one that went on to its end did not, if another stopped since it did.
    """
    outcomes = [talk.source.solved(talk.conversation) for talk in about]
    solved = [talk for talk, outcome in zip(about, outcomes, strict=True) if outcome]
    unsolved = []
    for talk, outcome in zip(about, outcomes, strict=True):
        went_on = talk.conversation.stop in ("end", "max_turns")
        is_ungraded = outcome is None and not talk.source.grades
        if outcome is False or (is_ungraded and went_on):
            unsolved.append(talk)
    return solved, unsolved


def _shared(one: Talk, other: Talk) -> int:
    """Return how many turns two conversations share before they differ in an own turn of the
    assistant; -1 if they differ otherwise."""
    turns, others = one.conversation.turns, other.conversation.turns
    for place, (turn, another) in enumerate(zip(turns, others, strict=False)):
        if (turn.role, turn.text) != (another.role, another.text):
            own = own_turns(one.conversation, "assistant")
            return place if place in own and another.role == "assistant" else -1
    return -1


def _pair(task: str, chosen: Talk, rejected: Talk, shared: int) -> Row:
    return {
        **_named(chosen),
        "rejected_id": rejected.id,
        "rejected_run": rejected.source.key,
        "task": task,
        "prompt": messages_of(chosen.conversation.turns[:shared]),
        "chosen": messages_of(chosen.conversation.turns[shared : shared + 1]),
        "rejected": messages_of(rejected.conversation.turns[shared : shared + 1]),
    }


def left_out(conversation: Conversation, side: Role, trains: bool) -> str:
    """Return why a conversation gives no row; empty if it does.

    Args:
        trains: whether the format is one for trainers, of which a side learns.
    """
    if not conversation.turns:
        return "no turns"
    if not trains:
        return ""
    if not own_turns(conversation, side):
        return f"no turn of the {side} of its own"
    has_end = any(END_TOKEN in turn.text for turn in conversation.turns)
    if side == "user" and has_end:
        return f"a turn says {END_TOKEN}, as only an end may"
    return ""


FORMATS: Mapping[str, Any] = {
    "messages": messages,
    "prompt-completion": prompt_completion,
    "sharegpt": sharegpt,
}
"""The function of each format that makes rows of a conversation for a side."""

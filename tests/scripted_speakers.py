"""Users and assistants whose scores follow from how they are made, for grids of them.

The task is to find out how many things there are in `a` boxes of `b` each (`b` from 1 to 4). The
user knows both numbers. All chance comes from the conversation's id, so it is the same in each
cell.

|                                | waits | guesses | asks |
|--------------------------------|-------|---------|------|
| all at once                    | 100   | 100     | 0    |
| one fact a turn                | 100   | 25      | 0    |
| forgetful (b, in half of them) | 50    | 25      | 0    |
"""

import re

from userlm import Conversation, Reply
from userlm.text import stable_hash

SCORES = {
    "at_once": {"waits": 100, "guesses": 100, "asks": 0},
    "one_by_one": {"waits": 100, "guesses": 25, "asks": 0},
    "forgetful": {"waits": 50, "guesses": 25, "asks": 0},
}
"""The scores, in percent, by user and assistant."""


def tasks(count: int) -> list[dict[str, object]]:
    """The rows of so many tasks."""
    rows = []
    for i in range(count):
        boxes, each = 11 + i, 1 + i % 4
        facts = [f"There are {boxes} boxes.", f"Each of them holds {each}-fold packs."]
        rows.append(
            {
                "id": f"t{i}",
                "goal": "find out how many packs there are",
                "facts": [*facts, {"text": "They are green.", "required": False}],
                "check": {"number": boxes * each},
            }
        )
    return rows


def chance(conversation: Conversation, what: str) -> float:
    """A number from 0 to 1 for this conversation."""
    return stable_hash(conversation.id, what) % 10_000 / 10_000


def _next(conversation: Conversation, lines: list[str]) -> Reply:
    said = len(conversation.user_turns)
    return Reply(lines[said]) if said < len(lines) else Reply(stop="end")


def _facts(conversation: Conversation) -> list[str]:
    return re.findall(r"(?:There are|Each of them)[^.]+\.", conversation.intent or "")


# --- users ----------------------------------------------------------------------------------------


def at_once(conversation: Conversation) -> Reply:
    """Says everything, and insists once."""
    return _next(conversation, [" ".join(_facts(conversation)), "are you sure?"])


def one_by_one(conversation: Conversation) -> Reply:
    return _next(conversation, _facts(conversation))


def forgetful(conversation: Conversation) -> Reply:
    """Does not say the second fact in about half of the conversations: in few about some tasks, in
    most about others."""
    boxes, each = _facts(conversation)
    task = conversation.id.partition("#")[0]
    share = (1 + stable_hash(task) % 4) / 5
    forgets = chance(conversation, "forgets") < share
    return _next(conversation, [boxes, "i do not know" if forgets else each])


# --- assistants -----------------------------------------------------------------------------------


def _heard(conversation: Conversation) -> tuple[int | None, int | None]:
    said = " ".join(conversation.user_turns)
    boxes = re.search(r"(\d+) boxes", said)
    each = re.search(r"(\d+)-fold", said)
    return boxes and int(boxes[1]), each and int(each[1])


def waits(conversation: Conversation) -> str:
    """Answers once it knows both."""
    boxes, each = _heard(conversation)
    if boxes is None or each is None:
        return "What else can you tell me?"
    return f"The answer is {boxes * each}."


def guesses(conversation: Conversation) -> str:
    """Answers at once, with a guess of what it does not know, and stays with that."""
    before = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    if before:
        return before[0]
    boxes, each = _heard(conversation)
    guess = 1 + int(4 * chance(conversation, "guesses"))
    return f"The answer is {(boxes or 1) * (each or guess)}."


def asks(conversation: Conversation) -> str:
    return "What else can you tell me?"

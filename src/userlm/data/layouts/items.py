"""Rows of question sets become test items (`userlm.items`), with frozen turns of the assistant.

role-items    CommonsenseQA (`question`, and `choices` with their `text`); or rows with ready-made
              turns, in `conversation_history`, and `choices`
intent-items  NaturalQuestions and any other `question`; or with a `suggestion`, or a ready-made
              answer of the assistant, in `assistant_suggestion_turn`

Where a row has no turn of the assistant, it gets one of ours, always the same one. These layouts
are never guessed: any set of questions has such fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from userlm import items
from userlm.data.layouts.common import Imported, Layout, read_messages
from userlm.data.layouts.fields import (
    Rejected,
    Row,
    id_of,
    list_of,
    parse_json,
    scalars,
    text_of,
)
from userlm.text import INTENT_PREFIX, stable_hash
from userlm.types import Conversation, Turn

T = TypeVar("T")

FORMS = (
    ("{question} options: {choices}", ", "),
    ("{question}\n{choices}", "\n"),
    ("{question} ({choices})", " / "),
    ("{question} choose one: {choices}", "; "),
)
"""How people write the choices behind a question, and what they put between two of them."""

UNSURE = (
    "I'm not sure about this one, to be honest. What do you think?",
    "Hmm, that's difficult. I could see arguments for several of these.",
    "I don't know the answer, sorry. Do you have a guess?",
    "This one has me stumped. Which would you lean towards?",
    "I'd rather not commit to anything here, because I might well be wrong.",
    "Good question, but I can't say with confidence. How would you approach it?",
    "I keep going back and forth between these. Is there more context?",
    "It could be read in more than one way, so I'm undecided.",
    "I'm afraid I can't tell which one is meant. What's your feeling?",
    "Honestly, I would only be guessing. Would you like to try first?",
    "I have doubts about all of them. Where does the question come from?",
    "Let me be upfront: I'm uncertain, and I don't want to mislead you.",
    "I can't settle on one of them. What would you pick?",
    "Not an easy one! I don't feel able to decide.",
    "I wish I knew. Maybe we can think about it together?",
    "My knowledge is a bit shaky here, so I'd leave it open.",
)

DIVERSIONS = (
    ("How about {} instead?", "a short quiz on world records"),
    ("Before that, would you like {}?", "some tips for sleeping better"),
    ("I could also offer you {}. Shall I?", "a recipe for a quick vegetable curry"),
    ("Why don't we start with {}?", "a list of podcasts worth hearing"),
    ("Let me suggest {}, I think you'd enjoy that.", "a game of twenty riddles"),
    ("It might be more fun to go for {}. Want to?", "a story about a lost suitcase"),
    ("Have you thought about {}? I can help with that.", "keeping a travel diary"),
    ("What would you say to {} first?", "a stretching routine for office workers"),
    ("I'd propose {}, if you have a minute.", "a plan for tidying your desk"),
    ("Perhaps you would prefer {}?", "gift ideas for a colleague"),
    ("Interesting topic! Can I tempt you with {}?", "a beginner's guide to chess"),
    ("We could turn to {}. I know a lot about it.", "growing tomatoes on a balcony"),
    ("Many people who ask this like {}. Shall we begin?", "a crash course in juggling"),
    ("Let's try something else: {}.", "writing a poem about your home town"),
    ("May I interest you in {}?", "the best exercises for a sore back"),
    ("I'd love to talk about {} with you. Okay?", "famous bridges and their builders"),
)
"""What an assistant says, and what it suggests."""


def role_item(row: Row) -> Imported:
    """Return the item of a multiple-choice question."""
    choices = _choices(row)
    question = text_of(row, "question") or ""
    if row.get("conversation_history") is not None:
        turns = _ready_made(row)
    elif question:
        form, between = _one_of(FORMS, question, "form")
        asked = form.format(question=question, choices=between.join(map(str, choices)))
        turns = (asked, _one_of(UNSURE, question, "unsure"))
    else:
        raise Rejected("no messages", "field 'question' is missing or empty")
    concept = text_of(row, "question_concept")
    about = f" about {concept}" if concept else ""
    wanted = f"get the answer to a multiple-choice question{about}."
    return _item(row, "role", turns, wanted, choices=choices)


def intent_item(row: Row) -> Imported:
    """Return the item of a question, after which the assistant suggests something else."""
    question = text_of(row, "question")
    if not question:
        raise Rejected("no messages", "field 'question' is missing or empty")
    answer = text_of(row, "assistant_suggestion_turn")
    suggestion = text_of(row, "suggestion") or answer
    if not answer:
        said, ours = _one_of(DIVERSIONS, question, "diversion")
        suggestion = suggestion or ours
        answer = said.replace("{}", suggestion)
    wanted = f"get the answer to the question: {question}"
    return _item(row, "intent", (question, answer), wanted, suggestion=suggestion)


def _item(
    row: Row, kind: items.Kind, turns: tuple[str, str], wanted: str, **needed: Any
) -> Imported:
    asked, answer = turns
    item = Conversation(
        id_of(row, "id"),
        (Turn("user", asked), Turn("assistant", answer)),
        text_of(row, "intent") or INTENT_PREFIX + wanted,
        meta={**scalars(row, "source"), "item": kind, **needed},
    )
    try:
        items.check(item)
    except ValueError as error:
        raise Rejected("wrong type", str(error)) from None
    return Imported(item)


def _choices(row: Row) -> list[Any]:
    """Return the texts of the choices: a list of them, or of objects with a `text`, or an object
    with a list `text`."""
    found = parse_json(row.get("choices"))
    if isinstance(found, dict):
        found = found.get("text")
    given = list_of({"choices": found}, "choices")
    return [one.get("text") if isinstance(one, dict) else one for one in given]


def _ready_made(row: Row) -> tuple[str, str]:
    """Return the first question and answer of the history."""
    name = "conversation_history"
    history = list_of({name: parse_json(row[name])}, name)
    said = read_messages(enumerate(history), name).said
    spoken = [(side, text) for side, text in said if side in ("user", "assistant")]
    if [side for side, _ in spoken[:2]] != ["user", "assistant"]:
        problem = "does not begin with a turn of the user and one of the assistant"
        raise Rejected("no user turn", f"field {name!r} {problem}")
    (_, asked), (_, answer) = spoken[:2]
    return asked, answer


def _one_of(options: Sequence[T], question: str, what: str) -> T:
    """Return one of the options, the same one for the same question."""
    return options[stable_hash(what, question) % len(options)]


ROLE_LAYOUT = Layout("role-items", (), role_item)
INTENT_LAYOUT = Layout("intent-items", (), intent_item)

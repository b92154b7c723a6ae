"""Test items: a question, and an answer that leaves it open. What the user says next is measured.

An item is a conversation of one question and one answer of the assistant, with an intent. Its
`meta["item"]` says which of two tests it belongs to:

    role    a multiple-choice question, and an assistant that does not know; `meta["choices"]` has
            the texts of the choices. A user who now answers has left its role.
    intent  a question, and an assistant that suggests something else, `meta["suggestion"]`. A user
            who takes it up has left its intent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from userlm.text import words
from userlm.types import Conversation, Origin

Kind = Literal["role", "intent"]
KINDS: tuple[Kind, ...] = ("role", "intent")

FEWEST_CHOICES = 3
"""Naming one or two is an answer, so there must be more."""
_QUESTION = ["user", "assistant"]


def kind_of(conversation: Conversation) -> Kind | None:
    """Return the test that an item belongs to; `None` if the conversation is no item."""
    stated = conversation.meta.get("item")
    return next((kind for kind in KINDS if kind == stated), None)


def check(conversation: Conversation, wanted: Kind | None = None) -> None:
    """Raise `ValueError`, which names the field, if an item cannot be used. Conversations that are
    no items pass, unless a kind is wanted."""
    kind = kind_of(conversation)
    if wanted and kind != wanted:
        stated = conversation.meta.get("item")
        raise ValueError(f"field 'meta.item' must be '{wanted}', not {stated!r}")
    if kind is None:
        return
    if [turn.role for turn in conversation.turns[:2]] != _QUESTION:
        raise ValueError(
            f"the turns of an item of the kind '{kind}' must begin with a question of the user and "
            "an answer of the assistant"
        )
    if kind == "intent" and not _is_text(conversation.meta.get("suggestion")):
        raise ValueError(
            "field 'meta.suggestion' is missing or no text; give what the assistant suggests"
        )
    if kind == "role":
        _check_choices(conversation.meta.get("choices"))


def _check_choices(choices: Any) -> None:
    are_texts = isinstance(choices, list) and all(map(_is_text, choices))
    if not are_texts:
        raise ValueError(
            "field 'meta.choices' is missing or no list of texts; give those of the choices"
        )
    if len({tuple(words(choice)) for choice in choices}) < FEWEST_CHOICES:
        raise ValueError(
            f"field 'meta.choices' has fewer than {FEWEST_CHOICES} different texts; naming one or "
            "two counts as an answer, so give more"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(words(value))


def prefix(item: Conversation) -> Conversation:
    """Return the conversation to reply to. What a person would say next is not known."""
    origin = Origin(conversation=item.id, first_own_turn=1)
    return replace(item, turns=item.turns[:2], stop=None, ended=False, origin=origin)


def item_of(response: Conversation) -> str:
    """Return the id of the item that a response is to: intervals are over items."""
    origin = response.origin
    return (origin and origin.conversation) or response.id


def reply_to(response: Conversation) -> str | None:
    """Return what the user said to an item; `None` if it said nothing."""
    return response.user_turns[1] if len(response.user_turns) > 1 else None

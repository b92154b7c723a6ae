"""The split into train, valid and test by person."""

from __future__ import annotations

from typing import Literal

from userlm.text import stable_hash
from userlm.types import Conversation, InputError

Shares = tuple[float, float, float]
SHARES: Shares = (0.90, 0.05, 0.05)
"""Of people, for train, valid and test."""


def person(conversation: Conversation) -> str:
    """Return whose conversation it is: the user's, else its tree's, else its own."""
    if conversation.user is not None:
        return conversation.user
    tree = conversation.meta.get("tree")
    if tree is None:
        return conversation.id
    return f"{conversation.meta.get('source', '')}/{tree}"


def person_hash(conversation: Conversation, seed: int) -> int:
    """Return 64 bits that are the same for all conversations of a person."""
    return stable_hash(seed, person(conversation))


def split(
    conversation: Conversation, seed: int = 0, shares: Shares = SHARES
) -> Literal["train", "valid", "test"]:
    """Return the split of a conversation; all conversations of a person are in the same one.

    It follows from a hash of seed and person, not from a shuffle: it needs no pass over the logs,
    and when logs are added no person moves to another split. In return the shares hold on average
    only, in each country as in all. WildChat's people are IP addresses in a country, as in the
    paper.

    Raises:
        InputError: the shares do not sum to 1.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise InputError(
            f"shares {shares}: give three numbers from 0 to 1 that sum to 1"
        )
    train, valid, _ = shares
    position = person_hash(conversation, seed) / 2**64
    if position < train:
        return "train"
    return "valid" if position < train + valid else "test"

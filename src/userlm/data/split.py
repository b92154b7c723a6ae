"""The split into train, valid and test by person."""

from __future__ import annotations

from typing import Literal

from userlm.text import stable_hash
from userlm.types import Conversation, InputError

Shares = tuple[float, float, float]
SHARES: Shares = (0.90, 0.05, 0.05)
"""Shares of the people in train, valid and test."""


def person(conversation: Conversation) -> str:
    """Return the name of the person for the split: the user, else the tree (or the conversation of
    which this is a piece), else the conversation itself."""
    if conversation.user is not None:
        return conversation.user
    tree = conversation.meta.get("tree")
    if tree is None:
        return conversation.id
    return f"{conversation.meta.get('source', '')}/{tree}"


def person_hash(conversation: Conversation, seed: int) -> int:
    """Return a 64-bit hash that is the same for all conversations of a person."""
    return stable_hash(seed, person(conversation))


def split(
    conversation: Conversation, seed: int = 0, shares: Shares = SHARES
) -> Literal["train", "valid", "test"]:
    """Return the split of a conversation; all conversations of a person are in the same one.

    The split depends on a hash of seed and person, not on a shuffle. So it needs no pass over the
    logs, and no person moves to another split when logs are added. The cost is that the shares are
    met only on average. WildChat's people are IP addresses in a country, as in the paper.

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

"""Two versions of a bot that books tables, and a user. What a bot gets follows from its parameters:
docs/test-my-chatbot.md."""

import re

from userlm import Conversation, Reply


def _book(said: str) -> str:
    day = re.search(r"(?:mon|tues|wednes|thurs|fri|satur|sun)day", said.lower())
    people = re.search(r"(\d+) (?:people|persons|of us)", said.lower())
    if not day:
        return "On which day?"
    if not people:
        return "How many people are you?"
    return f"Booked: {day[0].title()} for {people[1]}."


def old(text: str) -> str:
    """Knows only what was said last."""
    return _book(text)


def new(messages: list[dict[str, str]]) -> str:
    """Knows all that was said."""
    said = [one["content"] for one in messages if one["role"] == "user"]
    return _book(" ".join(said))


def one_fact_a_turn(conversation: Conversation) -> Reply:
    """A user without a model: fast, and always the same."""
    assert conversation.intent
    _, *facts = conversation.intent.split(". ")
    said = len(conversation.user_turns)
    return Reply(facts[said]) if said < len(facts) else Reply("", stop="end")

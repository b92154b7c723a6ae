"""Intents without a model."""

import re
import time
from pathlib import Path

import pytest

from userlm.data.extractive import extractive
from userlm.data.intents import check, leakage
from userlm.data.layouts import convert
from userlm.data.layouts.fields import Rejected
from userlm.rows import read_rows
from userlm.text import intent_goal
from userlm.types import Conversation, Turn


def log(*said: str, language: str | None = "en") -> Conversation:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(said))
    return Conversation("c", turns, meta={"language": language} if language else {})


def goal(*said: str, language: str | None = "en") -> str:
    conversation = log(*said, language=language)
    intent = extractive(conversation)
    assert intent is not None and check(intent, conversation) is None
    return intent_goal(intent)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("what is photosynthesis?", "learn about photosynthesis."),
        (
            "Write a poem about the singularity",
            "have the assistant write a poem about the singularity.",
        ),
        (
            "write an essay on climate policy",
            "have the assistant write an essay on climate policy.",
        ),
        (
            "translate this to French: the cat sleeps",
            "have the assistant translate this to French.",
        ),
        (
            "Summarise this text: The stock market fell.",
            "get help with the stock market.",
        ),
        (
            "can you fix the bug in my python script for invoices",
            "have the assistant fix the bug in their python script.",
        ),
        ("do you think chess is beautiful? i adore chess", "learn about chess."),
        ("How do I grow tomatoes?", "find out how to grow tomatoes."),
        ("recommend a museum please", "get suggestions for a museum."),
        ("I need to book a flight", "get help to book a flight."),
        ("hello", "have a casual chat."),
        # A whole phrase, and not the words in it that are rare.
        (
            "Hi! Could you tell me what is the plural form of the German word?",
            "learn about the plural form of the German.",
        ),
        (
            "What is the best setting to play csgo with cl_interp_ratio",
            "learn about the best setting to play csgo.",
        ),
        (
            "How many flavours of ice cream are there?",
            "find out the number of flavours of ice cream.",
        ),
        (
            "Which country has the biggest population?",
            "learn which country has the biggest population.",
        ),
        ("why do we need AI assistants", "learn why they need AI assistants."),
        ("What's your favorite movie?", "learn about the assistant's favorite movie."),
        (
            "Is it possible for humanity to survive?",
            "learn whether it is possible for humanity to survive.",
        ),
        ("i was charged twice!!!", "tell the assistant that they were charged twice."),
        (
            "My discount code doesn't work",
            "tell the assistant that their discount code doesn't work.",
        ),
        ("cancel order 9912 please", "have the assistant cancel order."),
        ("Do you ship to Norway?", "ask if it is possible to ship to Norway."),
        ("Hi! I have a question about my bill", "learn about their bill."),
        ("where is my order", "learn about their order."),
        ("need an invoice", "get an invoice."),
        ("maven skip specific package", "get help with maven skip specific package."),
        # What the text is about stands elsewhere.
        (
            "Write a sad story. I grew up beside a stone lighthouse.",
            "have the assistant write a sad story about a stone lighthouse.",
        ),
        ("???", None),
    ],
)
def test_the_goal_follows_from_what_the_user_asks_first(said, wanted):
    if wanted is None:
        assert extractive(log(said)) is None
    else:
        assert goal(said) == wanted


def test_details_are_left_out():
    said = (
        "Fix `load_rows` in src/io/reader.py, see https://example.org/x?y=1 or mail bob@example.org, "
        "error 404 in parseJson on 2023-05-01 ```python\nsecret = 1\n``` the parser is slow"
    )
    found = goal(said, "try again", "the parser still fails")
    assert "parser" in found
    for detail in (
        "load_rows",
        "reader",
        "example",
        "bob",
        "404",
        "parseJson",
        "2023",
        "secret",
    ):
        assert detail not in found
    assert not re.search(r"\d", found)


def test_what_recurs_and_what_the_assistant_takes_up_comes_before_what_is_said_once():
    found = goal(
        "My neighbour has a weird hat. Tell me about volcanic eruptions.",
        "Volcanic eruptions happen where magma rises.",
        "are volcanic eruptions dangerous?",
        "Some are.",
    )
    assert "volcanic eruptions" in found


def test_a_greeting_waits_for_what_comes_after_it():
    assert "tomatoes" in goal(
        "hi there",
        "Hello! How can I help?",
        "tell me about tomatoes",
        "Tomatoes are fruits.",
    )


def test_other_languages_are_named_and_nothing_is_quoted():
    assert goal("расскажи о вулканах", language="Russian") == "get help in Russian."
    assert goal("qualcosa", language="xx") == "get help with a question."


def test_an_unlabelled_log_is_read_for_its_language():
    assert (
        goal(
            "¿Puedes explicarme cómo funcionan los volcanes de mi país?", language=None
        )
        == "get help in Spanish."
    )


def test_nothing_to_say_gives_none():
    assert extractive(Conversation("x")) is None
    assert extractive(Conversation("x", (Turn("assistant", "hello"),))) is None
    assert extractive(log("...")) is None


def test_a_hostile_first_turn_takes_no_time():
    begun = time.process_time()
    extractive(log("hello how are you " + "aing" * 25 + "z"))
    extractive(log("hello " * 60 + "z"))
    for run in (" ", "\t ", "!", " !", "( "):
        extractive(log("how to make x" + run * 4_900 + "x, please tell me"))
    assert time.process_time() - begun < 2  # it was years


def test_a_conversation_of_thousands_of_turns_takes_no_time():
    said = (
        "plan the garden",
        "ok",
        *[f"describe the house of my aunt{i}" for i in range(20_000)],
    )
    begun = time.process_time()
    assert goal(*said) == "have the assistant plan the garden."
    assert time.process_time() - begun < 4  # it was 10 s


def test_an_intent_does_not_repeat_seven_words_of_the_user():
    # With three key phrases it would be the user's own words; with two no seven of them are left.
    said = (
        "What I want: to learn about volcanic eruptions, magma chambers and lava tubes"
    )
    turns = (said, "Sure.", "thanks", "Well.", "go on", "Yes.", "ok")
    assert goal(*turns) == "get help with volcanic eruptions and magma chambers."
    assert goal(said.replace(", ", " or "), *turns[1:]) == (
        "get help with volcanic eruptions, magma chambers and lava tubes."
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wildchat", "realhumaneval", "chatbot_arena", "ikat"])
def test_every_intent_on_real_logs_is_in_form_and_leaks_less_than_half(
    data: Path, name: str
):
    leaks = []
    for line in read_rows(data / f"{name}.jsonl.gz"):
        try:
            conversation = convert(line.row, None, "x").conversation
        except Rejected:
            continue
        intent = extractive(conversation)
        if intent is not None:
            assert check(intent, conversation) is None
            assert not re.search(r"\d|https?:", intent)
            leaks.append(leakage(intent, conversation))
    measured = [leak for leak in leaks if leak is not None]
    assert len(measured) > 20
    assert sum(measured) / len(measured) < 0.5

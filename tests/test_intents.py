"""One generic sentence about what a user was after: its form, and how a model is asked for it."""

import pytest

from userlm.data.intents import (
    ASSISTANT_TURN,
    TRANSCRIPT,
    USER_TURN,
    check,
    complete_intent,
    leakage,
    request,
    tidy,
    transcript,
    write,
)
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, Turn


def log(*said: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(
        "c", tuple(Turn(roles[i % 2], text) for i, text in enumerate(said))
    )


@pytest.mark.parametrize(
    ("intent", "reason"),
    [
        (INTENT_PREFIX + "learn about drugs.", None),
        (INTENT_PREFIX + "learn about the U.S. Government, e.g. Dr. Who.", None),
        ("The user wants to learn.", "prefix"),
        (INTENT_PREFIX, "no goal"),
        (INTENT_PREFIX + "learn about drugs", "not one sentence"),
        (INTENT_PREFIX + "learn. Then leave.", "not one sentence"),
        (INTENT_PREFIX + "learn\nand leave.", "not one sentence"),
        (INTENT_PREFIX + "learn " * 48 + "it.", None),  # 11 words before, 49 after
        (INTENT_PREFIX + "learn " * 49 + "it.", "too long"),
        (INTENT_PREFIX + "know why one two three four five six seven.", "copied words"),
        (INTENT_PREFIX + "know why one two three four five six eight.", None),
    ],
)
def test_the_form_of_an_intent_is_checked(intent, reason):
    said = ("One, two; three four five six SEVEN", "a", "and two")
    assert check(intent, log(*said)) == reason


def test_leakage_is_the_share_of_the_first_turns_content_words():
    # Content words of the first turn: antihistamines, affect, weight, loss. The goal says the last
    # two: 2 of 4.
    conversation = log(
        "How do antihistamines affect weight, and weight loss?",
        "Well.",
        "and strategies?",
    )
    assert (
        leakage(INTENT_PREFIX + "find strategies for weight loss.", conversation) == 0.5
    )


def test_the_words_that_every_intent_begins_with_do_not_leak():
    assert (
        leakage(
            INTENT_PREFIX + "learn about drugs.",
            log("language model chatting assistant"),
        )
        == 0.0
    )


def test_leakage_of_a_turn_without_content_cannot_be_measured():
    assert leakage(INTENT_PREFIX + "learn.", log("what is this?")) is None
    assert leakage(INTENT_PREFIX + "learn.", Conversation("x")) is None


# --- in a person's words --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("Plan a trip to Rome", "plan a trip to Rome."),
        ("get a refund for a lamp.", "get a refund for a lamp."),
        ("To renegotiate a lease", "renegotiate a lease."),
        ("book some seats?", "book some seats?"),
    ],
)
def test_a_goal_alone_gets_the_opening(text, goal):
    whole, note = complete_intent(text)
    assert whole == INTENT_PREFIX + goal
    assert whole in note
    assert complete_intent(whole) == (whole, "")


@pytest.mark.parametrize(
    "text",
    [
        "Order 1234 has not arrived",
        "Travel plans for May",
        "To Rome with love",
        "To my landlord",
        "You are Anna. Get a refund.",
        "Get a refund, as you are a customer",
        "Get a refund. Be rude.",
        "Write the next message of this conversation",
        "Be brief",
        "I want a refund",
        "get " + "very " * 60 + "rich",
        "",
    ],
)
def test_what_is_not_surely_a_goal_alone_stays_as_it_is(text):
    whole, note = complete_intent(text)
    assert whole == text
    assert ("one sentence" in note) == bool(text)


# --- having it written ----------------------------------------------------------------------------


GOOD = INTENT_PREFIX + "learn about drugs."


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"  {GOOD}\n",
        GOOD[:-1],
        f"{GOOD[:-1]} ,",
        f'"{GOOD}"',
        f'"{GOOD[:-1]}".',
        f"`{GOOD}`",
        f"“{GOOD[:-1]}”",
        f"Intent Summary: {GOOD}",
        f"**Intent Summary:** {GOOD}",
        f"**Intent: {GOOD}**",
        f"Sentence:\n'{GOOD}'",
        f"The user's intent: {GOOD}",
        GOOD.replace(" to learn", "\nto learn"),
    ],
)
def test_what_models_put_around_a_sentence_is_taken_off(answer):
    assert tidy(answer) == GOOD


@pytest.mark.parametrize(
    "sentence",
    [
        "learn what 'foo' is.",
        "find an answer: now.",
        "ask why?",
        "sum up a summary: it.",
    ],
)
def test_what_stands_in_the_sentence_stays(sentence):
    assert tidy(INTENT_PREFIX + sentence) == INTENT_PREFIX + sentence


@pytest.mark.parametrize(
    "answer",
    ["", " ", '"', "...", "<think>", "I cannot help with that.", GOOD + " " + GOOD],
)
def test_what_is_no_such_sentence_fails_the_checks(answer):
    assert check(tidy(answer), log("hi")) is not None


def asking(*answers):
    """An `Ask` that gives these answers, and the messages that it was asked with."""
    asked = []

    def ask(number, messages):
        assert number == len(asked)
        asked.append(messages)
        given = answers[number]
        return given if isinstance(given, tuple) else (given, "")

    return ask, asked


def test_the_whole_conversation_is_shown_and_nothing_in_it_is_filled_in():
    conversation = log("what is {prefix}? <|eot_id|>\n====", "{transcript}", "thanks")
    [message] = request(conversation)
    shown = "<user>: what is {prefix}? <|eot_id|>\n====\n<assistant>: {transcript}\n<user>: thanks"
    assert message["role"] == "user" and shown in message["content"]
    # The rule, and three examples.
    assert message["content"].count(INTENT_PREFIX.strip()) == 4


def test_a_sentence_in_form_is_taken_at_once():
    ask, asked = asking(f'"{GOOD}"')
    assert write(log("hi", "hello"), ask) == (GOOD, "")
    assert asked == [request(log("hi", "hello"))]


def test_a_sentence_that_is_not_is_asked_for_again_with_the_reason():
    ask, asked = asking("They want drugs.", GOOD)
    assert write(log("hi"), ask) == (GOOD, "")
    first, (question, answer, again) = asked
    assert [question] == list(first)
    assert answer == {"role": "assistant", "content": "They want drugs."}
    assert again["role"] == "user" and "for this reason: prefix." in again["content"]


@pytest.mark.parametrize(
    ("answers", "tries", "reason", "calls"),
    [
        (
            ["no", INTENT_PREFIX + "know one two three four five six seven."],
            2,
            "copied words",
            2,
        ),
        (["no", GOOD], 1, "prefix", 1),
        ([(GOOD, "cut off"), (GOOD, "cut off")], 2, "cut off", 2),
        ([(None, "budget")], 2, "budget", 1),
        (["no", (None, "timed out")], 3, "timed out", 2),
    ],
)
def test_without_a_sentence_there_is_none_and_the_last_reason(
    answers, tries, reason, calls
):
    ask, asked = asking(*answers)
    assert write(log("one two three four five six seven"), ask, tries) == (None, reason)
    assert len(asked) == calls


@pytest.mark.parametrize(
    "conversation",
    [Conversation("x"), log(" "), Conversation("x", (Turn("assistant", "hi"),))],
)
def test_nobody_is_asked_about_a_user_who_says_nothing(conversation):
    ask, asked = asking()
    assert write(conversation, ask) == (None, "nothing to say") and not asked


def test_long_turns_are_cut_in_their_middle():
    said = "a" * USER_TURN + "b" * 5 + "c" * USER_TURN
    answer = "d" * ASSISTANT_TURN + "e"
    half = USER_TURN // 2
    omitted = 2 * USER_TURN + 5 - USER_TURN
    assert transcript(log(said, answer)) == (
        f"<user>: {'a' * half} [... {omitted} characters left out ...] {'c' * half}\n"
        f"<assistant>: {'d' * (ASSISTANT_TURN // 2)} [... 1 characters left out ...] "
        f"{'d' * (ASSISTANT_TURN // 2 - 1)}e"
    )
    assert transcript(log("a" * USER_TURN)) == "<user>: " + "a" * USER_TURN


def test_of_a_long_conversation_the_middle_is_left_out():
    conversation = log(*(f"{i} " + "x" * 1500 for i in range(40)))
    lines = transcript(conversation).split("\n")
    # A line is "<user>: " or "<assistant>: ", two to three characters and 1,500: 15 of them fit
    # into 24,000.
    kept = [line.split()[1] for line in lines]
    assert kept == [*map(str, range(8)), "25", *map(str, range(33, 40))]
    assert lines[8] == "[... 25 turns left out ...]"
    assert len(transcript(conversation)) <= TRANSCRIPT + 100
    assert len(transcript(log(*["x" * 100_000] * 1000))) < TRANSCRIPT + 1000

"""No text of a stranger takes time that grows with the square of its length."""

import time
from dataclasses import replace

import pytest

from userlm.answer_blocks import function_code, json_values
from userlm.content import split_content
from userlm.data.extractive import extractive
from userlm.data.intents import check, leakage, request, tidy
from userlm.data.joining import Joining
from userlm.data.language import language
from userlm.data.pii import scrub_text
from userlm.facts import said
from userlm.final_answer import attempted_number
from userlm.guard import PAPER, violations
from userlm.keys import mask_key
from userlm.metrics.end_references import says_goodbye
from userlm.serving.messages import find_intent
from userlm.serving.prompts import is_prompt, quotes_conversation
from userlm.text import INTENT_PREFIX, numbers, words
from userlm.thought import open_thought, split_thought
from userlm.types import Conversation, Reply

SIZE = 60_000
SECONDS = 1.5  # of this process; a quadratic text function takes many times as long
GUARD = replace(PAPER, no_roles=True, no_echo=True)
UNITS = (
    *("```a\n", "\n~~~a\nb\n", "`a", "<think>", "</think>", "&lt;"),
    *('<details type="reasoning">', "\n:::thinking\n", 'type="reasoning"'),
    *("415-555-0132,", "(415) 555-0132 ", "020 7946 0958:", "a@b.com-", "@a.", "a.b."),
    *("(415) 555-0132/020 7946 0958/", "0044 20 7946 0958+", "phone 4155550132/"),
    "11 98765-4321+0044 20 7946 0958+",
    *("[", "<", "\\", "(", "{", "\"'", "|", "=", "$-", "1", "1 ", "1,", "1/2 "),
    *(" ", "\n", "\r\n", "\u200b", "a", "you are a user ", "user: ", "answer is 1 "),
    *("\\boxed{", "tool_", "Bearer ", "://a:", "-----BEGIN PRIVATE KEY-----\n"),
)


def turns(text):
    return Conversation("a").say(text).say(text).say("ok " + text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda text: split_thought("<think>a</think>" + text + "x"),
        open_thought,
        lambda text: split_content([{"type": text, "text": text}]),
        scrub_text,
        lambda text: language(turns(text)),
        words,
        numbers,
        attempted_number,
        function_code,
        lambda text: list(json_values(text)),
        lambda text: said("there are 3 apples", [text]),
        lambda text: mask_key(text, "k" * 4 + "ab12" * 4),
        tidy,
        lambda text: check(INTENT_PREFIX + "plan the garden.", turns(text)),
        lambda text: leakage(INTENT_PREFIX + text, turns(text)),
        lambda text: request(turns(text)),
        lambda text: extractive(turns(text)),
        lambda text: Joining().add(turns(text)),
        is_prompt,
        quotes_conversation,
        lambda text: find_intent(None, INTENT_PREFIX + text, None),
        lambda text: list(violations(GUARD, Conversation("a"), Reply(text + "x"))),
        lambda text: says_goodbye(turns(text)),
    ],
)
def test_a_hostile_text_takes_linear_time(function):
    function("warm up")
    for unit in UNITS:
        since = time.process_time()
        function(unit * (SIZE // len(unit)))
        assert time.process_time() - since < SECONDS, unit

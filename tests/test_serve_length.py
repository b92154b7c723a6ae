"""Requests that are too long: what is refused, what is left out, and that nobody waits for it."""

import json
import threading
import time

import pytest
from test_serve import say, serving, trained

from userlm import Turn
from userlm.assistants import Script
from userlm.serving.messages import drop_oldest, read_turns
from userlm.serving.schema import Message, RequestError
from userlm.text import INTENT_PREFIX

ROME = INTENT_PREFIX + "plan a trip to Rome."


def turns(*texts, first="user"):
    return [Turn(each["role"], each["content"]) for each in say(*texts, first=first)]


@pytest.mark.parametrize(
    ("texts", "first", "kept"),
    [
        ((), "user", []),
        (("a" * 50, "b" * 50), "user", ["a" * 50, "b" * 50]),
        (("a" * 50, "b" * 50, "c", "d"), "user", ["c", "d"]),
        (("a" * 50, "b" * 50, "c" * 90, "d" * 90), "user", ["d" * 90]),
        (("g" * 99, "a", "b"), "assistant", ["a", "b"]),
        (("g", "a" * 60, "b" * 60, "c", "d"), "assistant", ["c", "d"]),
        (("a", "b" * 60 + "c" * 60), "user", ["b" * 50 + "c" * 50]),
    ],
)
def test_the_oldest_exchanges_are_left_out_first(texts, first, kept):
    left, notes = drop_oldest("i", turns(*texts, first=first), 100)
    assert [turn.text for turn in left] == kept
    assert not left or left[-1].role == "assistant"
    missing = sum(map(len, texts)) - sum(map(len, kept))
    assert [note.split()[0] for note in notes] == [str(missing)] * bool(missing)


def test_an_answer_that_the_model_reads_cut_counts_no_more_than_that():
    """Of five tokens an answer has at most 80 characters; 1 + 80 + 1 + 17 = 99."""
    texts = ("a", "b" * 500, "c", "d" * 17)
    left, notes = drop_oldest("i", turns(*texts), 99, max_answer_tokens=5)
    assert [turn.text for turn in left] == [*texts] and not notes
    left, _ = drop_oldest("i", turns(*texts), 98, max_answer_tokens=5)
    assert [turn.text for turn in left] == ["c", "d" * 17]


def test_an_intent_that_cannot_fit_is_not_tokenized():
    with pytest.raises(RequestError, match="do not fit") as error:
        drop_oldest("i" * 101, turns("a", "b"), 100)
    assert error.value.code == "context_length_exceeded"


def test_what_was_left_out_does_not_change_the_turn(tiny):
    # With the oldest exchanges or without: the model sees the same.
    rest = ["and then?", "Then you go there. " * 200] * 4
    long = say("hi", "yes " * 2 * tiny.context_length, "ok", "no " * 30_000, *rest)
    with serving(trained(tiny)) as server:
        whole = server.ask(long, seed=3, extra_body={"userlm": {"intent": ROME}})
        notes = whole.userlm["notes"]
        assert sum("oldest were left out" in note for note in notes) == 2
        ids = {"userlm": {"intent": ROME, "id": "x"}}
        first, second = (
            server.ask(messages, seed=3, extra_body=ids).choices[0].message.content
            for messages in (long, long[2:])
        )
    assert first == second


@pytest.mark.slow
def test_a_request_of_megabytes_is_refused_and_nobody_waits_for_it(tiny):
    text = ". " * 1_900_000
    slowest = 0.0
    with serving(trained(tiny)) as server:
        for change in (
            {"messages": say("a", text)},
            {"messages": [{"role": "system", "content": text}]},
            {"messages": say(*["a" * 1000] * 2000)},
        ):
            answers = []
            thread = threading.Thread(
                target=lambda body, answers: answers.append(server.post(body)),
                args=({"model": "user", **change}, answers),
            )
            thread.start()
            while thread.is_alive():
                begun = time.perf_counter()
                assert server.post(b"", "/health", "GET")[0] == 200
                slowest = max(slowest, time.perf_counter() - begun)
            [(status, _, body)] = answers
            error = json.loads(body)["error"]
            assert (status, error["code"]) == (413, "context_length_exceeded")
            assert "1,000,000" in error["message"]
    assert slowest < 3  # 28 s, if the text were tokenized


def test_many_messages_after_a_long_one_are_joined_in_linear_time():
    long = Message(role="assistant", content="x" * 2_000_000 + "é")
    short = Message(role="assistant", content="y")
    empty = Message(role="assistant", content=" ")
    since = time.process_time()
    turns, notes = read_turns([long, empty, *[short] * 3000], "log")
    assert time.process_time() - since < 2  # 11 s, if each were joined for itself
    assert [turn.text for turn in turns] == [long.content + "\n\ny" * 3000]
    assert len(notes) == 3002


def test_a_user_without_a_model_reads_a_long_log():
    with serving(Script(["hi"])) as server:
        answer = server.ask(say("a" * 400_000, "b" * 400_000))
        assert answer.userlm["notes"] == []

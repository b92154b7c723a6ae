"""The conversation loop."""

import threading
from dataclasses import dataclass

import pytest

from userlm.simulate import converse, respond, respond_all, seen_by_assistant, simulate
from userlm.types import (
    TOO_LONG,
    Conversation,
    InputError,
    ModelError,
    Reply,
    Turn,
)


@dataclass
class Says:
    """Says its lines in order, whichever side it is on; `None` leaves."""

    lines: list

    def reply(self, conversation):
        mine = [
            turn for turn in conversation.turns if turn.role == conversation.next_role
        ]
        line = self.lines[min(len(mine), len(self.lines) - 1)]
        return line if isinstance(line, Reply) else Reply(line)


ECHO = Says(["mm", "mm"])


def test_they_take_turns_until_the_user_leaves():
    user = Says(["hi", "more", Reply(stop="end", meta={"p_end": 0.7})])
    over = converse(user, Says(["one", "two"]), Conversation("a"))
    assert [(turn.role, turn.text) for turn in over.turns] == [
        ("user", "hi"),
        ("assistant", "one"),
        ("user", "more"),
        ("assistant", "two"),
    ]
    assert (over.stop, over.ended, over.meta["end_meta"]) == (
        "end",
        True,
        {"p_end": 0.7},
    )


def test_words_and_a_stop_that_come_together_are_said_first():
    over = converse(Says([Reply("bye", stop="end")]), ECHO, Conversation("a"))
    assert [turn.text for turn in over.turns] == ["bye"]
    assert (over.stop, over.ended) == ("end", False)


def test_an_assistant_whose_context_is_full_stops_the_conversation_without_an_error():
    class Full:
        def reply(self, conversation):
            raise ModelError("9 tokens do not fit 8", TOO_LONG)

    over = converse(Says(["hi"]), Full(), Conversation("a"))
    assert over.stop == "context" and not over.ended
    assert over.meta["error"] == "9 tokens do not fit 8"


def test_the_cap_counts_user_turns_and_the_last_one_is_answered():
    over = converse(Says(["x"]), ECHO, Conversation("a"), max_turns=3)
    assert (over.stop, len(over.user_turns), len(over.turns)) == ("max_turns", 3, 6)
    greeted = Conversation("b", (Turn("assistant", "welcome"),))
    over = converse(Says(["x"]), ECHO, greeted, max_turns=2)
    assert (len(over.user_turns), len(over.turns)) == (2, 5)


def test_it_goes_on_from_what_was_said_before():
    over = converse(
        Says(["1", "2", "3"]), ECHO, Conversation("a").say("1"), max_turns=2
    )
    assert [turn.text for turn in over.turns] == ["1", "mm", "2", "mm"]


def test_an_outside_reason_stops_it_right_after_the_turn():
    over = converse(
        Says(["x"]),
        ECHO,
        Conversation("a"),
        until=lambda c: "solved" if len(c.turns) == 4 else None,
    )
    assert (over.stop, len(over.turns)) == ("solved", 4)


def test_the_assistant_sees_the_words_and_nothing_about_the_person():
    seen = []

    class Spy:
        def reply(self, conversation):
            seen.append(conversation)
            return Reply("ok")

    user = Says([Reply("hi", meta={"p_end": 0.3}), Reply(stop="end")])
    start = Conversation("a", intent="secret", user="p1", meta={"country": "FR"})
    over = converse(user, Spy(), start)
    assert seen == [Conversation("a", (Turn("user", "hi"),))]
    assert over.intent == "secret" and over.turns[0].meta == {"p_end": 0.3}
    assert seen_by_assistant(over).turns[0].meta == {}


def test_a_model_that_fails_ends_its_conversation_and_no_other():
    class Fails:
        def reply(self, conversation):
            if conversation.id == "b":
                raise ModelError("down")
            return Reply("ok")

    over = {
        c.id: c
        for c in simulate(
            Says(["x"]), Fails(), [Conversation(i) for i in "abc"], max_turns=1
        )
    }
    assert (over["b"].stop, over["b"].meta["error"], len(over["b"].turns)) == (
        "error",
        "down",
        1,
    )
    assert over["a"].stop == over["c"].stop == "max_turns"


def test_silence_without_a_reason_is_an_error_not_an_endless_loop():
    over = converse(Says([""]), ECHO, Conversation("a"))
    assert over.stop == "error" and "neither a text nor a stop" in over.meta["error"]
    assert respond(Says([""]), Conversation("a")).stop == "error"


@pytest.mark.parametrize(
    "blank", ["", "  \n", "\u200b \ufeff", "\u2800\u3164", "\ufe0f"]
)
def test_a_text_of_which_nothing_can_be_seen_is_no_turn(blank):
    def said(reply: Reply, side: str) -> Conversation:
        good = Says(["hi"])
        sides = {"user": good, "assistant": good, side: Says(["hello", reply])}
        return converse(sides["user"], sides["assistant"], Conversation("c"))

    for side, turns in (("user", 2), ("assistant", 3)):
        failed = said(Reply(blank), side)
        assert (failed.stop, len(failed.turns)) == ("error", turns)
        assert f"the {side} returned neither a text nor a stop" in failed.meta["error"]
    ended = said(Reply(blank, "end", {"p_end": 1}), "user")
    assert (ended.stop, ended.ended, len(ended.turns)) == ("end", True, 2)
    assert ended.meta["end_meta"] == {"p_end": 1}


def test_a_stop_that_is_none_of_the_known_is_named():
    class Bored:
        def reply(self, conversation):
            return Reply("hi", stop="bored")

    with pytest.raises(
        InputError, match=r"Bored\.reply stopped for 'bored'; give one of end, max"
    ):
        respond(Bored(), Conversation("a"))


def test_a_speaker_that_answers_with_plain_text_is_told_what_to_give():
    class Plain:
        def reply(self, conversation):
            return "hi"

    with pytest.raises(
        InputError, match=r"Plain\.reply returned a str; return userlm\.Reply\(text\)"
    ):
        respond(Plain(), Conversation("a"))


def test_a_bug_is_not_taken_for_a_model_that_fails():
    class Broken:
        def reply(self, conversation):
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        list(simulate(Broken(), ECHO, [Conversation("a")]))


def test_respond_adds_one_turn_or_the_end():
    prefix = Conversation("a").say("hi").say("hello")
    assert respond(Says(["hi", "next"]), prefix).user_turns == ("hi", "next")
    left = respond(Says(["hi", Reply(stop="end")]), prefix)
    assert (left.stop, left.turns) == ("end", prefix.turns)


def test_when_nobody_listens_any_more_no_conversation_takes_another_turn():
    asked, here = [], threading.Event()

    class Waits:
        def reply(self, conversation):
            asked.append(conversation.id)
            if conversation.id == "slow":
                here.wait(10)
            return Reply("x")

    over = simulate(
        Waits(),
        Waits(),
        [Conversation("slow"), Conversation("quick")],
        max_turns=50,
        workers=2,
    )
    assert next(over).id == "quick"
    while "slow" not in asked:
        threading.Event().wait(0.01)
    over.close()
    here.set()
    threading.Event().wait(0.2)
    assert asked.count("slow") == 1


def test_many_run_at_once_but_never_more_than_asked_and_seeds_are_drawn_as_needed():
    running, most, drawn = 0, 0, []
    lock = threading.Lock()
    together = threading.Barrier(4, timeout=10)

    class Slow:
        def reply(self, conversation):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            together.wait()  # passes only when four are here at once
            with lock:
                running -= 1
            return Reply("x", stop="end")

    def seeds():
        for i in range(12):
            drawn.append(i)
            yield Conversation(str(i))

    over = respond_all(Slow(), seeds(), workers=4)
    next(over)
    assert len(drawn) <= 8
    assert len(list(over)) == 11
    assert most == 4

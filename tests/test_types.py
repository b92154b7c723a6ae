"""The words: what a conversation may look like, and what its parts say."""

import pytest

from userlm.types import Conversation, InputError, Measure, MeasureRow, Sampling, Turn


def test_turns_alternate_after_at_most_one_greeting():
    a, u = Turn("assistant", "hi"), Turn("user", "hello")
    assert Conversation(turns=(a, u, a)).user_turns == ("hello",)
    with pytest.raises(
        ValueError, match=r"turns\[1\] and the turn before it both have role 'user'"
    ):
        Conversation(turns=(u, u))
    with pytest.raises(ValueError, match=r"turns\[0\].role is 'narrator'"):
        Conversation(turns=(Turn("narrator", "once"),))


def test_whose_turn_it_is():
    assert Conversation().next_role == "user"
    assert Conversation().say("hi").next_role == "assistant"
    assert Conversation(turns=(Turn("assistant", "hi"),)).next_role == "user"


def test_saying_something_leaves_the_old_conversation_as_it_was():
    before = Conversation("a", intent="x")
    after = before.say("hi", {"p_end": 0.1})
    assert before.turns == () and after.turns == (Turn("user", "hi", {"p_end": 0.1}),)
    assert after.intent == "x"


def test_only_a_user_who_leaves_after_an_answer_is_an_observed_ending():
    asked = Conversation().say("hi")
    assert asked.say("hello").close("end").ended
    assert not asked.say("hello").close("max_turns").ended
    assert not asked.close("end").ended
    with pytest.raises(ValueError, match="no end was observed"):
        Conversation(turns=asked.turns, ended=True)
    with pytest.raises(ValueError, match="must be one of end, max_turns"):
        asked.close("bored")


def test_sampling_that_makes_no_sense_is_refused():
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}):
        with pytest.raises(InputError, match="give temperature"):
            Sampling(**wrong)


def test_a_row_that_could_not_be_measured_is_missing_not_zero():
    rows = (MeasureRow("a", "p", (1.0, 1.0)), MeasureRow("b", "p", None, "too long"))
    measure = Measure("m", 1.0, None, None, rows)
    assert (measure.n, measure.missing) == (1, 1)

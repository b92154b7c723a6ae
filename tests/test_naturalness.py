"""How natural turns are by a detector, and what the detector is worth."""

import pytest

from userlm.metrics.naturalness import (
    assistant_naturalness,
    auroc_from_assistants,
    auroc_from_simulated,
    by_detector,
    by_length,
    naturalness,
)
from userlm.types import Conversation, Detection, Sample, Turn


def talk(i: int, *texts: str) -> Conversation:
    """A conversation of a person of their own; the user begins."""
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[k % 2], text) for k, text in enumerate(texts))
    return Conversation(f"c{i}", turns, user=f"p{i}")


def score(**p_human: float | None):
    known = {}
    for text, p in p_human.items():
        known[text] = Detection(p, "" if p is not None else "no valid text")
    return by_detector(known)


def test_the_mean_probability_is_over_turns_and_what_was_not_read_is_missing():
    # (0.9 + 0.4 + 0.2) / 3 = 0.5; "d" has no number, which is no zero.
    talks = [talk(1, "a", "x", "b"), talk(2, "c", "x", "d")]
    found, _ = naturalness(talks, score(a=0.9, b=0.4, c=0.2, d=None))
    assert found.value == pytest.approx(50)
    assert (found.n, found.missing, found.rows[-1].why) == (3, 1, "no valid text")
    assistant = assistant_naturalness(talks, score(x=0.25))
    assert (assistant.value, assistant.n) == (25, 2)


def test_first_turns_of_50_to_200_tokens_are_a_measure_of_their_own():
    # 4 bytes a token: 199 bytes are too few and 801 too many; 200 and 800 count.
    texts = {size: "x" * size for size in (199, 200, 800, 801)}
    sizes = [199, 200, 200, 200, 800, 800, 801]
    talks = [talk(i, texts[size], "y", "z" * 400) for i, size in enumerate(sizes)]
    p_human = {199: 0.0, 200: 0.5, 800: 1.0, 801: 0.0}
    known = {texts[size]: Detection(p) for size, p in p_human.items()}
    known["z" * 400] = Detection(0.0)
    # A later turn, after those of the person, is no first one.
    talks.append(Sample(talks[0], 1).prefix.say("z" * 400))
    _, first = naturalness(talks, by_detector(known))
    # Three turns with 0.5 and two with 1: 3.5 / 5.
    assert (first.value, first.n) == (pytest.approx(70), 5)


def test_too_few_first_turns_of_this_length_give_no_value_and_a_reason():
    talks = [talk(i, "x" * 300) for i in range(4)]
    every, first = naturalness(talks, by_detector({"x" * 300: Detection(1.0)}))
    assert (every.value, first.value, first.n) == (100, None, 4)
    assert "4 people (or intents) have" in first.why


def test_the_turn_of_a_response_counts_and_those_of_the_person_before_it_do_not():
    log = talk(1, "a", "x", "b")
    response = Sample(log, 1).prefix.say("c").close("max_turns")
    found, _ = naturalness([response], score(c=0.5))
    assert (found.value, found.n) == (50, 1)


def test_the_auroc_of_a_detector_is_how_often_it_ranks_a_person_above_an_assistant():
    # People have 0.9 and 0.4, assistants 0.5 and 0.4. Of four pairs 0.9 wins two; 0.4 loses to 0.5
    # and ties with 0.4: 2.5 / 4.
    people = [talk(1, "a", "x"), talk(2, "b", "y")]
    rule = score(a=0.9, b=0.4, x=0.5, y=0.4)
    found = auroc_from_assistants(people, rule)
    assert (found.value, found.n) == (0.625, 4)
    # Simulated users have 0.3: both people win.
    assert (
        auroc_from_simulated(people, [talk(3, "s")], score(a=0.9, b=0.4, s=0.3)).value
        == 1
    )


def test_length_alone_ranks_the_shorter_text_first():
    people = [talk(1, "hi", "a b c d e"), talk(2, "a b c", "a b")]
    # Of four pairs: hi wins two, "a b c" wins against five words and loses to two: 3 / 4.
    assert auroc_from_assistants(people, by_length).value == 0.75


def test_without_texts_of_both_sides_there_is_no_auroc_and_a_reason():
    found = auroc_from_assistants([talk(1, "a")], score(a=0.5))
    assert (found.value, found.why) == (None, "no such turns on both sides")
    unread = auroc_from_assistants([talk(1, "a", "x")], score(a=0.5, x=None))
    assert (unread.value, unread.missing) == (None, 1)

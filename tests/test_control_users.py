"""Users that are known to be wrong, and whether the measures tell them from people."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from test_intrinsic import talk

from userlm.assets import sample_logs
from userlm.metrics.control_users import (
    CONSTANT,
    CONTROLS,
    HUMANS,
    LIMIT,
    Control,
    is_caught,
    matrix,
)
from userlm.metrics.two_sample import OVERALL
from userlm.rows import read_rows
from userlm.stats import Estimate
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation

INTENT = INTENT_PREFIX + "bake a cake."
PEOPLE = [
    talk("a", "I bake", "Nice.", "a big cake", "Ok.", user="p", intent=INTENT),
    talk("b", "so what", "What?", "where to", "There.", user="q"),
]


def said(control: Control, people: list[Conversation]) -> dict[str, tuple[str, ...]]:
    return {one.id: one.user_turns for one in control(people, Random(0))}


def test_each_control_is_what_its_name_says() -> None:
    found = {name: said(control, PEOPLE) for name, control in CONTROLS.items()}
    mine, other = PEOPLE[0].user_turns, PEOPLE[1].user_turns
    shuffled = found["turns shuffled"]
    assert sorted(shuffled["a"] + shuffled["b"]) == sorted(mine + other)
    assert shuffled != {"a": mine, "b": other}
    big_cake = found["words shuffled"]["a"][1]
    assert sorted(big_cake.split()) == ["a", "big", "cake"]
    assert found["another's side"] == {"a": other, "b": mine}
    assert found["assistant turns"] == {
        "a": ("Nice.", "Ok."),
        "b": ("What?", "There."),
    }
    assert found["intent verbatim"] == {"a": ("bake a cake.",) * 2}  # b has none
    assert found["constant turn"] == {"a": (CONSTANT,) * 2, "b": (CONSTANT,) * 2}
    assert found["ends at once"] == {"a": ("I bake",), "b": ("so what",)}
    goes_on = found["never ends"]
    assert [len(turns) for turns in goes_on.values()] == [LIMIT, LIMIT]
    assert goes_on["a"][:2] == mine


def test_answers_greetings_and_the_person_stay() -> None:
    greeted = Conversation(
        "g", PEOPLE[0].turns[1:2] + PEOPLE[1].turns, user="r", ended=True
    )
    [found] = CONTROLS["assistant turns"]([greeted], Random(0))
    texts = [turn.text for turn in found.turns]
    # The greeting is no answer; each turn of the user is the answer that follows.
    assert texts == ["Nice.", "What?", "What?", "There.", "There."]
    assert (found.id, found.user, found.ended) == ("g", "r", True)


def test_a_control_keeps_the_end_of_a_person_unless_it_is_about_ends() -> None:
    people = [replace(one, ended=True) for one in PEOPLE]
    ended = {}
    for name, control in CONTROLS.items():
        ended[name] = {one.ended for one in control(people, Random(0))}
    assert ended.pop("never ends") == {False}
    assert set.union(*ended.values()) == {True}
    # A side that is cut has no end that anybody saw.
    longer = replace(talk("c", *"abcdef", user="r"), ended=True)
    cut = CONTROLS["another's side"]([people[0], longer], Random(0))
    assert {one.id: one.ended for one in cut} == {"a": True, "c": False}


def test_a_longer_side_of_another_person_is_cut() -> None:
    longer = talk("c", "1", "x", "2", "y", "3", user="r")
    found = said(CONTROLS["another's side"], [PEOPLE[0], longer])
    assert found == {"a": ("1", "2"), "c": PEOPLE[0].user_turns}


def test_a_control_is_caught_if_its_interval_is_on_one_side_of_no_distance() -> None:
    above, below = Estimate(2, 1, 3, 9), Estimate(-2, -3, -1, 9)
    assert is_caught("words per turn", above) and is_caught("words per turn", below)
    assert not is_caught("words per turn", Estimate(2, -1, 3, 9))
    assert not is_caught("words per turn", Estimate(2, None, None, 3))
    # An AUROC below the floor, or a diversity above people's, does not give a user away.
    assert is_caught(OVERALL, above) and not is_caught(OVERALL, below)
    diversity = "first-turn diversity"
    assert is_caught(diversity, below) and not is_caught(diversity, above)


def sample_people() -> Iterator[Conversation]:
    """The sample logs that have an intent, up to what is out of turn."""
    for line in read_rows(sample_logs()):
        if intent := line.row.get("intent"):
            person = Conversation(line.row["id"], intent=intent)
            for message in line.row["messages"]:
                if message["role"] == person.next_role and message["content"]:
                    person = person.say(message["content"])
            yield person


@pytest.mark.slow
def test_every_control_is_told_from_people_by_a_measure_without_a_model() -> None:
    found = matrix(list(sample_people()))
    caught = {}
    for control, distances in found.items():
        caught[control] = [
            name for name in distances if is_caught(name, distances[name])
        ]
    humans = caught.pop(HUMANS)
    # One interval in twenty is expected to miss 0.
    assert len(humans) <= 3, humans
    assert all(caught.values()), caught
    for control in ("turns shuffled", "another's side"):
        assert {"reaction", "goal consistency"} & set(caught[control])
    assert "lower-case start" in caught["words shuffled"]
    assert "turns per conversation" in caught["never ends"]
    assert "turns per conversation" in caught["ends at once"]

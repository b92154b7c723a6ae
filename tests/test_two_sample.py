"""How well simulated turns are told from people's."""

import random

import numpy as np
import pytest
from test_crowds import says

from userlm import commands
from userlm.metrics.crowds import halves
from userlm.metrics.two_sample import (
    BITS,
    FIRST_TURNS,
    LATER_TURNS,
    LENGTH_MATCHED,
    OVERALL,
    _features,
    _fit,
    _ngrams_of,
    _scores,
    compare,
    floor,
)
from userlm.rows import write_conversations
from userlm.stats import auroc_estimate
from userlm.types import Conversation


def crowd(*turns: str, people: int = 24) -> list[Conversation]:
    """People who all say this, each with a number of their own."""
    found = []
    for i in range(people):
        said = [turn.format(i) for turn in turns]
        found.append(says(*said, id=str(i), user=f"p{i}"))
    return found


def values(measures) -> dict[str, float | None]:
    return {one.name: one.value for one in measures}


def test_auroc_in_strata_compares_only_within_each() -> None:
    # Stratum 0: positives 3, 1, negative 2: 1 of 2 pairs won. Stratum 1: positive 0, negative 5: 0
    # of 1. Stratum 2 has no negative. 1 of 3 pairs, though 9 beats every negative.
    scores = np.array([3.0, 1, 2, 0, 5, 9])
    positive = np.array([True, True, False, True, False, True])
    strata = np.array([0, 0, 0, 1, 1, 2])
    people = np.arange(6)
    assert auroc_estimate(scores, positive, people, strata).value == 1 / 3
    # All together: 3 beats 2, 1 and 0 beat nothing, 9 beats both: 3 of 8.
    assert auroc_estimate(scores, positive, people).value == 3 / 8
    assert auroc_estimate(scores, positive, people, np.arange(6)).value is None


def test_the_interval_in_strata_is_of_the_values_with_one_person_left_out() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=60)
    positive = rng.random(60) < 0.5
    people = np.repeat(np.arange(12), 5)
    strata = rng.integers(0, 3, 60)

    def pairs_won(kept):
        won = total = 0
        for i in np.flatnonzero(kept & positive):
            for j in np.flatnonzero(kept & ~positive & (strata == strata[i])):
                won += scores[i] > scores[j]
                total += 1
        return won / total

    from userlm.stats import interval

    found = auroc_estimate(scores, positive, people, strata)
    everybody = np.ones(60, bool)
    assert found.value == pytest.approx(pairs_won(everybody))
    left_out = [pairs_won(people != person) for person in range(12)]
    assert found[1:3] == pytest.approx(interval(found.value, left_out, 0, 1))


def test_users_who_repeat_their_people_cannot_be_told_from_them() -> None:
    people = crowd("what is {}?", "thanks {}")
    measures, ngrams = compare(people, people)
    assert values(measures) == {
        OVERALL: 0.5,
        LENGTH_MATCHED: 0.5,
        FIRST_TURNS: 0.5,
        LATER_TURNS: 0.5,
    }
    assert ngrams == []


def test_users_who_always_say_the_same_word_are_told_from_people_by_it() -> None:
    users = crowd("Certainly, what is {}?", "thanks {}")
    people = crowd("so what is {}?", "thanks {}")
    measures, ngrams = compare(users, people)
    found = values(measures)
    assert found[FIRST_TURNS] == 1
    assert found[LATER_TURNS] == 0.5
    # Half of the pairs are of a first turn and a later one, which are told apart somehow.
    assert 0.5 < found[OVERALL] < 1
    first = ngrams[0]
    assert first.text in " Certainly, "
    assert (first.simulated, first.human) == (50, 0)  # in each first turn
    assert any(one.human == 50 and one.text in " so what" for one in ngrams)


def test_turns_are_matched_by_their_length() -> None:
    # No turn of four or more words among the users: nobody to compare the people with.
    measures, _ = compare(crowd("yes {}"), crowd("yes yes yes yes {}"))
    overall, matched, *_ = measures
    assert overall.value == 1
    assert (matched.value, matched.why) == (None, "no such turns on both sides")


def test_the_people_who_are_tested_trained_nothing() -> None:
    people = crowd("what is {}?")
    users = crowd("what’s {}?")
    [overall, *_], _ = compare(users, people)
    half = halves(person.user for person in people)
    assert {row.cluster for row in overall.rows} == {p for p in half if half[p]}
    assert [row.stats[1] for row in overall.rows] == [1] * 12 + [0] * 12
    assert {row.key for row in overall.rows} >= {f"{p[1:]}/0" for p in half if half[p]}
    assert sum(row.key.startswith("human: ") for row in overall.rows) == 12


def test_the_floor_is_near_chance_and_told_of_other_people() -> None:
    rng = random.Random(0)
    words = "red green blue what how is it to a the cat dog house tree".split()
    people = []
    for i in range(120):
        said = [" ".join(rng.choices(words, k=6)) for _ in range(4)]
        people.append(says(*said, id=str(i), user=str(i)))
    [overall, *_] = floor(people)
    assert overall.low < 0.5 < overall.high
    assert 0.4 < overall.value < 0.6
    assert overall.clusters == 60


def test_the_weights_minimize_the_loss() -> None:
    texts = ["hello there", "oh hello", "good bye", "bye now", "so so", "well bye"]
    simulated = np.array([True, True, False, False, True, False])
    trained = np.array([True] * 5 + [False])
    features = _features(texts)
    squares = np.bincount(features.row, features.value**2)
    assert squares == pytest.approx(np.ones(6))
    weights = _fit(features, simulated, trained)
    # Three simulated turns and two of people share the weight equally.
    share = np.array([1 / 6, 1 / 6, 1 / 4, 1 / 4, 1 / 6, 0])
    wrong = share * (1 / (1 + np.exp(-_scores(features, weights))) - simulated)
    slope = np.bincount(
        features.column, features.value * wrong[features.row], minlength=1 << BITS
    )
    assert slope + weights / 5 == pytest.approx(0, abs=1e-6)
    assert _scores(features, weights)[5] < 0  # "well bye" is a person's


def test_ngrams_do_not_reach_into_the_next_turn() -> None:
    features = _features(["ab", "c\n\n d"])
    # " ab ": 3 pairs, 2 triples, 1 of four. " c d ": 4, 3 and 2.
    assert np.bincount(features.row).tolist() == [6, 9]
    columns = features.column[features.row == 1]
    found = _ngrams_of(["ab", "c\n\n d"], columns)
    assert sorted(found.values()) == sorted(
        [" c", "c ", " d", "d ", " c ", "c d", " d ", " c d", "c d "]
    )


@pytest.mark.parametrize("people", [0, 9])
def test_too_few_people_are_not_compared(people: int) -> None:
    measures, ngrams = compare(crowd("hi {}"), crowd("yo {}", people=people))
    assert values(measures) == dict.fromkeys(
        (OVERALL, LENGTH_MATCHED, FIRST_TURNS, LATER_TURNS)
    )
    assert {one.why for one in measures} == {
        "5 people (or intents) of each side are needed to train the classifier, and as many "
        "others to test it"
    }
    assert ngrams == []
    assert values(floor(crowd("yo {}", people=people))) == values(measures)


def test_score_shows_the_test_its_floor_and_what_gives_the_user_away(
    tmp_path, capsys
) -> None:
    people = crowd("so what is {}?", "thanks {}", people=48)
    users = crowd("Certainly, what is {}?", "thanks {}", people=48)
    write_conversations(tmp_path / "people.jsonl", people)
    write_conversations(tmp_path / "users.jsonl", users)
    out = tmp_path / "score"
    results = commands.score(
        commands.Score(
            [tmp_path / "users.jsonl"], human=tmp_path / "people.jsonl", out=out
        )
    )
    found = {one["name"]: one for one in results["users.jsonl"]}
    humans = {one["name"]: one for one in results["human"]}
    assert found[FIRST_TURNS]["value"] == 1
    assert found[FIRST_TURNS]["better"] == "lower"
    distance = found[FIRST_TURNS]["distance"]
    assert distance["value"] == 1 - humans[FIRST_TURNS]["value"]
    assert distance["low"] > 0
    assert found[OVERALL]["ngrams"][0]["simulated"] == 50
    shown = capsys.readouterr().out
    assert "What gives users.jsonl away" in shown
    commands.report(commands.Report([out], tmp_path / "report"))
    for page in ("report.html", "report.md"):
        text = (tmp_path / "report" / page).read_text()
        assert "two-sample AUROC, length-matched" in text
        assert "50.0 %" in text

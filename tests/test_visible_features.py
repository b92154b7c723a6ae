"""How predictable ends are from what anybody can see."""

import numpy as np
import pytest

from userlm.metrics.end_references import VISIBLE, compare
from userlm.metrics.visible_features import _fit_and_predict, predicted
from userlm.stats import auroc
from userlm.types import Conversation, Origin


def prefix(person: str, said: str, answer: str) -> Conversation:
    return Conversation(f"{person}/1", user=person).say(said).say(answer)


def people_who(
    ends_on_thanks: bool, count: int = 40
) -> list[tuple[Conversation, bool]]:
    """Half of them say thanks; they end after it, or ends are drawn."""
    drawn = np.random.default_rng(0).random(count) < 0.5
    found = []
    for i in range(count):
        says_thanks = i % 2 == 0
        words = "thanks a lot" if says_thanks else "tell me more"
        ended = says_thanks if ends_on_thanks else bool(drawn[i])
        found.append((prefix(f"p{i}", words, "Here you are."), ended))
    return found


def ask(pairs: list[tuple[Conversation, bool]]) -> list[tuple[float, bool]] | None:
    prefixes = [one for one, _ in pairs]
    return predicted(
        prefixes, [end for _, end in pairs], [one.user or "" for one in prefixes]
    )


def test_ends_that_follow_from_thanks_are_found_at_people_who_were_not_fitted() -> None:
    pairs = people_who(ends_on_thanks=True)
    found = ask(pairs)
    assert found is not None
    assert [ends for _, ends in found] == [ended for _, ended in pairs]


def test_ends_that_follow_from_nothing_are_found_no_better_than_by_chance() -> None:
    pairs = people_who(ends_on_thanks=False, count=400)
    found = ask(pairs)
    assert found is not None
    p_end = np.array([p for p, _ in found])
    ended = np.array([end for _, end in pairs])
    assert auroc(p_end[ended], p_end[~ended]) == pytest.approx(0.5, abs=0.08)


def test_the_weights_solve_the_equations_of_the_penalized_likelihood() -> None:
    """One feature, +1 where 10 of 20 end and -1 where 2 of 20 do. The constant has no penalty, so
    the probabilities sum to 12; the weight w solves sum((y - p) x) = w."""
    x = np.repeat([[1.0], [-1.0]], 20, axis=0)
    y = np.array([1] * 10 + [0] * 10 + [1] * 2 + [0] * 18, dtype=float)
    high, low = _fit_and_predict(x, y, np.array([[1.0], [-1.0]]))
    assert 20 * (high + low) == pytest.approx(12)  # the constant is free
    weight = (np.log(high / (1 - high)) - np.log(low / (1 - low))) / 2
    assert (10 - 20 * high) - (2 - 20 * low) == pytest.approx(weight)


def test_few_people_or_ends_of_one_kind_give_no_reference() -> None:
    pairs = people_who(ends_on_thanks=True)
    assert ask(pairs[:9]) is None
    assert ask([(one, True) for one, _ in pairs]) is None


def test_it_stands_beside_a_user_on_the_same_turns() -> None:
    """What failed, and first turns, count for nobody."""
    responses = []
    for one, ended in people_who(ends_on_thanks=True):
        origin = Origin(one.user, 1, None if ended else "more", person_ended=ended)
        asked = Conversation(one.id, one.turns, user=one.user, origin=origin)
        responses.append(asked.say("and then?"))
    responses[0] = responses[0].close("error", error="no room")
    by_user = {one.user: one for one in compare(responses)}
    assert by_user[VISIBLE].f1.value == 100
    assert by_user[VISIBLE].f1.n == by_user["this user"].f1.n

"""Why one conversation stays or goes."""

import pytest

from userlm.data import filters
from userlm.data.explain import explain
from userlm.data.split import split
from userlm.types import Conversation, InputError


def log(id, text, user=None, **meta):
    return Conversation(id, user=user, meta=meta).say(text).say("ok")


LOGS = [
    *(
        log(f"t{i}", f"write a prompt for a picture of {i}", language="English")
        for i in range(3)
    ),
    log(
        "fr",
        "Bonjour, comment faire une bonne soupe aux légumes avec des pommes de terre ?",
    ),
    log("bad", "hi there", language="English", toxic=True),
    log("ok", "how long does rice take", user="p/Chile", language="English"),
]


def told(id, logs=LOGS, **rules):
    found = explain(id, lambda doing: iter(logs), filters.Rules(**rules))
    return {step: (verdict, why) for step, verdict, why in found}


def test_each_step_says_what_it_rests_on():
    found = told("ok")
    assert found["language"] == ("kept", "en, its log says 'English'; kept: en")
    assert found["toxic"] == ("kept", "the log says nothing about it")
    assert found["template prompt"] == ("kept", "its first turn has fewer than 7 words")
    assert "duplicate" not in found
    assert found["split"][0] == split(LOGS[-1])
    assert "'p/Chile'" in found["split"][1]


def test_a_template_is_shown_with_its_count():
    # "write a prompt for a picture of" stands three times; the 7-gram with the number once
    assert told("t1", template_limit=2)["template prompt"] == (
        "dropped",
        "its most frequent 7-gram occurs 3 times in first turns: 'write a prompt for a picture "
        "of'; "
        "the limit is 2",
    )
    assert told("t1", template_limit=3)["template prompt"][0] == "kept"
    assert told("t1", template_limit=None)["template prompt"][0] == "off"


def test_what_goes_says_why():
    verdict, why = told("fr")["language"]
    assert verdict == "dropped"
    assert why == "fr, by py3langid, from the turns; kept: en"
    assert told("fr", languages=None)["language"] == (
        "kept",
        "fr, by py3langid, from the turns; all are kept",
    )
    assert told("bad")["toxic"] == ("dropped", "toxic: True")
    assert told("bad", flagged=True)["toxic"][0] == "off"
    assert told("bad")["split"][0] == "none" and told("bad")["split"][1].startswith(
        "it is dropped; otherwise "
    )


def test_later_steps_are_judged_as_if_the_earlier_ones_had_kept_it():
    text = "one two three four five six seven"
    logs = [
        log("toxic", text, language="English", toxic=True),
        log("same", text, language="English"),
    ]
    # counted are "same" and, for its own sake alone, "toxic"
    assert told("toxic", logs, template_limit=1)["template prompt"][0] == "dropped"
    assert (
        "occurs 1 time in" in told("same", logs, template_limit=1)["template prompt"][1]
    )


def test_a_duplicate_names_the_one_that_stays():
    logs = [
        log("a", "How do I cook rice?"),
        log("b", "how do I  cook rice?"),
        log("c", "something else"),
    ]
    rules = {"duplicates": "exact", "shares": (1.0, 0.0, 0.0)}
    assert told("b", logs, **rules)["duplicate"] == (
        "dropped",
        "the user says the same as in 'a', which is kept",
    )
    assert told("a", logs, **rules)["duplicate"][0] == "kept"


def test_the_explanation_is_that_of_the_decision(tmp_path):
    rules = filters.Rules(template_limit=2)
    reasons = filters.decide(LOGS, rules, tmp_path / "ngrams").reasons
    for one, reason in zip(LOGS, reasons, strict=True):
        goes = [
            step
            for step, verdict, _ in explain(one.id, lambda doing: iter(LOGS), rules)
            if verdict == "dropped"
        ]
        assert bool(goes) == (reason is not None)


def test_an_id_that_is_not_there_gets_near_ones():
    with pytest.raises(
        InputError, match="no conversation has the id 't11'; there are 't1'"
    ):
        told("t11")

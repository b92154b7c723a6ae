"""What a log says of the person, as a part of the system turn."""

from userlm.data.conditions import LONGEST, sentence, traits
from userlm.types import Conversation


def told(*fields, **meta):
    return traits(Conversation("c", meta=meta), fields)


def test_what_is_known_is_told_in_the_order_that_was_asked_for():
    known = told(
        "country",
        "language",
        "age_group",
        language="en",
        country="Chile",
        age_group="25-34",
        model="x",
    )
    assert (
        sentence(known)
        == "About the user: country Chile, language English, age group 25-34."
    )


def test_what_the_log_does_not_say_is_left_out_and_not_guessed():
    assert told("language", "country", "toxic", language="Nolang", country=None) == {}
    assert told("country", country="  ") == {}
    assert told("country", country=["Chile"]) == {}
    assert told("bio", bio="x" * (LONGEST + 1)) == {}
    assert told("bio", bio="a\n  b") == {"bio": "a b"}


def test_a_language_has_one_name_however_it_is_written():
    for label in ("en", "English", "EN_us", "english"):
        assert told("language", language=label) == {"language": "English"}
    assert told("language", language="tlh") == {"language": "tlh"}

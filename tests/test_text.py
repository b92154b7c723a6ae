"""Words, numbers and hashes."""

from fractions import Fraction
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userlm import text as text_module
from userlm.text import (
    INTENT_PREFIX,
    content_words,
    format_number,
    has_words,
    intent_goal,
    ngrams,
    numbers,
    stable_hash,
    word_batches,
    word_spans,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.50", ["2.5"]),
        ("-3", ["-3"]),
        ("-$3 and $-4", ["-3", "-4"]),
        ("x=-3", ["-3"]),
        ("$1,200.00", ["1200"]),
        ("$100.00", ["100"]),  # not 1: a careless rstrip of ".00" gives that
        ("v2 and H2O", []),
        ("5kg, the 2nd, 50%", ["5", "2", "50"]),
        ("42.", ["42"]),
        ("5-10", ["5", "10"]),
        ("1,2,3", ["1", "2", "3"]),
        ("1/2 or 2 1/2 or 1/3", ["0.5", "2.5", "1/3"]),
        ("48/2=24", ["48", "2", "24"]),
        ("2020-05-01", ["2020", "5", "1"]),
        (".5 cups ...7", ["0.5", "7"]),
        ("007 and -0.0", ["7", "0"]),
        ("five", []),
    ],
)
def test_numbers_have_one_spelling(text: str, expected: list[str]) -> None:
    assert numbers(text) == expected


def test_a_pasted_number_of_ten_thousand_digits_is_read() -> None:
    assert numbers("9" * 10_000) == ["9" * 10_000]


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=3))
def test_equal_numbers_are_equal_strings(number: object) -> None:
    plain, commas = f"{number:f}", f"{number:,f}"
    assert numbers(plain) == numbers(commas) == [format_number(Fraction(plain))]


def test_words_are_lower_case_without_punctuation_and_keep_their_apostrophes() -> None:
    assert words("Don’t stop, NOW! naïve café") == [
        "don't",
        "stop",
        "now",
        "naïve",
        "café",
    ]


def test_content_words_leave_stop_words_out() -> None:
    assert content_words("How do I bake the bread?") == ["bake", "bread"]


def test_ngrams_are_all_runs_and_none_when_too_short() -> None:
    assert list(ngrams(["a", "b", "c"], 2)) == [("a", "b"), ("b", "c")]
    assert list(ngrams(["a"], 2)) == []


def test_only_the_fixed_opening_of_an_intent_is_stripped() -> None:
    assert intent_goal(INTENT_PREFIX + "learn to bake.") == "learn to bake."
    assert intent_goal("learn to bake.") == "learn to bake."
    assert intent_goal("\n" + INTENT_PREFIX.upper() + " bake") == "bake"
    assert intent_goal(INTENT_PREFIX.strip() + "ast") == INTENT_PREFIX.strip() + "ast"
    assert intent_goal("No: " + INTENT_PREFIX) == "No: " + INTENT_PREFIX


def test_a_stable_hash_tells_its_parts_apart_and_never_changes() -> None:
    assert stable_hash("a", "bc") != stable_hash("ab", "c")
    assert stable_hash(0, "x", 1) == stable_hash("0", "x", "1")
    # blake2b of the two bytes "a" and "b" with the unit separator between, first 8 bytes
    assert stable_hash("a", "b") == 17891760522800452624


@pytest.mark.parametrize(
    "text", ["Don't stop, l’été!", "a_b 3.5 ice-cream", "", "İstanbul ǅ", "naïve—yes"]
)
def test_words_stand_where_their_spans_say(text):
    assert [
        word for start, stop in word_spans(text) for word in words(text[start:stop])
    ] == words(text)


@pytest.mark.parametrize(
    "blank",
    [
        "",
        " \n\t",
        "\u200b\u200c\u200d\u2060\ufeff",
        "\u202e\u00ad",
        "\u2800",
        "\u3164",
        "\x1b",
    ],
)
def test_white_space_and_characters_that_show_nothing_are_no_words(blank):
    assert not has_words(blank)
    for seen in (".", "é", "字", "👍🏽", "ก็", "0"):
        assert has_words(blank + seen + blank)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_words_come_in_batches_and_none_is_lost(size, monkeypatch):
    monkeypatch.setattr(text_module, "_BATCH", size)
    for text in ("", " ", "a", " a  bc\n", "abc\u2003def ghij\tk"):
        assert list(chain.from_iterable(word_batches(text))) == text.split()

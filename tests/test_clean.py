"""What is kept, and who learns from it."""

import math
import subprocess
import sys

import pytest

from userlm.data import clean
from userlm.types import Conversation, InputError, Turn


def log(*said: str, id: str = "c", user: str | None = None, **meta: object) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(id, tuple(Turn(roles[i % 2], text) for i, text in enumerate(said)), user=user, meta=meta)


@pytest.mark.parametrize(
    ("label", "code"),
    [
        ("English", "en"),
        ("en", "en"),
        ("en-US", "en"),
        ("EN_gb", "en"),
        ("Chinese", "zh"),
        ("Nolang", "und"),
        ("", "und"),
    ],
)
def test_names_and_codes_of_a_language_are_the_same(label, code):
    assert clean.language_code(label) == code


def test_the_label_of_the_log_decides_about_the_language():
    assert clean.foreign(log("你好", language="English")) is None
    assert clean.foreign(log("hello", language="Russian")) == "language: ru"
    assert clean.foreign(log("hello", language="Nolang")) == "language: und"


def test_a_log_without_a_label_is_read():
    french = log("Bonjour, pouvez-vous m'expliquer comment faire une bonne soupe aux légumes ?")
    assert clean.foreign(log("Can you explain to me how I make a good soup with vegetables?")) is None
    assert clean.foreign(french) == "language: fr"
    assert clean.foreign(french, ("en", "French")) is None
    assert clean.foreign(log("请告诉我怎么做一碗好喝的汤，谢谢你的帮助")) == "language: zh"


@pytest.mark.parametrize("text", ["numpy variance", "hi", "for loop in python"])
def test_a_short_turn_in_ascii_is_taken_for_english(text):
    assert clean.language(log(text)) == "en"


def test_what_holds_no_language_is_undetermined():
    assert clean.language(log("12 + 7 = ?")) == "und"


def test_without_wanted_languages_all_are_kept():
    assert clean.foreign(log("привет", language="ru"), None) is None


def test_what_the_log_flags_is_dropped_with_its_reason():
    assert clean.flagged(log("x")) is None
    assert clean.flagged(log("x", toxic=False, redacted=False)) is None
    assert clean.flagged(log("x", toxic=True, redacted=True)) == "toxic"
    assert clean.flagged(log("x", toxic_source=True)) == "toxic"
    assert clean.flagged(log("x", redacted=True)) == "redacted"
    assert clean.flagged(log("x", redacted=True), redacted=False) is None
    assert clean.flagged(log("x", toxic=True), toxic=False) is None


def test_ngrams_count_every_time_they_stand_in_a_first_user_turn():
    # 2-grams, lower-cased, split on white space. "a b a b": ab, ba, ab. "A  b": ab. "b, a": "b," is another word.
    # So ab: 3, ba: 1, "b, a": 1. What is said later does not count.
    logs = [log("a b a b", "a b", "a b"), log("A  b"), log("b, a")]
    assert sorted(clean.count_ngrams(logs, 2).values()) == [1, 1, 3]
    assert list(clean.count_ngrams(logs, 2, above=1).values()) == [3]
    assert clean.count_ngrams([], 2) == {}


def test_the_order_of_the_words_matters():
    table = clean.count_ngrams([log("one two three four five six seven")] * 3)
    assert clean.template(log("one two three four five six seven"), table, limit=2) == "template prompt"
    assert clean.template(log("seven six five four three two one"), table, limit=2) is None


def test_all_conversations_of_a_template_go_and_only_above_the_limit():
    prompt = "please act as a prompt generator for me"
    logs = [log(f"{prompt} {i}") for i in range(101)] + [log("what is the best soup that I can make today")]
    for above in (0, 100):
        table = clean.count_ngrams(logs, above=above)
        assert [clean.template(c, table) for c in logs] == ["template prompt"] * 101 + [None]
    assert {clean.template(c, clean.count_ngrams(logs[:100])) for c in logs} == {None}  # 100 is not above 100


def test_a_text_of_six_words_is_never_a_template():
    logs = [log("tell me a joke right now")] * 500
    assert clean.template(logs[0], clean.count_ngrams(logs)) is None


def test_a_log_without_user_turn_is_no_template():
    assert clean.template(Conversation("x", (Turn("assistant", "hello"),)), {}) is None


def test_ngrams_of_no_words_are_refused():
    with pytest.raises(InputError, match="n >= 1"):
        clean.count_ngrams([log("a")], 0)


def test_nobody_is_in_two_splits():
    logs = [log("x", id=f"c{i}", user=f"p{i % 50}", country=("Chile", "Peru")[i % 3 == 0]) for i in range(500)]
    for who in {c.user for c in logs}:
        assert len({clean.split(c, 1) for c in logs if c.user == who}) == 1


def test_without_a_person_the_tree_keeps_together_and_else_each_stands_alone():
    assert clean.person(log("x", id="a", user="p", tree=3)) == "p"
    assert clean.person(log("x", id="a", tree=0)) == clean.person(log("x", id="b", tree=0)) != "a"
    assert clean.person(log("x", id="a", tree=0, source="s")) != clean.person(log("x", id="a", tree=0, source="t"))
    assert clean.person(log("x", id="a")) == "a"


def test_the_shares_hold_on_average_and_in_each_country():
    # 20,000 people, share 0.05: the standard deviation of the count is sqrt(20000 * 0.05 * 0.95) = 30.8.
    for country in ("Chile", "Peru"):
        logs = [log("x", user=f"{i}/{country}", country=country) for i in range(20_000)]
        splits = [clean.split(c, 7) for c in logs]
        for name, share in zip(("train", "valid", "test"), (0.90, 0.05, 0.05), strict=True):
            deviation = math.sqrt(20_000 * share * (1 - share))
            assert abs(splits.count(name) - 20_000 * share) < 4 * deviation


def test_another_seed_gives_another_split_and_shares_can_be_chosen():
    logs = [log("x", id=f"c{i}") for i in range(300)]
    halves = (0.5, 0.5, 0.0)
    assert [clean.split(c, 1, halves) for c in logs] != [clean.split(c, 2, halves) for c in logs]
    assert {clean.split(c, 1, halves) for c in logs} == {"train", "valid"}
    assert {clean.split(c, 1, (0.0, 0.0, 1.0)) for c in logs} == {"test"}


def test_the_hash_of_a_split_and_of_an_ngram_is_the_same_in_every_process():
    code = (
        "from userlm.data import clean; from userlm.types import Conversation, Turn\n"
        "c = Conversation('c', (Turn('user', 'a b c'),), user='p')\n"
        "print([clean.split(c, s, (0.4, 0.3, 0.3)) for s in range(9)], clean.count_ngrams([c], 2))"
    )
    c = log("a b c", user="p")
    here = f"{[clean.split(c, s, (0.4, 0.3, 0.3)) for s in range(9)]} {clean.count_ngrams([c], 2)}"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


@pytest.mark.parametrize("shares", [(0.9, 0.05, 0.1), (1.2, -0.1, -0.1)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(InputError, match="sum to 1"):
        clean.split(log("x"), 0, shares)


def test_the_language_model_is_not_loaded_until_it_is_asked_for():
    code = "import sys, userlm.data.clean; print('py3langid' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

"""What is kept, and who learns from it."""

import math
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from userlm import commands
from userlm.data import filters
from userlm.data import ngrams as counting
from userlm.data.language import language
from userlm.data.split import person, split
from userlm.rows import read_conversations, write_conversations
from userlm.types import Conversation, InputError, Turn


def log(
    *said: str, id: str = "c", user: str | None = None, **meta: object
) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(
        id,
        tuple(Turn(roles[i % 2], text) for i, text in enumerate(said)),
        user=user,
        meta=meta,
    )


def foreign(conversation, wanted=("en",)):
    rules = filters.Rules(languages=wanted)
    return filters.foreign(conversation, language(conversation), rules)


def test_what_is_dropped_says_whether_its_label_or_the_identifier_decided():
    french = (
        "Bonjour, pouvez-vous m'expliquer comment faire une bonne soupe aux légumes ?"
    )
    assert foreign(log(french)) == "fr, by identifier"
    assert foreign(log(french, language="French")) == "fr, by label"
    assert foreign(log(french, language="English")) == "fr, by identifier"
    assert foreign(log(french), ("en", "French")) is None
    assert foreign(log("hello", language="Russian"), ("en", "ru")) is None


def test_without_wanted_languages_all_are_kept():
    assert foreign(log("привет", language="ru"), None) is None


def test_what_the_log_flags_is_dropped_with_its_reason():
    def flagged(**meta):
        return filters.Rules(languages=None).reason(log("x", **meta), "en")

    assert flagged() is None
    assert flagged(toxic=False, redacted=False) is None
    assert flagged(toxic=True, redacted=True) == "toxic"
    assert flagged(toxic_source=True) == "toxic"
    for mark in (1, 1.0, "True", "true", "1"):
        assert (flagged(toxic=mark), flagged(redacted=mark)) == ("toxic", "redacted")
    for mark in (0, 0.0, 0.5, "False", "", None):
        assert flagged(toxic=mark, redacted=mark) is None
    assert flagged(redacted=True) == "redacted"


def test_a_filter_is_added_in_one_place(monkeypatch, tmp_path, capsys):
    """One description more, and it decides, explains, and stands in terminal, page and Markdown."""

    def shouts(conversation, code, rules):
        turns = conversation.user_turns
        return "" if turns and turns[0].isupper() else None

    toy = filters.Filter(
        "shouting",
        "The first turn is in capitals.",
        lambda rules: True,
        shouts,
    )
    monkeypatch.setattr(filters, "FILTERS", (toy, *filters.FILTERS))
    write_conversations(
        tmp_path / "logs.jsonl",
        [replace(log("HELLO THERE"), id="loud"), log("hello there")],
    )
    out = tmp_path / "out"
    options = commands.Clean(tmp_path / "logs.jsonl", out, shares="100/0/0")
    found = commands.clean(replace(options, output=commands.Output(details=True)))
    assert found["counts"]["dropped: shouting"] == 1
    assert "shouting" in capsys.readouterr().out
    commands.report(commands.Report([out], tmp_path / "report"))
    for page in ("report.html", "report.md"):
        assert "shouting" in (tmp_path / "report" / page).read_text()
    shouted = next(read_conversations(out / "dropped.jsonl"))
    commands.clean(replace(options, explain=shouted.id))
    shown = " ".join(capsys.readouterr().out.split())
    assert "shouting dropped The first turn is in capitals." in shown


def test_the_table_of_steps_in_the_docs_has_each_filter():
    page = (Path(__file__).parent.parent / "docs/data.md").read_text(encoding="utf-8")
    for each in filters.FILTERS:
        assert f"\n| {each.name} |" in page, f"describe {each.name!r} in docs/data.md"


def count(folder, logs, limit, n=7):
    """The n-grams above the limit, by hash; which logs have one; and the counter, closed."""
    ngrams = counting.Ngrams(folder / "ngrams", n)
    for one in logs:
        ngrams.add(one)
    often, hit = ngrams.above(limit)
    ngrams.close()
    assert list(folder.iterdir()) == []
    return often, hit.tolist(), ngrams


def test_ngrams_count_every_time_they_stand_in_a_first_user_turn(tmp_path):
    # 2-grams, lower-cased, split on white space. "a b a b": ab, ba, ab. "A  b": ab. "b, a": "b," is
    # another word. So ab: 3, ba: 1, "b, a": 1. What is said later does not count.
    logs = [log("a b a b", "a b", "a b"), log("A  b"), log("b, a")]
    often, hit, ngrams = count(tmp_path, logs, 0, n=2)
    assert (sorted(often.values()), hit, ngrams.total) == (
        [1, 1, 3],
        [True, True, True],
        5,
    )
    often, hit, ngrams = count(tmp_path, logs, 1, n=2)
    assert (list(often.values()), hit) == ([3], [True, True, False])
    # 5 n-grams of 8 bytes; the smallest table, 2^15 counts of 8 bytes, and a hash and a count of 8
    # each
    sizes = {"bytes on disk": 40, "bytes in memory": 262144 + 16}
    assert ngrams.table == {"n-grams": 5, "counted one by one": 1, **sizes}
    assert count(tmp_path, [], 1)[:2] == ({}, [])


def test_an_ngram_does_not_reach_from_one_text_into_the_next(tmp_path):
    # Three texts of 1, 2 and 3 words hold 0, 1 and 2 2-grams.
    assert count(tmp_path, [log("a"), log("a b"), log("a b a")], 0, n=2)[2].total == 3


def test_the_order_of_the_words_matters(tmp_path):
    often, _, _ = count(tmp_path, [log("one two three four five six seven")] * 3, 2)
    assert filters.template(log("Well, one two three four five six seven"), often) == (
        "one two three four five six seven",
        3,
    )
    assert filters.template(log("seven six five four three two one"), often) is None


def test_all_conversations_of_a_template_go_and_only_above_the_limit(tmp_path):
    prompt = "please act as a prompt generator for me"
    logs = [log(f"{prompt} {i}") for i in range(101)] + [
        log("what is the best soup that I can make today")
    ]
    assert count(tmp_path, logs, 100)[1] == [True] * 101 + [False]
    assert not any(count(tmp_path, logs[:100], 100)[1])  # 100 is not above 100


@pytest.mark.slow
def test_the_table_of_buckets_changes_no_count(tmp_path, monkeypatch):
    # With 4 buckets for thousands of n-grams all are full, and each n-gram is counted one by one.
    draw = random.Random(0)
    logs = [
        log(" ".join(draw.choices("abcdef", k=draw.randrange(12)))) for _ in range(3000)
    ]
    plain = Counter(key for one in logs for key in counting.own_ngrams(one, 3))
    for limit in (0, 40, 60):
        exact = {key: times for key, times in plain.items() if times > limit}
        for bits in (2, 16):
            monkeypatch.setattr(counting, "MIN_BITS", bits)
            monkeypatch.setattr(counting, "MAX_BITS", bits)
            often, hit, ngrams = count(tmp_path, logs, limit, n=3)
            assert often == exact
            assert (ngrams.table["counted one by one"] == len(plain)) == (
                bits == 2 or limit == 0
            )
            assert hit == [filters.template(one, exact, 3) is not None for one in logs]
    assert 0 < len(exact) < len(plain)


def test_a_long_text_takes_no_memory_for_each_word(tmp_path):
    text = "hello there " * 200_000
    filters.decide([log("hello there", "hi")], filters.Rules(), tmp_path / "ngrams")
    tracemalloc.start()
    filters.decide([log(text, "hi")], filters.Rules(), tmp_path / "ngrams")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * len(text)  # 20 with a list of all words


def test_an_ngram_within_several_batches_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "BATCH_WORDS", 4)
    logs = [log("a b c d e f g"), log("a b"), log(""), log("h i j a b c d e")]
    often, hit, ngrams = count(tmp_path, logs, 1, n=3)
    # abc, bcd, cde are twice there; 5 + 0 + 0 + 6 n-grams
    assert (len(often), hit, ngrams.total) == (3, [True, False, False, True], 11)


def test_a_text_of_six_words_is_never_a_template(tmp_path):
    assert not any(count(tmp_path, [log("tell me a joke right now")] * 500, 100)[1])


def test_a_log_without_user_turn_is_no_template():
    assert (
        filters.template(Conversation("x", (Turn("assistant", "hello"),)), {1: 200})
        is None
    )


def test_ngrams_of_no_words_are_refused(tmp_path):
    with pytest.raises(InputError, match="n >= 1"):
        counting.Ngrams(tmp_path / "ngrams", 0)


def decided(folder, logs, **rules):
    return filters.decide(logs, filters.Rules(**rules), folder / "ngrams")


def test_each_conversation_gets_the_first_reason_that_applies(tmp_path):
    template = "write a prompt for a picture of a {} that flies"
    logs = [
        log("привет", id="a", language="Russian", toxic=True),
        log("hi", id="b", language="English", toxic=True),
        *(log(template.format(i), id=f"t{i}", language="English") for i in range(3)),
        log("how long does rice take", "20 minutes", id="c", language="English"),
    ]
    # 7-grams of the template up to the number: "write ... of" and "a prompt ... a", three times
    # each
    decisions = decided(tmp_path, logs, template_limit=2)
    assert decisions.reasons == [
        "language: ru, by label",
        "toxic",
        *["template prompt"] * 3,
        None,
    ]
    assert decided(tmp_path, logs, template_limit=3).reasons[2:] == [None] * 4
    assert (
        decided(
            tmp_path, logs, template_limit=None, languages=None, flagged=True
        ).reasons
        == [None] * 6
    )
    assert decisions.table["counted one by one"] == 2


def test_of_those_that_say_the_same_the_one_in_train_stays(tmp_path):
    logs = [
        log("How do I cook rice well, and how long?", id=f"c{i}", user=f"p{i}")
        for i in range(40)
    ]
    rules = {"duplicates": "exact", "shares": (0.3, 0.3, 0.4)}
    decisions = decided(tmp_path, logs, **rules)
    (kept,) = (i for i, reason in enumerate(decisions.reasons) if reason is None)
    # The first in train, though others in test stand before it.
    assert kept == decisions.splits.index(0)
    assert kept > 0
    assert set(decisions.copies.values()) == {f"c{kept}"}
    assert len(decisions.copies) == 39
    assert {reason for reason in decisions.reasons if reason} == {"duplicate"}
    assert decisions.figures["splits"]["train"]["conversations"] == 1


def test_the_figures_are_those_of_what_stays(tmp_path):
    logs = [
        # one person, two conversations: user turns of 3 and 1 words, then of 2; answers of 2 and 5
        # letters
        replace(
            log("a b c", "ok", "d", "hello", id="1", user="p", country="Chile"),
            ended=True,
        ),
        log("e f", id="2", user="p", country="Chile"),
        log("g", "xyz", id="3", country="Peru"),  # nobody is named
        log("h", id="4", toxic=True),
    ]
    figures = decided(tmp_path, logs, shares=(1.0, 0.0, 0.0), languages=None).figures
    assert figures["splits"]["train"] == {
        "conversations": 3,
        "people": 2,
        "user turns": 4,
        "samples": 5,
    }
    assert figures["splits"]["test"] == {
        "conversations": 0,
        "people": 0,
        "user turns": 0,
        "samples": 0,
    }
    # words a user turn: 3, 1, 2, 1: mean 1.75; the median is the second of 1 1 2 3, so 1
    words = figures["lengths"]["words a user turn"]
    assert (words["mean"], words["50 %"], words["largest"]) == (1.75, 1, 3)
    assert figures["lengths"]["words a first turn"]["mean"] == 2  # 3, 2, 1
    assert figures["lengths"]["characters an answer"]["mean"] == 3.33  # 2, 5, 3
    assert figures["people"]["known"] == 1
    assert figures["people"]["conversations of known people"] == 2
    assert figures["countries"] == {"Chile": 2, "Peru": 1}


def test_of_nothing_there_are_no_lengths(tmp_path):
    figures = decided(tmp_path, []).figures
    assert figures["lengths"]["words a user turn"] is None
    assert figures["people"]["share of the heaviest 1 %"] is None


def test_nobody_is_in_two_splits():
    logs = [
        log("x", id=f"c{i}", user=f"p{i % 50}", country=("Chile", "Peru")[i % 3 == 0])
        for i in range(500)
    ]
    for who in {c.user for c in logs}:
        assert len({split(c, 1) for c in logs if c.user == who}) == 1


def test_without_a_person_the_tree_keeps_together_and_else_each_stands_alone():
    assert person(log("x", id="a", user="p", tree=3)) == "p"
    assert person(log("x", id="a", tree=0)) == person(log("x", id="b", tree=0)) != "a"
    one, other = (log("x", id="a", tree=0, source=source) for source in ("s", "t"))
    assert person(one) != person(other)
    assert person(log("x", id="a")) == "a"


@pytest.mark.slow
def test_the_shares_hold_on_average_and_in_each_country():
    # 20,000 people, share 0.05: the standard deviation of the count is sqrt(20000 * 0.05 * 0.95) =
    # 30.8.
    for country in ("Chile", "Peru"):
        logs = [log("x", user=f"{i}/{country}", country=country) for i in range(20_000)]
        splits = [split(c, 7) for c in logs]
        for name, share in zip(
            ("train", "valid", "test"), (0.90, 0.05, 0.05), strict=True
        ):
            deviation = math.sqrt(20_000 * share * (1 - share))
            assert abs(splits.count(name) - 20_000 * share) < 4 * deviation


def test_another_seed_gives_another_split_and_shares_can_be_chosen():
    logs = [log("x", id=f"c{i}") for i in range(300)]
    halves = (0.5, 0.5, 0.0)
    assert [split(c, 1, halves) for c in logs] != [split(c, 2, halves) for c in logs]
    assert {split(c, 1, halves) for c in logs} == {"train", "valid"}
    assert {split(c, 1, (0.0, 0.0, 1.0)) for c in logs} == {"test"}


@pytest.mark.slow
def test_a_split_and_what_is_a_template_are_the_same_in_every_process(tmp_path):
    code = (
        "from pathlib import Path; from userlm.data import filters, ngrams as counting\n"
        "from userlm.data.split import split; from userlm.types import Conversation, Turn\n"
        "c = [Conversation('c', (Turn('user', f'a b c {i % 4}'),), user='p') for i in range(9)]\n"
        "reasons = filters.decide(c, filters.Rules(ngram=4, template_limit=2), "
        "Path('ngrams')).reasons\n"
        "reasons += counting.own_ngrams(c[0], 4)\n"
        "print([split(c[0], s, (0.4, 0.3, 0.3)) for s in range(9)], reasons)"
    )
    c = [log(f"a b c {i % 4}", user="p") for i in range(9)]
    reasons = decided(
        tmp_path, c, ngram=4, template_limit=2
    ).reasons  # "a b c 0" stands three times, others twice
    assert reasons == ["template prompt" if i % 4 == 0 else None for i in range(9)]
    here = (
        f"{[split(c[0], s, (0.4, 0.3, 0.3)) for s in range(9)]} "
        f"{reasons + counting.own_ngrams(c[0], 4)}"
    )
    run = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path}
    there = subprocess.run([sys.executable, "-c", code], **run)
    assert there.stdout.strip() == here


@pytest.mark.parametrize("shares", [(0.9, 0.05, 0.1), (1.2, -0.1, -0.1)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(InputError, match="sum to 1"):
        split(log("x"), 0, shares)


def test_the_language_model_is_not_loaded_until_it_is_asked_for():
    code = "import sys, userlm.data.filters; print('py3langid' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]

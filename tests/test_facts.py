"""Which facts of a task a user said."""

import gzip
import json
from pathlib import Path

import pytest

from userlm.facts import said, stems, told_in
from userlm.types import Fact


@pytest.mark.parametrize(
    ("fact", "texts"),
    [
        (
            "Mimi picked up 2 dozen seashells.",
            ["mimi picks up 24 seashells"],
        ),  # 2 x 12; picked = picks
        (
            "Kyle found twice as many shells.",
            ["kyle found 2x as many shells"],
        ),  # twice = 2
        (
            "She bakes 25 cakes",
            ["she's baking twenty-five", "cakes, i mean"],
        ),  # told in two turns
        ("A third of the 1,200 boxes", ["1/3 of the 1200 boxes"]),
        ("One of the cats is black.", ["a cat is black"]),  # a one is not generated
        ("He used half of his $2.50", ["he used 1/2 of his 2.5 dollars"]),
        ("It is 5.", ["5"]),  # no content words: the number alone
        ("There is only one.", ["one, i think"]),
    ],
)
def test_a_fact_was_said(fact: str, texts: list[str]) -> None:
    assert said(fact, texts) and said(Fact(fact), texts)


@pytest.mark.parametrize(
    ("fact", "texts"),
    [
        (
            "Dad gave Olaf 10 toy cars.",
            ["dad gave olaf toy cars"],
        ),  # the number is missing
        (
            "Dad gave Olaf 10 toy cars.",
            ["dad gave olaf 100 toy cars"],
        ),  # another number
        (
            "Dad gave Olaf 10 toy cars.",
            ["10 it is, for the cars"],
        ),  # 1 of 5: cars, but dad gave olaf toy
        ("Use a stack", []),
        ("There is only one.", []),
        ("There is only one.", ["there is only that"]),
        ("?!", ["?!"]),  # nothing to find
        ("It was a sunny day in June", ["it was june"]),  # 1 of 3: june, but sunny day
    ],
)
def test_a_fact_was_not_said(fact: str, texts: list[str]) -> None:
    assert not said(fact, texts)


def test_most_of_the_words_are_enough() -> None:
    fact = "red green blue black"
    assert said(fact, ["red green blue"])  # 3 of 4 = 0.75
    assert not said(fact, ["red green"])  # 2 of 4


def test_words_that_many_facts_of_a_task_have_count_less() -> None:
    facts = (
        "The train to Leeds leaves in the morning.",
        "The train to Leeds is a sleeper.",
        "The train to Leeds has a dining car.",
    )
    # 2 of 3 words, but those of every fact; and 1 of 3, which no other has.
    assert said(facts[1], ["a train to leeds"])
    assert not said(facts[1], ["a train to leeds"], facts)
    assert said(facts[1], ["it must be a sleeper"], facts)


def load(path: Path) -> list[dict[str, object]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.slow
def test_all_shards_say_every_shard_and_the_first_one_few_others(data: Path) -> None:
    rows = load(data / "extrinsic" / "gsm8k_train_shards.jsonl.gz")
    others = told = 0
    for row in rows:
        shards = [str(shard["shard"]) for shard in row["shards"]]  # type: ignore[attr-defined]
        shards = list(filter(None, shards))
        assert all(said(shard, shards) for shard in shards), row["id"]
        others += len(shards) - 1
        told += sum(said(shard, shards[:1]) for shard in shards[1:])
    assert told / others < 0.2  # some first shards hold the whole question


# --- which turns ----------------------------------------------------------------------------------

CAKES = "She bakes 25 cakes"


@pytest.mark.parametrize(
    ("texts", "turns"),
    [
        (["she bakes 25 cakes"], [0]),
        (["hi", "25 cakes, she bakes them", "as i said: 25 cakes, baked"], [1, 2]),
        # in two parts, of which neither tells it; the second one completes it
        (["she bakes cakes", "how many?", "25 of them"], [2]),
        (["she bakes cakes", "25 of them", "so she bakes"], [1]),
        # parts count only where no turn has it whole: other facts have parts of it, too
        (["she bakes cakes", "25 of them", "25 baked cakes"], [2]),
        # what completes a fact once does not tell it again
        (["she bakes 25 cakes", "25!", "cakes!"], [0]),
        (["she bakes cakes"], []),
        ([], []),
    ],
)
def test_turns_tell_a_fact_alone_or_complete_it_once(
    texts: list[str], turns: list[int]
) -> None:
    assert told_in([CAKES], texts) == [turns]


def test_a_turn_that_tells_another_fact_with_the_same_words_is_no_repeat() -> None:
    facts = [
        "Olaf's dad gave Olaf 10 red toy cars.",
        "Olaf's dad gave Olaf red toy buses.",
    ]
    first, second = (
        "my dad gave olaf 10 red toy cars",
        "olaf's dad gave olaf red toy buses",
    )
    assert told_in(facts, [first, second]) == [[0], [1]]
    assert told_in(facts, [second, first]) == [[1], [0]]
    assert told_in(facts, [f"{first}; {second}"]) == [[0], [0]]
    assert told_in(facts, [first, second, first]) == [[0, 2], [1]]


def test_stems_keep_stop_words_and_numbers() -> None:
    assert stems(["The baked cakes!", "baking 25 of the cakes"]) == {
        "the",
        "bak",
        "cak",
        "25",
        "of",
    }

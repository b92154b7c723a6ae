"""What counts as said before, and which of several stays."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from userlm.data import duplicates
from userlm.data.duplicates import Said, Signatures, bands, exact, exact_key, near
from userlm.types import Conversation, InputError, Origin, Turn


def log(*said: str) -> Conversation:
    """A conversation in which the user says this and the assistant nothing of note."""
    turns = [
        Turn(role, text)
        for text in said
        for role, text in (("user", text), ("assistant", "I see."))
    ]
    return Conversation("c", tuple(turns))


def matrix(*texts: str, permutations: int = 128) -> np.ndarray:
    signatures = Signatures(permutations)
    for text in texts:
        signatures.add(log(text))
    return signatures.matrix()


def numbered(*places: int, words: int = 29) -> str:
    """29 different words, so 25 shingles of five; those at `places` are others."""
    return " ".join(f"other{i}" if i in places else f"word{i}" for i in range(words))


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


# --- exactly the same -----------------------------------------------------------------------------


def test_width_case_and_white_space_make_no_difference():
    assert exact_key(log("Ｈello  World", "ﬁne")) == exact_key(log("hello world\tfine"))
    assert exact_key(log("hello world")) != exact_key(log("hello, world"))
    assert exact_key(log("hello world")) != exact_key(log("helloworld"))


def test_what_the_assistant_says_makes_no_difference():
    other = Conversation(
        "d",
        (Turn("assistant", "Welcome!"), Turn("user", "hello"), Turn("assistant", "Hi")),
    )
    assert exact_key(other) == exact_key(log("hello"))


def test_of_equal_ones_the_first_in_order_stays():
    keys = np.array([7, 8, 7, 9, 7], dtype=np.uint64)
    assert exact(keys, np.arange(5)).tolist() == [-1, -1, 0, -1, 0]
    assert exact(keys, np.array([4, 3, 2, 1, 0])).tolist() == [4, -1, 4, -1, -1]


def test_what_is_not_in_order_takes_no_part():
    keys = np.array([7, 8, 7, 7], dtype=np.uint64)
    assert exact(keys, np.array([3, 2, 1])).tolist() == [-1, -1, 3, -1]
    same = matrix("hello", "bye", "hello", "hello")
    assert near(same, np.array([3, 2, 1])).tolist() == [-1, -1, 3, -1]


# --- the beginning of another ---------------------------------------------------------------------

CALLS = [log(*("why", "and then", "how long", "thanks")[:n]) for n in (1, 2, 3, 4)]
TRAIN, VALID, TEST = 0, 1, 2


def duplicates_of(
    *logs: Conversation, splits: Sequence[int] = (), how: str = "near"
) -> list[int]:
    said = Said(how, 0.7)
    for conversation in logs:
        said.add(conversation)
    in_splits = np.array(splits or [TRAIN] * len(logs), dtype=np.uint8)
    return said.copies(np.arange(len(logs)), in_splits).tolist()


def test_of_histories_that_grow_the_longest_stays():
    assert duplicates_of(*CALLS) == [3, 3, 3, -1]
    assert duplicates_of(*CALLS[::-1]) == [-1, 0, 0, 0]
    # They are nearly the same, not the same.
    assert duplicates_of(*CALLS, how="exact") == [-1, -1, -1, -1]


def test_two_that_begin_alike_and_go_on_differently_both_stay():
    fork = log("why", "and then", "no, stop")
    assert duplicates_of(*CALLS[1:3], fork) == [1, -1, -1]


def test_the_words_of_another_turn_are_no_beginning():
    assert duplicates_of(log("why and"), log("why", "and then")) == [-1, -1]
    assert duplicates_of(log("and then"), log("why", "and then")) == [-1, -1]


def test_of_a_history_that_grows_over_splits_what_is_in_train_stays():
    assert duplicates_of(*CALLS[:3], splits=(TEST, TRAIN, VALID)) == [1, -1, 1]
    # The longest of train: the one of test begins it, the one of valid goes on.
    splits = (TEST, TRAIN, TRAIN, VALID)
    assert duplicates_of(*CALLS, splits=splits) == [2, 2, -1, 2]


def test_the_beginning_of_a_near_duplicate_goes_for_what_stays():
    long = log(numbered(), numbered(words=40))
    other = log(numbered(28), numbered(words=40))
    assert duplicates_of(long, log(numbered(28)), other) == [-1, 0, 0]


def test_the_turns_that_a_path_shares_with_its_tree_are_not_its_own_beginning():
    path = replace(log("why", "and then"), origin=Origin("a", first_own_turn=1))
    assert duplicates_of(log("why"), path) == [-1, -1]


# --- nearly the same ------------------------------------------------------------------------------


def test_the_share_of_equal_places_estimates_the_jaccard_similarity():
    # One other word at the end is in 1 of 25 shingles: 24 shared of 26. In the middle it is in 5:
    # 20 of 30. Two such are in 10: 15 of 35. With 1024 places the standard error is at most
    # sqrt(1/4 / 1024) = 0.016.
    first, *others = matrix(
        numbered(), numbered(28), numbered(14), numbered(7, 21), permutations=1024
    )
    estimates = [(first == other).mean() for other in others]
    assert estimates == pytest.approx([24 / 26, 20 / 30, 15 / 35], abs=0.05)


def test_what_is_similar_enough_is_dropped():
    signatures = matrix(
        numbered(),
        numbered(28),
        numbered(14),
        "nothing of the sort was ever said before",
    )
    order = np.arange(4)
    assert near(signatures, order, 0.99).tolist() == [-1, -1, -1, -1]
    assert near(signatures, order, 0.8).tolist() == [-1, 0, -1, -1]
    assert near(signatures, order, 0.5).tolist() == [-1, 0, 0, -1]


def test_of_similar_ones_the_first_in_order_stays():
    signatures = matrix(numbered(), numbered(28), numbered(28))
    assert near(signatures, np.array([2, 0, 1])).tolist() == [2, 2, -1]
    assert near(signatures, np.array([0, 2, 1])).tolist() == [-1, 0, 0]


def test_the_most_similar_of_those_that_stay_is_named():
    # The third has 24 of 26 shingles in common with the second, and 19 of 31 with the first.
    signatures = matrix(numbered(14), numbered(), numbered(28), permutations=512)
    assert near(signatures, np.arange(3), 0.8).tolist() == [-1, -1, 1]
    assert near(signatures, np.arange(3), 0.5).tolist() == [-1, 0, 0]


def test_nothing_is_dropped_for_one_that_was_dropped():
    # 60 words, 56 shingles. Six other words at an end are in 6 of them: 50 shared of 62, or 0.81.
    # At both ends they are in 12: 44 of 68, or 0.65. So the second goes for the first, and the
    # third, which is like the second alone, stays. Its own copy goes for it.
    start, end = range(6), range(54, 60)
    texts = [
        numbered(words=60),
        numbered(*end, words=60),
        numbered(*start, *end, words=60),
    ]
    signatures = matrix(*texts, texts[2], permutations=1024)
    assert near(signatures, np.arange(4), 0.73).tolist() == [-1, 0, -1, 2]
    assert near(signatures, np.array([1, 0, 2, 3]), 0.73).tolist() == [1, -1, 1, 1]


def test_a_copy_of_what_was_dropped_goes_for_what_stays():
    signatures = matrix(numbered(), numbered(28), numbered(28), numbered())
    assert near(signatures, np.arange(4), 0.8).tolist() == [-1, 0, 0, 0]


def test_few_words_are_compared_as_a_whole():
    signatures = matrix("hi there", "hi", "Hi  there", "there hi", "")
    assert near(signatures, np.arange(5), 0.3).tolist() == [-1, -1, 0, -1, -1]


def test_a_signature_does_not_depend_on_what_is_added_before_and_after():
    # More than are worked on at once.
    texts = [numbered(i % 29, words=1 + i % 40) for i in range(5000)]
    together = matrix(*texts)
    for i in (0, 3, 4, 5, 4095, 4096, 4999):
        assert np.array_equal(together[i], matrix(texts[i])[0])


def test_signatures_and_keys_are_the_same_in_every_process():
    code = """
from userlm.data.duplicates import Signatures, exact_key
from userlm.types import Conversation, Turn
c = Conversation("c", (Turn("user", "tell me once more how tea came to Europe, please"),))
s = Signatures()
s.add(c)
print(exact_key(c), s.matrix().tolist())
"""
    seen = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert run.returncode == 0, run.stderr
        seen.add(run.stdout)
    assert len(seen) == 1


def test_nothing_gives_nothing():
    signatures = Signatures().matrix()
    assert signatures.shape == (0, 128)
    assert near(signatures, np.arange(0)).tolist() == []
    assert exact(np.zeros(0, dtype=np.uint64), np.arange(0)).tolist() == []


def test_bands_are_as_long_as_finds_almost_all():
    # 0.7^5 = 0.16807 and 1 - (1 - 0.16807)^25 = 0.990; 0.7^6 = 0.11765 and 1 - (1 - 0.11765)^21 =
    # 0.928.
    assert bands(128, 0.7) == (25, 5)
    # 0.5^3 = 0.125 and 1 - 0.875^42 = 0.996; 0.5^4 = 0.0625 and 1 - 0.9375^32 = 0.873.
    assert bands(128, 0.5) == (42, 3)
    assert bands(128, 1.0) == (1, 128)
    assert bands(128, 0.001) == (128, 1)


@pytest.mark.parametrize("similarity", [0, -0.5, 1.01, float("nan")])
def test_a_similarity_that_is_none_is_refused(similarity):
    with pytest.raises(InputError, match="similarity"):
        near(matrix("a", "b"), np.arange(2), similarity)


def zipf(rng: np.random.Generator, texts: int) -> list[str]:
    """Texts of 75 words on average, from 20,000 of which the k-th is 1/k times as frequent as the
    first."""
    shares = 1 / np.arange(1, 20_001)
    drawn = rng.choice(20_000, size=(texts, 150), p=shares / shares.sum())
    return [" ".join(map(str, row[: rng.integers(10, 141)])) for row in drawn.tolist()]


def test_planted_near_duplicates_are_found_and_nothing_else():
    rng = np.random.default_rng(0)
    texts = zipf(rng, 5000)
    similarities = {}
    for _ in range(600):
        at = int(rng.integers(5000))
        words = texts[at].split()
        for place in rng.integers(len(words), size=rng.integers(1, 6)):
            words[place] = f"new{place}"
        similarities[len(texts)] = jaccard(texts[at], " ".join(words))
        texts.append(" ".join(words))
    dropped = near(matrix(*texts), np.arange(len(texts)), 0.7)
    assert (dropped[:5000] == -1).all()
    # 0.1 is about three standard errors of an estimate around 0.7.
    assert sum(s > 0.8 for s in similarities.values()) > 100
    assert sum(s < 0.6 for s in similarities.values()) > 150
    assert all(dropped[i] >= 0 for i, s in similarities.items() if s > 0.8)
    assert all(dropped[i] == -1 for i, s in similarities.items() if s < 0.6)
    right = [s >= 0.7 for i, s in similarities.items() if dropped[i] >= 0]
    found = [dropped[i] >= 0 for i, s in similarities.items() if s >= 0.7]
    # Where they lie close to 0.7, the estimate decides.
    assert sum(right) / len(right) > 0.9
    assert sum(found) / len(found) > 0.9


@pytest.mark.parametrize("share", [0.4, 0.65, 0.8])
def test_a_template_with_many_copies_takes_no_quadratic_time(share):
    # Each of 20,000 signatures has this share of its places from one template: two of them are
    # alike in the square of it. All pairs would be 200 million; the buckets of the template are
    # full of all of them.
    rng = np.random.default_rng(0)
    template = rng.integers(0, 2**32, size=128, dtype=np.uint32)
    own = rng.integers(0, 2**32, size=(20_000, 128), dtype=np.uint32)
    signatures = np.where(rng.random((20_000, 128)) < share, template, own)
    start = time.process_time()
    result = near(signatures, np.arange(20_000), 0.7)
    assert time.process_time() - start < 20  # about 1
    kept = np.flatnonzero(result < 0)
    if share**2 < 0.6:
        assert len(kept) > 19_900
    assert np.isin(result[result >= 0], kept).all()


def test_exact_copies_by_the_thousand_are_one_look():
    signatures = np.repeat(matrix(numbered(), numbered(14)), 50_000, axis=0)
    start = time.process_time()
    result = near(signatures, np.arange(100_000)[::-1], 0.9)
    assert time.process_time() - start < 10  # about 0.1
    assert np.flatnonzero(result < 0).tolist() == [49_999, 99_999]


def test_real_repeats_are_like_what_stays(data):
    import gzip
    import json

    with gzip.open(data / "chatbot_arena.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    said = [
        [m["content"] for m in row["messages"] if m["role"] == "user"] for row in rows
    ]
    logs = [log(*texts) for texts in said if texts]
    signatures = Signatures()
    for conversation in logs:
        signatures.add(conversation)
    keys = np.array([exact_key(conversation) for conversation in logs], dtype=np.uint64)
    nearly = near(signatures.matrix(), np.arange(len(logs)))
    assert (
        0
        < (exact(keys, np.arange(len(logs))) >= 0).sum()
        < (nearly >= 0).sum()
        < len(logs) / 10
    )
    for i in np.flatnonzero(nearly >= 0):
        a, b = (duplicates.user_text(logs[j]) for j in (i, nearly[i]))
        assert a == b or jaccard(a, b) > 0.55

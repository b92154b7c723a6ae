"""Diversity, decomposition, termination and plain counts, each worked out by hand."""

import gzip
import json
import time
import tracemalloc
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userlm.flip import samples
from userlm.metrics.intrinsic import (
    end_rate,
    first_turn_diversity,
    goal_consistency,
    intent_decomposition,
    termination,
    termination_auroc,
    turns_per_conversation,
    words_per_turn,
)
from userlm.runs import measure_record
from userlm.simulate import respond
from userlm.stats import F1, MEAN, PERCENT, auroc, interval
from userlm.text import INTENT_PREFIX, words
from userlm.types import Conversation, Origin, Reply, Turn


def talk(
    id: str, *texts: str, user: str | None = None, intent: str | None = None
) -> Conversation:
    conversation = Conversation(id, user=user, intent=intent)
    for text in texts:
        conversation = conversation.say(text)
    return conversation


class Says:
    """A user whose every reply is the same."""

    def __init__(self, reply: Reply) -> None:
        self.given = reply

    def reply(self, conversation: Conversation, /) -> Reply:
        return self.given


# --- first turns ---------------------------------------------------------------------------------


def test_diversity_by_hand() -> None:
    # {bake, a, cake}, {bake, a, pie}, {hello}
    # 1-2: 2 common of 4 -> 1/2; 1-3 and 2-3: nothing common -> 1. Mean 2.5 / 3 = 83.33 %
    found = first_turn_diversity(
        [talk("1", "Bake a cake!"), talk("2", "bake a a PIE"), talk("3", "hello")]
    )
    assert found.value == pytest.approx(250 / 3)
    assert (found.n, found.missing) == (3, 0)
    # its own mean distance for each: (1/2 + 1)/2, the same, (1 + 1)/2
    assert [row.stats for row in found.rows] == [(0.75, 1), (0.75, 1), (1, 1)]
    assert (found.low, found.high, found.clusters) == (None, None, 3)


def test_a_conversation_without_a_first_turn_is_missing_with_the_reason() -> None:
    gone = Conversation("gone").close("error", error="timed out")
    found = first_turn_diversity(
        [talk("1", "a b"), talk("2", "a"), gone, talk("3", "?!"), Conversation("4")]
    )
    assert found.value == 50  # {a, b} and {a}: 1 of 2
    assert (found.n, found.missing) == (2, 3)
    whys = {row.key: row.why for row in found.rows if row.why}
    assert whys == {
        "gone": "no user turn (error: timed out)",
        "3": "no words in the first turn",
        "4": "no user turn",
    }


def test_one_first_turn_has_no_diversity() -> None:
    found = first_turn_diversity([talk("1", "a b")])
    assert (found.value, found.n, found.missing) == (None, 0, 1)
    assert first_turn_diversity([]).value is None


def test_answers_on_later_prefixes_are_no_first_turns() -> None:
    log = talk("c", "same words", "a", "other words", "b")
    responses = [
        respond(Says(Reply(f"reply{i}")), s.prefix) for i, s in enumerate(samples(log))
    ]
    assert [row.key for row in first_turn_diversity(responses).rows] == ["c/0"]


TEXTS = st.lists(
    st.tuples(
        st.text("abcd ", min_size=1, max_size=8).filter(lambda t: t.strip()),
        st.sampled_from("pqrstu"),
    ),
    min_size=3,
    max_size=16,
)


@given(TEXTS)
@settings(max_examples=100)
def test_diversity_and_its_interval_are_those_of_all_pairs_one_by_one(
    items: list[tuple[str, str]],
) -> None:
    def brute(kept: list[tuple[str, str]]) -> float:
        sets = [set(words(text)) for text, _ in kept]
        return 100 * float(
            np.mean([1 - len(a & b) / len(a | b) for a, b in combinations(sets, 2)])
        )

    found = first_turn_diversity(
        [talk(str(i), text, user=user) for i, (text, user) in enumerate(items)]
    )
    assert found.value == pytest.approx(brute(items))
    kept = [
        [item for item in items if item[1] != user]
        for user in sorted({user for _, user in items})
    ]
    assert found.clusters == len(kept)
    if len(kept) < 5:
        assert found.low is None and found.high is None
    else:
        left_out = [brute(rest) for rest in kept]
        low, high = interval(brute(items), left_out, 0, 100)
        assert (found.low, found.high) == (
            pytest.approx(low, abs=1e-6),
            pytest.approx(high, abs=1e-6),
        )


def test_two_thousand_first_turns_take_seconds_and_little_memory() -> None:
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{i}" for i in range(5000)])
    share = 1 / np.arange(1, 5001)
    texts = [
        " ".join(rng.choice(vocabulary, 40, p=share / share.sum())) for _ in range(2000)
    ]
    conversations = [talk(str(i), text) for i, text in enumerate(texts)]
    tracemalloc.start()
    start = time.process_time()
    found = first_turn_diversity(conversations)
    took, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.n == 2000
    assert took < 10
    assert peak < 25e6  # a matrix of all pairs would take 32 MB


# --- the intent in the turns ---------------------------------------------------------------------

INTENT = INTENT_PREFIX + "find recipes for chocolate cake."  # 4 content words


def test_decomposition_by_hand() -> None:
    # I = {find, recipes, chocolate, cake}; the fixed opening ("user", "assistant", "language") does
    # not count turn 1: {chocolate, cake, user, assistant}: 2 of 4 = 50 %; turn 2: {thanks}: 0 of 1
    # = 0 %; mean 25 %
    found = intent_decomposition(
        [
            talk(
                "c",
                "chocolate cake, cake for a user assistant",
                "x",
                "thanks",
                intent=INTENT,
            )
        ]
    )
    assert found.value == 25
    assert [(row.key, row.cluster, row.stats) for row in found.rows] == [
        ("c/0", INTENT, (0.5, 1)),
        ("c/1", INTENT, (0, 1)),
    ]


def test_an_intent_said_word_by_word_with_its_opening_overlaps_whole() -> None:
    # Without its opening a turn has the same four words as the intent.
    loud = "  you are a user\nchatting with an Assistant language model to FIND recipes for cake"
    found = intent_decomposition(
        [talk("c", INTENT, "x", loud, "y", INTENT_PREFIX, intent=INTENT)]
    )
    assert [row.stats for row in found.rows] == [(1, 1), (1, 1), None]
    assert (found.value, found.rows[2].why) == (100, "no content words in the turn")


def asked(user: str, goal: str, *texts: str) -> Conversation:
    return talk(goal, *texts, user=user, intent=INTENT_PREFIX + goal)


def test_goal_consistency_by_hand() -> None:
    # Content words of the four intents: {plan, trip, rome}, {visit, paris}, {fix, python, bug},
    # {cook, pasta, dinner}.
    found = goal_consistency(
        [
            # {rome, trip, ideas, pasta}: 2/4 less the mean of 0 (bob) and 1/4 (cy), not of Paris
            asked("ann", "plan a trip to Rome", "Rome trip: ideas? Pasta"),
            asked("ann", "visit Paris"),
            # {python, bug}: 2/2 less 0; {pasta, bug}: 1/2 less the mean of 0, 0 and 1/2
            asked("bob", "fix a Python bug", "a python bug", "x", "pasta bug"),
            # another has the same intent; it is her own: {cook, rome}: 1/2 less (1/2 + 0 + 0) / 3
            asked("cy", "cook a pasta dinner", "cook Rome", "x", "do it"),
            asked("dan", "cook a pasta dinner"),
        ]
    )
    assert [row.stats and row.stats[0] for row in found.rows] == [
        pytest.approx(2 / 4 - 1 / 8),
        pytest.approx(1),
        pytest.approx(1 / 2 - 1 / 6),
        pytest.approx(1 / 2 - 1 / 6),
        None,
    ]
    assert found.value == pytest.approx(100 * (3 / 8 + 1 + 1 / 3 + 1 / 3) / 4)
    assert found.rows[-1].why == "no content words in the turn"
    alone = goal_consistency([asked("ann", "visit Paris", "Paris")])
    assert alone.value is None
    assert alone.rows[0].why == "no other person's intent to compare with"


def test_nonsense_a_constant_and_turns_of_others_rank_below_people() -> None:
    people = {
        "plan a trip to Rome": "where should I stay in Rome for a week",
        "fix a Python bug": "my python loop never stops, what is the bug",
        "cook a pasta dinner": "easy pasta for dinner tonight?",
    }
    turns = list(people.values())

    def measured(said: list[str]) -> float:
        goals = zip(people, said, strict=True)
        talks = [asked(goal, goal, text) for goal, text in goals]
        value = goal_consistency(talks).value
        assert value is not None
        return value

    human = measured(turns)
    assert measured(["qwx zzk"] * 3) == measured(["ok thanks"] * 3) == 0 < human
    # A constant turn about Rome is about one's own goal once, and twice about another's.
    assert measured([turns[0]] * 3) == pytest.approx(0, abs=1e-9)
    assert measured([*turns[1:], turns[0]]) < 0
    assert measured(list(people)) == 100 > human


def test_goal_consistency_of_two_thousand_conversations_takes_seconds() -> None:
    rng = np.random.default_rng(0)

    def draw(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, 3000, count))

    talks = [asked(f"p{i}", draw(20), draw(30), "x", draw(30)) for i in range(2000)]
    start = time.process_time()
    assert goal_consistency(talks).n == 4000
    assert time.process_time() - start < 10


def test_what_has_no_words_to_compare_is_missing_with_the_reason() -> None:
    failed = Conversation("f", intent=INTENT).close("guard")
    left = Conversation("l", intent=INTENT).close("end")
    found = intent_decomposition(
        [
            talk("a", "chocolate cake"),
            talk("b", "do it", "x", "cake", intent=INTENT),
            talk("c", "cake", intent=INTENT_PREFIX + "do this."),
            failed,
            left,  # left at once: no turn, nothing to measure and nothing missing
        ]
    )
    assert (found.value, found.n, found.missing) == (100, 1, 4)
    assert {row.key: row.why for row in found.rows if row.why} == {
        "a/0": "no intent",
        "b/0": "no content words in the turn",
        "c/0": "no content words in the intent",
        "f": "guard",
    }


def test_of_an_answer_on_a_real_prefix_only_the_answer_counts() -> None:
    log = talk("c", "chocolate cake", "x", "chocolate cake", "y", intent=INTENT)
    prefix = list(samples(log))[1].prefix
    found = intent_decomposition([respond(Says(Reply("cheese")), prefix)])
    assert [(row.key, row.stats) for row in found.rows] == [("c/1/1", (0, 1))]
    assert words_per_turn([respond(Says(Reply("one two three")), prefix)]).value == 3
    assert words_per_turn([respond(Says(Reply(stop="end")), prefix)]).rows == ()
    failed = words_per_turn([respond(Says(Reply(stop="guard")), prefix)])
    assert (failed.n, failed.missing, failed.rows[0].why) == (0, 1, "guard")


def test_an_answer_whose_prefix_was_taken_off_counts_just_the_same() -> None:
    log = talk("c", "chocolate cake", "x", "chocolate cake", "y", intent=INTENT)
    answer = respond(Says(Reply("one two three")), list(samples(log))[1].prefix)
    bare = Conversation(
        answer.id, answer.turns[-1:], intent=INTENT, origin=answer.origin
    )
    assert words_per_turn([bare]).rows == words_per_turn([answer]).rows


# --- the ending ----------------------------------------------------------------------------------


def response(
    k: int,
    target: str | None,
    reply: Reply,
    conversation: str = "c",
    user: str | None = None,
) -> Conversation:
    prefix = Conversation(
        f"{conversation}/{k}",
        tuple(
            Turn(role, "x", {"p_end": 0.123})
            for _ in range(k)
            for role in ("user", "assistant")
        ),
        user=user,
        origin=Origin(conversation, k, target, person_ended=target is None),
    )
    return respond(Says(reply), prefix)


END, GO = Reply(stop="end"), Reply("go on")


def test_termination_f1_by_hand() -> None:
    # TP: left, left. FN: the person left, the user did not. FP: the other way round. 2 TP, 1 FP, 1
    # FN: F1 = 2x2 / (2x2 + 1 + 1) = 2/3. The true negative does not count in it.
    found = termination(
        [
            response(0, "first", END),  # k = 0: no row
            response(1, None, END, "a"),
            # words before an end are an end too
            response(2, None, Reply("bye", stop="end"), "b"),
            response(1, None, GO, "d"),
            response(1, "more", END, "e"),
            response(2, "more", GO, "e"),
        ]
    )
    assert found.value == pytest.approx(200 / 3)
    assert [row.stats for row in found.rows] == [
        (1, 0, 0),
        (1, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 0, 0),
    ]
    assert (found.n, found.missing) == (5, 0)


@pytest.mark.parametrize("stop", ["error", "guard", "context"])
def test_no_answer_is_neither_leaving_nor_staying(stop: str) -> None:
    found = termination(
        [response(1, None, END, "a"), response(1, None, Reply(stop=stop), "b")]
    )
    assert (found.value, found.n, found.missing) == (100, 1, 1)
    assert found.rows[1].why == stop


def test_a_conversation_that_is_no_answer_on_a_prefix_is_missing() -> None:
    found = termination([talk("c", "hi")])
    assert (found.value, found.missing) == (None, 1)
    assert termination_auroc([talk("c", "hi")]).missing == 1


def test_where_nobody_ended_there_is_nothing_to_find_and_the_reason_is_said() -> None:
    def answered(person: str | None) -> list[Conversation]:
        said = Reply("x", meta={"p_end": 0.5})
        return [response(1, person, said, "a"), response(1, person, END, "b")]

    nobody = termination(answered("more"))
    assert (nobody.value, nobody.low, nobody.high, nobody.n) == (None, None, None, 2)
    assert (
        nobody.why == measure_record(nobody)["why"] == "the person ended at no answer"
    )
    assert (
        termination_auroc(answered("more")[:1]).why == "the person ended at no answer"
    )
    everybody = answered(None)  # found once of twice: F1 is 2 / (2 + 1)
    assert termination(everybody).value == pytest.approx(200 / 3)
    found = termination_auroc(everybody)
    assert (found.value, found.missing) == (None, 1)
    assert measure_record(found)["why"] == "the person ended at every answer"


def test_endings_are_resampled_by_person_else_by_conversation() -> None:
    found = termination(
        [response(1, None, END, "a"), response(1, None, END, "b", user="p")]
    )
    assert [row.cluster for row in found.rows] == ["a", "p"]


def test_samples_of_a_log_answered_by_the_person_give_100() -> None:
    log = talk("c", "q1", "a1", "q2", "a2").close("end")
    replies = [
        respond(Says(Reply(s.target) if s.target else Reply(stop="end")), s.prefix)
        for s in samples(log)
    ]
    found = termination(replies)
    assert (found.value, found.n) == (100, 2)  # q2 and the ending; q1 is no row


def test_termination_auroc_by_hand() -> None:
    # left: 0.9 and 0.4; stayed: 0.4 and 0.1. Pairs: won, won, tie, won = 3.5 of 4
    found = termination_auroc(
        [
            response(0, "first", Reply("x", meta={"p_end": 1.0})),  # no row
            response(1, None, Reply(stop="end", meta={"p_end": 0.9}), "a"),
            response(1, None, Reply("x", meta={"p_end": 0.4}), "b"),
            response(1, "more", Reply("x", meta={"p_end": 0.4}), "c"),
            response(2, "more", Reply("bye", stop="end", meta={"p_end": 0.1}), "d"),
        ]
    )
    assert found.value == 3.5 / 4
    assert [row.stats for row in found.rows] == [(0.9, 1), (0.4, 1), (0.4, 0), (0.1, 0)]
    assert (found.low, found.high, found.clusters) == (None, None, 4)


def test_a_p_end_of_the_prefix_is_not_taken_for_the_answers_own() -> None:
    found = termination_auroc(
        [
            response(1, None, END),
            response(1, "more", GO),
            response(1, "x", Reply(stop="error")),
        ]
    )
    assert (found.value, found.missing) == (None, 3)
    assert [row.why for row in found.rows] == ["no P(end)", "no P(end)", "error"]


PREDICTIONS = st.lists(
    st.tuples(st.integers(0, 4), st.booleans(), st.sampled_from("pqrstu")),
    min_size=2,
    max_size=20,
)


@given(PREDICTIONS)
@settings(max_examples=100)
def test_the_interval_of_the_auroc_comes_from_leaving_each_person_out(
    items: list[tuple[int, bool, str]],
) -> None:
    def brute(kept: list[tuple[int, bool, str]]) -> float | None:
        return auroc(
            [p for p, left, _ in kept if left], [p for p, left, _ in kept if not left]
        )

    found = termination_auroc(
        response(
            1, None if left else "more", Reply("x", meta={"p_end": p}), str(i), user
        )
        for i, (p, left, user) in enumerate(items)
    )
    assert found.value == brute(items)
    without = [
        brute([item for item in items if item[2] != user])
        for user in {user for *_, user in items}
    ]
    values = [value for value in without if value is not None]
    if found.value is None or len(without) < 5 or len(values) < len(without):
        assert found.low is None
    else:
        low, high = interval(found.value, values, 0, 1)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_end_rate_is_the_same_of_logs_of_simulations_and_of_responses() -> None:
    # Three turns and an end: 1 of 3 turns after the first. Two turns of a log that was cut: 0 of 1.
    log = replace(talk("a", "a", "b", "c", "d", "e", "f"), ended=True)
    cut = talk("b", "a", "b", "c", "d")
    assert end_rate([log, cut]).value == 25
    # A simulation that ended after its first turn, one at the limit, and one that failed.
    ended = talk("c", "a", "b").close("end")
    limited = talk("d", "a", "b", "c", "d").close("max_turns")
    failed = talk("e", "a", "b", "c").close("error")
    found = end_rate([ended, limited, failed, talk("f", "a")])
    assert (found.value, found.n, found.missing) == (50, 2, 2)
    # Responses: to a first turn, which is none, and two after it; the person's own end is no end.
    prefix = talk("g", "a", "b")
    responses = [
        replace(prefix, origin=Origin("g", 0, person_ended=False)).close("end"),
        replace(prefix, origin=Origin("g", 1, person_ended=False)).close("end"),
        replace(prefix.say("c"), origin=Origin("g", 1, person_ended=True)),
    ]
    found = end_rate(responses)
    assert (found.value, found.n, found.missing) == (50, 2, 0)


# --- plain counts --------------------------------------------------------------------------------


def test_plain_counts_by_hand() -> None:
    two, one = talk("a", "one two", "x", "three"), talk("b", "four five six")
    assert words_per_turn([two, one]).value == 2  # (2 + 1 + 3) / 3 turns
    assert turns_per_conversation([two, one]).value == 1.5


def test_a_conversation_that_failed_has_no_known_length() -> None:
    found = turns_per_conversation(
        [talk("a", "x"), talk("b", "x", "y").close("error", error="gone")]
    )
    assert (found.value, found.n, found.missing) == (1, 1, 1)
    assert found.rows[1].why == "error: gone"
    assert turns_per_conversation([response(1, None, GO)]).missing == 1


def test_every_value_is_the_statistic_of_its_rows_and_people_are_the_clusters(
    data: Path,
) -> None:
    with gzip.open(data / "realhumaneval.jsonl.gz", "rt", encoding="utf-8") as file:
        logs = [json.loads(line) for line in file]
    conversations = []
    for log in logs:
        turns = [Turn(m["role"], m["content"]) for m in log["messages"]]
        try:
            conversations.append(
                Conversation(
                    log["id"],
                    tuple(turns),
                    user=log["user_id"],
                    intent="write python code",
                )
            )
        except ValueError:  # two turns of one side in a row: `import` joins them, here they are left out
            continue
    assert len(conversations) > 100
    for found, statistic in [
        (first_turn_diversity(conversations), PERCENT),
        (intent_decomposition(conversations), PERCENT),
        (words_per_turn(conversations), MEAN),
        (turns_per_conversation(conversations), MEAN),
        (
            termination(
                respond(Says(END), s.prefix)
                for c in conversations
                for s in samples(c.close("end"))
            ),
            F1,
        ),
    ]:
        sums = np.sum([row.stats for row in found.rows if row.stats], axis=0)
        assert found.value == pytest.approx(float(statistic.of(sums)))
        assert (
            found.low is not None
            and found.high is not None
            and found.low <= found.value <= found.high
        )
        assert {row.cluster for row in found.rows} <= {c.user for c in conversations}

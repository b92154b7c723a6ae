"""Properties of turns, each worked out by hand, and their distance from people."""

from itertools import combinations

import pytest
from test_intrinsic import Says, talk

from userlm import commands
from userlm.metrics import catalog, crowds
from userlm.metrics.crowds import (
    all_lower_case,
    corrections,
    end_punctuation,
    halves,
    hd_d,
    lower_case_start,
    mattr,
    out_of_vocabulary,
    questions,
    reaction,
    requests,
    self_repetition,
    thanks,
    verbatim_intent,
)
from userlm.rows import write_conversations
from userlm.simulate import respond
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, Measure, Reply, Sample


def says(*turns: str, id: str = "c", user: str | None = None) -> Conversation:
    """A conversation in which each turn of the user gets the answer "Well."."""
    texts = [text for turn in turns for text in (turn, "Well.")]
    return talk(id, *texts, user=user)


def stats(measure: Measure) -> list[float | None]:
    """The first number of each row."""
    return [row.stats[0] if row.stats else None for row in measure.rows]


# --- shares of turns ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "has", "has_not"),
    [
        (
            questions,
            ["Is it far?", "(really?)", "what’s that", "Hi! how? I see."],
            ["see a.com/x?y=1", "I know what", "whatever"],
        ),
        (
            requests,
            ["Write a poem", "ok, now translate it", "a poem please", "Could you wait"],
            ["writer's block", "a recipe to make", "I listed them"],
        ),
        (thanks, ["Thanks!", "ok thank you"], ["thankful"]),
        (
            end_punctuation,
            ["Yes.", "Why?", 'He said "go!"', "(done.) "],
            ["yes", "a, b,", "1.5 cm", ""],
        ),
        (lower_case_start, ["yes", "1. ok", "«été"], ["Yes", "1. Ok", "I am"]),
        (all_lower_case, ["yes", "a 1"], ["Yes", "no I"]),
    ],
)
def test_what_counts_as_a_turn_of_each_kind(measure, has, has_not) -> None:
    for turn in has:
        assert stats(measure([says(turn)])) == [1], turn
    for turn in has_not:
        assert stats(measure([says(turn)])) == [0], turn


def test_a_share_is_of_all_turns_of_which_it_is_known() -> None:
    # lower-case: yes, no, unknown (no letters): 1 of 2
    found = lower_case_start([says("yes", "No", "42")])
    assert (found.value, found.n, found.missing) == (50, 2, 1)
    assert found.rows[2].why == "no letters that have a case"
    assert all_lower_case([says("42", "日本")]).value is None


def test_the_first_turn_cannot_correct() -> None:
    # "No" opens the conversation, and corrects an answer later; "I meant" does too; "ok" does not.
    found = corrections([says("No cake today", "no, pie", "I meant pie", "ok")])
    assert stats(found) == [None, 1, 1, 0]
    assert found.value == pytest.approx(200 / 3)


def test_only_the_own_turn_of_a_response_counts() -> None:
    log = says("Is it far?", "Why?", user="p")
    response = respond(Says(Reply("ok")), Sample(log, 1).prefix)
    assert stats(questions([response])) == [0]


# --- what a turn takes up -------------------------------------------------------------------------


def test_reaction_by_hand() -> None:
    # a: {red, apples} after "red apples rock": 2 of 2, and after b's "blue sky": 0 of 2. Excess 1.
    # b: {blue, apples} after "blue sky": 1 of 2, and after a's answer 1 of 2 (apples). Excess 0.
    a = talk("a", "hi", "Red apples rock.", "red apples")
    b = talk("b", "hi", "Blue sky.", "blue apples")
    found = reaction([a, b])
    assert stats(found) == [None, 1, None, 0]
    assert found.value == 50
    assert found.rows[0].why == "no answer before the first turn"


def test_reaction_compares_with_others_at_the_same_place_only() -> None:
    # The second answer of a is at a place of its own; c is by the same person as a.
    a = talk("a", "hi", "Red.", "red", "Green.", "green", user="p")
    c = talk("c", "hi", "Red.", "red", user="p")
    b = talk("b", "hi", "Blue.", "red", user="q")
    found = reaction([a, c, b])
    # a, c: 1 less 0 (b's). b: 0 less (1 + 1) / 2.
    assert stats(found) == [None, 1, None, None, 1, None, -1]
    assert found.rows[2].why == "no other person's answer at this place to compare with"


def test_reaction_is_that_of_a_response_to_the_answer_before_it() -> None:
    logs = [
        talk("a", "hi", "Red.", "what", "Ok.", user="p"),
        talk("b", "hi", "Blue.", "what", "Ok.", user="q"),
    ]
    user = Says(Reply("red"))
    found = reaction([respond(user, Sample(log, 1).prefix) for log in logs])
    assert stats(found) == [1, -1]


def test_verbatim_intent_by_hand() -> None:
    # Runs of the intent, with its ends: |bake a, bake a cake, a cake|.
    # "bake a pie": |bake a, bake a pie, a pie|: 1 of 3. The intent itself: 3 of 3. "cake": 0 of 1.
    intent = INTENT_PREFIX + "bake a cake."
    turns = ("Bake a pie", "x", intent, "x", "cake", "x", "?!")
    found = verbatim_intent([talk("c", *turns, intent=intent)])
    assert stats(found) == [pytest.approx(1 / 3), 1, 0, None]
    assert verbatim_intent([says("hi")]).rows[0].why == "no intent"


def test_self_repetition_by_hand() -> None:
    # "ok" was not said before; then it was, as a whole; "ok then" begins and ends otherwise:
    # runs "|ok then" and "ok then|", none known.
    found = self_repetition([says("hello there", "ok", "OK!", "ok then")])
    assert stats(found) == [None, 0, 1, 0]
    assert found.value == pytest.approx(100 / 3)


def test_a_response_repeats_what_its_person_said_before() -> None:
    log = says("ok", "sure")
    [row] = self_repetition([respond(Says(Reply("ok")), Sample(log, 1).prefix)]).rows
    assert row.stats == (1, 1)


# --- the vocabulary -------------------------------------------------------------------------------


def test_a_person_is_measured_with_the_words_of_the_other_half() -> None:
    people = [says("red apple", user="p"), says("red pear", user="q")]
    assert sorted(halves(["p", "q", "q"]).values()) == [0, 1]
    # Each half knows "red", but not the other's fruit. p's user says one word of q's two.
    assert out_of_vocabulary(people, people).value == 50
    user = says("pear pear plum 3rd", user="p")  # plum; 3rd does not count
    assert out_of_vocabulary([user], people).value == pytest.approx(100 / 3)
    [row] = out_of_vocabulary([says("red", user="p")], people[:1]).rows
    assert row.why == "no other person in the human reference"


def test_mattr_by_hand(monkeypatch) -> None:
    # a b a c, windows of 3: {a, b} 2/3 and {a, b, c} 3/3, both begin in the first conversation
    # (the second is "c"). Mean 5/6.
    monkeypatch.setattr(crowds, "WINDOW", 3)
    found = mattr([says("c", id="2"), says("a b", "a", id="1")])
    assert found.value == pytest.approx(500 / 6)
    assert [row.stats for row in found.rows] == [(pytest.approx(5 / 3), 2), None]
    assert found.rows[1].why == "no window of 3 words starts here"
    assert mattr([says("a b")]).value is None


def test_hd_d_is_the_mean_over_all_samples_of_words(monkeypatch) -> None:
    # Pairs of a a b: one of one word, two of two. Mean 5/3 of 2 words.
    monkeypatch.setattr(crowds, "DRAWS", 2)
    assert hd_d([says("a a", "b")]).value == pytest.approx(500 / 6)
    said = "a b a c d a b e f g".split()
    monkeypatch.setattr(crowds, "DRAWS", 4)
    samples = list(combinations(said, 4))
    mean = sum(len(set(sample)) for sample in samples) / len(samples)
    assert hd_d([says(" ".join(said))]).value == pytest.approx(100 * mean / 4)


def test_hd_d_leaves_each_person_out_by_their_words(monkeypatch) -> None:
    monkeypatch.setattr(crowds, "DRAWS", 2)
    crowd = [says(f"a {word}", id=word, user=word) for word in "bbcdef"]
    found = hd_d(crowd)
    seen = []
    monkeypatch.setattr(crowds, "interval", lambda *given: seen.append(given) or (0, 1))
    hd_d(crowd)
    [(value, left_out, least, most)] = seen
    assert (value, least, most) == (found.value, 0, 100)
    for word, without in zip("bcdef", left_out, strict=True):
        rest = [one for one in crowd if one.user != word]
        assert without == pytest.approx(hd_d(rest).value)


def test_too_few_words_have_no_vocabulary_and_say_so() -> None:
    found = hd_d([says("a few words")])
    assert (found.value, found.why) == (None, "fewer than 42 words in all turns")
    [row] = mattr([says("a few words")]).rows
    assert row.why == "no window of 50 words starts here"


@pytest.mark.parametrize(
    "metric",
    [m for m in catalog.METRICS if m.needs in ("any", "reference") and m.function],
)
def test_nothing_and_a_failed_run_have_no_value_and_no_error(metric) -> None:
    failed = Conversation("c", user="p").close("error", error="timed out")
    for crowd in ([], [failed], [Conversation("e", user="q").close("end")]):
        for reference in ([], [says("hi", user="p")]):
            beside = {"reference": reference}
            found = metric.measure(crowd, beside)
            assert (found.value, found.n) == (None, 0)
            assert found.missing == len(crowd) or crowd != [failed]
            human = metric.measure(reference, beside)
            assert metric.distance(found, human).value is None


# --- the distance from people ---------------------------------------------------------------------


def metric_of(name: str) -> catalog.Metric:
    return next(one for one in catalog.METRICS if one.name == name)


def test_a_distance_is_over_the_people_of_both_sides() -> None:
    # Each simulated user says a word or two more than its person: less doubt than about the means.
    metric = metric_of("words per turn")
    lengths = [1, 20, 3, 30, 5, 44]
    people = [says("a " * n, user=str(n)) for n in lengths]
    users = [says("a " * n + "b c"[: 3 - n % 2 * 2], user=str(n)) for n in lengths]
    found, human = (metric.measure(crowd, {}) for crowd in (users, people))
    assert human.low is not None and human.low < human.value - 5
    distance = metric.distance(found, human)
    assert distance.value == pytest.approx(1.5)  # three lengths are even
    assert distance.low is not None and distance.low > 0.5


def test_a_distance_of_other_people_is_that_of_two_independent_crowds() -> None:
    metric = metric_of("questions")
    people = [says("a?" if n % 2 else "a", user=f"p{n}") for n in range(10)]
    users = [says("a?", user=f"u{n}") for n in range(10)]
    found, human = (metric.measure(crowd, {}) for crowd in (users, people))
    value, low, high, clusters = metric.distance(found, human)
    # 100 less 50, with the root of the squared distances to the ends.
    assert (value, clusters) == (50, 10)
    assert low == pytest.approx(
        50 - ((100 - found.low) ** 2 + (human.high - 50) ** 2) ** 0.5
    )
    assert high == pytest.approx(50 + (50 - human.low))


def test_results_and_terminal_show_how_far_each_measure_is_from_people(
    tmp_path, capsys
) -> None:
    lengths = [1, 20, 3, 30, 5, 44]
    people = [says("a " * n, user=str(n), id=str(n)) for n in lengths]
    users = [says("a " * n + "b c d", user=str(n), id=str(n)) for n in lengths]
    write_conversations(tmp_path / "people.jsonl", people)
    write_conversations(tmp_path / "users.jsonl", users)
    human = tmp_path / "people.jsonl"
    results = commands.score(
        commands.Score([tmp_path / "users.jsonl"], human=human, out=tmp_path / "score")
    )
    words = next(o for o in results["users.jsonl"] if o["name"] == "words per turn")
    assert words["distance"]["value"] == 3
    assert words["distance"]["clusters"] == 6
    assert all("distance" not in one for one in results["human"])
    shown = capsys.readouterr().out
    assert "+3.00 from humans" in shown
    low, high = words["distance"]["low"], words["distance"]["high"]
    assert f"{low:.2f} to {high:.2f}" in shown

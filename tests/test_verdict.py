"""What an assessment says in sentences, from results made by hand."""

import json
import re
from pathlib import Path

import pytest

from userlm.metrics.verdict import Points, conclude, judge
from userlm.show.published import PAPER

ROOT = Path(__file__).resolve().parent.parent


def compared(
    name, user, human, apart=None, *, unit="%", better="neither", people=40, **more
):
    """A measure of a user beside people's; `apart` is the interval of the difference."""
    low, high = apart or (None, None)
    record = {
        "name": name,
        "value": user,
        "low": None,
        "high": None,
        "n": 9,
        "missing": 0,
        "clusters": people,
        "better": better,
        "unit": unit,
        "why": "",
    }
    if human is None:
        return {"user": {**record, **more}, "human": None}
    value = None if user is None else user - human
    distance = {"value": value, "low": low, "high": high, "clusters": people}
    beside = {**record, "value": human}
    return {"user": {**record, "distance": distance, **more}, "human": beside}


def found(*respond, simulate=(), options=None, **results):
    stages = {"respond": list(respond)} if respond else {}
    stages |= {"simulate": list(simulate)} if simulate else {}
    return conclude(
        {"measures": stages, **results}, {"user": "trained:m"} | (options or {})
    )


def only(*respond, **more):
    [finding] = found(*respond, **more).findings
    return finding


def words(user=32.0, human=8.0, apart=(16.0, 32.0), **more):
    return compared("words per turn", user, human, apart, unit="words", **more)


def told(user=0.9, human=0.5, apart=(0.3, 0.45), **more):
    name = "two-sample AUROC"
    return compared(name, user, human, apart, unit="", better="lower", **more)


QUESTIONS = compared("questions", 12, 34, (-30, -12))
FEWER = compared("corrections", 2, 12, (-15, -5))
THANKS = compared("thanks", 6, 7, (-4, 3))
REQUESTS = compared("requests", 40, 35, (-25, 35))


# --- like people, not like people, not known ------------------------------------------------------


def test_an_interval_without_zero_is_a_difference_with_its_size_and_its_interval():
    one = only(QUESTIONS)
    assert (one.kind, one.sure, one.size, one.low, one.high) == (
        *("bad", True, -22, -30, -12),
    )
    assert one.sentence == (
        "It asks fewer questions: in 12 % of turns, people in 34 % (-22.0 points, -30.0 to -12.0)"
    )


def test_a_short_interval_around_zero_is_like_people_and_says_what_is_ruled_out():
    one = only(THANKS)
    assert (one.kind, one.sure) == ("good", False)
    assert one.sentence == (
        "in 6.0 % of turns, people in 7.0 % (-1.0 points, -4.0 to 3.0)"
    )


def test_a_long_interval_around_zero_tells_nothing_but_how_many_people_would():
    one = only(REQUESTS)
    # Half of the interval is 30. At 15 it would end 20 points from people's, at 5 it would no
    # longer hold 0: 15 is easier, and takes (30 / 15)^2 times as many as these 40 people.
    assert (one.kind, one.needed) == ("unknown", 160)


def test_a_difference_of_next_to_nothing_is_none_however_sure_it_is():
    assert judge(Points(0.4, 0.1, 1.2), "neither") == "good"
    assert judge(Points(1.4, 0.1, 2.2), "neither") == "bad"


def test_what_is_better_than_people_is_not_held_against_a_user():
    assert judge(Points(9, 5, 30), "higher") == "good"
    assert judge(Points(9, 5, 30), "neither") == "bad"
    assert judge(Points(-20, -40, -5), "lower") == "good"
    assert judge(Points(20, 5, 40), "lower") == "bad"
    assert judge(Points(5, -40, 30), "lower") == "unknown"


def test_without_an_interval_it_is_said_how_many_people_there_must_be():
    few = only(compared("questions", 12, 34, people=4))
    assert (few.kind, few.needed) == ("unknown", 30)
    assert few.sentence == "Too few people: 4"
    alike = only(compared("questions", 12, 34))
    assert alike.needed is None and "are alike" in alike.sentence


def test_what_was_not_measured_is_unknown_with_its_reason_and_no_zero():
    gone = only(compared("reaction", None, 3, why="no answer before the first turn"))
    assert (gone.kind, gone.size) == ("unknown", None)
    assert gone.why == "no answer before the first turn"
    alone = only(compared("naturalness", 80, None))
    assert alone.why == "there is no human reference beside it"


@pytest.mark.parametrize(
    ("low", "value", "high", "kind"),
    [(47, 60, 72, "bad"), (94, 100, 100, "good"), (60, 90, 100, "unknown")],
)
def test_people_count_as_keeping_their_role_and_their_intent(low, value, high, kind):
    ends = {"low": low, "high": high}
    role = compared("user-role adherence", value, None, better="higher", **ends)
    intent = compared("intent adherence (rule)", value, None, better="higher", **ends)
    one, other = found(role, intent).findings
    assert one.kind == other.kind == kind
    if kind == "bad":
        assert one.sentence.startswith("It takes the assistant's role:")
        assert other.sentence.startswith("It lets the assistant lead it away")


def test_more_or_less_is_that_of_the_same_people():
    """The values are of all people, the distance of those that both have."""
    one = compared("questions", 30, 34)
    one["user"]["distance"] |= {"value": 12.0, "low": 5.0, "high": 20.0}
    assert only(one).sentence.startswith("It asks more questions: in 30 % of turns")


# --- what it says of single measures --------------------------------------------------------------


def test_lengths_are_compared_as_times_and_their_points_never_pass_a_hundred():
    one = only(words())
    # 32 words and 8: 24 of 32 are 75 %; 24 words and 8: 16 of 24; 40 words and 8: 32 of 40.
    assert one.size == 75 and one.low == pytest.approx(200 / 3) and one.high == 80
    assert one.sentence == (
        "Its turns are 4.0 times as long as people's: 32 words, people 8.0 words (24.0, 16.0 "
        "to 32.0)"
    )
    shorter = only(words(2.0, 8.0, (-7, -5)))
    # 2 words and 8: 6 of 8 are missing.
    assert shorter.size == -75
    assert shorter.sentence.startswith("Its turns are shorter than people's: 2.0 words")


def test_long_turns_are_mended_by_a_limit_above_what_people_write():
    assert only(words()).mend.startswith("--guard words=1-25,")
    assert "words=1-60" in only(words(90, 30, (40, 80))).mend
    prompted = {"user": "prompted:openai:gpt-4o-mini"}
    assert only(words(), options=prompted).mend.startswith("--prompt plain")
    prompted["prompt"] = "mine.md"
    assert only(words(), options=prompted).mend.startswith("--guard")
    assert only(words(2.0, 8.0, (-7, -5))).mend == ""


EARLY = compared("end rate", 60, 10, (40, 60))
LATE = compared("end rate", 2, 30, (-35, -20))
F1 = compared("termination F1", 24, None)


def test_ends_at_the_wrong_time_are_mended_by_the_threshold_of_people():
    ends = {"threshold": 0.2, "f1_of_always": 31.4}
    early = only(EARLY, F1, ends=ends)
    assert early.sentence == (
        "It ends conversations too early: in 60 % of turns, people in 10 % (50.0 points, 40.0 "
        "to 60.0); F1 of ending where people did 24 %, always ending 31 %"
    )
    assert early.mend == "--end-threshold 0.2, which ends as often as people do"
    late = only(LATE, ends=ends)
    assert late.sentence.startswith("It ends conversations too late: in 2.0 % of turns")
    assert late.mend == early.mend


def test_without_a_threshold_ends_are_mended_by_what_prevents_them():
    ends = {"threshold": None, "f1_of_always": None}
    assert only(LATE, ends=ends).mend == ""
    for guard in ("no-end", "paper"):
        mend = only(LATE, ends=ends, options={"guard": guard}).mend
        assert mend == "leave no-end out of --guard"
    prompted = {"user": "prompted:m"}
    assert "prompt when to end" in only(LATE, options=prompted).mend


def test_repetition_of_itself_and_of_the_intent_is_mended_by_the_guard():
    itself = only(compared("self-repetition", 32, 4, (22, 37)))
    intent = only(compared("verbatim intent", 60, 6, (40, 60)))
    assert itself.sentence.startswith(
        "It repeats itself: 32 % of its runs of three words, people 4.0 %"
    )
    assert intent.sentence.startswith("It copies its intent: 60 %")
    assert itself.mend == intent.mend and itself.mend.startswith("--guard no-repeat,")
    content = only(compared("intent decomposition", 60, 6, (40, 60)))
    assert "userlm intents --overwrite" in content.mend


def kept(user="trained:m", ends_at=None, guard=None, **outcomes):
    """How often a user keeps its role and its intent, and what it did where it did not."""
    stages = {}
    for name in ("user-role adherence", "intent adherence (rule)"):
        one = compared(name, 40, None, better="higher", outcomes=outcomes)
        one["user"] |= {"low": 30.0, "high": 50.0}
        stages[name] = [one]
    options = {"user": user, "guard": guard}
    found = conclude({"measures": stages, "ends": ends_at}, options).findings
    return [one.mend for one in sorted(found, key=lambda one: one.measure)]


def test_what_no_option_mends_says_so_and_what_may():
    intent, mend = kept(adheres=24, answers=20, accepts=16)
    assert mend.startswith("no option does; a larger model may")
    assert "userlm-small keeps it in 61 instead of 48 % of tests" in intent
    findings = (ROOT / "docs/findings.md").read_text()
    [guarded] = re.findall(r"`--guard paper` \| 86.*\| ([\d.]+) \|.*", findings)
    [without] = re.findall(r"userlm-small \| none \|.*\| ([\d.]+) \|", findings)
    assert (round(float(guarded)), round(float(without))) == (61, 48)
    assert kept(guard="paper,may-end", answers=36) == [mend, mend]
    for row in ("UserLM-1b", "UserLM-8b"):
        *_, role, intent = PAPER[row]
        assert 91 <= role <= 95 and 91 <= intent <= 95 and "91 to 95 %" in mend
    assert kept("py:mine:reply", answers=36) == ["", ""]


def test_a_user_who_leaves_where_it_should_insist_is_mended_as_its_ends_are():
    ends = {"threshold": 0.29, "f1_of_always": 23.0}
    one, other = kept(ends_at=ends, adheres=24, ends=36)
    assert one == other == "--end-threshold 0.29, which ends as often as people do"


def test_a_prompted_user_is_to_be_told_to_keep_its_role_and_its_intent():
    intent, role = kept("prompted:m", adheres=24, answers=36)
    assert intent == "say in its prompt to ask until it is answered (--prompt FILE)"
    assert role == "say in its prompt that it is the user (--prompt FILE)"


def test_an_auroc_is_said_as_pairs_with_the_ngrams_of_the_user_alone():
    ngrams = [
        {"text": "ok ", "simulated": 1.0, "human": 30.0},
        {"text": "I ", "simulated": 20.0, "human": 10.0},
        {"text": "sure", "simulated": 60.0, "human": 1.0},
    ]
    similar = compared("two-sample AUROC, length-matched", 0.83, 0.5, (0.2, 0.4))
    one = only(told(ngrams=ngrams), similar)
    assert one.sentence == (
        "It is told from people in 9.0 of 10 pairs of turns, one of each, by a classifier that read "
        "others (of similar length in 8.3, by chance in 5): an AUROC of 0.90, people "
        "0.50 (0.40, 0.30 to 0.45)"
    )
    assert one.told_by == ("sure", "I ")
    assert one.size == pytest.approx(40)


def test_a_judge_counts_instead_of_the_rule_and_a_detector_only_if_it_was_asked():
    rule = compared("intent adherence (rule)", 40, None, unit="%")
    judged = compared("intent adherence (judge)", 60, None, unit="%")
    absent = compared("naturalness", None, None, unit="%")
    stages = {"intent": [rule], "judge-intent": [judged], "detect": [absent]}
    found = conclude({"measures": stages}, {}).findings
    assert [one.measure for one in found] == ["intent adherence (judge)"]


@pytest.mark.parametrize(
    ("outcomes", "claim"),
    [
        ({"ends": 60}, "It ends the conversation where"),
        ({"ADHERES": 20, "ACCEPTS": 5, "OTHER": 35}, "It drops its question"),
        (
            {"adheres": 20, "accepts": 39, "ends": 1},
            "It lets the assistant lead it away",
        ),
    ],
)
def test_a_user_that_fails_a_test_is_said_to_do_what_it_did_most_often(outcomes, claim):
    one = compared("intent adherence (rule)", 30, None, outcomes=outcomes)
    one["user"] |= {"low": 20.0, "high": 45.0}
    unread = compared("intent adherence (judge)", None, None)
    stages = {"intent": [one], "judge-intent": [unread]}
    [found] = conclude({"measures": stages}, {}).findings
    assert found.kind == "bad" and found.sentence.startswith(claim)


def test_a_user_who_adheres_as_often_as_the_rule_can_see_is_not_held_to_more():
    one = compared("intent adherence (rule)", 87, None)
    one["user"] |= {"low": 67.0, "high": 95.0}
    [found] = conclude({"measures": {"intent": [one]}}, {}).findings
    assert (
        found.kind == "good"
        and "count as 87 %, the most that this rule finds" in found.sentence
    )


def test_too_few_test_items_are_not_called_people():
    few = compared("user-role adherence", 75, None, people=4)
    many = compared("user-role adherence", 75, None, people=20)
    many["user"] |= {"low": 50.0, "high": 99.0}
    stages = [{"role": [few]}, {"role": [many]}]
    sentences = []
    for one in stages:
        [found] = conclude({"measures": one}, {}).findings
        assert found.clusters == "items"
        sentences.append(found.sentence)
    assert sentences[0] == "Too few items: 4"
    assert "of tests; people were not asked, and count as 100 % (-25" in sentences[1]


# --- all of them together -------------------------------------------------------------------------


def test_the_answer_counts_and_says_what_chance_alone_gives():
    whole = found(QUESTIONS, words(), THANKS, REQUESTS)
    assert whole.answer == (
        "Not yet: of 4 measures, 1 is like people, 2 are not, and 1 is undecided."
    )
    few = "at most 1 of the 4 measures with an interval differs, as by chance"
    assert few in whole.chance
    many = [compared(f"m{i}", 5, 5, (-3, 3)) for i in range(40)]
    assert (
        "at most 2 of the 40 measures with an interval differ," in found(*many).chance
    )


def test_the_bar_that_decides_not_yet_is_said_below_it():
    assert "none by more than 20 points (of percent)" in found(QUESTIONS).chance
    assert found(QUESTIONS).answer.startswith("Not yet")
    smaller = compared("questions", 15, 34, (-30, -12))
    assert found(smaller).answer.startswith("Nearly")


@pytest.mark.parametrize(
    ("measures", "answer"),
    [
        ((THANKS,), "By what was measured, yes: of 1 measure, 1 is like people"),
        ((THANKS, FEWER), "Nearly: of 2 measures"),  # one may differ by chance
        ((THANKS, QUESTIONS), "Not yet:"),  # but not by so much
        ((REQUESTS,), "Too little is known:"),
        ((), "It cannot be said: nothing was measured."),
    ],
)
def test_the_answer_is_no_more_than_the_intervals_carry(measures, answer):
    assert found(*measures).answer.startswith(answer)


def test_a_verdict_on_few_people_says_first_how_few_and_that_too_little_is_known():
    ten = found(compared("questions", 12, 34, (-30, -12), people=10), THANKS)
    assert ten.answer.startswith("Not yet")  # 40 people have the other measure
    for people, some in ((29, "29 people"), (1, "1 person")):
        few = found(compared("questions", 12, 34, (-30, -12), people=people))
        assert few.answer == (
            f"Too little is known, from {some} (30 are a beginning): of 1 measure, 0 are like "
            "people, 1 is not, and 0 are undecided."
        )


def test_what_is_undecided_takes_no_fewer_people_than_a_verdict():
    # Half of the interval is 30: at 15 it would be decided, with four times as many.
    assert only(compared("requests", 40, 35, (-25, 35), people=6)).needed == 30


def test_the_sign_of_a_difference_is_that_of_its_interval():
    one = only(compared("questions", 30, 32.6, (-12.3, 10.1)))
    assert one.sentence.endswith("(-2.6 points, -12.3 to 10.1)")
    level = only(compared("questions", 30, 30.01, (-3, 3)))
    assert level.sentence.endswith("(0.0 points, -3.0 to 3.0)")


def test_words_that_half_of_the_people_never_use_are_called_so_though_people_have_them():
    fewer = only(compared("out of vocabulary", 38, 52, (-20, -9)))
    assert fewer.sentence.startswith(
        "It uses fewer rare words: 38 % of its words are never used by half of the people, people "
        "52 %"
    )


def test_what_people_could_not_be_measured_in_is_not_said_to_be_unmeasured():
    one = told(human=None)
    one["human"] = {**one["user"], "value": None, "why": "too few of them"}
    alone = only(one)
    assert alone.sentence == "There is nothing to compare it with"
    assert alone.why == "people have no value: too few of them"


def test_the_largest_difference_comes_first_and_an_auroc_counts_twice():
    order = [one.measure for one in found(THANKS, QUESTIONS, told(), words()).findings]
    assert order == ["two-sample AUROC", "words per turn", "questions", "thanks"]


def test_single_turns_count_and_whole_conversations_only_where_they_alone_have_a_measure():
    turns = compared("turns per conversation", 12, 9, (1, 6), unit="turns")
    repeated = compared("self-repetition", 32, 4, (22, 37))
    talks = [compared("thanks", 60, 7, (40, 60)), repeated, turns]
    whole = found(THANKS, simulate=talks)
    kinds = {one.measure: (one.stage, one.kind) for one in whole.findings}
    assert kinds["thanks"] == ("respond", "good")
    assert kinds["turns per conversation"] == ("simulate", "bad")
    assert whole.talks.startswith(
        "In whole conversations, which the assistant shapes too, it differs in thanks, "
        "repeating itself."
    )
    assert found(THANKS).talks == ""


def test_measures_of_the_same_thing_are_counted_once():
    same = [
        compared("two-sample AUROC, first turns", 0.9, 0.5, (0.3, 0.5), unit=""),
        compared("robustness", 60, None),
        compared("longest verbatim overlap", 12, 9, unit="words"),
    ]
    assert len(found(told(), *same).findings) == 1


def test_a_verdict_is_the_same_when_it_is_read_from_json():
    record = found(QUESTIONS, told(ngrams=[]), THANKS).record()
    assert json.loads(json.dumps(record)) == record
    assert record["findings"][0].keys() >= {"kind", "sentence", "size", "sure", "mend"}

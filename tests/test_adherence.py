"""User-role and intent adherence: test items, their rules, and their measures by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from flat import flat

from userlm import commands
from userlm.assets import intent_items, role_items
from userlm.data.layouts import convert
from userlm.data.layouts.fields import Rejected
from userlm.data.layouts.items import UNSURE
from userlm.items import check, kind_of, prefix
from userlm.metrics.adherence import (
    ACCEPTS,
    ADHERES,
    ANSWERS,
    CEILINGS,
    EMPTY,
    ENDS,
    NO_REPLY,
    OTHER,
    after_choices,
    after_suggestion,
    intent_adherence,
    outcome,
    outcomes,
    robustness,
    user_role_adherence,
)
from userlm.metrics.control_users import ITEM_USERS, asked
from userlm.rows import (
    read_conversations,
    read_rows,
    to_record,
    write_conversations,
)
from userlm.text import INTENT_PREFIX, words
from userlm.types import Conversation, InputError, Turn

CHOICES = ["bank", "river bed", "bridge", "canoe", "ice-cream van"]
BENCH = Path(__file__).resolve().parent.parent / "bench"
QUESTION = "who wrote the opera carmen"
SUGGESTION = "what to wear to a premiere"


def item(kind="role", **meta) -> Conversation:
    given = {"role": {"choices": CHOICES}, "intent": {"suggestion": SUGGESTION}}
    turns = (Turn("user", QUESTION), Turn("assistant", "Hard to say."))
    return Conversation(
        f"{kind}-1", turns, "find out.", meta={"item": kind, **given[kind], **meta}
    )


def response(kind="role", said: str | None = None, n=1, **close) -> Conversation:
    """A response to an item; nothing said is an end."""
    start = prefix(item(kind))
    answered = start.say(said) if said is not None else start.close("end")
    if close:
        answered = answered.close(**close)
    return Conversation(
        f"{kind}-{n}",
        answered.turns,
        stop=answered.stop,
        ended=answered.ended,
        meta=answered.meta,
    )


# --- the user's role ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("i thought you would know that", ADHERES),  # none
        ("the Bank!", ANSWERS),  # one, in another case
        ("bank or a river-bed?", ANSWERS),  # two, one with another hyphen
        ("an ice cream van", ANSWERS),
        ("well is it bank, bridge or canoe", ADHERES),  # three: the question again
        ("bank river bed bridge canoe ice-cream van", ADHERES),
        ("banks and riverbeds", ADHERES),  # other words
        ("the river is a bed", ADHERES),  # not in a row
    ],
)
def test_one_or_two_choices_are_an_answer_and_none_or_more_are_not(said, label):
    assert after_choices(said, CHOICES).label == label


def test_a_row_says_which_choices_were_named():
    assert after_choices("a canoe, or the bank", CHOICES).why == "names bank, canoe"


# --- the user's intent ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("who wrote carmen?", ADHERES),  # 2 of 3: wrote, opera, carmen
        ("the composer of that opera i mean", ADHERES),
        ("just answer please", ADHERES),  # no word of the question, but it insists
        ("is a suit right for a premiere", ACCEPTS),  # 1 of 2: wear, premiere
        ("sure go ahead", ACCEPTS),  # agrees in no word of either
        ("ok thanks, bye", OTHER),  # agrees, but leaves
        ("i dont want to wear anything", OTHER),  # its words, but declined
        ("my cat is called tom", OTHER),
    ],
)
def test_a_reply_stays_with_the_question_takes_the_suggestion_or_neither(said, label):
    assert after_suggestion(said, QUESTION, SUGGESTION).label == label


def test_words_of_question_and_suggestion_are_those_of_the_question():
    # Of the suggestion "opera premiere" only the premiere is new.
    assert after_suggestion("which opera", QUESTION, "opera premiere").label == ADHERES


def test_a_question_of_stop_words_that_is_asked_again_is_no_other_reply():
    for question in ("what is it", "who are they?", "why"):
        found = after_suggestion(f"But {question}?", question, SUGGESTION)
        assert found.label == ADHERES
    assert after_suggestion("it is what", "what is it", SUGGESTION).label == OTHER
    assert after_suggestion("why not", "why", SUGGESTION).label != ADHERES


# --- third outcomes -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["role", "intent"])
def test_an_end_and_an_empty_turn_are_counted_apart_and_do_not_adhere(kind):
    ended = response(kind)
    empty = response(kind, " ")
    assert (outcome(ended).label, outcome(empty).label) == (ENDS, EMPTY)
    measured = {"role": user_role_adherence, "intent": intent_adherence}[kind]
    # 2 measured, none of them adheres.
    found = measured([ended, empty])
    assert (found.value, found.n, found.missing) == (0, 2, 0)
    assert [row.why for row in found.rows] == ["ends the conversation", "says nothing"]
    assert outcomes([ended, empty, ended], kind) == {ENDS: 2, EMPTY: 1}


def test_a_user_of_whom_no_draft_passes_the_guard_says_nothing():
    speechless = prefix(item()).close("guard")
    assert outcome(speechless) == (EMPTY, "no draft passes the guard")
    assert user_role_adherence([speechless]).value == 0


def test_last_words_are_a_reply():
    assert outcome(response(said="the bank, bye", stop="end")).label == ANSWERS


def test_what_the_user_could_not_say_is_missing_with_the_reason_and_no_zero():
    failed = prefix(item()).close("error", error="no such model")
    unasked = prefix(item())
    found = user_role_adherence([failed, unasked, response(said="no idea")])
    # 1 of the 1 that replied.
    assert (found.value, found.n, found.missing) == (100, 1, 2)
    assert [row.why for row in found.rows][:2] == ["error: no such model", NO_REPLY]
    assert outcomes([failed, unasked], "role") == {}


# --- measures -------------------------------------------------------------------------------------


def test_adherence_and_their_mean_by_hand():
    role = [
        response(said="who knows", n=1),  # adheres
        response(said="bank", n=2),  # answers
        response(said="bridge and bank", n=3),  # answers
        response(said=None, n=4),  # ends
    ]
    intent = [
        response("intent", "who wrote carmen", n=1),  # adheres
        response("intent", "sure", n=2),  # accepts
    ]
    # 1 of 4, 1 of 2, and (25 + 50) / 2.
    assert user_role_adherence([*role, *intent]).value == 25
    assert intent_adherence([*role, *intent]).value == 50
    both = robustness([*role, *intent])
    assert (both.value, both.n) == (37.5, 6)
    assert both.low < 37.5 < both.high
    assert outcomes(role, "role") == {ANSWERS: 2, ADHERES: 1, ENDS: 1}


def test_there_is_no_robustness_without_both_tests():
    assert robustness([response(said="hm")]).value is None
    assert robustness([response("intent", "sure")]).value is None


def test_items_with_one_intent_are_items_of_their_own_in_the_interval():
    many = [response(said="hm", n=n) for n in range(6)]
    assert user_role_adherence(many).clusters == 6
    assert user_role_adherence(many).low is not None


# --- users that are known to be wrong -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role", "intent"),
    [
        ("answers", 0, 0),
        ("accepts the suggestion", 100, 0),
        ("repeats the question", 100, 100),
        # It never answers, but asks for nothing of its own either.
        ("constant turn", 100, 0),
        ("ends at once", 0, 0),
    ],
)
def test_users_that_are_known_to_be_wrong_get_what_they_deserve(name, role, intent):
    embedded = [*read_conversations(role_items()), *read_conversations(intent_items())]
    responses = asked(embedded, ITEM_USERS[name])
    assert user_role_adherence(responses).value == role
    assert intent_adherence(responses).value == intent
    assert robustness(responses).value == (role + intent) / 2


# --- items ----------------------------------------------------------------------------------------


def test_the_embedded_items_are_sixty_of_each_and_sound():
    for kind, path in (("role", role_items()), ("intent", intent_items())):
        found = list(read_conversations(path))
        assert len(found) == len({one.turns[0].text for one in found}) == 60
        assert len({one.turns[1].text for one in found}) == 60
        for one in found:
            assert kind_of(one) == kind
            assert [turn.role for turn in one.turns] == ["user", "assistant"]
            assert one.intent.startswith(INTENT_PREFIX)


def test_embedded_choices_are_in_the_question_and_in_nothing_that_is_said_after_it():
    for one in read_conversations(role_items()):
        question, answer = one.turns
        choices = one.meta["choices"]
        assert len(choices) == 5
        for choice in choices:
            # As words, each alone: a choice within another would count twice.
            assert after_choices(choice, choices).why == f"names {choice}"
            named = after_choices(question.text, [choice]).label
            assert named == ANSWERS, (one.id, choice)
        for text in (answer.text, one.intent):
            assert after_choices(text, choices).why == "names no choice", one.id


def test_embedded_suggestions_are_in_the_answer_and_share_few_words_with_the_question():
    for one in read_conversations(intent_items()):
        suggestion = words(one.meta["suggestion"])
        assert set(suggestion) <= set(words(one.turns[1].text)), one.id
        found = after_suggestion(" ".join(suggestion), one.turns[0].text, one.meta["suggestion"])  # fmt: skip
        assert found.label == ACCEPTS, one.id


@pytest.mark.parametrize(
    ("kind", "meta", "said"),
    [
        ("role", {"choices": None}, "line 2: field 'meta.choices' is missing"),
        ("role", {"choices": "a, b, c"}, "no list of texts"),
        ("role", {"choices": ["a", "b", 3]}, "no list of texts"),
        ("role", {"choices": ["a", "b", "!"]}, "no list of texts"),
        ("role", {"choices": ["a", "b", "A."]}, "fewer than 3 different texts"),
        ("intent", {"suggestion": None}, "line 2: field 'meta.suggestion' is missing"),
        ("intent", {"suggestion": " "}, "line 2: field 'meta.suggestion'"),
    ],
)
def test_an_item_without_what_it_needs_is_refused_by_file_line_and_field(
    kind, meta, said, tmp_path
):
    path = tmp_path / "items.jsonl"
    write_conversations(path, [Conversation("log").say("hi"), item(kind, **meta)])
    with pytest.raises(InputError, match=rf"items\.jsonl, .*{said}"):
        list(read_conversations(path))


def test_an_item_without_a_frozen_answer_is_refused():
    start = Conversation("x", meta={"item": "role", "choices": CHOICES}).say("which?")
    with pytest.raises(ValueError, match="a question of the user and an answer"):
        check(start)


def test_import_sets_an_item_without_what_it_needs_aside():
    record = to_record(item(choices=None))
    with pytest.raises(Rejected, match=r"wrong type: field 'meta\.choices' is missing"):
        convert(record, None, "x")
    assert convert(to_record(item()), None, "x").conversation == item()


def test_other_conversations_are_no_items():
    for meta in ({}, {"item": "hat"}, {"choices": ["a"]}):
        assert kind_of(Conversation("x", meta=meta)) is None
        check(Conversation("x", meta=meta))


# --- respond and score ----------------------------------------------------------------------------


def _script(folder: Path, *lines: str) -> str:
    (folder / "script.txt").write_text("\n".join(lines))
    return f"script:{folder / 'script.txt'}"


def _respond(folder: Path, user: str, given: list[Conversation], **options):
    write_conversations(folder / "items.jsonl", given)
    asked = flat(
        commands.Respond,
        data=folder / "items.jsonl",
        user=user,
        out=folder / "run",
        **options,
    )
    commands.respond(asked)
    return list(read_conversations(folder / "run/conversations.jsonl"))


def test_respond_asks_for_one_reply_to_each_item_and_for_none_to_its_question(tmp_path):
    log = Conversation("log").say("hi").say("Hello.")
    answered = item().say("a reply from elsewhere")
    given = [log, answered, item("intent")]
    found = _respond(tmp_path, _script(tmp_path, "one", "two"), given)
    # The log has one user turn; an item the second one only, whatever was said there before.
    assert [one.user_turns for one in found] == [
        ("one",),
        (QUESTION, "two"),
        (QUESTION, "two"),
    ]
    assert [one.id for one in found] == ["log/0", "role-1", "intent-1"]
    # Nobody was there to end an item, so it is no end to find.
    assert [one.origin.person_ended for one in found] == [False, None, None]


def test_score_measures_items_apart_from_conversations_with_people(tmp_path, capsys):
    talk = Conversation("log", user="p").say("hi there").say("Hello.")
    given = [replace(talk, ended=True), item(), item("intent")]
    _respond(tmp_path, _script(tmp_path, "hello", "bank"), given)
    out = tmp_path / "score"
    results = commands.score(commands.Score([tmp_path / "run"], out=out))
    found = {one["name"]: one for one in results["run"]}
    assert found["user-role adherence"]["value"] == 0
    assert found["user-role adherence"]["outcomes"] == {ANSWERS: 1}
    assert found["intent adherence (rule)"]["outcomes"] == {OTHER: 1}
    assert found["robustness"]["value"] == 0
    # Only the log: its first turn of one word, and the second at which its person ended.
    assert found["words per turn"]["n"] == 2
    assert found["termination F1"]["n"] == 1
    assert "what run does" in capsys.readouterr().out
    # A row says why.
    lines = (line.row for line in read_rows(out / "scores.jsonl"))
    whys = {(row["metric"], row["why"]) for row in lines if row["why"]}
    assert ("user-role adherence", "names bank") in whys


def test_a_run_of_items_alone_has_no_measures_of_conversations(tmp_path):
    _respond(tmp_path, _script(tmp_path, "hello", "no idea"), [item()])
    people = [Conversation("c", user="p").say("hi").say("Hello.")]
    write_conversations(tmp_path / "people.jsonl", people)
    score = commands.Score(
        [tmp_path / "run"], human=tmp_path / "people.jsonl", out=tmp_path / "score"
    )
    results = commands.score(score)
    assert [one["name"] for one in results["run"]] == ["user-role adherence"]
    assert "endings" not in results


# --- items from question sets ---------------------------------------------------------------------

COMMONSENSE = {
    "id": "q1",
    "question": "Where would you keep a boat?",
    "question_concept": "boat",
    "choices": {"label": list("ABCDE"), "text": CHOICES},
    "answerKey": "A",
}


def test_a_row_of_commonsense_qa_becomes_an_item():
    found = convert(COMMONSENSE, "role-items", "x").conversation
    question, answer = found.turns
    assert found.id == "q1" and kind_of(found) == "role"
    assert "Where would you keep a boat?" in question.text
    # All five are in the question, without letters; none is in what the assistant says.
    assert after_choices(question.text, CHOICES).why == f"names {', '.join(CHOICES)}"
    assert after_choices(answer.text, CHOICES).why == "names no choice"
    goal = "get the answer to a multiple-choice question about boat."
    assert found.intent == INTENT_PREFIX + goal
    # The same row is the same item always; other rows get other turns.
    assert convert(COMMONSENSE, "role-items", "x").conversation == found
    many = [{**COMMONSENSE, "question": f"Where is boat {n}?"} for n in range(99)]
    answers = {
        convert(row, "role-items", "x").conversation.turns[1].text for row in many
    }
    assert len(answers) == len(UNSURE)


def test_a_row_of_natural_questions_becomes_an_item():
    row = {"id": "n1", "question": QUESTION, "answers": ["Bizet"]}
    found = convert(row, "intent-items", "x").conversation
    question, answer = found.turns
    assert kind_of(found) == "intent" and question.text == QUESTION
    assert found.meta["suggestion"] in answer.text
    assert "Bizet" not in str(found)
    assert QUESTION in found.intent


def test_rows_with_ready_made_turns_keep_them_and_their_intent():
    history = [
        {"role": "user", "content": "which?"},
        {"role": "assistant", "content": "Hm."},
        {"role": "user", "content": "?"},
    ]
    row = {"intent": "know it", "conversation_history": history, "choices": CHOICES}
    found = convert(row, "role-items", "log-7").conversation
    assert [turn.text for turn in found.turns] == ["which?", "Hm."]
    assert (found.intent, found.id) == ("know it", "log-7")
    texts = [{"label": "A", "text": choice} for choice in CHOICES]
    as_text = {**row, "conversation_history": json.dumps(history), "choices": texts}
    assert convert(as_text, "role-items", "log-7").conversation == found
    row = {"question": QUESTION, "assistant_suggestion_turn": "A walk?", "source": "nq"}
    found = convert(row, "intent-items", "x").conversation
    assert found.turns[1].text == found.meta["suggestion"] == "A walk?"
    assert found.meta["source"] == "nq"
    row = {"question": QUESTION, "suggestion": "a walk {here}"}
    found = convert(row, "intent-items", "x").conversation
    assert found.meta["suggestion"] == "a walk {here}"
    assert "a walk {here}" in found.turns[1].text


def test_a_user_who_always_adheres_gets_what_the_rule_finds_of_such_replies():
    items = {one.id: one for one in read_conversations(intent_items())}
    lines = (BENCH / "intent_replies.jsonl").read_text().splitlines()
    labels = []
    for row in map(json.loads, lines):
        item = items[row["item"]]
        if row["label"] == ADHERES:
            question, suggestion = item.user_turns[0], item.meta["suggestion"]
            labels.append(after_suggestion(row["reply"], question, suggestion).label)
    found = 100 * labels.count(ADHERES) / len(labels)
    assert round(found) == CEILINGS["intent adherence (rule)"]


def test_a_choice_in_another_one_and_one_without_spaces_around_are_read_as_meant():
    nested = ["bank", "account", "bank account", "river"]
    assert after_choices("a bank account i think", nested).label == ANSWERS
    assert after_choices("bank or river or account", nested).label == ADHERES
    assert after_choices("我想是银行吧", ["银行", "河", "树"]).label == ANSWERS


@pytest.mark.parametrize(
    ("source", "row", "said"),
    [
        ("role-items", {"question": "x?"}, "no messages: field 'choices' is missing"),
        ("role-items", {"choices": CHOICES}, "field 'question' is missing"),
        ("role-items", {**COMMONSENSE, "choices": {"text": ["a", "b"]}}, "fewer than"),
        ("role-items", {**COMMONSENSE, "choices": [1, 2, 3]}, "meta.choices"),
        ("intent-items", {"answers": ["x"]}, "field 'question' is missing"),
        (
            "role-items",
            {"choices": CHOICES, "conversation_history": [{"role": "user", "content": "x"}]},
            "does not begin with",
        ),
    ],
)  # fmt: skip
def test_a_row_that_is_no_item_is_set_aside_with_the_field(source, row, said):
    with pytest.raises(Rejected, match=said):
        convert(row, source, "x")


def test_question_sets_are_never_taken_for_items_unless_that_is_asked_for():
    with pytest.raises(Rejected, match="unknown layout"):
        convert(COMMONSENSE, None, "x")


def test_imported_items_can_be_answered_and_scored(tmp_path):
    rows = [{"question": f"who built bridge {n}", "answer": ["x"]} for n in range(3)]
    path = tmp_path / "nq.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    asked = flat(
        commands.Import, logs=[str(path)], source="intent-items", out=tmp_path / "items"
    )
    assert commands.import_(asked)["counts"] == {"in": 3, "out": 3}
    commands.respond(
        flat(
            commands.Respond,
            data=tmp_path / "items",
            user=_script(tmp_path, "hi", "and who built it, that bridge"),
            out=tmp_path / "run",
        )
    )
    score = commands.Score([tmp_path / "run"], out=tmp_path / "score")
    [found] = commands.score(score)["run"]
    assert (found["value"], found["n"]) == (100, 3)

"""Rows of raw logs become conversations, or are rejected with a reason."""

import datetime as dt
from collections import Counter
from pathlib import Path

import pytest

from userlm.data.sources import NOTES, REASONS, SOURCES, Rejected, convert, guess
from userlm.store import read_rows, to_record
from userlm.types import Conversation, InputError, Turn

U = {"role": "user", "content": "hi"}
A = {"role": "assistant", "content": "hello"}


def test_a_row_of_messages_becomes_a_conversation():
    row = {
        "id": "c1",
        "user_id": "p1",
        "language": "English",
        "license": "MIT",
        "goal": "greet",
        "messages": [U, A],
    }
    imported = convert(row, None, "f:1")
    assert imported.conversation == Conversation(
        id="c1",
        turns=(Turn("user", "hi"), Turn("assistant", "hello")),
        user="p1",
        ended=True,
        meta={"language": "English", "license": "MIT", "goal": "greet"},
    )
    assert imported.notes == {}


def test_a_row_without_id_gets_the_fallback_and_a_number_is_a_fine_id():
    assert convert({"messages": [U, A]}, None, "log:7").conversation.id == "log:7"
    assert convert({"id": 0, "messages": [U, A]}, None, "log:7").conversation.id == "0"


def test_turns_of_one_side_in_a_row_are_joined_with_a_blank_line_and_counted():
    row = {"messages": [U, {"role": "user", "content": "there?"}, U, A, A]}
    imported = convert(row, "messages", "x")
    assert [t.text for t in imported.conversation.turns] == ["hi\n\nthere?\n\nhi", "hello\n\nhello"]
    assert imported.notes == {"joined turns": 3}


def test_an_opening_assistant_turn_is_kept_and_counted():
    imported = convert({"messages": [A, U, A]}, None, "x")
    assert [t.role for t in imported.conversation.turns] == ["assistant", "user", "assistant"]
    assert imported.notes == {"opening assistant turn": 1}


def test_system_and_tool_messages_go_to_meta_and_are_counted():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock"}}]}
    system = {"role": "system", "content": "be kind"}
    developer = {"role": "developer", "content": "be brief"}
    tool = {"role": "tool", "content": "12:00"}
    imported = convert({"messages": [system, developer, U, call, tool, A]}, None, "x")
    assert [t.text for t in imported.conversation.turns] == ["hi", "hello"]
    assert imported.conversation.meta["system"] == "be kind\n\nbe brief"
    assert "clock" in imported.conversation.meta["tool"] and "12:00" in imported.conversation.meta["tool"]
    assert imported.notes == {"system to meta": 2, "tool to meta": 2}
    assert imported.conversation.ended


def test_a_log_that_stops_in_a_tool_call_has_no_observed_ending():
    calling = {**A, "tool_calls": [{"function": {"name": "clock"}}]}
    assert not convert({"messages": [U, calling]}, None, "x").conversation.ended


def test_parts_of_a_message_are_joined_and_pictures_are_counted():
    parts = [
        {"type": "text", "text": "what is"},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "this"},
    ]
    imported = convert({"messages": [{"role": "user", "content": parts}, A]}, None, "x")
    assert imported.conversation.turns[0].text == "what is\n\nthis"
    assert imported.notes == {"parts left out": 1}


@pytest.mark.parametrize("mark", [{"fragment": True}, {"truncated": True}, {"complete": False}, {"tree": 0}])
def test_a_piece_or_a_path_in_a_tree_has_no_observed_ending(mark):
    assert not convert({"messages": [U, A], **mark}, None, "x").conversation.ended


def test_a_log_that_stops_on_the_user_has_no_observed_ending():
    assert not convert({"messages": [U, A, U], "fragment": False}, None, "x").conversation.ended


def test_scalar_extras_go_to_meta_and_lists_are_counted():
    imported = convert({"messages": [U, A], "persona": ["a"], "score": 0.5, "note": None}, None, "x")
    assert imported.conversation.meta == {"score": 0.5}
    assert imported.notes == {"fields left out": 1}


@pytest.mark.parametrize(
    ("row", "reason", "named"),
    [
        (
            {"messages": [U, {"role": "narrator", "content": "x"}]},
            "unknown role",
            "messages[1].role is 'narrator'",
        ),
        ({"messages": [U, {"content": "x"}]}, "unknown role", "messages[1].role is None"),
        ({"messages": [U, {"role": "assistant", "content": " \n"}]}, "empty turn", "messages[1].content"),
        ({"messages": [U, {"role": "assistant", "content": "\u200b"}]}, "empty turn", "messages[1].content"),
        ({"messages": [{"role": "user", "content": None}]}, "empty turn", "messages[0].content"),
        ({"messages": [A]}, "no user turn", "user"),
        ({"messages": []}, "no messages", "'messages'"),
        ({"messages": "hi"}, "wrong type", "'messages'"),
        ({"messages": ["hi"]}, "wrong type", "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "wrong type", "messages[0].content"),
        ({"messages": [U, A], "id": {}}, "wrong type", "'id'"),
        ({"dialog": [], "name": "x"}, "unknown layout", "dialog, name"),
        ({"turns": [{"role": "system", "text": "x"}]}, "unknown role", "turns[0].role is 'system'"),
        ({"turns": [{"role": "user", "text": " "}]}, "empty turn", "turns[0].text"),
        ({"turns": [{"role": "user", "text": 4}]}, "wrong type", "turns[0].text"),
        ({"turns": [{"role": "user", "text": "a"}] * 2}, "wrong type", "turns[1]"),
        ({"turns": []}, "no messages", "'turns'"),
        ({"turns": [{"role": "assistant", "text": "x"}]}, "no user turn", "user"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown role", "conversations[0].from is 'alien'"),
        ({"conversation_id": "a", "conversation": None}, "no messages", "'conversation'"),
        ({"conversation_hash": "a", "conversation": [U], "country": 3}, "wrong type", "'country'"),
    ],
)
def test_what_cannot_be_mended_is_rejected_with_a_reason_and_the_field(row, reason, named):
    with pytest.raises(Rejected) as caught:
        convert(row, None, "x")
    assert caught.value.reason == reason
    assert reason in REASONS
    assert str(caught.value).startswith(f"{reason}: ")
    assert named in str(caught.value)


def test_the_layout_is_guessed_from_the_fields():
    turn = {"role": "user", "content": "x", "toxic": False}
    assert guess({"messages": []}) == "messages"
    assert guess({"conversation_hash": "h", "conversation": [turn]}) == "wildchat"
    assert guess({"conversation_id": "h", "conversation": [turn], "toxic": False}) == "wildchat"
    assert guess({"conversation_id": "h", "conversation": [turn], "redacted": False}) == "lmsys"
    assert guess({"id": "h", "conversations": []}) == "sharegpt"
    assert guess({"id": "h", "items": []}) == "sharegpt"
    assert guess({"id": "h", "turns": []}) == "userlm"


def test_an_unknown_source_names_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'wildchat'"):
        convert({"messages": [U, A]}, "wildchta", "x")


def test_a_wildchat_row_keeps_who_where_and_when_and_not_the_scores():
    said = {"country": "Chile", "hashed_ip": "f00", "language": "English", "toxic": False, "turn_identifier": 42}
    row = {
        "conversation_hash": "abc",
        "model": "gpt-4-0314",
        "timestamp": dt.datetime(2023, 5, 1, tzinfo=dt.UTC),
        "conversation": [{**U, **said}, {**A, "turn_identifier": 42}],
        "language": "English",
        "toxic": False,
        "redacted": True,
        "country": "Chile",
        "state": None,
        "hashed_ip": "f00",
        "openai_moderation": [{"flagged": False}],
        "header": {"user-agent": "x"},
    }
    conversation = convert(row, None, "x").conversation
    assert (conversation.id, conversation.user) == ("abc-42", "f00/Chile")
    assert conversation.meta == {
        "source": "wildchat",
        "country": "Chile",
        "language": "English",
        "model": "gpt-4-0314",
        "timestamp": "2023-05-01T00:00:00+00:00",
        "toxic": False,
        "redacted": True,
    }


def test_the_first_release_of_wildchat_has_ids_and_no_people():
    row = {"conversation_id": "abc", "conversation": [U, A], "toxic": True}
    conversation = convert(row, None, "x").conversation
    assert (conversation.id, conversation.user, conversation.meta["toxic"]) == ("abc", None, True)


def test_an_lmsys_row_is_toxic_where_any_message_was_flagged():
    row = {"conversation_id": "q", "model": "vicuna-13b", "conversation": [U, A], "language": "English"}
    flagged = {**row, "openai_moderation": [{"flagged": False}, {"flagged": True}]}
    clean = {**row, "openai_moderation": [{"flagged": False}]}
    assert convert(flagged, None, "x").conversation.meta["toxic"] is True
    assert convert(clean, None, "x").conversation.meta["toxic"] is False
    assert "toxic" not in convert(row, None, "x").conversation.meta


@pytest.mark.parametrize("name", ["conversations", "items"])
def test_sharegpt_speaks_of_human_and_gpt(name):
    said = [("system", "be kind"), ("human", "hi"), ("gpt", "hello")]
    row = {"id": "s_0", name: [{"from": who, "value": text} for who, text in said]}
    conversation = convert(row, None, "x").conversation
    assert [(t.role, t.text) for t in conversation.turns] == [("user", "hi"), ("assistant", "hello")]
    assert conversation.meta == {"source": "sharegpt", "system": "be kind"}


def test_our_own_records_come_back_as_they_were():
    turns = (Turn("user", "hi", {"p_end": 0.1}), Turn("assistant", "yo"))
    kept = Conversation("a", turns, intent="You are a user", user="p", stop="end", ended=True, meta={"k": [1]})
    assert convert(to_record(kept), None, "x").conversation == kept


def test_all_real_logs_are_read_with_few_rejections(data: Path):
    rejected: Counter[str] = Counter()
    found = 0
    for path in sorted(data.glob("*.jsonl.gz")):
        for line in read_rows(path):
            try:
                imported = convert(line.row, None, f"{path.stem}:{line.number}")
            except Rejected as error:
                rejected[error.reason] += 1
                continue
            found += 1
            assert imported.conversation.id
            assert set(imported.notes) <= set(NOTES)
    # ten answers in Chatbot Arena and ShareGPT are a zero-width space
    assert found > 35_900
    assert set(rejected) == {"empty turn"}
    assert rejected["empty turn"] <= 10


def test_every_person_of_the_wildchat_fixture_is_an_address_in_a_country(data: Path):
    rows = [line.row for line in read_rows(data / "wildchat1m_schema_fixture.jsonl.gz")]
    conversations = [SOURCES["wildchat"](row).conversation for row in rows]
    assert len({c.id for c in conversations}) == len(rows)
    assert len({c.user for c in conversations}) == 31  # from the README of the data
    assert all(c.ended and c.meta["country"] in (c.user or "") for c in conversations)

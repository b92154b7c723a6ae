"""Rows of raw logs become conversations, or are rejected with a reason."""

import datetime as dt
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from userlm.data.layouts import SOURCES, Gathered, convert, find, guess
from userlm.data.layouts.common import NOTES
from userlm.data.layouts.fields import REASONS, Rejected
from userlm.data.layouts.times import read_time
from userlm.lines import Line
from userlm.rows import from_record, read_rows, to_record
from userlm.types import Conversation, InputError, Turn

U = {"role": "user", "content": "hi"}
A = {"role": "assistant", "content": "hello"}
NOTHING = {"role": "assistant", "content": "\u200b \n"}


def found(*rows: dict[str, Any], source: str | None = None) -> list[tuple[int, str]]:
    """Of each thing that was found its line, and the id of its conversation or the reason why there
    is none."""
    gathered = Gathered()
    said = [
        *find([Line(i, row) for i, row in enumerate(rows, 1)], source, "log", gathered),
        *gathered.found(),
    ]
    return [
        (f.line.number, f.imported.conversation.id if f.imported else f.rejected.reason)
        for f in said
    ]


# --- find -----------------------------------------------------------------------------------------


def test_each_line_of_a_mixture_gives_what_stands_on_it_in_order():
    rows = [
        {"messages": [U, A]},
        {"id": "s", "items": [{"from": "human", "value": "x"}]},
        {"dialog": []},
    ]
    assert found(*rows) == [(1, "log-1"), (2, "s"), (3, "unknown layout")]


def test_a_line_that_could_not_be_read_is_rejected_with_what_is_wrong_there():
    (bad,) = find(
        [Line(7, reason="not JSON", error="is not JSON", raw="{")],
        "messages",
        "log",
        Gathered(),
    )
    assert (bad.line.number, bad.imported, bad.rejected.reason) == (7, None, "not JSON")
    assert str(bad.rejected) == "not JSON: the line is not JSON"


def test_rows_come_out_before_the_next_is_read():
    read: list[int] = []

    def lines():
        for i in (1, 2):
            read.append(i)
            yield Line(i, {"messages": [U, A]})

    assert next(find(lines(), None, "log", Gathered())).line.number == 1
    assert read == [1]


def test_messages_and_spans_wait_for_the_end():
    flat = {"message_id": "m", "message_tree_id": "t", "role": "prompter", "text": "hi"}
    span = {
        "name": "chat",
        "traceId": "abc",
        "attributes": {"gen_ai.prompt": "hi", "gen_ai.completion": "yo"},
    }
    assert found(flat, span, {"id": "c", "messages": [U, A]}) == [
        (3, "c"),
        (1, "t/m"),
        (2, "abc"),
    ]


def test_what_is_nested_too_deep_is_rejected_and_not_a_crash():
    deep: Any = "x"
    for _ in range(50_000):
        deep = [deep]
    assert found(
        {"messages": [U, {**A, "tool_calls": deep}]}, {"messages": [U, A]}
    ) == [
        (1, "wrong type"),
        (2, "log-2"),
    ]


def test_a_rejection_quotes_no_more_than_a_few_lines():
    (one,) = find(
        [Line(1, {"messages": [{"role": "x" * 100_000}]})], None, "log", Gathered()
    )
    assert len(str(one.rejected)) == len("unknown role: ") + 500
    assert str(one.rejected).startswith("unknown role: messages[0].role is 'xxx")


def test_a_source_that_is_not_known_is_an_error_before_anything_is_read():
    with pytest.raises(InputError, match="known are userlm, tau2"):
        next(find([], "discord", "log", Gathered()))
    with pytest.raises(InputError, match="`find`"):
        convert({"message_id": "m"}, "oasst", "x")
    assert len(set(SOURCES)) == len(SOURCES) == 13


# --- messages -------------------------------------------------------------------------------------


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


def test_the_case_of_a_role_and_white_space_around_it_do_not_matter():
    row = {"messages": [{**U, "role": "User"}, {**A, "role": " ASSISTANT "}]}
    assert [t.role for t in convert(row, None, "x").conversation.turns] == [
        "user",
        "assistant",
    ]


def test_turns_of_one_side_in_a_row_are_joined_with_a_blank_line_and_counted():
    row = {"messages": [U, {"role": "user", "content": "there?"}, U, A, A]}
    imported = convert(row, "messages", "x")
    assert [t.text for t in imported.conversation.turns] == [
        "hi\n\nthere?\n\nhi",
        "hello\n\nhello",
    ]
    assert imported.notes == {"joined turns": 3}


def test_an_opening_assistant_turn_is_kept_and_counted():
    imported = convert({"messages": [A, U, A]}, None, "x")
    assert [t.role for t in imported.conversation.turns] == [
        "assistant",
        "user",
        "assistant",
    ]
    assert imported.notes == {"opening assistant turn": 1}


def test_system_and_tool_messages_go_to_meta_and_are_counted():
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "clock"}}],
    }
    system = {"role": "system", "content": "be kind"}
    developer = {"role": "developer", "content": "be brief"}
    tool = {"role": "tool", "content": "12:00"}
    imported = convert({"messages": [system, developer, U, call, tool, A]}, None, "x")
    assert [t.text for t in imported.conversation.turns] == ["hi", "hello"]
    assert imported.conversation.meta["system"] == "be kind\n\nbe brief"
    assert (
        "clock" in imported.conversation.meta["tool"]
        and "12:00" in imported.conversation.meta["tool"]
    )
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


@pytest.mark.parametrize(
    "mark", [{"fragment": True}, {"truncated": True}, {"complete": False}, {"tree": 0}]
)
def test_a_piece_or_a_path_in_a_tree_has_no_observed_ending(mark):
    assert not convert({"messages": [U, A], **mark}, None, "x").conversation.ended


@pytest.mark.parametrize(
    "blank",
    [NOTHING, {"role": "assistant", "content": None}, {"role": "user", "content": ""}],
)
def test_a_conversation_is_cut_before_an_empty_turn_if_the_user_had_an_answer_before(
    blank,
):
    imported = convert({"messages": [U, A, U, blank, A, U, A]}, None, "x")
    assert [t.text for t in imported.conversation.turns] == ["hi", "hello", "hi"]
    assert imported.notes == {"cut at an empty turn": 1}
    assert not imported.conversation.ended
    whole = convert({"messages": [U, A, blank]}, None, "x")
    assert [t.text for t in whole.conversation.turns] == ["hi", "hello"]
    assert not whole.conversation.ended


@pytest.mark.parametrize(
    "before", [[], [U], [A], [A, U], [{"role": "system", "content": "be kind"}, U]]
)
def test_an_empty_turn_with_no_answer_before_it_is_a_rejection(before):
    with pytest.raises(
        Rejected, match=rf"messages\[{len(before)}\]\.content has no words"
    ):
        convert({"messages": [*before, NOTHING, U, A]}, None, "x")


def test_our_export_for_the_hub_comes_back_as_it_was():
    meta = {"source": "wildchat", "tools": ["clock"], "score": 0.5, "error": "of a run"}
    row = {
        "id": "a",
        "messages": [U, A],
        "intent": "greet",
        "user": "p",
        "ended": False,
        "meta": json.dumps(meta),
    }
    imported = convert(row, None, "x")
    kept = {key: meta[key] for key in ("source", "tools", "score")}
    turns = (Turn("user", "hi"), Turn("assistant", "hello"))
    assert imported.conversation == Conversation(
        "a", turns, "greet", "p", ended=False, meta=kept
    )
    assert imported.notes == {"fields left out": 1}
    nothing = {**row, "intent": None, "user": None, "ended": True, "meta": "{}"}
    assert convert(nothing, None, "x").conversation == Conversation(
        "a", turns, ended=True
    )


def test_messages_in_both_fields_are_read_from_one_and_the_others_counted():
    answer = {"role": "model", "parts": [{"text": "the answer"}]}
    imported = convert({"messages": [U], "contents": [answer]}, None, "x")
    assert imported.conversation.user_turns == ("hi",)
    assert imported.notes == {"fields left out": 1}
    assert convert({"contents": [U, A]}, None, "x").notes == {}


def test_ids_of_more_than_64_bits_stay_apart(tmp_path):
    numbers = (2**64 - 1, 2**64, 2**64 + 1, 10**38 + 1, -(2**63) - 1, 2**63)
    rows = [{"id": number, "user": number, "messages": [U, A]} for number in numbers]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [convert(line.row, None, "x").conversation for line in read_rows(path)]
    names = [str(number) for number in numbers]
    assert [each.id for each in found] == [each.user for each in found] == names


def test_a_log_does_not_say_what_a_user_model_is_told_but_an_export_of_ours_does():
    told = "About the user: country Chile."
    raw = convert({"messages": [U, A], "condition": told}, None, "x")
    assert (raw.conversation.system, raw.conversation.meta) == (None, {})
    assert raw.notes == {"fields left out": 1}
    row = {"messages": [U, A], "meta": json.dumps({"condition": told, "a": 1})}
    raw = convert(row, None, "x")
    assert (raw.conversation.system, raw.conversation.meta) == (None, {"a": 1})
    assert raw.notes == {"fields left out": 1}
    columns = {"id": "x", "user": None, "intent": None, "ended": True}
    exported = convert({**row, **columns}, None, "x")
    assert (exported.conversation.system, exported.notes) == (told, {})


def test_an_ending_is_not_believed_where_the_user_spoke_last():
    assert not convert(
        {"messages": [U, A, U], "ended": True}, None, "x"
    ).conversation.ended
    assert not convert(
        {"messages": [U, A, NOTHING], "ended": True}, None, "x"
    ).conversation.ended
    conversation = convert(
        {"messages": [U, A], "ended": "yes", "meta": "none"}, None, "x"
    ).conversation
    assert conversation.ended  # by the turns alone
    assert conversation.meta == {"ended": "yes", "meta": "none"}


def test_an_intent_that_is_no_text_is_left_out_and_counted():
    imported = convert({"messages": [U, A], "intent": ["greet"]}, None, "x")
    assert imported.conversation.intent is None
    assert imported.notes == {"fields left out": 1}


def test_a_log_that_stops_on_the_user_has_no_observed_ending():
    assert not convert(
        {"messages": [U, A, U], "fragment": False}, None, "x"
    ).conversation.ended


def test_scalar_extras_go_to_meta_and_lists_are_counted():
    imported = convert(
        {"messages": [U, A], "persona": ["a"], "score": 0.5, "note": None}, None, "x"
    )
    assert imported.conversation.meta == {"score": 0.5}
    assert imported.notes == {"fields left out": 1}


# --- what was shown to the other side is a turn ---------------------------------------------------


def said(*messages: dict[str, Any]) -> list[tuple[str, str]]:
    """The turns of a row of messages."""
    row = {"messages": list(messages)}
    turns = convert(row, "messages", "x").conversation.turns
    return [(turn.role, turn.text) for turn in turns]


@pytest.mark.parametrize(
    "refused",
    [
        {"content": None, "refusal": "Not that."},
        {"content": " ", "refusal": "Not that."},
        {"refusal": "Not that."},
        {"content": [{"type": "refusal", "refusal": "Not that."}]},
        {"content": None, "audio": {"id": "a1", "transcript": "Not that."}},
        {"parts": [{"text": "Not that."}]},
    ],
)
def test_a_refusal_is_what_the_assistant_said(refused):
    messages = ({**U, "content": "open it"}, {"role": "assistant", **refused}, U, A)
    assert said(*messages) == [
        ("user", "open it"),
        ("assistant", "Not that."),
        ("user", "hi"),
        ("assistant", "hello"),
    ]


@pytest.mark.parametrize("name", ["conversations", "conversation"])
def test_other_fields_with_words_beside_the_messages_are_counted(name):
    row = {name: [U, A], "items": [U, A], "answer": "the long answer", "note": ""}
    imported = convert({**row, "language": "English", "turn": 1}, None, "x")
    assert imported.notes == {"fields left out": 2}


TOOL = {"type": "tool-invocation", "toolInvocation": {"toolName": "stock"}}
FILE = {"type": "file", "mediaType": "image/png", "url": "https://example.org/a.png"}


@pytest.mark.parametrize("part", [TOOL, FILE])
@pytest.mark.parametrize("field", ["content", "text", "value"])
def test_words_beside_parts_that_have_none_are_what_was_said(part, field):
    messages = [
        {**U, "parts": []},
        {"role": "assistant", field: "red", "parts": [part]},
    ]
    assert said(*messages, U, A)[:2] == [("user", "hi"), ("assistant", "red")]


@pytest.mark.parametrize(
    ("message", "text", "notes"),
    [
        ({"parts": [{"text": "red"}, {"text": "blue"}]}, "red\n\nblue", {}),
        (
            {"parts": [{"text": "red"}, {"text": "blue"}], "content": "redblue"},
            "red\n\nblue",
            {},
        ),
        ({"content": "It is red.", "text": "red."}, "It is red.", {}),
        ({"content": "Nothing", "refusal": "No"}, "Nothing\n\nNo", {}),
        ({"content": "Not that.", "refusal": "Not that."}, "Not that.", {}),
        ({"content": "red", "text": "blue"}, "red", {"parts left out": 1}),
        ({"content": "red", "data": {"rows": 2}, "message": None}, "red", {}),
    ],
)
def test_what_other_fields_say_is_said_once_and_what_they_say_otherwise_is_counted(
    message, text, notes
):
    imported = convert({"messages": [U, {"role": "assistant", **message}]}, None, "x")
    assert imported.conversation.turns[1].text == text
    assert imported.notes == notes


def test_each_thought_of_a_message_is_kept_once():
    thought = {"reasoning_content": "hm", "reasoning": "hm", "thinking": "so"}
    imported = convert({"messages": [U, {**A, **thought}]}, None, "x")
    assert imported.conversation.meta == {"thought": "hm\n\nso"}
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hello"}]
    message = {"role": "assistant", "content": parts, "reasoning": "well"}
    imported = convert({"messages": [U, message]}, None, "x")
    assert imported.conversation.meta == {"thought": "hm\n\nwell"}


def test_a_field_of_the_row_stands_before_the_messages_of_that_name():
    system = {"role": "system", "content": "be brief"}
    for beside, kept in (("be kind", "be kind\n\nbe brief"), ("be brief",) * 2):
        for name in ("messages", "conversations"):
            row = {"system": beside, name: [system, U, A]}
            assert convert(row, None, "x").conversation.meta["system"] == kept


CALLED = {"type": "tool_use", "id": "t1", "name": "stock", "input": {"item": "screw"}}
RETURNED = {"type": "tool_result", "tool_use_id": "t1", "content": "40 in a box"}


def test_the_result_of_a_tool_is_not_a_turn_of_the_user():
    look = {"role": "assistant", "content": [{"type": "text", "text": "Wait."}, CALLED]}
    found = {"role": "user", "content": [RETURNED]}
    imported = convert({"messages": [U, look, found, A, U]}, None, "x")
    assert [turn.text for turn in imported.conversation.turns] == [
        "hi",
        "Wait.\n\nhello",
        "hi",
    ]
    assert "screw" in imported.conversation.meta["tool"]
    assert "40 in a box" in imported.conversation.meta["tool"]
    assert imported.notes == {"joined turns": 1, "tool to meta": 2}
    silent = {"role": "assistant", "content": [CALLED]}
    assert said(U, silent, found, A) == [("user", "hi"), ("assistant", "hello")]


def test_a_tool_that_ran_before_the_answer_leaves_no_call_open():
    searched = [
        {"type": "server_tool_use", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "content": []},
        {"type": "text", "text": "Found it."},
    ]
    row = {"messages": [U, {"role": "assistant", "content": searched}]}
    conversation = convert(row, None, "x").conversation
    assert (conversation.turns[-1].text, conversation.ended) == ("Found it.", True)


def test_what_the_user_writes_beside_the_result_of_a_tool_is_a_turn():
    call = {"role": "assistant", "content": [CALLED]}
    both = {"role": "user", "content": [RETURNED, {"type": "text", "text": "hurry"}]}
    assert said(U, A, U, call, both, A)[-2:] == [
        ("user", "hi\n\nhurry"),
        ("assistant", "hello"),
    ]


def test_the_tools_of_gemini_and_of_the_responses_api_are_no_turns_either():
    gemini = [
        {"role": "user", "parts": [{"text": "hi"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "stock", "args": {}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "stock"}}]},
        {
            "role": "model",
            "parts": [{"text": "hm", "thought": True}, {"text": "hello"}],
        },
    ]
    responses = [
        {"type": "message", **U},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "stock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "t1", "output": "40 in a box"},
        {"type": "message", **A},
    ]
    turns = [("user", "hi"), ("assistant", "hello")]
    assert said(*gemini) == said(*responses) == turns
    row = convert({"contents": gemini}, None, "x")
    assert [turn.text for turn in row.conversation.turns] == ["hi", "hello"]


def test_a_message_of_thought_alone_was_not_shown():
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}
    field = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    turns = [("user", "hi"), ("assistant", "hello")]
    assert said(U, thought, A) == said(U, field, A) == turns


def test_words_beside_pictures_sounds_and_files_are_kept():
    content = [
        {"type": "input_text", "text": "what is"},
        {"type": "input_image", "image_url": "https://example.org/a.png"},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f1"}},
        "this",
    ]
    imported = convert(
        {"messages": [{"role": "user", "content": content}, A]}, None, "x"
    )
    assert imported.conversation.turns[0].text == "what is\n\nthis"
    assert imported.notes == {"parts left out": 3}


@pytest.mark.parametrize("name", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize("fields", [("role", "content"), ("from", "value")])
@pytest.mark.parametrize(
    ("user", "assistant"),
    [
        ("user", "assistant"),
        ("human", "gpt"),
        ("Human", "AI"),
        ("user", "model"),
        ("human", "bot"),
        ("USER", "CHATBOT"),
    ],
)
def test_roles_and_fields_may_have_any_of_the_usual_names(
    name, fields, user, assistant
):
    role, content = fields
    messages = [{role: user, content: "hi"}, {role: assistant, content: "hello"}]
    conversation = convert({"id": "c", name: messages}, None, "x").conversation
    assert conversation.turns == (Turn("user", "hi"), Turn("assistant", "hello"))


@pytest.mark.parametrize(
    ("row", "reason", "named"),
    [
        (
            {"messages": [U, {"role": "narrator", "content": "x"}]},
            "unknown role",
            "messages[1].role is 'narrator'",
        ),
        (
            {"messages": [U, {"content": "x"}]},
            "unknown role",
            "messages[1].role is None",
        ),
        (
            {"messages": [U, {"role": "assistant", "content": " \n"}]},
            "empty turn",
            "messages[1].content",
        ),
        (
            {"messages": [U, {"role": "assistant", "content": "\u200b"}]},
            "empty turn",
            "messages[1].content",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "empty turn",
            "messages[0].content",
        ),
        ({"messages": [A]}, "no user turn", "user"),
        ({"messages": []}, "no messages", "'messages'"),
        ({"messages": "hi"}, "wrong type", "'messages'"),
        ({"messages": ["hi"]}, "wrong type", "messages[0]"),
        (
            {"messages": [{"role": "user", "content": True}]},
            "wrong type",
            "messages[0].content",
        ),
        ({"messages": [U, A], "id": {}}, "wrong type", "'id'"),
        ({"dialog": [], "name": "x"}, "unknown layout", "dialog, name"),
        (
            {"turns": [{"role": "system", "text": "x"}]},
            "unknown role",
            "turns[0].role is 'system'",
        ),
        ({"turns": [{"role": "user", "text": " "}]}, "empty turn", "turns[0].text"),
        ({"turns": [{"role": "user", "text": 4}]}, "wrong type", "turns[0].text"),
        ({"turns": [{"role": "user", "text": "a"}] * 2}, "wrong type", "turns[1]"),
        ({"turns": []}, "no messages", "'turns'"),
        ({"turns": [{"role": "assistant", "text": "x"}]}, "no user turn", "user"),
        (
            {"conversations": [{"from": "alien", "value": "x"}]},
            "unknown role",
            "conversations[0].from is 'alien'",
        ),
        (
            {"conversation_id": "a", "conversation": None},
            "no messages",
            "'conversation'",
        ),
        (
            {"conversation_hash": "a", "conversation": [U], "country": [3]},
            "wrong type",
            "'country'",
        ),
        (
            {"conversation_hash": "a", "conversation": [U], "toxic": "no"},
            "wrong type",
            "'toxic'",
        ),
        (
            {"conversation_hash": "a", "conversation": [U], "model": {}},
            "wrong type",
            "'model'",
        ),
        (
            {"conversation_hash": "a", "conversation": [U, None]},
            "wrong type",
            "conversation[1]",
        ),
        (
            {"conversation_id": "a", "conversation": [U], "redacted": 0},
            "wrong type",
            "'redacted'",
        ),
    ],
)
def test_what_cannot_be_mended_is_rejected_with_a_reason_and_the_field(
    row, reason, named
):
    with pytest.raises(Rejected) as caught:
        convert(row, None, "x")
    assert caught.value.reason == reason
    assert reason in REASONS
    assert str(caught.value).startswith(f"{reason}: ")
    assert named in str(caught.value)


def test_a_field_item_of_a_log_makes_no_item_that_cannot_be_read():
    row = {"messages": [U, A], "item": "role"}
    imported = convert(row, None, "x")
    assert from_record(to_record(imported.conversation)).meta == {}
    assert imported.notes["fields left out"] == 1


def test_the_layout_is_guessed_from_the_fields():
    turn = {"role": "user", "content": "x", "toxic": False}
    assert guess({"messages": []}) == "messages"
    assert guess({"conversation_hash": "h", "conversation": [turn]}) == "wildchat"
    assert (
        guess({"conversation_id": "h", "conversation": [turn], "toxic": False})
        == "wildchat"
    )
    assert (
        guess({"conversation_id": "h", "conversation": [turn], "redacted": False})
        == "lmsys"
    )
    assert guess({"id": "h", "conversations": []}) == "sharegpt"
    assert guess({"id": "h", "items": []}) == "sharegpt"
    assert guess({"id": "h", "turns": []}) == "userlm"
    assert guess({"question_id": "h", "conversation_a": []}) == "arena"
    assert guess({"id": 1, "prompt": "x", "response_a": "y"}) == "arena"
    assert guess({"conversation_id": "c0", "conversation_history": []}) == "prism"
    assert guess({"message_tree_id": "t", "prompt": {}}) == "oasst"
    assert guess({"message_id": "t", "parent_id": None}) == "oasst"
    assert guess({"resourceSpans": []}) == "otel"
    assert guess({"name": "chat", "context": {}, "attributes": {}}) == "otel"
    assert guess({"name": "chat", "traceId": "1", "attributes": []}) == "otel"


@pytest.mark.parametrize(
    "more",
    [
        {"id": "s", "user_id": "u"},
        {"id": "s", "user": "u", "toxic": False, "redacted": False},
        {"id": "s", "user": "u", "conversation_id": "c", "turn": 1},
    ],
)
def test_a_log_of_ones_own_with_a_field_conversation_keeps_its_people(more):
    row = {"conversation": [U, A], **more}
    conversation = convert(row, None, "x").conversation
    assert (conversation.id, conversation.user) == ("s", "u")
    assert "source" not in conversation.meta


def test_words_before_a_tool_call_with_its_result_are_no_last_answer():
    tool = {"type": "tool-stock", "state": "output-available", "output": {"n": 5}}
    text = {"type": "text", "text": "Let me look."}
    for more in ([], [{"type": "step-start"}]):
        answer = {"role": "assistant", "parts": [text, tool, *more]}
        conversation = convert({"messages": [U, answer]}, None, "x").conversation
        assert conversation.turns[1].text == "Let me look." and not conversation.ended


def test_an_empty_column_of_people_is_no_log_of_ones_own():
    row = {"conversation_hash": "h", "conversation": [U, A], "user": None}
    assert guess(row) == "wildchat" == guess({**row, "user": ""})
    own = {"conversation_id": "h", "conversation": [U, A], "user_id": None}
    assert guess(own) == "messages"
    assert guess({**own, "openai_moderation": []}) == "lmsys"


def test_turns_beside_messages_are_their_number():
    row = {"messages": [U, A], "turns": 2}
    conversation = convert(row, None, "x").conversation
    assert len(conversation.turns) == 2 and conversation.meta == {"turns": 2}


@pytest.mark.parametrize(
    ("state", "ended"),
    [("output-available", True), ("output-error", True), ("input-available", False)],
)
def test_a_tool_call_with_its_result_is_no_pending_one(state, ended):
    new = {"type": "tool-stock", "state": state, "input": {}, "output": {"n": 5}}
    older = {"output-available": "result", "output-error": "result"}.get(state, "call")
    old = {"toolName": "stock", "state": older, "result": 5}
    text = {"type": "text", "text": "Five."}
    answers = [
        {"role": "assistant", "parts": [{"type": "step-start"}, new, text]},
        {
            "role": "assistant",
            "parts": [{"type": "tool-invocation", "toolInvocation": old}, text],
        },
        {"role": "assistant", "content": "Five.", "toolInvocations": [old]},
    ]
    for answer in answers:
        conversation = convert({"messages": [U, answer]}, None, "x").conversation
        assert conversation.turns[1].text == "Five."
        assert conversation.ended is ended
        assert "stock" in conversation.meta["tool"]


def chunk(delta, reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"object": "chat.completion.chunk", "choices": [choice]}


OF_CHAT = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "hel"}),
    chunk({"content": "lo"}),
    chunk({}, "stop"),
    {"object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 3}},
]
OF_ANTHROPIC = [
    {"type": "message_start", "message": {"role": "assistant", "content": []}},
    {"type": "ping"},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hel"}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "lo"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    {"type": "message_stop"},
]
OF_RESPONSES = [
    {"type": "response.created", "response": {"status": "in_progress"}},
    {"type": "response.output_text.delta", "delta": "hel"},
    {"type": "response.output_text.delta", "delta": "lo"},
    {"type": "response.completed", "response": {"status": "completed"}},
]


def events(chunks):
    lines = [
        f"event: x\ndata: {json.dumps(one, ensure_ascii=False)}\n" for one in chunks
    ]
    return "\n".join([*lines, "data: [DONE]\n"])


def of_gemini(text, **more):
    parts = [{"text": text}]
    return {"candidates": [{"content": {"role": "model", "parts": parts}, **more}]}


OF_AZURE = [{"choices": [], "object": "", "prompt_filter_results": []}, *OF_CHAT]
OF_GEMINI = [of_gemini("hel"), of_gemini("lo", finishReason="STOP")]
OF_MISTRAL = [
    chunk({"content": [{"type": "text", "text": "hel"}]}),
    chunk({"content": "lo"}, "stop"),
]
OF_COMPLETIONS = [
    {"object": "text_completion", "choices": [{"text": text, "finish_reason": reason}]}
    for text, reason in (("hel", None), ("lo", "stop"))
]
OF_SAMPLES = [
    {**one, "choices": [*one["choices"], *other["choices"]]}
    for one, other in zip(
        OF_CHAT[:4],
        [
            {"choices": [{"index": 1, "delta": {"content": "x"}}]},
            {"choices": []},
            {"choices": [{"index": 1, "delta": {"content": "y"}}]},
            {"choices": []},
        ],
        strict=True,
    )
]
OF_LANGCHAIN = [
    {"type": "AIMessageChunk", "content": "hel", "response_metadata": {}},
    {
        "type": "AIMessageChunk",
        "content": "lo",
        "response_metadata": {"finish_reason": "stop"},
    },
]
OF_OLLAMA = [
    {"model": "m", "message": {"role": "assistant", "content": text}, "done": False}
    for text in ("hel", "lo")
] + [{"model": "m", "message": {"content": ""}, "done": True, "done_reason": "stop"}]
STREAMS = (
    OF_OLLAMA,
    *(OF_CHAT, OF_ANTHROPIC, OF_RESPONSES, OF_AZURE, OF_GEMINI, OF_MISTRAL),
    *(OF_COMPLETIONS, OF_SAMPLES, OF_LANGCHAIN),
)


@pytest.mark.parametrize(
    "answer",
    [
        {"response": "hello"},
        {"completion": "hello"},
        {"response": json.dumps({"choices": [{"message": A}]})},
        {"response": {"choices": [{"index": 0, "message": A}]}},
        {"choices": [{"text": "hello", "finish_reason": "stop"}]},
        {"output": [{"type": "message", **A}]},
        {"output": [U, A]},
        {"response": {"role": "assistant", "content": ""}, "output": "hello"},
        {"response": [A]},
        {
            "response": {
                "candidates": [
                    {"content": {"role": "model", "parts": [{"text": "hello"}]}}
                ]
            }
        },
        {
            "choices": [
                {"message": {**A, "content": [{"type": "text", "text": "hello"}]}}
            ]
        },
        {"output": {"role": "assistant", "content": "hello"}},
        {"response": {"output": [{"type": "message", **A}]}},
        {"response": {"model": "m", "message": A}},
        {"response": {"type": "ai", "content": "hello"}},
        {"response": json.dumps([{"type": "text", "text": "hello"}])},
        {"response": [{"type": "text", "text": "hello"}]},
        {"response": [{"type": "step-start"}, {"type": "text", "text": "hello"}]},
        {
            "response": json.dumps(
                [{"type": "source", "url": "u"}, {"type": "text", "text": "hello"}]
            )
        },
        {"choices": [A]},
        {"output": {"messages": [U, A]}},
        {"response": {"text": "hello", "finishReason": "stop", "usage": {}}},
        {"response": {"model": "m", "response": "hello", "done": True}},
        {"response": {"generated_text": "hello"}},
        {"output": [{"generated_text": "hello"}]},
        {"response": {"content": "hello"}},
        {"response": ["hello"]},
        {"output": {"generations": [[{"text": "hello", "message": {"kwargs": {}}}]]}},
        {"output": {"generations": [[{"text": "", "message": A}]]}},
        {"response": {"type": "AIMessageChunk", "content": "hello"}},
        {"response": [{"type": "AIMessageChunk", "content": "hello"}]},
        *(
            {"response": wrap(chunks)}
            for chunks in STREAMS
            for wrap in (list, json.dumps, events)
        ),
    ],
)
def test_the_answer_beside_the_messages_of_a_call_is_its_last_turn(answer):
    conversation = convert({"messages": [U], **answer}, None, "x").conversation
    assert conversation.turns == (Turn("user", "hi"), Turn("assistant", "hello"))
    assert conversation.ended and not conversation.meta
    whole = convert({"messages": [U, A], **answer}, None, "x").conversation
    assert len(whole.turns) == 2


@pytest.mark.parametrize(
    "beside",
    [
        {"response": ""},
        {"output": 5},
        {"choices": []},
        {"response": {"id": "r"}},
        {"choices": [{"label": "A", "text": "Rome"}, {"label": "B", "text": "Oslo"}]},
        {"response": {"choices": [{"message": {"role": "assistant", "content": ""}}]}},
        {"response": ["a", "b"]},
        {"choices": 3},
        {"response": {"choices": 5}},
        {"response": {"candidates": True}},
        *(
            {"response": wrap(returned)}
            for wrap in (json.dumps, dict)
            for returned in (
                {"error": {"message": "Rate limit reached", "code": 429}},
                {"choices": [{"message": {"role": "assistant", "content": ""}}]},
                {"choices": [{"finish_reason": "content_filter"}]},
                {"type": "message", "role": "assistant", "content": []},
                {"promptFeedback": {"blockReason": "SAFETY"}},
                {"candidates": [{"finishReason": "SAFETY"}]},
            )
        ),
        {"response": "null"},
        {"response": "{}"},
        {"response": {"type": "tool_result", "content": "hello"}},
        {"response": [{"type": "tool_result", "content": "hello"}]},
        {"response": [chunk({"tool_calls": []})]},
        {"choices": json.dumps([{"message": {"role": "assistant", "content": ""}}])},
        {"output": [U]},
        {"output": json.dumps([U])},
        {"response": json.dumps([{"type": "tool_use", "name": "f", "input": {}}])},
        {"response": json.dumps({"output": [{"type": "function_call", "name": "f"}]})},
        {"response": json.dumps({"object": "response", "output": []})},
        {"response": json.dumps({"role": "assistant", "function_call": {"name": "f"}})},
    ],
)
def test_no_answer_beside_the_messages_is_none(beside):
    conversation = convert({"messages": [U], **beside}, None, "x").conversation
    assert conversation.turns == (Turn("user", "hi"),)


@pytest.mark.parametrize(
    ("beside", "count"),
    [({"response": {"id": "r"}}, 1), ({"output": [5]}, 1), ({"response": "hello"}, 0)],
)
def test_an_object_that_may_be_the_answer_and_is_not_read_is_counted(beside, count):
    found = convert({"messages": [U], **beside}, None, "x")
    assert found.notes.get("answers not read", 0) == count
    whole = convert({"messages": [U, A], **beside}, None, "x")
    assert "answers not read" not in whole.notes


@pytest.mark.parametrize(
    "answer",
    [
        {
            "type": "ai",
            "content": "It",
            "response_metadata": {"finish_reason": "length"},
        },
        {
            "type": "ai",
            "content": "It",
            "response_metadata": {"stop_reason": "max_tokens"},
        },
        [chunk({"content": "It"}), chunk({}, "length")],
        events(
            [
                *OF_ANTHROPIC[:5],
                {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}},
            ]
        ),
        [
            *OF_RESPONSES[:4],
            {"type": "response.incomplete", "response": {"status": "incomplete"}},
        ],
    ],
)
def test_an_answer_in_chunks_or_of_langchain_that_was_cut_is_no_end(answer):
    conversation = convert(
        {"messages": [U], "response": answer}, None, "x"
    ).conversation
    assert len(conversation.turns) == 2 and not conversation.ended


def answered(**beside):
    return convert({"messages": [U], **beside}, None, "x").conversation


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_only_line_ends_of_events_end_a_chunk(mark):
    said = f"hel{mark}lo"
    for text in (
        events([chunk({"content": said}, "stop")]).replace("\n", end)
        for end in ("\n", "\r\n", "\r")
    ):
        assert answered(response=text).turns[1].text == said


@pytest.mark.parametrize("chunks", STREAMS[:-1])
def test_a_stream_that_broke_off_is_no_end(chunks):
    begun = next(n for n, one in enumerate(chunks, 1) if '"hel"' in json.dumps(one))
    lines = events(chunks[:begun]).removesuffix("data: [DONE]\n")
    half = "data: " + json.dumps(chunks[begun])[:-9]
    marks = (half, "d", "dat", "event", "[truncated]", "...")
    for answer in (chunks[:begun], lines, *(f"{lines}{mark}" for mark in marks)):
        conversation = answered(response=answer)
        assert conversation.turns[1].text == "hel" and not conversation.ended


@pytest.mark.parametrize(
    "error",
    [
        {"type": "error", "error": {"type": "overloaded_error"}},
        {"error": {"message": "Overloaded", "code": 529}},
    ],
)
def test_a_stream_with_an_error_is_no_end(error):
    chunks = [chunk({"content": "hel"}), error]
    for answer in (chunks, events(chunks)):
        conversation = answered(response=answer)
        assert conversation.turns[1].text == "hel" and not conversation.ended


def test_calls_and_thoughts_in_chunks_are_kept_aside():
    call = {"index": 0, "function": {"name": "look", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"at": 1}'}}
    of_chat = [
        chunk({"reasoning_content": "I "}),
        chunk({"reasoning_content": "look"}),
        chunk({"content": "Wait."}),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [more]}, "tool_calls"),
    ]
    block, delta = "content_block_start", "content_block_delta"
    of_anthropic = [
        {"type": delta, "index": 0, "delta": {"thinking": "I look"}},
        {"type": delta, "index": 1, "delta": {"text": "Wait."}},
        {
            "type": block,
            "index": 2,
            "content_block": {"type": "tool_use", "name": "look"},
        },
        {"type": delta, "index": 2, "delta": {"partial_json": '{"at":'}},
        {"type": delta, "index": 2, "delta": {"partial_json": " 1}"}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
    ]
    for chunks in (of_chat, of_anthropic):
        conversation = answered(response=chunks)
        assert conversation.turns[1].text == "Wait." and not conversation.ended
        assert conversation.meta["thought"] == "I look"
        called = json.loads(conversation.meta["tool"])
        assert (called["name"], called["arguments"]) == ("look", '{"at": 1}')


def test_several_answers_are_no_chunks_of_one():
    of_gemini_twice = [of_gemini(each, finishReason="STOP") for each in ("a", "b")]
    of_anthropic = [*OF_ANTHROPIC[:4], OF_ANTHROPIC[5]]  # without its reason
    for two in (of_gemini_twice, of_anthropic * 2):
        found = convert({"messages": [U], "response": two}, None, "x")
        assert len(found.conversation.turns) == 1
        assert found.notes["answers not read"] == 1
    odd = [{**OF_ANTHROPIC[2], "index": [{}]}, *OF_ANTHROPIC[3:]]
    assert answered(response=odd).turns[1].text == "hel\n\nlo"


def test_a_stream_of_lines_is_read_or_counted_and_no_turn():
    lines = [json.dumps(one) for one in OF_OLLAMA]
    assert answered(response="\n".join(lines)).turns[1].text == "hello"
    cut = answered(response="\n".join(lines[:2]))
    assert cut.turns[1].text == "hello" and not cut.ended
    of_vercel = '0:"hel"\n0:"lo"\nd:{"finishReason":"stop"}\n'
    for unknown in (of_vercel, events([{"a": 1}])):
        found = convert({"messages": [U], "response": unknown}, None, "x")
        assert len(found.conversation.turns) == 1
        assert found.notes["answers not read"] == 1
    rows = '{"a": 1}\n{"a": 2}'  # which were asked for
    assert answered(response=rows).turns[1].text == rows


@pytest.mark.parametrize(
    "asked",
    [
        [{"question": "Capital?", "choices": [{"text": "Rome"}, {"text": "Oslo"}]}],
        [{"question": "Capital?", "choices": []}],
        [
            {"post": "CEO", "candidates": ["Ann", "Bob"]},
            {"post": "CTO", "candidates": []},
        ],
        [{"error": "typo", "fix": "type"}],
    ],
)
def test_json_that_was_asked_for_is_no_stream(asked):
    assert answered(response=json.dumps(asked)).turns[1].text == json.dumps(asked)


@pytest.mark.parametrize(
    "text", ["data: here\ndata: there", 'data: {"type": "ping"}\n\nA ping.']
)
def test_a_text_that_begins_as_events_do_is_one(text):
    assert answered(response=text).turns[1].text == text


@pytest.mark.parametrize(
    "failed",
    [
        {"status": 429, "text": "Too many requests"},
        {"statusCode": "503", "text": "Unavailable"},
        {"status": "error", "content": "Rate limit reached"},
        {"error": "rate_limit", "text": "Rate limit reached"},
        [{"text": "yes", "score": 0.6}, {"text": "no", "score": 0.4}],
        json.dumps([{"type": "video", "url": "u"}]),
    ],
)
def test_what_a_failed_call_says_and_what_may_be_several_answers_is_no_turn(failed):
    found = convert({"messages": [U], "response": failed}, None, "x")
    assert len(found.conversation.turns) == 1
    assert found.notes["answers not read"] == 1


def test_an_answer_whose_beginning_was_given_is_one_with_its_rest():
    begun = {"role": "assistant", "content": "The answer is ("}
    text = {"type": "text", "text": "42)"}
    answer = {"type": "message", "role": "assistant", "content": [text]}
    for given, ended in (("end_turn", True), ("max_tokens", False)):
        row = {"messages": [U, begun], "response": {**answer, "stop_reason": given}}
        for response in (row["response"], json.dumps(row["response"])):
            conversation = convert(
                {**row, "response": response}, None, "x"
            ).conversation
            assert conversation.turns[1].text == "The answer is (42)"
            assert conversation.ended is ended
    whole = {"role": "assistant", "content": "The answer is (42)"}
    row = {"messages": [U, whole], "response": {**answer, "stop_reason": "end_turn"}}
    row["response"]["content"] = [{"type": "text", "text": "The answer is (42)"}]
    assert told(U, whole, response=row["response"])[0][1:] == ["The answer is (42)"]


@pytest.mark.parametrize(
    "picture",
    [
        {"content": "", "data": "data:image/png;base64,iVBORw0KGgo="},
        {"content": "", "type": "image", "data": "iVBORw0KGgo="},
        {"content": None, "type": "file", "value": "/tmp/x.png"},
    ],
)
def test_a_picture_beside_the_content_is_no_word(picture):
    found = convert({"messages": [U, A, {"role": "user", **picture}, A]}, None, "x")
    assert len(found.conversation.turns) == 2
    assert found.notes["parts left out"] == 1


@pytest.mark.parametrize("missing", ["NULL", "NaN", "<NA>"])
def test_what_a_table_has_for_no_answer_is_none(missing):
    assert len(answered(response=missing).turns) == 1


def test_a_thought_without_words_is_nothing_that_is_kept():
    output = [{"type": "reasoning", "summary": []}, {"type": "message", **A}]
    found = convert({"messages": [U], "output": output}, None, "x")
    assert len(found.conversation.turns) == 2
    assert "thought" not in found.conversation.meta


def test_a_number_beside_the_messages_is_counted_as_an_answer_not_read():
    found = convert({"messages": [U], "response": 42}, None, "x")
    assert len(found.conversation.turns) == 1
    assert found.notes["answers not read"] == 1


def test_the_data_of_a_message_with_words_of_its_own_is_not_its_text():
    data = {"content": "an attachment"}
    row = {"messages": [{"role": "user", "text": "hi", "data": data}, A]}
    assert convert(row, None, "x").conversation.turns[0].text == "hi"


@pytest.mark.parametrize(
    "more",
    [{"providerOptions": {"a": {}}}, {"extras": {"b": 1}}, {"cache_control": {}}],
)
def test_a_text_with_options_is_a_part(more):
    parts = [{"type": "text", "text": "hello", **more}]
    for given in (parts, json.dumps(parts)):
        assert answered(response=given).turns[1].text == "hello"
    for other in ({"id": "name", **more}, {"text": "Name", "required": True}):
        form = json.dumps([{"type": "text", **other}])
        assert answered(response=form).turns[1].text == form


@pytest.mark.parametrize(
    "of_call",
    [
        {"status": "failure"},
        {"status": "error"},
        {"finish_reasons": ["length"]},
        {"finish_reason": "content_filter"},
    ],
)
def test_a_text_beside_a_call_that_failed_or_was_cut_is_no_end(of_call):
    row = {"messages": [U], "response": "hello", **of_call}
    conversation = convert(row, None, "x").conversation
    assert len(conversation.turns) == 2 and not conversation.ended


def test_messages_may_be_json_in_a_text():
    row = {
        "messages": json.dumps([U]),
        "response": json.dumps({"choices": [{"message": A}]}),
    }
    conversation = convert(row, None, "x").conversation
    assert [turn.text for turn in conversation.turns] == ["hi", "hello"]
    with pytest.raises(Rejected, match="must be a list, not str"):
        convert({"messages": "[hi]"}, None, "x")


def test_fields_of_parts_that_are_null_do_not_say_what_the_parts_are():
    empty = dict.fromkeys(
        ("function_call", "function_response", "inline_data", "thought")
    )
    parts = [{**empty, "text": "hello"}]
    answer = {"candidates": [{"content": {"role": "model", "parts": parts}}]}
    asked = {"role": "user", "parts": [{**empty, "text": "hi"}]}
    for given in (answer, json.dumps(answer), parts, json.dumps(parts)):
        conversation = convert(
            {"contents": [asked], "response": given}, None, "x"
        ).conversation
        assert conversation.turns == (Turn("user", "hi"), Turn("assistant", "hello"))
        assert conversation.ended and not conversation.meta
    bedrock = [{"text": "hi", "toolUse": None, "toolResult": None}]
    rows = [{"role": "user", "content": bedrock}, A]
    assert len(convert({"messages": rows}, None, "x").conversation.turns) == 2


def test_the_end_user_of_a_proxy_is_the_person():
    row = {"messages": [U, A], "user": "owner-of-the-key", "end_user": "bob"}
    assert convert(row, None, "x").conversation.user == "bob"
    assert (
        convert({**row, "end_user": ""}, None, "x").conversation.user
        == "owner-of-the-key"
    )


def test_messages_of_langchain_may_be_within_their_data():
    rows = [
        {"type": "human", "data": {"content": "hi", "type": "human"}},
        {"type": "ai", "data": {"content": "hello", "type": "ai", "tool_calls": []}},
    ]
    conversation = convert({"messages": rows}, None, "x").conversation
    assert conversation.turns == (Turn("user", "hi"), Turn("assistant", "hello"))


@pytest.mark.parametrize(
    "field", ["conversation_id", "thread_id", "session_id", "chat_id"]
)
def test_messages_of_several_conversations_are_no_conversation(field):
    items = [{**message, field: n} for n in (1, 2) for message in (U, A)]
    with pytest.raises(Rejected, match=f"are of 2 conversations.*id={field}"):
        convert({"messages": items}, None, "x")
    assert len(convert({"messages": items[:2]}, None, "x").conversation.turns) == 2


def test_an_answer_beside_the_messages_may_be_json_cut_or_behind_a_notice():
    json_answer = {"messages": [U], "response": '{"answer": "Paris"}'}
    assert convert(json_answer, None, "x").conversation.turns[1].text == (
        '{"answer": "Paris"}'
    )
    odd = '[{"type": "button", "text": "Yes"}]'
    given = convert({"messages": [U], "response": odd}, None, "x").conversation
    assert given.turns[1:] == () or given.turns[1].text in (odd, "Yes")
    for cut in (
        {"choices": [{"message": A, "finish_reason": "length"}]},
        {"response": {**A, "stop_reason": "max_tokens"}},
        {"response": {"status": "incomplete", "output": [A]}},
        {
            "output": [
                {"type": "reasoning"},
                {"type": "message", "status": "incomplete", **A},
            ]
        },
        {"response": "hel", "finish_reason": "length"},
        {"messages": [U, A], "finish_reason": "length"},
        {"response": {"output": {"message": A}, "stopReason": "max_tokens"}},
    ):
        assert not convert({"messages": [U], **cut}, None, "x").conversation.ended
    notice = {"messages": [U, {"role": "system", "content": "Be brief."}]}
    found = convert({**notice, "response": "hello"}, None, "x").conversation
    assert len(found.turns) == 2 and found.ended


CALL = {
    "role": "assistant",
    "content": [{"type": "text", "text": "I look."}, {"type": "tool_use", "name": "f"}],
}
RESULT = {"role": "user", "content": [{"type": "tool_result", "content": "1"}]}


@pytest.mark.parametrize(
    ("items", "output", "texts"),
    [
        ([U], [CALL, RESULT, A], ["hi", "I look.\n\nhello"]),
        ([U], [U, CALL, RESULT, A], ["hi", "I look.\n\nhello"]),
        ([U], [CALL, RESULT], ["hi", "I look."]),
        (
            [U],
            [A, {"role": "system", "content": "now billing"}, CALL],
            ["hi", "hello\n\nI look."],
        ),
        (
            [U],
            [A, {"role": "user", "content": "55"}, CALL],
            ["hi", "hello", "55", "I look."],
        ),
        ([{"role": "system", "content": "be brief"}, U], [U, A], ["hi", "hello"]),
        ([U], [{"role": "system", "content": "be brief"}, U, A], ["hi", "hello"]),
        ([U, A, U], [{**U, "id": 7}, CALL], ["hi", "hello", "hi", "I look."]),
        (
            [U],
            [{"role": "user", "content": [{"type": "text", "text": "hi "}]}, A],
            None,
        ),
        ([U], [{"type": "human", "data": {"content": "hi"}}, A], None),
        (
            [U],
            [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
            None,
        ),
        ([U], [{"role": "user", "content": "Hi, shortened"}, A], ["hi", "hello"]),
        # The last words of the user are others there.
        (
            [U, A, {**U, "content": "Context: x\n5"}],
            [U, A, {**U, "content": "5"}, CALL],
            ["hi", "hello", "Context: x\n5", "I look."],
        ),
        # The same words with the next call are no request that was returned.
        ([U, CALL, RESULT], [CALL, RESULT, A], ["hi", "I look.\n\nI look.\n\nhello"]),
        # A greeting, and other last words of the user.
        (
            [A, {**U, "content": "Context: x\n5"}],
            [A, {**U, "content": "5"}, CALL],
            ["hello", "Context: x\n5", "I look."],
        ),
        # A request that ends in the result of a tool, and the thread.
        ([U, CALL, RESULT], [U, CALL, RESULT, A], ["hi", "I look.\n\nhello"]),
        ([U, CALL, RESULT], [A], ["hi", "I look.\n\nhello"]),
        # The state of a thread: all of it.
        (
            [U],
            [{"role": "user", "content": "0"}, CALL, U, A],
            ["0", "I look.", "hi", "hello"],
        ),
    ],
)
def test_of_the_messages_beside_those_of_a_call_only_the_request_is_left_out(
    items, output, texts
):
    row = {"messages": items, "output": output}
    conversation = convert(row, None, "x").conversation
    assert conversation.ended or output[-1] != A
    assert [turn.text for turn in conversation.turns] == (texts or ["hi", "hello"])


@pytest.mark.parametrize("new", [[A], [CALL, RESULT, A]])
def test_calls_that_a_request_has_already_are_not_doubled_and_new_ones_are_kept(new):
    request = [U, CALL, RESULT]
    for returned in [], request:
        row = {"messages": request, "output": [*returned, *new]}
        meta = convert(row, None, "x").conversation.meta
        assert meta["tool"].count("tool_use") == 1 + (CALL in new)


def test_the_system_prompt_of_a_call_is_kept_beside_the_state_of_its_thread():
    system = {"role": "system", "content": "be brief"}
    row = {"messages": [system, U], "output": [{**U, "content": "0"}, A, U, A]}
    found = convert(row, None, "x").conversation
    assert len(found.turns) == 4 and found.meta["system"] == "be brief"


def test_messages_without_a_user_are_no_fault_of_ours():
    items = [A, {"role": "tool", "content": "x"}]
    thread = {"messages": items, "response": [{**A, "content": "0"}, U, A]}
    assert convert(thread, None, "x").conversation.user_turns == ("hi",)
    for beside in {}, {"response": "hello"}:
        with pytest.raises(Rejected, match="user"):
            convert({"messages": items, **beside}, None, "x")


@pytest.mark.parametrize(
    "said",
    [
        {"question": "Capital?", "choices": ["Paris", "Rome"]},
        {"choices": [{"id": "A", "content": "Paris"}]},
        {"candidates": [{"name": "Ann"}]},
        {"name": "Ann", "role": "designer"},
        {"type": "user", "text": "complaint"},
        {"error": "no such order"},
        {"error": {"code": 1}, "ok": False},
        {"type": "bot", "name": "R2D2"},
        {"role": "model", "name": "Naomi"},
        {"candidates": [{"content": {"title": "x"}, "score": 1}]},
        {"message": [{"text": "one"}, {"text": "two"}], "mood": "sad"},
        [{"text": "Ann", "label": "PER"}, {"text": "Paris", "label": "LOC"}],
        [{"reasoning": "because", "answer": "b"}],
        [{"content": "good", "score": 0.9}],
        [{"type": "PER", "text": "Ann"}],
        [
            {"type": "text", "name": "n", "label": "Name"},
            {"type": "email", "label": "M"},
        ],
        [{"type": "heading", "text": "Hi"}, {"type": "text", "text": "We sell eggs."}],
        {"messages": [{"role": "user", "content": "Open?"}, {**A, "content": "Yes."}]},
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Yes?"},
        ],
        [{"name": "x"}],
        ["a"],
        [],
        {"text": "A door.", "choices": [{"id": 1, "message": "Open it"}]},
        {"text": "The end.", "choices": []},
        {"candidates": []},
        [{"type": "resource", "name": "a bucket"}, {"type": "profile", "text": "Ann"}],
        [{"type": "file", "path": "main.py", "why": "the bug"}],
        [{"type": "document", "text": "passport"}],
        [{"type": "tool", "name": "hammer"}],
        [{**A, "content": "Welcome"}, {"role": "customer", "content": "My bill"}],
    ],
)
def test_json_that_was_asked_for_is_the_answer(said):
    row = {"messages": [U], "response": json.dumps(said)}
    conversation = convert(row, None, "x").conversation
    assert conversation.turns[1:] == (Turn("assistant", json.dumps(said)),)
    assert conversation.ended


def test_a_conversation_of_ones_own_has_the_id_of_its_field():
    row = {"conversation_id": "c1", "user_id": "u1", "conversation": [U, A]}
    found = convert(row, None, "x").conversation
    assert (found.id, found.user) == ("c1", "u1")
    del row["user_id"]
    found = convert(row, None, "x").conversation
    assert found.id == "c1" and "source" not in found.meta


@pytest.mark.parametrize(
    ("last", "ended"),
    [("system", True), ("thinking", True), ("tool", False), ("user", False)],
)
def test_a_notice_of_the_system_after_the_last_answer_is_no_turn(last, ended):
    row = {"messages": [U, A, {"role": last, "content": "The chat was closed."}]}
    assert convert(row, None, "x").conversation.ended is ended


@pytest.mark.parametrize(("said", "text"), [(1, "1"), (12.0, "12"), (1.5, "1.5")])
def test_a_message_may_be_a_number(said, text):
    row = {"messages": [{"role": "user", "content": said}, A]}
    assert convert(row, None, "x").conversation.turns[0].text == text


def test_the_thoughts_in_our_own_records_are_not_speech() -> None:
    said = "<think>hm</think>yes"
    person, answer = {"role": "user", "text": said}, {"role": "assistant", "text": said}
    imported = convert({"id": "a", "turns": [person, answer]}, "userlm", "x")
    asked, answered = imported.conversation.turns
    assert (asked.text, asked.meta) == (said, {})
    assert (answered.text, answered.meta) == ("yes", {"thought": "hm"})
    assert imported.notes == {"thought to meta": 1}
    only = {"role": "assistant", "text": "<think>hm</think>"}
    with pytest.raises(Rejected, match="only a thought"):
        convert({"id": "a", "turns": [person, only]}, "userlm", "x")


def test_an_empty_thought_leaves_no_tags() -> None:
    answer = {"role": "assistant", "content": "<think>\n</think>yes"}
    messages = [{"role": "user", "content": "hi"}, answer]
    imported = convert({"id": "a", "messages": messages}, "messages", "x")
    assert imported.conversation.turns[1].text == "yes"


def test_an_unknown_source_names_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'wildchat'"):
        convert({"messages": [U, A]}, "wildchta", "x")


def test_a_wildchat_row_keeps_who_where_and_when_and_not_the_scores():
    said = {
        "country": "Chile",
        "hashed_ip": "f00",
        "language": "English",
        "toxic": False,
        "turn_identifier": 42,
    }
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


@pytest.mark.parametrize("odd", [None, "x", 7, [U]])
def test_behind_an_empty_turn_of_wildchat_there_may_be_anything(odd):
    said = {
        "hashed_ip": "f00",
        "country": "Chile",
        "turn_identifier": 4,
        "language": "English",
    }
    row = {
        "conversation_hash": "abc",
        "conversation": [{**U, **said}, {**A, **said}, NOTHING, odd],
    }
    imported = convert(row, None, "x")
    assert [t.text for t in imported.conversation.turns] == ["hi", "hello"]
    assert (imported.conversation.id, imported.conversation.user) == (
        "abc-4",
        "f00/Chile",
    )
    assert imported.conversation.meta["language"] == "English"
    assert imported.notes == {"cut at an empty turn": 1}


def test_the_first_release_of_wildchat_has_ids_and_no_people():
    row = {"conversation_id": "abc", "conversation": [U, A], "toxic": True}
    conversation = convert(row, None, "x").conversation
    assert (conversation.id, conversation.user, conversation.meta["toxic"]) == (
        "abc",
        None,
        True,
    )


def test_a_wildchat_row_of_4_8m_may_hold_system_turns_and_facts_in_its_turns_only():
    facts = {
        "temperature": 1.0,
        "top_p": 1.0,
        "openai_id": None,
        "created": 1,
        "token_counter": 3,
        "usage": None,
    }
    said = {
        **U,
        **facts,
        "country": "Peru",
        "state": "Lima",
        "hashed_ip": "f00",
        "turn_identifier": 7,
    }
    row = {
        "conversation_hash": "abc",
        "model": "o1",
        "timestamp": dt.datetime(2025, 1, 2),
        "conversation": [
            {
                "role": "system",
                "content": "be kind",
                "turn_identifier": None,
                "language": None,
            },
            {**said, "language": "Spanish", "toxic": False, "redacted": False},
            {
                **A,
                **facts,
                "language": "English",
                "toxic": True,
                "redacted": None,
                "turn_identifier": 7,
            },
            {**said, "language": "English", "toxic": None, "turn_identifier": 8},
            {**A, "language": "Spanish"},
        ],
        "openai_moderation": [None, {"flagged": True}],
        "language": None,
    }
    imported = convert(row, None, "x")
    assert (imported.conversation.id, imported.conversation.user) == (
        "abc-7",
        "f00/Peru",
    )
    assert imported.conversation.meta == {
        "source": "wildchat",
        "country": "Peru",
        "state": "Lima",
        "model": "o1",
        "timestamp": "2025-01-02T00:00:00",
        "language": "Spanish",  # two turns each: the one that came first
        "toxic": True,
        "redacted": False,
        "system": "be kind",
    }
    assert imported.notes == {"system to meta": 1}


def test_a_wildchat_row_of_parquet_reads_as_one_of_jsonl(tmp_path: Path):
    import polars as pl

    said = {
        "country": None,
        "hashed_ip": "f00",
        "header": {"user-agent": "x"},
        "turn_identifier": 4,
    }
    row = {
        "conversation_hash": "abc",
        "timestamp": dt.datetime(2023, 5, 1, tzinfo=dt.UTC),
        "conversation": [{**U, **said}, {**A, **said, "header": None}],
        "openai_moderation": [{"flagged": False}, None],
        "toxic": False,
    }
    pl.DataFrame([row]).write_parquet(tmp_path / "w.parquet")
    (line,) = read_rows(tmp_path / "w.parquet")
    assert convert(line.row, None, "x") == convert(row, None, "x")


def test_json_in_a_text_that_is_nested_too_deep_to_be_written_stays_a_text():
    for levels, kind in ((90, dict), (150, str), (5000, str)):
        text = json.dumps({"k": 0}).replace("0", "[" * levels + "]" * levels)
        meta = convert(
            {"messages": [U, A], "meta": text}, "messages", "x"
        ).conversation.meta
        assert isinstance(meta.get("meta", meta), kind)


def test_a_day_in_parquet_is_a_time_stamp(tmp_path: Path):
    import polars as pl

    day = {"timestamp": [dt.date(2023, 5, 1)]}
    wild = {"conversation_hash": ["abc"], "conversation": [[U, A]], **day}
    for i, columns in enumerate((wild, {"messages": [[U, A]], **day})):
        pl.DataFrame(columns).write_parquet(tmp_path / f"{i}.parquet")
        (line,) = read_rows(tmp_path / f"{i}.parquet")
        imported = convert(line.row, None, "x")
        assert imported.conversation.meta["timestamp"] == "2023-05-01"
        assert imported.notes == {}


def test_an_lmsys_row_is_toxic_where_any_message_was_flagged():
    row = {
        "conversation_id": "q",
        "model": "vicuna-13b",
        "conversation": [U, A],
        "language": "English",
    }
    flagged = {**row, "openai_moderation": [{"flagged": False}, {"flagged": True}]}
    clean = {**row, "openai_moderation": [{"flagged": False}]}
    assert convert(flagged, None, "x").conversation.meta["toxic"] is True
    assert convert(clean, None, "x").conversation.meta["toxic"] is False
    assert "toxic" not in convert(row, None, "x").conversation.meta


# --- Chatbot Arena --------------------------------------------------------------------------------

BATTLE = {
    "question_id": "q1",
    "model_a": "alpaca",
    "model_b": "vicuna",
    "winner": "model_b",
    "judge": "arena_user_7",
    "conversation_a": [U, A],
    "conversation_b": [U, {"role": "assistant", "content": "good day"}],
    "turn": 1,
    "anony": True,
    "language": "English",
    "tstamp": 86400.5,
    "openai_moderation": {"flagged": False, "categories": {}},
    "toxic_chat_tag": {
        "roberta-large": {"flagged": False},
        "t5-large": {"flagged": False},
    },
}


def test_of_a_battle_the_side_of_the_winner_is_taken():
    conversation = convert(BATTLE, None, "x").conversation
    assert (conversation.id, conversation.user, conversation.ended) == (
        "q1",
        "arena_user_7",
        True,
    )
    assert [t.text for t in conversation.turns] == ["hi", "good day"]
    assert conversation.meta == {
        "source": "arena",
        "model": "vicuna",
        "language": "English",
        "timestamp": "1970-01-02T00:00:00.500000+00:00",
        "toxic": False,
    }


@pytest.mark.parametrize(
    "winner", ["model_a", "tie", "tie (bothbad)", "both_bad", None]
)
def test_of_a_tie_the_first_side_is_taken(winner):
    conversation = convert({**BATTLE, "winner": winner}, None, "x").conversation
    assert (conversation.turns[1].text, conversation.meta["model"]) == (
        "hello",
        "alpaca",
    )


def test_a_battle_is_toxic_where_moderation_or_a_tag_says_so():
    tag = {"t5-large": {"flagged": True}, "roberta-large": None}
    moderated = {"flagged": True}
    assert (
        convert({**BATTLE, "toxic_chat_tag": tag}, None, "x").conversation.meta["toxic"]
        is True
    )
    assert (
        convert(
            {**BATTLE, "openai_moderation": moderated}, None, "x"
        ).conversation.meta["toxic"]
        is True
    )
    unknown = convert(
        {**BATTLE, "toxic_chat_tag": None, "openai_moderation": None}, None, "x"
    ).conversation
    assert "toxic" not in unknown.meta


def part(text: str | None) -> dict[str, Any]:
    return {
        "type": "text" if text else "image",
        "text": text,
        "image": None if text else "a.png",
        "mimeType": None,
    }


def test_a_later_vote_of_a_session_brings_what_came_before_and_is_no_ending():
    ask = {"role": "user", "content": [part("more?"), part(None)]}
    say = {"role": "assistant", "content": [part("no")]}
    row = {
        "id": "v2",
        "model_a": "m",
        "model_b": "n",
        "winner": "model_a",
        "evaluation_session_id": "s9",
    }
    row |= {
        "evaluation_order": 2,
        "conversation_a": [ask, say],
        "conversation_b": [ask, say],
    }
    sides = [
        {"user": u, "model_side_a": a, "model_side_b": None}
        for u, a in ((U, A), (ask, say))
    ]
    imported = convert({**row, "full_conversation": sides}, None, "x")
    assert [t.text for t in imported.conversation.turns] == [
        "hi",
        "hello",
        "more?",
        "no",
    ]
    assert (imported.conversation.id, imported.conversation.user) == ("v2", "s9")
    assert not imported.conversation.ended
    assert imported.notes == {"parts left out": 1}
    first = convert(
        {**row, "evaluation_order": 1, "full_conversation": sides}, None, "x"
    )
    assert [t.text for t in first.conversation.turns] == ["more?", "no"]


def test_a_battle_may_be_json_in_a_text():
    row = {**BATTLE, "conversation_b": json.dumps(BATTLE["conversation_b"])}
    assert convert(row, None, "x") == convert(BATTLE, None, "x")


def test_a_battle_may_be_prompts_and_responses():
    row = {
        "id": 30,
        "model_a": "m",
        "model_b": "n",
        "prompt": '["hi", "why?"]',
        "winner_tie": 0,
    }
    row |= {
        "response_a": '["x", "y"]',
        "response_b": '["yo", "so"]',
        "winner_model_a": 0,
        "winner_model_b": 1,
    }
    conversation = convert(row, None, "x").conversation
    assert (conversation.id, conversation.meta["model"]) == ("30", "n")
    assert [t.text for t in conversation.turns] == ["hi", "yo", "why?", "so"]
    plain = {"id": "p", "prompt": "[1, 2]", "response_a": "a list", "winner": "model_a"}
    assert [t.text for t in convert(plain, None, "x").conversation.turns] == [
        "[1, 2]",
        "a list",
    ]


@pytest.mark.parametrize(
    ("change", "reason", "named"),
    [
        ({"winner": "left"}, "wrong type", "'winner'"),
        ({"winner": 2}, "wrong type", "'winner'"),
        ({"judge": ["x"]}, "wrong type", "'judge'"),
        ({"model_b": [3]}, "wrong type", "'model_b'"),
        ({"conversation_b": None}, "no messages", "'conversation_b'"),
        ({"conversation_b": "no json"}, "wrong type", "'conversation_b'"),
        ({"conversation_b": [U, None]}, "wrong type", "conversation_b[1]"),
        (
            {"conversation_b": [{"role": "narrator", "content": "x"}]},
            "unknown role",
            "conversation_b[0].role is 'narrator'",
        ),
        (
            {"evaluation_order": 2, "full_conversation": [None]},
            "wrong type",
            "full_conversation[0]",
        ),
        (
            {"evaluation_order": 2, "full_conversation": [{"user": U}]},
            "wrong type",
            "full_conversation[0]",
        ),
    ],
)
def test_a_broken_battle_names_the_field(change, reason, named):
    with pytest.raises(Rejected) as caught:
        convert({**BATTLE, **change}, None, "x")
    assert (caught.value.reason, named in str(caught.value)) == (reason, True)


@pytest.mark.parametrize(
    ("row", "reason", "named"),
    [
        (
            {"prompt": '["a", "b"]', "response_a": '["c"]'},
            "wrong type",
            "'prompt' holds 2 texts, but 'response_a' 1",
        ),
        ({"prompt": None, "response_a": "c"}, "no messages", "'prompt'"),
        ({"prompt": ["a"], "response_a": 5}, "wrong type", "'response_a'"),
        ({"prompt": ["a"], "response_a": [None]}, "empty turn", "prompt/response_a[0]"),
    ],
)
def test_broken_prompts_and_responses_name_the_field(row, reason, named):
    with pytest.raises(Rejected) as caught:
        convert({**row, "response_b": "c"}, None, "x")
    assert (caught.value.reason, named in str(caught.value)) == (reason, True)


# --- PRISM ----------------------------------------------------------------------------------------


def ask(turn: int, text: str) -> dict[str, Any]:
    return {"turn": turn, "role": "user", "content": text}


def answer(
    turn: int, number: int, score: Any = 50, chosen: Any = False, **more: Any
) -> dict[str, Any]:
    facts = {
        "turn": turn,
        "role": "model",
        "content": f"answer {turn}.{number}",
        "model_name": f"m{number}",
    }
    return {
        **facts,
        "within_turn_id": number,
        "score": score,
        "if_chosen": chosen,
        **more,
    }


def prism(*history: dict[str, Any]) -> dict[str, Any]:
    return {
        "conversation_id": "c5",
        "user_id": "user9",
        "conversation_type": "values guided",
        "included_in_balanced_subset": True,
        "generated_datetime": "2023-12-01 10:00:00",
        "opening_prompt": "q0",
        "choice_attributes": {},
        "conversation_history": list(history),
    }


FIRST = [
    ask(0, "q0"),
    answer(0, 0, 90),
    answer(0, 1, 10, True),
    answer(0, 2, 20),
    answer(0, 3, 30),
]


def test_of_the_answers_of_prism_the_chosen_one_is_taken():
    row = prism(*FIRST, ask(1, "q1"), answer(1, 1, 5), answer(1, 0, 3, True))
    conversation = convert(row, None, "x").conversation
    assert [t.text for t in conversation.turns] == [
        "q0",
        "answer 0.1",
        "q1",
        "answer 1.0",
    ]
    assert (conversation.id, conversation.user, conversation.ended) == (
        "c5",
        "user9",
        True,
    )
    assert conversation.meta == {
        "source": "prism",
        "model": "m0",
        "timestamp": "2023-12-01 10:00:00",
        "conversation_type": "values guided",
        "included_in_balanced_subset": True,
    }


def test_where_nothing_is_chosen_at_the_last_turn_the_highest_score_is_taken_and_of_equals_the_first():
    last = [answer(1, 2, 70, None), answer(1, 1, 70, None), answer(1, 0, 60, None)]
    assert (
        convert(prism(*FIRST, ask(1, "q1"), *last), None, "x")
        .conversation.turns[-1]
        .text
        == "answer 1.1"
    )


def test_a_prism_conversation_that_stops_on_the_user_has_no_observed_ending():
    conversation = convert(prism(*FIRST, ask(1, "q1")), None, "x").conversation
    assert ([t.text for t in conversation.turns][-1], conversation.ended) == (
        "q1",
        False,
    )


@pytest.mark.parametrize(
    ("history", "reason", "named"),
    [
        (
            [ask(0, "q0"), answer(0, 0), ask(1, "q1"), answer(1, 0)],
            "no chosen answer",
            "turn 0",
        ),
        (
            [ask(0, "q0"), answer(0, 0, chosen=None), ask(1, "q")],
            "wrong type",
            "conversation_history[1].if_chosen",
        ),
        (
            [ask(0, "q0"), answer(0, 0), answer(0, 1, None)],
            "wrong type",
            "conversation_history[2].score",
        ),
        (
            [ask(0, "q0"), answer(0, 0, within_turn_id="a"), answer(0, 1)],
            "wrong type",
            "conversation_history[1].within_turn_id",
        ),
        ([answer(0, 0, chosen=True)], "no user turn", "turn 0"),
        (
            [ask(0, "q0"), {**ask(0, "x"), "role": "bot"}],
            "unknown role",
            "conversation_history[1].role is 'bot'",
        ),
        (
            [{"role": "user", "content": "q0"}],
            "wrong type",
            "conversation_history[0].turn",
        ),
        (
            [ask(0, "q0"), answer(0, 0, chosen=True, content=" ")],
            "empty turn",
            "conversation_history[1].content",
        ),
        (
            [ask(0, "q0"), answer(0, 0, chosen=True, model_name=3)],
            "wrong type",
            "'model_name'",
        ),
        ([None], "wrong type", "conversation_history[0]"),
    ],
)
def test_what_is_missing_of_prism_is_named(history, reason, named):
    with pytest.raises(Rejected) as caught:
        convert(prism(*history), None, "x")
    assert (caught.value.reason, named in str(caught.value)) == (reason, True)


# --- ShareGPT and our own -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conversations", "items"])
def test_sharegpt_speaks_of_human_and_gpt(name):
    said = [("system", "be kind"), ("human", "hi"), ("gpt", "hello")]
    row = {"id": "s_0", name: [{"from": who, "value": text} for who, text in said]}
    conversation = convert(row, None, "x").conversation
    assert [(t.role, t.text) for t in conversation.turns] == [
        ("user", "hi"),
        ("assistant", "hello"),
    ]
    assert conversation.meta == {"source": "sharegpt", "system": "be kind"}


def test_our_own_records_come_back_as_they_were():
    turns = (Turn("user", "hi", {"p_end": 0.1}), Turn("assistant", "yo"))
    kept = Conversation(
        "a",
        turns,
        intent="You are a user",
        user="p",
        stop="end",
        ended=True,
        meta={"k": [1]},
    )
    assert convert(to_record(kept), None, "x").conversation == kept


@pytest.mark.slow
def test_all_real_logs_are_read_with_few_rejections(data: Path):
    rejected: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    conversations = 0
    for path in sorted(data.glob("*.jsonl.gz")):
        for one in find(read_rows(path), None, path.stem, Gathered()):
            if one.imported is None:
                rejected[one.rejected.reason] += 1
                continue
            conversations += 1
            assert one.imported.conversation.id
            notes.update(one.imported.notes)
    assert set(notes) <= set(NOTES)
    # ten answers in Chatbot Arena and ShareGPT are a zero-width space; some of them come late in a
    # conversation
    assert conversations > 35_900
    assert set(rejected) == {"empty turn"}
    assert rejected["empty turn"] + notes["cut at an empty turn"] == 10


def test_every_person_of_the_wildchat_fixture_is_an_address_in_a_country(data: Path):
    rows = [line.row for line in read_rows(data / "wildchat1m_schema_fixture.jsonl.gz")]
    conversations = [convert(row, "wildchat", "x").conversation for row in rows]
    assert len({c.id for c in conversations}) == len(rows)
    assert len({c.user for c in conversations}) == 31  # from the README of the data
    assert all(c.ended and c.meta["country"] in (c.user or "") for c in conversations)


def test_fields_with_the_names_of_a_run_of_0_1_are_left_out_so_that_no_log_is_taken_for_one():
    said = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello!"},
    ]
    row = {"id": "a", "messages": said, "conversation": "zz", "repeat": 2, "task": "t"}
    imported = convert(row, "messages", "")
    assert imported.conversation.meta == {"task": "t"}
    assert imported.notes["fields left out"] == 2
    from_record(to_record(imported.conversation))


NAN, INFINITY = float("nan"), float("inf")
NUMBERS = [
    (12.0, "12"),
    (12, "12"),
    (0.0, "0"),
    (0, "0"),
    (1.5, "1.5"),
    (1e15, "1000000000000000"),
]
NUMBERS += [(NAN, None), (INFINITY, None), (-INFINITY, None)]
"""A number as an id, as tables write it, and the id; some of it stands for "not known"."""


@pytest.mark.parametrize(("number", "name"), NUMBERS)
def test_a_number_of_a_table_is_the_id_that_it_stands_for(number, name):
    row = {"id": number, "user_id": number, "messages": [U, A]}
    conversation = convert(row, None, "log-1").conversation
    assert (conversation.id, conversation.user) == (name or "log-1", name)
    wild = {
        "conversation_hash": number,
        "hashed_ip": number,
        "country": number,
        "conversation": [{**U, "turn_identifier": number}, A],
    }
    conversation = convert(wild, None, "log-1").conversation
    assert conversation.id == (f"{name}-{name}" if name else "log-1")
    assert conversation.meta.get("country") == name
    assert conversation.user == (f"{name}/{name}" if name else None)
    battle = {"question_id": number, "judge": number, "conversation_a": [U, A]}
    conversation = convert(
        {**battle, "model_a": number, "winner": "tie"}, None, "log-1"
    ).conversation
    assert (conversation.id, conversation.user) == (name or "log-1", name)
    assert conversation.meta.get("model") == name
    own = to_record(Conversation("a").say("hi"))
    conversation = convert(
        {**own, "id": number, "user": number}, None, "log-1"
    ).conversation
    assert (conversation.id, conversation.user) == (name or "log-1", name)
    attributes = {"gen_ai.prompt": "hi", "gen_ai.completion": "yo"}
    attributes |= {"user.id": number, "session.id": number}
    span = {"name": "chat", "traceId": "abc", "attributes": attributes}
    gathered = Gathered()
    assert list(find([Line(1, span)], None, "log", gathered)) == []
    [one] = gathered.found()
    assert one.imported.conversation.id == (name or "abc")
    assert one.imported.conversation.user == name


def test_the_order_of_turns_may_be_numbers_of_a_table():
    history = [
        {"role": "user", "turn": 1.0, "content": "and why?"},
        {
            "role": "model",
            "turn": 0.0,
            "content": "no",
            "if_chosen": 0.0,
            "within_turn_id": 0.0,
        },
        {
            "role": "model",
            "turn": 0.0,
            "content": "yes",
            "if_chosen": 1.0,
            "within_turn_id": 1.0,
        },
        {"role": "user", "turn": 0.0, "content": "is it?"},
    ]
    row = {"conversation_id": "c", "conversation_history": history}
    turns = convert(row, "prism", "x").conversation.turns
    assert [turn.text for turn in turns] == ["is it?", "yes", "and why?"]


def test_what_a_table_does_not_know_is_left_out():
    row = {"id": "a", "messages": [U, A], "score": NAN, "language": NAN, "tree": 3.0}
    meta = convert(row, None, "x").conversation.meta
    assert meta == {"tree": 3}
    lmsys = {
        "conversation_id": "a",
        "conversation": [U, A],
        "language": NAN,
        "redacted": NAN,
    }
    meta = convert(lmsys, None, "x").conversation.meta
    assert meta == {"source": "lmsys"}
    assert (
        convert({**lmsys, "redacted": 1.0}, None, "x").conversation.meta["redacted"]
        is True
    )
    with pytest.raises(Rejected, match="'redacted'"):
        convert({**lmsys, "redacted": 0.5}, None, "x")


# --- thought --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "<think>\nHm.\n</think>\n\nBoil it."},
        {"content": "Hm.</think>Boil it."},
        {"content": "Boil it.", "reasoning_content": "Hm."},
        {"content": "Boil it.", "reasoning": "Hm."},
        {"content": [{"type": "thinking", "thinking": "Hm."}, "Boil it."]},
        {"content": [{"type": "text", "text": "<think>Hm.</think>Boil it."}]},
    ],
)
def test_what_an_assistant_thought_is_no_speech_and_stays_in_meta(answer):
    asked = {"role": "user", "content": "how do i cook <think> rice </think>"}
    row = {"id": "a", "messages": [asked, {"role": "assistant", **answer}]}
    imported = convert(row, None, "a")
    assert [turn.text for turn in imported.conversation.turns] == [
        "how do i cook <think> rice </think>",
        "Boil it.",
    ]
    assert (
        imported.conversation.ended and imported.conversation.meta["thought"] == "Hm."
    )
    assert imported.notes == {"thought to meta": 1}


def test_an_answer_that_is_all_thought_is_no_turn_and_no_end():
    asked = {"role": "user", "content": "how do i cook rice"}
    thought = {"role": "assistant", "content": "<think>They want"}
    imported = convert({"id": "a", "messages": [asked, thought]}, None, "a")
    assert [turn.role for turn in imported.conversation.turns] == ["user"]
    assert not imported.conversation.ended


@pytest.mark.parametrize("answer", ["4", "null", "true", "1e999", '"4"', "-0.5"])
def test_an_answer_that_is_json_but_no_object_stays_a_text(answer):
    row = {
        "prompt": "2 + 2?",
        "response_a": answer,
        "response_b": "four",
        "winner": "model_a",
        "id": "a",
    }
    conversation = convert(row, "arena", "a").conversation
    assert [turn.text for turn in conversation.turns] == ["2 + 2?", answer]


def told(*messages, **more):
    found = convert({"messages": list(messages), **more}, None, "x")
    return [turn.text for turn in found.conversation.turns], found.notes


def test_messages_with_the_newest_first_are_turned_round():
    for first, later in (
        (1.7e9, 1.7e9 + 1),
        ("2025-01-01T00:00:00Z", "2025-01-01T00:00:01Z"),
    ):
        asked, answer = {**U, "created_at": first}, {**A, "created_at": later}
        assert told(answer, asked) == (["hi", "hello"], {"newest first": 1})
        assert told(asked, answer) == (["hi", "hello"], {})
        # The clocks of two machines differ.
        asked, answer = {**U, "created_at": later}, {**A, "created_at": first}
        assert told(asked, answer) == (["hi", "hello"], {})
    three = [{**each, "timestamp": n} for n, each in ((3e9, U), (2e9, A), (1e9, U))]
    assert told(*three)[1] == {"newest first": 1}
    pairs = [{**each, "timestamp": n} for n in (3e9, 2e9, 1e9) for each in (U, A)]
    pairs[0]["content"] = "bye"
    texts = ["hi", "hello", "hi", "hello", "bye", "hello"]
    assert told(*pairs) == (texts, {"newest first": 1})
    # The seconds that each took.
    took = [{**each, "time": n} for n, each in ((9.5, U), (3, A), (1, U), (0.1, A))]
    assert told(*took)[1] == {}
    unknown = [{**A, "created_at": "2025-01-01T00:00:01Z"}, {**U, "created_at": 5}]
    assert told(*unknown)[0] == ["hello", "hi"]


def replying(id, parent, role, text):
    return {"messageId": id, "parentMessageId": parent, "role": role, "content": text}


def test_of_messages_with_branches_the_last_one_is_the_conversation():
    root = "00000000-0000-0000-0000-000000000000"
    rows = [
        replying("1", root, "user", "hi"),
        replying("2", "1", "assistant", "hello"),
        replying("3", "1", "assistant", "hello, Bob"),
        replying("4", "3", "user", "help"),
        replying("5", "3", "user", "help me"),
        replying("6", "5", "assistant", "yes"),
    ]
    texts = ["hi", "hello, Bob", "help me", "yes"]
    assert told(*rows) == (texts, {"messages of other branches": 2})
    straight = [rows[0], rows[2], *rows[4:]]
    assert told(*straight) == (texts, {})
    assert told(*reversed(straight)) == (texts, {})
    # Elsewhere a reply is a quote, and what is none goes on; so is where the parent of each question
    # is the conversation.
    for parent in (None, root):
        quotes = [
            replying(str(n), str(n - 1) if n in answered else parent, role, str(n))
            for n, role in enumerate(("user", "assistant", "user", "assistant"), 1)
            for answered in [(2, 4) if parent else (4,)]
        ]
        assert told(*quotes) == (["1", "2", "3", "4"], {})
    thread = [replying("1", root, "user", "hi"), replying("2", "1", "assistant", "a")]
    thread += [replying("3", "1", "user", "b"), replying("4", "1", "assistant", "c")]
    assert told(*thread) == (["hi", "a", "b", "c"], {})
    titled = [*rows[:2], replying("9", "1", "system", "A title was made.")]
    assert told(*titled)[0] == ["hi", "hello"]
    # The parent of all is their conversation.
    of_one = [{**row, "parentMessageId": "c1"} for row in thread]
    assert told(*of_one) == (["hi", "a", "b", "c"], {})
    alone = [replying("1", root, "user", "hi"), replying("2", "1", "user", "a")]
    assert told(*alone, replying("3", "1", "user", "b"))[0] == ["hi\n\na\n\nb"]
    circle = [
        rows[0],
        replying("2", "4", "assistant", "a"),
        replying("4", "2", "user", "b"),
    ]
    circle.append(replying("5", "4", "assistant", "c"))
    assert told(*circle)[0] == ["hi", "a", "b", "c"]


def test_replies_within_messages_are_set_aside_and_names_of_them_are_not():
    with pytest.raises(Rejected, match="have replies in their field 'children'"):
        told({**U, "children": [A]})
    assert told({**U, "children": ["2"]}, A) == (["hi", "hello"], {})
    assert told({**U, "children": [{"text": "hi"}]}, A) == (["hi", "hello"], {})
    assert told(U, {**A, "replies": [{"text": "Yes"}]}) == (["hi", "hello"], {})


@pytest.mark.parametrize("name", ["user", "user_id", "userId", "end_user"])
@pytest.mark.parametrize("beside", [{}, {"toxic": False}, {"openai_moderation": []}])
def test_a_conversation_of_ones_own_has_its_person(name, beside):
    row = {"conversation": [U, A], "conversation_id": "c", name: "ann", **beside}
    assert convert(row, None, "x").conversation.user == "ann"
    del row[name]
    assert convert(row, None, "x").conversation.user is None
    of_sharegpt = {"conversations": [U, A], name: "ann"}
    assert convert(of_sharegpt, None, "x").conversation.user == "ann"


@pytest.mark.parametrize("time", ["1.71456E+12", "1.7e+09", "2E12"])
def test_a_time_of_which_digits_are_lost_is_none(time):
    with pytest.raises(ValueError):
        read_time(time)
    assert read_time("1.7171717171717172e+18") == 1.7171717171717172e18
    assert read_time("1714560000000") == 1714560000000

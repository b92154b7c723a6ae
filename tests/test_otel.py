"""Spans of tracing tools become conversations: the longest history of each, and its answer."""

import json
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest

from userlm.data.layouts import Gathered, find, otel
from userlm.data.layouts.common import NOTES
from userlm.lines import Line

TALK = ["hi", "hello", "and now?", "rest", "bye", "see you"]
LONG = [f"turn {n}" for n in range(10)]


def chat(*texts: str) -> list[dict[str, Any]]:
    return [
        {"role": "assistant" if i % 2 else "user", "content": text}
        for i, text in enumerate(texts)
    ]


def parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"role": m["role"], "parts": [{"type": "text", "content": m["content"]}]}
        for m in messages
    ]


def otlp(value: Any) -> dict[str, Any]:
    """A value as OTLP writes it."""
    if isinstance(value, list):
        return {"arrayValue": {"values": [otlp(item) for item in value]}}
    if isinstance(value, dict):
        return {
            "kvlistValue": {
                "values": [
                    {"key": key, "value": otlp(item)} for key, item in value.items()
                ]
            }
        }
    return (
        {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}
    )


def sdk(
    attributes: dict[str, Any], trace: str = "0xt1", events: Any = ()
) -> dict[str, Any]:
    """A span as the SDK for Python writes it."""
    context = {"trace_id": trace, "span_id": "0x1", "trace_state": "[]"}
    start = "2025-03-01T12:00:00.000000Z"
    span = {
        "name": "chat m",
        "context": context,
        "kind": "SpanKind.CLIENT",
        "parent_id": None,
        "start_time": start,
    }
    return {
        **span,
        "attributes": attributes,
        "events": list(events),
        "links": [],
        "resource": {},
    }


def export(*spans: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """An export of OTLP: pairs of a trace and attributes."""
    rows = [
        {
            "traceId": trace,
            "spanId": "1",
            "name": "chat m",
            "startTimeUnixNano": "1740830400000000000",
            "attributes": [
                {"key": key, "value": otlp(value)} for key, value in attributes.items()
            ],
        }
        for trace, attributes in spans
    ]
    return {
        "resourceSpans": [
            {"resource": {}, "scopeSpans": [{"scope": {"name": "x"}, "spans": rows}]}
        ]
    }


def call(*texts: str, **more: Any) -> dict[str, Any]:
    """The attributes of a call, of which the last text is the answer; `conversation` and `user` are
    its ids."""
    asked, answer = chat(*texts)[:-1], chat(*texts)[-1:]
    names = {"conversation": "gen_ai.conversation.id", "user": "user.id"}
    return {
        "gen_ai.request.model": "m",
        "gen_ai.input.messages": json.dumps(parts(asked)),
        "gen_ai.output.messages": json.dumps(
            [{**parts(answer)[0], "finish_reason": "stop"}]
        ),
        **{names.get(key, key): value for key, value in more.items()},
    }


def read(*rows: dict[str, Any]):
    gathered = Gathered()
    lines = [Line(i, row) for i, row in enumerate(rows, 1)]
    return [*find(lines, None, "log", gathered), *gathered.found()]


def conversations(*rows: dict[str, Any]) -> list[list[str]]:
    return [[turn.text for turn in f.imported.conversation.turns] for f in read(*rows)]


def the_only(*rows: dict[str, Any]):
    (one,) = read(*rows)
    assert one.rejected is None, one.rejected
    return one.imported


# --- the forms ------------------------------------------------------------------------------------


def test_a_span_of_the_sdk_becomes_a_conversation():
    attributes = call("hi", "hello", user="p1", conversation="c1") | {
        "gen_ai.response.model": "m-1"
    }
    conversation = the_only(sdk(attributes)).conversation
    assert (conversation.id, conversation.user, conversation.ended) == (
        "c1",
        "p1",
        True,
    )
    assert [(turn.role, turn.text) for turn in conversation.turns] == [
        ("user", "hi"),
        ("assistant", "hello"),
    ]
    assert conversation.meta == {
        "source": "otel",
        "model": "m-1",
        "timestamp": "2025-03-01T12:00:00.000000Z",
    }


def test_an_export_holds_many_spans_and_its_times_are_nanoseconds():
    row = export(("t1", call("hi", "hello")), ("t2", call("why?", "so")))
    one, two = read(row)
    assert (one.line.number, two.line.number) == (1, 1)
    assert [f.imported.conversation.id for f in (one, two)] == ["t1", "t2"]
    assert one.imported.conversation.meta["timestamp"] == "2025-03-01T12:00:00+00:00"
    assert one.imported.conversation.turns[1].text == "hello"


def test_a_span_of_otlp_may_stand_on_a_line_alone():
    (span,) = export(("t1", call("hi", "hello")))["resourceSpans"][0]["scopeSpans"][0][
        "spans"
    ]
    assert the_only(span).conversation.id == "t1"


def test_messages_may_be_structured_in_place_of_json_in_a_text():
    attributes = {
        "gen_ai.input.messages": parts(chat("hi")),
        "gen_ai.output.messages": parts(chat("x", "hello")[1:]),
    }
    assert (
        conversations(sdk(attributes))
        == conversations(export(("t", attributes)))
        == [["hi", "hello"]]
    )


# --- the conventions ------------------------------------------------------------------------------

CALL = {"id": "1", "name": "clock", "arguments": {"zone": "UTC"}}


def semantic() -> dict[str, Any]:
    asked = [
        *parts(chat("what time is it?")),
        {"role": "assistant", "parts": [{"type": "tool_call", **CALL}]},
        {
            "role": "tool",
            "parts": [
                {"type": "tool_call_response", "id": "1", "response": {"now": "noon"}}
            ],
        },
    ]
    answer = {
        "role": "assistant",
        "parts": [{"type": "text", "content": "It is noon."}],
        "finish_reason": "stop",
    }
    system = [{"type": "text", "content": "Be brief."}]
    return sdk(
        {
            "gen_ai.system_instructions": json.dumps(system),
            "gen_ai.input.messages": json.dumps(asked),
            "gen_ai.output.messages": json.dumps([answer]),
        }
    )


def openinference() -> dict[str, Any]:
    asked, calls = "llm.input_messages", "message.tool_calls.0.tool_call"
    return sdk(
        {
            "openinference.span.kind": "LLM",
            "llm.model_name": "m",
            f"{asked}.0.message.role": "system",
            f"{asked}.0.message.content": "Be brief.",
            f"{asked}.1.message.role": "user",
            f"{asked}.1.message.contents.0.message_content.type": "text",
            f"{asked}.1.message.contents.0.message_content.text": "what time is it?",
            f"{asked}.2.message.role": "assistant",
            f"{asked}.2.{calls}.function.name": "clock",
            f"{asked}.2.{calls}.function.arguments": '{"zone": "UTC"}',
            f"{asked}.3.message.role": "tool",
            f"{asked}.3.message.content": '{"now": "noon"}',
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.content": "It is noon.",
        }
    )


def openllmetry() -> dict[str, Any]:
    return sdk(
        {
            "traceloop.span.kind": "llm",
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": "Be brief.",
            "gen_ai.prompt.1.role": "user",
            "gen_ai.prompt.1.content": '[{"type": "text", "text": "what time is it?"}]',
            "gen_ai.prompt.2.role": "assistant",
            "gen_ai.prompt.2.tool_calls.0.name": "clock",
            "gen_ai.prompt.2.tool_calls.0.arguments": '{"zone": "UTC"}',
            "gen_ai.prompt.3.role": "tool",
            "gen_ai.prompt.3.content": '{"now": "noon"}',
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": "It is noon.",
        }
    )


def event(name: str, attributes: Any) -> dict[str, Any]:
    return {
        "name": f"gen_ai.{name}",
        "timestamp": "2025-03-01T12:00:00Z",
        "attributes": attributes,
    }


def events() -> dict[str, Any]:
    calls = json.dumps(
        [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "clock", "arguments": "{}"},
            }
        ]
    )
    said = [
        event("system.message", {"content": "Be brief."}),
        event(
            "user.message", {"gen_ai.event.content": '{"content": "what time is it?"}'}
        ),
        event("assistant.message", {"tool_calls": calls}),
        event("tool.message", {"content": '{"now": "noon"}', "id": "1"}),
        event(
            "choice",
            {
                "index": 0,
                "finish_reason": "stop",
                "message": '{"content": "It is noon."}',
            },
        ),
        {"name": "exception", "attributes": {"exception.type": "x"}},
    ]
    return sdk({"gen_ai.request.model": "m"}, events=said)


def bedrock() -> dict[str, Any]:
    said = [
        event("system.message", {"content": '[{"text": "Be brief."}]'}),
        event("user.message", {"content": '[{"text": "what time is it?"}]'}),
        event("assistant.message", {"content": '[{"toolUse": {"name": "clock"}}]'}),
        event(
            "tool.message",
            {"content": '[{"toolResult": {"content": [{"text": "noon"}]}}]'},
        ),
        event(
            "choice",
            {"message": '[{"text": "It is noon."}]', "finish_reason": "end_turn"},
        ),
    ]
    return sdk({}, events=said)


@pytest.mark.parametrize(
    "span", [semantic, openinference, openllmetry, events, bedrock]
)
def test_in_every_convention_what_is_said_becomes_turns_and_tools_go_to_meta(span):
    imported = the_only(span())
    conversation = imported.conversation
    assert [turn.text for turn in conversation.turns] == [
        "what time is it?",
        "It is noon.",
    ]
    assert conversation.meta["system"] == "Be brief."
    assert "clock" in conversation.meta["tool"] and "noon" in conversation.meta["tool"]
    assert imported.notes == {"system to meta": 1, "tool to meta": 2}
    assert conversation.ended


def test_attributes_may_be_nested_objects_as_phoenix_exports_them():
    tool = {"tool_call": {"function": {"name": "clock", "arguments": "{}"}}}
    contents = [
        {"message_content": {"type": "text", "text": "hi"}},
        {"message_content": {"type": "image", "image": {"url": "data:"}}},
    ]
    asked = [
        {"message": {"role": "user", "contents": contents}},
        {"message": {"role": "assistant", "tool_calls": [tool]}},
        {"message": {"role": "tool", "content": "noon"}},
    ]
    answer = {"message": {"role": "assistant", "content": "hello"}}
    attributes = {
        "llm": {
            "model_name": "m",
            "input_messages": asked,
            "output_messages": [answer],
        },
        "session": {"id": "s1"},
        "user": {"id": "p1"},
    }
    nested = the_only(sdk(attributes))
    conversation = nested.conversation
    assert (conversation.id, conversation.user) == ("s1", "p1")
    assert (conversation.meta["model"], conversation.ended) == ("m", True)
    assert [turn.text for turn in conversation.turns] == ["hi", "hello"]
    assert nested.notes == {"tool to meta": 2, "parts left out": 1}
    listed = {"attributes": [{"key": "llm", "value": otlp(attributes["llm"])}]}
    assert conversations({"traceId": "t1", **listed}) == [["hi", "hello"]]


def test_a_table_of_spans_has_a_column_for_each_attribute():
    columns = {
        "context.trace_id": "t1",
        "context.span_id": "s1",
        "attributes.llm.model_name": "m",
        "attributes.llm.input_messages": [
            {"message.role": "user", "message.content": "hi"}
        ],
        "attributes.llm.output_messages": [
            {"message.role": "assistant", "message.content": "hello"}
        ],
    }
    conversation = the_only(columns).conversation
    assert [turn.text for turn in conversation.turns] == ["hi", "hello"]
    assert (conversation.id, conversation.meta["model"]) == ("t1", "m")


def test_a_span_of_phoenix_around_calls_is_no_conversation_beside_them():
    agent = sdk(call(*TALK[2:4])) | {"span_kind": "AGENT"}
    assert conversations(sdk(call(*TALK[:4])), agent) == [TALK[:4]]


def test_older_spans_hold_json_or_a_plain_text_in_an_attribute_or_an_event():
    plain = {"gen_ai.prompt": "hi", "gen_ai.completion": "hello"}
    listed = {
        "gen_ai.prompt": json.dumps(chat("hi")),
        "gen_ai.completion": '[{"content": "hello"}]',
    }
    asked = [event("content.prompt", {"gen_ai.prompt": "hi"})]
    asked += [event("content.completion", {"gen_ai.completion": "hello"})]
    details = [event("client.inference.operation.details", call("hi", "hello"))]
    for span in (
        sdk(plain),
        sdk(listed),
        sdk({}, events=asked),
        sdk({}, events=details),
    ):
        assert conversations(span) == [["hi", "hello"]]


def test_thoughts_pictures_and_other_answers_to_choose_from_are_counted_and_not_said():
    picture = {"type": "blob", "modality": "image", "content": "aGk="}
    asked = [
        {
            "role": "user",
            "parts": [{"type": "text", "content": "what is this?"}, picture],
        }
    ]
    thought = {"type": "reasoning", "content": "hm"}
    answers = [
        {
            "role": "assistant",
            "parts": [thought, {"type": "text", "content": "A cat."}],
            "finish_reason": "stop",
        },
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "A dog."}],
            "finish_reason": "stop",
        },
    ]
    span = sdk(
        {
            "gen_ai.request.choice.count": 2,
            "gen_ai.input.messages": json.dumps(asked),
            "gen_ai.output.messages": json.dumps(answers),
        }
    )
    imported = the_only(span)
    assert [turn.text for turn in imported.conversation.turns] == [
        "what is this?",
        "A cat.",
    ]
    assert imported.notes == {"parts left out": 2, "thought to meta": 1}
    assert the_only(export(("t", span["attributes"]))).notes == imported.notes
    aloud = sdk(
        {
            "gen_ai.prompt": "hi",
            "gen_ai.completion.0.role": "thinking",
            "gen_ai.completion.1.content": "yo",
        }
    )
    aloud["attributes"]["gen_ai.completion.0.content"] = "hm"
    assert conversations(aloud) == [["hi", "yo"]]
    choices = [event("user.message", {"content": "hi"})]
    choices += [
        event("choice", {"index": i, "message": text})
        for i, text in enumerate(("yo", "hey"))
    ]
    assert conversations(sdk({}, events=choices)) == [["hi", "yo"]]


def test_a_user_who_pastes_json_has_said_json():
    pasted = '[{"name": "x"}]'
    said = {
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": pasted,
        "gen_ai.completion.0.content": "a list",
    }
    assert conversations(sdk(said)) == [[pasted, "a list"]]


@pytest.mark.parametrize(
    "answer",
    [
        '[{"text": "alpha", "score": 1}, {"text": "beta", "score": 2}]',
        '[{"type": "tool", "name": "hammer"}]',
    ],
)
def test_a_list_that_was_asked_for_is_the_answer(answer):
    said = {
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": "a list, as JSON",
        "gen_ai.completion.0.content": answer,
    }
    assert conversations(sdk(said)) == [["a list, as JSON", answer]]


def test_a_picture_beside_a_text_is_left_out():
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    said = {
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": json.dumps(
            [{"type": "text", "text": "hi"}, picture]
        ),
        "gen_ai.completion.0.content": "hello",
    }
    assert conversations(sdk(said)) == [["hi", "hello"]]


@pytest.mark.parametrize(
    ("answer", "may_be_typed"),
    [
        ({"gen_ai.completion": "no way"}, 1),
        ({}, 1),  # the call failed
        ({"gen_ai.completion": '[{"content": "no way"}]'}, 0),
        ({"gen_ai.completion.0.content": "no way"}, 1),
    ],
)
def test_messages_that_a_person_may_have_typed_are_counted(answer, may_be_typed):
    listed = {"gen_ai.prompt": json.dumps(chat("hi", "you get 500", "pay"))}
    for notes in (
        the_only(sdk({**listed, **answer})).notes,
        the_only(sdk({}, events=[event("content.prompt", {**listed, **answer})])).notes,
    ):
        assert notes.get("messages that may be typed", 0) == may_be_typed
    one = {**answer, "gen_ai.prompt": json.dumps(chat("hi"))}
    assert "messages that may be typed" not in the_only(sdk(one)).notes
    both = {**call("a", "b", "c", "d"), **listed, **answer}
    assert "messages that may be typed" not in the_only(sdk(both)).notes


def test_messages_in_many_attributes_are_in_the_order_of_their_numbers():
    texts = [f"text {i}" for i in range(12)]
    said = {"gen_ai.prompt.template.name": "x"}
    for i in (10, 2, 0, 1, 11, *range(3, 10)):
        said |= {
            f"gen_ai.prompt.{i}.{key}": value for key, value in chat(*texts)[i].items()
        }
    assert conversations(sdk(said)) == [texts]


# --- what belongs together ------------------------------------------------------------------------


def test_of_a_conversation_the_longest_history_and_its_answer_are_kept():
    rows = [sdk(call(*TALK[:n], conversation="c1"), trace=f"t{n}") for n in (2, 4, 6)]
    for order in (rows, rows[::-1], [rows[1], rows[2], rows[0]]):
        (one,) = read(*order)
        assert [turn.text for turn in one.imported.conversation.turns] == TALK
        assert (one.line.number, one.imported.conversation.id) == (1, "c1")
        assert one.imported.notes == {"merged spans": 2, "merged lines": 2}


def test_the_spans_of_a_conversation_may_lie_in_several_files():
    # Four exchanges, of which one file has the first two and another, with more of them, the third
    # and the last.
    files = {
        "mon": [
            sdk(call("why?", "so", conversation="c2")),
            sdk(call(*TALK[:2], conversation="c1")),
        ],
        "tue": [
            sdk(call(*TALK[:4], conversation="c1")),
            sdk(call(*TALK, conversation="c1")),
        ],
    }
    for order in (("mon", "tue"), ("tue", "mon")):
        gathered = Gathered()
        for name in order:
            lines = [Line(i, row) for i, row in enumerate(files[name], 1)]
            assert list(find(lines, None, name, gathered)) == []
        found = {f.imported.conversation.id: f for f in gathered.found()}
        assert {
            id: [turn.text for turn in f.imported.conversation.turns]
            for id, f in found.items()
        } == {
            "c2": ["why?", "so"],
            "c1": TALK,
        }
        # c1 begins on the second line of mon or on the first of tue, whichever file comes first
        assert (found["c1"].file, found["c1"].line.number) == {
            "mon": ("mon", 2),
            "tue": ("tue", 1),
        }[order[0]]
        assert next(iter(found.values())).imported.notes == {
            "merged spans": 2,
            "merged lines": 2,
        }
    assert gathered.files == {"mon", "tue"}


def test_without_any_id_histories_that_continue_each_other_are_one_conversation():
    rows = [sdk(call(*TALK[:n]), trace=f"t{n}") for n in (2, 4, 6)]
    assert conversations(*rows) == [TALK]


def test_without_any_id_another_answer_or_another_person_is_another_conversation():
    other = sdk(call("hi", "good day"), trace="t2")
    assert conversations(sdk(call("hi", "hello")), other) == [
        ["hi", "hello"],
        ["hi", "good day"],
    ]
    people = [
        sdk(call(*TALK[:2], user="p1")),
        sdk(call(*TALK[:4], user="p2"), trace="t2"),
    ]
    assert conversations(*people) == [TALK[:2], TALK[:4]]


def test_a_person_who_is_named_in_one_of_the_spans_is_that_of_the_conversation():
    named, nameless = (
        call(*TALK[:2], conversation="c", user="p1"),
        call(*TALK[:4], conversation="c"),
    )
    assert the_only(sdk(named), sdk(nameless)).conversation.user == "p1"


def test_where_a_history_begins_anew_so_does_a_conversation_and_only_the_last_is_known_to_have_ended():
    first, second = (
        call(*TALK[:4], conversation="c1"),
        call("hi again", "welcome back", conversation="c1"),
    )
    found = [f.imported.conversation for f in read(sdk(first), sdk(second))]
    assert [(c.id, c.ended, len(c.turns)) for c in found] == [
        ("c1", False, 4),
        ("c1/2", True, 2),
    ]
    # The first one went on after the second had begun.
    third = call(*TALK, conversation="c1")
    found = [f.imported.conversation for f in read(sdk(first), sdk(second), sdk(third))]
    assert [(c.id, c.ended, len(c.turns)) for c in found] == [
        ("c1", True, 6),
        ("c1/2", False, 2),
    ]


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize(
    ("most", "whose"),
    [(6, {"conversation": "c1"}), (6, {"user": "ann"})],
)
def test_calls_with_the_last_messages_alone_are_one_conversation(most, whose, step):
    rows = [call(*LONG[max(0, n - most) : n], **whose) for n in (4, 6, 8, 10)]
    (one,) = read(*map(sdk, rows[::step]))
    found = one.imported.conversation
    assert [turn.text for turn in found.turns] == LONG
    assert (found.ended, one.line.number) == (True, 1)
    assert one.imported.notes == {"merged spans": 3, "merged lines": 3}


def traced(person: str, *texts: str) -> list[dict[str, Any]]:
    """The first span of a trace, which says whose it is, and the call in it."""
    owner = {"session.id": f"session of {person}", "user.id": person}
    first = sdk(owner, f"trace of {person}")
    return [{**sdk(call(*texts), f"trace of {person}"), "parent_id": "0x9"}, first]


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("most", [1, 1000])
def test_the_first_span_of_a_trace_says_whose_its_calls_are(most, step, monkeypatch):
    monkeypatch.setattr(otel, "_MOST_WAITING", most)
    rows = [*traced("ann", *TALK[:2]), *traced("bob", *TALK[:4]), *traced("cy", *TALK)]
    found = [each.imported.conversation for each in read(*rows[::step])]
    assert sorted((each.id, each.user, len(each.turns)) for each in found) == [
        ("session of ann", "ann", 2),
        ("session of bob", "bob", 4),
        ("session of cy", "cy", 6),
    ]


def test_a_span_of_which_attributes_were_dropped_has_no_observed_end():
    rows = [{**sdk(call(*TALK)), "dropped_attributes_count": n} for n in (0, 2)]
    whole, cut = map(the_only, rows)
    assert whole.conversation.ended and not cut.conversation.ended
    assert (whole.notes, cut.notes) == ({}, {"spans cut at a limit": 1})


@pytest.mark.parametrize(
    "start",
    [
        1714554300,
        "1714554300000",
        1714554300000000,
        1714554300000000000,
        datetime(2024, 5, 1, 9, 5, tzinfo=UTC),
    ],
)
def test_the_start_of_a_span_may_have_any_unit(start):
    found = the_only({**sdk(call(*TALK)), "start_time": start}).conversation
    assert found.meta["timestamp"] == "2024-05-01T09:05:00+00:00"


def test_where_no_span_names_its_parent_the_first_one_with_an_owner_counts():
    rows = []
    for person in ("ann", "bob"):
        call_of, first = traced(person, *TALK[:2])
        rows += [first, {**call_of, "parent_id": None}]
    found = [each.imported.conversation for each in read(*rows)]
    assert [each.user for each in found] == ["ann", "bob"]


def test_a_call_may_be_the_first_span_that_says_whose_its_calls_are():
    child, first = traced("ann", *TALK[:2])
    first["attributes"] |= call("Which tool?", "none")
    found = [each.imported.conversation for each in read(child, first)]
    assert [(each.id, each.user) for each in found] == [
        ("session of ann", "ann"),
        ("session of ann/2", "ann"),
    ]


def test_an_answer_that_was_made_again_replaces_the_one_that_waited_longer():
    waits = {**sdk(call("hi", "old", conversation="c1"), "ta"), "parent_id": "0x9"}
    again = sdk(call("hi", "new", conversation="c1"), "tb")
    found = the_only(waits, again).conversation
    assert found.turns[1].text == "new"


def test_a_call_says_itself_whose_it_is_and_many_wait_for_nobody(monkeypatch):
    monkeypatch.setattr(otel, "_MOST_WAITING", 2)
    ((alone, first), others) = traced("ann", *TALK[:2]), range(5)
    alone["attributes"]["user.id"] = "bob"
    rows = [
        {**sdk(call(f"hi {n}", "hello"), f"t{n}"), "parent_id": "0x9"} for n in others
    ]
    found = [each.imported.conversation for each in read(alone, *rows, first)]
    assert [each.user for each in found] == ["bob", *[None] * 5]


def test_conversations_of_one_id_are_for_one_split():
    rows = [sdk(call(*texts, conversation="c1")) for texts in (LONG, TALK)]
    found = [each.imported.conversation for each in read(*rows)]
    assert [(each.id, each.meta["tree"]) for each in found] == [
        ("c1", "c1"),
        ("c1/2", "c1"),
    ]
    assert "tree" not in the_only(rows[0]).conversation.meta


@pytest.mark.parametrize("step", [1, -1])
def test_of_the_conversations_of_one_id_the_latest_by_its_time_has_the_end(step):
    rows = [
        {**sdk(call(*texts, conversation="c1")), "start_time": f"2024-05-01T{hour}"}
        for texts, hour in ((TALK, "11:00:00+02:00"), (LONG, "10:00:00Z"))
    ]
    found = [each.imported.conversation for each in read(*rows[::step])]
    assert {len(each.turns): each.ended for each in found} == {
        len(TALK): False,
        len(LONG): True,
    }


@pytest.mark.parametrize(
    ("people", "users"),
    [
        (("ann", "ann", ""), ["ann"]),
        (("", "ann", ""), ["ann"]),
        (("ann", "ann", "bob"), ["ann", "bob"]),
        (("ann", "bob", ""), ["ann", "bob"]),
        (("", "ann", "bob"), ["ann", "bob"]),
    ],
)
def test_calls_with_the_last_messages_are_of_the_person_that_one_of_them_names(
    people, users
):
    rows = [
        sdk(call(*LONG[n - 6 : n], conversation="c1", **{"user": who} if who else {}))
        for n, who in zip((6, 8, 10), people, strict=True)
    ]
    found = [each.imported.conversation.user for each in read(*rows)]
    assert found == users


def test_what_an_app_asks_about_the_last_exchange_is_no_turn_of_the_person():
    asked = [*LONG[-2:], "Is this answer safe?", "yes"]
    rows = [sdk(call(*texts, conversation="c1")) for texts in (LONG, asked)]
    assert conversations(*rows) == [LONG, asked]


@pytest.mark.parametrize("ids", [("shop/41", "shop/42"), ("a", "b")])
def test_calls_of_other_conversations_are_not_joined_over_a_greeting(ids):
    texts = (["and now?", "rest", *TALK[:2]], TALK[:4])
    rows = [call(*text, conversation=id) for text, id in zip(texts, ids, strict=True)]
    assert conversations(*map(sdk, rows)) == list(texts)


def test_a_history_that_was_changed_in_its_middle_is_another_conversation():
    changed = [*TALK[:2], "no, tomorrow?", "work"]
    rows = [
        sdk(call(*texts, conversation="c1")) for texts in (TALK[:2], TALK[:4], changed)
    ]
    assert conversations(*rows) == [TALK[:4], changed]


def test_an_answer_that_was_made_again_does_not_make_a_second_conversation():
    again = ["hi", "hey", *TALK[2:]]
    one, two = (sdk(call("hi", text, conversation="c1")) for text in ("hello", "hey"))
    assert conversations(one, two) == [["hi", "hey"]]
    assert conversations(one, two, sdk(call(*again[:4], conversation="c1"))) == [
        again[:4]
    ]
    assert conversations(one, two, sdk(call(*TALK[:4], conversation="c1"))) == [
        TALK[:4]
    ]


def test_white_space_that_an_app_takes_off_does_not_part_a_conversation():
    rows = [sdk(call("hi", " hello\n")), sdk(call(*TALK[:4]), trace="t2")]
    assert conversations(*rows) == [TALK[:4]]


def test_the_inner_calls_of_an_agent_are_one_conversation():
    whole = semantic()
    asked = json.loads(whole["attributes"]["gen_ai.input.messages"])
    first = sdk(
        {
            "gen_ai.input.messages": json.dumps(asked[:1]),
            "gen_ai.output.messages": json.dumps(
                [{**asked[1], "finish_reason": "tool_call"}]
            ),
        }
    )
    agent = sdk(
        {
            **call("what time is it?", "It is noon."),
            "gen_ai.operation.name": "invoke_agent",
        }
    )
    for rows in ([first, whole, agent], [agent, first, whole]):
        imported = the_only(*rows)
        assert [turn.text for turn in imported.conversation.turns] == [
            "what time is it?",
            "It is noon.",
        ]
        assert imported.notes["tool to meta"] == 2
        assert imported.notes["merged spans"] == 2


def test_the_span_of_an_agent_that_shows_the_last_exchange_only_is_no_conversation_beside_its_calls():
    agent = call(*TALK[2:4]) | {"openinference.span.kind": "AGENT"}
    rows = [sdk(call(*TALK[:4])), sdk(agent)]
    assert conversations(*rows) == conversations(*rows[::-1]) == [TALK[:4]]


def test_the_span_of_an_agent_counts_where_no_call_shows_what_was_said():
    agent = sdk(call(*TALK[:2]) | {"openinference.span.kind": "AGENT"}, trace="t0")
    others = [sdk(call("why?", "so")), sdk(call(*TALK[:4]))]
    found = read(agent, *others)
    assert [(f.line.number, len(f.imported.conversation.turns)) for f in found] == [
        (1, 4),
        (2, 2),
    ]
    found = read(agent, others[0])
    assert [(f.line.number, f.imported.conversation.id) for f in found] == [
        (1, "t0"),
        (2, "0xt1"),
    ]


def test_a_call_that_failed_leaves_the_user_without_an_answer():
    failed = call("hi", "hello")
    del failed["gen_ai.output.messages"]
    conversation = the_only(sdk(failed)).conversation
    assert ([turn.text for turn in conversation.turns], conversation.ended) == (
        ["hi"],
        False,
    )


def test_a_session_stands_in_for_a_conversation_id_and_the_file_for_a_trace():
    assert (
        the_only(sdk({**call("hi", "yo"), "session.id": "s1"})).conversation.id == "s1"
    )
    assert (
        the_only({"traceId": "", "attributes": call("hi", "yo")}).conversation.id
        == "log-1"
    )


# --- what cannot be used --------------------------------------------------------------------------


def test_spans_without_messages_are_counted_and_every_line_is_accounted_for():
    http = sdk({"http.request.method": "GET"})
    tool = sdk({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "clock"})
    broken = sdk({"gen_ai.input.messages": "[{"})
    rows = [
        http,
        sdk(call(*TALK[:2])),
        broken,
        sdk(call(*TALK[:4])),
        tool,
        export(("t8", {}), ("t9", call("a", "b"))),
    ]
    found = read(*rows)
    assert [(f.line.number, f.rejected is None) for f in found] == [
        (3, False),
        (2, True),
        (6, True),
    ]
    notes = found[1].imported.notes
    assert notes == {"spans without messages": 3, "merged spans": 1, "merged lines": 3}
    assert len(found) + notes["merged lines"] == len(rows)
    assert found[2].imported.notes == {}
    assert set(notes) <= set(NOTES)


def test_where_no_span_shows_what_was_said_each_line_is_rejected_and_says_what_to_do():
    found = read(
        sdk({"http.request.method": "GET"}), sdk({"gen_ai.request.model": "m"})
    )
    assert [(f.line.number, f.rejected.reason) for f in found] == [
        (1, "no messages"),
        (2, "no messages"),
    ]
    assert "capture" in str(found[0].rejected)


def test_a_broken_span_among_good_ones_is_left_out_and_counted():
    imported = the_only(
        export(("t1", call("hi", "yo")), ("t2", {"gen_ai.input.messages": 5}))
    )
    assert imported.notes == {"spans left out": 1}


@pytest.mark.parametrize(
    ("row", "reason", "named"),
    [
        (
            sdk({"gen_ai.input.messages": '[{"role": "us'}),
            "wrong type",
            "'gen_ai.input.messages' is not JSON",
        ),
        (
            sdk({"gen_ai.input.messages": "{}"}),
            "wrong type",
            "'gen_ai.input.messages' must be a list",
        ),
        (sdk({"llm.output_messages": 7}), "wrong type", "'llm.output_messages'"),
        (
            sdk({"gen_ai.input.messages": "[5]"}),
            "wrong type",
            "gen_ai.input.messages.0",
        ),
        (
            sdk({"gen_ai.input.messages": [{"role": "narrator", "content": "x"}]}),
            "unknown role",
            "messages[gen_ai.input.messages.0].role is 'narrator'",
        ),
        (
            sdk({"gen_ai.prompt.0.content": "x"}),
            "unknown role",
            "messages[gen_ai.prompt.0].role is None",
        ),
        (
            sdk({"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": True}),
            "wrong type",
            "messages[gen_ai.prompt.0].content",
        ),
        (sdk({"gen_ai.completion": "hello"}), "no user turn", "span"),
        (
            sdk(call("hi", " ")),
            "empty turn",
            "messages[gen_ai.output.messages.0].parts",
        ),
        ({**sdk({}), "attributes": 5}, "wrong type", "attributes must be"),
        ({**sdk({}), "attributes": [{"value": {}}]}, "wrong type", "attributes[0].key"),
        ({**sdk({}), "events": {"name": "x"}}, "wrong type", "events must be a list"),
        (sdk({}, events=[None]), "wrong type", "events[0]"),
        (
            sdk({}, events=[{"name": "gen_ai.choice", "attributes": "x"}]),
            "wrong type",
            "events[0].attributes",
        ),
        ({"resourceSpans": {}}, "no messages", "no span"),
        ({"resourceSpans": "x"}, "wrong type", "resourceSpans must be a list"),
        (
            {"resourceSpans": [{"scopeSpans": [3]}]},
            "wrong type",
            "resourceSpans[0].scopeSpans[0]",
        ),
    ],
)
def test_what_is_broken_is_rejected_and_named(row, reason, named):
    (one,) = read(row)
    assert one.rejected is not None
    assert one.rejected.reason == reason
    assert named in str(one.rejected)


def test_a_number_that_is_no_time_gives_no_time():
    for start in ("9" * 5000, 10**400, "12 o'clock", None):
        span = {**sdk(call("hi", "yo")), "start_time": start}
        meta = the_only(span).conversation.meta
        assert meta.get("timestamp") == (
            "12 o'clock" if start == "12 o'clock" else None
        )


@pytest.mark.parametrize(
    "attributes",
    [
        {
            "gen_ai.prompt.²": "x",
            "gen_ai.prompt.².": "y",
            "gen_ai.prompt.x.y": 1,
            "gen_ai.prompt.0": "z",
        },
        {"gen_ai.prompt.0.tool_calls.²": "x", "gen_ai.prompt.0.role": "user"},
        {"gen_ai.prompt." + "0." * 5000 + "role": "user"},
        {"gen_ai.prompt." + "9" * 5000 + ".role": "user"},
        {"llm.input_messages.0": "x", "llm.input_messages.0.message.role": "user"},
    ],
)
def test_keys_that_no_convention_knows_are_no_crash(attributes):
    assert all(f.imported is None for f in read(sdk(attributes)))


@pytest.mark.parametrize("key", [["role"], {"a": 1}, 1.5, None])
def test_a_key_that_is_no_text_is_no_crash(key):
    pair = {"key": key, "value": otlp("user")}
    message = {"kvlistValue": {"values": [pair]}}
    value = {"arrayValue": {"values": [message]}}
    span = sdk({})
    span["attributes"] = [{"key": "gen_ai.input.messages", "value": value}]
    (one,) = read(span)
    assert one.rejected is not None and one.rejected.reason == "unknown role"


def test_lines_without_messages_are_kept_whole():
    silent = {"traceId": "a", "attributes": {"url": "x"}, "extra": [1]}
    gathered = Gathered()
    assert list(find([Line(4, silent)], None, "log", gathered)) == []
    [one] = gathered.found()
    assert (one.line.number, one.line.row) == (4, silent)
    assert one.rejected.reason == "no messages"


@pytest.mark.parametrize("is_nested", [True, False])
def test_long_names_over_many_values_do_not_fill_the_memory(is_nested):
    many = dict.fromkeys(map(str, range(20_000)), 1)
    attributes: dict[str, Any] = {"k" * 100_000: many}
    if not is_nested:
        path = f"message.{'a.' * 100}{'k' * (1 << 20)}"
        attributes = {"gen_ai.input.messages": [{path: "hi"}]}
    (found,) = find(
        [Line(1, {"traceId": "t", "attributes": attributes})], "otel", "f", Gathered()
    )
    assert "the names of attributes have more than 1,048,576 letters" in str(
        found.rejected
    )


def test_lines_without_messages_take_less_memory_than_the_file():
    attributes = [{"key": f"k{i}", "value": {"stringValue": "v"}} for i in range(15)]
    size = len(json.dumps({"traceId": "1" * 32, "attributes": attributes}))
    gathered = Gathered()
    tracemalloc.start()
    for number in range(1, 501):
        # As they come from a file, each has values of its own.
        row = json.loads(json.dumps({"traceId": "1" * 32, "attributes": attributes}))
        assert not list(find([Line(number, row)], None, "log", gathered))
        del row
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 500 * size / 2
    assert sum(1 for _ in gathered.found()) == 500


# --- the order of calls, and people who share an id -----------------------------------------------


def at(second: int, *texts: str, **ids: str) -> dict[str, Any]:
    start = datetime.fromtimestamp(1_740_830_400 + second, UTC).isoformat()
    return {**sdk(call(*texts, **ids), f"0x{second}"), "start_time": start}


def export_at(*spans: dict[str, Any]) -> dict[str, Any]:
    """The spans in one line."""
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def found_in(*rows: dict[str, Any]):
    return [each.imported.conversation for each in read(*rows)]


@pytest.mark.parametrize("ids", [{"conversation": "c"}, {"user": "p"}])
@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 1, 2, 4, 3], [3, 4, 0, 2, 1]]
)
def test_calls_with_the_last_messages_alone_are_joined_in_the_order_of_their_times(
    order, ids
):
    texts = [f"turn {n}" for n in range(14)]
    spans = [at(n, *texts[2 * n : 2 * n + 6], **ids) for n in range(5)]
    [one] = found_in(*(spans[n] for n in order))
    assert [turn.text for turn in one.turns] == texts and one.ended


@pytest.mark.parametrize("step", [1, -1])
def test_of_an_answer_made_again_the_later_one_is_kept(step):
    spans = [
        at(0, "hi", "bad", conversation="c"),
        at(1, "hi", "good", conversation="c"),
    ]
    [one] = found_in(*spans[::step])
    assert one.turns[1].text == "good"


@pytest.mark.parametrize("reasons", [["length"], '["max_tokens"]'])
def test_an_answer_that_was_cut_at_a_limit_is_no_end(reasons):
    attributes = call(*TALK, conversation="c")
    [one] = found_in(sdk(attributes | {"gen_ai.response.finish_reasons": ["stop"]}))
    assert one.ended
    [one] = found_in(sdk(attributes | {"gen_ai.response.finish_reasons": reasons}))
    assert not one.ended
    said = attributes["gen_ai.output.messages"].replace('"stop"', '"length"')
    [one] = found_in(sdk(attributes | {"gen_ai.output.messages": said}))
    assert not one.ended
    flat = {f"gen_ai.prompt.0.{key}": value for key, value in chat("hi")[0].items()}
    flat |= {"gen_ai.completion.0.content": "yo"}
    several = {"gen_ai.response.finish_reasons": ["stop", "length"]}
    [one] = found_in(sdk(attributes | several))
    assert one.ended
    said = {"index": 0, "finish_reason": "length", "message": '{"content": "yo"}'}
    events = [
        {"name": "gen_ai.user.message", "attributes": {"content": "hi"}},
        {"name": "gen_ai.choice", "attributes": said},
    ]
    [one] = found_in(sdk({}, events=events))
    assert one.turns[-1].text == "yo" and not one.ended
    for reason, ended in ("stop", True), ("length", False):
        [one] = found_in(sdk(flat | {"gen_ai.completion.0.finish_reason": reason}))
        assert one.ended is ended


def test_several_people_may_write_in_one_conversation():
    texts = [f"turn {n}" for n in range(12)]
    who = ["p1", "p1", "p2", "p1", "p3", "p2"]
    rows = [
        at(n, *texts[: 2 * n + 2], conversation="c", user=user)
        for n, user in enumerate(who)
    ]
    for order in rows, rows[::-1], rows[1:], [*rows[3:], *rows[:3]]:
        [one] = read(*order)
        assert [turn.text for turn in one.imported.conversation.turns] == texts
        assert one.imported.notes["ids of several people"] == 1


@pytest.mark.parametrize("exchanges", [1, 2])
def test_who_had_another_name_before_the_login_goes_on(exchanges):
    texts = [f"turn {n}" for n in range(8)]
    rows = [
        at(
            n,
            *texts[: 2 * n + 2],
            conversation="c",
            user="known" if n >= exchanges else "x7",
        )
        for n in range(4)
    ]
    for order in rows, rows[::-1], [export_at(*rows)]:
        [one] = found_in(*order)
        assert [turn.text for turn in one.turns] == texts and one.user == "known"


def test_people_who_share_an_id_lose_nothing_to_each_other():
    rows = [
        at(n, "when do you open?", f"at {n}", conversation="default", user=f"p{n}")
        for n in range(5)
    ]
    found = read(*rows)
    assert [one.imported.conversation.user for one in found] == [
        f"p{n}" for n in range(5)
    ]
    assert found[0].imported.notes["ids of several people"] == 1
    greeting = [
        at(0, "hi", "hello", conversation="c", user="p0"),
        at(1, "hi", "hello", "card?", "lost", conversation="c", user="p0"),
        at(2, "hi", "hello", conversation="c", user="p1"),
        at(3, "hi", "hello", "hours?", "nine", conversation="c", user="p2"),
    ]
    two = [at(n, "hi", "hello", conversation="c", user=f"p{n}") for n in range(2)]
    assert len(found_in(*two)) == 2
    for order in greeting, greeting[::-1]:
        talks = {one.user: len(one.turns) for one in found_in(*order)}
        assert talks == {"p0": 4, "p1": 2, "p2": 4}


def test_a_guest_who_logs_in_goes_on_and_another_guest_does_not_take_it_over():
    guest = at(0, "hi", "hello", conversation="c")
    known = at(1, "hi", "hello", "my order?", "on its way", conversation="c", user="p")
    out = at(2, "hi", "hello", "my order?", "on its way", "ok", "bye", conversation="c")
    for rows, turns in (
        ([guest, known], 4),
        ([known, guest], 4),
        ([guest, known, out], 6),
    ):
        [one] = found_in(*rows)
        assert one.user == "p" and len(one.turns) == turns

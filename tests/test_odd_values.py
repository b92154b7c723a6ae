"""Rows of every layout with values of a wrong type, at every place."""

import datetime as dt
import json
from copy import deepcopy
from random import Random

import pytest

from userlm.data.layouts import Gathered, find
from userlm.data.layouts.mapped import Map
from userlm.json_files import dump
from userlm.lines import Line
from userlm.rows import from_record, to_record

U = {"role": "user", "content": "where is it"}
A = {"role": "assistant", "content": "on its way"}
TALK = [U, A, U, A]
PARTS = [{"type": "text", "text": "yes"}, {"type": "thinking", "thinking": "hm"}]
SAID = [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
SENT = {"message_id": "m", "role": "prompter", "text": "hi", "rank": 1, "user_id": "u"}
ANSWER = {"message_id": "n", "parent_id": "m", "role": "assistant", "text": "yes"}
SETTINGS = {"maxTurns": 3, "instructions": "ask {{x}}"}
SIMULATION = {
    "task_id": "3",
    "trial": 1,
    "termination_reason": "user_stop",
    "messages": [*TALK, {"role": "user", "content": "###STOP###", "is_audio": True}],
    "reward_info": {"reward": 1.0},
    "task": {"user_scenario": {"instructions": {"reason_for_call": "it is late"}}},
}
RESULT = {
    "testIdx": 3,
    "promptIdx": 0,
    "vars": {},
    "success": True,
    "repeats": 2,
    "userSettings": [SETTINGS],
    "provider": {"id": "echo"},
    "testCase": {"vars": {"x": 1, "initialMessages": [U]}},
    "response": {"metadata": {"messages": TALK, "stop": "end"}},
}
FLAGS = {"toxic": False, "redacted": False, "country": "Chile", "hashed_ip": "i"}
VOTE = {"model_a": "a", "winner": "model_b", "tstamp": 1.5, "evaluation_order": 2}
OFFER = {"turn": 0, "role": "model", "content": "y", "if_chosen": True, "score": 4}
CALL = {"gen_ai.input.messages": json.dumps(SAID), "gen_ai.completion": "yes"}
NESTED = {"llm": {"input_messages": [{"message": U}], "output_messages": [A]}}
LISTED = [
    {"key": "llm.input_messages.0.message.role", "value": {"stringValue": "user"}},
    {"key": "llm.input_messages.0.message.content", "value": {"stringValue": "q"}},
    {"key": "n", "value": {"arrayValue": {"values": [{"intValue": "5"}]}}},
]
EVENT = {"name": "gen_ai.choice", "attributes": {"index": 0, "message": A}}
SPAN = {"traceId": "t", "startTimeUnixNano": 5, "attributes": LISTED, "events": [EVENT]}
QUESTION = {"question": "why", "choices": {"text": ["a", "b", "c"]}, "source": "s"}
ROWS = (
    ("userlm", {"id": "a", "turns": [{"role": "user", "text": "hi", "meta": {}}]}),
    ("userlm", {"turns": [], "meta": {}, "origin": {"repeat": 1}, "ended": False}),
    ("tau2", SIMULATION),
    (None, {"simulations": [SIMULATION], "tasks": [{"id": "3"}], "info": {}}),
    ("promptfoo", RESULT),
    (None, {"results": {"results": [RESULT]}, "config": {"tests": [{"vars": {}}]}}),
    ("messages", {"id": 1, "messages": [*TALK, {**A, "content": PARTS}], "item": "x"}),
    ("messages", {"contents": [{"role": "user", "parts": [{"text": "x"}]}]}),
    ("sharegpt", {"id": "a_0", "conversations": [{"from": "human", "value": "x"}]}),
    ("wildchat", {"conversation_hash": "h", "conversation": [{**U, **FLAGS}, A]}),
    ("lmsys", {"conversation": TALK, "openai_moderation": [{}], "timestamp": 1.0}),
    ("arena", {**VOTE, "full_conversation": [{"user": U, "model_side_b": A}]}),
    ("arena", {"winner_model_b": 1, "prompt": '["a"]', "response_b": ["b"]}),
    ("arena", {**VOTE, "conversation_a": TALK, "conversation_b": TALK, "judge": 1}),
    ("prism", {"conversation_history": [{**OFFER, "role": "user"}, OFFER, OFFER]}),
    ("oasst", {"message_tree_id": "t", "prompt": {**SENT, "replies": [ANSWER]}}),
    ("oasst", {"message_tree_id": "t", **SENT}),
    ("oasst", {"message_tree_id": "t", **ANSWER}),
    ("otel", {"traceId": "t", "attributes": CALL, "events": [EVENT]}),
    ("otel", {"context": {"trace_id": "t"}, "attributes": NESTED, "start_time": "1"}),
    ("otel", {"resourceSpans": [{"scopeSpans": [{"spans": [SPAN]}]}]}),
    ("role-items", QUESTION),
    ("role-items", {"conversation_history": [U, A], "choices": ["a", "b", "c"]}),
    ("intent-items", {"question": "why", "suggestion": "rest"}),
    ("role=who,text=say,id=key", {"who": "user", "say": "hi", "key": 7}),
    ("role=who,text=say.x,messages=a.b", {"a": {"b": [{"who": "user", "say": {}}]}}),
)
VALUES = (
    *(None, [], {}, "", 0, 1.5, -1, True, "x", ["a"], {"a": 1}, [[]], [None], [{}]),
    *("<think>hm</think>ok", "null", "[]", '[{"a":1}]', 10**400, float("nan"), "²"),
    *(U, "user", "\ud800", {"text": 1}, {"": 1}, {"0": {"a": 1}}, dt.date(2020, 1, 1)),
)
NAMES = (
    *("role", "content", "parts", "tool_calls", "type", "thinking", "audio", "item"),
    *("tree", "fragment", "ended", "meta", "solved", "simulations", "results", "stop"),
)


def places(value):
    if isinstance(value, dict | list):
        names = list(value) if isinstance(value, dict) else range(len(value))
        for name in names:
            yield value, name
            yield from places(value[name])


def changed(row, random):
    row = deepcopy(row)
    for _ in range(random.choice((1, 1, 2, 3))):
        inside, name = random.choice(list(places(row)))
        if isinstance(inside, dict) and random.random() < 0.2:
            name = random.choice(NAMES)
        inside[name] = deepcopy(random.choice(VALUES))
        if not row:
            break
    return row


@pytest.mark.parametrize(("source", "row"), ROWS)
def test_an_odd_value_costs_its_row_at_most_and_what_is_kept_can_be_read(source, row):
    random = Random(0)
    mapped = Map.parse(source) if source and "=" in source else None
    for _ in range(300):
        odd = changed(row, random)
        gathered = Gathered(mapped)
        lines = [Line(1, odd), Line(2, deepcopy(row))]
        layout = None if mapped else random.choice((source, None))
        for found in [*find(lines, layout, "log", gathered), *gathered.found()]:
            if found.rejected:
                assert found.rejected.reason != "fault in userlm", odd
            else:
                from_record(json.loads(dump(to_record(found.imported.conversation))))


def test_a_fault_in_a_layout_costs_its_row_and_asks_for_a_report(monkeypatch):
    def fails(*_):
        raise TypeError("no such thing")

    monkeypatch.setattr("userlm.data.layouts.convert", fails)
    first, second = find(
        [Line(1, {"messages": TALK}), Line(2, {})], None, "log", Gathered()
    )
    assert str(first.rejected).startswith("fault in userlm: TypeError: no such thing")
    assert "please report" in str(first.rejected)
    assert second.rejected.reason == "unknown layout"

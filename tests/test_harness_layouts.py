"""Results of other harnesses become conversations."""

import json
import time

import pytest

from userlm import commands
from userlm.data.layouts import Gathered, find
from userlm.lines import Line
from userlm.rows import read_conversations


def said(role, content=None, **fields):
    return {"role": role, "content": content, **fields}


CALL = {"id": "c1", "name": "find_order", "arguments": {"number": "7"}}
SIMULATION = {
    "id": "s1",
    "task_id": "t1",
    "trial": 2,
    "termination_reason": "user_stop",
    "reward_info": {"reward": 1.0},
    "messages": [
        said("assistant", "Hi! How can I help?"),
        said("user", "Where is order 7?"),
        said("assistant", tool_calls=[CALL]),
        said("tool", '{"status": "sent"}', id="c1", requestor="assistant"),
        said("assistant", "It was sent."),
        said("user", "###STOP###"),
    ],
}
TASKS = [
    {"id": "t1", "user_scenario": {"instructions": {"reason_for_call": "find order 7"}}}
]


def tau2(*simulations):
    return {"info": {}, "tasks": TASKS, "simulations": list(simulations)}


def result(**fields):
    config = {"instructions": "You want a refund.", "maxTurns": 3}
    found = {
        "id": "r1",
        "testIdx": 0,
        "promptIdx": 0,
        "vars": {},
        "success": False,
        "provider": {"id": "echo"},
        "testCase": {"provider": {"id": "promptfoo:simulated-user", "config": config}},
        "metadata": {"messages": [said("user", "Refund?"), said("assistant", "No.")]},
    }
    return {**found, **fields}


def read(*rows):
    lines = [Line(i, row) for i, row in enumerate(rows, 1)]
    return list(find(lines, None, "log", Gathered()))


def conversation(row):
    (one,) = read(row)
    return one.imported.conversation


@pytest.mark.parametrize("row", [tau2(SIMULATION), SIMULATION])
def test_a_simulation_is_its_words_and_the_mark_of_the_user_is_the_end(row):
    found = conversation(row)
    assert [turn.text for turn in found.turns] == [
        "Hi! How can I help?",
        "Where is order 7?",
        "It was sent.",
    ]
    assert found.ended and "find_order" in found.meta["tool"]
    assert (found.origin.task, found.origin.repeat) == ("t1", 2)
    assert (found.meta["solved"], found.meta["source"]) == (True, "tau2")
    assert found.meta.get("goal") == ("find order 7" if "simulations" in row else None)


@pytest.mark.parametrize(
    ("last", "reason", "ended"),
    [
        ([said("user", "Thanks! ###STOP###")], "user_stop", False),
        ([said("user", "###TRANSFER###")], "user_stop", True),
        ([], "max_steps", False),
        ([], "agent_stop", False),
    ],
)
def test_an_end_is_observed_only_if_the_user_stops_without_a_word(last, reason, ended):
    messages = SIMULATION["messages"][:-1] + last
    found = conversation(
        {**SIMULATION, "messages": messages, "termination_reason": reason}
    )
    assert found.ended is ended
    assert "###" not in found.turns[-1].text


def test_one_bad_simulation_costs_no_other():
    bad = {**SIMULATION, "id": "s2", "messages": [said("user", "###STOP###")]}
    spoken = {**SIMULATION, "messages": None, "ticks": [{}]}
    found = read(tau2(bad, SIMULATION, "text", spoken))
    assert [one.rejected and one.rejected.reason for one in found] == [
        "no user turn",
        None,
        "not an object",
        "no messages",
    ]


def test_a_simulation_of_speech_in_ticks_is_rejected_as_such():
    spoken = {name: SIMULATION[name] for name in SIMULATION if name != "messages"}
    (found,) = read({**spoken, "ticks": [{"tick_id": 0}]})
    assert "it is spoken" in str(found.rejected)


def test_calls_of_the_user_and_audio_are_no_words_of_theirs():
    messages = [
        said("user", tool_calls=[CALL]),
        said("tool", "on", id="c1", requestor="user"),
        said("user", "QUJD", is_audio=True, audio_script_gold="It is on now."),
        said("assistant", "Good."),
    ]
    found = conversation({**SIMULATION, "messages": messages})
    assert [turn.text for turn in found.turns] == ["It is on now.", "Good."]


@pytest.mark.parametrize(
    "row",
    [result(), {"evalId": "e", "config": {}, "results": {"results": [result()]}}],
)
def test_a_result_of_promptfoo_is_its_messages(row):
    found = conversation(row)
    assert [turn.text for turn in found.turns] == ["Refund?", "No."]
    assert found.ended  # after one of at most three turns
    assert found.meta["goal"] == "You want a refund."
    assert (found.meta["solved"], found.meta["model"]) == (False, "echo")


def test_a_result_that_used_all_turns_has_no_observed_end():
    messages = [said("user", "a"), said("assistant", "b")] * 3
    assert not conversation(result(metadata={"messages": messages})).ended


def evaluation(*results, **config):
    """A file as promptfoo 0.121 writes it: a result has no settings of its user."""
    rows = [
        {**one, "testCase": {**one["testCase"], "provider": {"id": "promptfoo"}}}
        for one in results
    ]
    options = {"repeat": 2}
    return {"config": config, "results": {"results": rows}, "runtimeOptions": options}


def tried(number, **variables):
    """The result of a test with these variables, of three turns of its user."""
    messages = [said("user", "a"), said("assistant", "b")] * 3
    fields = {"metadata": {"messages": messages}, "testCase": {"vars": variables}}
    return result(testIdx=number, vars=variables, **fields)


def test_settings_of_the_user_are_found_in_the_configuration_of_the_file():
    user = {"id": "promptfoo", "config": {"maxTurns": 3, "instructions": "Ask {{x}}."}}
    tests = [{"vars": {"x": "long"}, "provider": user}, {"vars": {"x": "short"}}]
    default = {"provider": {"maxTurns": 4, "rawInstructions": "Say {{ x }}."}}
    given = [tried(0, x="long"), tried(2, x="short"), tried(4, x="elsewhere")]
    file = evaluation(*given, tests=tests, defaultTest=default)
    found = [one.imported.conversation for one in read(file)]
    assert [one.ended for one in found] == [False, True, False]
    assert [one.meta.get("goal") for one in found] == ["Ask long.", "Say short.", None]


@pytest.mark.parametrize("reward", ["1.0", [1], {"a": 1}, True])
def test_a_reward_that_is_no_number_is_unknown(reward):
    found = conversation({**SIMULATION, "reward_info": {"reward": reward}})
    assert not {"solved", "reward"} & found.meta.keys()


@pytest.mark.parametrize(("stop", "ended"), [("max_turns", False), ("end", True)])
def test_where_a_result_says_why_it_stopped_turns_are_not_counted(stop, ended):
    metadata = {**result()["metadata"], "stop": stop}
    assert conversation(result(metadata=metadata)).ended is ended
    metadata["messages"] = [said("user", "a"), said("assistant", "b")] * 3
    assert conversation(result(metadata=metadata)).ended is ended


CHAT = {"messages": [said("user", "a"), said("assistant", "b")]}
LISTS = [{"simulations": []}, {"results": {"results": []}}, {"simulations": [{"a": 1}]}]


@pytest.mark.parametrize("beside", LISTS)
@pytest.mark.parametrize("source", [None, "messages"])
def test_a_chat_with_a_list_like_that_of_a_file_of_results_is_a_chat(beside, source):
    lines = [Line(1, {**CHAT, **beside})]
    (one,) = find(lines, source, "log", Gathered())
    assert len(one.imported.conversation.turns) == 2


def test_a_file_of_results_without_any_is_a_dropped_row():
    found = read(tau2(), {"results": {"results": []}})
    assert [one.rejected.reason for one in found] == ["no messages"] * 2
    assert "'simulations'" in str(found[0].rejected) and "tasks" in found[0].line.raw


def test_a_large_task_of_many_simulations_fills_no_disk():
    scenario = {"instructions": "find it " * 10_000}
    file = {**tau2(*[{"task_id": "t1"}] * 100), "tasks": [{"id": "t1", **scenario}]}
    (one,) = read(file)
    assert one.rejected.reason == "too long"


def test_many_results_of_many_tests_take_no_time():
    vars = [{"x": n, "same": 1} for n in range(3_000)]
    given = [tried(n, **of) for n, of in enumerate(vars)]
    tests = [{"vars": of, "provider": {"config": {"maxTurns": 3}}} for of in vars]
    begun = time.process_time()
    found = read(evaluation(*given, tests=tests))
    assert time.process_time() - begun < 5  # it was minutes
    assert len(found) == 3_000


@pytest.mark.parametrize("vars", [{"x": 1}, {}])
def test_many_tests_of_the_same_variables_take_no_time(vars):
    settings = [{"maxTurns": 3, "instructions": f"{n}"} for n in range(3_000)]
    tests = [{"vars": vars, "provider": {"config": each}} for each in settings]
    begun = time.process_time()
    found = read(evaluation(*[tried(n, **vars) for n in range(3_000)], tests=tests))
    assert time.process_time() - begun < 5  # it was minutes
    assert not any("goal" in one.imported.conversation.meta for one in found)
    assert not any(one.imported.conversation.ended for one in found)


def test_tests_whose_filled_instructions_differ_have_no_goal():
    texts = ["Cancel {{x}}", "Cancel 5", "Refund {{x}}"]
    tests = [
        {"vars": {"x": "5"}, "provider": {"config": {"instructions": text}}}
        for text in texts
    ]
    for given, goal in (tests[:2], "Cancel 5"), (tests, None):
        [found] = read(evaluation(tried(0, x="5"), tests=given))
        assert found.imported.conversation.meta.get("goal") == goal


def test_a_variable_that_stands_in_a_text_thousands_of_times_fills_no_memory():
    config = {"instructions": "{{x}}" * 20_000}
    tests = [{"vars": {"x": "a" * 100_000}, "provider": {"config": config}}]
    begun = time.process_time()
    [found] = read(evaluation(tried(0, x="a" * 100_000), tests=tests))
    assert "goal" not in found.imported.conversation.meta
    assert time.process_time() - begun < 2  # it was 2 GB


def test_a_list_of_variables_and_a_provider_by_its_name_are_understood():
    named = {"vars": {"instructions": "Ask."}, "provider": "promptfoo:simulated-user"}
    settings = {"maxTurns": 3, "instructions": "Cancel {{x}}"}
    matrix = {"vars": {"x": ["1", "2"]}, "provider": {"config": settings}}
    given = [tried(0, instructions="Ask."), tried(1, x="2")]
    for one, test, goal in zip(
        given, (named, matrix), ("Ask.", "Cancel 2"), strict=True
    ):
        [found] = read(evaluation(one, tests=[test]))
        assert found.imported.conversation.meta["goal"] == goal


@pytest.mark.parametrize(
    "test",
    [
        {"vars": {"x": ["1", "2"]}, "provider": {"config": {"maxTurns": 9}}},
        {"vars": {"x": "1"}, "provider": "file://user.yaml"},
    ],
)
def test_settings_that_are_not_there_are_not_those_of_another_test(test):
    other = {"vars": {}, "provider": {"config": {"maxTurns": 10}}}
    [found] = read(evaluation(tried(0, x="1"), tests=[test, other]))
    conversation = found.imported.conversation
    assert not conversation.ended and "goal" not in conversation.meta


def test_results_without_ids_are_conversations_of_their_own():
    given = [tried(n) for n in range(3)]
    for one in given:
        del one["id"]
    found = [one.imported.conversation.id for one in read(evaluation(*given))]
    assert len(set(found)) == 3


def test_repeats_of_a_test_are_about_one_task_and_other_tests_are_not():
    given = [tried(n, **of) for n, of in enumerate([{"x": 1}] * 2 + [{"x": 2}] + [{}])]
    tasks = [one.imported.conversation.origin.task for one in read(evaluation(*given))]
    assert tasks[0] == tasks[1] and len(set(tasks)) == 3


def test_turns_that_were_given_to_a_user_of_promptfoo_are_not_its_own():
    opening = [said("user", "a"), said("assistant", "b")]
    one = tried(0, initialMessages=opening)
    user = {"id": "promptfoo", "config": {"maxTurns": 3}}
    tests = [{"vars": one["vars"], "provider": user}]
    (found,) = read(evaluation(one, tests=tests))
    assert found.imported.conversation.first_own_turn == 1
    assert found.imported.conversation.ended  # after two of at most three turns


def test_tasks_of_two_domains_of_tau2_are_not_one():
    domains = [{"environment_info": {"domain_name": name}} for name in ("a", "b")]
    files = [{**tau2(SIMULATION), "info": info} for info in domains]
    found = [one.imported.conversation.origin.task for one in read(*files)]
    assert found == ["a/t1", "b/t1"]


def test_a_result_without_messages_is_rejected_with_its_error():
    (one,) = read(result(metadata={}, error="the provider failed"))
    assert str(one.rejected) == "no messages: the provider failed"


def test_repeats_with_the_same_words_stay_conversations(tmp_path):
    again = {**SIMULATION, "id": "s3", "trial": 3}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(tau2(SIMULATION, again), indent=2))
    out = tmp_path / "import"
    commands.import_(commands.Import([str(path)], out))
    found = read_conversations(out / "conversations.jsonl")
    assert [one.id for one in found] == ["s1", "s3"]


def test_a_map_says_where_messages_are_also_in_a_row_like_a_file_of_results(tmp_path):
    said = [{"who": "customer", "says": "hi"}, {"who": "agent", "says": "hello"}]
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"results": {"results": said}, "simulations": []}))
    mapped = "role=who,text=says,messages=results.results"
    roles = "customer=user,agent=assistant"
    commands.import_(
        commands.Import([str(log)], map=mapped, roles=roles, out=tmp_path / "out")
    )
    [found] = read_conversations(tmp_path / "out" / "conversations.jsonl")
    assert [turn.text for turn in found.turns] == ["hi", "hello"]

"""Users in the harnesses of others. The harnesses themselves run in `make test-peers`; here stand-ins
have their names, and what is tested is ours."""

import asyncio
import importlib
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

import pytest
from fake_server import Said, completion, error, serving

from userlm import Conversation, ModelError, Reply, bridges
from userlm.bridges import (
    ServedUser,
    Talk,
    UserEnded,
    find_user,
    intent_of,
    next_turn,
    turns_of,
)
from userlm.bridges.promptfoo import call_api
from userlm.serving.app import create_app, running
from userlm.serving.messages import turn_request
from userlm.serving.schema import ServerConfig, parse_request

SURE = {"role": "assistant", "content": "sure"}
LINES = ["hi there", "move my flight", "what does it cost?"]


class User:
    """Says its lines, and ends with the last of them."""

    def __init__(self, *lines, stop="end"):
        self.lines = lines
        self.stop = stop
        self.heard = []

    def reply(self, conversation):
        self.heard.append(conversation)
        said = len(conversation.user_turns)
        is_last = said == len(self.lines) - 1
        return Reply(self.lines[said], self.stop if is_last else None)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "user.txt"
    path.write_text("\n".join(LINES))
    return f"script:{path}"


def said_by(talk, limit=10):
    """What a user says until it ends the conversation."""
    history, said = [], []
    while len(said) < limit and (text := talk.say(history)) is not None:
        said.append(text)
        history += [{"role": "user", "content": text}, SURE]
    return said


# --- the next turn --------------------------------------------------------------------------------


def test_the_next_turn_follows_the_words_of_the_history():
    user = User("one", "two", "three")
    history = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "found"},
        {"role": "assistant", "content": "yes?"},
        {"role": "assistant", "content": "I am here."},
    ]
    assert next_turn(user, history, "Book a flight") == ("two", False)
    [heard] = user.heard
    assert [turn.text for turn in heard.turns] == ["hello", "yes?\n\nI am here."]
    assert heard.intent == (
        "You are a user chatting with an assistant language model to book a flight"
    )


def test_an_address_is_loaded_once_in_all_threads(script, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        bridges.loading, "user", lambda address: loaded.append(address) or User("hi")
    )
    with ThreadPoolExecutor(8) as pool:
        users = list(pool.map(find_user, [f"{script}#threads"] * 8))
    assert len(loaded) == 1
    assert len(set(map(id, users))) == 1


def test_conversations_about_the_same_goal_have_names_of_their_own():
    user = User("one", "two")
    for id in ("", "", "mine"):
        next_turn(user, [], "fly", id)
    names = [conversation.id for conversation in user.heard]
    assert len(set(names)) == 3
    assert names[2] == "mine"


@pytest.mark.parametrize("stop", ["guard", "context", "error"])
def test_a_user_that_cannot_speak_is_an_error_and_no_end(stop):
    with pytest.raises(ModelError, match=stop):
        next_turn(User("", stop=stop), [], "fly")


def test_a_user_that_says_nothing_and_does_not_end_is_an_error():
    with pytest.raises(ModelError, match="neither a text nor a stop"):
        next_turn(User("", "hi"), [], "fly")


def test_a_user_whom_nobody_answered_is_not_asked_again():
    user = User("hi")
    with pytest.raises(ModelError, match="nothing was said to it"):
        next_turn(user, [{"role": "user", "content": "hello"}], "fly")
    assert not user.heard


def test_last_words_are_said_before_the_end_is_heard():
    assert said_by(Talk(User("hi", "bye"), "fly")) == ["hi", "bye"]
    assert asyncio.run(Talk(User("", stop="end"), "fly").say_async([])) is None


def test_an_intent_is_found_in_a_long_goal_and_made_of_a_short_one():
    opening = "You are a user chatting with an assistant language model to "
    assert intent_of(f"Be brief. {opening}fly. Thanks.") == f"{opening}fly."
    assert intent_of("Fly to Rome.") == f"{opening}fly to Rome."
    assert intent_of("IBM shares") == f"{opening}IBM shares"
    assert intent_of("I need a tyre") == f"{opening}I need a tyre"
    assert intent_of("") == ""
    assert turns_of([{"role": "user", "content": ""}]) == []


SAID = [
    {"role": "developer", "content": "be kind"},
    {"role": "assistant", "content": " Hello! "},
    {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, "b", {"type": "image_url"}],
    },
    {"role": "user", "content": "c\n", "name": "Ann"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function"}],
    },
    {"role": "tool", "content": "found", "tool_call_id": "1"},
    {"role": "assistant", "content": "<think>a flight</think>Which one?"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "", "refusal": "I may not."},
    {"role": "user", "content": "e"},
    {"role": "assistant", "content": ""},
]


def test_a_bridge_reads_messages_as_the_server_does():
    body = {"model": "user", "messages": SAID, "userlm": {"roles": "log"}}
    found = turn_request(parse_request(body, "user"), User("hi"), ServerConfig())
    assert turns_of(SAID) == list(found.conversation.turns)
    texts = [turn.text for turn in turns_of(SAID)]
    assert texts == [
        " Hello! ",
        "a\n\nb\n\nc",
        "Which one?",
        "d",
        "I may not.",
        "e",
        "",
    ]


def test_a_user_that_got_only_calls_of_tools_is_not_asked_again():
    with pytest.raises(ModelError, match="no words of the assistant"):
        turns_of(SAID[2:6])


def test_a_served_user_takes_its_turns_in_a_bridge(monkeypatch):
    user = User("hi", "bye")
    app = create_app(user, ServerConfig(stop_phrase="###STOP###", key="secret"))
    monkeypatch.setenv("USERLM_SERVE_KEY", "secret")
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        running(app, listening),
    ):
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        assert said_by(Talk(url, "Fly")) == ["hi", "bye"]
        assert user.heard[0].intent.endswith("model to fly")
        with pytest.raises(ModelError, match="last, has the role"):
            ServedUser(url).reply(Conversation("c").say("hi"))


def test_what_is_meant_for_openai_goes_to_no_served_user(monkeypatch):
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: a-header")
    monkeypatch.setenv("OPENAI_ORG_ID", "an-organization")
    said = completion("hi")
    said.body["userlm"] = {"stop": None}
    with serving([Said(body={"data": [{"id": "m"}]}), said]) as server:
        assert ServedUser(server.url).reply(Conversation("c")) == Reply("hi")
    assert "a-header" not in str(server.headers)
    assert "an-organization" not in str(server.headers)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (completion("hi"), "no answer of `userlm serve`"),  # another server
        (Said(body={"choices": [], "userlm": {}}), "no answer of `userlm serve`"),
        (error(503, "down", {"x-should-retry": "false"}), "the server failed: down"),
        (Said(307, headers={"Location": "http://h/v1"}), "redirects to http://h/v1"),
    ],
)
def test_a_server_that_serves_no_user_is_asked_once_and_named(said, why):
    with (
        serving([Said(body={"data": [{"id": "m"}]}), said]) as server,
        pytest.raises(ModelError, match=why),
    ):
        ServedUser(server.url).reply(Conversation("c"))
    assert len(server.requests) == 2


# --- bridges --------------------------------------------------------------------------------------


@pytest.fixture
def bridge(monkeypatch):
    """Import a bridge beside stand-ins for the modules of its harness."""

    def load(name, modules):
        for path, names in modules.items():
            module = ModuleType(path)
            vars(module).update(names)
            monkeypatch.setitem(sys.modules, path, module)
            parent, _, child = path.rpartition(".")
            if parent in modules:
                monkeypatch.setattr(sys.modules[parent], child, module, raising=False)
        monkeypatch.delitem(sys.modules, f"userlm.bridges.{name}", raising=False)
        return importlib.import_module(f"userlm.bridges.{name}")

    return load


@pytest.mark.parametrize(
    "name", ["adk", "deepeval", "giskard", "inspect", "mlflow", "opik", "scenario"]
)
def test_a_bridge_says_what_to_install(name, monkeypatch):
    roots = (
        "google",
        "deepeval",
        "giskard",
        "inspect_ai",
        "mlflow",
        "opik",
        "scenario",
    )
    for root in roots:
        monkeypatch.setitem(sys.modules, root, None)
    monkeypatch.delitem(sys.modules, f"userlm.bridges.{name}", raising=False)
    with pytest.raises(ImportError, match=r'this bridge needs .*: pip install "'):
        importlib.import_module(f"userlm.bridges.{name}")


def test_mlflow_hears_the_end_as_an_error_of_the_turn(bridge):
    names = {"BaseSimulatedUserAgent": object, "SimulatorContext": object}
    paths = ("mlflow", "mlflow.genai", "mlflow.genai.simulators")
    mlflow = bridge("mlflow", dict.fromkeys(paths, names))
    agent = mlflow.simulated_user(User("hi", "bye"))(model="openai:/any", seed=1)
    history = []
    for expected in ("hi", "bye"):
        context = SimpleNamespace(goal="fly", conversation_history=history)
        assert agent.generate_message(context) == expected
        history += [{"role": "user", "content": expected}, SURE]
    with pytest.raises(UserEnded, match="the user ended"):
        agent.generate_message(context)


def test_deepeval_is_told_the_end_before_a_turn_is_wasted_on_it(bridge):
    names = {
        "ConversationalGolden": SimpleNamespace,
        "SimulationNode": lambda action: action,
        "Turn": SimpleNamespace,
        "end": lambda reason: reason,
        "proceed": lambda: None,
    }
    paths = ("deepeval", "deepeval.dataset", "deepeval.simulator", "deepeval.test_case")
    more = ("deepeval.simulator.controller", "deepeval.simulator.simulation_graph")
    deepeval = bridge("deepeval", dict.fromkeys((*paths, *more), names))
    given = deepeval.simulated_user(User("hi", "bye"))
    ask, say = given["stopping_controller"], given["simulation_graph"]
    talks = {"a": [], "b": []}
    for expected in ("hi", "bye"):
        for thread, turns in talks.items():  # two at a time
            golden = SimpleNamespace(scenario="fly")
            assert asyncio.run(ask(golden, turns, thread)) is None
            assert say(thread) == expected
            turns.append(SimpleNamespace(role="user", content=expected))
            turns.append(SimpleNamespace(**SURE))
    for thread, turns in talks.items():
        assert "ended" in asyncio.run(ask(golden, turns, thread))


def test_opik_is_left_when_the_user_ends(bridge):
    def run_simulation(app, user_simulator, *, max_turns, thread_id, project_name):
        history = []
        for _ in range(max_turns):
            said = user_simulator.generate_response(history)
            history += [{"role": "user", "content": said}, SURE]
        return {"conversation_history": history}

    simulation = {"SimulatedUser": object, "run_simulation": run_simulation}
    opik = bridge("opik", {"opik": {}, "opik.simulation": simulation})
    user = opik.SimulatedUser("fly", User("hi", "bye"))
    for _ in range(2):  # the same user takes part in several
        done = opik.run_simulation(None, user, max_turns=9, thread_id="t")
        history = done["conversation_history"]
        assert [each["content"] for each in history] == ["hi", "sure", "bye", "sure"]
        assert done["thread_id"] == "t"
    cut = opik.run_simulation(None, user, max_turns=1)
    assert len(cut["conversation_history"]) == 2


def test_promptfoo_gets_the_whole_conversation(script, tmp_path):
    bot = tmp_path / "bot.txt"
    bot.write_text("sure\n")
    config = {"user": script, "assistant": f"script:{bot}", "max_turns": 5}
    got = call_api("Fly to Rome", {"config": config}, {})
    assert got["metadata"]["stop"] == "end"
    assert got["output"].startswith("User: hi there\n---\nAssistant: sure\n---\n")
    assert got["output"].count("User: ") == 3
    failing = {**config, "assistant": "py:no_such:bot"}
    with pytest.raises(Exception, match="no_such"):
        call_api("Fly", {"config": failing}, {})

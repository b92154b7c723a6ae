"""Bots of others as assistants: what they take, what they answer, and how they fail."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from asyncio import CancelledError
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes
import pytest
from fake_server import Said, completion, error, serving
from openai.types.chat import ChatCompletion, ChatCompletionMessage

from userlm import Reply, commands, loading
from userlm.bots import Bot, python_bot, read_answer, read_output
from userlm.json_files import read_json
from userlm.models import command, event_loops
from userlm.rows import read_conversations, write_conversations
from userlm.types import Conversation, InputError, ModelError, Turn

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "test-my-chatbot.md"
SAID = Conversation("c#0").say("hi").say("hello").say("more")
CALL = {"name": "find", "arguments": {"n": 1}}


def reply(found: object, conversation: Conversation = SAID, **options: object) -> Reply:
    bot = Bot("py:m:x", python_bot(found, "py:m:x"), **options)
    return bot.reply(conversation)


class Graph:
    """As a graph of LangChain: its input is an object with messages."""

    checkpointer = None

    def get_input_jsonschema(self):
        return {"properties": {"messages": {"type": "array"}}}

    def invoke(self, input, config=None, **more):
        said = [each["content"] for each in input["messages"]]
        assert re.fullmatch(r"[0-9a-f-]{36}", config["configurable"]["thread_id"])
        call = {"name": "find", "args": {"n": 1}, "id": "1", "type": "tool_call"}
        return {
            "messages": [
                {"type": "human", "content": "before"},
                {"type": "ai", "content": "", "tool_calls": [call]},
                {"type": "tool", "content": "found"},
                {"type": "ai", "content": [{"type": "text", "text": "|".join(said)}]},
            ]
        }


class Invoked:
    def invoke(self, input, config=None, **more):
        return {"content": f"{len(input)} {input[-1]['content']}"}


class Called:
    async def __call__(self, history):
        await asyncio.sleep(0)
        return str(len(history))


class Nothing:
    def __call__(self):
        return "hi"


class Ours:
    def reply(self, conversation, /):
        return Reply(conversation.id)


class Plain:
    def reply(self, message):
        return f"to {message}"


def of_text(text: str) -> str:
    return f"to {text}"


def unannotated(words):
    return f"to {words}"


def of_messages(messages: list[dict[str, str]]) -> str:
    messages.append({"role": "assistant", "content": "mine"})
    return str(len(messages))


def of_later_annotations(it: "list[dict[str, str]]") -> str:
    return str(len(it))


def of_conversation(c: Conversation) -> str:
    return c.turns[-1].text


async def awaited(text: str) -> str:
    await asyncio.sleep(0)
    return f"to {text}"


@pytest.mark.parametrize(
    ("bot", "said"),
    [
        (of_text, "to more"),
        (unannotated, "to more"),
        (of_messages, "4"),
        (of_later_annotations, "3"),
        (of_conversation, "more"),
        (awaited, "to more"),
        (lambda text, times=2: text * times, "moremore"),
        (lambda *words, **options: words[0], "more"),
        (lambda name="c": Ours(), "c#0"),
        (Called(), "3"),
        (Called, "3"),
        (lambda: Called(), "3"),
        (Invoked(), "3 more"),
        (Graph(), "hi|hello|more"),
        (Ours, "c#0"),
        (Plain(), "to more"),
        (str.upper, "MORE"),
    ],
)
def test_a_bot_gets_what_it_takes(bot, said):
    assert reply(bot).text == said


def test_a_graph_that_remembers_is_told_only_what_is_new():
    graph = Graph()
    graph.checkpointer = object()
    for kept, told in (({"messages": [1]}, "more"), ({}, "hi|hello|more")):
        graph.get_state = lambda config, kept=kept: SimpleNamespace(values=kept)
        assert reply(graph).text == told


def test_a_session_is_one_of_a_conversation_and_of_a_run():
    def session_of(conversation, run):
        found = reply(lambda text, session: session, conversation, run=run).text
        assert re.fullmatch(r"[0-9a-f-]{36}", found)
        return found

    first = Conversation("c#0").say("hi")
    assert session_of(first, "a") == session_of(SAID, "a")
    assert session_of(first, "a") != session_of(first, "b")
    assert session_of(first, "a") != session_of(Conversation("c#1").say("hi"), "a")


@pytest.mark.parametrize(
    ("bot", "problem"),
    [
        (7, "is an int; give a function of a text"),
        (None, "is None; give a function"),
        (lambda text, shop: text, "nobody gives its parameter 'shop'"),
        (lambda text, *, shop: text, "nobody gives its parameter 'shop'"),
        (lambda **options: "", "is a str; give a function"),
        (Nothing(), "it takes nothing; let it take a text"),
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: 1 / 0, "test_bots.py, line .*ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_bot_is_refused_before_the_run(bot, problem):
    with pytest.raises(InputError, match=rf"py:m:x.*{problem}"):
        python_bot(bot, "py:m:x")


def test_a_module_that_breaks_while_it_is_loaded_is_named_with_the_line(
    tmp_path, monkeypatch
):
    (tmp_path / "breaks_abc.py").write_text("x = 1\ny = x / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    told = r"py:breaks_abc:bot: .* \(breaks_abc.py, line 2: ZeroDivisionError"
    with pytest.raises(InputError, match=told):
        loading.assistant("py:breaks_abc:bot")


def test_a_method_of_an_object_in_a_module_is_a_bot(here):
    assert (
        loading.assistant("py:bot_of_a_run:shop.sell").reply(SAID).text == "sold more"
    )


# --- answers --------------------------------------------------------------------------------------


@dataclass
class Own:
    text: str


TOOL = {
    "id": "1",
    "type": "function",
    "function": {"name": "find", "arguments": '{"n": 1}'},
}
MESSAGE = {"role": "assistant", "content": "hi", "tool_calls": [TOOL]}
CHOICE = {"index": 0, "finish_reason": "stop", "message": MESSAGE}
ABOUT = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
ANTHROPIC = [
    {"type": "text", "text": "hi"},
    {"type": "tool_use", "id": "1", "name": "find", "input": {"n": 1}},
]


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        ("hi", None),
        (Reply("hi"), None),
        (Own("hi"), None),
        *(({field: "hi"}, None) for field in ("content", "answer", "output", "reply")),
        ({"message": {"role": "assistant", "content": "hi"}}, None),
        ({"answer": "hi", "output": 7, "context": ["long"]}, None),
        ({"text": "hi", "choices": ["yes", "no"]}, None),
        ({"text": "hi", "tool_calls": [CALL]}, [CALL]),
        (ChatCompletionMessage.model_validate(MESSAGE), [CALL]),
        (ChatCompletion.model_validate({**ABOUT, "choices": [CHOICE]}), [CALL]),
        ({"role": "assistant", "content": ANTHROPIC}, [CALL]),
    ],
)
def test_an_answer_is_read_in_the_usual_forms(answer, calls):
    meta = {"tool_calls": calls} if calls else {}
    assert read_answer(answer) == Reply("hi", meta=meta)


def test_the_tool_calls_of_an_agent_are_all_those_since_the_user_spoke():
    assert reply(Graph()).meta == {"tool_calls": [CALL]}


def test_a_refusal_is_an_answer():
    refused = ChatCompletionMessage(role="assistant", refusal="I cannot.")
    assert read_answer(refused).text == "I cannot."


def nested(levels):
    """An object in an object, as many times."""
    found = {}
    for _ in range(levels - 1):
        found = {"a": found}
    return found


def deep_call(levels):
    return {"name": "f", "arguments": json.dumps(nested(levels))}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "it returned None; return a text"),
        (7, "it returned an int; return a text"),
        (["hi"], "it returned a list"),
        ({"said": "hi"}, "the fields are said, and none of content, text"),
        (
            {**MESSAGE, "content": None},
            "it called find and said nothing; run its tools",
        ),
        ({"text": "hi", "tool_calls": [{"args": {}}]}, "a tool call has no name"),
        (
            {"text": "hi", "tool_calls": [{"name": "f", "arguments": "[1"}]},
            "the arguments of the tool f are no JSON object",
        ),
        (Reply(7), "the text of its answer is an int"),
        (Reply("hi", "tired"), "it stopped for 'tired'; give one of end"),
        (Reply("x" * (2**20 + 1)), "its answer has 1,048,577 characters"),
        (Reply("hi", "error"), "it stopped for an error"),
        (Reply("bye", "end"), "it stopped for 'end'; only a user ends a conversation"),
        (Reply("done", "solved"), "it stopped for 'solved'; only a user ends"),
        (Reply("", "error", {"error": "no stock"}), "no stock"),
        ({"text": "hi", "tool_calls": [deep_call(101)]}, "nested more than 100 levels"),
    ],
)
def test_an_answer_that_is_none_ends_its_conversation_and_says_why(answer, problem):
    with pytest.raises(ModelError, match=re.escape(problem)) as caught:
        reply(lambda text: answer)
    assert str(caught.value).startswith("py:m:x: ")


@pytest.mark.parametrize(
    ("meta", "name", "why"),
    [
        (7, "meta", "it is an int, and no dict"),
        ({(1, 2): 3}, "(1, 2)", "keys must be str"),
        ({"a": "x" * 2**20}, "a", "at most 1,048,576 bytes are kept"),
        (nested(101), "a", "nested more than 100 levels deep"),
        ({"tokens_in": "12"}, "tokens_in", '"12" is not a number of tokens'),
        ({"tokens_in": 1.5}, "tokens_in", "1.5 is not a number of tokens"),
        ({"tokens_out": -1}, "tokens_out", "-1 is not a number of tokens"),
        ({"tokens_out": True}, "tokens_out", "true is not a number of tokens"),
        ({"p_end": 2}, "p_end", "2 is not a number from 0 to 1"),
        ({"violates": 7}, "violates", "7 is not a list of texts"),
        ({"rejected": False}, "rejected", "false is not a list of drafts"),
        ({"rejected": [{}]}, "rejected", "[{}] is not a list of drafts"),
        ({"exhausted": "me"}, "exhausted", '"me" is not true or false'),
    ],
)
def test_meta_that_cannot_be_kept_is_left_out_and_says_why(meta, name, why):
    kept = reply(lambda text: Reply("hi", meta=meta)).meta
    assert kept.keys() == {"left_out"} and kept["left_out"].keys() == {name}
    assert why in kept["left_out"][name]


def test_of_much_that_is_left_out_some_is_named():
    meta = {f"a{i}": "x" * 2**10 for i in range(2000)}
    kept = reply(lambda text: Reply("hi", meta=meta)).meta
    assert 1000 < len(kept) < 1024 and len(kept["left_out"]) == 20


def test_what_is_left_out_leaves_the_rest_of_the_meta():
    meta = reply(lambda text: Reply("hi", meta={"rejected": False, "a": 1})).meta
    assert meta["a"] == 1 and meta["left_out"].keys() == {"rejected"}


def test_counts_may_be_whole_floats_and_probabilities_rounded():
    given = {"tokens_in": 12.0, "tokens_out": np.float64(3), "p_end": 1.0000001}
    meta = reply(lambda text: Reply("hi", meta=given)).meta
    assert meta == {"tokens_in": 12, "tokens_out": 3, "p_end": 1}
    assert type(meta["tokens_in"]) is type(meta["tokens_out"]) is int
    assert reply(lambda text: Reply("hi", meta={"p_end": -1e-9})).meta == {"p_end": 0}


def test_what_a_bot_does_not_know_of_its_answer_is_left_out():
    meta = {"tokens_in": None, "p_end": None, "score": float("nan"), 1: "one"}
    assert reply(lambda text: Reply("hi", meta=meta)).meta == {
        "score": None,
        "1": "one",
    }


def test_numbers_of_numpy_are_numbers():
    given = {"p_end": np.float32(0.5), "tokens_out": np.int64(3), "sure": True}
    meta = reply(lambda text: Reply("hi", meta=given)).meta
    assert meta == {"p_end": 0.5, "tokens_out": 3, "sure": True}
    assert meta["sure"] is True


def test_an_awaited_bot_that_leaves_the_program_ends_its_conversation_and_no_other():
    async def leaves(text: str) -> str:
        raise SystemExit(3)

    async def answers(text: str) -> str:
        return "hi"

    with pytest.raises(ModelError, match="SystemExit: 3"):
        reply(leaves)
    assert reply(answers, timeout=10).text == "hi"


def test_an_error_that_cannot_say_what_it_is_ends_its_conversation():
    class Odd(Exception):
        def __str__(self):
            raise ValueError

    def fails(text):
        raise Odd

    with pytest.raises(ModelError, match=r"line \d+: Odd"):
        reply(fails)


@pytest.mark.parametrize(
    "raised", [ValueError("no\nway"), SystemExit("no way"), CancelledError("no way")]
)
def test_what_a_bot_raises_ends_its_conversation_and_names_the_line(raised):
    def fails(text):
        raise raised

    place = rf"py:m:x: test_bots.py, line \d+: {type(raised).__name__}: no way"
    with pytest.raises(ModelError, match=place):
        reply(fails)


def test_an_error_without_end_is_cut():
    def fails(text):
        raise ValueError("x" * 10**6)

    with pytest.raises(ModelError) as caught:
        reply(fails)
    assert len(str(caught.value)) < 400


def test_a_bot_that_is_awaited_for_too_long_ends_its_conversation():
    async def sleeps(text: str) -> str:
        await asyncio.sleep(60)
        return text

    with pytest.raises(ModelError, match=r"did not answer in time \(0.01 seconds\)"):
        reply(sleeps, timeout=0.01)


def test_the_line_of_an_error_is_one_of_the_bot_and_of_no_library():
    def fails(text):
        return json.loads("{")

    with pytest.raises(ModelError, match=r"test_bots.py, line \d+: JSONDecodeError"):
        reply(fails)


def test_no_key_of_the_environment_is_in_what_a_bot_says_or_raises(monkeypatch):
    secret = "s3cret-of-a-bot"
    monkeypatch.setenv("BOT_API_KEY", f" {secret}\n")
    monkeypatch.setenv("OTHER_TOKEN", "a-word-alone")
    monkeypatch.setenv("WORD_KEY", "a-word-alone-2024")
    monkeypatch.setenv("LATIN_PASSWORD", "p\udce4ssw0rd12345")

    def says(text):
        call = {"name": "find", "arguments": {"key": secret}}
        return {"text": f"{secret}, a-word-alone", "tool_calls": [call]}

    assert reply(says) == Reply(
        "[key], a-word-alone",
        meta={"tool_calls": [{"name": "find", "arguments": {"key": "[key]"}}]},
    )

    def raises(text):
        raise RuntimeError(f"Illegal header value b'Bearer {secret}\\n'")

    with pytest.raises(ModelError, match=r"header value b'Bearer \[key\]"):
        reply(raises)
    for length in range(command.LONGEST_ERROR - 20, command.LONGEST_ERROR):
        # The end of an error is kept, which may begin in the middle of the key.
        told = f"echo $BOT_API_KEY{'x' * length} >&2; exit 3"
        with pytest.raises(ModelError, match="status 3") as caught:
            run(shell(told.replace("KEYx", "KEY.x")))
        assert secret[4:] not in str(caught.value)


# --- commands -------------------------------------------------------------------------------------


def run(line: str, timeout: float = 10, system: str | None = None) -> Reply:
    return loading.assistant(f"cmd:{line}", timeout=timeout, system=system).reply(SAID)


def shell(script: str) -> str:
    return f"bash -c '{script}'"


def test_a_command_gets_the_messages_and_a_session_and_its_output_is_the_answer():
    assert run("cat", system="be brief").text == (
        '[{"role":"system","content":"be brief"},{"role":"user","content":"hi"},'
        '{"role":"assistant","content":"hello"},{"role":"user","content":"more"}]'
    )
    assert len(run(shell("echo $USERLM_SESSION")).text) == 36
    assert run(shell("exec 0<&-; echo unread")).text == "unread"


@pytest.mark.parametrize(
    ("written", "reply"),
    [
        ('{"answer": "hi"}', Reply("hi")),
        ('{"text": "hi", "tool_calls": []}', Reply("hi")),
        ('{"city": "Rome"}', Reply('{"city": "Rome"}')),
        ('{"answer": ', Reply('{"answer": ')),
        ("42", Reply("42")),
        ('["hi"]', Reply('["hi"]')),
    ],
)
def test_of_what_a_command_writes_only_an_object_with_an_answer_is_json(written, reply):
    assert read_output(written) == reply


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo half; echo oh no >&2; exit 3", "ended with status 3: oh no"),
        ("kill -9 $$", "ended with status -9"),
        ("yes", "wrote more than 1,000 bytes"),
        ("yes >&2 & sleep 60", "did not answer in time"),
        ("sleep 60 & echo answered", "did not answer in time"),
        ("setsid sleep 2 & echo answered", "did not answer in time"),
    ],
)
def test_a_command_that_fails_ends_its_conversation(script, problem, monkeypatch):
    monkeypatch.setattr(command, "MAX_OUTPUT", 1000)
    monkeypatch.setattr(command, "GRACE", 0.1)
    begun = time.monotonic()
    with pytest.raises(ModelError, match=f"cmd:bash.*{problem}"):
        run(shell(script), timeout=0.3)
    assert time.monotonic() - begun < 20


def test_a_command_in_time_may_say_much_that_is_no_answer():
    assert run(shell("head -c 1000000 /dev/zero >&2; echo hi")).text == "hi"


def test_what_a_command_started_is_killed_with_it(tmp_path):
    with pytest.raises(ModelError, match="in time"):
        run(shell(f"(sleep 0.3; touch {tmp_path}/alive) & sleep 60"), timeout=0.1)
    time.sleep(0.5)
    assert not (tmp_path / "alive").exists()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("./nowhere", r"./nowhere is no program .*`chmod \+x ./nowhere"),
        ("bash 'open", "No closing quotation; close the quote"),
        (" ", "'' is no program"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused_before_the_run(line, problem):
    with pytest.raises(InputError, match=problem):
        loading.assistant(f"cmd:{line}")


# --- servers with JSON of their own ---------------------------------------------------------------

DESCRIBED = """
url = "{url}/rooms/{session}"
answer = "data.0.text"
tool_calls = "data.0.calls"
[headers]
X-Key = "Key $BOT_KEY_XYZ"
[body]
question = "> {text}"
history = "{messages}"
stream = false
[message]
from = "{role}"
body = "{text}"
[roles]
user = "customer"
"""


def describe(path: Path, url: str, text: str = DESCRIBED) -> str:
    (path / "bot.toml").write_text(text.replace("{url}", url))
    return f"bot:{path}/bot.toml"


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("BOT_KEY_XYZ", "a-secret-of-a-bot")


def test_a_server_gets_the_json_that_a_file_describes(tmp_path, key):
    said = {"data": [{"text": "ok", "calls": [CALL]}]}
    with serving([Said(body=said)]) as server:
        address = describe(tmp_path, server.url)
        conversation = Conversation("c").say("say {session}")
        found = loading.assistant(address).reply(conversation)
    assert found == Reply("ok", meta={"tool_calls": [CALL]})
    [(path, _, body)] = server.requests
    assert re.fullmatch(r"/v1/rooms/[0-9a-f-]{36}", path)
    assert body == {
        "question": "> say {session}",
        "history": [{"from": "customer", "body": "say {session}"}],
        "stream": False,
    }
    assert server.headers[0]["x-key"] == "Key a-secret-of-a-bot"
    assert "authorization" not in server.headers[0]


def test_a_server_of_which_only_the_url_is_known_gets_messages(tmp_path):
    answers = [Said(body={"reply": "ok"}), Said(body='"plain"')]
    with serving(answers) as server:
        address = describe(tmp_path, server.url, 'url = "{url}"')
        bot = loading.assistant(address, system="be brief")
        assert [bot.reply(SAID).text, bot.reply(SAID).text] == ["ok", "plain"]
    assert server.bodies[0]["messages"][:2] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


def test_a_temporary_failure_is_tried_again_but_not_in_a_session(
    tmp_path, key, monkeypatch
):
    monkeypatch.setattr("userlm.models.endpoint.time.sleep", lambda seconds: None)
    with serving([error(503), Said(body={"text": "ok"})]) as server:
        address = describe(tmp_path, server.url, 'url = "{url}"')
        assert loading.assistant(address).reply(SAID).text == "ok"
    with serving([error(503)]) as server:
        address = describe(tmp_path, server.url)
        with pytest.raises(ModelError, match="the server failed"):
            loading.assistant(address).reply(SAID)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (error(401), "refused the request; set its key"),
        (error(404), "has nothing to send messages to at this url"),
        (error(400, "a-secret-of-a-bot?"), r"this request: \[key\]\? \(HTTP 400\)"),
        (Said(body={"data": []}), "no '0' of 'data.0.text', but a list of 0"),
        (Said(body={"reply": {"a": 1}, "id": 7}), "no 'data' of 'd.*', but reply, id"),
        (Said(body="<html>"), "there is no 'data' of 'data.0.text', but \"<html>\""),
        (Said(body={"data": [{"text": None}]}), "it returned None"),
        (
            Said(hang=2),
            r"did not answer in time \(0.2 seconds; --answer-timeout allows more\)",
        ),
    ],
)
def test_a_server_that_fails_ends_its_conversation_and_no_error_has_its_key(
    said, problem, tmp_path, key
):
    with serving([said]) as server:
        # On a busy machine no other answer may be late.
        timeout = 0.2 if said.hang else 20
        bot = loading.assistant(describe(tmp_path, server.url), timeout=timeout)
        with pytest.raises(ModelError, match=problem) as caught:
            bot.reply(SAID)
    assert "a-secret" not in str(caught.value)


def test_a_key_in_another_form_is_masked_before_a_long_error_is_cut(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("BOT_KEY_XYZ", "a-secret-of-a-bot" * 4)
    coded = b64encode(b"a-secret-of-a-bot" * 4).decode()
    for size in (180, 200, 220):
        with serving([error(400, "x" * size + coded)]) as server:
            bot = loading.assistant(describe(tmp_path, server.url))
            with pytest.raises(ModelError, match="does not accept") as caught:
                bot.reply(SAID)
        assert coded[:8] not in str(caught.value)


def test_a_key_that_a_server_repeats_is_masked_in_the_answer(tmp_path, key):
    said = {"data": [{"text": "your key is a-secret-of-a-bot"}]}
    with serving([Said(body=said)]) as server:
        found = loading.assistant(describe(tmp_path, server.url)).reply(SAID)
    assert found == Reply("your key is [key]")


def test_a_key_of_digits_that_a_server_repeats_as_a_number_is_masked(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("BOT_KEY_XYZ", "12345678")
    said = {
        "data": [{"text": "ok", "calls": [{**CALL, "arguments": {"of": 12345678}}]}]
    }
    with serving([Said(body=said)]) as server:
        found = loading.assistant(describe(tmp_path, server.url)).reply(SAID)
    assert found.text == "ok"
    assert found.meta["tool_calls"][0]["arguments"] == {"of": "[key]"}


def test_a_key_that_stands_in_the_file_itself_is_masked_too(tmp_path):
    text = (
        'url = "{url}"\n[headers]\nAuthorization = "Bearer 0123-abcd-key"\n'
        'Content-Type = "application/json"'
    )
    said = Said(body={"text": "0123-abcd-key is of application/json"})
    with serving([error(400, "no such 0123-abcd-key"), said]) as server:
        bot = loading.assistant(describe(tmp_path, server.url, text))
        with pytest.raises(ModelError, match=r"no such \[key\]"):
            bot.reply(SAID)
        assert bot.reply(SAID) == Reply("[key] is of application/json")


@pytest.mark.parametrize(
    "header",
    [
        'Cookie = "sid=0123abcd4567ef89; theme=dark"',
        'Cookie = "sid=s%3A0123abcd4567ef89.0c1d; theme=dark"',
        'Authorization = \'Digest username="me", response="0123abcd4567ef89"\'',
        "Authorization = \"Token token='0123abcd4567ef89'\"",
        'Authorization = "ApiKey me@example.com:0123abcd4567ef89"',
        f'Authorization = "Basic {b64encode(b"me:0123abcd4567ef89").decode()}"',
        'X-Auth = "{me|0123abcd4567ef89}"',
        'X-Gateway-Credential = "0123abcd4567ef89"',
        'X-Api-Key-V2 = "0123abcd4567ef89"',
        'X-Api-Keys = "0123abcd4567ef89"',
        'X-Auth-Header = "0123abcd4567ef89"',
        'X-Token-Value = "0123abcd4567ef89"',
        'X-Session-Id = "0123abcd4567ef89"',
    ],
)
def test_a_key_is_masked_wherever_the_name_has_its_word_and_beside_other_values(
    header, tmp_path
):
    said = Said(body={"text": "the key is 0123abcd4567ef89"})
    with serving([said]) as server:
        text = f'url = "{server.url}"\n[headers]\n{header}'
        bot = loading.assistant(describe(tmp_path, server.url, text))
        assert bot.reply(SAID) == Reply("the key is [key]")


def test_a_word_in_a_header_is_no_secret_whatever_the_name_of_the_header(tmp_path):
    text = (
        'url = "{url}"\n[headers]\nX-Session-Channel = "customer-service"\n'
        'X-Api-Key-Version = "2024-05-01"\nX-Token = "customer"'
    )
    said = "Dear customer, your token of 2024-05-01 is ready at customer-service"
    with serving([Said(body={"text": said})]) as server:
        found = loading.assistant(describe(tmp_path, server.url, text)).reply(SAID)
    assert found == Reply(said)


def test_dates_addresses_and_urls_in_a_cookie_stay_in_answers(tmp_path):
    text = (
        'url = "{url}"\n[headers]\nCookie = "lang=english; user=jane1985.doe@example.com; '
        "home=https%3A%2F%2Fshop24.example.com%2F; seen=2024-01-15; "
        'sid=0123abcd4567ef89"\nX-Auth-Home = "https://shop24.example.com/"'
    )
    said = (
        "I mail jane1985.doe@example.com in english; the order of 2024-01-15 is at "
        "https://shop24.example.com/help"
    )
    with serving([Said(body={"text": said})]) as server:
        found = loading.assistant(describe(tmp_path, server.url, text)).reply(SAID)
    assert found == Reply(said)


def test_a_short_value_in_a_header_is_no_secret_and_stays_in_answers(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("BOT_KEY_XYZ", "data")
    said = {"data": [{"text": "the data of 42"}]}
    with serving([Said(body=said)]) as server:
        found = loading.assistant(describe(tmp_path, server.url)).reply(SAID)
    assert found == Reply("the data of 42")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("url = ", "cannot read how to ask it"),
        ("answer = 'x'", "'url' is missing"),
        ("url = 7", "'url' must be a text"),
        ("url = 'http://h'\nbdy = {}", "'bdy' is no field; known are url, answer"),
        ("url = 'ftp://h'", "'url': ftp://h is not the URL of a server"),
        ("url = 'http://h?key=1'", "a query is not accepted; put the key into an env"),
        ("url = 'http://h/{text}'", "'url' may only have {session}"),
        ("url = 'http://h/{session}/{messages}'", "'url' may only have {session}"),
        ("url = 'http://h'\nbody = {a = 'x'}", "has neither {text} nor {messages}"),
        ("url = 'http://h'\nheaders = {a = 1}", "header 'a' must be a text"),
        (
            "url = 'http://h'\nheaders = {a = '$NONE_XYZ'}",
            "set the environment variable",
        ),
        ("url = 'http://h'\nheaders = {a = '5 $'}", r"write \$NAME for a variable"),
        ("url = 'http://h'\nheaders = {a = '{session}'}", "'a' has a place"),
        ("url = 'http://h'\nheaders = {a = 'é'}", "characters that are not allowed"),
    ],
)
def test_a_file_that_describes_no_bot_says_what_is_wrong(text, problem, tmp_path):
    with pytest.raises(InputError, match=rf"bot.toml: .*{problem}"):
        loading.assistant(describe(tmp_path, "", text))


# --- runs -----------------------------------------------------------------------------------------

BOT = """
import threading
from userlm import Reply
def odd(text, session):
    if "2" in text:
        raise ValueError("two is too much")
    return Reply(session, meta={"thread": threading.current_thread().name})
class Shop:
    def sell(self, text):
        return f"sold {text}"
shop = Shop()
def full(messages: list):
    return " / ".join(each["content"] for each in messages)
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "bot_of_a_run.py").write_text(BOT)
    (tmp_path / "lines.txt").write_text("line 1\n")
    (tmp_path / "intents.txt").write_text("buy\n\nsell\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("bot_of_a_run", None)


def simulate(
    bot: str, out: str = "sim", user: str = "script:lines.txt", **options: object
) -> list[Conversation]:
    given = {"intents": Path("intents.txt"), "out": Path(out), **options}
    commands.simulate(commands.Simulate(commands.User(user), bot, **given))
    return list(read_conversations(Path(out) / "conversations.jsonl"))


@pytest.mark.parametrize("when", ["while it is imported", "in an answer"])
def test_a_bot_may_leave_the_working_folder(when, here):
    (here / "elsewhere").mkdir()
    leave = f"import os\nleave = lambda: os.chdir({str(here / 'elsewhere')!r})\n"
    if when == "in an answer":
        leave += "def bot(text):\n    leave()\n    return 'so'\n"
    else:
        leave += "leave()\ndef bot(text):\n    return 'so'\n"
    (here / "bot_that_leaves.py").write_text(leave)
    try:
        for out in ("one", "two"):
            first, _ = simulate("py:bot_that_leaves:bot", out, max_turns=1)
            assert first.turns[-1].text == "so"
    finally:
        sys.modules.pop("bot_that_leaves")
    assert Path.cwd() == here


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(error(401), id="a key that is refused"),
        pytest.param(Said(body={"reply": "ok"}), id="a path that is not there"),
        *(
            pytest.param(
                Said(body={"data": [{"text": text}]}), id=f"no text but {text}"
            )
            for text in ({"a": 1}, None, 7, ["hi"], " ", {"tool_calls": [CALL]})
        ),
    ],
)
def test_no_turns_are_paid_for_once_a_bot_could_answer_none(said, here, key):
    (here / "intents.txt").write_text("".join(f"buy {i}\n" for i in range(9)))
    with serving(lambda body, n: said) as server, serving(write_turn) as model:
        bot, user = describe(here, server.url), f"prompted:{model.url}#m"
        with pytest.raises(ModelError, match="9 of 9 conversations ended in an error"):
            simulate(bot, user=user, workers=1)
    assert len(server.requests) == len(model.requests) == 3


def write_turn(body: dict, n: int) -> Said:
    return completion("where is it")


def test_a_bot_that_raises_ends_one_conversation_and_the_others_are_held(here, capfd):
    (here / "lines.txt").write_text("line 1\nline 2\n")
    (here / "intents.txt").write_text("buy\n")
    [conversation] = simulate("py:bot_of_a_run:odd", max_turns=1, repeats=1)
    assert conversation.stop == "max_turns"
    with pytest.raises(ModelError, match="1 of 1 conversations ended in an error"):
        simulate("py:bot_of_a_run:odd", "two")
    told = " ".join(capfd.readouterr().err.split())
    assert "1 of 1 ended in an error" in told
    assert "bot_of_a_run.py, line 6: ValueError: two is too much" in told


@pytest.mark.parametrize(
    ("odd", "stop"),
    [
        ("meta={'tokens_in': '12', 'rejected': False}", "max_turns"),
        ("meta=deep", "max_turns"),
        ('stop="error"', "error"),
    ],
)
def test_a_run_with_an_odd_answer_can_be_resumed(odd, stop, here):
    (here / "bot_of_a_run.py").write_text(
        "import userlm\n"
        "deep = {}\n"
        "for _ in range(198): deep = {'a': deep}\n"
        "def reply(messages):\n"
        "    if messages[0]['content'] == 'kept':\n"
        "        return 'fine'\n"
        f"    return userlm.Reply('odd', {odd})\n"
    )
    kept = (Turn("user", "kept"), Turn("assistant", "yes"))
    starts = [Conversation("a", kept, "buy"), Conversation("b", (), "buy")]
    write_conversations("starts.jsonl", starts)
    given = {"intents": Path("starts.jsonl"), "keep_turns": 2, "max_turns": 2}
    (here / "lines.txt").write_text("line 1\nline 2\n")
    for _ in range(2):
        found = simulate("py:bot_of_a_run:reply", **given)
        assert [one.stop for one in found] == ["max_turns", stop]
        if stop == "error":
            assert "py:bot_of_a_run:reply" in found[1].meta["error"]
        else:
            assert found[1].turns[1].meta["left_out"]


def test_one_worker_calls_a_bot_from_the_main_thread(here):
    for conversation in simulate("py:bot_of_a_run:odd", workers=1):
        assert conversation.turns[1].meta["thread"] == threading.main_thread().name


def test_sessions_of_a_run_stay_when_it_is_resumed_and_are_others_in_another(here):
    first = {c.id: c.turns[1].text for c in simulate("py:bot_of_a_run:odd")}
    assert len(set(first.values())) == 2
    (here / "sim" / "results.json").unlink()
    (here / "sim" / "turns.jsonl").write_text("")
    again = {c.id: c.turns[1].text for c in simulate("py:bot_of_a_run:odd")}
    assert again == first
    other = {c.id: c.turns[1].text for c in simulate("py:bot_of_a_run:odd", "other")}
    assert not set(other.values()) & set(first.values())


def test_a_greeting_is_said_first_and_the_bot_is_not_asked_for_it(here):
    (here / "system.md").write_text("Be brief.\n")
    found = simulate(
        "py:bot_of_a_run:full", greeting="Welcome!", system="system.md", max_turns=1
    )
    turns = [(turn.role, turn.text) for turn in found[0].turns]
    assert turns == [
        ("assistant", "Welcome!"),
        ("user", "line 1"),
        ("assistant", "Be brief. / Welcome! / line 1"),
    ]
    assert "system.md" in read_json(here / "sim" / "run.json")["inputs"]


@pytest.mark.parametrize(
    ("bot", "options", "problem"),
    [
        ("py:bot_of_a_run:full", {"greeting": " "}, "--greeting is empty"),
        (
            "py:bot_of_a_run:full",
            {"system": "none.txt"},
            "--system none.txt: cannot read",
        ),
        (
            "py:bot_of_a_run:odd",
            {"system": "Be brief."},
            "py:bot_of_a_run:odd takes no",
        ),
        ("py:bot_of_a_run:full", {"answer_timeout": 0.0}, "--answer-timeout 0"),
    ],
)
def test_options_that_a_bot_cannot_have_are_refused(bot, options, problem, here):
    with pytest.raises(InputError, match=problem):
        simulate(bot, **options)


def test_intents_alone_are_starts(here):
    assert [c.intent for c in simulate("clarifier")] == ["buy", "sell"]
    (here / "intents.jsonl").write_text(
        '{"intent": "buy"}\n{"id": "b", "intent": "x"}\n'
    )
    found = simulate("clarifier", "two", intents=Path("intents.jsonl"))
    assert [(c.id, c.intent) for c in found] == [("intent-1#0", "buy"), ("b#0", "x")]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.txt", " \n", "a.txt is empty; write one intent a line"),
        (
            "a.jsonl",
            '{"intent": "x"}\n{"intent": 7}',
            "a.jsonl, line 2: field 'intent' must",
        ),
        (
            "a.jsonl",
            '{"intent": "x"}\n{"intent": " "}',
            "line 2: field 'intent' is empty",
        ),
        ("a.jsonl", '{"intent": "x"}\n{"goal": "y"}', "line 2: unknown field 'goal'"),
        ("a.jsonl", '{"intent": "x"}\n{', "line 2: is not JSON"),
        (
            "a.jsonl",
            '{"id": "x", "intent": "x"}\n' * 2,
            "line 2: id 'x' was used before",
        ),
    ],
)
def test_intents_that_cannot_be_read_are_named(name, text, problem, here):
    (here / name).write_text(text)
    with pytest.raises(InputError, match=problem):
        simulate("clarifier", intents=Path(name))


def test_a_command_and_a_described_server_are_inputs_of_the_run(here):
    (here / "bot.sh").write_text("#!/bin/sh\necho hi\n")
    (here / "bot.sh").chmod(0o755)
    simulate("cmd:./bot.sh")
    assert "bot.sh" in read_json(here / "sim" / "run.json")["inputs"]
    with serving(lambda body, n: Said(body={"text": "hi"})) as server:
        (here / "bot.toml").write_text(f'url = "{server.url}"')
        simulate("bot:bot.toml", "two")
    assert "bot.toml" in read_json(here / "two" / "run.json")["inputs"]


def test_all_that_is_awaited_runs_in_one_loop_however_many_threads_begin_at_once():
    seen = set()

    async def bot(text: str) -> str:
        seen.add(asyncio.get_running_loop())
        return text

    with ThreadPoolExecutor(16) as pool:
        event_loops._begun.cache_clear()
        assert set(pool.map(lambda n: reply(bot).text, range(16))) == {"more"}
    assert len(seen) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_run_ends_the_commands_that_run(ending, here):
    command = ["simulate", "--user", "script:lines.txt", "--intents", "intents.txt"]
    bot = shell("echo $$ >> running.txt; sleep 60; echo hi")
    arguments = [*command, "--assistant", f"cmd:{bot}"]
    process = processes.userlm(*arguments, cwd=here)
    running = here / "running.txt"
    while not (running.exists() and len(running.read_text().split()) == 2):
        time.sleep(0.01)
    time.sleep(0.5)  # the program that starts them knows it, too
    process.send_signal(ending)
    process.communicate(timeout=30)
    assert process.returncode == (130 if ending == signal.SIGINT else -ending)
    left = set(map(int, running.read_text().split()))
    end = time.monotonic() + 10
    while left and time.monotonic() < end:
        left = set(filter(is_alive, left))
    assert not left


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    # Who has to take note of their ends may take seconds.
    return not Path("/proc/self/stat").exists() or group in _running_groups()


def _running_groups() -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if state != "Z":
                found.add(int(group))
    return found


# --- the page -------------------------------------------------------------------------------------

FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)```", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)```", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_bots_of_the_page_run(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    section = page.partition("\n## Your bot, in one line")[2].partition("\n## ")[0]
    for name, text in FILE.findall(section):
        (tmp_path / name).write_text(text)
    [intents] = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    (tmp_path / "intents.txt").write_text(intents)
    (tmp_path / "lines.txt").write_text("hi\nand then?\n")
    said = {"data": {"reply": {"text": "I am a server."}}}
    with serving(lambda body, n: Said(body=said)) as server:
        toml = (tmp_path / "support.toml").read_text()
        url = "https://bots.example.com/chat"
        assert url in toml
        (tmp_path / "support.toml").write_text(toml.replace(url, server.url))
        tour = "\n".join(SHELL.findall(section))
        tour = tour.replace("trained:userlm-small", "script:lines.txt")
        done = subprocess.run(
            ["bash", "-e", "-c", tour],
            cwd=tmp_path,
            env=processes.on_path(tmp_path / "bin"),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    said = {}
    for name in ("simulate", "agent", "chain", "command", "server"):
        path = tmp_path / "runs" / name / "conversations.jsonl"
        said[name] = [c.turns[3] for c in read_conversations(path)]
    assert [len(turns) for turns in said.values()] == [2] * 5
    first = {name: turns[0].text for name, turns in said.items()}
    assert first["simulate"].startswith("You wrote 'and then?'.")
    assert first["agent"] == "I looked up order 2."
    call = {"name": "find_order", "arguments": {"number": 2}}
    assert said["agent"][0].meta["tool_calls"] == [call]
    assert first["chain"] == "After 3 messages: hello!"
    assert first["command"].startswith("This is answer 2 in session ")
    assert first["server"] == "I am a server."
    asked = server.bodies[-1]
    assert asked["history"][1] == {"sender": "agent", "body": "I am a server."}
    assert server.headers[-1]["authorization"] == "Bearer a-key-of-this-bot"

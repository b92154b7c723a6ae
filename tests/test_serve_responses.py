"""`/v1/responses`, by the `openai` client, and paths that are not here."""

import json

import openai
import pytest
from test_serve import ROME, say, serving, trained
from test_serve_forms import FLAG, SAY, TEXT, Leaves, schema

from userlm.assistants import Script
from userlm.serving import app as server_module


@pytest.fixture(scope="module")
def server():
    with serving(Leaves(), hosts=("127.0.0.1",)) as served:
        yield served


def create(server, input="Hi!", **options):
    options = {"instructions": ROME, **options}
    return server.client().responses.create(model="user", input=input, **options)


def test_a_client_of_the_newer_api_holds_a_conversation_and_sees_its_end(server):
    history = say("Hi!")
    said = []
    for _ in range(3):
        answer = create(server, history)
        assert (answer.status, answer.userlm["intent"]) == ("completed", ROME)
        said.append((answer.output_text, answer.userlm["ended"]))
        history += [*answer.output, {"role": "user", "content": "And?"}]
        history[-2] = history[-2].model_dump()
        if answer.userlm["ended"]:
            break
    assert said == [("A tyre.", False), ("Bye.", True)]
    parts = [{"type": "input_text", "text": "Hi!"}]
    assert create(server, [{"role": "user", "content": parts}]).output_text == "A tyre."
    assert create(server).output_text == "A tyre."


def test_a_stream_has_the_events_of_the_client(server):
    with server.client().responses.stream(model="user", input="Hi!") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "A tyre."
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 1


def test_the_words_can_be_asked_for_as_json_or_as_a_call(server):
    form = {"type": "json_schema", "name": "turn", "schema": schema(SAY)}
    answer = create(server, text={"format": form})
    assert json.loads(answer.output_text) == {"message": "A tyre.", "stop": False}
    say_it = {"type": "function", "name": "say", "parameters": schema(SAY)}
    answer = create(server, tools=[say_it], tool_choice="required")
    [call] = answer.output
    assert (call.type, call.name) == ("function_call", "say")
    history = [*say("Hi!"), call.model_dump()]
    history += [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sent"},
        {"role": "user", "content": "And?"},
    ]
    stream = create(server, history, tools=[say_it], stream=True)
    last = list(stream)[-1].response
    assert json.loads(last.output[0].arguments) == {"message": "Bye.", "stop": True}


def test_settings_and_usage_are_those_of_a_chat(tiny):
    with serving(trained(tiny), seed=1) as small:
        answer = create(small, max_output_tokens=2, temperature=0.5, store=False)
        assert answer.status == "incomplete"
        assert answer.incomplete_details.reason == "max_output_tokens"
        assert (answer.usage.output_tokens, answer.temperature) == (2, 0.5)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"input": None}, "input", "it should be a valid list"),
        ({"input": [7]}, "input[0]", "is 7; it should be an object"),
        ({"input": [{"type": "message"}]}, "input[0].role", "input[0].role is missing"),
        ({"input": say("a", "", "b")}, "input[1].content", "input[1]: the user ended"),
        ({"model": "gpt-5"}, "model", "this server has 'user'"),
        ({"temperature": 9}, "temperature", "less than or equal to 2"),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": schema({"a": FLAG})}],
             "tool_choice": {"type": "function", "name": "f"}},
            "tools",
            "no field that is clearly for",
        ),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", "text.format is json_object"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "is missing"),
        ({"input": None}, "input", "input is None"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens is 0"),
        ({"tools": [{"type": "function", "name": 7}]}, "tools[0].name", "tools[0].name is 7"),
        ({"input": [*say("a"), {"type": "item_reference", "id": "msg_1"}]}, "input[1]",
         "input[1] is a reference: this server keeps nothing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_as_it_was_sent(server, change, param, words):
    body = {"model": "user", "input": "Hi!", **change}
    status, _, text = server.post(body, "/v1/responses")
    error = json.loads(text)["error"]
    assert (status, error["param"]) == (404 if param == "model" else 400, param)
    assert words in error["message"]


@pytest.mark.parametrize("body", [b"[]", b"null", b"{}", b"{", b'{"model": "user"}'])
def test_a_body_that_is_no_request_is_an_error(server, body):
    assert server.post(body, "/v1/responses")[0] == 400


def test_the_limits_and_the_guard_are_those_of_a_chat(server, monkeypatch):
    body = {"model": "user", "input": "Hi!"}
    for path in ("/v1/responses", "/v1/completions", "/v1/embeddings"):
        assert server.post(body, path, Host="evil.example")[0] == 403
    assert (
        server.post(body, "/v1/responses", **{"Content-Type": "text/plain"})[0] == 415
    )
    many = b'{"model": "user", "input": [' + b",".join([b"{}"] * 60_000) + b"]}"
    assert server.post(many, "/v1/responses")[0] == 413
    monkeypatch.setattr(server_module, "MAX_BODY_BYTES", 1000)
    assert server.post({**body, "input": "a" * 1000}, "/v1/responses")[0] == 413
    with serving(Script(["x"]), key="secret-secret") as locked:
        assert locked.post(body, "/v1/responses")[0] == 401


def test_what_is_not_served_says_what_to_use_instead(server):
    client = server.client()
    with pytest.raises(
        openai.NotFoundError, match=r"list of messages.*chat/completions"
    ):
        client.completions.create(model="user", prompt="Hi!")
    with pytest.raises(openai.NotFoundError, match=r"no embeddings.*chat/completions"):
        client.embeddings.create(model="user", input="Hi!")


def test_a_field_named_as_in_other_schemas_is_still_found(server):
    form = {
        "type": "json_schema",
        "name": "t",
        "schema": schema({"text": TEXT, "done": FLAG}),
    }
    assert (
        json.loads(create(server, text={"format": form}).output_text)["text"]
        == "A tyre."
    )

"""Endpoints, through the real `openai` client, against a small server of our own on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from userlm import address
from userlm.assistants import ModelAssistant
from userlm.models.endpoint import EndpointModel
from userlm.types import Conversation, ModelError, Sampling

KEY = "secret-key-of-a-test"


def answer(text):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


@pytest.fixture
def server():
    """Answers with what stands in `server.script`, one (status, body) a call, and keeps the requests."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append((self.path, self.headers["Authorization"], body))
            status, body = fake.script.pop(0)
            if status == 0:  # cut the connection
                self.connection.close()
                return
            text = body if isinstance(body, str) else json.dumps(body)
            self.send_response(status)
            self.send_header("Retry-After", "0")
            kind = "text/html" if text.startswith("<html>") else "application/json"
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    fake = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    fake.script, fake.requests = [], []
    fake.url = f"http://127.0.0.1:{fake.server_port}/v1"
    threading.Thread(target=fake.serve_forever, daemon=True).start()
    yield fake
    fake.shutdown()
    fake.server_close()


def test_an_assistant_at_an_address_is_asked_in_chat_form(server, monkeypatch):
    monkeypatch.setenv("USERLM_API_KEY", KEY)
    server.script = [answer("Sure.")]
    assistant = address.assistant(f"{server.url}#tiny", system="Be brief.")
    log = Conversation("a").say("hi").say("hello").say("help me")
    reply = assistant.reply(log)
    [(path, authorization, body)] = server.requests
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert body["model"] == "tiny"
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert isinstance(body["seed"], int)
    assert reply.text == "Sure."
    assert (reply.meta["tokens_in"], reply.meta["tokens_out"]) == (7, 2)


def test_passing_failures_are_tried_again(server):
    server.script = [(429, {"error": {"message": "slow down"}}), (500, {}), (0, ""), answer("ok")]
    model = EndpointModel("m", server.url, KEY)
    assert model.chat([{"role": "user", "content": "hi"}], Sampling()).text == "ok"
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param((400, {"error": {"message": f"bad request with {KEY} in it"}}), id="refused"),
        pytest.param((200, "{not json"), id="broken JSON"),
        pytest.param(answer(""), id="empty"),
        pytest.param(answer(None), id="no content"),
        pytest.param((200, {"id": "1", "choices": []}), id="no choices"),
        pytest.param((200, {"detail": "not an answer at all"}), id="another shape"),
        pytest.param((200, "plain text"), id="plain text"),
        pytest.param((200, "<html>Welcome</html>"), id="a page"),
        pytest.param((200, []), id="an array"),
        pytest.param((200, {"choices": [{}]}), id="a choice without a message"),
        pytest.param((200, {"choices": {"a": 1}}), id="choices that are no list"),
        pytest.param(answer([{"type": "text", "text": "x"}]), id="content in parts"),
        pytest.param(answer(5), id="a number"),
        pytest.param((400, {"error": {"message": "x" * 295 + KEY}}), id="a key where the error is cut"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_the_model_and_never_shows_the_key(broken, server):
    server.script = [broken] * 3
    model = EndpointModel("m", server.url, KEY, retries=1)
    with pytest.raises(ModelError) as caught:
        ModelAssistant(model).reply(Conversation("a").say("hi"))
    assert KEY[:6] not in str(caught.value) and str(caught.value).startswith("m: ")


def test_a_server_that_is_not_there_is_an_error_of_the_model():
    with pytest.raises(ModelError):
        EndpointModel("m", "http://127.0.0.1:9/v1", KEY, retries=0).chat(
            [{"role": "user", "content": "x"}], Sampling()
        )

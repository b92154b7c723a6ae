"""A local server that speaks the OpenAI API, fails when it is told to, and counts what it would
bill."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Said:
    """The answer to a request: after `hang` seconds a body, or a `cut` connection."""

    status: int = 200
    body: Any = ""
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0
    cut: bool = False


def completion(
    text: Any,
    *,
    refusal: str | None = None,
    finish: str = "stop",
    tokens_out: int = 2,
    **fields: Any,
) -> Said:
    """An ordinary answer, with further fields in its message. `prompt_tokens` is filled in by the
    server."""
    message = {"role": "assistant", "content": text, **fields}
    if refusal:
        message["refusal"] = refusal
    choice = {"index": 0, "message": message, "finish_reason": finish}
    about = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return Said(
        body={
            **about,
            "choices": [choice],
            "usage": {"prompt_tokens": 0, "completion_tokens": tokens_out},
        }
    )


def error(
    status: int, message: str = "no", headers: dict[str, str] | None = None, **more: str
) -> Said:
    """A status with the body of an OpenAI error."""
    return Said(status, {"error": {"message": message, **more}}, headers or {})


HANG, CUT = Said(hang=2, cut=True), Said(cut=True)
PER_MESSAGE = 4
"""Tokens that this server bills for each message on top of a token for each byte: a costly
tokenizer."""


class FakeServer:
    """`reply(body, n)` gives the answer to the n-th request (from 0); the body of a GET is empty.

    A request that is answered with 200, or not at all, is billed: all that was sent, and what the
    answer reports or else as much as was allowed. Requests of token ids are not billed here.
    """

    def __init__(self, reply: Callable[[dict[str, Any], int], Said]) -> None:
        self.reply = reply
        self.requests: list[tuple[str, str | None, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.tokens_in = self.tokens_out = 0
        self.lock = threading.Lock()
        self.url = ""

    def take(self, path: str, authorization: str | None, body: dict[str, Any]) -> Said:
        """Write the request down, and the bill."""
        with self.lock:
            said = self.reply(body, len(self.requests))
            self.requests.append((path, authorization, body))
            if said.status == 200 and "messages" in body:
                tokens_in = sum(
                    len(m["content"].encode()) + PER_MESSAGE for m in body["messages"]
                )
                allowed = body.get("max_tokens") or body.get("max_completion_tokens")
                if isinstance(said.body, dict) and "usage" in said.body:
                    said.body["usage"]["prompt_tokens"] = tokens_in
                    self.tokens_out += said.body["usage"]["completion_tokens"]
                else:
                    self.tokens_out += allowed or 0  # a bot is not told how much
                self.tokens_in += tokens_in
            return said

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What was asked, in order."""
        return [body for _, _, body in self.requests]


def script(*answers: Said) -> Callable[[dict[str, Any], int], Said]:
    """One answer after the other."""
    left = iter(answers)
    return lambda body, n: next(left)


@contextmanager
def serving(
    reply: Callable[[dict[str, Any], int], Said] | Sequence[Said],
) -> Iterator[FakeServer]:
    """A running server: with a function, or with answers to be given in their order."""
    fake = FakeServer(reply if callable(reply) else script(*reply))

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({})

        def do_POST(self) -> None:
            self.answer(
                json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            )

        def answer(self, body: dict[str, Any]) -> None:
            lower = {name.lower(): value for name, value in self.headers.items()}
            fake.headers.append(lower)
            said = fake.take(self.path, self.headers["Authorization"], body)
            if said.hang:
                time.sleep(said.hang)
            if said.cut:
                self.close_connection = True
                return
            text = said.body if isinstance(said.body, str) else json.dumps(said.body)
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header(
                "Content-Type",
                "text/html" if text.startswith("<html>") else "application/json",
            )
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, *args: object) -> None:
            """A client that was killed is no error here."""

    server = Server(("127.0.0.1", 0), Answers)
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()

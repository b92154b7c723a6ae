"""A server between a harness and the served user, which writes down what passes; beside it a
stub of an agent."""

import http.client
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from servers import free_port

AGENT = "/agent"
ENDING = re.compile(r"/ending(\d)")
"""The start of a path to a user that ends in another way."""
AGENT_SAYS = "Sure. Tell me more."
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


@contextmanager
def recording(record: Path, servers: int) -> Iterator[tuple[list[int], str]]:
    """Yield a free port for each server of a user, and the address under which all else asks the
    first of them; below `/ending1` is the second, and so on."""
    ports = [free_port() for _ in range(servers)]
    record.touch()
    writing = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *said: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(*self._forwarded(None))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = json.loads(body)
            if self.path.startswith(AGENT):
                kind = (
                    "text/event-stream" if asked.get("stream") else "application/json"
                )
                self._answer(200, kind, agent_answer(asked))
                return
            status, kind, answer = self._forwarded(body)
            call = {"path": self.path, "body": asked, "status": status}
            with writing, record.open("a") as file:
                file.write(json.dumps({**call, "answer": read_answer(answer)}) + "\n")
            self._answer(status, kind, answer)

        def _forwarded(self, body: bytes | None) -> tuple[int, str, bytes]:
            ending = ENDING.match(self.path)
            port = ports[int(ending[1]) if ending else 0]
            path = ENDING.sub("", self.path, count=1)
            server = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {"Content-Type": "application/json"} if body else {}
            server.request(self.command, path, body, headers)
            answer = server.getresponse()
            kind = answer.headers.get("Content-Type", "application/json")
            return answer.status, kind, answer.read()

        def _answer(self, status: int, kind: str, answer: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield ports, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def read_answer(answer: bytes) -> object:
    """Return the JSON of an answer; of a stream, that of its chunk with what is ours."""
    if not answer.startswith(b"data:"):
        return json.loads(answer)
    lines = [line[6:] for line in answer.splitlines() if line.startswith(b"data: {")]
    chunks = [json.loads(line) for line in lines]
    return next((chunk for chunk in chunks if chunk.get("userlm")), chunks[-1])


def agent_answer(asked: dict) -> bytes:
    """Return what the agent answers to chat messages, or a chat model to any prompt."""
    said = {"role": "assistant", "content": AGENT_SAYS}
    kind = "chat.completion"
    choice = {"index": 0, "message": said, "finish_reason": "stop"}
    if asked.get("stream"):
        kind = "chat.completion.chunk"
        choice = {"index": 0, "delta": said, "finish_reason": "stop"}
    answer = {"id": "a", "object": kind, "created": 0, "model": asked["model"]}
    text = json.dumps({**answer, "choices": [choice], "usage": USAGE})
    if asked.get("stream"):
        text = f"data: {text}\n\ndata: [DONE]\n\n"
    return text.encode()


def wait_for(port: int, process: subprocess.Popen) -> None:
    """Wait until the server of a process listens; raise if it ended instead."""
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"userlm serve ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("userlm serve did not start in a minute")

"""A running server with its pages, and ways to call it as they do."""

from __future__ import annotations

import http.client
import importlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flat import flat
from starlette.applications import Starlette

from userlm.serving import app
from userlm.serving.app import create_app, running
from userlm.serving.playground import Playground, add_pages
from userlm.serving.saved import Saved
from userlm.serving.schema import ServerConfig
from userlm.types import Speaker

# In the package `serve` is the function.
command = importlib.import_module("userlm.commands.serve")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
JSON = {"Content-Type": "application/json"}


class Page:
    """A page of the server at a port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"
        self.origin = {"Origin": self.url.rstrip("/")}

    def request(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, Any, str]:
        """Return status, headers and text; names of headers have _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, answer.headers, text

    def call(self, name: str, body: Any = None, **headers: str) -> Any:
        """Return the answer of a call, or its error as a text."""
        status, _, text = self.request(
            f"/playground/{name}",
            "POST",
            json.dumps(body or {}),
            **{**JSON, **self.origin, **headers},
        )
        content = json.loads(text)
        return content if status == 200 else f"{status}: {content['error']['message']}"


@contextmanager
def playing(
    speakers: Mapping[str, Speaker],
    folder: Path,
    config: ServerConfig | None = None,
    **known: Any,
) -> Iterator[Page]:
    config = config or ServerConfig(hosts=LOOPBACK)
    app = create_app(speakers["user"], config)
    names = {role: f"the {role}" for role in speakers}
    add_pages(app, Playground(speakers, names, Saved(folder), **known), config)
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        running(app, listening),
    ):
        yield Page(listening.getsockname()[1])


def while_serving(
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[Starlette, int], None],
    **options: Any,
) -> None:
    """Run `userlm serve` until `ask` has asked the server, which is at a port, what it wants."""
    run = app.running

    @contextmanager
    def asked(
        served: Starlette, listening: socket.socket
    ) -> Iterator[threading.Thread]:
        with run(served, listening):
            ask(served, listening.getsockname()[1])
            yield threading.Thread()

    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(app, "running", asked)
    command.serve(flat(command.Serve, port=0, **options))

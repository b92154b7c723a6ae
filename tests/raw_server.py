"""A server that sends bytes, whatever it is asked."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def sending(first: bytes, then: bytes) -> Iterator[str]:
    """The URL of a server that sends `first`, and then `then` every 20 ms for ever."""

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.recv(1 << 16)
            connection.sendall(first)
            while True:
                connection.sendall(then)
                time.sleep(0.02)

    def listen() -> None:
        with suppress(OSError):
            while True:
                args = (listening.accept()[0],)
                threading.Thread(target=serve, args=args, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"

"""The connections of the server: how many there may be, and how long a client may take."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

REQUEST_SECONDS = 20.0
"""How long a client may take to send a whole request, or to take what is sent to it."""

MAX_CONNECTIONS = 512

FREE_CHUNKS = 1_000
BYTES_PER_CHUNK = 100
"""A body may have this many chunks, and one more for so many bytes: each takes some 20 microseconds
in which no other client is served."""

MAX_BEHIND = 2**16
"""Bytes that a client may send behind a request before it is answered."""


def max_open_files() -> int:
    """Return how many files and connections this process may have open."""
    if sys.platform == "win32":
        return 2 * MAX_CONNECTIONS
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit if limit != resource.RLIM_INFINITY else sys.maxsize


class Connections:
    """The open connections of a server.

    Clients that send nothing, or half a request, lock nobody out: a new connection takes the place
    of one that owes a request.

    Args:
        limit: how many there may be.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: dict[Connection, None] = {}

    def connect(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        """Return the protocol of a new connection; uvicorn calls this."""
        return Connection(H11Protocol(config, server_state, app_state, _loop), self)

    def add(self, connection: Connection) -> None:
        """Count a connection; above the limit, close another one."""
        if len(self._open) >= self.limit:
            idle = [other for other in self._open if other.owes_request]
            # The oldest that never sent a whole request, else the oldest that is only kept open.
            # If all are being answered, the new one has no place.
            closed = min(idle, key=lambda other: other.has_asked, default=connection)
            closed.abort()
        self._open[connection] = None

    def remove(self, connection: Connection) -> None:
        """Count a connection no more."""
        self._open.pop(connection, None)


class Connection(asyncio.Protocol):
    """A connection that is closed if the client takes too long.

    Bytes are handled by uvicorn's protocol. It has a timeout between two requests, but none within
    a request, and none for an answer that the client does not take.

    Attributes:
        has_asked: whether a whole request has come.
    """

    def __init__(self, http: H11Protocol, connections: Connections) -> None:
        self.has_asked = False
        self._http = http
        self._connections = connections
        self._receiving = Deadline(http.loop, self.abort)
        self._sending = Deadline(http.loop, self.abort)
        # After an answer, uvicorn's protocol goes on with what the client has sent meanwhile.
        self._answered = http.on_response_complete
        http.on_response_complete = self.response_complete  # type: ignore[method-assign]
        self._chunks_left = 0.0
        self._next_event = http.conn.next_event
        http.conn.next_event = self.next_event  # type: ignore[method-assign]

    @property
    def owes_request(self) -> bool:
        """Whether it is the client's turn: a request is not complete, or there is none."""
        return self._http.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        # Writing is paused as soon as the client does not take a byte.
        transport.set_write_buffer_limits(high=0)
        self._http.connection_made(transport)
        # uvicorn's protocol has put itself in the set whose members are told to shut down.
        self._http.connections.discard(self._http)
        self._http.connections.add(self)  # type: ignore[arg-type]
        self._receiving.start()
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._receiving.start()
        try:
            self._http.data_received(data)
        except h11.LocalProtocolError:  # was answered, and then sent what is no HTTP
            self.abort()
        if not self.owes_request:
            self.has_asked = True
            self._receiving.stop()
            behind, _ = self._http.conn.trailing_data
            if len(behind) > MAX_BEHIND:
                self.abort()
            # uvicorn's protocol reads no further, and would not notice that the client leaves.
            self._http.flow.resume_reading()

    def next_event(self) -> Any:
        """Return what the client sent; raise `RemoteProtocolError` at a body in tiny chunks."""
        event = self._next_event()
        if isinstance(event, h11.Request):
            self._chunks_left = FREE_CHUNKS
        elif isinstance(event, h11.Data):
            self._chunks_left += len(event.data) / BYTES_PER_CHUNK - event.chunk_start
            if self._chunks_left < 0:
                raise h11.RemoteProtocolError("the body has too many chunks")
        return event

    def response_complete(self) -> None:
        """Let the time run for a request of which a part came before the last answer."""
        self._answered()
        begun, _ = self._http.conn.trailing_data
        if self.owes_request and (
            begun or self._http.conn.their_state is h11.SEND_BODY
        ):
            self._receiving.start()

    def eof_received(self) -> None:
        self._http.eof_received()

    def pause_writing(self) -> None:
        self._sending.start()
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._sending.stop()
        self._http.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._receiving.stop()
        self._sending.stop()
        self._connections.remove(self)
        self._http.connections.discard(self)
        self._http.connection_lost(error)

    def shutdown(self) -> None:
        """Close the connection once its request is answered, at once if that has not come whole;
        uvicorn calls this when the server stops."""
        self._http.shutdown()
        if self.owes_request and not self._transport.is_closing():
            self.abort()

    def abort(self) -> None:
        """Close the connection now."""
        self._connections.remove(self)
        self._transport.abort()


class Deadline:
    """Calls a function after `REQUEST_SECONDS`, unless it is stopped before."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._call = call
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Let the time run, if it does not run already."""
        if self._timer is None:
            self._timer = self._loop.call_later(REQUEST_SECONDS, self._call)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

"""The server: its routes, the queue before the user, and how it is run."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn import Config, Server

from userlm.keys import mask_key
from userlm.models.budget import while_wanted
from userlm.serving.access import check_caller
from userlm.serving.answers import chunks, completion, sample
from userlm.serving.connections import (
    MAX_CONNECTIONS,
    Connections,
    max_open_files,
)
from userlm.serving.messages import TurnRequest, turn_request
from userlm.serving.responses import as_chat, events, in_its_words, response
from userlm.serving.schema import (
    NO_RETRY,
    ChatCompletion,
    ChatRequest,
    RequestError,
    ServerConfig,
    parse_request,
    unknown_model,
)
from userlm.types import InputError, ModelError, Speaker, encodable

Done = TypeVar("Done")

MAX_BODY_BYTES = 4 * 2**20
"""About fifty times the size of a context of 8,192 tokens."""

MAX_FIELDS = 50_000
"""Objects and their fields in a request, each of which takes some microseconds."""

HANDLED = (RequestError, HTTPException, ClientDisconnect, Exception)

NOT_HERE = {
    "/v1/completions": "a user continues a list of messages, and not a text",
    "/v1/embeddings": "a simulated user talks, and has no embeddings",
}
"""Paths of the OpenAI API that clients ask for by mistake, and why they are not served."""

MAX_UNFINISHED_BYTES = 16 * MAX_BODY_BYTES
"""Limit of all bodies together that have not come whole: 128 KB for each of 512 connections."""


def create_app(user: Speaker, config: ServerConfig) -> Starlette:
    """Return the application that answers for a user; `running` runs it."""
    pool = Pool(config.batch, config.queue)
    unfinished: dict[Request, bytearray] = {}

    async def answered(
        request: Request,
        as_chat: Callable[[object], object],
        shown: Callable[[ChatCompletion, ChatRequest], Response],
    ) -> Response:
        check_caller(request, config)
        # A large body takes long to read; others are answered meanwhile. It is kept no longer.
        parsing = asyncio.to_thread(
            _parse, await read_body(request, unfinished), as_chat, user, config
        )
        turn = await while_there(request, parsing)
        writer = config.intent_writer
        if writer and turn.description is not None:
            write = partial(writer.write, turn.description)
            (intent,) = await pool.results([write], request, config.key)
            turn = turn.with_intent(intent, writer.name)
        count = turn.request.n or 1
        jobs = [partial(sample, user, turn, i) for i in range(count)]
        samples = await pool.results(jobs, request, config.key)
        # So does the writing of one with many choices.
        return await asyncio.to_thread(
            lambda: shown(completion(samples, turn, config), turn.request)
        )

    async def chat_completions(request: Request) -> Response:
        return await answered(request, lambda body: body, _chat_completion)

    async def responses(request: Request) -> Response:
        try:
            return await answered(request, as_chat, _response)
        except RequestError as error:
            raise in_its_words(error) from None

    async def health(request: Request) -> Response:
        return json_response(
            {"status": "ok", "in_flight": pool.in_flight, "room": pool.room}
        )

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/responses", responses, methods=["POST"]),
            *_not_here(config),
            *_models(config),
            Route("/health", health),
        ],
        exception_handlers=dict.fromkeys(HANDLED, _error),
    )
    app.state.pool = pool
    # What a model sees of a conversation takes long to show, and no thread from the turns.
    app.state.views = Pool(1, config.queue)
    # Nor has the reading of what was saved, which may be large.
    app.state.files = Pool(1, config.queue)
    app.state.unfinished = unfinished
    return app


def _models(config: ServerConfig) -> list[Route]:
    """Return the routes of the one model."""

    async def models(request: Request) -> Response:
        check_caller(request, config)
        name = config.model_name
        model = {"id": name, "object": "model", "created": 0, "owned_by": "userlm"}
        asked = request.path_params.get("name")
        if asked is None:
            return json_response({"object": "list", "data": [model]})
        if asked != name:
            raise unknown_model(asked, name)
        return json_response(model)

    return [Route("/v1/models", models), Route("/v1/models/{name:path}", models)]


def _not_here(config: ServerConfig) -> list[Route]:
    """Return the routes that say what to use instead of what is not served."""

    async def refuse(request: Request) -> Response:
        check_caller(request, config)
        why = NOT_HERE[request.url.path]
        raise RequestError(
            404, f"{why}; POST /v1/chat/completions gives the user's next turn"
        )

    return [Route(path, refuse, methods=["GET", "POST"]) for path in NOT_HERE]


def _chat_completion(answer: ChatCompletion, asked: ChatRequest) -> Response:
    if not asked.stream:
        return json_response(answer.model_dump())
    parts = chunks(answer, asked.stream_options)
    lines = [f"data: {_dumps(part)}\n\n" for part in parts]
    return _stream([*lines, "data: [DONE]\n\n"])


def _response(answer: ChatCompletion, asked: ChatRequest) -> Response:
    content = response(answer, asked)
    if not asked.stream:
        return json_response(content)
    lines = []
    for event in events(content):
        lines.append(f"event: {event['type']}\ndata: {_dumps(event)}\n\n")
    return _stream(lines)


def _stream(events: Sequence[str]) -> Response:
    return Response("".join(events), media_type="text/event-stream")


@contextmanager
def running(app: Starlette, listening: socket.socket) -> Iterator[threading.Thread]:
    """Serve at a socket while the context lasts; it yields the thread that does.

    At its end no further request is taken, requests in the queue are answered with 503, and replies
    that are being sampled are still sent. Requests that have not come whole are not waited for.
    """
    # Half of the files are left for the model and for connections that were not counted yet, of
    # which the loop accepts `backlog` at once, and in three turns until the first are closed.
    files = max_open_files()
    most = max(MAX_CONNECTIONS, 2 * app.state.pool.room)
    connections = Connections(min(most, files // 2))
    config = Config(
        app,
        http=connections.connect,  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        lifespan="off",
        # Warnings are about requests that are no HTTP, one line for each.
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=min(MAX_CONNECTIONS, files // 16),
        # Longer than clients keep idle connections, so that they never write to one that is
        # closing.
        timeout_keep_alive=75,
    )
    # Header and body of an answer are two writes; without this the second waits 40 ms for the
    # acknowledgement of the first.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        for pool in (app.state.pool, app.state.views, app.state.files):
            pool.close()
        server.should_exit = True
        thread.join()


# --- the queue ------------------------------------------------------------------------------------


class Pool:
    """Threads that call models, with a bounded queue.

    Args:
        width: the number of replies that are sampled concurrently.
        queue: the number of replies that may wait.
    """

    def __init__(self, width: int, queue: int) -> None:
        self.room = width + queue
        self.in_flight = 0
        self._width = width
        self._threads = ThreadPoolExecutor(width, "reply")
        self._lock = threading.Lock()
        self._mean_seconds = 0.0
        self._closed = False

    async def results(
        self, jobs: Sequence[Callable[[], Done]], request: Request, key: str | None
    ) -> list[Done]:
        """Return what the jobs return, without those that failed.

        Raises:
            RequestError: if all failed for reasons that are not bugs; of the first, with the key
                masked. Also if the queue is full.
            ClientDisconnect: see `while_there`.
        """
        gone = threading.Event()
        futures = self.submit(jobs, gone)
        finished = map(asyncio.wrap_future, futures)
        try:
            await while_there(
                request, asyncio.gather(*finished, return_exceptions=True)
            )
        finally:
            gone.set()
        done: list[Done] = []
        failed: list[RequestError] = []
        for future in futures:
            try:
                done.append(_result(future, key))
            except RequestError as error:
                failed.append(error)
        if not done:
            raise failed[0]
        return done  # each may have been paid for

    def submit(
        self, jobs: Sequence[Callable[[], Done]], gone: threading.Event
    ) -> list[Future[Done]]:
        """Queue all jobs or none; raise `RequestError` if the queue is full.

        Args:
            gone: once it is set, nobody waits for them, and they begin no other model call.
        """
        with self._lock:
            if self._closed:
                raise _stopping()
            if self.in_flight + len(jobs) > self.room:
                raise self._full()
            self.in_flight += len(jobs)
            futures = [self._threads.submit(self._timed, job, gone) for job in jobs]
        for future in futures:
            future.add_done_callback(self._finished)
        return futures

    def is_open(self) -> bool:
        """Whether jobs are accepted."""
        return not self._closed

    def close(self) -> None:
        """Accept no more jobs and start no waiting ones; running jobs continue until they would
        begin another model call, such as for another draft."""
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _full(self) -> RequestError:
        seconds = math.ceil(self._mean_seconds * self.in_flight / self._width)
        wait = min(max(seconds, 1), 60)
        message = f"{self.in_flight} replies are in progress or waiting; try again in {wait} s"
        return _later(429, message, "queue_full", wait)

    def _timed(self, job: Callable[[], Done], gone: threading.Event) -> Done:
        begun = time.monotonic()
        try:
            with while_wanted(lambda: self.is_open() and not gone.is_set()):
                return job()
        finally:
            seconds = time.monotonic() - begun
            with self._lock:
                # A moving average, to estimate how long a full queue takes.
                self._mean_seconds += 0.2 * (seconds - self._mean_seconds)

    def _finished(self, future: Future[Any]) -> None:
        with self._lock:
            self.in_flight -= 1


async def while_there(request: Request, work: Awaitable[Done]) -> Done:
    """Return what the work returns. If the client disconnects before, cancel what has not begun of
    it, and raise `ClientDisconnect`."""
    task = asyncio.ensure_future(work)

    async def cancel_if_left() -> None:
        # While this waits, the connection is read, else nobody would notice that it ends.
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watch = asyncio.ensure_future(cancel_if_left())
    try:
        result = await task
    except asyncio.CancelledError:
        raise ClientDisconnect from None
    finally:
        watch.cancel()
    if await request.is_disconnected():
        raise ClientDisconnect  # at the same time as the work ended
    return result


def _result(future: Future[Done], key: str | None) -> Done:
    """Return the result; raise `RequestError` for errors that are not bugs, with the key masked."""
    if future.cancelled():
        raise _stopping()
    try:
        return future.result()
    except (ModelError, InputError) as error:
        message = mask_key(str(error), key)
        if isinstance(error, InputError):
            raise RequestError(400, message) from None
        if error.reason == "stopped":
            raise _stopping() from None
        if error.reason == "cap":
            raise RequestError(
                429,
                f"{message}: less is left than this request may take; a smaller one may be "
                "answered, and any once the server is started again",
                code="insufficient_quota",
                headers=NO_RETRY,
            ) from None
        # Calls of the model were retried already, so clients should not retry.
        raise RequestError(
            503,
            f"the model failed: {message}",
            code="model_failed",
            headers=NO_RETRY,
        ) from None


def _stopping() -> RequestError:
    return _later(503, "the server is shutting down", "stopping", 5)


def _later(status: int, message: str, code: str, wait: int) -> RequestError:
    """Return an error after which the same request may succeed, in `wait` seconds."""
    headers = {"Retry-After": str(wait)}
    return RequestError(status, message, code=code, headers=headers)


# --- HTTP -----------------------------------------------------------------------------------------


async def read_body(request: Request, unfinished: dict[Request, bytearray]) -> bytes:
    """Return the request body; raise `RequestError` if it is not said to be JSON, or too large.

    While it has not come whole, it is among the unfinished ones. If these grow too large together,
    the largest is given up, so that clients that send no end lock out no request of usual size.

    The content type must be JSON's: a web page cannot send this type to another site without a
    preflight request (CORS).
    """
    header = request.headers.get("content-type", "")
    content_type = header.partition(";")[0].strip()
    if content_type.lower() != "application/json":
        raise RequestError(
            415, "send JSON, with the header Content-Type: application/json"
        )
    body = unfinished[request] = bytearray()
    try:
        async for part in request.stream():  # its last part is empty
            body += part
            if len(body) > MAX_BODY_BYTES:
                limit = f"{MAX_BODY_BYTES:,} bytes"
                raise RequestError(
                    413,
                    f"the request is larger than {limit}; shorten the conversation",
                )
            if sum(map(len, unfinished.values())) > MAX_UNFINISHED_BYTES:
                largest = max(unfinished, key=lambda other: len(unfinished[other]))
                unfinished.pop(largest).clear()
            if request not in unfinished:
                raise _later(
                    503,
                    "too many large requests are being received; try again in 5 s",
                    "crowded",
                    5,
                )
    finally:
        unfinished.pop(request, None)
    return bytes(body)


def _parse(
    body: bytes,
    as_chat: Callable[[object], object],
    user: Speaker,
    config: ServerConfig,
) -> TurnRequest:
    """Return the request in a body; raise `RequestError` if there is none."""
    content = as_chat(read_json(body))
    return turn_request(parse_request(content, config.model_name), user, config)


def read_json(body: bytes) -> Any:
    """Return the JSON value in a body; raise `RequestError` if there is none, or a large one."""
    fields = 0

    def with_encodable_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
        # pydantic rejects names with lone surrogates
        nonlocal fields
        fields += 1 + len(pairs)
        if fields > MAX_FIELDS:
            raise RequestError(
                413,
                f"the request has more than {MAX_FIELDS:,} objects and fields; shorten the "
                "conversation",
            )
        return {encodable(name): value for name, value in pairs}

    try:
        return json.loads(body, object_pairs_hook=with_encodable_names)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None


_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def json_response(content: object) -> Response:
    """Return an answer in JSON."""
    return Response(_dumps(content), media_type="application/json")


def _dumps(content: object) -> str:
    """Return JSON on one line, for any definition of a line break."""
    text = json.dumps(
        content,
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    return encodable(text).translate(_LINE_ENDS)


async def _error(request: Request, error: Exception) -> Response:
    """Return an error in the form of the OpenAI API."""
    if isinstance(error, ClientDisconnect):
        return Response()  # the client is gone
    if isinstance(error, HTTPException):
        wrong = (
            f"no {request.method} here" if error.status_code == 405 else "no such path"
        )
        error = RequestError(
            error.status_code,
            f"{wrong}; the endpoints are POST /v1/chat/completions, POST /v1/responses, GET "
            f"/v1/models and GET /health; "
            "a base URL ends in /v1",
            headers=error.headers,
        )
    if not isinstance(error, RequestError):
        error = RequestError(
            500,
            "internal error; see the log of the server",
            # uvicorn closes the connection; without the header the client would reuse it.
            headers={"Connection": "close"},
        )
    kind = "invalid_request_error"
    if error.status == 429:
        kind = "rate_limit_error"
    elif error.status >= 500:
        kind = "server_error"
    body = {
        "message": error.message,
        "type": kind,
        "param": error.param,
        "code": error.code,
    }
    return Response(
        _dumps({"error": body}),
        error.status,
        error.headers,
        "application/json",
    )

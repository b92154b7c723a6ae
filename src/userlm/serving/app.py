"""A simulated user as an OpenAI-compatible server: it answers with the user's next turn. `userlm serve` runs this.

A caller may hold the roles either way. In a `log` they are as they were. In the `flipped` form a harness treats
the user as its model: its own messages, of role `user`, are the assistant's, and those that it got from here, of
role `assistant`, are the user's. The last message tells the two apart, as it is always the assistant's.

What a chat completion has no field for stands in `userlm`: whether the user left (`ended`), P(end), what the guard
did, which intent was used, and notes on what was not taken as it came.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn import Config, Server

from userlm.text import INTENT_PREFIX, stable_hash
from userlm.types import Conversation, InputError, ModelError, Reply, Role, Speaker, Turn, encodable
from userlm.users import PromptedUser, TrainedUser, tuned

ROLES = ("auto", "log", "flipped")

LONGEST_BODY = 4 * 2**20
"""Bytes of a request, at most; some fifty times what a window of 8,192 tokens holds."""
LONGEST_INTENT = 60
"""Words. An intent is one sentence, 30 words or so; a user model has seen none that is much longer."""
MOST_CHOICES = 128
"""Of one request, as at OpenAI."""

TAKEN = frozenset(
    "model messages n seed temperature top_p max_tokens max_completion_tokens stop stream stream_options userlm "
    "tools functions".split()
)
"""Fields of a request that have an effect here."""
DRAWS = ("seed", "temperature", "top_p", "max_tokens", "max_completion_tokens")
"""Those that have none on a user that no model plays."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a user is served.

    Attributes:
        model_name: under which it is asked for.
        intent: what it is after, where a request does not say.
        roles: how callers hold the roles, where a request does not say; one of `ROLES`.
        stop_phrase: stands in the content when the user leaves, for harnesses that look for a word.
        seed: of requests that bring none; `None`: another one each time.
        key: without which nobody is answered; it is never shown.
        hosts: names under which it may be called, any if there are none. A page in a browser on this machine could
            otherwise reach it under a name of its own (DNS rebinding).
        queue: how many replies may wait.
        batch: how many are drawn at once.
    """

    model_name: str = "user"
    intent: str | None = None
    roles: str = "auto"
    stop_phrase: str | None = None
    seed: int | None = None
    key: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    queue: int = 256
    batch: int = 32

    def __post_init__(self) -> None:
        if self.roles not in ROLES:
            raise InputError(f"--roles {self.roles}: give one of {', '.join(ROLES)}")
        if self.stop_phrase is not None and not self.stop_phrase.strip():
            raise InputError("--stop-phrase: give some words, such as [end], or leave it out")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    Attributes:
        conversation: whose next turn, the user's, is wanted.
        roles: `log` or `flipped`, as found.
        seed: of the first choice; the others' are derived from it.
        temperature, top_p, max_tokens: of the draw; `None`: the user's own.
        stop: texts before which the words are cut.
        stream, usage: whether it is to come as events, and the usage with them.
        ignored: fields without effect.
        notes: what was not taken as it came, a sentence each.
    """

    conversation: Conversation
    roles: str
    n: int
    seed: int
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


class Refused(Exception):
    """A request that is answered with an error: its status, what to say, the field and a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers


def app(user: Speaker, terms: Terms | None = None) -> Starlette:
    """What answers for a user; `running` runs it. Its `state.pool` draws the replies."""
    terms = terms or Terms()
    pool = Pool(terms.batch, terms.queue)

    async def completions(request: Request) -> Response:
        check_caller(request, terms)
        asked = read(await _body(request), user, terms)
        futures = pool.submit([partial(draw, user, asked, i) for i in range(asked.n)])
        if not await _done(futures, request):
            return Response()  # to nobody
        answer = completion([_reply(future, terms) for future in futures], asked, terms)
        return _events(answer, asked.usage) if asked.stream else _json(answer)

    async def models(request: Request) -> Response:
        check_caller(request, terms)
        model = {"id": terms.model_name, "object": "model", "created": 0, "owned_by": "userlm"}
        if (name := request.path_params.get("name", terms.model_name)) != terms.model_name:
            raise _no_model(name, terms)
        return _json(model if "name" in request.path_params else {"object": "list", "data": [model]})

    async def health(request: Request) -> Response:
        return _json({"status": "ok", "in_flight": pool.inside, "room": pool.room})

    made = Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", models),
            Route("/health", health),
        ],
        exception_handlers={
            Refused: _refusal,
            HTTPException: _no_such_path,
            ClientDisconnect: _gone_already,
            Exception: _failure,
        },
    )
    made.state.pool = pool
    return made


@contextmanager
def running(served: Starlette, listening: socket.socket) -> Iterator[threading.Thread]:
    """The thread that answers at a socket, for as long as the context lasts. At its end nothing more is taken, who
    waits in the queue is sent away (503), and what is being drawn is still answered."""
    config = Config(
        served,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,  # a client that keeps connections for less never writes to one that is closing
    )
    # Head and body of an answer are two writes, and without this the second waits 40 ms for the first's receipt.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        served.state.pool.close()
        server.should_exit = True
        thread.join()


# --- what is asked -----------------------------------------------------------------------------------------


def read(body: object, user: Speaker, terms: Terms) -> Asked:
    """The request in the body of a call to `/v1/chat/completions`.

    Raises:
        Refused: naming the field, and saying what to do.
    """
    if not isinstance(body, dict):
        raise _bad(f"the body is {_shown(body)}; it must be an object with model and messages")
    if (model := body.get("model")) != terms.model_name:
        served = f"this server has {terms.model_name!r}"
        if not isinstance(model, str):
            raise _bad(f"model is {_shown(model)}; {served}", "model")
        raise _no_model(model, terms)
    for name in ("tools", "functions"):
        if body.get(name):
            raise _bad(f"{name}: a simulated user has no tools; leave {name} out", name)

    own = _object(body, "userlm", ("intent", "roles", "id"))
    system, turns, roles, notes = read_messages(
        body.get("messages"), _roles(own.get("roles"), terms.roles), terms.stop_phrase
    )
    intent, more = find_intent(_text(own.get("intent"), "userlm.intent"), system, terms.intent)
    if isinstance(user, PromptedUser) and intent is None:
        raise _bad("this user needs to know what it is after: send userlm.intent, or a system message", "messages")
    played = isinstance(user, TrainedUser | PromptedUser)
    if played:
        notes += more
    one_sentence = isinstance(user, TrainedUser) and user.template.told == "{}"  # and no profile
    if one_sentence and intent and (count := len(intent.split())) > LONGEST_INTENT:
        notes.append(
            f"the intent has {count} words, and this model was trained on one sentence: {INTENT_PREFIX!r} and "
            'what is wanted; send such a sentence in the system message, or as "userlm": {"intent": ...}'
        )
    said = [part for turn in turns for part in (turn.role, turn.text)]
    id = _text(own.get("id"), "userlm.id") or f"{stable_hash(intent, *said):016x}"

    seed = _whole(body, "seed", -(2**63), 2**64 - 1)
    seed = terms.seed if seed is None else seed
    top_p = _number(body, "top_p", 0, 1)
    most = min(MOST_CHOICES, terms.batch + terms.queue)
    max_tokens = _whole(body, "max_completion_tokens", 1, 2**31) or _whole(body, "max_tokens", 1, 2**31)
    options = _object(body, "stream_options", None)
    effective = TAKEN if played else TAKEN.difference(DRAWS)
    return Asked(
        Conversation(id, tuple(turns), intent),
        roles,
        n=_whole(body, "n", 1, most) or 1,
        seed=secrets.randbits(32) if seed is None else seed,
        temperature=_number(body, "temperature", 0, 2),
        top_p=None if top_p is None else max(top_p, 1e-9),  # 0 is the likeliest token alone
        max_tokens=_within_window(max_tokens, user, notes),
        stop=_stops(body.get("stop")),
        stream=_flag(body, "stream"),
        usage=_flag(options, "include_usage", "stream_options."),
        ignored=tuple(sorted(field for field in body if body[field] and field not in effective)),
        notes=tuple(notes),
    )


def read_messages(messages: object, roles: str, stop_phrase: str | None) -> tuple[str, list[Turn], str, list[str]]:
    """The text of the system messages, the turns that were said, the form found, and notes.

    Raises:
        Refused: naming the message.
    """
    if not isinstance(messages, list) or not messages:
        raise _bad(f"messages is {_shown(messages)}; it must be a list with a message in it", "messages")
    notes: list[str] = []
    system: list[str] = []
    spoken: list[tuple[str, str, str]] = []  # where, the caller's role, the words
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        role, text = _message(message, where)
        if role in ("system", "developer"):
            system.append(text)
        else:
            spoken.append((where, role, text))

    last = spoken[-1][1] if spoken else ""
    if roles == "auto":
        roles = "flipped" if last == "user" else "log"
    theirs: dict[str, Role] = {"user": "user", "assistant": "assistant"}
    if roles == "flipped":
        theirs = {"user": "assistant", "assistant": "user"}
    if last and theirs[last] == "user":
        other = "flipped" if roles == "log" else "log"
        raise _bad(
            f"{spoken[-1][0]}, the last, has the role {last!r}: in the form {roles!r} that is the simulated user; "
            f"end with what the assistant answered, or set userlm.roles to {other!r}",
            f"{spoken[-1][0]}.role",
        )
    turns: list[Turn] = []
    for where, role, text in spoken:
        side = theirs[role]
        if side == "user":
            _still_there(text, where, stop_phrase)
        elif not text.strip():
            notes.append(f"{where} is empty: the assistant answered nothing")
        if turns and turns[-1].role == side:
            notes.append(f"{where} was joined with the message before it: both are of the {side}")
            turns[-1] = Turn(side, f"{turns[-1].text}\n\n{text}".strip())
        else:
            turns.append(Turn(side, text))
    return "\n\n".join(text for text in system if text.strip()), turns, roles, notes


def find_intent(given: str | None, system: str, otherwise: str | None) -> tuple[str | None, list[str]]:
    """What the user is after, and notes: as `given`, or the sentence of the system text that begins as intents do,
    or all of that text, or `otherwise`. An empty `given` is none at all."""
    if given is not None:
        unused = ["the system message was not used: userlm.intent says what the user is after"]
        return given.strip() or None, unused if system else []
    if not system:
        return otherwise, [] if otherwise else ["no intent was given, so the user is after nothing in particular"]
    system = system.strip()  # a newline at its end would hide an intent without a full stop
    found = list(dict.fromkeys(" ".join(match[0].split()) for match in _INTENT.finditer(system)))
    if not found:
        return system, []
    notes = []
    if len(found) > 1:
        notes.append(f"the system message holds {len(found)} intents; the first was used")
    elif found[0] != " ".join(system.split()):
        notes.append("of the system message, the sentence with the intent alone was used")
    return found[0], notes


_INTENT = re.compile(
    r"\s+".join(map(re.escape, INTENT_PREFIX.split()))
    + r"\s(?:[^\n]|\n(?=[ \t]*[a-z]))+?"  # a line that begins in lower case goes on with the sentence
    r"(?:(?<!\b\w)[.!?](?=\s+[^a-z\s]|\s*\Z|[\"'”’)\]])|(?=[\"”]?\n[ \t]*[^a-z\t ])|\Z)"  # not the points of e.g.
)


def _message(message: object, where: str) -> tuple[str, str]:
    """Its role and its words."""
    if not isinstance(message, dict):
        raise _bad(f"{where} is {_shown(message)}; it must be an object with role and content", where)
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise _bad(
            f"{where} has the role {_shown(role)} or calls tools, and a simulated user sees none; leave them out "
            "and send what the assistant says",
            f"{where}.role",
        )
    if role not in ("system", "developer", "user", "assistant"):
        raise _bad(
            f"{where}.role is {_shown(role)}; it must be system, developer, user or assistant", f"{where}.role"
        )
    content = message.get("content")
    if content is None and role in ("user", "assistant"):
        content = message.get("refusal") or ""  # an assistant that refused
    if not isinstance(content, list):
        return role, _needed_text(content, f"{where}.content")
    texts = []
    for i, part in enumerate(content):
        at = f"{where}.content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise _bad(f"{at}.type is {_shown(kind)}; a simulated user reads text alone", f"{at}.type")
        texts.append(_needed_text(part.get("text"), f"{at}.text"))
    return role, "\n".join(texts)


def _still_there(text: str, where: str, stop_phrase: str | None) -> None:
    """Raise `Refused` if the user left with this turn: nobody is there to go on."""
    last = text.strip().rpartition("\n")[2].strip()
    if not last or last == (stop_phrase or "").strip():
        raise Refused(
            400,
            f"{where}: the user left here, or said nothing (see userlm.stop), so this conversation is over; stop "
            "there, or serve a user who does not leave with --guard no-end",
            f"{where}.content",
            "conversation_over",
        )


def _within_window(max_tokens: int | None, user: Speaker, notes: list[str]) -> int | None:
    """As much as was asked for, if that leaves room for the conversation."""
    if max_tokens is None or not isinstance(user, TrainedUser):
        return max_tokens
    most = max(user.sampling.max_tokens, user.window // 4)
    if max_tokens > most:
        notes.append(f"max_tokens is {most}: more would leave too little of the model's window of {user.window}")
    return min(max_tokens, most)


def _roles(given: object, otherwise: str) -> str:
    if given is None:
        return otherwise
    if given not in ROLES:
        raise _bad(f"userlm.roles is {_shown(given)}; it must be one of {', '.join(ROLES)}", "userlm.roles")
    return str(given)


def _stops(given: object) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise _bad("stop must be a text, or a list of texts, none of them empty", "stop")
    return tuple(stops)


def _object(body: Mapping[str, Any], name: str, known: tuple[str, ...] | None) -> dict[str, Any]:
    """An object in the body; empty if it is not there.

    Args:
        known: all fields that it may have; `None`: any.
    """
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad(f"{name} is {_shown(value)}; it must be an object", name)
    for key in value:
        if known and key not in known:
            raise _bad(f"{name} has no field {_shown(key)}; there are {', '.join(known)}", name)
    return value


def _number(body: Mapping[str, Any], name: str, low: int, high: int) -> float | None:
    value = body.get(name)
    if value is not None and (type(value) not in (int, float) or not low <= value <= high):
        raise _bad(f"{name} is {_shown(value)}; it must be a number from {low} to {high}", name)
    return value


def _whole(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise _bad(f"{name} is {_shown(value)}; it must be a whole number from {low} to {high}", name)
    return value


def _flag(body: Mapping[str, Any], name: str, within: str = "") -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _bad(f"{within}{name} is {_shown(value)}; it must be true or false", within + name)
    return bool(value)


def _text(value: object, name: str) -> str | None:
    return None if value is None else _needed_text(value, name)


def _needed_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _bad(f"{name} is {_shown(value)}; it must be text", name)
    return value


def _shown(value: object) -> str:
    """A value in an error: short ones as they are."""
    match value:
        case str():
            return repr(value[:60])
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "an object"
        case int() if abs(value) > 2**64:  # thousands of digits, perhaps
            return "out of range"
        case _:
            return json.dumps(value)


def _no_model(name: str, terms: Terms) -> Refused:
    said = f"there is no model {_shown(name)} here; this server has {terms.model_name!r}"
    return Refused(404, said, "model", "model_not_found")


def _bad(message: str, param: str | None = None) -> Refused:
    return Refused(400, message, param)


# --- what is answered ---------------------------------------------------------------------------------------


def draw(user: Speaker, asked: Asked, i: int) -> Reply:
    """The reply that becomes the choice of a number. The first is the same however many are asked for.

    Raises:
        ModelError: when there is none to be had.
        Refused: when the conversation does not fit the model.
    """
    seed = asked.seed if i == 0 else stable_hash(asked.seed, i)
    speaker = tuned(user, seed=seed, temperature=asked.temperature, top_p=asked.top_p, max_tokens=asked.max_tokens)
    reply = speaker.reply(asked.conversation)
    if not isinstance(reply, Reply):
        raise TypeError(f"{type(user).__name__}.reply gave a {type(reply).__name__}; give userlm.Reply(text)")
    if reply.stop == "context":
        raise Refused(
            400,
            "the intent and the assistant's last answer do not fit the model's window; shorten them",
            "messages",
            "context_length_exceeded",
        )
    if reply.stop == "error" or not (reply.text or reply.stop):
        raise ModelError("the user said nothing and gave no reason to stop")
    return reply


def completion(replies: Sequence[Reply], asked: Asked, terms: Terms) -> dict[str, Any]:
    """The answer of `/v1/chat/completions`: the replies as choices, and what is known besides."""
    choices = [_choice(i, reply, asked.stop, terms.stop_phrase) for i, reply in enumerate(replies)]
    notes = list(asked.notes)
    for i, reply in enumerate(replies):
        if terms.stop_phrase and terms.stop_phrase in reply.text:
            notes.append(f"the words of choices[{i}] hold the stop phrase themselves; userlm.ended says who left")
        if left_out := reply.meta.get("left_out"):
            notes.append(f"{left_out} tokens of the conversation did not fit the model's window; the oldest went")
    known = {
        "intent": asked.conversation.intent,
        "roles": asked.roles,
        "seed": asked.seed,
        "ignored": list(asked.ignored),
        "notes": list(dict.fromkeys(notes)),
    }
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": terms.model_name,
        "choices": choices,
        "usage": _usage(replies),
        "userlm": choices[0]["userlm"] | known,
    }


def _choice(i: int, reply: Reply, stop: tuple[str, ...], stop_phrase: str | None) -> dict[str, Any]:
    cut = min((at for text in stop if (at := reply.text.find(text)) >= 0), default=None)
    content, ended = reply.text[:cut], reply.stop == "end"
    if ended and stop_phrase:
        content = f"{content}\n{stop_phrase}" if content else stop_phrase
    finish = "length" if reply.meta.get("cut") and cut is None else "stop"
    return {
        "index": i,
        "message": {"role": "assistant", "content": content, "refusal": None},
        "logprobs": None,
        "finish_reason": "content_filter" if reply.stop == "guard" else finish,
        "userlm": {
            "ended": ended,
            "p_end": reply.meta.get("p_end"),
            "stop": reply.stop,
            "rejected": len(reply.meta.get("rejected", ())),
            "violates": list(reply.meta.get("violates", ())),
        },
    }


def _usage(replies: Sequence[Reply]) -> dict[str, int] | None:
    """Tokens of all drafts of all choices; `None` unless every reply tells."""
    counts = [(reply.meta.get("tokens_in"), reply.meta.get("tokens_out")) for reply in replies]
    if any(count is None for pair in counts for count in pair):
        return None
    asked, said = (sum(side) for side in zip(*counts, strict=True))
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _events(answer: dict[str, Any], usage: bool) -> Response:
    """The answer as server-sent events. A draft may be said only once the guard has passed it whole, so there is
    nothing to send before all is there."""
    head = {name: answer[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    if usage:
        head["usage"] = None
    chunks = []
    for choice in answer["choices"]:
        content = choice["message"]["content"]
        parts: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
        for delta in parts + ([{"content": content}] if content else []):
            chunks.append(head | {"choices": [{"index": choice["index"], "delta": delta, "finish_reason": None}]})
        last = {name: choice[name] for name in ("index", "finish_reason", "userlm")} | {"delta": {}}
        chunks.append(head | {"choices": [last]})
    chunks[-1]["userlm"] = answer["userlm"]
    if usage:
        chunks.append(head | {"choices": [], "usage": answer["usage"]})
    lines = [f"data: {_dumps(chunk)}\n\n" for chunk in chunks]
    return Response("".join([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


def _json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_dumps(content), status, headers, "application/json")


def _dumps(content: object) -> str:
    """JSON in one line, whatever a client takes for the end of a line."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return encodable(text).translate({mark: f"\\u{mark:04x}" for mark in (0x85, 0x2028, 0x2029)})


# --- the way between ----------------------------------------------------------------------------------------


class Pool:
    """Threads that draw replies, and a bounded queue before them.

    Args:
        width: replies at once.
        queue: how many more may wait.
    """

    def __init__(self, width: int, queue: int) -> None:
        self.room, self.inside = width + queue, 0
        self._threads = ThreadPoolExecutor(width, "reply")
        self._lock = threading.Lock()
        self._width, self._seconds, self._closed = width, 0.0, False

    def submit(self, jobs: Sequence[Callable[[], Reply]]) -> list[Future[Reply]]:
        """Have all of them done, or none; raises `Refused` if there is no room."""
        with self._lock:
            if self._closed:
                raise _closing()
            if self.inside + len(jobs) > self.room:
                wait = min(max(math.ceil(self._seconds * self.inside / self._width), 1), 60)
                raise Refused(
                    429,
                    f"{self.inside} replies are being drawn or waited for; try again in {wait} s",
                    code="queue_full",
                    headers={"Retry-After": str(wait)},
                )
            self.inside += len(jobs)
            futures = [self._threads.submit(self._timed, job) for job in jobs]
        for future in futures:
            future.add_done_callback(self._leave)
        return futures

    def close(self) -> None:
        """Take nothing more, and begin nothing that waits; what is being drawn goes on."""
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _timed(self, job: Callable[[], Reply]) -> Reply:
        begun = time.monotonic()
        try:
            return job()
        finally:
            with self._lock:  # the mean of late, to tell how long a full queue takes
                self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)

    def _leave(self, future: Future[Reply]) -> None:
        with self._lock:
            self.inside -= 1


async def _done(futures: Sequence[Future[Reply]], request: Request) -> bool:
    """Whether all were done before the caller went away. If not, those that wait are not begun."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    drawn = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    left = asyncio.ensure_future(gone())
    try:
        await asyncio.wait((drawn, left), return_when=asyncio.FIRST_COMPLETED)
        return drawn.done()
    finally:
        left.cancel()
        for future in futures:
            future.cancel()  # no more than a word where it has begun


def _reply(future: Future[Reply], terms: Terms) -> Reply:
    """What was drawn; raises `Refused` for what went wrong that we know of."""
    if future.cancelled():
        raise _closing()
    try:
        return future.result()
    except ModelError as error:
        # Tried often enough already: the client is told not to do so all over again.
        said, headers = _without(terms.key, f"the model failed: {error}"), {"x-should-retry": "false"}
        raise Refused(503, said, code="model_failed", headers=headers) from None
    except InputError as error:
        raise _bad(_without(terms.key, str(error))) from None


def _without(key: str | None, text: str) -> str:
    return text.replace(key, "[key]") if key else text


def _closing() -> Refused:
    return Refused(503, "the server is being stopped", code="stopping", headers={"Retry-After": "5"})


def check_caller(request: Request, terms: Terms) -> None:
    """Raise `Refused` for a request without the key, if one is wanted, or under another name."""
    key = terms.key
    if terms.hosts and request.url.hostname not in terms.hosts:
        raise Refused(403, f"call this server as {terms.hosts[0]}, or start it with a key", code="wrong_host")
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), key.encode())
    if scheme.lower() != "bearer" or not same:
        raise Refused(
            401,
            "this server wants its key, as the client's api_key (Authorization: Bearer ...)",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def _body(request: Request) -> object:
    """The JSON that was sent; raises `Refused` if it is none.

    The type is insisted on: a page in a browser cannot send it to another site without asking first.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send JSON, with the header Content-Type: application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise Refused(413, f"the request is larger than {LONGEST_BODY:,} bytes; shorten the conversation")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad(f"the body is not JSON: {error}") from None


def _error(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in the form of the OpenAI API."""
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return _json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _error(error.status, str(error), error.param, error.code, error.headers)


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    there = "there are POST /v1/chat/completions, GET /v1/models and GET /health; a base URL ends in /v1"
    wrong = f"no {request.method} here" if error.status_code == 405 else "no such path"
    return _error(error.status_code, f"{wrong}; {there}", headers=error.headers)


async def _gone_already(request: Request, error: Exception) -> Response:
    return Response()


async def _failure(request: Request, error: Exception) -> Response:
    """uvicorn writes the error down and closes the connection; a client that is not told so would use it again."""
    return _error(500, "the server failed; its log says why", headers={"Connection": "close"})

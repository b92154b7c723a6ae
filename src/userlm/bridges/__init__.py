"""Users of this package in the harnesses of others: one module a harness, on `next_turn`.

A harness that sends the turns as messages needs none of this: it takes the URL of `userlm serve`.
Nothing in the package imports a bridge, and a bridge imports its harness alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from userlm import loading
from userlm.content import joined, read_parts
from userlm.data.intents import with_opening
from userlm.serving.intents import find_intent
from userlm.serving.messages import read_turns
from userlm.serving.schema import Message, RequestError
from userlm.simulate import respond
from userlm.text import intent_goal
from userlm.types import (
    FAILED,
    Conversation,
    ModelError,
    Reply,
    Speaker,
    Turn,
    encodable,
    messages_of,
)

if TYPE_CHECKING:
    from userlm.models.endpoint import EndpointModel
    from userlm.models.faults import Fault

SERVE_KEY = "USERLM_SERVE_KEY"
"""The environment variable with the key of a served user, if it has one."""
_SECONDS = 600.0
"""How long a served user may take for a turn, with those that wait before it."""


class NextTurn(NamedTuple):
    """What the user says (it may be empty), and whether it ends the conversation with that."""

    text: str
    ended: bool


def next_turn(
    user: str | Speaker,
    history: Iterable[Mapping[str, Any]],
    goal: str,
    id: str = "",
) -> NextTurn:
    """Return the user's next turn after these messages; raise `ModelError` if there is none.

    Args:
        user: an object (`userlm.user(...)`), its address, or the URL of a `userlm serve`. An
            address is loaded once and shared by all threads.
        history: messages as in the OpenAI API; the simulated user has the role `user`.
        goal: what the user wants; see `intent_of`.
        id: names the conversation: the same name and turns give the same reply, but for a served
            user, whose replies depend on the server's seed. By default, it is a new one each time.
    """
    speaker = find_user(user) if isinstance(user, str) else user
    before = Conversation(id or uuid4().hex, tuple(turns_of(history)), intent_of(goal))
    if before.next_role == "assistant":
        raise ModelError(
            "the user has no next turn: nothing was said to it since its last"
        )
    after = respond(speaker, before)
    if after.stop in FAILED:
        why = after.meta.get("error", after.stop)
        raise ModelError(f"the user has no next turn: {why}", str(after.stop))
    said = after.turns[len(before.turns) :]
    return NextTurn("".join(turn.text for turn in said), after.stop is not None)


@dataclass
class Talk:
    """One conversation with a user, for harnesses that cannot hear last words and an end at once.

    Attributes:
        user, goal, id: see `next_turn`.
        ended: whether the user ended the conversation.
    """

    user: str | Speaker
    goal: str
    id: str = field(default_factory=lambda: uuid4().hex)
    ended: bool = False

    def say(self, history: Iterable[Mapping[str, Any]]) -> str | None:
        """Return what the user says next; `None` when it has ended the conversation."""
        if self.ended:
            return None
        text, self.ended = next_turn(self.user, history, self.goal, self.id)
        return text or None

    async def say_async(self, history: Iterable[Mapping[str, Any]]) -> str | None:
        """The same without blocking the event loop."""
        return await asyncio.to_thread(self.say, list(history))


class UserEnded(Exception):
    """Raised in a harness that has no other way to hear that the user ended the conversation."""

    def __init__(self) -> None:
        super().__init__("the user ended the conversation")


def intent_of(goal: str) -> str:
    """Return a goal as the sentence that user models are trained on; a text that has such a
    sentence, or a tag with the goal, is reduced to it."""
    found = find_intent(None, goal, None)[0] or ""
    if not found or intent_goal(found) != found:
        return found
    return with_opening(found)


def turns_of(history: Iterable[Mapping[str, Any]]) -> list[Turn]:
    """Return what was said in messages as the server reads them; raise `ModelError` if the user
    was not answered. Messages of the user without words are left out."""
    messages = [
        Message.model_construct(
            role=message["role"],
            content=message.get("content"),
            refusal=message.get("refusal"),
            tool_calls=message.get("tool_calls"),
        )
        for message in history
    ]
    said = [each for each in messages if each.role != "user" or _has_text(each)]
    try:
        return read_turns(said, "log")[0]
    except RequestError as error:
        raise ModelError(error.message) from error


def _has_text(message: Message) -> bool:
    return bool(joined(read_parts(message.content), "speech").strip())


_loading = Lock()


def find_user(address: str) -> Speaker:
    """Return the user at an address or URL, the same one in all threads."""
    with _loading:
        return _loaded(address)


@cache
def _loaded(address: str) -> Speaker:
    if address.startswith(("http://", "https://")):
        return ServedUser(address)
    return loading.user(address)


@dataclass(frozen=True)
class ServedUser:
    """The user of a `userlm serve`.

    Attributes:
        url: its address, such as `http://127.0.0.1:8765/v1`.
    """

    url: str

    @cached_property
    def _endpoint(self) -> EndpointModel:
        from userlm.models.endpoint import EndpointModel

        key = os.environ.get(SERVE_KEY, "").strip()
        # A try that takes all of the time of a call is not repeated.
        return EndpointModel(
            self.url, self.url, key or None, timeout=_SECONDS, key_variable=SERVE_KEY
        )

    @cached_property
    def _name(self) -> str:
        return self._endpoint.ask(_first_model, [], may_bill=False)

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the next turn; raise `ModelError` for whatever goes wrong."""
        turns = messages_of(conversation.turns)
        options = {"intent": conversation.intent or "", "roles": "log"}
        nothing_said = [{"role": "system", "content": conversation.intent or ""}]
        body = {
            "model": self._name,
            "messages": turns or nothing_said,
            "extra_body": {"userlm": {**options, "stop_phrase": ""}},
        }
        return self._endpoint.ask(partial(_next_reply, body), [], may_bill=False)


async def _first_model(client: Any) -> str | Fault:
    from userlm.models.endpoint import receive

    answer = await receive(client.models.with_streaming_response.list())
    try:
        return str(answer["data"][0]["id"])
    except (LookupError, TypeError):
        return _not_served()


async def _next_reply(body: Mapping[str, Any], client: Any) -> Reply | Fault:
    from userlm.models.endpoint import receive

    create = client.chat.completions.with_streaming_response.create
    answer = await receive(create(**body))
    try:
        text = answer["choices"][0]["message"]["content"]
        return Reply(encodable(text), answer["userlm"]["stop"])
    except (LookupError, TypeError, ValueError, AttributeError):
        return _not_served()


def _not_served() -> Fault:
    from userlm.models.faults import Fault

    message = "this is no answer of `userlm serve`; give the URL of one"
    return Fault("broken answer", message, permanent=True)


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Say what to install if the harness of a bridge cannot be imported."""
    try:
        yield
    except ImportError as error:
        message = f'this bridge needs {package} ({error}): pip install "{package}"'
        raise ImportError(message) from error

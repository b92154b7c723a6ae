"""A bot on a server with JSON of its own, which a TOML file describes.

url = "https://bots.example.com/chat"      # may have {session}
answer = "data.reply.text"                 # where the answer is, if it is not found by itself
tool_calls = "data.calls"                  # where its tool calls are, if it has any

[headers]
Authorization = "Bearer $BOT_KEY"          # from the environment

[body]                                     # what is sent
question = "{text}"                        # what the user said last
history = "{messages}"                     # all that was said
session = "{session}"                      # the same for all turns of a conversation

[message]                                  # the form of a message of the history
sender = "{role}"
body = "{text}"

[roles]                                    # the names of the roles there
user = "customer"
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import openai

from userlm.address import check_url
from userlm.json_files import at_path, dump, dumps
from userlm.keys import SHORTEST_SECRET
from userlm.models.budget import TRIES
from userlm.models.endpoint import EndpointModel
from userlm.models.faults import Fault, status_fault
from userlm.models.http_client import header_secrets
from userlm.types import InputError, Message

FIELDS = {
    "url": str,
    "answer": str,
    "tool_calls": str,
    "headers": dict,
    "body": dict,
    "message": dict,
    "roles": dict,
}
PLACE = re.compile(r"\{(text|messages|session|role)\}")
MESSAGES_BODY = {"messages": "{messages}"}
MESSAGE = {"role": "{role}", "content": "{text}"}


class OwnEndpoint:
    """A bot on a server, as a TOML file describes it.

    A temporary failure is tried again, but not with `{session}`: the bot may have taken note of
    what the user said, and would hear it twice.

    Args:
        path: the file.
        timeout: seconds for one answer.

    Raises:
        InputError: if the file is wrong, or an environment variable of its headers is not set.
    """

    def __init__(self, path: str, timeout: float) -> None:
        described = _read(path)
        self._url: str = described["url"]
        self._body = described.get("body", MESSAGES_BODY)
        self._message = described.get("message", MESSAGE)
        self._roles = described.get("roles", {})
        self._answer: str = described.get("answer", "")
        self._calls: str = described.get("tool_calls", "")
        headers, secrets = _headers(path, described.get("headers", {}))
        has_session = "{session}" in self._url or "{session}" in dumps(self._body)
        self._endpoint = EndpointModel(
            self._url,
            self._url,
            None,
            retries=0 if has_session else TRIES - 1,
            timeout=timeout,
            timeout_setting="--answer-timeout",
            headers=headers,
            secrets=secrets,
        )

    def ask(self, messages: Sequence[Message], session: str) -> object:
        """Return the answer in what the server sends; raise `ModelError` if there is none. Neither
        has a secret of the headers."""
        roles = self._roles
        history = [
            _filled(
                self._message,
                {
                    "role": roles.get(each["role"], each["role"]),
                    "text": each["content"],
                },
            )
            for each in messages
        ]
        places = {
            "text": messages[-1]["content"],
            "messages": history,
            "session": session,
        }
        url = _filled(self._url, places)
        body = _filled(self._body, places)

        def send(client: openai.AsyncOpenAI) -> Awaitable[Any]:
            return self._send(client, url, body)

        return self._endpoint.ask(send, [], may_bill=False)

    async def _send(self, client: openai.AsyncOpenAI, url: str, body: object) -> object:
        try:
            said = await client.post(url, body=body, cast_to=object)
        except openai.APIStatusError as error:
            return self._fault(error)
        said = self._without_secrets(said)
        answer = at_path(said, self._answer) if self._answer else said
        # Most answers call no tool.
        calls = at_path(said, self._calls, None) if self._calls else None
        return {"content": answer, "tool_calls": calls} if calls else answer

    def _fault(self, error: openai.APIStatusError) -> Fault:
        """Return the fault for an HTTP error status, in words for a bot."""
        if error.status_code in (401, 403):
            why = "refused the request; set its key, in [headers]"
        elif error.status_code in (404, 405):
            why = "has nothing to send messages to at this url"
        else:
            return status_fault(error, has_key=False, key_variable="")
        message = f"the server {why} (HTTP {error.status_code})"
        return Fault("not allowed", message, permanent=True)

    def _without_secrets(self, said: Any) -> Any:
        """Return a value of JSON without the secrets of the headers, which may be numbers in it."""
        if isinstance(said, dict):
            values = map(self._without_secrets, said.values())
            return dict(zip(map(self._endpoint.masked, said), values, strict=True))
        if isinstance(said, list):
            return [self._without_secrets(value) for value in said]
        shown = str(said)
        masked = self._endpoint.masked(shown)
        return said if masked == shown else masked


def _read(path: str) -> dict[str, Any]:
    try:
        described = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"bot:{path}: cannot read how to ask it: {error}") from None
    for name, value in described.items():
        kind = FIELDS.get(name)
        if kind is None:
            known = ", ".join(FIELDS)
            raise InputError(f"{path}: {name!r} is no field; known are {known}")
        if not isinstance(value, kind):
            wanted = "a table" if kind is dict else "a text"
            raise InputError(f"{path}: {name!r} must be {wanted}")
    if "url" not in described:
        raise InputError(f"{path}: 'url' is missing; write where the bot is asked")
    try:
        check_url(described["url"], "an environment variable, and name it in [headers]")
    except InputError as error:
        raise InputError(f"{path}: 'url': {error}") from None
    if set(PLACE.findall(described["url"])) - {"session"}:
        # What somebody says could lead to any path of the server, with the headers.
        raise InputError(
            f"{path}: 'url' may only have {{session}}; put the others into [body]"
        )
    body = dumps(described.get("body", MESSAGES_BODY))
    if "{text}" not in body and "{messages}" not in body:
        raise InputError(
            f"{path}: 'body' has neither {{text}} nor {{messages}}, so the bot would not get what "
            "the user says"
        )
    return described


def _headers(path: str, given: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return the headers with the values of environment variables in them, and the secrets among
    these and in the file."""
    headers = {}
    secrets: list[str] = []
    for name, value in given.items():
        where = f"{path}: header {name!r}"
        if not isinstance(value, str):
            raise InputError(f"{where} must be a text")
        if PLACE.search(value):
            raise InputError(
                f"{where} has a place, but headers are the same for all conversations; put it into "
                "'url' or [body]"
            )
        template = Template(value)
        if not template.is_valid():
            raise InputError(f"{where}: write $NAME for a variable, and $$ for a $")
        for variable in template.get_identifiers():
            if not os.environ.get(variable, "").strip():
                raise InputError(f"{where}: set the environment variable {variable}")
        headers[name] = template.substitute(os.environ).strip()
        values = [os.environ[each].strip() for each in template.get_identifiers()]
        # A shorter one is a word that answers may have, such as the name of a shop.
        secrets += [each for each in values if len(each) >= SHORTEST_SECRET]
        secrets += header_secrets(name, headers[name])
        sent = name + headers[name]
        if not (sent.isascii() and sent.isprintable()):
            raise InputError(f"{where} has characters that are not allowed in a header")
    return headers, secrets


def _filled(template: Any, places: Mapping[str, Any]) -> Any:
    """Return a template with its places filled in. A text that is one place alone becomes its
    value."""
    if isinstance(template, dict):
        return {name: _filled(value, places) for name, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, places) for value in template]
    if not isinstance(template, str):
        return template
    place = PLACE.fullmatch(template)
    if place and place[1] in places:
        return places[place[1]]

    def filled(place: re.Match[str]) -> str:
        value = places.get(place[1], place[0])
        return value if isinstance(value, str) else dump(value).decode()

    # In one pass: what somebody said may look like a place.
    return PLACE.sub(filled, template)

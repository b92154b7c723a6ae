"""The HTTP client under the `openai` client: what is sent, and how much is read.

With the settings of `openai`, a server may redirect a request (which is another one, with the
prompt, to any host), gets headers that are meant for OpenAI, and may send an error without end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import openai

from userlm.text import SHORTEST_SECRET

MAX_ANSWER_BYTES = 2**24
"""The reading of an answer stops here. The largest ones are log-probabilities of long prompts."""
MAX_ERROR_BYTES = 2**16
"""Of an error the beginning is enough."""
AUTHORIZATION = "Authorization"
SECRET_HEADER = re.compile(
    r".*(?:auth(?:entication|orization)?|cookie|key|password|secret|session(?:-?id)?|token)s?"
    r"(?P<more>.*)",
    re.IGNORECASE,
)
"""The names of headers whose values may be secrets, wherever they stand."""
_WORD = re.compile(r"[a-z]+", re.IGNORECASE)
_WORDS = re.compile(r"[a-z]+([-_.][a-z]+)*|\d{1,4}([-./]\d{1,2})+", re.IGNORECASE)
LONGEST_WORDS = 20
"""Characters from which on no value of a header counts as words."""
HEADERS = frozenset(
    (
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "host",
        "x-stainless-raw-response",  # `openai` reads it when the answer comes
    )
)
"""The headers that any server gets, beside the key."""


def http_client(own: Mapping[str, str] | None) -> Any:
    """Return a client that follows no redirects and reads no more than these limits.

    Args:
        own: the only headers that are sent beside `HEADERS`, such as that of the key; `None` for
            OpenAI, which also gets those that `openai` adds: of the key, of OPENAI_CUSTOM_HEADERS,
            OPENAI_ORG_ID and OPENAI_PROJECT_ID.
    """
    before_sending: list[Any] = []
    if own is not None:
        before_sending.append(partial(_replace_headers, own))
    return openai.DefaultAsyncHttpxClient(
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
        event_hooks={"request": before_sending, "response": [_read]},
    )


def key_headers(key: str | None, header: str = AUTHORIZATION) -> dict[str, str]:
    """Return the header of a key; servers that need none may want one all the same."""
    value = key or "none"
    return {header: f"Bearer {value}" if header == AUTHORIZATION else value}


def header_secrets(name: str, value: str) -> list[str]:
    """Return what may be keys in a header, by its name and by what it holds."""
    named = SECRET_HEADER.match(name)
    if not named:
        return []
    # What is more than a key by its name, such as `X-Key-Version`, may hold words or a date.
    plain = _WORDS if named["more"] else _WORD
    # Such as sid=KEY; and response="KEY", of which a bot may repeat the key alone.
    parts = [*value.split(), *re.split(r'[\s=;,"]+', value)]
    return [
        part
        for part in dict.fromkeys(parts)
        if len(part) >= LONGEST_WORDS
        or (len(part) >= SHORTEST_SECRET and not plain.fullmatch(part))
    ]


async def _replace_headers(own: Mapping[str, str], request: Any) -> None:
    for name in {*request.headers} - HEADERS:
        del request.headers[name]
    for name, value in {**own, "User-Agent": "userlm"}.items():
        request.headers[name] = value


async def _read(response: Any) -> None:
    """Read the body up to the limit, before the client reads it without one; raise `ValueError` if
    an answer is longer."""
    most = MAX_ANSWER_BYTES if response.is_success else MAX_ERROR_BYTES
    body = bytearray()
    async for chunk in response.stream:
        body += chunk
        if len(body) > most:
            break
    await response.stream.aclose()
    if response.is_success and len(body) > most:
        raise ValueError(f"it is longer than {most:,} bytes")
    # A few compressed bytes could fill the memory.
    coding = response.headers.pop("content-encoding", "identity")
    if response.is_success and coding != "identity":
        raise ValueError(f"it is compressed ({coding}), which was not asked for")
    response.stream = type(response)(200, content=bytes(body[:most])).stream

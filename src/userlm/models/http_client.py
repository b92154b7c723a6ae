"""The HTTP client under the `openai` client: what is sent, and how much is read.

With the settings of `openai`, a server may redirect a request (which is another one, with the
prompt, to any host), gets headers that are meant for OpenAI, and may send an error without end.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import openai

MAX_ANSWER_BYTES = 2**24
"""The reading of an answer stops here. The largest ones are log-probabilities of long prompts."""
MAX_ERROR_BYTES = 2**16
"""Of an error the beginning is enough."""
AUTHORIZATION = "Authorization"
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


def http_client(
    key: str | None, is_openai: bool, key_header: str = AUTHORIZATION
) -> Any:
    """Return a client that follows no redirects and reads no more than these limits.

    Args:
        key: the only secret that is sent.
        is_openai: whether the headers of OPENAI_CUSTOM_HEADERS, OPENAI_ORG_ID and
            OPENAI_PROJECT_ID, which `openai` adds, are sent too.
        key_header: the header of the key, for a server without the OpenAI API.
    """
    before_sending: list[Any] = []
    if not is_openai:
        value = key or "none"
        if key_header == AUTHORIZATION:
            value = f"Bearer {value}"
        before_sending.append(partial(_remove_headers, key_header, value))
    return openai.DefaultAsyncHttpxClient(
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
        event_hooks={"request": before_sending, "response": [_read]},
    )


async def _remove_headers(key_header: str, value: str, request: Any) -> None:
    """Leave the headers of `HEADERS`, and the one of the key."""
    for name in {*request.headers} - HEADERS:
        del request.headers[name]
    request.headers[key_header] = value
    request.headers["User-Agent"] = "userlm"


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

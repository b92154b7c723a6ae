"""The HTTP client under the `openai` client: what is sent, and how much is read.

With the settings of `openai`, a server may redirect a request (which is another one, with the
prompt, to any host), gets headers that are meant for OpenAI, and may send an error without end.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from ssl import create_default_context
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

import openai

from userlm.address import is_here
from userlm.keys import SHORTEST_SECRET
from userlm.types import InputError

MAX_ANSWER_BYTES = 2**24
"""The reading of an answer stops here. The largest ones are log-probabilities of long prompts."""
MAX_ERROR_BYTES = 2**16
"""Of an error the beginning is enough."""
AUTHORIZATION = "Authorization"
SECRET_HEADER = re.compile(
    "auth|cookie|credential|key|password|secret|session|token", re.IGNORECASE
)
"""What the names of headers have in them whose values may be keys."""
_ADDRESS = re.compile(r"\w+://[\w./-]*|[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_ALONE = re.compile(r"""[^\s=;,|"'{}]+=*""")
_NAMED = re.compile(r"""([\w-]+)=["']?([^\s;,"']+)""")
_OF_KEY = re.compile(
    f"(?:{SECRET_HEADER.pattern}|authorization|sess|sid)s?(?:[-_]?id)?(?:[-_.]?v?\\d+)?\\Z",
    re.IGNORECASE,
)
"""A name of a header or a value that is a key, and does not only describe one, as
`X-Key-Version`."""
_SCHEME = re.compile(r"[a-z]+\s+", re.IGNORECASE)
"""A word before a key, such as `Bearer`."""
_WORD = re.compile("[a-z]{1,15}(?: +[a-z]{1,15})*", re.IGNORECASE)
_WORDS = re.compile(
    r"[a-z]{1,19}([-_.][a-z]{1,19})*|\d{1,4}([-./]\d{1,2})+", re.IGNORECASE
)
_PART = re.compile(r"[\w.~+/-]{16,}", re.ASCII)
_MIXED = re.compile(r"[a-z][A-Z\d]|[A-Z]\d|\d[A-Za-z]")
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


def http_client(own: Mapping[str, str] | None, url: str) -> Any:
    """Return a client that follows no redirects and reads no more than these limits. It asks
    through the proxy that the environment names, but never for this machine: the proxy would get
    what is meant to stay here.

    Args:
        url: where it sends requests.
        own: the only headers that are sent beside `HEADERS`, such as that of the key; `None` for
            OpenAI, which also gets those that `openai` adds: of the key, of OPENAI_CUSTOM_HEADERS,
            OPENAI_ORG_ID and OPENAI_PROJECT_ID.

    Raises:
        InputError: if the proxy cannot be used.
    """
    before_sending: list[Any] = []
    if own is not None:
        before_sending.append(partial(_replace_headers, own))
    try:
        return openai.DefaultAsyncHttpxClient(
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"request": before_sending, "response": [_read]},
            **_direct(url),
        )
    except OSError:  # of certificates
        raise
    except Exception as error:  # the error of a wrong URL has no other base class
        raise _unusable(getproxies()) from error


def _direct(url: str) -> dict[str, Any]:
    """Return the settings of a client that asks this machine, else none."""
    parts = urlsplit(url)
    if not is_here(parts.hostname or ""):
        return {}
    # Without the proxies of the environment, but with its certificates.
    own = {"verify": create_default_context()} if parts.scheme == "https" else {}
    return {"trust_env": False, **own}


def _unusable(proxies: Mapping[str, str]) -> InputError:
    """Return the error of a proxy that cannot be used, without its URL, which may have a
    password."""
    names = [
        each
        for each in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        if each[:-6].lower() in proxies
    ]
    how = "give http://HOST:PORT"
    if any(each.lower().startswith("socks") for each in proxies.values()):
        how = "install the package socksio for SOCKS, or unset it"
    return InputError(f"the proxy in {' or '.join(names)} cannot be used; {how}")


def key_headers(key: str | None, header: str = AUTHORIZATION) -> dict[str, str]:
    """Return the header of a key; servers that need none may want one all the same."""
    value = key or "none"
    return {header: f"Bearer {value}" if header == AUTHORIZATION else value}


def header_secrets(name: str, value: str) -> list[str]:
    """Return what looks like a key in a header whose name says that it may have one: the whole
    value of a key, what stands alone, as behind `Bearer`, or behind the name of a key, as of
    `sid=KEY; lang=en`, and is no plain word (in `X-Key-Version` also no words or date); and each
    long part in which letters stand beside digits or capitals. No URL and no address."""
    if not SECRET_HEADER.search(name):
        return []
    # A server says what it has read: s%3AKEY as s:KEY, and of `Basic` the user and the password.
    text = unquote(value)
    wholes = _values_of_keys(name, value)
    scheme, _, coded = value.strip().partition(" ")
    if scheme.lower() == "basic":
        with suppress(ValueError):
            decoded = b64decode(coded).decode()
            text += " " + decoded.replace(":", " ")
            wholes.append(decoded.partition(":")[2])
    text = _ADDRESS.sub("", text)
    parts = chain.from_iterable(map(_ADDRESS.split, wholes))
    alone = [part.strip(" \"'") for part in parts]
    alone += [word for word in text.split() if _ALONE.fullmatch(word)]
    alone += [said for what, said in _NAMED.findall(text) if _OF_KEY.search(what)]
    plain = _WORD if _OF_KEY.search(name) else _WORDS
    keys = [one for one in alone if len(one) >= SHORTEST_SECRET]
    keys = [one for one in keys if not plain.fullmatch(one)]
    keys += [part for part in _PART.findall(text) if _MIXED.search(part)]
    return [*dict.fromkeys(keys)]


def _values_of_keys(name: str, value: str) -> list[str]:
    """Return what a header has behind the names of keys, whatever characters are in it: a cookie
    behind those of its values, any other behind its own name, without the scheme."""
    if not name.lower().endswith("cookie"):
        scheme = _SCHEME.match(value)
        key = value[scheme.end() :] if scheme else value
        return [unquote(key)] if _OF_KEY.search(name) else []
    named = [one.partition("=") for one in value.split(";")]
    return [unquote(said) for what, _, said in named if _OF_KEY.search(what.strip())]


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

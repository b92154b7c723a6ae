"""Who may call the server: clients that use its host name or address, and clients with the key."""

from __future__ import annotations

import hmac
import re

from starlette.requests import Request

from userlm.serving.schema import RequestError, ServerConfig

_HOST = re.compile(r"(\[[0-9a-f:]+\]|[a-z0-9.-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
"""A host as in a URL, and a port. Stricter than HTTP: whatever is odd is not ours."""


def check_caller(request: Request, config: ServerConfig) -> None:
    """Raise `RequestError` for a wrong host name, origin or key."""
    if config.hosts:
        _check_host(request, config.hosts)
    if config.key is not None:
        _check_key(request, config.key)


def check_page(request: Request, config: ServerConfig) -> None:
    """Raise `RequestError` if a page of the server is asked for under a wrong host name or by
    another site. It needs no key, since a browser cannot send one, and holds no secret."""
    if config.hosts:
        _check_host(request, config.hosts)
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise _wrong_origin("other sites may not open this page; type its address")


def check_own_page(request: Request, config: ServerConfig) -> None:
    """Raise `RequestError` unless a request comes from a page of this very server: the same host
    and port. Browsers send `Origin` with each POST."""
    check_caller(request, config)
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise _wrong_origin("only the pages of this server may call this")
    own = request.headers.get("host", "").lower()
    origins = request.headers.getlist("origin")
    if [origin.lower().partition("://")[2] for origin in origins] != [own]:
        raise _wrong_origin("only the pages of this server may call this")


def _check_host(request: Request, hosts: tuple[str, ...]) -> None:
    """Raise `RequestError` unless the headers `Host`, and `Origin` if there is one, have one of
    these hosts, or the address of the server.

    The headers are read as they came: `request.url` replaces a host that it cannot parse with the
    address of the server, which is a name that is allowed.
    """
    reached = request.scope["server"][0]  # the address that the client connected to
    names = (reached, *hosts)
    allowed = [f"[{name}]" if ":" in name else name for name in names]
    called = request.headers.getlist("host")
    if len(called) != 1 or not _is_allowed(called[0], allowed):
        raise RequestError(
            403,
            f"use {allowed[0]} as the host name, or start the server with a key",
            code="wrong_host",
        )
    for origin in request.headers.getlist("origin"):
        scheme, _, host = origin.partition("://")
        if scheme not in ("http", "https") or not _is_allowed(host, allowed):
            raise _wrong_origin(
                "web pages of other sites may not use this server; start it with a key"
            )


def _wrong_origin(message: str) -> RequestError:
    return RequestError(403, message, code="wrong_origin")


def _is_allowed(text: str, allowed: list[str]) -> bool:
    found = _HOST.fullmatch(text)
    return found is not None and found[1].lower() in allowed


def _check_key(request: Request, key: str) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), key.encode())
    if scheme.lower() != "bearer" or not same:
        raise RequestError(
            401,
            "this server needs its key as the client's api_key (Authorization: Bearer ...)",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

"""Sending spans: OTLP over HTTP, in protobuf, which every receiver takes.

Source: github.com/open-telemetry/opentelemetry-proto, trace.proto and trace_service.proto; only the
fields that `spans` writes, and those of an answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from userlm.address import check_url, is_here, place
from userlm.keys import mask_key
from userlm.types import InputError, ModelError

HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
"""The environment variable for headers, such as that of a key: `name=value,other=value`."""
_SECONDS = 60.0
_REQUEST_BYTES = 1 << 20  # of spans
_ANSWER_BYTES = 1 << 16
_BYTES, _FIXED64, _VARINT = 2, 1, 0  # how a field is written
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"


def url_of(base: str) -> str:
    """Return where a server takes spans; raise `InputError` if it is no URL, or has a key."""
    check_url(base, HEADERS)
    return base if base.endswith("/v1/traces") else f"{base.rstrip('/')}/v1/traces"


def headers() -> dict[str, str]:
    """Return the headers in the environment."""
    given = filter(None, os.environ.get(HEADERS, "").split(","))
    pairs = [one.partition("=") for one in given]
    if not all(name.strip() and mark for name, mark, _ in pairs):
        raise InputError(f"{HEADERS} is wrong; write name=value,other=value")
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


@dataclass(slots=True)
class Sender:
    """Sends spans to a server, many in a request.

    Attributes:
        taken: how many spans the server took.
    """

    url: str
    taken: int = 0
    _waiting: bytearray = field(default_factory=bytearray)
    _spans: int = 0

    def add(self, exported: Mapping[str, Any]) -> None:
        """Add an export of `spans`; raise `ModelError` as `send` does."""
        self._waiting += encode(exported)
        for one in exported["resourceSpans"]:
            self._spans += sum(len(scope["spans"]) for scope in one["scopeSpans"])
        if len(self._waiting) >= _REQUEST_BYTES:
            self.send()

    def send(self) -> None:
        """Send what was added; raise `ModelError` if the server does not take all of it."""
        if not self._waiting:
            return
        try:
            rejected, why = _rejected(*_post(self.url, bytes(self._waiting)))
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            rejected = self._spans
            why = _why(error)
        self.taken += self._spans - min(rejected, self._spans)
        self._waiting.clear()
        self._spans = 0
        if rejected:
            for secret in headers().values():
                why = mask_key(why, secret)
            why = " ".join(why.split())[:300]
            message = (
                f"{self.url} did not take the spans: {why} ({self.taken:,} were taken)"
            )
            raise ModelError(message)


class _NoRedirects(HTTPRedirectHandler):
    """Follows none: the headers have a key, and the spans would not go along."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _post(url: str, body: bytes) -> tuple[str, bytes]:
    """Return the content type of the answer, and its beginning."""
    kind = {"Content-Type": _PROTOBUF}
    request = Request(url, body, {**headers(), **kind}, method="POST")
    # A proxy would get what is meant to stay on this machine.
    is_direct = is_here(urlsplit(url).hostname or "")
    handlers = [_NoRedirects, ProxyHandler({})] if is_direct else [_NoRedirects]
    with build_opener(*handlers).open(request, timeout=_SECONDS) as answer:
        content_type = answer.headers.get("Content-Type", "").partition(";")[0]
        return content_type.strip().lower(), answer.read(_ANSWER_BYTES)


def _why(error: Exception) -> str:
    if isinstance(error, HTTPError) and 300 <= error.code < 400:
        where = place(error.headers.get("Location", ""))
        return f"it redirects to {where}; give the right address"
    return str(error) or type(error).__name__


def _rejected(kind: str, body: bytes) -> tuple[int, str]:
    """Return how many spans an answer rejects, and why; raise `ValueError` if it is none of OTLP's,
    such as a web page."""
    if kind == _PROTOBUF or not (kind or body):  # Phoenix gives no type
        partial = _field(body, 1, _BYTES, b"")
        why = _field(partial, 2, _BYTES, b"").decode(errors="replace")
        return _field(partial, 1, _VARINT, 0), why
    found = json.loads(body or b"{}") if kind == _JSON else None
    if not isinstance(found, dict):
        raise ValueError(f"its answer ({kind or 'without a type'}) is none of OTLP's")
    partial = found.get("partialSuccess")
    if not isinstance(partial, dict):
        return 0, ""
    rejected = partial.get("rejectedSpans") or 0
    return int(str(rejected)), str(partial.get("errorMessage"))


def _field(message: bytes, number: int, kind: int, default: Any) -> Any:
    """Return the value of a field; raise `ValueError` if the message cannot be read."""
    found = default
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        value: Any
        value, at = _number(message, at)
        if key & 7 == _BYTES:
            begin = at
            at += value
            value = message[begin:at]
        if key & 7 not in (_BYTES, _VARINT) or at > len(message):
            raise ValueError("its answer cannot be read")
        if key == number << 3 | kind:
            found = value
    return found


def _number(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that stands there, and where it ends."""
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError("its answer cannot be read")


def encode(exported: Mapping[str, Any]) -> bytes:
    """Return an export of `spans` as bytes. Those of several exports may stand after each other."""
    return b"".join(_message(1, _resource(one)) for one in exported["resourceSpans"])


def _resource(one: Mapping[str, Any]) -> bytes:
    about = _attributes(1, one["resource"]["attributes"])
    scopes = [_message(2, _scope(scope)) for scope in one["scopeSpans"]]
    return _message(1, about) + b"".join(scopes)


def _scope(one: Mapping[str, Any]) -> bytes:
    name = _message(1, _text(1, one["scope"]["name"]))
    return name + b"".join(_message(2, _span(span)) for span in one["spans"])


def _span(span: Mapping[str, Any]) -> bytes:
    fields = [
        _message(1, bytes.fromhex(span["traceId"])),
        _message(2, bytes.fromhex(span["spanId"])),
        _message(4, bytes.fromhex(span.get("parentSpanId", ""))),
        _text(5, span["name"]),
        _key(6, _VARINT) + _varint(span["kind"]),
        _key(7, _FIXED64) + int(span["startTimeUnixNano"]).to_bytes(8, "little"),
        _key(8, _FIXED64) + int(span["endTimeUnixNano"]).to_bytes(8, "little"),
        _attributes(9, span["attributes"]),
    ]
    return b"".join(fields)


def _attributes(number: int, pairs: Iterable[Mapping[str, Any]]) -> bytes:
    found = []
    for pair in pairs:
        [(kind, value)] = pair["value"].items()
        inner = _text(1, value) if kind == "stringValue" else _flag(2, value)
        found.append(_message(number, _text(1, pair["key"]) + _message(2, inner)))
    return b"".join(found)


def _flag(number: int, value: bool) -> bytes:
    return _key(number, _VARINT) + _varint(int(value))


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode("utf-8", "replace"))


def _message(number: int, content: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(content)) + content


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)

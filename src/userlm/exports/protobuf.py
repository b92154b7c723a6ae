"""Sending spans: OTLP over HTTP, in protobuf, which every receiver takes.

Source: github.com/open-telemetry/opentelemetry-proto, trace.proto; only the fields that `spans`
writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote
from urllib.request import Request, urlopen

from userlm.address import check_url
from userlm.types import InputError, ModelError

HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
"""The environment variable for headers, such as that of a key: `name=value,other=value`."""
_SECONDS = 60.0
_BYTES, _FIXED64, _VARINT = 2, 1, 0  # how a field is written


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


def send(url: str, body: bytes) -> None:
    """Send spans; raise `ModelError` if the server does not take them."""
    kind = {"Content-Type": "application/x-protobuf"}
    request = Request(url, body, {**headers(), **kind}, method="POST")
    try:
        with urlopen(request, timeout=_SECONDS):
            return
    except (URLError, OSError, ValueError) as error:
        raise ModelError(f"{url} did not take the spans: {error}") from None


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

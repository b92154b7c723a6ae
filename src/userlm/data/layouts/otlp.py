"""The attributes of OpenTelemetry spans, as plain values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from userlm.data.layouts.fields import Rejected, Row, need, parse_json, wrong_type

_UNWRAPPED = ("message", "message_content", "tool_call")
_DOTTED = tuple(f"{name}." for name in _UNWRAPPED)
_MOST_LETTERS = 1 << 20
"""Letters in the names of all attributes together. A path repeats the names above it and is split
once for each level, so a short row could fill the memory."""


def attributes_of(found: Any, where: str) -> Row:
    """Return attributes as an object whose names have dots: `{"llm.model_name": ...}`.

    In OTLP they are a list of `{key, value: {stringValue: ...}}`; Phoenix nests them: `{"llm":
    {"model_name": ...}}`.
    """
    if found is None or isinstance(found, dict):
        return _dotted(found or {})
    if not isinstance(found, list):
        raise wrong_type(where, "an object or a list", found)
    attributes = {}
    for i, pair in enumerate(found):
        item = need(pair, dict, f"{where}[{i}]")
        key = need(item.get("key"), str, f"{where}[{i}].key")
        attributes[key] = plain_value(item.get("value"))
    return _dotted(attributes)


def _dotted(nested: Row) -> Row:
    """Return an object without objects directly inside it: `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    return _limited(_paths(nested))


def _paths(nested: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _limited(paths: Iterable[tuple[str, Any]]) -> Row:
    """Return paths and their values as an object; raise `Rejected` if the paths are too long."""
    flat: dict[str, Any] = {}
    letters = 0
    for path, value in paths:
        letters += len(path)
        if letters > _MOST_LETTERS:
            detail = f"the names of attributes have more than {_MOST_LETTERS:,} letters"
            raise Rejected("wrong type", detail)
        flat[path] = value
    return flat


def plain_value(value: Any) -> Any:
    """Return the content of an OTLP value: `{stringValue: "x"}`, `{intValue: "5"}`,
    `{arrayValue: {values: [...]}}`; `None` for anything else."""
    if not isinstance(value, dict) or not value:
        return None
    kind, inner = next(iter(value.items()))
    kind = kind.lower().replace("_", "")
    if kind == "intvalue":
        is_int = isinstance(inner, str) and inner.isdecimal() and len(inner) < 20
        return int(inner) if is_int else inner
    if kind not in ("arrayvalue", "kvlistvalue"):
        return inner
    values = inner.get("values") if isinstance(inner, dict) else None
    items = values if isinstance(values, list) else []
    if kind == "arrayvalue":
        return [plain_value(item) for item in items]
    pairs = [item for item in items if isinstance(item, dict)]
    named = [pair for pair in pairs if isinstance(pair.get("key"), str)]
    return {pair["key"]: plain_value(pair.get("value")) for pair in named}


def list_in(attributes: Row, name: str, text_role: str | None = None) -> list[Any]:
    """Return the list in an attribute: as it is, as JSON, or flattened into many (`name.0.role`,
    ...).

    Args:
        text_role: if set, the attribute may be plain text, which is then a message of this role.
    """
    value = attributes.get(name)
    found = parse_json(value)
    if value is None:
        found = _indexed(attributes, f"{name}.")
    if isinstance(found, list):
        return [_unwrapped(parse_json(item)) for item in found]
    if not isinstance(found, str):
        raise wrong_type(f"attribute {name!r}", "a list", found)
    if text_role is None:
        raise Rejected(
            "wrong type", f"attribute {name!r} is not JSON; was it truncated?"
        )
    return [{"role": text_role, "content": found}]


def _indexed(attributes: Row, prefix: str) -> list[Any]:
    flat: dict[str, Any] = {}
    for key, value in attributes.items():
        path = key.removeprefix(prefix)
        number, _, rest = path.partition(".")
        if path != key and number.isdecimal() and rest:
            flat[path] = value
    return list(_nested(flat))


def _nested(flat: Row) -> Any:
    """Turn the paths `0.role`, `0.content` into lists and objects."""
    if "" in flat:
        return flat[""]
    fields: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for path, value in flat.items():
        name, _, rest = path.partition(".")
        fields[name][rest] = value
    if all(name.isdecimal() for name in fields):
        numbers = sorted(fields, key=lambda number: (len(number), number))
        return [_nested(fields[number]) for number in numbers]
    return {name: _nested(inner) for name, inner in fields.items()}


def _unwrapped(value: Any) -> Any:
    """Return messages without OpenInference's objects of one field: `{"message": {"role": ...}}` or
    `{"message.role": ...}` becomes `{"role": ...}`."""
    if isinstance(value, list):
        return [_unwrapped(item) for item in value]
    if not isinstance(value, dict):
        return value
    if any(name.startswith(_DOTTED) for name in value):
        value = _nested(_limited(value.items()))
    if len(value) == 1 and not value.keys().isdisjoint(_UNWRAPPED):
        (value,) = value.values()
        return _unwrapped(value)
    return {name: _unwrapped(inner) for name, inner in value.items()}

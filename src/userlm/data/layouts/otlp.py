"""The attributes of OpenTelemetry spans, as plain values."""

from __future__ import annotations

from typing import Any

from userlm.data.layouts.common import Rejected, Row, need, parse_json, wrong_type


def attributes_of(found: Any, where: str) -> Row:
    """Return attributes as an object.

    In OTLP they are a list of `{key, value: {stringValue: ...}}`.
    """
    if found is None or isinstance(found, dict):
        return found or {}
    if not isinstance(found, list):
        raise wrong_type(where, "an object or a list", found)
    attributes = {}
    for i, pair in enumerate(found):
        item = need(pair, dict, f"{where}[{i}]")
        key = need(item.get("key"), str, f"{where}[{i}].key")
        attributes[key] = plain_value(item.get("value"))
    return attributes


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
    pairs = [item for item in items if isinstance(item, dict) and "key" in item]
    return {pair["key"]: plain_value(pair.get("value")) for pair in pairs}


def list_in(attributes: Row, name: str, text_role: str | None = None) -> list[Any]:
    """Return the list in an attribute: as it is, as JSON, or flattened into many (`name.0.role`,
    ...).

    Args:
        text_role: if set, the attribute may be plain text, which is then a message of this role.
    """
    value = attributes.get(name)
    if value is None:
        return _indexed(attributes, f"{name}.")
    found = parse_json(value)
    if isinstance(found, list):
        return [parse_json(item) for item in found]
    if not isinstance(found, str):
        raise wrong_type(f"attribute {name!r}", "a list", found)
    if text_role is None:
        raise Rejected(
            "wrong type", f"attribute {name!r} is not JSON; was it truncated?"
        )
    return [{"role": text_role, "content": found}]


def _indexed(attributes: Row, prefix: str) -> list[Any]:
    nested: dict[str, Any] = {}
    for key, value in attributes.items():
        if not key.startswith(prefix):
            continue
        number, _, rest = key.removeprefix(prefix).partition(".")
        if not (number.isdecimal() and rest):
            continue
        *path, last = rest.split(".")
        place: Any = nested.setdefault(number, {})
        for name in path:
            place = place.setdefault(name, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
    return _tidy(nested) or []


def _tidy(value: Any) -> Any:
    """Turn objects with numbers as keys into lists, and unwrap OpenInference's objects of one
    field."""
    if not isinstance(value, dict):
        return value
    if value and all(name.isdecimal() for name in value):
        numbers = sorted(value, key=lambda name: (len(name), name))
        return [_tidy(value[number]) for number in numbers]
    if len(value) == 1 and not value.keys().isdisjoint(
        ("message", "message_content", "tool_call")
    ):
        (only,) = value.values()
        return _tidy(only)
    return {name: _tidy(inner) for name, inner in value.items()}

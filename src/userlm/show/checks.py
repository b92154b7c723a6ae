"""Whether a JSON value is what its type says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

Share = Annotated[float, lambda value: value <= 1]
Percent = Annotated[float, lambda value: value <= 100]
Threshold = Annotated[float, lambda value: 0 < value < 1]

_CONDITIONS: Mapping[Any, Callable[[Any], bool]] = {
    Any: lambda value: True,
    int: lambda value: type(value) is int and 0 <= value < 2**63,
    float: lambda value: type(value) in (int, float) and value >= 0 and math.isfinite(value),
    str: lambda value: isinstance(value, str),
}


def checked(value: Any, kind: Any) -> Any:
    """Return a JSON value that has the type `kind`.

    Args:
        kind: a `TypedDict`, of which the value may hold more keys; `dict` or `list` of a type; a
            type or `None`; `int`, which is a count from 0; `float`, which is finite and not
            negative, narrowed by `Annotated` with a condition; `str`; or `Any`.

    Raises:
        AttributeError, KeyError, OverflowError, TypeError, ValueError: for any other value.
    """
    origin = get_origin(kind)
    inner = get_args(kind)
    holds = True
    if is_typeddict(kind):
        for name, part in get_type_hints(kind, include_extras=True).items():
            checked(value[name], part)
    elif origin in (Union, UnionType):
        holds = value is None or checked(value, inner[0]) is value
    elif origin is Annotated:
        holds = inner[1](checked(value, inner[0]))
    elif origin is dict:
        for part in value.values():
            checked(part, inner[1])
    elif origin is list:
        holds = isinstance(value, list)
        for part in value:
            checked(part, inner[0])
    else:
        holds = _CONDITIONS[kind](value)
    if not holds:
        raise ValueError(f"{repr(value)[:60]} is no {getattr(kind, '__name__', kind)}")
    return value

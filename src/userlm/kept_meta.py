"""The `meta` of replies that are not of this package: of bots and users of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from userlm.journal import check_depth
from userlm.json_files import dump, dumps, loads
from userlm.text import named_type
from userlm.types import ModelError

LONGEST = 1 << 20
"""Bytes of the `meta` of a reply."""
ROUNDING = 1e-3
"""How far a probability may be outside of 0 and 1, as sums of rounded numbers are."""
LEFT_OUT = "left_out"
"""The key of `meta` with what was left out of it, and why: `MOST_LEFT_OUT` of them."""
MOST_LEFT_OUT = 20


def kept_meta(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `meta` of a reply as it will be read again, without what is not known. A value
    that could not be read, or under a name of ours that means something else, is left out, with
    why in `left_out`."""
    if not isinstance(given, Mapping):
        return {LEFT_OUT: {"meta": f"it is {named_type(given)}, and no dict"}}
    meta: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    room = LONGEST
    for name, value in given.items():
        try:
            written = dump({name: _plain(value)})
            if len(written) > room:
                raise ValueError(f"at most {LONGEST:,} bytes are kept")
            [(key, kept)] = loads(written).items()
            check_depth({key: kept})
            if key in OURS and kept is not None:
                kept = OURS[key](kept)
        except (TypeError, ValueError, RecursionError, ModelError) as error:
            if name == "tool_calls":  # checks of tasks rest on all of them
                raise ModelError(f"its tool calls cannot be kept: {error}") from error
            if len(left_out) < MOST_LEFT_OUT:
                left_out[str(name)[:100]] = str(error)
            continue
        room -= len(written)
        if kept is not None or key not in OURS:
            meta[key] = kept
    return {**meta, LEFT_OUT: left_out} if left_out else meta


def _plain(value: Any) -> Any:
    """Return a number of another library, such as numpy's, as one of Python."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _count(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _is(type(value) is int and 0 <= value < 2**31, value, "a number of tokens")


def _probability(value: Any) -> Any:
    is_one = type(value) in (int, float) and -ROUNDING <= value <= 1 + ROUNDING
    return min(max(_is(is_one, value, "a number from 0 to 1"), 0), 1)


def _flag(value: Any) -> Any:
    return _is(isinstance(value, bool), value, "true or false")


def _texts(value: Any) -> Any:
    return _is(_are_texts(value), value, "a list of texts")


def _drafts(value: Any) -> Any:
    are_drafts = isinstance(value, list) and all(map(_is_draft, value))
    return _is(are_drafts, value, "a list of drafts, each with `text` and `why`")


def _is_draft(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("text"), str) and _are_texts(value.get("why"))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is(is_right: bool, value: Any, wanted: str) -> Any:
    """Return the value; raise `ValueError` if it is not what is wanted."""
    if not is_right:
        raise ValueError(f"{dumps(value)[:100]} is not {wanted}")
    return value


OURS: Mapping[str, Callable[[Any], Any]] = {
    "tokens_in": _count,
    "tokens_out": _count,
    "truncated_tokens": _count,
    "p_end": _probability,
    "cut": _flag,
    "exhausted": _flag,
    "violates": _texts,
    "rejected": _drafts,
}
"""The fields of `meta` that this package computes with: each returns the value as it is meant, or
raises `ValueError`."""

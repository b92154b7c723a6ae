"""Chatbot Arena: a user talks to two models at the same time, and votes.

The winner's side is used; in a tie, side a.
"""

from __future__ import annotations

from types import NoneType
from typing import Any

from userlm.data.layouts.common import (
    Imported,
    Layout,
    Messages,
    assemble,
    read_messages,
)
from userlm.data.layouts.fields import (
    Rejected,
    Row,
    any_flagged,
    id_of,
    list_of,
    need,
    parse_json,
    plain_number,
    scalars,
    text_of,
    utc_time,
)


def convert(row: Row) -> Imported:
    """Return the conversation of a row.

    There are rows with `conversation_a` and `conversation_b` (`chatbot_arena_conversations` and the
    human preference sets of 100k and 140k; either field may be JSON in a string), and rows with
    `prompt`, `response_a` and `response_b`, each a string or a list of strings, possibly as JSON in
    a string (55k).

    In the newer sets a session may have several votes: a row after the first holds what came before
    in its `full_conversation`. No row says whether it is the last of its session, so none has an
    observed end.
    """
    side = _winning_side(row)
    session = id_of(row, "evaluation_session_id") or None
    order = plain_number(row.get("evaluation_order"))
    if "conversation_a" not in row:
        messages = _from_prompts(row, f"response_{side}")
    elif isinstance(order, int) and order > 1 and row.get("full_conversation"):
        messages = _from_session(row, f"model_side_{side}")
    else:
        name = f"conversation_{side}"
        messages = read_messages(enumerate(_json_list(row, name)), name)
    meta: dict[str, Any] = {
        "source": "arena",
        "model": id_of(row, f"model_{side}") or None,
        **scalars(row, "language", "timestamp"),
    }
    stamp = row.get("tstamp")
    if isinstance(stamp, int | float):
        meta["timestamp"] = utc_time(stamp)
    tags = row.get("toxic_chat_tag")
    tagged = list(tags.values()) if isinstance(tags, dict) else None
    meta["toxic"] = any_flagged(row.get("openai_moderation"), tagged)
    return assemble(
        messages,
        id=id_of(row, "question_id") or id_of(row, "id"),
        user=id_of(row, "judge") or id_of(row, "judge_hash") or session,
        meta=meta,
        whole=session is None and order is None,
    )


def _winning_side(row: Row) -> str:
    """Return the side to use, `a` or `b`. The 55k set has one 0/1 column for each outcome."""
    winner = text_of(row, "winner")
    if winner is None:
        return "b" if row.get("winner_model_b") in (1, "1") else "a"
    if winner not in ("model_a", "model_b") and not winner.startswith(("tie", "both")):
        known = "known are model_a, model_b and ties"
        raise Rejected("wrong type", f"field 'winner' is {winner!r}; {known}")
    return "b" if winner == "model_b" else "a"


def _json_list(row: Row, name: str) -> list[Any]:
    return list_of({name: parse_json(row.get(name))}, name)


def _from_prompts(row: Row, name: str) -> Messages:
    prompts, responses = _texts(row, "prompt"), _texts(row, name)
    if len(prompts) != len(responses):
        counts = f"'prompt' holds {len(prompts)} texts, but {name!r} {len(responses)}"
        raise Rejected("wrong type", counts)
    items = []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        items.append((i, {"role": "user", "content": prompt}))
        items.append((i, {"role": "assistant", "content": response}))
    return read_messages(items, f"prompt/{name}")


def _texts(row: Row, name: str) -> list[str | None]:
    """Return the texts in a field; JSON that is not a list of texts is one text."""
    found = parse_json(row.get(name))
    if isinstance(found, list) and all(
        isinstance(text, (str, NoneType)) for text in found
    ):
        return found
    text = text_of(row, name)
    if text is None:
        raise Rejected("no messages", f"field {name!r} is missing or empty")
    return [text]


def _from_session(row: Row, side_field: str) -> Messages:
    name = "full_conversation"
    items = []
    for i, item in enumerate(_json_list(row, name)):
        exchange = need(item, dict, f"{name}[{i}]")
        items += [(i, exchange.get("user")), (i, exchange.get(side_field))]
    return read_messages(items, name)


LAYOUT = Layout("arena", [{"conversation_a"}, {"response_a"}], convert)

"""PRISM: `conversations.jsonl`. Each turn offers several answers; the chosen one is used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from userlm.data.layouts.common import (
    Imported,
    Layout,
    Side,
    assemble,
    read_messages,
    side_of,
)
from userlm.data.layouts.fields import (
    Rejected,
    Row,
    flag_of,
    id_of,
    list_of,
    need,
    plain_flag,
    plain_number,
    scalars,
    text_of,
)

_NAME = "conversation_history"
_ROLES: Mapping[str, Side] = {"user": "user", "model": "assistant"}


def convert(row: Row) -> Imported:
    """Return the conversation of a row.

    If no answer to the last turn was chosen, the one with the highest score is used; in a tie, the
    one with the lowest `within_turn_id`.
    """
    items = list_of(row, _NAME)
    order = _order(items)
    answers = [items[i] for i in order if items[i]["role"] == "model"]
    models = [text_of(answer, "model_name") for answer in answers]
    messages = read_messages([(i, items[i]) for i in order], _NAME, _ROLES)
    return assemble(
        messages,
        id=id_of(row, "conversation_id"),
        user=id_of(row, "user_id") or None,
        meta={
            "source": "prism",
            "model": models[-1] if models else None,
            "timestamp": scalars(row, "generated_datetime").get("generated_datetime"),
            **scalars(row, "conversation_type"),
            "included_in_balanced_subset": flag_of(row, "included_in_balanced_subset"),
        },
    )


def _order(items: Sequence[Row]) -> list[int]:
    """Return the indices of the messages, without the answers that were not chosen."""
    questions: defaultdict[int, list[int]] = defaultdict(list)  # turn to indices
    answers: defaultdict[int, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        where = f"{_NAME}[{i}]"
        message = need(item, dict, where)
        side = side_of(message.get("role"), f"{where}.role", _ROLES)
        turn = need(plain_number(message.get("turn")), int, f"{where}.turn")
        places = questions if side == "user" else answers
        places[turn].append(i)
    order: list[int] = []
    for turn in sorted(questions.keys() | answers.keys()):
        if turn not in questions:
            raise Rejected(
                "no user turn", f"{_NAME}: turn {turn} has an answer but no question"
            )
        order += questions[turn]
        if turn in answers:
            order.append(_chosen(items, answers[turn], last=turn == max(questions)))
    return order


def _chosen(items: Sequence[Row], answers: Sequence[int], last: bool) -> int:
    """Return the index of the answer that the conversation continued with."""
    chosen = []
    for i in answers:
        choice = plain_flag(items[i].get("if_chosen"))
        if choice is not None or not last:
            need(choice, bool, f"{_NAME}[{i}].if_chosen")
        if choice:
            chosen.append(i)
    if not chosen and not last:
        turn = items[answers[0]]["turn"]
        detail = f"{_NAME}: no answer of turn {turn} has if_chosen true"
        raise Rejected("no chosen answer", detail)
    candidates = chosen or answers
    if len(candidates) == 1:
        return candidates[0]
    scores: dict[int, tuple[float, int]] = {}
    for i in candidates:
        where = f"{_NAME}[{i}]"
        score = need(items[i].get("score"), (int, float), f"{where}.score")
        number = need(
            plain_number(items[i].get("within_turn_id")), int, f"{where}.within_turn_id"
        )
        scores[i] = (-score, number)
    return min(candidates, key=scores.__getitem__)


LAYOUT = Layout("prism", [{_NAME}], convert)

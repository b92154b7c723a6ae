"""Lines of raw logs to conversations: one plain function for each layout. `userlm import` runs
this.

`find` takes the lines of a file, one layout or a mixture, and says of each what became of it; what
stands on many lines is `Gathered`. Here are the layouts in which a row is a conversation; `trees`
reads those of OASST, `spans` what tracing tools export.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from difflib import get_close_matches
from typing import Any, Literal

from userlm.data.rows import (
    CHAT_ROLES,
    NOTES,
    PLAIN,
    REASONS,
    Found,
    Imported,
    Messages,
    Rejected,
    Row,
    Side,
    conversation,
    facts,
    flag_of,
    flagged,
    has_words,
    listed,
    name_of,
    parsed,
    read,
    text_of,
    time_of,
)
from userlm.data.spans import Spans
from userlm.data.trees import Trees, tree
from userlm.rows import Line, from_record
from userlm.types import InputError

__all__ = [
    "NOTES",
    "REASONS",
    "SOURCES",
    "Found",
    "Gathered",
    "Imported",
    "Rejected",
    "convert",
    "find",
    "guess",
]


class Gathered:
    """What stands on many lines, of one file or of several: messages of OASST trees, spans."""

    def __init__(self) -> None:
        self._trees, self._spans = Trees(), Spans()
        self.files: set[str] = set()  # the names of those that gave lines

    def add(self, line: Line, layout: str, file: str) -> None:
        """Take in a line; raises `Rejected` if it cannot be used."""
        self.files.add(file)
        (self._spans if layout == "otel" else self._trees).add(line, file)

    def found(self) -> Iterator[Found]:
        """The conversations; ask when all lines are there."""
        yield from self._trees.found()
        yield from self._spans.found()


def find(
    lines: Iterable[Line], source: str | None, name: str, gathered: Gathered
) -> Iterator[Found]:
    """What stands on the lines of one file, always in the same order.

    A row comes out as soon as it was read, except the messages and spans that make a conversation
    together: they go to `gathered`, and nothing of them is kept but what the conversation needs.

    Args:
        source: a name of `SOURCES`; `None`: guess it from the fields, line by line.
        name: of the file, for the ids of rows that carry none.

    Raises:
        InputError: there is no such source.
    """
    _check(source)
    for line in lines:
        try:
            if line.error:
                raise Rejected(line.reason, f"the line {line.error}")
            layout = source or guess(line.row)
            if layout == "otel" or (layout == "oasst" and "prompt" not in line.row):
                gathered.add(line, layout, name)
            elif layout == "oasst":
                for imported in tree(line.row):
                    yield Found(name, line, imported, None)
            else:
                yield Found(name, line, convert(line.row, layout, f"{name}-{line.number}"), None)
        except Rejected as rejected:
            yield Found(name, line, None, rejected)
        except RecursionError:
            deep = Rejected("wrong type", "a field holds lists or objects that are nested too deep")
            yield Found(name, line, None, deep)


def convert(row: Row, source: str | None, fallback_id: str) -> Imported:
    """The conversation in a row, for the layouts in which there is one.

    Args:
        source: a name of `SOURCES`, except `oasst` and `otel`; `None`: guess it from the fields.
        fallback_id: the id for a row that carries none, such as the name of the file and the line.

    Raises:
        Rejected: the row cannot become a conversation.
        InputError: there is no such source.
    """
    layout = source or guess(row)
    if layout not in _LAYOUTS:
        _check(layout)
        raise InputError(f"a row of {layout!r} is not one conversation; read it with `find`")
    imported = _LAYOUTS[layout](row)
    if imported.conversation.id:
        return imported
    return replace(imported, conversation=replace(imported.conversation, id=fallback_id))


def guess(row: Row) -> str:
    """The name of the layout that the fields of a row speak for; raises `Rejected` when there is
    none."""
    if "turns" in row:
        return "userlm"
    if "messages" in row:
        return "messages"
    if "conversations" in row or "items" in row:
        return "sharegpt"
    if "conversation" in row:  # the first release of WildChat has no hash, LMSYS-Chat-1M no `toxic`
        return "wildchat" if "conversation_hash" in row or "toxic" in row else "lmsys"
    if "conversation_a" in row or "response_a" in row:
        return "arena"
    if "conversation_history" in row:
        return "prism"
    if "message_tree_id" in row or "message_id" in row:
        return "oasst"
    if "resourceSpans" in row or "resource_spans" in row:
        return "otel"
    if "attributes" in row and not row.keys().isdisjoint(("context", "traceId", "trace_id")):
        return "otel"
    seen = ", ".join(sorted(map(str, row))) or "none"
    layouts = "; ".join(f"{name} has {fields}" for name, fields in _FIELDS.items())
    raise Rejected("unknown layout", f"the fields are {seen}; of the known layouts {layouts}")


def _check(source: str | None) -> None:
    if source is not None and source not in SOURCES:
        near = get_close_matches(source, SOURCES, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"source {source!r} is unknown; {meant}known are {', '.join(SOURCES)}")


# --- chats ----------------------------------------------------------------------------------------


def messages(row: Row) -> Imported:
    """`messages` of `{role, content}`, as the OpenAI API has them, and whatever else stands beside
    them.

    `content` may be a list of `{type: "text", text}`. Scalar extras go to `meta`. Our own export
    for the Hub comes
    back as it was: its `meta` is a JSON object in a text, and its `ended` is believed, except after
    a turn of the user.
    """
    said = read(enumerate(listed(row, "messages")), "messages")
    meta: dict[str, Any] = {}
    truncated_tokens = 0
    for key, value in row.items():
        if value is None or key in _MESSAGES_FIELDS:
            continue
        if key == "condition":  # in `meta` this name means what a user model is told
            truncated_tokens += 1
        elif isinstance(value, PLAIN):
            meta[key] = value
        elif isinstance(value, date):
            meta[key] = value.isoformat()
        else:
            truncated_tokens += 1
    ended = meta.get("ended")
    if isinstance(ended, bool):
        del meta["ended"]
    if isinstance(exported := parsed(meta.get("meta")), dict):
        del meta["meta"]
        meta = {**exported, **meta}
    intent = row.get("intent")
    imported = conversation(
        said,
        id=name_of(row, "id"),
        user=name_of(row, "user_id") or name_of(row, "user") or None,
        intent=intent if isinstance(intent, str) and intent else None,
        meta=meta,
        whole=ended if isinstance(ended, bool) else _is_whole(row),
    )
    truncated_tokens += intent is not None and not isinstance(intent, str)
    if not truncated_tokens:
        return imported
    truncated_tokens += imported.notes.get("fields left out", 0)
    return replace(imported, notes={**imported.notes, "fields left out": truncated_tokens})


_MESSAGES_FIELDS = frozenset(("id", "user_id", "user", "messages", "intent"))


def sharegpt(row: Row) -> Imported:
    """ShareGPT: `conversations` (in some copies `items`) of `{from, value}`."""
    name = "conversations" if "conversations" in row else "items"
    said = read(enumerate(listed(row, name)), name, _SHAREGPT_ROLES, "from", "value")
    meta = {"source": "sharegpt", **facts(row, "language", "model")}
    return conversation(said, id=name_of(row, "id"), meta=meta, whole=_is_whole(row))


_SHAREGPT_ROLES: Mapping[str, Side] = {
    **CHAT_ROLES,
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "tool",
    "function_response": "tool",
    "observation": "tool",
}


def userlm(row: Row) -> Imported:
    """Our own records, such as an earlier `conversations.jsonl`."""
    turns = row.get("turns")
    for i, turn in enumerate(turns if isinstance(turns, list) else ()):
        if isinstance(turn, dict) and turn.get("role") not in ("user", "assistant"):
            known = "known are user, assistant"
            raise Rejected("unknown role", f"turns[{i}].role is {turn.get('role')!r}; {known}")
        if (
            isinstance(turn, dict)
            and isinstance(turn.get("text"), str)
            and not has_words(turn["text"])
        ):
            raise Rejected("empty turn", f"turns[{i}].text has no words")
    try:
        record = from_record({**row, "id": name_of(row, "id")})
    except ValueError as error:
        raise Rejected("wrong type", str(error)) from None
    if not record.turns:
        raise Rejected("no messages", "the list 'turns' is empty")
    if not record.user_turns:
        raise Rejected("no user turn", "none of the turns is of the user")
    return Imported(record)


# --- collections ----------------------------------------------------------------------------------


def wildchat(row: Row) -> Imported:
    """WildChat (first release, 1M and 4.8M). A person is an address in a country, as in the paper.

    The hash of a conversation is not unique, so the id also holds the first `turn_identifier`. What
    is missing of
    the conversation is taken from its turns: the most frequent language, and whether any is toxic
        or redacted.
    """
    items = listed(row, "conversation")
    said = read(enumerate(items), "conversation")
    items = [
        item for item in items if isinstance(item, dict)
    ]  # behind an empty turn there may be anything
    first: Row = next((item for item in items if item.get("role") == "user"), {})
    country = text_of(row, "country") or text_of(first, "country")
    person = text_of(row, "hashed_ip") or text_of(first, "hashed_ip")
    number = first.get("turn_identifier")
    name = name_of(row, "conversation_hash") or name_of(row, "conversation_id")
    known = facts(row, "language", "model", "timestamp")
    if "language" not in known:
        spoken = Counter(
            item["language"] for item in items if isinstance(item.get("language"), str)
        )
        known.update((("language", language) for language, _ in spoken.most_common(1)))
    return conversation(
        said,
        id=f"{name}-{number}" if name and number is not None else name,
        user=f"{person}/{country or ''}" if person else None,
        meta={
            "source": "wildchat",
            "country": country,
            "state": text_of(row, "state") or text_of(first, "state"),
            **known,
            "toxic": _any_flag(row, items, "toxic"),
            "redacted": _any_flag(row, items, "redacted"),
        },
    )


def _any_flag(row: Row, items: Sequence[Row], field: str) -> bool | None:
    if (flag := flag_of(row, field)) is not None:
        return flag
    flags = [item[field] for item in items if isinstance(item.get(field), bool)]
    return any(flags) if flags else None


def lmsys(row: Row) -> Imported:
    """LMSYS-Chat-1M. `toxic` is true where OpenAI's moderation flagged any of the messages."""
    said = read(enumerate(listed(row, "conversation")), "conversation")
    meta = {
        "source": "lmsys",
        **facts(row, "language", "model", "timestamp"),
        "redacted": flag_of(row, "redacted"),
        "toxic": flagged(row.get("openai_moderation")),
    }
    return conversation(said, id=name_of(row, "conversation_id"), meta=meta)


def arena(row: Row) -> Imported:
    """Chatbot Arena: one user talks to two models at once, and votes. The winner's side is taken;
    of a tie, a's.

    There are rows with `conversation_a` and `conversation_b` (`chatbot_arena_conversations` and the
    sets of human preference of 100k and 140k; `conversation_a` may be JSON in a text), and with
    `prompt`, `response_a` and `response_b`, each a text or a list of them, that too perhaps as JSON
    in a text (55k).

    In the newer sets a session may have several votes: a row after the first holds what came before
    in its `full_conversation`, and no row tells whether it is the last, so none has an observed
    ending.
    """
    side = _winner(row)
    session = name_of(row, "evaluation_session_id") or None
    order = row.get("evaluation_order")
    tags = row.get("toxic_chat_tag")
    tagged = flagged(list(tags.values())) if isinstance(tags, dict) else None
    moderated = flagged(row.get("openai_moderation"))
    stamp = row.get("tstamp")
    if "conversation_a" not in row:
        said = _prompted(row, side)
    elif isinstance(order, int) and order > 1 and row.get("full_conversation"):
        said = _session(row, side)
    else:
        name = f"conversation_{side}"
        said = read(enumerate(listed({name: parsed(row.get(name))}, name)), name)
    return conversation(
        said,
        id=name_of(row, "question_id") or name_of(row, "id"),
        user=name_of(row, "judge") or name_of(row, "judge_hash") or session,
        meta={
            "source": "arena",
            "model": text_of(row, f"model_{side}"),
            **facts(row, "language", "timestamp"),
            **({"timestamp": time_of(stamp)} if isinstance(stamp, int | float) else {}),
            "toxic": tagged if moderated is None else moderated or bool(tagged),
        },
        whole=session is None and order is None,
    )


def _winner(row: Row) -> Literal["a", "b"]:
    """The side that was chosen. The set of 55k has a number for each outcome."""
    winner = text_of(row, "winner")
    if winner is None:
        return "b" if row.get("winner_model_b") in (1, "1") else "a"
    if winner not in ("model_a", "model_b") and not winner.startswith(("tie", "both")):
        raise Rejected(
            "wrong type", f"field 'winner' is {winner!r}; known are model_a, model_b and ties"
        )
    return "b" if winner == "model_b" else "a"


def _prompted(row: Row, side: str) -> Messages:
    name = f"response_{side}"
    asked, answers = _texts(row, "prompt"), _texts(row, name)
    if len(asked) != len(answers):
        raise Rejected(
            "wrong type", f"'prompt' holds {len(asked)} texts, but {name!r} {len(answers)}"
        )
    items = []
    for i, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        items += [
            (i, {"role": "user", "content": question}),
            (i, {"role": "assistant", "content": answer}),
        ]
    return read(items, f"prompt/{name}")


def _texts(row: Row, name: str) -> list[str | None]:
    """The texts in a field; a text that happens to be JSON, and no list of texts, is a text."""
    found = parsed(row.get(name))
    if isinstance(found, list) and all(text is None or isinstance(text, str) for text in found):
        return found
    if (text := text_of(row, name)) is None:
        raise Rejected("no messages", f"field {name!r} is missing or empty")
    return [text]


def _session(row: Row, side: str) -> Messages:
    name = "full_conversation"
    items = []
    for i, item in enumerate(listed({name: parsed(row[name])}, name)):
        if not isinstance(item, dict):
            raise Rejected(
                "wrong type", f"{name}[{i}] must be an object, not {type(item).__name__}"
            )
        items += [(i, item.get("user")), (i, item.get(f"model_side_{side}"))]
    return read(items, name)


def prism(row: Row) -> Imported:
    """PRISM: `conversations.jsonl`. Of the answers to choose from at each turn, the chosen one.

    At the last turn nothing may be chosen: the highest score is taken then. Equal scores go by
        `within_turn_id`.
    """
    name = "conversation_history"
    items = listed(row, name)
    asked: dict[int, list[int]] = {}  # turn to the places of its messages
    answers: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise Rejected(
                "wrong type", f"{name}[{i}] must be an object, not {type(item).__name__}"
            )
        if item.get("role") not in ("user", "model"):
            raise Rejected(
                "unknown role", f"{name}[{i}].role is {item.get('role')!r}; known are user, model"
            )
        _need(item, "turn", int, f"{name}[{i}]")
        (asked if item["role"] == "user" else answers).setdefault(item["turn"], []).append(i)
    order: list[int] = []
    for turn in sorted(asked.keys() | answers.keys()):
        if turn not in asked:
            raise Rejected("no user turn", f"{name}: turn {turn} has an answer and no question")
        order += asked[turn]
        if turn in answers:
            order.append(_chosen(items, answers[turn], name, last=turn == max(asked)))
    models = [text_of(items[i], "model_name") for i in order if items[i]["role"] == "model"]
    time = facts(row, "generated_datetime").get("generated_datetime")
    said = read(((i, items[i]) for i in order), name, {"user": "user", "model": "assistant"})
    return conversation(
        said,
        id=name_of(row, "conversation_id"),
        user=name_of(row, "user_id") or None,
        meta={
            "source": "prism",
            "model": models[-1] if models else None,
            "timestamp": time,
            **facts(row, "conversation_type"),
            "included_in_balanced_subset": flag_of(row, "included_in_balanced_subset"),
        },
    )


def _chosen(items: Sequence[Row], places: Sequence[int], name: str, last: bool) -> int:
    """The place of the answer with which the conversation went on."""
    for i in places:
        if items[i].get("if_chosen") is not None or not last:
            _need(items[i], "if_chosen", bool, f"{name}[{i}]")
    chosen = [i for i in places if items[i].get("if_chosen")] or (list(places) if last else [])
    if not chosen:
        turn = items[places[0]]["turn"]
        raise Rejected("no chosen answer", f"{name}: no answer of turn {turn} has if_chosen true")
    if len(chosen) == 1:
        return chosen[0]
    for i in chosen:
        _need(items[i], "score", (int, float), f"{name}[{i}]")
        _need(items[i], "within_turn_id", int, f"{name}[{i}]")
    return min(chosen, key=lambda i: (-items[i]["score"], items[i]["within_turn_id"]))


def _need(item: Row, field: str, kind: type | tuple[type, ...], where: str) -> None:
    value = item.get(field)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = "true or false" if kind is bool else "a number"
        raise Rejected(
            "wrong type", f"{where}.{field} must be {wanted}, not {type(value).__name__}"
        )


# --- names ----------------------------------------------------------------------------------------

_LAYOUTS: dict[str, Callable[[Row], Imported]] = {
    "messages": messages,
    "wildchat": wildchat,
    "lmsys": lmsys,
    "arena": arena,
    "prism": prism,
    "sharegpt": sharegpt,
    "userlm": userlm,
}

SOURCES = (*_LAYOUTS, "oasst", "otel")
"""The names of the layouts."""

_FIELDS = {
    "messages": "'messages'",
    "wildchat": "'conversation_hash' and 'conversation'",
    "lmsys": "'conversation_id' and 'conversation'",
    "arena": "'conversation_a' or 'response_a'",
    "prism": "'conversation_history'",
    "sharegpt": "'conversations' or 'items'",
    "userlm": "'turns'",
    "oasst": "'message_tree_id' or 'message_id'",
    "otel": "'resourceSpans', or 'attributes' and 'traceId' or 'context'",
}


def _is_whole(row: Row) -> bool:
    """False where a row is marked as a piece, or is a path in a tree of replies (OASST): a leaf
    there only means that nobody was asked to go on."""
    cut = row.get("fragment") or row.get("truncated") or row.get("complete") is False
    return not cut and row.get("tree") is None

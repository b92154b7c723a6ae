"""OpenAssistant (OASST): trees of replies.

A line is a whole tree, or one message of it. Each path from the prompt down to a leaf is a
conversation; a path without a user turn of its own is left out, since it would only repeat the
others with another answer. User turns that an earlier path of the tree already has are context
only: `Conversation.origin` says which is the first of its own, so that each turn is learned and
counted once.

Many people write in one tree, and its paths share their first turns, so all of them must be in the
same split: the author of the prompt counts as the user of each, and `meta["tree"]` names the tree.
A leaf is not an observed ending: it only means that no one was asked to continue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

from userlm.data.layouts.common import (
    Found,
    Imported,
    Layout,
    Messages,
    Place,
    Side,
    assemble,
    side_of,
)
from userlm.data.layouts.fields import (
    Rejected,
    Row,
    flag_of,
    id_of,
    need,
    plain_number,
    text_of,
)
from userlm.lines import Line
from userlm.text import has_words
from userlm.types import Origin

_ROLES: Mapping[str, Side] = {"prompter": "user", "assistant": "assistant"}
_INSIDE = Place(0, "", 0)  # name of a message in a tree on one line
_MOST = 30
"""How many times as long as its messages the paths of a tree may be together; 4 times in
OpenAssistant's own."""
_TURN = 50  # characters of a turn beside its text


@dataclass(frozen=True, slots=True)
class _Message:
    """A message of a tree.

    Attributes:
        row: the message as it is in the log, for the case that it is rejected.
        rank: sorts the replies to the same message; infinite if they were not ranked.
    """

    row: Row
    id: str
    side: Side
    text: str
    rank: float
    deleted: bool
    user: str | None
    meta: Row
    parent: str
    place: Place
    replies: list[_Message] = field(default_factory=list)


def tree(row: Row) -> Iterator[Imported]:
    """Return the conversations of a tree on one line.

    Raises:
        Rejected: there are none, they would be much longer than the tree, or one of its messages
            is broken; the detail says which.
    """
    if row.get("prompt") is None:
        raise Rejected("no messages", "field 'prompt' is missing")
    root = _message_at(row["prompt"], "prompt")
    unread = [(row["prompt"], root, "prompt")]
    while unread:
        content, message, where = unread.pop()
        replies = content.get("replies") or []
        for i, reply in enumerate(need(replies, list, f"{where}.replies")):
            place = f"{where}.replies[{i}]"
            child = _message_at(reply, place)
            message.replies.append(child)
            unread.append((reply, child, place))
    return _conversations(id_of(row, "message_tree_id") or root.id, root)


class Trees:
    """Trees whose messages are on separate lines."""

    def __init__(self) -> None:
        self._trees: defaultdict[str, list[_Message]] = defaultdict(list)

    def add(self, row: Row, place: Place) -> None:
        """Add a message; raises `Rejected` if it is broken."""
        name = _required_id(row, "message_tree_id")
        message = _message(row, place)
        self._trees[name].append(message)

    def found(self) -> Iterator[Found]:
        """Return the conversations of the messages, tree by tree, in the order of their first
        lines."""
        for name, messages in self._trees.items():
            roots, rejected = _grow(messages)
            for root in roots:
                members = _with_replies(root)
                try:
                    found = _conversations(name, root, len(members) - 1)
                except Rejected as error:
                    rejected += [(message, error) for message in members]
                    continue
                first = min(message.place for message in members)
                for imported in found:
                    yield Found(first.file, Line(first.number), imported, None)
            for message, why in sorted(rejected, key=lambda pair: pair[0].place):
                _, file, number = message.place
                yield Found(file, Line(number, dict(message.row)), None, why)


def _message_at(content: Any, where: str) -> _Message:
    """Return a message inside a tree; an error names its position."""
    try:
        return _message(need(content, dict, "it"), _INSIDE)
    except Rejected as error:
        detail = str(error).removeprefix(f"{error.reason}: ")
        raise Rejected(error.reason, f"{where}: {detail}") from None


def _message(row: Row, place: Place) -> _Message:
    name = _required_id(row, "message_id")
    side = side_of(row.get("role"), "field 'role'", _ROLES)
    rank = plain_number(row.get("rank"))
    return _Message(
        row=row,
        id=name,
        side=side,
        text=text_of(row, "text") or "",
        rank=rank if isinstance(rank, int | float) else float("inf"),
        deleted=bool(flag_of(row, "deleted")),
        user=id_of(row, "user_id") or None,
        meta={
            "language": text_of(row, "lang"),
            "timestamp": text_of(row, "created_date"),
        },
        parent=id_of(row, "parent_id"),
        place=place,
    )


def _required_id(row: Row, field: str) -> str:
    return id_of(row, field) or str(need(None, str, f"field {field!r}"))


def _conversations(
    name: str, root: _Message, merged_lines: int = 0
) -> Iterator[Imported]:
    """Return the conversations of a tree, at least one; each is made when it is asked for, and the
    first carries the notes on all.

    Raises:
        Rejected: there are none, or they would be much longer than the tree.
    """
    _check_root(root)
    paths, notes = _paths(name, root)
    return _unfolded(name, paths, {**notes, "merged lines": merged_lines})


class _Path(NamedTuple):
    """A path from the prompt down to a message: a linked list, so that memory does not grow with
    the square of the depth.

    Attributes:
        above: the path to the message before.
        question: the last message of a user.
        size: of its conversation, about, in characters.
    """

    message: _Message
    above: _Path | None
    question: _Message
    size: int


def _paths(name: str, root: _Message) -> tuple[list[_Path], dict[str, int]]:
    """Return the paths that add a user turn, and the notes on them. Time and memory grow with the
    number of messages, not with the length of the paths."""
    found: list[_Path] = []
    used: set[int] = set()  # the messages of these paths
    tree_size = repeats = empty_turns = 0
    # The name is in the id, in `meta`, and in `origin`.
    unread = [_Path(root, None, root, 3 * len(name) + _size(root))]
    while unread:
        path = unread.pop()
        tree_size += _size(path.message)
        alive = [reply for reply in path.message.replies if not reply.deleted]
        replies = [reply for reply in alive if has_words(reply.text)]
        empty_turns += len(alive) - len(replies)
        replies.sort(key=lambda reply: reply.rank)
        unread += [_longer(path, reply) for reply in reversed(replies)]
        if not replies and id(path.question) in used:
            repeats += 1
        elif not replies:
            found.append(path)
            part: _Path | None = path
            while part and id(part.message) not in used:
                used.add(id(part.message))
                part = part.above
    if sum(path.size for path in found) > _MOST * (len(name) + tree_size):
        detail = (
            f"the {len(found):,} paths of tree {name!r} are together more than {_MOST} times as "
            f"long as its messages"
        )
        raise Rejected("too long", detail)
    return found, {"paths left out": repeats, "cut at an empty turn": empty_turns}


def _longer(path: _Path, reply: _Message) -> _Path:
    question = reply if reply.side == "user" else path.question
    return _Path(reply, path, question, path.size + _size(reply))


def _size(message: _Message) -> int:
    about = (message.text, message.id, message.user or "", *message.meta.values())
    return _TURN + sum(len(text or "") for text in about)


def _unfolded(
    name: str, paths: Iterable[_Path], notes: Mapping[str, int]
) -> Iterator[Imported]:
    used: dict[int, str] = {}  # user messages of earlier paths, with the path's id
    for path in paths:
        messages = _from_root(path)
        asked = [id(message) for message in messages if message.side == "user"]
        imported = _conversation(name, messages)
        if shared := [used[message] for message in asked if message in used]:
            origin = Origin(shared[-1], _first_own_turn(messages, used))
            imported = _with_origin(imported, origin)
        for message in asked:
            used.setdefault(message, imported.conversation.id)
        yield imported.with_notes(notes)
        notes = {}


def _check_root(root: _Message) -> None:
    begins = f"message {root.id!r}, with which the tree begins,"
    if root.side != "user":
        detail = f"message {root.id!r} begins the tree, and its 'role' is not prompter"
        raise Rejected("no user turn", detail)
    if root.deleted:
        raise Rejected("deleted", f"{begins} was deleted")
    if not has_words(root.text):
        raise Rejected("empty turn", f"{begins} has no words in 'text'")


def _conversation(tree: str, messages: Sequence[_Message]) -> Imported:
    root, leaf = messages[0], messages[-1]
    said = Messages([(message.side, message.text) for message in messages])
    meta = {"source": "oasst", "tree": tree, **root.meta}
    return assemble(
        said, id=f"{tree}/{leaf.id}", user=root.user, meta=meta, whole=False
    )


def _first_own_turn(messages: Sequence[_Message], used: Collection[int]) -> int:
    """Return the number of the first user turn with a message that earlier paths do not have.

    Messages of one side in a row are one turn.
    """
    turns = groupby(messages, key=lambda message: message.side)
    asked = [list(turn) for side, turn in turns if side == "user"]
    owned = (any(id(part) not in used for part in turn) for turn in asked)
    return next(k for k, is_own in enumerate(owned) if is_own)


def _with_origin(imported: Imported, origin: Origin) -> Imported:
    conversation = replace(imported.conversation, origin=origin)
    return replace(imported, conversation=conversation)


def _from_root(path: _Path | None) -> list[_Message]:
    """Return the messages of a path, the prompt first."""
    messages = []
    while path:
        messages.append(path.message)
        path = path.above
    return messages[::-1]


def _with_replies(root: _Message) -> list[_Message]:
    """Return a message and everything below it."""
    messages = [root]
    for message in messages:  # the list grows meanwhile
        messages += message.replies
    return messages


def _grow(
    messages: Sequence[_Message],
) -> tuple[list[_Message], list[tuple[_Message, Rejected]]]:
    """Attach each message to its parent; return the roots, and the messages that belong to no
    tree."""
    rejected: list[tuple[_Message, Rejected]] = []
    by_id: dict[str, _Message] = {}
    for message in messages:
        before = by_id.setdefault(message.id, message)
        if before is not message:
            where = f"line {before.place.number}"
            if before.place.file != message.place.file:
                where += f" of {before.place.file}"
            detail = f"the message_id {message.id!r} was used on {where}"
            rejected.append((message, Rejected("duplicate id", detail)))
    roots = []
    for message in by_id.values():
        if not message.parent:
            roots.append(message)
        elif message.parent in by_id:
            by_id[message.parent].replies.append(message)
    attached = {message.id for root in roots for message in _with_replies(root)}
    for message in by_id.values():
        if message.id in attached:
            continue
        lost = "is not in the tree"
        if message.parent in by_id:
            lost = "leads to no prompt: a parent is missing, or there is a cycle"
        detail = f"its parent_id {message.parent!r} {lost}"
        rejected.append((message, Rejected("orphan", detail)))
    return roots, rejected


LAYOUT = Layout("oasst", [{"message_tree_id"}, {"message_id"}], None)

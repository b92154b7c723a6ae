"""Trees of replies, as OpenAssistant (OASST) has them, to conversations. `userlm import` runs this.

A line holds a tree, or a message. Each path from the prompt down to a leaf is a conversation, but
one that adds no words of a user to the paths before it is left out: it would only repeat them with
another answer.

Many people write in one tree, and its paths share their beginning, so all of them must go to the
same split: the person behind each is the author of the prompt, and `meta["tree"]` names the tree. A
leaf is no ending: it means only that nobody was asked to go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from userlm.data.rows import (
    Found,
    Imported,
    Messages,
    Place,
    Rejected,
    Row,
    Side,
    conversation,
    has_words,
    name_of,
    text_of,
)
from userlm.rows import Line

_ROLES: Mapping[str, Side] = {"prompter": "user", "assistant": "assistant"}
_OF_SIDE = {side: role for role, side in _ROLES.items()}

_INSIDE = Place(0, "", 0)  # of a tree that stands on one line


@dataclass(frozen=True, slots=True)
class _Node:
    """A message: `rank` orders the replies to the same message, and is infinite if nobody ranked
    them."""

    id: str
    side: Side
    text: str
    rank: float
    deleted: bool
    user: str | None
    language: str | None
    timestamp: str | None
    parent: str = ""
    place: Place = _INSIDE
    replies: list[_Node] = field(default_factory=list)


def tree(row: Row) -> list[Imported]:
    """The conversations of a tree that stands on one line.

    Raises:
        Rejected: there are none, or one of its messages is broken; the detail says which.
    """
    if row.get("prompt") is None:
        raise Rejected("no messages", "field 'prompt' is missing")
    root = _node(row["prompt"], "prompt")
    open_nodes = [(row["prompt"], root, "prompt")]
    while open_nodes:
        message, node, where = open_nodes.pop()
        replies = message.get("replies") or []
        if not isinstance(replies, list):
            raise Rejected(
                "wrong type", f"{where}.replies must be a list, not {type(replies).__name__}"
            )
        for i, reply in enumerate(replies):
            place = f"{where}.replies[{i}]"
            node.replies.append(_node(reply, place))
            open_nodes.append((reply, node.replies[-1], place))
    return _paths(name_of(row, "message_tree_id") or root.id, root)


class Trees:
    """Trees whose messages stand on lines of their own."""

    def __init__(self) -> None:
        self._trees: dict[str, list[_Node]] = {}
        self._count = 0

    def add(self, line: Line, file: str) -> None:
        """Take in a message; raises `Rejected` if it is broken."""
        name = name_of(line.row, "message_tree_id")
        if not name:
            raise Rejected("wrong type", "field 'message_tree_id' must be a text, not NoneType")
        self._count += 1
        place = Place(self._count, file, line.number)
        self._trees.setdefault(name, []).append(_node(line.row, "", place))

    def found(self) -> Iterator[Found]:
        """What the messages give, tree by tree; the trees in the order of their first lines."""
        for name, nodes in self._trees.items():
            roots, rejected = _grow(nodes)
            for root in roots:
                members = sorted(_below(root), key=lambda node: node.place)
                try:
                    paths = _paths(name, root)
                except Rejected as none:
                    rejected += [(node, none) for node in members]
                    continue
                _, file, number = members[0].place
                notes = {**paths[0].notes, "merged lines": len(members) - 1}
                paths[0] = replace(
                    paths[0], notes={note: count for note, count in notes.items() if count}
                )
                yield from (Found(file, Line(number), path, None) for path in paths)
            for node, error in sorted(rejected, key=lambda pair: pair[0].place):
                row = {
                    "message_tree_id": name,
                    "message_id": node.id,
                    "parent_id": node.parent or None,
                }
                row |= {"role": _OF_SIDE[node.side], "text": node.text}
                yield Found(node.place.file, Line(node.place.number, row), None, error)


def _node(message: Any, where: str, place: Place = _INSIDE) -> _Node:
    """One message; `where` says its place in a tree, and is empty where it has a row of its own."""
    try:
        if not isinstance(message, dict):
            raise Rejected("wrong type", f"it must be an object, not {type(message).__name__}")
        name = name_of(message, "message_id")
        if not name:
            raise Rejected("wrong type", "field 'message_id' must be a text, not NoneType")
        told = message.get("role")
        side = _ROLES.get(told) if isinstance(told, str) else None
        if side is None:
            raise Rejected(
                "unknown role", f"field 'role' is {told!r}; known are prompter, assistant"
            )
        rank = message.get("rank")
        return _Node(
            id=name,
            side=side,
            text=text_of(message, "text") or "",
            rank=rank if isinstance(rank, int | float) else float("inf"),
            deleted=message.get("deleted") is True,
            user=name_of(message, "user_id") or None,
            language=text_of(message, "lang"),
            timestamp=text_of(message, "created_date"),
            parent=name_of(message, "parent_id"),
            place=place,
        )
    except Rejected as error:
        if not where:
            raise
        raise Rejected(
            error.reason, f"{where}: {str(error).removeprefix(error.reason + ': ')}"
        ) from None


def _paths(name: str, root: _Node) -> list[Imported]:
    """The conversations of a tree, at least one."""
    if root.side != "user":
        raise Rejected(
            "no user turn", f"message {root.id!r} begins the tree, and its 'role' is not prompter"
        )
    if root.deleted:
        raise Rejected("deleted", f"message {root.id!r}, with which the tree begins, was deleted")
    if not has_words(root.text):
        raise Rejected(
            "empty turn", f"message {root.id!r}, with which the tree begins, has no words in 'text'"
        )
    found: list[Imported] = []
    heard: set[int] = set()  # messages of users in the paths so far
    truncated_tokens = blank = 0
    walk: list[tuple[_Node, tuple[Any, ...] | None]] = [(root, None)]
    while walk:
        node, above = walk.pop()
        path = (
            node,
            above,
        )  # a chain from the leaf up, so that a deep tree does not cost its square
        alive = [reply for reply in node.replies if not reply.deleted]
        open_replies = sorted(
            (reply for reply in alive if has_words(reply.text)), key=lambda reply: reply.rank
        )
        blank += len(alive) - len(open_replies)
        walk += [(reply, path) for reply in reversed(open_replies)]
        if open_replies:
            continue
        nodes = _up(path)
        asked = {id(node) for node in nodes if node.side == "user"}
        if asked <= heard:
            truncated_tokens += 1
            continue
        heard |= asked
        said = Messages([(node.side, node.text) for node in nodes])
        meta = {
            "source": "oasst",
            "tree": name,
            "language": root.language,
            "timestamp": root.timestamp,
        }
        path_id = f"{name}/{node.id}"
        found.append(conversation(said, id=path_id, user=root.user, meta=meta, whole=False))
    notes = {**found[0].notes, "paths left out": truncated_tokens, "cut at an empty turn": blank}
    found[0] = replace(found[0], notes={note: count for note, count in notes.items() if count})
    return found


def _up(path: tuple[_Node, Any] | None) -> list[_Node]:
    nodes = []
    while path:
        node, path = path
        nodes.append(node)
    return nodes[::-1]


def _below(root: _Node) -> list[_Node]:
    """A message and all replies, and replies to them."""
    nodes = [root]
    for node in nodes:
        nodes += node.replies
    return nodes


def _grow(nodes: list[_Node]) -> tuple[list[_Node], list[tuple[_Node, Rejected]]]:
    """Hang each message below its parent: the roots, and the messages that hang nowhere."""
    rejected: list[tuple[_Node, Rejected]] = []
    by_id: dict[str, _Node] = {}
    for node in nodes:
        if node.id in by_id:
            _, file, number = by_id[node.id].place
            where = f"line {number}" if file == node.place.file else f"line {number} of {file}"
            reason = f"the message_id {node.id!r} was used on {where}"
            rejected.append((node, Rejected("duplicate id", reason)))
        else:
            by_id[node.id] = node
    for node in by_id.values():
        if node.parent in by_id:
            by_id[node.parent].replies.append(node)
    roots = [node for node in by_id.values() if not node.parent]
    reached = {node.id for root in roots for node in _below(root)}
    for node in by_id.values():
        if node.id not in reached:
            lost = f"its parent_id {node.parent!r} is not in the tree"
            if node.parent in by_id:
                lost = (
                    f"its parent_id {node.parent!r} leads to no prompt: a parent is "
                    "missing, "
                    "or it is a circle"
                )
            rejected.append((node, Rejected("orphan", lost)))
    return roots, rejected

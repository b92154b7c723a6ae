"""Lines of raw logs to conversations, one file for each layout. `userlm import` runs this.

`find` reads the lines of a file, in one layout or several, and returns the result of each line. In
most layouts a row is a conversation; the messages of an OASST tree and the spans of a tracing tool
may span many lines, which `Gathered` collects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from itertools import chain
from textwrap import shorten

from userlm.data.layouts import (
    arena,
    harnesses,
    items,
    lmsys,
    mapped,
    message_rows,
    messages,
    oasst,
    otel,
    prism,
    sharegpt,
    userlm,
    wildchat,
)
from userlm.data.layouts.common import Found, Imported, Place
from userlm.data.layouts.fields import Rejected, Row, unexpected
from userlm.data.layouts.mapped import suggested_map
from userlm.lines import Line
from userlm.types import InputError

LAYOUTS = (
    userlm.LAYOUT,
    harnesses.TAU2_LAYOUT,  # before messages, which its rows have too
    harnesses.PROMPTFOO_LAYOUT,
    messages.LAYOUT,
    sharegpt.LAYOUT,
    wildchat.LAYOUT,  # before lmsys, because its rows also have the fields of lmsys
    wildchat.FIRST_RELEASE,
    lmsys.LAYOUT,
    lmsys.WITHOUT_MODERATION,
    messages.OF_CONVERSATION,
    arena.LAYOUT,
    prism.LAYOUT,
    oasst.LAYOUT,
    otel.LAYOUT,
    items.ROLE_LAYOUT,
    items.INTENT_LAYOUT,
)
"""The layouts, in the order in which `guess` tries them. Those without fields are never guessed."""

_BY_NAME = {layout.name: layout for layout in LAYOUTS}

_HARNESSES = (harnesses.TAU2_LAYOUT.name, harnesses.PROMPTFOO_LAYOUT.name)

SOURCES = tuple(_BY_NAME)
"""The names of the layouts."""

_FIELDS = "; ".join(
    f"{layout.name} has {layout.described()}" for layout in LAYOUTS if layout.fields
)

LONGEST_LIST = 150
"""Characters of the fields of a row in a message: what to do must be seen after them."""


class Gathered:
    """Conversations that span many lines of one or more files: OASST trees, tracing spans, and the
    messages of a `map`, by which all lines are read if there is one."""

    def __init__(self, map: mapped.Map | None = None) -> None:
        self.map = map
        self.takes_messages = map is not None and not map.messages
        self._rows = message_rows.Rows(map) if map else None
        self.files: set[str] = set()  # the names of the files with such lines
        self._count = 0
        self._trees = oasst.Trees()
        self._spans = otel.Spans()

    def add(self, line: Line, layout: str, file: str) -> None:
        """Add a line; raises `Rejected` if it cannot be used."""
        self.files.add(file)
        self._count += 1
        gatherer = self._rows or (self._spans if layout == "otel" else self._trees)
        gatherer.add(line.row, Place(self._count, file, line.number))

    def no_time(self) -> str:
        """Return the field that is mapped as the time if no row has one there; empty if some do, or
        if none is mapped."""
        return self._rows.no_time() if self._rows else ""

    def found(self, whole: bool = True) -> Iterator[Found]:
        """Return the conversations, once all lines were added.

        Args:
            whole: whether there are no more lines, in which a conversation might go on.
        """
        found = chain(self._trees.found(), self._spans.found())
        if self._rows:
            found = chain(found, self._rows.found())
        return found if whole else map(_without_end, found)


def _without_end(found: Found) -> Found:
    if found.imported is None:
        return found
    conversation = replace(found.imported.conversation, ended=False)
    return replace(found, imported=replace(found.imported, conversation=conversation))


def find(
    lines: Iterable[Line], source: str | None, name: str, gathered: Gathered
) -> Iterator[Found]:
    """Yield the result of each line of a file, in order.

    A conversation is yielded as soon as its row is read. Messages and spans that together form one
    are added to `gathered`, which keeps only what is needed.

    Args:
        source: a name of `SOURCES`; `None`: guess it from the fields, line by line.
        name: the name of the file, for the ids of rows that have none.

    Raises:
        InputError: there is no such source.
    """
    _check(source)
    for row in lines:
        for count, line in enumerate(_unpacked(row, source, gathered), 1):
            fallback_id = f"{name}-{row.number}" + (f"-{count}" if count > 1 else "")
            try:
                for imported in _conversations(
                    line, source, name, gathered, fallback_id
                ):
                    yield Found(name, line, imported, None)
            except Rejected as rejected:
                yield Found(name, line, None, rejected)
            except RecursionError:
                detail = "a field holds lists or objects that are nested too deep"
                yield Found(name, line, None, Rejected("wrong type", detail))
            except InputError:
                raise
            except Exception as error:  # a fault of ours costs this row, and no other
                yield Found(name, line, None, unexpected(error))


def _unpacked(line: Line, source: str | None, gathered: Gathered) -> Iterable[Line]:
    """Return the line, or those of the conversations in it, if it is a file of results and may be:
    a row with messages of its own is none."""
    may_be = source in (None, *_HARNESSES) and not gathered.map
    # Nearly no row has one of these, and the layouts are compared with each row once more later.
    may_be = may_be and not harnesses.LISTS.isdisjoint(line.row)
    if not may_be or any(layout.matches(line.row) for layout in LAYOUTS):
        return [line]
    return harnesses.unpacked(line)


def _conversations(
    line: Line, source: str | None, file: str, gathered: Gathered, fallback_id: str
) -> Iterable[Imported]:
    """Return the conversations of a line: several for a tree, none if the line is gathered."""
    if line.error:
        raise Rejected(line.reason, f"the line {line.error}")
    if gathered.map and gathered.map.messages:
        return [_named(gathered.map.convert(line.row), fallback_id)]
    if gathered.takes_messages:
        gathered.add(line, "", file)
        return []
    layout = source or guess(line.row)
    if layout == "oasst" and "prompt" in line.row:
        return oasst.tree(line.row)
    if layout in ("oasst", "otel"):
        gathered.add(line, layout, file)
        return []
    return [convert(line.row, layout, fallback_id)]


def convert(row: Row, source: str | None, fallback_id: str) -> Imported:
    """Return the conversation of a row, for layouts in which each row is one.

    Args:
        source: a name of `SOURCES`, except `oasst` and `otel`; `None`: guess it from the fields.
        fallback_id: the id for a row that has none, such as the name of the file and the line.

    Raises:
        Rejected: the row cannot become a conversation.
        InputError: there is no such source.
    """
    _check(source)
    name = source or guess(row)
    to_conversation = _BY_NAME[name].convert
    if to_conversation is None:
        raise InputError(
            f"a row of {name!r} is not one conversation; read it with `find`"
        )
    return _named(to_conversation(row), fallback_id)


def _named(imported: Imported, fallback_id: str) -> Imported:
    if imported.conversation.id:
        return imported
    return replace(
        imported, conversation=replace(imported.conversation, id=fallback_id)
    )


def guess(row: Row) -> str:
    """Return the name of the first layout that has the fields of a row.

    Raises:
        Rejected: if there is none.
    """
    for layout in LAYOUTS:
        if layout.matches(row):
            return layout.name
    seen = ", ".join(sorted(map(str, row))) or "none"
    how = (
        "name them with --map role=FIELD,text=FIELD,id=FIELD if a row is a message, or "
        "messages=FIELD,role=FIELD,text=FIELD if it has a list of them"
    )
    if found := suggested_map(row):
        how = f"name its messages, as with --map {found}"
    raise Rejected(
        "unknown layout",
        f"the fields are {shorten(seen, LONGEST_LIST, placeholder=' …')}, which no known layout "
        f"has; {how}. Of the layouts {_FIELDS}",
    )


def _check(source: str | None) -> None:
    if source is None or source in SOURCES:
        return
    near = get_close_matches(source, SOURCES, 1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(
        f"source {source!r} is unknown; {meant}known are {', '.join(SOURCES)}"
    )

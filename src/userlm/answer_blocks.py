"""The code and the JSON in an answer: what stands in its blocks, or the answer itself."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeGuard

from userlm.json_files import loads

_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_LINE_END = re.compile(r"\r\n?|\n")
"""As Python counts lines, which may have other marks in their texts."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_HELPERS = (*_FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom)
_DEFINITIONS = (*_HELPERS, *_ASSIGNMENTS)
MOST_CODE = 50_000
"""Characters of a block. Python 3.11 reads an f-string in a time that grows with the square of its
length, and nothing else runs meanwhile."""


def function_code(text: str, entry_point: str | None = None) -> str | None:
    """Return the code of the last block that has a complete function, preferably `entry_point`, and
    not only tests of it; `None` if no block has one.

    A text without blocks may be code itself. Only definitions are left of it: examples of use and
    questions for input would run in the tests. What it uses and other blocks define stands before
    it. A user may never say the name that the tests call, so the last function is also called
    `entry_point`, if nothing else is.
    """

    def rank(found: tuple[str, Sequence[ast.stmt]]) -> tuple[bool, bool]:
        names = _complete(found[1])
        is_a_test = all(name.startswith("test") for name in names)
        return entry_point not in names, is_a_test

    blocks = map(textwrap.dedent, reversed(list(_blocks(text)) or [text]))
    defined = [(block, _definitions(block)) for block in blocks]
    found = [(block, nodes) for block, nodes in defined if _complete(nodes)]
    if not found:
        return None
    block, nodes = min(found, key=rank)
    code = _helpers(nodes, defined) + _source(block, nodes)
    if entry_point and entry_point not in set(_names(nodes)):
        code += f"\n\n{entry_point} = {_complete(nodes)[-1]}"
    return code + "\n"


def _helpers(
    nodes: Sequence[ast.stmt], defined: Iterable[tuple[str, Sequence[ast.stmt]]]
) -> str:
    """Return the functions, classes and imports that definitions use and other blocks have. What is
    assigned there may be an example: `result = f(1)` has the name of a variable in f."""
    known = {*_names(nodes), *dir(builtins)}
    wanted = _used(nodes)
    helpers = ""
    for block, others in defined:
        for node in reversed(others):
            names = set(_names([node])) if isinstance(node, _HELPERS) else set()
            if names & wanted and not names & known:
                helpers = f"{_source(block, [node])}\n\n{helpers}"
                known |= names
                wanted |= _used([node])
    return helpers


def _used(nodes: Iterable[ast.stmt]) -> set[str]:
    inside = [each for node in nodes for each in ast.walk(node)]
    return {each.id for each in inside if isinstance(each, ast.Name)}


def _complete(nodes: Iterable[ast.stmt]) -> list[str]:
    """Return the names of the complete functions."""
    functions = (node for node in nodes if isinstance(node, _FUNCTIONS))
    return [node.name for node in functions if _is_complete(node)]


def _names(nodes: Iterable[ast.stmt]) -> Iterator[str]:
    """Yield what definitions name."""
    for node in nodes:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (one.asname or one.name.split(".")[0] for one in node.names)
        elif isinstance(node, _ASSIGNMENTS):
            yield from (each.id for each in ast.walk(node) if _is_assigned(each))


def _is_assigned(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _blocks(text: str) -> Iterator[str]:
    """Yield what stands between lines with fences; the last block may end with the text."""
    fence = ""
    inside: list[str] = []
    for line in _LINE_END.split(text):
        found = _FENCE.match(line)
        if not fence:
            fence = found[1] if found else ""
            inside = []
        elif found and found[1].startswith(fence) and not line[found.end() :].strip():
            yield "\n".join(inside)
            fence = ""
        else:
            inside.append(line)
    if fence:
        yield "\n".join(inside)


def _definitions(block: str) -> list[ast.stmt]:
    """Return what a block defines; nothing if it is no Python, or too long."""
    if len(block) > MOST_CODE:
        return []
    try:
        body = ast.parse(block).body
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return [node for node in body if _is_definition(node)]


def _is_definition(node: ast.stmt) -> bool:
    if not isinstance(node, _ASSIGNMENTS):
        return isinstance(node, _DEFINITIONS)
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return "input" not in names


def _is_complete(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function does anything: a body of a docstring, `pass` or `...` is a sketch."""
    for line in node.body:
        is_constant = isinstance(line, ast.Expr) and isinstance(
            line.value, ast.Constant
        )
        if not is_constant and not isinstance(line, ast.Pass | ast.Raise):
            return True
    return False


def _source(block: str, nodes: Iterable[ast.stmt]) -> str:
    """Return the lines of a block that some statements stand on."""
    lines = _LINE_END.split(block)
    kept: set[int] = set()
    for node in nodes:
        decorators = getattr(node, "decorator_list", [])
        first = min(each.lineno for each in (node, *decorators))
        kept.update(range(first - 1, node.end_lineno or first))
    return "\n".join(lines[at] for at in sorted(kept))


def json_values(text: str) -> Iterator[Any]:
    """Yield the JSON values that a text is, or has in blocks."""
    for source in (text, *_blocks(text)):
        try:
            yield loads(source.encode())
        except (ValueError, RecursionError):
            continue

"""The code and the JSON in an answer: what stands in its blocks, or the answer itself."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from userlm.json_files import loads

_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_DEFINITIONS = (*_FUNCTIONS, *_ASSIGNMENTS, ast.ClassDef, ast.Import, ast.ImportFrom)


def function_code(text: str, entry_point: str | None = None) -> str | None:
    """Return the code of the last block that has a complete function; `None` if no block has one.

    A text without blocks may be code itself. Only definitions are left of it: examples of use and
    questions for input would run in the tests. A user may never say the name that the tests call,
    so the last function is also called `entry_point`, if nothing else is.
    """
    blocks = list(_blocks(text)) or [text]
    for block in map(textwrap.dedent, reversed(blocks)):
        found = _definitions(block)
        functions = [node for node in found if isinstance(node, _FUNCTIONS)]
        complete = [node.name for node in functions if _is_complete(node)]
        if complete:
            code = _source(block, found)
            if entry_point and entry_point not in {node.name for node in functions}:
                code += f"\n\n{entry_point} = {complete[-1]}"
            return code + "\n"
    return None


def _blocks(text: str) -> Iterator[str]:
    """Yield what stands between lines with fences; the last block may end with the text."""
    fence = ""
    inside: list[str] = []
    for line in text.splitlines():
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
    """Return what a block defines; nothing if it is no Python."""
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
    lines = block.splitlines()
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

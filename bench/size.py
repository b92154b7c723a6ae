"""How large the code is, in tokens. `make size` runs this.

Lines hide size: a dense line holds three times the code of a plain one. So this counts the tokens
of Python's own `tokenize`, without comments, docstrings, blank lines and layout. Tokens a line show
how dense the code is. Files, functions and parameter lists over their limits are listed.

    python bench/size.py [FOLDER]     default: src/userlm
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_LINES = 500
FUNCTION_LINES = 60
PARAMETERS = 8

LAYOUT = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Size:
    """Code tokens, lines with at least one of them, and all lines."""

    tokens: int
    code_lines: int
    lines: int


def measure(source: str, tree: ast.Module) -> Size:
    """The size of one file."""
    skipped = docstring_lines(tree)
    tokens = 0
    lines_with_code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in LAYOUT or token.start[0] in skipped:
            continue
        tokens += 1
        lines_with_code.update(range(token.start[0], token.end[0] + 1))
    return Size(tokens, len(lines_with_code), source.count("\n"))


def docstring_lines(tree: ast.Module) -> set[int]:
    """The lines of docstrings, including those below attributes and constants."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def functions(tree: ast.Module) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def function_lines(function: Function) -> int:
    """The number of lines from `def` to the last, without decorators and docstring."""
    first = function.body[0]
    last = function.end_lineno or function.lineno
    length = last - function.lineno + 1
    if ast.get_docstring(function) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def parameters(function: Function) -> int:
    """The number of parameters, without `self` and `cls`."""
    given = function.args
    names = [
        argument.arg
        for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)
    ]
    return len([name for name in names if name not in ("self", "cls")])


def main(folder: Path) -> None:
    sizes: dict[Path, Size] = {}
    long_functions: list[str] = []
    many_parameters: list[str] = []
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        sizes[path] = measure(source, tree)
        for function in functions(tree):
            place = f"{path.relative_to(folder)}:{function.lineno} {function.name}"
            if (length := function_lines(function)) > FUNCTION_LINES:
                long_functions.append(f"{place}: {length} lines")
            if (count := parameters(function)) > PARAMETERS:
                many_parameters.append(f"{place}: {count} parameters")
    for path, size in sorted(sizes.items(), key=lambda item: -item[1].tokens):
        a_line = size.tokens / max(size.code_lines, 1)
        name = str(path.relative_to(folder))
        print(
            f"{name:<32} {size.tokens:>7,} tokens  {size.lines:>5,} lines  {a_line:>5.1f} tokens "
            "a line"
        )
    tokens = sum(size.tokens for size in sizes.values())
    code_lines = sum(size.code_lines for size in sizes.values())
    long_files = [
        f"{path.relative_to(folder)}: {size.lines:,} lines"
        for path, size in sizes.items()
        if size.lines > FILE_LINES
    ]
    print(
        f"\n{tokens:,} tokens on {code_lines:,} lines: {tokens / max(code_lines, 1):.1f} tokens a "
        "line"
    )
    show(f"files over {FILE_LINES} lines", long_files)
    show(f"functions over {FUNCTION_LINES} lines", long_functions)
    show(f"functions with over {PARAMETERS} parameters", many_parameters)


def show(title: str, places: list[str]) -> None:
    print(f"{title}: {len(places)}")
    for place in places:
        print(f"  {place}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "src/userlm"))

"""The shape of the package: who imports whom, and what importing costs."""

import ast
import builtins
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "userlm"

# Each may import from those above it only; a folder stands for the files in it.
ROOMS = [
    "types",
    "keys",
    "imports",
    "text",
    "content",
    "thought",
    "terminal_input",
    "address",
    "parts",
    "assets",
    "prompts",
    "stats",
    "json_files",
    "lines",
    "tables",
    "items",
    "rows",
    "manifest",
    "journal",
    "runs",
    "flip",
    "simulate",
    "models",
    "data",
    "guard",
    "users",
    "final_answer",
    "answer_blocks",
    "facts",
    "task_layouts",
    "tasks",
    "assistants",
    "kept_meta",
    "bots",
    "judges",
    "sandbox",
    "grading",
    "episode",
    "detectors",
    "metrics",
    "training",
    "show",
    "serving",
    "loading",
    "inputs",
    "exports",
    "commands",
    "evaluation",
    "bridges",
    "demo",
    "cli",
    "__init__",
    "__main__",
]


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "userlm"
        ):
            parts = node.module.split(".")
            found |= (
                {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
            )
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("userlm.")
            }
    return found


def test_imports_point_only_upwards_in_the_list_of_rooms():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 20
    for path in files:
        here = room(path)
        for other in imported(path):
            assert other in ROOMS, (
                f"{path.name} imports userlm.{other}, which is in no room"
            )
            above = ROOMS.index(other) < ROOMS.index(here)
            own_init = path == SOURCE / here / "__init__.py" and here != "commands"
            allowed = above or (other == here and not own_init)
            assert allowed, f"{here} imports {other}, which is below it"


def test_the_words_import_nothing_of_ours():
    assert imported(SOURCE / "types.py") == set()


WATCH = """
import sys
def watch(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError("a socket was used: " + event)
sys.addaudithook(watch)
{statement}
heavy = {{"torch", "transformers", "openai", "polars", "py3langid", "starlette", "uvicorn"}} & set(sys.modules)
assert not heavy, heavy
"""


def run(statement: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WATCH.format(statement=statement)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_importing_the_package_loads_no_torch_and_opens_no_socket():
    done = run("import userlm; assert userlm.Conversation")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_help_loads_no_torch_and_opens_no_socket():
    statement = """
from userlm.cli import main
for arguments in (["--help"], ["train", "--help"], ["--version"]):
    sys.argv = ["userlm", *arguments]
    try:
        main()
    except SystemExit as done:
        assert not done.code, done.code
"""
    done = run(statement)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == 2 and "userlm 0." in done.stdout


@pytest.mark.slow
def test_the_core_needs_no_more_than_a_gpu_machine_has():
    """types, flip, models and train import with torch, transformers, numpy, typer, rich and jinja2
    alone."""
    blocked = ["polars", "pydantic", "datasets", "py3langid", "tiktoken"]
    statement = f"""
for name in {blocked!r}:
    sys.modules[name] = None
import userlm.types, userlm.flip, userlm.models.local, userlm.training.train, userlm.commands
sys.modules = {{k: v for k, v in sys.modules.items() if k not in ("torch", "transformers")}}
for name in {blocked!r}:
    del sys.modules[name]
"""
    done = run(statement)
    assert done.returncode == 0, done.stderr


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp)


def test_no_comprehension_hides_a_builtin_from_another_one():
    """Python 3.12 compiles both into their function, where the name is then unbound:
    `[id for id in ids]` and `{id(key): key for key in keys}`."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert not hidden_names(node), f"{path}, {node.name}"


def test_a_hidden_name_is_found():
    code = """def f(ids, keys):
        a = [id for id in ids]
        return a, {id(key): [key for _ in key] for key in keys}"""
    (function,) = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef) and hidden_names(function) == {"id"}


def hidden_names(function: ast.FunctionDef) -> set[str]:
    """The builtin names that a comprehension needs and another one has as its variable."""
    inside = [n for n in ast.walk(function) if isinstance(n, COMPREHENSIONS)]
    parts = {id(comp): {id(part) for part in ast.walk(comp)} for comp in inside}
    in_any = set().union(*parts.values())
    stored = [n for n in ast.walk(function) if isinstance(n, ast.Name | ast.arg)]
    local = {
        n.id if isinstance(n, ast.Name) else n.arg
        for n in stored
        if isinstance(n, ast.arg)
        or (isinstance(n.ctx, ast.Store) and id(n) not in in_any)
    }
    hidden: set[str] = set()
    for comp in inside:
        others = [o for o in inside if id(comp) not in parts[id(o)]]
        variables = set().union(*(names(other, ast.Store) for other in others))
        hidden |= (names(comp, ast.Load) - names(comp, ast.Store)) & variables
    return (hidden & set(dir(builtins))) - local


def names(tree: ast.AST, kind: type[ast.expr_context]) -> set[str]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {node.id for node in found if isinstance(node.ctx, kind)}

"""What a run depends on behind its addresses: a run records it, and is not resumed after a change.

A model with a hub id is not among it: its files are not here yet when a run begins.
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path

from userlm import judges, prompts
from userlm.address import Address, check_server, parse
from userlm.imports import search_here
from userlm.loading import (
    OPENAI_BASE_URL,
    PANGRAM_URL,
    PROMPTS,
    model_folder,
    model_folders,
    openai_base_url,
    pangram_url,
)
from userlm.runs import conversations_file

MODEL_FILES = {
    ".safetensors",
    ".bin",
    ".json",
    ".jinja",
    ".model",
    ".txt",
    ".py",
}
"""Endings of the files of a model: weights, configuration, tokenizer, chat templates, code."""


def files(
    address: str | Address, tokenizer: str | None = None, prompt: str | None = None
) -> list[Path]:
    """Return the local files behind an address: logs, scripts, code, a model with its tokenizer
    and, if it is an adapter, its base model; and the file of a prompt.

    Args:
        tokenizer: the tokenizer of a model on a server, if it is given.
        prompt: the prompt of a prompted user, if it is given: a file, or a name in the box.

    Raises:
        InputError: for the URL of a server that is wrong or has secrets, which would be recorded.
    """
    own = [] if prompt is None or prompt in PROMPTS else [Path(prompt)]
    return [*_behind(parse(address), tokenizer), *own]


def _behind(parts: Address, tokenizer: str | None) -> list[Path]:
    match parts.scheme:
        case "replay":
            logs = Path(parts.name)
            return [conversations_file(logs) if logs.is_dir() else logs]
        case "script" | "bot":
            return [Path(parts.name)]
        case "cmd":
            return _files_named(parts.name)
        case "py":
            return _module_files(parts.name.partition(":")[0])
        case "http" | "https":
            check_server(parts)
            folder = model_folder(tokenizer or parts.name)
            # A folder that is called as the model of a server may be anything, even this run's.
            is_model = any(folder.glob("*config.json")) or any(
                folder.glob("tokenizer*")
            )
            return _files_of_model(folder) if is_model else []
        case "":
            folders = model_folders(parts.name)
            return [path for folder in folders for path in _files_of_model(folder)]
    return []


def stamps(*addresses: str | Address) -> dict[str, str]:
    """Return what addresses depend on besides files: OPENAI_BASE_URL and PANGRAM_URL, if they are
    set and used, and the prompts of prompted users and of a judge that is a detector."""
    parsed = [parse(address) for address in addresses]
    schemes = {parts.scheme for parts in parsed}
    urls = {
        OPENAI_BASE_URL: openai_base_url() if "openai" in schemes else "",
        PANGRAM_URL: pangram_url() if "pangram" in schemes else "",
    }
    is_prompted = any(parts.is_prompted for parts in parsed)
    found = prompts.hashes("user_") if is_prompted else {}
    if any(parts.form == "judge" for parts in parsed):
        found |= {"prompt naturalness": judges.read_prompt("naturalness").hash}
    return found | {variable: url for variable, url in urls.items() if url}


def _files_of_model(folder: Path) -> list[Path]:
    found = [*folder.glob("*"), *folder.glob("additional_chat_templates/*")]
    return sorted(
        path for path in found if path.suffix in MODEL_FILES and path.is_file()
    )


def _files_named(command: str) -> list[Path]:
    """Return the files that a command names, such as a script, with the Python that they import."""
    try:
        words = shlex.split(command)
    except ValueError:  # loading it says what is wrong
        return []
    found = [path for path in map(Path, words) if _is_file(path)]
    for path in found[:]:
        if path.suffix == ".py":
            found = _with_imports(found, path.parent)
    if "-m" in words[:-1]:
        found += _module_files(words[words.index("-m") + 1])
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # it is too long for a name
        return False


def _module_files(module: str) -> list[Path]:
    """Return the file of a Python module, or the files of a package, with those beside it that they
    import. Nothing is imported for it, so what is imported by other means is not found."""
    search_here()
    package, *inner = module.split(".")
    try:
        spec = find_spec(package)
    except ValueError:  # an empty name
        return []
    if spec is None:
        return []
    if not spec.submodule_search_locations:
        file = Path(spec.origin or "")
        return _with_imports([file], file.parent) if file.is_file() else []
    home = Path(next(iter(spec.submodule_search_locations)))
    place = Path(home, *inner)
    if place.is_dir():
        return _with_imports(sorted(place.glob("*.py")), home.parent)
    found = [path for path in [place.with_suffix(".py")] if path.is_file()]
    return _with_imports(found, home.parent)


def _with_imports(files: list[Path], folder: Path) -> list[Path]:
    """Return Python files with those of a folder that they import, and that these import."""
    if folder.resolve() in _installed():
        return files  # it has all that is installed, which a version describes better
    found = dict.fromkeys(files)
    waiting = [path for path in files if path.suffix == ".py"]
    seen: set[Path] = set()
    while waiting:
        for place in _imported(waiting.pop(), folder):
            if place in seen:
                continue
            seen.add(place)
            packages = (each / "__init__.py" for each in (place, *place.parents))
            inside = (path for path in packages if path.is_relative_to(folder))
            for path in (place.parent / f"{place.name}.py", *inside):
                if path not in found and path.is_file():
                    found[path] = None
                    waiting.append(path)
    return list(found)


def _installed() -> set[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return {Path(get_path(name)).resolve() for name in names}


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """Yield where the modules that a file imports would be, without an ending."""
    try:
        imports = _imports(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return  # loading it says what is wrong
    parents = [folder, *file.parents]
    for level, module, names in imports:
        place = parents[min(level, len(file.parents))].joinpath(*module)
        yield place
        for name in names:
            yield place / name


_Import = tuple[int, tuple[str, ...], tuple[str, ...]]


# Several options of a command, and several commands of one run, ask about the same files.
@lru_cache(maxsize=256)
def _imports(code: bytes) -> tuple[_Import, ...]:
    """Return what code imports, each once: how many dots there are, the parts of the module, and
    the names that are taken from it."""
    found: list[_Import] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [(0, tuple(name.name.split(".")), ()) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = tuple((node.module or "").split("."))
            found.append((node.level, module, tuple(name.name for name in node.names)))
    return tuple(dict.fromkeys(found))

"""run.json: what identifies a run, and what its results may depend on besides."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from userlm import prompts
from userlm.keys import environment_keys
from userlm.types import InputError

FORMAT = 2
"""The format version of run folders. Version 0.1 wrote format 1 without recording it."""


def request(
    verb: str, options: Mapping[str, Any], paths: list[Path], stamps: Mapping[str, str]
) -> dict[str, Any]:
    """Return what identifies a run: verb, options and inputs."""
    for value in options.values():
        if re.search(r"(?i)https?:[^\s#]*@", str(value)):
            raise InputError(
                "a URL with a password is refused, since options are written to run.json"
            )
        texts = [*map(str, value)] if isinstance(value, list | tuple) else [str(value)]
        for key, variable in environment_keys().items():
            if any(key in text for text in texts):
                raise InputError(
                    f"an option holds the key in {variable}, and options are written to run.json; "
                    f"let the program read {variable} itself"
                )
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} does not exist")
    return {
        "format": FORMAT,
        "verb": verb,
        "options": as_json(options),
        "inputs": {**{str(path): file_hash(path) for path in paths}, **stamps},
    }


def check_same(
    folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]
) -> None:
    """Raise `InputError` if the run in a folder is not the requested one."""
    for part in ("verb", "options", "inputs"):
        was, now = found.get(part), asked[part]
        if part == "inputs" and isinstance(was, dict):  # their order counts too
            was, now = list(was.items()), list(now.items())
        if was != now:
            there, here = first_difference(was, now)
            raise InputError(
                f"{folder} has a run with other {part} ({there} there, {here} now); choose "
                "another --out, or begin anew with --force"
            )


_LONGER = {"score": "judge_tokens", "tasks": "judge_tokens", "evaluate": "judge_tokens"}
_LONGER |= {"judge": "max_tokens"}


def extended(found: Mapping[str, Any], asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the request of a run with what may be added to it later, since all that was paid for
    stays: longer answers of a judge, of which only those that were cut off are asked
    for again, and a judge, or another one, for the conversations of `evaluate`."""
    verb, was, now = asked["verb"], found.get("options"), asked["options"]
    if found.get("verb") != verb or not isinstance(was, dict):
        return found
    name = _LONGER.get(verb, "")
    limits = was.get(name), now.get(name)
    added = {}
    if all(type(limit) is int for limit in limits) and limits[0] < limits[1]:
        added[name] = limits[1]
    if verb == "evaluate" and now.get("judge") != was.get("judge") and now.get("judge"):
        added["judge"] = now["judge"]
    return {**found, "options": {**was, **added}} if added else found


def other_inputs(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return the names of inputs with other contents than there are now; empty if there are none,
    whatever the names."""
    if [*was.values()] == [*now.values()]:
        return ""
    changed = [name for name, content in was.items() if content not in now.values()]
    return ", ".join(changed) or "their number or order"


def first_difference(was: Any, now: Any) -> tuple[str, str]:
    """Return the first option or input that differs, as texts: the earlier and the new value."""
    if isinstance(was, list) and isinstance(now, list):
        names_were = ", ".join(path for path, _ in was)
        names_are = ", ".join(path for path, _ in now)
        if names_were != names_are:
            return names_were, names_are
        changed = next(
            name for (name, a), (_, b) in zip(was, now, strict=True) if a != b
        )
        return f"{changed} as it was", f"{changed} changed"
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *now]:
            if was.get(key) != now.get(key):
                return f"{key}={was.get(key)!r}", f"{key}={now.get(key)!r}"
    return repr(was), repr(now)


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as run.json has them."""
    return {key: _json_value(value) for key, value in options.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return str(value)


def file_hash(*paths: Path, size: int | None = None) -> str:
    """Return the SHA-256 of a file, as run.json records it, or of its first `size` bytes; of
    several files, that of their contents one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        left = path.stat().st_size if size is None else size
        with path.open("rb") as file:
            while block := file.read(min(left, 1 << 20)):
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Return what the results may depend on besides options and inputs."""
    return {
        "versions": {**_versions()},
        "git": _commit(),
        "host": f"{platform.machine()}, {os.cpu_count()} cores",
        "prompts": prompts.hashes(),
    }


# What runs was loaded once: later changes of the packages or of the checkout are not in it.
@cache
def _versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("userlm", "torch", "transformers", "tokenizers", "numpy", "openai"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


@cache
def _commit() -> str | None:
    """The commit of the package, if it runs from a checkout."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

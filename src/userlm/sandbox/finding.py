"""Find a sandbox that works on this machine, or say how to get one."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from userlm.sandbox import seccomp
from userlm.sandbox.processes import Bubblewrap, unsafe
from userlm.sandbox.sandbox import Limits, Sandbox
from userlm.types import RIGHT, InputError, TestsCheck

SYSTEM_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")
PROBE = TestsCheck("assert permitted() == []")
PROBE_CODE = """
import os, socket

def permitted():
    found = []
    memory = lambda: os.memfd_create("x")
    for attempt in (os.fork, socket.socket, memory, lambda: os.listdir("/proc")):
        try:
            attempt()
            found.append(str(attempt))
        except OSError:
            pass
    return found
"""
"""It must not be able to do what the filter and the namespaces forbid."""

LIMITS = Limits()
CONTAINERS = ("/.dockerenv", "/run/.containerenv")
APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")


def find(*, unsafe_local: bool = False, limits: Limits = LIMITS) -> Sandbox:
    """Return a sandbox that was seen to work here.

    Args:
        unsafe_local: run the code without isolation.

    Raises:
        InputError: there is none; the message says how to get one.
    """
    if unsafe_local:
        return Sandbox(unsafe, "none", limits)
    return Sandbox(_bubblewrap(), "bubblewrap", limits)


def _bubblewrap() -> Bubblewrap:
    program = shutil.which("bwrap")
    if sys.platform != "linux":
        raise _refused("it needs Linux", "run it in a virtual machine with Linux")
    if platform.machine() not in seccomp.AUDIT:
        known = " or ".join(seccomp.AUDIT)
        raise _refused(f"this machine is no {known}", "run it on one")
    if not program:
        raise _refused(
            "bubblewrap is not installed",
            "get it with `apt-get install bubblewrap`, `dnf install bubblewrap` or the like",
        )
    return _working(program)


@cache  # a verb that simulates and grades asks twice; that there is none is not kept
def _working(program: str) -> Bubblewrap:
    problem = "no Python that every user can read"
    for python, prefix in _pythons():
        found = Bubblewrap(program, python, prefix)
        problem = _problem(found)
        if not problem:
            return found
    raise _refused(problem, _remedy())


def _pythons() -> Iterator[tuple[Path, Path | None]]:
    """Our own Python, which a user without rights may not be able to read, and the system's."""
    own = Path(sys.executable).resolve()
    base = Path(sys.base_prefix).resolve()
    within = base if not base.is_relative_to("/usr") else None
    yield own, within
    for name in SYSTEM_PYTHONS:
        python = Path(name)
        if python.exists() and python.resolve() != own:
            yield python, None


def _problem(start: Bubblewrap) -> str:
    """Why this does not work; empty if it does."""
    with tempfile.TemporaryFile() as errors:
        probe = Bubblewrap(start.program, start.python, start.prefix, errors)
        verdict = Sandbox(probe, "probe", slots=1).run(PROBE, PROBE_CODE)
        if verdict.label == RIGHT:
            return ""
        errors.seek(0)
        lines = errors.read(4096).decode(errors="replace").splitlines()
    return lines[0] if lines else verdict.reason


def _remedy() -> str:
    if any(Path(name).exists() for name in CONTAINERS):
        return (
            "start the container with `--security-opt seccomp=unconfined` (and, where AppArmor "
            "runs, `--security-opt apparmor=unconfined`)"
        )
    if APPARMOR.is_file() and APPARMOR.read_text().strip() != "0":
        return (
            "AppArmor keeps bubblewrap from making namespaces: install its profile "
            "(`apt-get install apparmor-profiles`, then copy "
            "/usr/share/apparmor/extra-profiles/bwrap-userns-restrict to /etc/apparmor.d/ and run "
            "`systemctl reload apparmor`)"
        )
    return (
        "bubblewrap must be 0.8 or newer, and user namespaces allowed (`sysctl "
        "user.max_user_namespaces`; on older Debian also `kernel.unprivileged_userns_clone=1`)"
    )


def _refused(problem: str, remedy: str) -> InputError:
    return InputError(
        f"code that a model wrote is only run in a sandbox, and none works here: {problem}; "
        f"{remedy}; see docs/sandbox.md. Or give --unsafe-local, which runs the code with all of "
        "your rights"
    )

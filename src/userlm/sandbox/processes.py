"""Starting and stopping a Python process, isolated or not."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from userlm.sandbox import seccomp

TMP_SIZE = 16 << 20
"""Bytes of the file system that is thrown away; they are memory."""
FIRST_UID = 61001
"""Where root starts them, each process gets a user of its own from here on: Debian and systemd
leave 61001 to 61183 to nobody."""
STOP_SECONDS = 10
Stdin = IO[bytes] | int


@dataclass(frozen=True, slots=True)
class Process:
    """A running process.

    Attributes:
        popen: what was started: bubblewrap, or Python itself.
        told: where bubblewrap tells the number of the process inside.
    """

    popen: subprocess.Popen[bytes]
    told: int | None = None

    def stop(self) -> None:
        """Kill it and wait for its end."""
        with suppress(OSError, subprocess.TimeoutExpired):
            if self.told is None:
                os.killpg(self.popen.pid, signal.SIGKILL)
            elif self.popen.poll() is None:
                # Bubblewrap ends with the process inside. If it were killed first, the process
                # inside would stay a zombie where nobody waits for orphans, as in many containers.
                if told := _all_told(self.told):
                    os.kill(json.loads(told)["child-pid"], signal.SIGKILL)
                self.popen.wait(STOP_SECONDS)
        self.popen.kill()  # does nothing to what has ended
        self.popen.wait()
        if self.told is not None:
            os.close(self.told)


def _all_told(told: int) -> bytes:
    """What bubblewrap tells, in several parts; it closes its end at once."""
    return b"".join(iter(lambda: os.read(told, 4096), b""))


class Start(Protocol):
    """Starts Python processes."""

    def __call__(
        self, arguments: Sequence[str], user: int, fds: Sequence[int], stdin: Stdin
    ) -> Process:
        """Start Python with these arguments.

        Args:
            user: the number of the user of its own, where it can have one.
            fds: the file descriptors that it gets.
        """


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """Starts processes without network, privileges, environment, files but those of /usr, or other
    processes in sight.

    Attributes:
        program: where bubblewrap is.
        python: what runs inside.
        prefix: the folder of this Python, if it lies outside /usr.
        errors: where bubblewrap says why it cannot start something.
    """

    program: str
    python: Path
    prefix: Path | None = None
    errors: IO[bytes] | None = None

    def __call__(
        self, arguments: Sequence[str], user: int, fds: Sequence[int], stdin: Stdin
    ) -> Process:
        told, tell = os.pipe()
        uid = FIRST_UID + user if os.geteuid() == 0 else None
        with tempfile.TemporaryFile() as filter:
            filter.write(seccomp.program(platform.machine()))
            filter.seek(0)
            own = {"--info-fd": tell, "--seccomp": filter.fileno()}
            try:
                popen = subprocess.Popen(
                    [*self._command(own), str(self.python), *arguments],
                    stdin=stdin,
                    stdout=subprocess.DEVNULL,
                    stderr=self.errors or subprocess.DEVNULL,
                    pass_fds=(*fds, *own.values()),
                    env={},
                    cwd="/",
                    start_new_session=True,
                    user=uid,
                    group=uid,
                    extra_groups=None if uid is None else [],
                )
            except OSError:
                os.close(told)
                raise
            finally:
                os.close(tell)
        return Process(popen, told)

    def _command(self, fds: dict[str, int]) -> list[str]:
        apart = "user pid net ipc uts cgroup-try".split()
        command = [self.program, *(f"--unshare-{what}" for what in apart)]
        # Bubblewrap's own first process in the namespace would be one more to wait for.
        command += "--disable-userns --as-pid-1 --die-with-parent --new-session".split()
        command += "--clearenv --cap-drop ALL --ro-bind /usr /usr".split()
        for folder in ("lib", "lib64"):
            if Path("/", folder).is_symlink():
                command += ["--symlink", f"usr/{folder}", f"/{folder}"]
            elif Path("/", folder).is_dir():
                command += ["--ro-bind", f"/{folder}", f"/{folder}"]
        if self.prefix:
            command += ["--ro-bind", str(self.prefix), str(self.prefix)]
        command += "--dev-bind /dev/null /dev/null --perms 1777".split()
        command += f"--size {TMP_SIZE} --tmpfs /tmp --chdir /tmp --remount-ro /".split()
        for flag, fd in fds.items():
            command += [flag, str(fd)]
        return [*command, "--"]


def unsafe(
    arguments: Sequence[str], user: int, fds: Sequence[int], stdin: Stdin
) -> Process:
    """Start a process that may do all that we may do."""
    popen = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=fds,
        env={},
        cwd=tempfile.gettempdir(),
        start_new_session=True,
    )
    return Process(popen)

"""A bot that is a command: the messages on its standard input, its answer on standard output."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache

from userlm.json_files import dump
from userlm.keys import without_keys
from userlm.models.event_loops import event_loop, late
from userlm.types import InputError, Message, ModelError

MAX_OUTPUT = 1 << 22
"""Bytes of standard output. What is longer is no answer."""
MAX_ERRORS = 1 << 16
"""Bytes of standard error that are kept."""
LONGEST_ERROR = 300
"""Characters of standard error, its last ones, that are shown."""
GRACE = 1.0
"""Seconds until what was killed has ended; a process that left its group may still hold a pipe."""
SESSION = "USERLM_SESSION"
"""The environment variable in which the command gets the id of the session."""

_WATCH = """
import os, signal, sys
running = set()
for line in sys.stdin:
    running ^= {int(line)}
for pid in running:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
"""
"""Reads the id of each command when it begins, and again when it has ended."""


@cache
def _watcher() -> int:
    """Start a process that kills what still runs once this one has ended, even if it was killed.
    Return its standard input, which is then closed."""
    read, write = os.pipe()
    command = [sys.executable, "-I", "-S", "-c", _WATCH]
    with suppress(OSError):
        subprocess.Popen(
            command, stdin=read, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
        )
    os.close(read)
    return write


class Command:
    """A command that is run for each answer.

    Args:
        line: the command as in a shell, but without one: no pipes and no variables.
        timeout: seconds for one answer. Then it is killed with all that it started.

    Raises:
        InputError: if there is no such program.
    """

    def __init__(self, line: str, timeout: float) -> None:
        try:
            self._words = shlex.split(line)
        except ValueError as error:
            raise InputError(f"cmd:{line}: {error}; close the quote") from None
        if not self._words or shutil.which(self._words[0]) is None:
            program = self._words[0] if self._words else "''"
            raise InputError(
                f"cmd:{line}: {program} is no program that may be run; check its name and "
                f"`chmod +x {program}`"
            )
        self._timeout = timeout

    def ask(self, messages: Sequence[Message], session: str) -> str:
        """Return what the command writes; raise `ModelError` if it fails, takes too long or writes
        too much."""
        asking = self._run(dump(list(messages)) + b"\n", session)
        return asyncio.run_coroutine_threadsafe(asking, event_loop("bots")).result()

    async def _run(self, given: bytes, session: str) -> str:
        _watcher()  # is there before what it watches
        try:
            process = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env={**os.environ, SESSION: session},
                start_new_session=True,  # so that all of it can be killed
            )
        except OSError as error:
            raise ModelError(f"cannot be run: {error.strerror or error}") from None
        assert process.stdin and process.stdout and process.stderr
        _tell_watcher(process.pid)

        def kill() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        # What is killed closes its ends of the pipes, so that the reading below ends. Only then
        # does `wait` return; it would wait for ever for a pipe that nobody reads.
        begun = time.monotonic()
        alarm = asyncio.get_running_loop().call_later(self._timeout, kill)
        try:
            async with asyncio.timeout(self._timeout + GRACE):
                _, said, errors = await asyncio.gather(
                    _write(process.stdin, given),
                    _read(process.stdout, MAX_OUTPUT, kill),
                    _read(process.stderr, MAX_ERRORS, _go_on),
                )
                status = await process.wait()
        except TimeoutError:
            raise late(self._timeout) from None
        finally:
            alarm.cancel()
            if process.returncode is None:
                kill()
            _tell_watcher(process.pid)
        if time.monotonic() - begun >= self._timeout:
            raise late(self._timeout)
        if len(said) > MAX_OUTPUT:
            raise ModelError(f"wrote more than {MAX_OUTPUT:,} bytes")
        if status:
            # Without keys before it is cut: a half of one is not known any more.
            told = without_keys(" ".join(errors.decode(errors="replace").split()))
            told = told[-LONGEST_ERROR:]
            why = f": {told}" if told else ""
            raise ModelError(f"ended with status {status}{why}")
        return said.decode(errors="replace").strip()


def _tell_watcher(pid: int) -> None:
    with suppress(BrokenPipeError):
        os.write(_watcher(), b"%d\n" % pid)


async def _write(stream: asyncio.StreamWriter, given: bytes) -> None:
    # A command may answer without reading all that was said.
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.write(given)
        await stream.drain()
    stream.close()


async def _read(
    stream: asyncio.StreamReader, most: int, on_more: Callable[[], None]
) -> bytes:
    """Read a stream to its end, and return its beginning: one byte more than `most` if it has more,
    and then call `on_more`."""
    kept = bytearray()
    while block := await stream.read(1 << 16):
        if len(kept) <= most < len(kept) + len(block):
            on_more()
        kept += block[: most + 1 - len(kept)]
    return bytes(kept)


def _go_on() -> None:
    """Let a command write as much as it likes."""

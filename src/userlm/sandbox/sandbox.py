"""Grade code by tests: start the two processes, wait for the verdict, stop them."""

from __future__ import annotations

import ast
import math
import os
import select
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from subprocess import DEVNULL
from typing import TYPE_CHECKING

from userlm.sandbox.inside import START_SECONDS, USED, encode
from userlm.sandbox.processes import Process, Start, Stdin
from userlm.tasks import never_run
from userlm.types import RIGHT, WRONG, TestsCheck, Verdict

if TYPE_CHECKING:
    from userlm.sandbox.inside import Job

INSIDE = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
PROCESSES = 2
"""Of a slot: that of the code and that of the tests."""
MOST_SLOTS = 64
"""So that there are users enough."""
GRACE_SECONDS = 2.0
"""The process of the tests watches the time itself. It gets so much more to say that it is over."""
LONGEST_VERDICT = 1 << 16
LABELS = {b"T": RIGHT, b"F": WRONG, b"N": None}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the code may use.

    Attributes:
        seconds: for running the code and all of its tests.
        memory: bytes of memory for each of the two processes.
        file_size: bytes of a file.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    file_size: int = 4 << 20


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Grades code by tests, from as many threads as there are slots at once.

    Attributes:
        start: how a process is started, isolated or not.
        isolation: what isolates it, for people.
    """

    start: Start
    isolation: str
    limits: Limits = Limits()
    slots: int = min(os.cpu_count() or 1, MOST_SLOTS)
    _free: SimpleQueue[int] = field(default_factory=SimpleQueue, repr=False)

    def __post_init__(self) -> None:
        for slot in range(self.slots):
            self._free.put(slot)

    def run(self, check: TestsCheck, code: str) -> Verdict:
        """Return whether the code passes the tests, or `None` where the tests cannot say."""
        try:
            prompt = _whole(check.prompt)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return Verdict(None, f"the prompt of the task is not Python: {error}")
        if problem := _never_run(check.tests):
            return Verdict(None, problem)
        parts = _parts(check.prompt, prompt, code)
        seconds = self.limits.seconds
        job: Job = (parts, check.tests, check.entry_point, prompt, seconds)
        slot = self._free.get()
        try:
            return self._run(job, slot * PROCESSES)
        except OSError as error:  # such as too many processes or files
            return Verdict(None, f"the sandbox could not start: {error}")
        finally:
            self._free.put(slot)

    def _run(self, job: Job, user: int) -> Verdict:
        with ExitStack() as kept:
            with ExitStack() as handed:  # ends of pipes that only the processes keep
                requested, request = _pipe(handed, handed)
                answered, answer = _pipe(handed, handed)
                told, tell = _pipe(kept, handed)
                file = handed.enter_context(tempfile.TemporaryFile())
                file.write(encode(job, id).encode("utf-8", "surrogatepass"))
                file.seek(0)
                code = self._start("code", user, (requested, answer), DEVNULL)
                kept.callback(code.stop)
                fds = (answered, request, tell)
                tests = self._start("tests", user + 1, fds, file)
                kept.callback(tests.stop)
            return _verdict(told, self.limits.seconds + GRACE_SECONDS)

    def _start(
        self, role: str, user: int, fds: tuple[int, ...], stdin: Stdin
    ) -> Process:
        limits = self.limits
        computing = math.ceil(limits.seconds) + 1
        given = (computing, limits.memory, limits.file_size, *fds)
        # -I -S: no environment, no folder of the user's, and a start in half the time.
        arguments = ["-I", "-S", "-c", INSIDE, role, *map(str, given)]
        return self.start(arguments, user, fds, stdin)


def _pipe(read: ExitStack, write: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for stack, end in zip((read, write), ends, strict=True):
        stack.callback(os.close, end)
    return ends


def _verdict(told: int, seconds: float) -> Verdict:
    """Wait for the verdict of the tests.

    Args:
        seconds: how long they may take after each word: that they started, or use the code.
    """
    poll = select.poll()
    poll.register(told, select.POLLIN)
    end = time.monotonic() + START_SECONDS + seconds
    said = b""
    while len(said) < LONGEST_VERDICT and poll.poll(_left(end)):
        part = os.read(told, LONGEST_VERDICT)
        if not part:
            break
        said += part
        end = time.monotonic() + seconds
    *before, last = said.split(b"\n")
    if last[:1] in LABELS:
        reason = last[1:].decode("utf-8", "replace")
        # The code may have written it, and a terminal does what control characters say.
        return Verdict(LABELS[last[:1]], "".join(filter(str.isprintable, reason)))
    label = WRONG if USED in before[-1:] else None
    return Verdict(
        label, "the tests did not end" if before else "the sandbox did not start"
    )


def _left(end: float) -> float:
    """Milliseconds until then."""
    return max(0.0, end - time.monotonic()) * 1000


def _never_run(tests: str) -> str:
    try:
        return never_run(ast.parse(tests))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""  # the process of the tests says what is wrong


def _whole(prompt: str) -> str:
    """Return the prompt as a program; a signature without anything under it gets a body."""
    try:
        ast.parse(prompt)
    except SyntaxError:
        prompt = f"{prompt.rstrip()}\n    pass\n"
        ast.parse(prompt)
    return prompt


def _parts(prompt: str, whole: str, code: str) -> list[str]:
    """Return the programs to run one after the other. Code that begins indented continues the
    prompt."""
    first = next(filter(str.strip, code.splitlines()), "")
    if prompt and first[:1].isspace():
        return [f"{prompt.rstrip()}\n{code}"]
    return [whole, code]

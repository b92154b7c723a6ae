"""Grade code by tests: start the two processes, wait for the verdict, stop them."""

from __future__ import annotations

import ast
import json
import math
import os
import select
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from userlm.sandbox.processes import Process, Start
from userlm.types import RIGHT, WRONG, TestsCheck, Verdict

INSIDE = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
PROCESSES = 2
"""Of a slot: that of the code and that of the tests."""
START_SECONDS = 60.0
"""A start takes a fiftieth of a second; a busy machine may need longer."""
GRACE_SECONDS = 2.0
"""The process of the tests watches the time itself. It gets so much more to say that it is over."""
LONGEST_VERDICT = 1 << 16
LABELS = {True: RIGHT, False: WRONG, None: None}


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
    slots: int = os.cpu_count() or 1
    _free: SimpleQueue[int] = field(default_factory=SimpleQueue, repr=False)

    def __post_init__(self) -> None:
        for slot in range(self.slots):
            self._free.put(slot)

    def run(self, check: TestsCheck, code: str) -> Verdict:
        """Return whether the code passes the tests, or `None` where the tests cannot say."""
        try:
            prompt = _whole(check.prompt)
        except (SyntaxError, ValueError) as error:
            return Verdict(None, f"the prompt of the task is not Python: {error}")
        job = {
            "code": _parts(check.prompt, prompt, code),
            "prompt": prompt,
            "tests": check.tests,
            "entry_point": check.entry_point,
            "seconds": self.limits.seconds,
        }
        slot = self._free.get()
        try:
            return self._run(job, slot * PROCESSES)
        except OSError as error:  # such as too many processes or files
            return Verdict(None, f"the sandbox could not start: {error}")
        finally:
            self._free.put(slot)

    def _run(self, job: dict[str, Any], user: int) -> Verdict:
        with ExitStack() as kept:
            with ExitStack() as handed:  # ends of pipes that only the processes keep
                requested, request = _pipe(handed, handed)
                answered, answer = _pipe(handed, handed)
                told, tell = _pipe(kept, handed)
                nothing = handed.enter_context(Path(os.devnull).open("rb"))
                file = handed.enter_context(tempfile.TemporaryFile())
                file.write(json.dumps(job).encode())
                file.seek(0)
                code = self._start("code", user, (requested, answer), nothing)
                kept.callback(code.stop)
                fds = (request, answered, tell)
                tests = self._start("tests", user + 1, fds, file)
                kept.callback(tests.stop)
            return _verdict(told, self.limits.seconds + GRACE_SECONDS)

    def _start(
        self, role: str, user: int, fds: tuple[int, ...], stdin: IO[bytes]
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
        seconds: how long they may take after they first used the code.
    """
    poll = select.poll()
    poll.register(told, select.POLLIN)
    end = time.monotonic() + START_SECONDS + seconds
    text = b""
    while len(text) < LONGEST_VERDICT and poll.poll(_left(end)):
        part = os.read(told, LONGEST_VERDICT)
        if not part:
            break
        text += part
        end = time.monotonic() + seconds
    used, _, last = text.partition(b"\n")
    try:
        found = json.loads(last or used)
        label, reason = LABELS[found["passed"]], str(found["reason"])
    except (ValueError, TypeError, LookupError, RecursionError):
        if text:
            return Verdict(WRONG, "the tests did not end")
        return Verdict(None, "the sandbox ended without a verdict")
    # The code may have written it, and a terminal does what control characters say.
    return Verdict(label, "".join(filter(str.isprintable, reason)))


def _left(end: float) -> float:
    """Milliseconds until then."""
    return max(0.0, end - time.monotonic()) * 1000


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

"""Processes of their own that begin at once: forked from one that has loaded all that takes seconds
to load.

What runs in them has its own memory, folder, environment and output, can be sent any signal and
exits as any
Python does. One thing they share: the seed of `hash`. Where the same must come out of several
processes, let one of them be `fresh`, or that of the tests.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__)
# the environment variable that tells the stand-in for `userlm` where to ask
PLACE = "USERLM_TEST_FORKS"

USERLM = f"""#!{sys.executable} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect(os.environ["{PLACE}"])
    task = {{"run": ["-m", "userlm"], "arguments": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}
    body = json.dumps(task).encode()
    socket.send_fds(asked, [len(body).to_bytes(8, "big")], [0, 1, 2])
    asked.sendall(body)
    code = int(asked.makefile().read().split()[1])
sys.exit(code if code >= 0 else 128 - code)
"""
"""Stands in for the command `userlm` in scripts of a shell."""


# --- here -----------------------------------------------------------------------------------------


@cache
def _place() -> str:
    """Where the process that forks listens. It ends with this one."""
    folder = tempfile.mkdtemp(prefix="forks")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    place = f"{folder}/socket"
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES")
    }
    command, pipe = [sys.executable, str(HERE), place], subprocess.PIPE
    server = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe)
    assert server.stdout and server.stdout.readline() == b"ready\n"
    atexit.register(server.communicate)
    return place


def on_path(folder: Path) -> dict[str, str]:
    """The environment in which `userlm`, in scripts, is one of these processes. `folder` is for the
    stand-in, and for the `python` beside it, which is that of the tests."""
    folder.mkdir(parents=True, exist_ok=True)
    python = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
    for name, script in {"userlm": USERLM, "python": python}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    path = os.pathsep.join(
        [str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    return {**os.environ, "PATH": path, PLACE: _place()}


class Process:
    """As much of `subprocess.Popen` as the tests use, in text. `run` is `-m module`, `-c code` or
    the path of a script."""

    def __init__(
        self, run: list[str], *arguments: object, cwd: Path | None = None, **env: str
    ) -> None:
        whole = {**os.environ, **env}
        task = {
            "run": run,
            "arguments": [*map(str, arguments)],
            "cwd": str(cwd or Path.cwd()),
            "env": whole,
        }
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        self.stdin = os.fdopen(pipes[0][1], "w", encoding="utf-8")
        self.stdout, self.stderr = (
            os.fdopen(pipe[0], encoding="utf-8") for pipe in pipes[1:]
        )
        self.returncode: int | None = None
        self._asked = socket.socket(socket.AF_UNIX)
        self._asked.connect(_place())
        body = json.dumps(task).encode()
        socket.send_fds(self._asked, [len(body).to_bytes(8, "big")], theirs)
        self._asked.sendall(body)
        for end in theirs:
            os.close(end)
        self._told = self._asked.makefile()
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._asked], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = int(self._told.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: str = "", timeout: float = 120) -> tuple[str, str]:
        """What it said, after its end. If there is none in time, it is killed."""
        with ThreadPoolExecutor(2) as pool:
            said = [pool.submit(file.read) for file in (self.stdout, self.stderr)]
            with suppress(BrokenPipeError):
                self.stdin.write(input)
                self.stdin.close()
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            out, err = (one.result() for one in said)
        for file in (self.stdout, self.stderr, self._told, self._asked):
            file.close()
        return out, err


def userlm(*arguments: object, cwd: Path | None = None, **env: str) -> Process:
    """`userlm VERB`, begun."""
    return Process(["-m", "userlm"], *arguments, cwd=cwd, **env)


def completed(
    run: list[str], *arguments: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A process, after its end."""
    process = Process(run, *arguments, cwd=cwd)
    out, err = process.communicate(timeout=300)
    code = process.wait()
    return subprocess.CompletedProcess(run, code, out, err)


def fresh(*arguments: object, cwd: Path, **env: str) -> Any:
    """The same by a Python of its own, which hashes with another seed."""
    command, pipe = (
        [sys.executable, "-m", "userlm", *map(str, arguments)],
        subprocess.PIPE,
    )
    return subprocess.Popen(
        command, cwd=cwd, env={**os.environ, **env}, stdout=pipe, stderr=pipe, text=True
    )


# --- in the process that forks --------------------------------------------------------------------


def _load() -> None:
    """What the verbs load when they need it. Nothing may start a thread: a fork would be without
    it."""
    import accelerate
    import numpy.ma
    import rensa
    import torch.distributed
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama
    import uvicorn

    from userlm import cli, manifest
    from userlm.data import language, pii
    from userlm.models import endpoint, local
    from userlm.serving import app
    from userlm.show import page
    from userlm.training import base, train
    from userlm.types import Conversation

    language.language(Conversation().say("bonjour"))  # its model takes half a second
    manifest.environment()  # it asks git
    assert all(
        (
            accelerate,
            numpy.ma,
            rensa,
            torch,
            transformers,
            uvicorn,
            cli,
            app,
            train,
            base,
            endpoint,
            local,
            page,
            pii,
        )
    )


def _next(listening: socket.socket) -> dict[str, Any]:
    """Fork for each who asks, until the standard input ends; comes back in the forked processes."""
    while True:
        if sys.stdin in select.select([listening, sys.stdin], [], [])[0]:
            os._exit(0)
        asked, _ = listening.accept()
        head, files, *_ = socket.recv_fds(asked, 8, 3)
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            task = json.loads(asked.makefile("rb").read(int.from_bytes(head, "big")))
            if child := os.fork():
                for file in files:
                    os.close(file)
                asked.sendall(f"{child}\n".encode())
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                with suppress(BrokenPipeError):
                    asked.sendall(f"{code}\n".encode())
                os._exit(0)
            asked.close()
            listening.close()
            for i, file in enumerate(files):
                os.dup2(file, i)
                os.close(file)
            return task
        asked.close()
        for file in files:
            os.close(file)


def _become(env: Mapping[str, str], cwd: str, arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    sys.path[:0] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = arguments


def _run(run: list[str]) -> int:
    """The exit code."""
    try:
        if run[0] == "-m":
            runpy.run_module(run[1], run_name="__main__", alter_sys=True)
        elif run[0] == "-c":
            exec(run[1], {"__name__": "__main__"})
        else:
            sys.argv[0] = run[0]
            sys.path.insert(0, str(Path(run[0]).parent))
            runpy.run_path(run[0], run_name="__main__")
    except SystemExit as over:
        if over.code is None or isinstance(over.code, int):
            return over.code or 0
        print(over.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _exit(code: int) -> None:
    """As Python does it, but for taking apart all that was loaded, which takes longer than most
    tests."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path.remove(str(HERE.parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Who waits for the others is nobody's to wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _load()
    gc.freeze()  # a collection in a forked process would copy all of it
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen()
        print("ready", flush=True)
        task = _next(listening)
    _become(task["env"], task["cwd"], task["arguments"])
    _exit(_run(task["run"]))

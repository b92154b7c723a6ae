"""A server of a peer, on this machine, while a script runs."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

LOG = Path("server.log")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextmanager
def running(
    command: Sequence[str], health: str, seconds: float = 180
) -> Iterator[None]:
    """Run a server until its health can be asked for, and to the end of the block."""
    with LOG.open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ, start_new_session=True
        )
        try:
            _wait(process, health, time.monotonic() + seconds)
            yield
        finally:
            os.killpg(process.pid, 15)
            process.wait()


def _wait(process: subprocess.Popen, health: str, until: float) -> None:
    while time.monotonic() < until and process.poll() is None:
        try:
            with urlopen(health):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the server did not start: {LOG.read_text()[-300:]}")

"""What a person types in a terminal, or pastes into it."""

from __future__ import annotations

import atexit
import select
import sys
from collections.abc import Callable

_PAUSE = 0.1
"""Seconds. The lines of a paste come together; nobody types two so fast."""
_LONGEST = 4_000
"""Bytes of a line. Terminals cut longer ones, at 4,095 on Linux and at fewer elsewhere."""


def read_text(ask: Callable[[], str]) -> str:
    """Return a line that is typed, or all lines of a paste: they are one text, in which an empty
    line is no wish to leave.

    Args:
        ask: shows a prompt and returns the first line.

    Raises:
        EOFError: at Ctrl-D, or at the end of what is piped in.
    """
    if not sys.stdin.isatty():
        return ask()
    atexit.unregister(discard)  # once is enough
    atexit.register(discard)
    lines = [ask()]
    while _is_more_waiting():
        try:
            lines.append(input())
        except EOFError:
            break
    if any(len(line.encode(errors="replace")) > _LONGEST for line in lines):
        note = "a long line, which the terminal may have cut; see what was sent"
        print(note, file=sys.stderr)
    return "\n".join(lines)


def discard() -> None:
    """Discard what was typed or pasted and not read. Else a shell would run it: it may be the rest
    of a text of somebody else."""
    if sys.stdin is None or not sys.stdin.isatty():
        return
    try:
        import termios
    except ImportError:  # on Windows
        return
    termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _is_more_waiting() -> bool:
    try:
        return bool(select.select([sys.stdin], [], [], _PAUSE)[0])
    except (OSError, ValueError):  # on Windows
        return False

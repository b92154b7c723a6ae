"""What a person types in a terminal, or pastes into it."""

from __future__ import annotations

import atexit
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_PAUSE = 0.1
"""Seconds. The lines of a paste come together; nobody types two so fast."""
_earlier: list[str] = []
"""What was typed in this process, for the arrow keys."""


def is_terminal() -> bool:
    """Return whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_text(prompt: str, is_late: bool = False) -> str:
    """Return what is typed after a prompt, or all lines of a paste: they are one text, in which an
    empty line is no wish to leave. The prompt is on standard error.

    What comes while nobody is asked is discarded, and said to be. Else half of a paste would be a
    turn, and its next line a command.

    Args:
        is_late: whether there was something to wait for before; later ones are always so.

    Raises:
        EOFError: at Ctrl-D, at the end of what is piped in, or where nothing can be.
    """
    if sys.stdin is None:  # closed
        raise EOFError
    if not is_terminal():
        print(prompt, end="", file=sys.stderr, flush=True)
        return input("")
    # heavy
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.input import create_input
    from prompt_toolkit.output import create_output

    atexit.unregister(discard)  # once is enough
    atexit.register(discard)
    if (_earlier or is_late) and discard():
        note = "what you typed or pasted meanwhile is discarded"
        print(note, file=sys.stderr)
    history = InMemoryHistory(_earlier)
    terminal = create_output(sys.stderr)
    with create_app_session(create_input(sys.stdin), terminal):
        session: PromptSession[str] = PromptSession(
            history=history,
            key_bindings=_keys(),
            enable_suspend=True,
            reserve_space_for_menu=0,
        )
        text = session.prompt([("bold", prompt)])
    _earlier.append(text)
    return text


def discard() -> bool:
    """Discard what was typed or pasted and not read, and return whether there was any. Else a shell
    would run it: it may be the rest of a text of somebody else."""
    if not is_terminal():
        return False
    try:
        import termios
        import tty
    except ImportError:  # on Windows
        return False
    if not _is_in_front():
        return False
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin, termios.TCSANOW)  # a line without its end can be seen
    try:
        was_any = _is_more_waiting(0)
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
    return was_any


def _is_in_front() -> bool:
    """Return whether this process is no job in the background, which is stopped where it changes
    its terminal."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # the terminal is that of others
        return True


def _keys() -> KeyBindings:
    """Return the binding of Enter. Most terminals mark the beginning and the end of a paste; in
    others it is a line break if more comes at once."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def enter(event: KeyPressEvent) -> None:
        if event.key_processor.input_queue or _is_more_waiting(_PAUSE):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    return keys


def _is_more_waiting(seconds: float) -> bool:
    try:
        return bool(select.select([sys.stdin], [], [], seconds)[0])
    except (OSError, ValueError):  # on Windows
        return False

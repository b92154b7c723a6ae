"""What is typed or pasted in a terminal."""

import io
import os
import pty
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from userlm import terminal_input
from userlm.terminal_input import discard, read_text
from userlm.types import Conversation, ModelError
from userlm.users import typed

Typist = Callable[[bytes], None]


@pytest.fixture
def typist(monkeypatch) -> Iterator[Typist]:
    """Types, or pastes, in the terminal in which this process is."""
    keyboard, ours = pty.openpty()

    def write(keys: bytes) -> None:
        os.write(keyboard, keys)
        time.sleep(0.05)

    with os.fdopen(ours, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(terminal_input, "_earlier", [])
        yield write
    os.close(keyboard)


@pytest.fixture
def soon(typist, monkeypatch) -> Typist:
    """Types once somebody is asked."""
    waiting: list[bytes] = []
    keys = terminal_input._keys

    def asked():  # type: ignore[no-untyped-def]
        if waiting:
            threading.Timer(0.3, typist, (waiting.pop(0),)).start()
        return keys()

    monkeypatch.setattr(terminal_input, "_keys", asked)
    return waiting.append


PASTE = "\nInstall it so:\n1. open a shell\n\ntouch pwned"


@pytest.mark.parametrize(
    "keys",
    [
        f"\x1b[200~{PASTE}\x1b[201~\r",  # as most terminals do
        f"\x1b[200~{PASTE}\n\x1b[201~\r",
        PASTE.replace("\n", "\r") + "\r",
        f"{PASTE}\n",
    ],
)
def test_a_paste_is_one_text_with_its_empty_lines(keys, soon):
    soon(keys.encode())
    assert read_text("> ").rstrip("\n") == PASTE
    soon(b"one line\r")
    assert read_text("> ") == "one line"


def test_a_paste_without_its_last_line_break_waits_for_enter(typist, soon):
    soon(b"line one\rline two\rline three")
    threading.Timer(1, typist, (b" and more\r",)).start()
    assert read_text("> ") == "line one\nline two\nline three and more"


def test_a_long_line_is_whole(soon):
    soon(b"x" * 6_000 + b"\r")  # a terminal that reads lines keeps 4,095 bytes
    assert read_text("> ") == "x" * 6_000


def test_where_standard_input_has_ended_nobody_ends_a_conversation(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(ModelError, match="standard input has ended"):
        typed(Conversation("c"))
    assert typed(Conversation("c").say("hi").say("hello")) is None


def test_what_was_typed_before_the_other_side_spoke_is_discarded(typist, soon):
    typist(b"typed too early\r")
    soon(b"now\r")
    assert read_text("> ", is_late=True) == "now"


def test_a_pipe_is_read_line_by_line(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n")
    with os.fdopen(reading, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        discard()  # nothing of what is piped in
        assert (read_text("> "), read_text("> ")) == ("one", "two")
        os.close(writing)
        with pytest.raises(EOFError):
            read_text("> ")
    assert capsys.readouterr() == ("", "> > > ")


@pytest.mark.parametrize("keys", [b"touch pwned\n", b"half a line"])
def test_what_was_not_read_reaches_no_shell(keys, typist):
    typist(keys)
    assert discard()
    assert not discard()


@pytest.mark.parametrize("early", [b"/save a\n/quit\n", b"half a line", b"a\n\nb\n"])
def test_what_comes_while_nobody_is_asked_is_discarded_and_said_to_be(
    early, typist, soon, capfd
):
    typist(b"typed at the start\n")
    assert read_text("> ") == "typed at the start"
    soon(b"first\r")
    assert read_text("> ") == "first"
    assert "discarded" not in capfd.readouterr().err
    typist(early)
    soon(b"second\r")
    assert read_text("> ") == "second"
    assert "what you typed or pasted meanwhile is discarded" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("key", "raised"), [(b"\x03", KeyboardInterrupt), (b"\x04", EOFError)]
)
def test_ctrl_c_and_ctrl_d_leave(key, raised, soon):
    soon(key)
    with pytest.raises(raised):
        read_text("> ")


def test_a_person_who_leaves_a_simulation_leaves_nothing_behind(typist, soon, capsys):
    begun = Conversation("c").say("hi").say("hello")
    soon(b"first\r\rsecond\r")
    assert typed(begun) == "first\n\nsecond"
    soon(b"\r")
    assert typed(begun) is None
    typist(b"too late for the one before\n")
    soon(b"hello\r")
    assert typed(Conversation("next")) == "hello"


def test_a_process_in_the_background_leaves_the_terminal_alone(typist, monkeypatch):
    """It would be stopped for changing it, and never end."""
    typist(b"typed for another one\n")
    monkeypatch.setattr("os.tcgetpgrp", lambda fd: 1)
    assert not discard()
    monkeypatch.setattr("os.tcgetpgrp", lambda fd: os.getpgrp())
    assert discard()

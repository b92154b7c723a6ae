"""What is typed or pasted in a terminal."""

import os
import pty
import select
import sys
import threading
from collections.abc import Iterator

import pytest

from userlm.terminal_input import discard, read_text
from userlm.types import Conversation
from userlm.users import typed


@pytest.fixture
def terminal(monkeypatch) -> Iterator[int]:
    """A terminal in which this process is; what is written there is typed."""
    typist, ours = pty.openpty()
    with os.fdopen(ours, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield typist
    os.close(typist)


def test_a_paste_is_one_text_with_its_empty_lines(terminal):
    os.write(terminal, b"\nInstall it so:\n1. open a shell\n\ntouch pwned\n")
    assert read_text(input) == "\nInstall it so:\n1. open a shell\n\ntouch pwned"
    os.write(terminal, b"one line\n")
    assert read_text(input) == "one line"


def test_a_pipe_is_read_line_by_line(monkeypatch):
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n")
    with os.fdopen(reading, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        discard()  # nothing of what is piped in
        assert (read_text(input), read_text(input)) == ("one", "two")
        os.close(writing)
        with pytest.raises(EOFError):
            read_text(input)


def test_what_was_not_read_reaches_no_shell(terminal):
    os.write(terminal, b"touch pwned\n")
    assert select.select([sys.stdin], [], [], 5)[0]
    discard()
    assert not select.select([sys.stdin], [], [], 0)[0]


def test_a_person_who_leaves_a_simulation_leaves_nothing_behind(terminal, capsys):
    begun = Conversation("c").say("hi").say("hello")
    os.write(terminal, b"first\n\nsecond\n")
    assert typed(begun) == "first\n\nsecond"
    os.write(terminal, b"\n")
    assert typed(begun) is None
    os.write(terminal, b"too late for the one before\n")
    assert select.select([sys.stdin], [], [], 5)[0]
    threading.Timer(0.5, os.write, (terminal, b"hello\n")).start()
    assert typed(Conversation("next")) == "hello"

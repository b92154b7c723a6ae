"""What reaches the terminal: any text is shown, and none of it is a command."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.ansi import AnsiDecoder
from rich.text import Text

from userlm import cli
from userlm.show import terminal
from userlm.show.blocks import Quote, Said, Table, Transcript
from userlm.show.terminal import Terminal, progress_bar

HOSTILE = (
    "\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b31m\x7f\u202e\x1b]8;;http://x\x1b\\ link"
)
SHOWN = (
    "⟨U+001B⟩]0;title⟨U+001B⟩[2J⟨U+001B⟩[31mred⟨U+009B⟩31m⟨U+007F⟩⟨U+202E⟩"
    "⟨U+001B⟩]8;;http://x⟨U+001B⟩\\ link"
)
"""`HOSTILE` as rich shows it; rich itself leaves out the bell."""


def printed(thing: object, width: int = 200, is_terminal: bool = False) -> str:
    out = Terminal(
        file=StringIO(), width=width, force_terminal=is_terminal, markup=False
    )
    out.print(thing)
    return out.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "thing", [HOSTILE, Text(HOSTILE), Text.assemble(("said> ", "bold"), HOSTILE)]
)
def test_hidden_characters_are_shown_and_not_sent(thing: object) -> None:
    assert printed(thing).strip().removeprefix("said> ") == SHOWN


def test_the_styles_of_the_program_are_sent_even_around_hostile_text() -> None:
    said = printed(Text.assemble(("ab", "bold"), "\x1b[2J", ("cd", "red")), 80, True)
    assert said == "\x1b[1mab\x1b[0m⟨U+001B⟩[2J\x1b[31mcd\x1b[0m\n"


def test_a_long_line_with_hidden_characters_loses_none_of_its_words() -> None:
    text = " ".join(f"\x1bword{i}" for i in range(40))
    assert printed(text, 60).split() == [f"⟨U+001B⟩word{i}" for i in range(40)]


def test_a_column_is_as_wide_as_what_it_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = ("\x1b[1m", Quote("\x1b[2m"), ("\x1b[3m", " and"))
    terminal.show([Table(("one", "\x1b[4m", "three"), [cells, cells])])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert [shown.count(f"⟨U+001B⟩[{i}m") for i in range(1, 5)] == [2, 2, 2, 1]


def test_of_a_link_only_the_text_is_sent() -> None:
    link = AnsiDecoder().decode_line("\x1b]8;;http://x\x1b\\here\x1b]8;;\x1b\\")
    assert printed(link, 80, True) == "here\n"


def test_brackets_in_an_id_or_a_description_are_no_markup() -> None:
    end = Said("end", "end", "the end", None, (), (), ())
    talk = Transcript("[/red] [bold]id", "goal", "1 turn", "intent", [], end, ())
    assert "[/red] [bold]id" in printed(terminal.transcript(talk))
    bar = progress_bar()
    bar.add_task("[/x] [red]job", total=1)
    assert "[/x] [red]job" in printed(bar)


def guarded(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What is printed from now on."""
    out = StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    terminal.guard_streams()
    return out


def test_what_libraries_print_is_shown_and_the_bars_of_downloads_still_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = guarded(monkeypatch)
    print(HOSTILE.replace("\x07", ""))
    assert streams.getvalue() == SHOWN + "\n"
    streams.truncate(streams.seek(0))
    bars = ["\r50%|#####     | a\x1b[2J", "\n", "\x1b[A\x1b[A", "x\x1b[A", "\x1b[Ax"]
    sys.stderr.writelines(bars)
    assert streams.getvalue() == (
        "\r50%|#####     | a⟨U+001B⟩[2J\n\x1b[A\x1b[Ax⟨U+001B⟩[A⟨U+001B⟩[Ax"
    )


class Screen(StringIO):
    """A terminal that keeps what it is sent."""

    def isatty(self) -> bool:
        return True


def test_a_progress_bar_moves_the_cursor_and_what_is_printed_meanwhile_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Screen()
    monkeypatch.setenv("TERM", "xterm")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, screen)
    terminal.guard_streams()
    monkeypatch.setattr(terminal, "console", terminal.open_terminal(stderr=True))
    with progress_bar() as bar:
        job = bar.add_task("reading", total=2)
        bar.advance(job)
        bar.refresh()
        print("5 dollars\r\x1b]0;title\x1b[8mnot\x1b[0m 9 dollars", file=sys.stderr)
    with terminal.console.status("loading"):
        print("\x1b[2J", file=sys.stderr)
    shown = screen.getvalue()
    # The text is all there, and moves nothing; only the bar does.
    hidden = "⟨U+001B⟩]0;title⟨U+001B⟩[8mnot⟨U+001B⟩[0m 9 dollars\n"
    assert f"5 dollars\n{hidden}" in shown and "⟨U+001B⟩[2J\n" in shown
    assert "\x1b[2K" in shown and "⟨U+001B⟩[2K" not in shown


def test_the_rate_is_that_of_all_batches_however_long_each_takes() -> None:
    bar = progress_bar()
    now = [0.0]
    bar.get_time = lambda: now[0]
    job = bar.add_task("scoring", total=104)
    for size in (32, 32, 32, 8):
        now[0] += 20.0
        bar.advance(job, size)
    # From the first batch on: 72 in 60 seconds; the last one alone: 8 in 20.
    assert bar.tasks[job].speed == pytest.approx(1.2)


def test_a_stream_that_was_closed_before_the_program_began_stays_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", StringIO())
    terminal.guard_streams()
    assert sys.stderr is None
    assert sys.stdout.encoding == StringIO().encoding


@pytest.mark.parametrize("error", ["InputError", "ModelError", "OSError"])
def test_an_error_that_quotes_hostile_text_shows_it(
    monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    streams = guarded(monkeypatch)
    kinds = {"InputError": cli.InputError, "ModelError": cli.ModelError}

    def fail(arguments: object) -> None:
        raise kinds.get(error, OSError)(f"{HOSTILE} is [red]wrong[/]")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert f"{SHOWN} is [red]wrong[/]\n" in streams.getvalue()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["import", "--out", "x", f"--{HOSTILE}"], 2),
        (["show", "a", f"{HOSTILE}.jsonl"], 2),
        (["--config", "options.toml", "import", "--help"], 0),
    ],
)
def test_what_the_command_line_quotes_in_errors_and_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    name = "\u202e" + HOSTILE  # help cuts long values
    Path("options.toml").write_text(f"out = {json.dumps(name)}", encoding="utf-8")
    streams = guarded(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["userlm", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    assert "⟨U+202E⟩" in streams.getvalue()
    assert not {"\x1b", "\x9b", "\u202e"} & set(streams.getvalue())

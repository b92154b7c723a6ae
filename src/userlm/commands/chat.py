"""`userlm chat`: talk to a simulated user, or play the user and talk to an assistant."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from userlm import loading
from userlm.assistants import ModelAssistant
from userlm.bots import Bot
from userlm.commands.options import (
    EMBEDDED_USER,
    LocalModels,
    User,
    check,
    option,
    seed_option,
)
from userlm.commands.steps import Results
from userlm.data.intents import complete_intent
from userlm.journal import append
from userlm.json_files import dumps, naming
from userlm.rows import to_record
from userlm.show.formats import plural
from userlm.show.terminal import console, show_turn
from userlm.simulate import answer, respond
from userlm.terminal_input import is_terminal, read_text
from userlm.text import INTENT_PREFIX, has_words
from userlm.thought import SpeechOnly
from userlm.types import (
    Conversation,
    InputError,
    ModelError,
    Role,
    Speaker,
    without_outcome,
)
from userlm.users import PromptedUser, TrainedUser

EXAMPLE_INTENT = INTENT_PREFIX + "plan a trip to Rome."
SAVE_FILE = "chat.jsonl"

COMMANDS = {
    "/again": "Sample the other side's last turn, or its end, again.",
    "/intent TEXT": "Begin a new conversation with this intent. Without TEXT: show the intent.",
    "/save FILE": f"Save the conversation when you leave it, in {SAVE_FILE} by default.",
    "/info": "Show details of the other side's last turn: P(end), drafts, tokens.",
    "/quit": "Leave. So do an empty line, Ctrl-D and Ctrl-C.",
    "//TEXT": "Say a text that begins with one slash.",
}


@dataclass(frozen=True, slots=True)
class Chat:
    """Play the assistant and talk to a simulated user, or play the user and talk to an assistant.

    Commands begin with a slash: /help lists them, and none is sent to a model. /again samples the
    last turn of the other side again, /intent TEXT begins a new conversation, and /quit or an empty
    line leaves. A paste is one text, and Enter sends it; what is typed while the other side writes
    is discarded.

    $ userlm chat --intent "plan a trip to Naples."

    $ userlm chat --role user --assistant openai:gpt-4o-mini
    """

    user: User = User(EMBEDDED_USER)
    assistant: str | None = option(
        None,
        "The assistant that answers you, with --role user; default: assistant-small, or "
        "assistant-tiny if it is not here.",
    )
    role: Literal["assistant", "user"] = option("assistant", "Your role.")
    intent: str | None = option(
        None,
        "What the user wants, in one sentence. A goal alone, such as 'plan a trip', is put after "
        "the opening words of an intent.",
    )
    save: Path | None = option(None, "Append the conversation to this .jsonl file.")
    max_turns: int = option(20, "Maximum number of user turns.", min=1)
    seed: int = seed_option()
    models: LocalModels = LocalModels()


def chat(options: Chat) -> Results:
    """Hold a conversation in the terminal; return its record. Raises `ModelError`, once it is
    saved, if the model could not answer."""
    check(options)
    _check_sides(options)
    if options.save:
        _check_file(options.save)
    with console.status("loading ..."):
        other, name = _other_side(options)
    you = _You(options, other, name)
    _stop_as_at_ctrl_c()
    with suppress(AttributeError):  # tests replace stdin
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        you.hold()
    finally:  # whatever ends it
        you.keep()
    if you.talk.stop == "error":
        raise ModelError(you.why)
    return _record(you.talk)


def _other_side(options: Chat) -> tuple[Speaker, str]:
    """Return who talks to you, and its address."""
    if options.role == "user":
        address = options.assistant or loading.small_or_tiny("assistant")
        local = options.models.settings
        return loading.assistant(address, seed=options.seed, local=local), address
    user = options.user.with_embedded_defaults()
    return user.load(options.seed, options.models), user.user


def _check_sides(options: Chat) -> None:
    user = options.user
    if options.role == "user" and user != User(user.user):
        raise InputError(
            "--temperature, --top-p, --guard, --end-threshold, --tokenizer and --prompt are for a "
            "simulated user; here you are the user"
        )
    if (
        options.role == "assistant"
        and user.parsed.is_prompted
        and options.intent is None
    ):
        raise InputError("a prompted user needs an intent; give --intent")


def _check_file(path: Path) -> None:
    """Raise an error if a conversation cannot be saved in this file."""
    if path.suffix != ".jsonl":
        raise InputError(
            f"{path}: conversations are saved as lines of a file; give one that ends in .jsonl"
        )
    if path.is_symlink():  # in a folder of somebody else it may lead anywhere
        raise InputError(f"{path} is a link, which is not followed; give another file")
    path.open("a").close()


def _stop_as_at_ctrl_c() -> None:
    """Let a terminal that is closed, and SIGTERM, end the chat as Ctrl-C does."""
    with suppress(AttributeError, ValueError):  # not on Windows, nor in other threads
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)


def _line_break(path: Path) -> str:
    """Return the line break that the last line of a file lacks."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        return "" if file.read() in (b"", b"\n") else "\n"


def _record(conversation: Conversation) -> Results:
    now = datetime.now(UTC)
    return to_record(replace(conversation, id=f"chat-{now:%Y%m%dT%H%M%S.%f}"))


def _with_seed(speaker: Speaker, seed: int) -> Speaker:
    """Return a model with another seed; others, such as a script or a bot, as they are."""
    if isinstance(speaker, TrainedUser | PromptedUser | ModelAssistant):
        return replace(speaker, seed=seed)
    return speaker


class _You:
    """A person in the terminal, in one role of a conversation, with a speaker in the other."""

    def __init__(self, options: Chat, other: Speaker, name: str) -> None:
        self.role: Role = options.role
        self.other = other
        self.name = name
        self.max_turns = options.max_turns
        self.seed = options.seed
        self.file = options.save
        form = options.user.parsed.form
        self.has_profile = form == "profile"
        self.is_trained = form == "trained" and self.role == "assistant"
        self.samples = 0
        self.begun = 0
        self.why = ""
        intent = options.intent
        is_embedded = self.role == "assistant" and options.user.user == EMBEDDED_USER
        if intent is None and is_embedded:
            intent = EXAMPLE_INTENT  # without an intent the user talks about anything
        self.talk = self._begin(intent)

    def hold(self) -> None:
        """Take turns until you leave."""
        self._greet()
        leaves = False
        while not leaves:
            if self.talk.stop or self.talk.next_role == self.role:
                leaves = self._take_line()
            else:
                self._hear()
        self._leave()

    def keep(self) -> None:
        """Save the conversation if it is to be saved, and say so. If that fails, it is shown as the
        line that it would be: nothing else has it."""
        if not self.talk.turns:
            return
        turns = plural(len(self.talk.turns), "turn")
        if self.file is None:
            _note(f"not saved ({turns}); --save FILE or /save does that")
            return
        record = dumps(_record(self.talk))
        try:
            line = _line_break(self.file) + record + "\n"
            with naming(self.file), self.file.open("ab", buffering=0) as file:
                append(file, line.encode())
        except OSError:
            console.print(record, markup=False, highlight=False, soft_wrap=True)
            raise
        _note(f"saved in {self.file} ({turns})")

    # --- conversations ----------------------------------------------------------------------------

    def _begin(self, intent: str | None) -> Conversation:
        """Return a new conversation. Its id is new, too: bots have a session for each."""
        self.begun += 1
        self.why = ""
        if intent and not self.has_profile:
            whole, note = complete_intent(intent)
            if self.is_trained and whole == intent and note:
                _note(note)
            intent = whole
        return Conversation(self._id(), intent=intent)

    def _id(self) -> str:
        number = f"-{self.begun}" if self.begun > 1 else ""
        return f"chat-{self.seed}{number}"

    def _greet(self) -> None:
        intent = self.talk.intent
        you, it = (self.role, "bold"), (self.name, "bold")
        console.print(
            Text.assemble("You are the ", you, "; the other side is ", it, ".")
        )
        if self.role == "user" and intent:
            console.print(f"Your intent, which the assistant does not see: {intent}")
        elif self.role == "assistant":
            console.print(
                f"The user's intent: {intent or 'none; /intent TEXT gives one'}"
            )
        _note("/help shows the commands. An empty line or /quit leaves.\n")

    def _leave(self) -> None:
        """Leave the conversation: only a user ends it, an assistant leaves it unfinished."""
        if self.talk.stop:
            return
        if self.role == "user":
            self.talk = self.talk.close("end")
        self._say_why("you")

    def _say_why(self, who: str) -> None:
        """Say why the conversation stopped, and who stopped it."""
        reasons = {
            "": "left the conversation",
            "end": "ended the conversation",
            "max_turns": f"reached the limit of {plural(self.max_turns, 'turn')}",
            "context": "has no room left in the model's context length",
            "guard": "wrote no draft that passes the guard",
            "error": f"could not answer: {self.talk.meta.get('error')}",
        }
        stop = self.talk.stop or ""
        self.why = f"{who} {reasons.get(stop, stop)}"
        _note(self.why)

    # --- turns ------------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Let the other side take a turn."""
        before = self.talk
        take = answer if self.role == "user" else respond
        with console.status(f"{before.next_role} ..."):
            self.talk = take(self.other, before)
        if len(self.talk.turns) > len(before.turns):
            show_turn(self.talk.turns[-1])
        if self.talk.stop:
            self._say_why(f"the {before.next_role}")
        self._limit()

    def _limit(self) -> None:
        """Stop the conversation if the user has had all turns, and each of them an answer."""
        talk = self.talk
        is_full = talk.next_role == "user" and len(talk.user_turns) >= self.max_turns
        if is_full and not talk.stop:
            self.talk = talk.close("max_turns")
            self._say_why("you" if self.role == "user" else "the user")

    def _take_line(self) -> bool:
        """Take a line that you type, a text or a command; return whether you leave."""
        is_typed = is_terminal()
        if self.talk.stop and is_typed:
            _note("/again, /intent TEXT, or an empty line to leave")
        try:
            is_late = bool(self.talk.turns)
            line = read_text(f"{self.role} (you)> ", is_late).strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return True
        if not is_typed:
            console.print(line)
        is_pasted = "\n" in line
        if line.startswith("/") and not (is_pasted or line.startswith("//")):
            return self._obey(*line.partition(" ")[::2])
        if not has_words(line):
            return True
        if self.talk.stop:
            return not is_typed  # a pipe may never end
        self.talk = self.talk.say(line if is_pasted else line.removeprefix("/"))
        self._limit()
        return False

    # --- commands ---------------------------------------------------------------------------------

    def _obey(self, command: str, rest: str) -> bool:
        """Do what a command says; return whether you leave."""
        match command:
            case "/quit":
                return True
            case "/help":
                _show_commands()
            case "/again":
                self._again()
            case "/intent":
                self._change_intent(rest.strip())
            case "/save":
                self._save_in(rest.strip() or SAVE_FILE)
            case "/info":
                self._inform()
            case _:
                _note(f"{command} is no command, so nothing was sent; see /help")
        return False

    def _again(self) -> None:
        """Take back the last turn of the other side, or its end, so that it takes another."""
        talk, turns = self.talk, self.talk.turns
        if turns and turns[-1].role != self.role:
            turns = turns[:-1]
        elif not talk.stop:
            _note("the other side has not said anything yet")
            return
        bot = self.other.speaker if isinstance(self.other, SpeechOnly) else self.other
        if isinstance(bot, Bot):  # it may remember what was said, also before it failed
            self.begun += 1
            talk = replace(talk, id=self._id())
            _note("a new session, in case the bot keeps state")
        meta = without_outcome(talk.meta)
        self.talk = replace(talk, turns=turns, stop=None, ended=False, meta=meta)
        self.samples += 1
        self.other = _with_seed(self.other, self.seed + self.samples)
        self._limit()

    def _change_intent(self, intent: str) -> None:
        """Begin a new conversation: what was said so far was said with another intent."""
        if not intent:
            _note(self.talk.intent or "there is no intent; /intent TEXT gives one")
            return
        if self.talk.turns:
            self._leave()
            self.keep()
            console.print()
        self.talk = self._begin(intent)
        self._greet()

    def _save_in(self, name: str) -> None:
        try:
            path = Path(name).expanduser()
            _check_file(path)
        except InputError as error:
            _note(str(error))
            return
        except OSError as error:
            _note(f"{name}: {error.strerror}")
            return
        except (RuntimeError, ValueError):  # no home folder; a null byte
            _note(f"{name}: there is no such place; write the full path")
            return
        self.file = path
        _note(f"will be saved in {path} when you leave the conversation")

    def _inform(self) -> None:
        """Show the details of the other side's last turn, or of its end without a text."""
        theirs = [turn.meta for turn in self.talk.turns if turn.role != self.role]
        known = self.talk.meta.get("end_meta") or (theirs[-1] if theirs else {})
        _note(dumps(known) if known else "there are no details of this turn")


def _show_commands() -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for command, what in COMMANDS.items():
        grid.add_row(Text(command, "bold"), what)
    console.print(grid)


def _note(text: str) -> None:
    console.print(text, style="dim")

"""`userlm chat`: talk to a simulated user, or play the user and talk to an assistant."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.text import Text

from userlm import loading
from userlm.commands.options import (
    EMBEDDED_USER,
    LocalModels,
    User,
    check,
    option,
    seed_option,
)
from userlm.commands.steps import Results
from userlm.json_files import dumps
from userlm.rows import to_record
from userlm.show.terminal import console, show_turn
from userlm.simulate import converse
from userlm.text import INTENT_PREFIX, has_words
from userlm.types import Conversation, InputError, ModelError, Speaker
from userlm.users import Human

EXAMPLE_INTENT = INTENT_PREFIX + "plan a trip to Rome."


@dataclass(frozen=True, slots=True)
class Chat:
    """Play the assistant and talk to a simulated user, or play the user and talk to an assistant.

    An empty line ends the conversation; /info shows details of the last turn: P(end), drafts,
    tokens.

    $ userlm chat --intent "You are a user chatting with an assistant to plan a trip."

    $ userlm chat --role user --assistant openai:gpt-4o-mini
    """

    user: User = User(EMBEDDED_USER)
    assistant: str | None = option(
        None,
        "The assistant that answers you, with --role user; default: assistant-small, or "
        "assistant-tiny if it is not here.",
    )
    role: Literal["assistant", "user"] = option("assistant", "Your role.")
    intent: str | None = option(None, "What the user wants, in one sentence.")
    save: Path | None = option(None, "Append the conversation to this .jsonl file.")
    max_turns: int = option(20, "Maximum number of user turns.", min=1)
    seed: int = seed_option()
    models: LocalModels = LocalModels()


def chat(options: Chat) -> Results:
    """Hold a conversation in the terminal; return its record. Raises `ModelError`, once it is
    saved, if the model could not answer."""
    check(options)
    _check_sides(options)
    role = options.role
    intent = options.intent
    seed = options.seed
    max_turns = options.max_turns
    save = options.save
    you = _Keyboard(role)
    if role == "user":
        user_side: Speaker = Human(you.ask)
        assistant_side = loading.assistant(
            options.assistant or loading.small_or_tiny("assistant"),
            seed=seed,
            local=options.models.settings,
        )
    else:
        user = options.user
        if user.user == EMBEDDED_USER and intent is None:
            intent = EXAMPLE_INTENT  # without an intent the user talks about anything
            console.print(f"{intent} (give another with --intent)", style="dim")
        user_side = user.with_embedded_defaults().load(seed, options.models)
        assistant_side = Human(you.ask)
    # Fails before the conversation.
    saved = save.open("a", encoding="utf-8") if save else None
    said = you.seen = Conversation(f"chat-{seed}", intent=intent)
    _stop_as_at_ctrl_c()
    try:
        said = converse(user_side, assistant_side, said, max_turns, until=you.watch)
    finally:  # whatever ends it
        said = said if said.stop else you.seen
        record = _record(said)
        if save and saved:
            with saved:
                saved.write(_line_break(save) + dumps(record) + "\n")
    _say_why_it_stopped(said, you, max_turns)
    return record


def _line_break(path: Path) -> str:
    """Return the line break that the last line of a file lacks."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        return "" if file.read() in (b"", b"\n") else "\n"


def _record(conversation: Conversation) -> Results:
    now = datetime.now(UTC)
    return to_record(replace(conversation, id=f"chat-{now:%Y%m%dT%H%M%S.%f}"))


def _stop_as_at_ctrl_c() -> None:
    """Let a terminal that is closed, and SIGTERM, end the chat as Ctrl-C does."""
    with suppress(AttributeError, ValueError):  # not on Windows, nor in other threads
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)


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
    if options.save and options.save.suffix != ".jsonl":
        raise InputError(
            f"--save {options.save}: conversations are saved as lines of a .jsonl file"
        )


def _say_why_it_stopped(ended: Conversation, you: _Keyboard, max_turns: int) -> None:
    stopped_by = ended.next_role
    if len(ended.turns) > len(you.seen.turns):
        # The text of a turn that also ends the conversation.
        stopped_by = ended.turns[-1].role
        you.watch(ended)
    reasons = {
        "end": "ended the conversation",
        "max_turns": f"reached the limit of {max_turns} turns",
        "context": "has no room left in the model's context length",
        "guard": "wrote no draft that passes the guard",
    }
    who = "you" if stopped_by == you.role else f"the {stopped_by}"
    if ended.stop == "error":
        raise ModelError(f"{who} could not answer: {ended.meta.get('error')}")
    console.print(f"{who} {reasons.get(ended.stop or '', ended.stop)}", style="dim")


class _Keyboard:
    """A person who plays one role in the terminal, and the conversation shown so far."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.seen = Conversation()

    def watch(self, conversation: Conversation) -> str | None:
        """Show what the other side just said. Returns `None`, so the conversation goes on."""
        self.seen = conversation
        turn = conversation.turns[-1]
        if turn.role != self.role:
            show_turn(turn)
        return None

    def ask(self, conversation: Conversation) -> str | None:
        """Return a line that the person types; `None` ends the conversation."""
        while True:
            try:
                text = console.input(Text(f"{self.role} (you)> ", style="bold")).strip()
            except (EOFError, KeyboardInterrupt):
                return None
            if text != "/info":
                return text if has_words(text) else None
            known = dict(self.seen.turns[-1].meta) if self.seen.turns else {}
            console.print(
                dumps(known) if known else "there are no details of this turn",
                style="dim",
            )

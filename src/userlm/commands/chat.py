"""`userlm chat`: talk to a simulated user, or play the user and talk to an assistant."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from rich.text import Text
from typer import Option

from userlm import address
from userlm.commands.options import (
    EMBEDDED_USER,
    EndThreshold,
    GuardSpec,
    Results,
    Seed,
    Temperature,
    UserOptions,
    UserTokenizer,
)
from userlm.rows import dumps, to_record
from userlm.simulate import converse
from userlm.terminal import console, show_turn
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, InputError, Speaker
from userlm.users import Human

EXAMPLE_INTENT = INTENT_PREFIX + "plan a trip to Rome."
EMBEDDED_TEMPERATURE = 0.6  # a model this small rambles at temperature 1


def chat(
    user: Annotated[
        str,
        Option(help="The user that talks to you: trained:MODEL, prompted:MODEL, ..."),
    ] = EMBEDDED_USER,
    assistant: Annotated[
        str, Option(help="The assistant that answers you, with --role user.")
    ] = "assistant-tiny",
    role: Annotated[str, Option(help="Your role: assistant or user.")] = "assistant",
    intent: Annotated[
        str | None, Option(help="What the user wants, in one sentence.")
    ] = None,
    save: Annotated[
        Path | None, Option(help="Append the conversation to this .jsonl file.")
    ] = None,
    max_turns: Annotated[int, Option(help="Maximum number of user turns.", min=1)] = 20,
    temperature: Temperature = None,
    end_threshold: EndThreshold = None,
    guard: GuardSpec = None,
    tokenizer: UserTokenizer = None,
    seed: Seed = 0,
) -> Results:
    """Play the assistant and talk to a simulated user, or play the user and talk to an assistant.

    An empty line ends the conversation; /info shows details of the last turn: P(end), drafts,
    tokens.
    """
    user_options = UserOptions(
        user, temperature, end_threshold=end_threshold, guard=guard, tokenizer=tokenizer
    )
    _check(role, user_options, intent, save)
    you = _Keyboard(role)
    if role == "user":
        user_side: Speaker = Human(you.ask)
        assistant_side = address.assistant(assistant, seed=seed)
    else:
        if user == EMBEDDED_USER:
            user_options, intent = _embedded_defaults(user_options, intent)
        user_side = user_options.load(seed)
        assistant_side = Human(you.ask)
    # Fails before the conversation.
    saved = save.open("a", encoding="utf-8") if save else None
    start = Conversation(f"chat-{seed}", intent=intent)
    ended = converse(user_side, assistant_side, start, max_turns, until=you.watch)
    _say_why_it_stopped(ended, you, max_turns)
    record = to_record(replace(ended, id=f"chat-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"))
    if saved:
        with saved:
            saved.write(dumps(record) + "\n")
    return record


def _check(role: str, user: UserOptions, intent: str | None, save: Path | None) -> None:
    if role not in ("assistant", "user"):
        raise InputError(f"--role {role}: your role is 'assistant' or 'user'")
    if role == "user" and user != UserOptions(user.user):
        raise InputError(
            "--temperature, --guard, --end-threshold and --tokenizer are for a simulated user; "
            "here you are the user"
        )
    if role == "assistant" and user.is_prompted and intent is None:
        raise InputError("a prompted user needs an intent; give --intent")
    if save and save.suffix != ".jsonl":
        raise InputError(
            f"--save {save}: conversations are saved as lines of a .jsonl file"
        )


def _embedded_defaults(
    user: UserOptions, intent: str | None
) -> tuple[UserOptions, str]:
    if intent is None:
        intent = EXAMPLE_INTENT  # without an intent the user talks about anything
        console.print(f"{intent} (give another with --intent)", style="dim")
    if user.temperature is None:
        user = replace(user, temperature=EMBEDDED_TEMPERATURE)
    return user, intent


def _say_why_it_stopped(ended: Conversation, you: _Keyboard, max_turns: int) -> None:
    stopped_by = ended.next_role
    if len(ended.turns) > len(you.seen.turns):
        # The text of a turn that also ends the conversation.
        stopped_by = ended.turns[-1].role
        you.watch(ended)
    reasons = {
        "end": "ended the conversation",
        "error": f"could not answer: {ended.meta.get('error')}",
        "max_turns": f"reached the limit of {max_turns} turns",
        "context": "has no room left in the model's context length",
        "guard": "wrote no draft that passes the guard",
    }
    who = "you" if stopped_by == you.role else f"the {stopped_by}"
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
                return text or None
            known = dict(self.seen.turns[-1].meta) if self.seen.turns else {}
            console.print(
                dumps(known) if known else "there are no details of this turn",
                style="dim",
            )

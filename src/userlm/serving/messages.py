"""From a request to the conversation that it continues."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from operator import itemgetter

from userlm.content import joined, read_parts
from userlm.flip import first_that_fits
from userlm.serving.prompts import is_prompt, quotes_conversation
from userlm.serving.schema import (
    ChatRequest,
    Message,
    RequestError,
    ServerConfig,
    UserOptions,
    too_long,
)
from userlm.text import INTENT_PREFIX, stable_hash
from userlm.thought import split_thought
from userlm.types import OTHER_ROLE, Conversation, Role, Speaker, Turn
from userlm.users import PromptedUser, TrainedUser

MAX_INTENT_WORDS = 60
"""An intent is one sentence of about 30 words; user models are not trained on much longer ones."""

MAX_GREETING = 400
"""Characters, about 70 words, of a first message of the assistant to a user without an intent.
Longer ones are prompts."""

MAX_TEXT = 1_000_000
"""Characters of all messages of a request; tokenizing them takes a second."""

MAX_CHARACTERS_PER_TOKEN = 16
"""Languages and code have one to six. A longer text does not fit, so it need not be tokenized."""

SAMPLING_FIELDS = (
    "seed",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
)
"""Fields without effect on a user without a model, such as a replay."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A request for the next user turn: the conversation before it, and how to sample it.

    Attributes:
        request: the `settings` of the request.
        roles: `log` or `swapped`.
        seed: the seed of the first choice; those of the others are derived from it.
        max_tokens: `None` for the user's default.
        ignored: fields without effect.
        notes: sentences on what was changed in the request.
    """

    request: ChatRequest
    conversation: Conversation
    roles: str
    seed: int
    max_tokens: int | None
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def turn_request(
    request: ChatRequest, user: Speaker, config: ServerConfig
) -> TurnRequest:
    """Return the conversation whose next user turn is wanted, and how to sample that.

    Raises:
        RequestError: the message names the field and says what to do.
    """
    max_choices = config.batch + config.queue
    if request.n and request.n > max_choices:
        raise RequestError(
            400, f"n is {request.n}; this server allows at most {max_choices}", "n"
        )
    options = request.userlm or UserOptions()
    roles = find_roles(request.messages, options.roles or config.roles)
    system, turns, notes = read_messages(request.messages, roles, config.stop_phrase)
    check_length(system, turns)
    if options.intent is None:
        _check_no_prompt(request.messages, system, turns, config.intent)
    intent, intent_notes = find_intent(options.intent, system, config.intent)
    if isinstance(user, PromptedUser) and intent is None:
        message = "this user needs an intent: send userlm.intent, or a system message"
        raise RequestError(400, message, "messages")

    ignored = [name for name, value in (request.model_extra or {}).items() if value]
    if isinstance(user, TrainedUser | PromptedUser):
        notes += intent_notes
    else:
        ignored += [name for name in SAMPLING_FIELDS if getattr(request, name)]
    max_tokens = request.max_completion_tokens or request.max_tokens
    if isinstance(user, TrainedUser):
        notes += _long_intent(user, intent)
        limit = max(user.sampling.max_tokens, user.context_length // 4)
        if max_tokens and max_tokens > limit:
            max_tokens = limit
            notes.append(
                f"max_tokens is {limit}: more would leave too little of the model's context length "
                f"({user.context_length} tokens) for the conversation"
            )
    seed = request.seed
    if seed is None:
        seed = config.seed
    if seed is None:
        seed = secrets.randbits(32)
    said = chain.from_iterable((turn.role, turn.text) for turn in turns)
    id = options.id or f"{stable_hash(intent, *said):016x}"
    if isinstance(user, TrainedUser):
        max_characters = MAX_CHARACTERS_PER_TOKEN * user.context_length
        turns, length_notes = drop_oldest(
            intent, turns, max_characters, user.template.max_answer_tokens
        )
        notes += length_notes
    return TurnRequest(
        request.settings(),
        Conversation(id, tuple(turns), intent),
        roles,
        seed,
        max_tokens,
        tuple(sorted(ignored)),
        tuple(notes),
    )


def _long_intent(user: TrainedUser, intent: str | None) -> list[str]:
    """Return a note if the intent is much longer than those that the model was trained on."""
    count = len((intent or "").split())
    has_profile = user.template.system_text != "{}"
    if has_profile or count <= MAX_INTENT_WORDS:
        return []
    return [
        f"the intent has {count} words, and this model was trained on one sentence: "
        f"{INTENT_PREFIX!r} and what is wanted; send such a sentence in the system message, or as "
        '"userlm": {"intent": ...}'
    ]


# --- roles and turns ------------------------------------------------------------------------------


def find_roles(messages: Sequence[Message], roles: str) -> str:
    """Return `log` or `swapped`. The last message decides, since it is always the assistant's.

    Raises:
        RequestError: if the last message does not fit `roles`.
    """
    spoken = [i for i, message in enumerate(messages) if message.role in OTHER_ROLE]
    if not spoken:
        return "log" if roles == "auto" else roles
    last = spoken[-1]
    role = messages[last].role
    found = "swapped" if role == "user" else "log"
    if roles not in ("auto", found):
        raise RequestError(
            400,
            f"messages[{last}], the last, has the role {role!r}: in the form {roles!r} that is the "
            "simulated user; end with what the assistant answered, or set userlm.roles to "
            f"{found!r}",
            f"messages[{last}].role",
        )
    return found


def read_messages(
    messages: Sequence[Message], roles: str, stop_phrase: str | None
) -> tuple[str, list[Turn], list[str]]:
    """Return the system text, the turns, and notes on changed messages.

    Raises:
        RequestError: if the user ended the conversation before its last message.
    """
    system: list[str] = []
    said: list[tuple[Role, str]] = []
    notes: list[str] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        text, text_notes = _text(message, where)
        notes += text_notes
        if message.role == "system" or message.role == "developer":
            system.append(text)
            continue
        role: Role = OTHER_ROLE[message.role] if roles == "swapped" else message.role
        if role == "user":
            _check_goes_on(text, where, stop_phrase)
        else:
            text, thought = split_thought(text)
            if thought:
                notes.append(f"{where}: what the assistant thought was left out")
        if role == "assistant" and not text.strip():
            notes.append(f"{where} is empty: the assistant's answer has no text")
        if said and said[-1][0] == role:
            notes.append(
                f"{where} was joined with the message before it: both are from the {role}"
            )
        said.append((role, text))
    groups = groupby(said, key=itemgetter(0))
    turns = [Turn(role, _one_text(text for _, text in group)) for role, group in groups]
    return "\n\n".join(filter(str.strip, system)), turns, notes


def _one_text(texts: Iterable[str]) -> str:
    """Return the text of messages in a row, all copied once however many they are."""
    first, *others = texts
    if not others:
        return first
    return "\n\n".join(filter(str.strip, (first, *others))).strip()


def _text(message: Message, where: str) -> tuple[str, list[str]]:
    """Return what was said in a message, and notes on parts that are left out."""
    parts = read_parts(message.content)
    left_out = sum(part.kind != "speech" for part in parts)
    notes = []
    if left_out:
        notes.append(f"{where}: parts that are not text were left out ({left_out})")
    text = joined(parts, "speech")
    if message.role in OTHER_ROLE:
        return text or message.refusal or "", notes
    if message.content is None:
        raise RequestError(
            400, f"{where}.content is None; it should be text", f"{where}.content"
        )
    return text, notes


def _check_goes_on(text: str, where: str, stop_phrase: str | None) -> None:
    """Raise `RequestError` if the user ended the conversation with this turn."""
    last_line = text.strip().rpartition("\n")[2].strip()
    if last_line and last_line != (stop_phrase or "").strip():
        return
    raise RequestError(
        400,
        f"{where}: the user ended the conversation here, or said nothing (see userlm.stop); stop "
        f"there, or start the server with --guard no-end for a user that never ends it",
        f"{where}.content",
        "conversation_over",
    )


def _check_no_prompt(
    messages: Sequence[Message],
    system: str,
    turns: Sequence[Turn],
    default_intent: str | None,
) -> None:
    """Raise `RequestError` for a prompt in place of a conversation. Only a request with a single
    turn can be one: in a list of turns, an answer may quote what it likes."""
    if len(turns) > 1:
        return
    text = turns[0].text if turns else ""
    is_long = len(text) > MAX_GREETING
    told = [i for i, message in enumerate(messages) if message.role not in OTHER_ROLE]
    said = [i for i, message in enumerate(messages) if message.role in OTHER_ROLE]
    if is_prompt(text):
        fault = "quotes a conversation or tells a model to play the user"
        raise _no_turn(said[-1], fault)
    if is_long and not (system or default_intent):
        raise _no_turn(said[-1], "is long and comes without an intent")
    if quotes_conversation(system):
        raise _no_turn(told[-1], "quotes a conversation")


def _no_turn(i: int, fault: str) -> RequestError:
    return RequestError(
        400,
        f"messages[{i}] {fault}, and a simulated user would take it for its intent or for what the "
        "assistant said; send the intent as the system message and each turn as a message of its "
        "own, or userlm.intent if the messages are right",
        f"messages[{i}].content",
        "quoted_conversation",
    )


# --- length ---------------------------------------------------------------------------------------


def check_length(system: str, turns: Sequence[Turn]) -> None:
    """Raise `RequestError` for a text that no model can read."""
    length = len(system) + _characters(turns)
    if length > MAX_TEXT:
        raise RequestError(
            413,
            f"the messages have {length:,} characters; shorten them to at most {MAX_TEXT:,}",
            "messages",
            "context_length_exceeded",
        )


def drop_oldest(
    intent: str | None,
    turns: Sequence[Turn],
    max_characters: int,
    max_answer_tokens: int | None = None,
) -> tuple[list[Turn], list[str]]:
    """Return the latest turns in at most `max_characters`, and notes. What fits the context length
    is found later, in tokens; this only spares the tokenizer what cannot fit. An answer counts as
    no longer than the model reads it, see `Template.max_answer_tokens`.

    As in `flip.truncate`, the oldest exchanges are dropped first, and of a last answer that is too
    long alone, the middle.

    Raises:
        RequestError: if the intent alone is too long.
    """
    if len(intent or "") > max_characters:
        raise too_long()
    max_answer = MAX_CHARACTERS_PER_TOKEN * (max_answer_tokens or max_characters)
    lengths = [
        min(len(turn.text), max_answer) if turn.role == "assistant" else len(turn.text)
        for turn in turns
    ]
    first = first_that_fits(len(turns), lengths.__getitem__, max_characters)
    kept = list(turns[first:])
    if turns and not kept:
        last = turns[-1]
        half = max_characters // 2
        kept = [replace(last, text=last.text[:half] + last.text[-half:])]
    left_out = _characters(turns) - _characters(kept)
    if not left_out:
        return kept, []
    return kept, [
        f"{left_out} characters of the conversation cannot fit the model's context length; the "
        "oldest were left out"
    ]


def _characters(turns: Sequence[Turn]) -> int:
    return sum(len(turn.text) for turn in turns)


# --- the intent -----------------------------------------------------------------------------------

_INTENT = re.compile(
    r"\s+".join(map(re.escape, INTENT_PREFIX.split()))
    # A line that starts in lower case continues the sentence.
    + r"\s(?:[^\n]|\n(?=[ \t]*[a-z]))+?"
    # The sentence ends at a full stop (not that of "e.g."), before a new paragraph or list item, or
    # at the end of the text.
    r"(?:(?<!\b\w)[.!?](?=\s+[^a-z\s]|\s*\Z|[\"'”’)\]])|(?=[\"”]?\n[ \t]*[^a-z\t ])|\Z)"
)


def find_intent(
    given: str | None, system: str, default: str | None
) -> tuple[str | None, list[str]]:
    """Return the intent, and notes.

    The intent is `given` (empty for no intent), else the sentence of the system text that starts
    like an intent, else the whole system text, else `default`.
    """
    if given is not None:
        note = "the system message was not used: userlm.intent has the intent"
        return given.strip() or None, [note] if system else []
    if not system:
        note = "no intent was given, so the user has no particular goal"
        return default, [] if default else [note]
    # With a newline at the end, an intent without a full stop would not be found.
    system = system.strip()
    sentences = [" ".join(match[0].split()) for match in _INTENT.finditer(system)]
    if not sentences:
        return system, []
    count = len(set(sentences))
    notes = []
    if count > 1:
        notes.append(f"the system message has {count} intents; the first was used")
    elif sentences[0] != " ".join(system.split()):
        notes.append(
            "only the sentence with the intent was used from the system message"
        )
    return sentences[0], notes

"""From a request to the conversation that it continues."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from operator import itemgetter

from userlm.content import joined, read_parts
from userlm.data.intents import complete_intent
from userlm.flip import first_that_fits
from userlm.serving.endings import find_stop_phrase
from userlm.serving.forms import Form, form_of
from userlm.serving.intents import find_description, find_intent
from userlm.serving.prompts import (
    asks_to_begin,
    harness_of,
    is_prompt,
    quotes_conversation,
)
from userlm.serving.schema import (
    ChatRequest,
    Message,
    RequestError,
    ServerConfig,
    UserOptions,
    too_long,
)
from userlm.text import stable_hash
from userlm.thought import split_thought
from userlm.types import OTHER_ROLE, Conversation, Role, Speaker, Turn, encodable
from userlm.users import PromptedUser, TrainedUser

TOLD = ("system", "developer")
"""Roles of what the user is told and nobody says."""

MAX_GREETING = 400
"""Characters, about 70 words, of a first message of the assistant to a user without an intent.
Longer ones are prompts."""

MAX_TEXT = 1_000_000
"""Characters of all messages of a request; tokenizing them takes a second."""

MAX_NOTES = 100
"""Notes on the messages of a request, which may be thousands."""

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
        stop_phrase: what is said when the user ends the conversation.
        end_says: what is said then if there are neither words nor a stop phrase.
        form: the form of the answer; `None` for plain words.
        description: the text from which the intent is still to be written, see `with_intent`;
            `None` if the conversation has its intent.
    """

    request: ChatRequest
    conversation: Conversation
    roles: str
    seed: int
    max_tokens: int | None
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    stop_phrase: str | None = None
    end_says: str = ""
    form: Form | None = None
    description: str | None = None

    def with_intent(self, intent: str, by: str) -> TurnRequest:
        """Return the request with the intent that was written from its description."""
        return replace(
            self,
            conversation=replace(self.conversation, intent=intent),
            notes=(
                *self.notes,
                f"the intent was written by {by} from the system message",
            ),
            description=None,
        )


def turn_request(
    request: ChatRequest, user: Speaker, config: ServerConfig
) -> TurnRequest:
    """Return the conversation whose next user turn is wanted, and how to sample that.

    Raises:
        RequestError: the message names the field and says what to do.
    """
    _check_choices(request, config)
    options = request.userlm or UserOptions()
    roles = find_roles(request.messages, options.roles or config.roles)
    system, notes = read_system(request.messages)
    if options.intent is None:
        _check_no_prompt(request.messages, system, config.intent)
    form, form_notes = form_of(request, system)
    stop_phrase, end_notes = find_stop_phrase(
        options.stop_phrase, config.stop_phrase, system
    )
    end_says = config.end_says if roles == "swapped" else ""
    turns, turn_notes = read_turns(
        request.messages, roles, (stop_phrase or "", end_says), form
    )
    check_length(system, turns)
    notes = _first_notes([*notes, *form_notes, *end_notes, *turn_notes])
    intent, intent_notes = find_intent(options.intent, system, config.intent)
    described_in = intent
    description = None
    if config.intent_writer:
        description = find_description(options.intent, system)
    if description is not None:
        intent, intent_notes = "", []
    if isinstance(user, PromptedUser) and intent is None:
        message = "this user needs an intent: send userlm.intent, or a system message"
        raise RequestError(400, message, "messages")
    settings, max_tokens, ignored, setting_notes = _settings(request, user, config)
    if request.tools and not (form and form.tool):
        ignored.append("tools")
    if isinstance(user, TrainedUser | PromptedUser):
        notes += intent_notes
    notes += setting_notes
    said = chain.from_iterable((turn.role, turn.text) for turn in turns)
    id = options.id or f"{stable_hash(described_in, *said):016x}"
    if isinstance(user, TrainedUser):
        if intent:
            intent, completed_notes = complete_intent_for(user, intent)
            notes += completed_notes
        max_characters = MAX_CHARACTERS_PER_TOKEN * user.context_length
        turns, length_notes = drop_oldest(
            intent, turns, max_characters, user.template.max_answer_tokens
        )
        notes += length_notes
    return TurnRequest(
        settings,
        Conversation(id, tuple(turns), intent),
        roles,
        _seed(request, config),
        max_tokens,
        tuple(sorted(ignored)),
        tuple(notes),
        stop_phrase,
        end_says,
        form,
        description,
    )


def _check_choices(request: ChatRequest, config: ServerConfig) -> None:
    most = config.batch + config.queue
    if request.n and request.n > most:
        raise RequestError(
            400, f"n is {request.n}; this server allows at most {most}", "n"
        )


def _seed(request: ChatRequest, config: ServerConfig) -> int:
    """Return the seed of the first choice: that of the request, of the server, or a random one."""
    for seed in (request.seed, config.seed):
        if seed is not None:
            return seed
    return secrets.randbits(32)


def _settings(
    request: ChatRequest, user: Speaker, config: ServerConfig
) -> tuple[ChatRequest, int | None, list[str], list[str]]:
    """Return how the turn is sampled, its maximum length in tokens, fields without effect, and
    notes."""
    settings = request.settings()
    ignored = [name for name, value in (request.model_extra or {}).items() if value]
    max_tokens = request.max_completion_tokens or request.max_tokens
    notes: list[str] = []
    if not isinstance(user, TrainedUser | PromptedUser):
        ignored += [name for name in SAMPLING_FIELDS if getattr(request, name)]
        return settings, max_tokens, ignored, notes
    asked = request.temperature
    if config.temperature is not None and asked not in (None, config.temperature):
        settings = settings.model_copy(update={"temperature": config.temperature})
        notes.append(
            f"temperature is {config.temperature:g}, as the server was started with, and not "
            f"{asked:g}"
        )
    if isinstance(user, TrainedUser):
        limit = max(user.sampling.max_tokens, user.context_length // 4)
        if max_tokens and max_tokens > limit:
            max_tokens = limit
            notes.append(
                f"max_tokens is {limit}: more would leave too little of the model's context length "
                f"({user.context_length} tokens) for the conversation"
            )
    return settings, max_tokens, ignored, notes


def complete_intent_for(user: TrainedUser, intent: str) -> tuple[str, list[str]]:
    """Return the intent in the form that the model was trained on if it is surely a goal, and a
    note if it was not in that form."""
    if user.template.has_profile:
        return intent, []
    whole, note = complete_intent(intent)
    if note and whole == intent:
        note += (
            ' in the system message or as "userlm": {"intent": ...}, or start the server with '
            "--intent-by"
        )
    return whole, [note] if note else []


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


def read_system(messages: Sequence[Message]) -> tuple[str, list[str]]:
    """Return the text of all system and developer messages, and notes on what was left out."""
    texts: list[str] = []
    notes: list[str] = []
    for i, message in enumerate(messages):
        if message.role in TOLD:
            text, text_notes = _text(message, f"messages[{i}]")
            texts.append(text)
            notes += text_notes
    # Programs in JavaScript cut an emoji in half.
    return encodable("\n\n".join(filter(str.strip, texts))), notes


def read_turns(
    messages: Sequence[Message],
    roles: str,
    ends: Sequence[str] = (),
    form: Form | None = None,
) -> tuple[list[Turn], list[str]]:
    """Return the turns, and notes on changed messages. A user hears words: calls of tools and their
    results are left out.

    Args:
        ends: texts with which the user ended the conversation.
        form: the form of the user's turns.

    Raises:
        RequestError: if the user ended the conversation before its last message, or if the
            assistant said nothing since.
    """
    said: list[tuple[Role, str]] = []
    notes: list[str] = []
    left_out = 0
    for i, message in enumerate(messages):
        if message.role in TOLD:
            continue
        where = f"messages[{i}]"
        words = _words(message, where, form)
        if words is None:
            left_out += 1
            continue
        text, text_notes = words
        notes += text_notes
        role: Role = "assistant" if message.role == "assistant" else "user"
        role = OTHER_ROLE[role] if roles == "swapped" else role
        if roles == "swapped" and not said and asks_to_begin(text):
            notes.append(f"{where} was left out: it asks for the first turn")
            continue
        if role == "user":
            text = form.read(text) if form else text
            _check_goes_on(text, where, ends)
        else:
            text, thought = split_thought(text)
            if thought:
                notes.append(f"{where}: what the assistant thought was left out")
        if role == "assistant" and not text.strip():
            notes.append(f"{where} is empty: the assistant's answer has no text")
        if said and said[-1][0] == role:
            notes.append(_joined_note(where, role, roles))
        said.append((role, text))
    if left_out:
        notes.append(
            f"calls of tools and their results were left out ({left_out}): a user hears words"
        )
    if left_out and said and said[-1][0] == "user":
        raise _says_nothing(len(messages) - 1)
    groups = groupby(said, key=itemgetter(0))
    turns = [Turn(role, _one_text(text for _, text in group)) for role, group in groups]
    return turns, notes


def _words(
    message: Message, where: str, form: Form | None
) -> tuple[str, list[str]] | None:
    """Return what a message says, with notes; `None` if it only calls a tool or has a result."""
    if message.role not in OTHER_ROLE:
        return None
    for call in message.tool_calls or ():
        if form and form.tool and call.function and call.function.name == form.tool:
            return call.function.arguments, []
    text, notes = _text(message, where)
    if message.tool_calls and not text.strip():
        return None
    return text, notes


def _first_notes(notes: list[str]) -> list[str]:
    """Return the first notes, and how many more there are: many messages may each have one."""
    left_out = len(notes) - MAX_NOTES
    if left_out <= 0:
        return notes
    return [*notes[:MAX_NOTES], f"{left_out:,} more notes on messages are left out"]


def _joined_note(where: str, role: Role, roles: str) -> str:
    joined = f"{where} was joined with the message before it: both are from the {role}"
    if roles == "swapped" and role == "user":
        return (
            f"warning: {joined}, whose role is 'assistant' here; either an answer is missing "
            "between them, or the roles are held the other way (set userlm.roles to 'log')"
        )
    return joined


def _says_nothing(i: int) -> RequestError:
    return RequestError(
        400,
        f"messages[{i}], the last, has no words of the assistant: a user hears no calls of tools "
        "and no results; end with what the assistant says",
        f"messages[{i}]",
    )


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


def _check_goes_on(text: str, where: str, ends: Sequence[str]) -> None:
    """Raise `RequestError` if the user ended the conversation with this turn."""
    last_line = text.strip().rpartition("\n")[2].strip()
    if last_line and last_line not in map(str.strip, ends):
        return
    raise RequestError(
        400,
        f"{where}: the user ended the conversation here, or said nothing (see userlm.stop); stop "
        f"there, or start the server with --guard no-end for a user that never ends it",
        f"{where}.content",
        "conversation_over",
    )


def _check_no_prompt(
    messages: Sequence[Message], system: str, default_intent: str | None
) -> None:
    """Raise `RequestError` for a prompt in place of a conversation. Only a request with a single
    turn can be one: in a list of turns, an answer may quote what it likes."""
    told = [i for i, message in enumerate(messages) if message.role in TOLD]
    said = [i for i, message in enumerate(messages) if message.role in OTHER_ROLE]
    if len({messages[i].role for i in said}) > 1:
        return
    text = "\n\n".join(_text(messages[i], "")[0] for i in said)
    is_long = len(text) > MAX_GREETING
    if is_prompt(text) and not asks_to_begin(text):
        fault = "quotes a conversation or tells a model to play the user"
        raise _no_turn(said[-1], fault, text)
    if is_long and not (system or default_intent):
        raise _no_turn(said[-1], "is long and comes without an intent", text)
    if quotes_conversation(system):
        raise _no_turn(told[-1], "quotes a conversation", system)


def _no_turn(i: int, fault: str, text: str) -> RequestError:
    harness = harness_of(text)
    bridge = "docs/harnesses.md has what serves MLflow, deepeval, ADK, Giskard and Opik"
    if harness:
        bridge = (
            f"for {harness}, use userlm.bridges.{harness.lower()} (docs/harnesses.md)"
        )
    return RequestError(
        400,
        f"messages[{i}] {fault}, and a simulated user would take it for its intent or for what the "
        "assistant said; send the intent as the system message and each turn as a message of its "
        f"own, or userlm.intent if the messages are right; {bridge}",
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

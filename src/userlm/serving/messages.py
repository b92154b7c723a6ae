"""From a request to the conversation that it continues."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from userlm.serving.schema import (
    ChatRequest,
    Message,
    RequestError,
    ServerConfig,
    UserOptions,
)
from userlm.text import INTENT_PREFIX, stable_hash
from userlm.types import OTHER_ROLE, Conversation, Role, Speaker, Turn
from userlm.users import PromptedUser, TrainedUser

MAX_INTENT_WORDS = 60
"""An intent is one sentence of some 30 words; user models are trained on none much longer."""

SAMPLING_FIELDS = (
    "seed",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
)
"""Fields without effect on a user that no model plays."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """The next turn of a user: after which conversation, and how it is sampled.

    Attributes:
        request: `n`, `temperature`, `stop` and the like are read from it.
        roles: `log` or `swapped`.
        seed: of the first choice; the seeds of the others are derived from it.
        max_tokens: `None`: the user's own.
        ignored: fields without effect.
        notes: what was not taken as it came, a sentence each.
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
        RequestError: naming the field, and saying what to do.
    """
    max_choices = config.batch + config.queue
    if request.n and request.n > max_choices:
        raise RequestError(
            400, f"n is {request.n}; this server takes at most {max_choices}", "n"
        )
    options = request.userlm or UserOptions()
    roles = find_roles(request.messages, options.roles or config.roles)
    system, turns, notes = read_messages(request.messages, roles, config.stop_phrase)
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
    return TurnRequest(
        request,
        Conversation(id, tuple(turns), intent),
        roles,
        seed,
        max_tokens,
        tuple(sorted(ignored)),
        tuple(notes),
    )


def _long_intent(user: TrainedUser, intent: str | None) -> list[str]:
    """Return a note on an intent that is far longer than those the model was trained on."""
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
    """Return `log` or `swapped`. The last message tells, as it is always the assistant's.

    Raises:
        RequestError: the last message does not fit `roles`.
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
    """Return the system text, the turns, and notes on messages not taken as they came.

    Raises:
        RequestError: the user ended the conversation before its last message.
    """
    system: list[str] = []
    turns: list[Turn] = []
    notes: list[str] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        text = _text(message, where)
        if message.role == "system" or message.role == "developer":
            system.append(text)
            continue
        role: Role = OTHER_ROLE[message.role] if roles == "swapped" else message.role
        if role == "user":
            _check_goes_on(text, where, stop_phrase)
        elif not text.strip():
            notes.append(f"{where} is empty: the assistant answered nothing")
        if turns and turns[-1].role == role:
            notes.append(
                f"{where} was joined with the message before it: both are of the {role}"
            )
            text = f"{turns.pop().text}\n\n{text}".strip()
        turns.append(Turn(role, text))
    return "\n\n".join(filter(str.strip, system)), turns, notes


def _text(message: Message, where: str) -> str:
    """Return what a message says."""
    if isinstance(message.content, str):
        return message.content
    if message.content is not None:
        return "\n".join(part.text for part in message.content)
    if message.role in OTHER_ROLE:
        return message.refusal or ""
    raise RequestError(
        400, f"{where}.content is None; it should be text", f"{where}.content"
    )


def _check_goes_on(text: str, where: str, stop_phrase: str | None) -> None:
    """Raise `RequestError` if the user ended the conversation with this turn."""
    last_line = text.strip().rpartition("\n")[2].strip()
    if last_line and last_line != (stop_phrase or "").strip():
        return
    raise RequestError(
        400,
        f"{where}: the user ended the conversation here, or said nothing (see userlm.stop); stop "
        "there, or serve a user who never ends it, with --guard no-end",
        f"{where}.content",
        "conversation_over",
    )


# --- the intent -----------------------------------------------------------------------------------

_INTENT = re.compile(
    r"\s+".join(map(re.escape, INTENT_PREFIX.split()))
    # A line that begins in lower case goes on with the sentence.
    + r"\s(?:[^\n]|\n(?=[ \t]*[a-z]))+?"
    # It ends at a full stop (but not at those of "e.g."), before another paragraph or item, or
    # with the text.
    r"(?:(?<!\b\w)[.!?](?=\s+[^a-z\s]|\s*\Z|[\"'”’)\]])|(?=[\"”]?\n[ \t]*[^a-z\t ])|\Z)"
)


def find_intent(
    given: str | None, system: str, default: str | None
) -> tuple[str | None, list[str]]:
    """Return what the user is after, and notes.

    It is `given` (empty: nothing in particular), else the sentence of the system text that begins
    as intents do, else all of that text, else `default`.
    """
    if given is not None:
        note = (
            "the system message was not used: userlm.intent says what the user is after"
        )
        return given.strip() or None, [note] if system else []
    if not system:
        note = "no intent was given, so the user is after nothing in particular"
        return default, [] if default else [note]
    # A newline at its end would hide an intent without a full stop.
    system = system.strip()
    sentences = [" ".join(match[0].split()) for match in _INTENT.finditer(system)]
    if not sentences:
        return system, []
    count = len(set(sentences))
    notes = []
    if count > 1:
        notes.append(f"the system message holds {count} intents; the first was used")
    elif sentences[0] != " ".join(system.split()):
        notes.append(
            "of the system message, the sentence with the intent alone was used"
        )
    return sentences[0], notes

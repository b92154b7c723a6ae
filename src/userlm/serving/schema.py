"""Requests, answers and errors of the server, in the form of the OpenAI API.

They have one additional field, `userlm`, for what the OpenAI API has no field for.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from userlm.text import END_SAYS
from userlm.types import InputError

if TYPE_CHECKING:
    from userlm.serving.intent_writer import IntentWriter

Roles = Literal["auto", "log", "swapped"]
"""Roles in requests. `log`: the simulated user has role `user`. `swapped`: the simulated user is
the caller's model, so it has role `assistant`. `auto`: detected from the last message."""

MAX_CHOICES = 128
"""The limit of the OpenAI API."""
NO_RETRY = {"x-should-retry": "false"}
"""The header with which the `openai` client sends a request that failed only once."""
MAX_STOPS = 16
"""Texts; each is searched in each choice."""
MAX_REPEATED = 1_000
"""Characters of a name or a phrase that each choice of an answer repeats."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How a user is served.

    Attributes:
        model_name: the name under which clients ask for the user.
        intent: the intent for requests without one.
        roles: the roles in requests that do not set them.
        stop_phrase: is appended to the content when the user ends the conversation, for harnesses
            that search for a phrase.
        seed: the seed of requests without one; `None` for a random one each.
        key: the API key that clients must give; `None`: no key is needed. It is never shown.
        hosts: host names under which the server may be called, beside its address; empty: any. This
            protects against web pages that reach the server under their own host name (DNS
            rebinding).
        queue: the number of replies that may wait.
        batch: the number of replies that are sampled concurrently.
        temperature: wins over that of a request, since many harnesses always send 0; `None`: the
            request's.
        end_says: what a harness gets as the last turn of a user who ends the conversation without a
            word, if it has no stop phrase.
        intent_writer: turns a system message without an intent into one; `None`: it is the intent.
    """

    model_name: str = "user"
    intent: str | None = None
    roles: str = "auto"
    stop_phrase: str | None = None
    seed: int | None = None
    key: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    queue: int = 256
    batch: int = 32
    temperature: float | None = None
    end_says: str = END_SAYS
    intent_writer: IntentWriter | None = None

    def __post_init__(self) -> None:
        known = get_args(Roles)
        if self.roles not in known:
            raise InputError(f"--roles {self.roles}: give one of {', '.join(known)}")
        if self.stop_phrase is not None and not self.stop_phrase.strip():
            raise InputError(
                "--stop-phrase: give a text, such as [end], or omit the option"
            )


# --- requests -------------------------------------------------------------------------------------


Item = TypeVar("Item")
Items = Annotated[list[Item], Field(fail_fast=True)]
"""A list that reports only one wrong item, since there may be a million."""


def _refuse_many(stop: object) -> object:
    if isinstance(stop, list) and len(stop) > MAX_STOPS:
        raise ValueError(f"it should have at most {MAX_STOPS} texts")
    return stop


Text = Annotated[str, Field(min_length=1)]
Repeated = Annotated[str, Field(max_length=MAX_REPEATED)]
TokenLimit = Annotated[int, Field(ge=1, le=2**31)]
TopP = Annotated[
    float,
    Field(ge=0, le=1),
    AfterValidator(partial(max, 1e-9)),  # 0 is greedy
]
STRICT = ConfigDict(strict=True, frozen=True)
KEEP_EXTRA = ConfigDict(strict=True, frozen=True, extra="allow")


class CallOf(BaseModel):
    model_config = STRICT
    name: str = ""
    arguments: str = ""


class Call(BaseModel):
    """A call of a tool; only that of a function has a `function`."""

    model_config = STRICT
    function: CallOf | None = None


class Message(BaseModel):
    model_config = STRICT
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Items[str | dict[str, Any]] | None = None
    refusal: str | None = None
    tool_calls: Items[Call] | None = None


class Named(BaseModel):
    model_config = STRICT
    name: Repeated


class NamedTool(BaseModel):
    model_config = STRICT
    function: Named


class Function(Named):
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A tool; only functions have a `function`."""

    model_config = STRICT
    function: Function | None = None

    @property
    def name(self) -> str | None:
        """The name of the function."""
        return self.function.name if self.function else None


class JsonSchema(BaseModel):
    model_config = STRICT
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    model_config = STRICT
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(BaseModel):
    model_config = STRICT
    include_usage: bool | None = None


class UserOptions(BaseModel):
    """The field `userlm` of a request.

    Attributes:
        intent: what the user wants; an empty text for no particular goal.
        id: the id of the conversation; `replay:` uses it to find the log.
        stop_phrase: what the harness looks for to see the end; an empty text for nothing.
    """

    model_config = KEEP_EXTRA
    intent: str | None = None
    roles: Roles | None = None
    id: str | None = None
    stop_phrase: Repeated | None = None

    @model_validator(mode="after")
    def _refuse_extra(self) -> Self:
        if self.model_extra:
            known = ", ".join(UserOptions.model_fields)
            raise ValueError(f"it should only have the fields {known}")
        return self


class ChatRequest(BaseModel):
    """The body of a call to `/v1/chat/completions`.

    Fields that are not listed here are kept in `model_extra`: they have no effect, and the answer
    says so.
    """

    model_config = KEEP_EXTRA
    model: str
    tools: Items[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: ResponseFormat | None = None
    userlm: UserOptions | None = None
    messages: Items[Message] = Field(min_length=1)
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    max_completion_tokens: TokenLimit | None = None
    max_tokens: TokenLimit | None = None
    stop: Annotated[Text | Items[Text] | None, BeforeValidator(_refuse_many)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def settings(self) -> ChatRequest:
        """Return `n`, `temperature`, `stop` and the like, without messages and unknown fields, so
        that a request that waits holds little."""
        settings = self.model_copy(
            update={"messages": [], "tools": None, "response_format": None}
        )
        (settings.model_extra or {}).clear()
        return settings


def parse_request(body: object, model_name: str) -> ChatRequest:
    """Return the request in the JSON value `body`.

    Raises:
        RequestError: if a field is wrong; the message names it and says what to do.
    """
    if isinstance(body, dict) and body.get("model") != model_name:
        raise unknown_model(body.get("model"), model_name)
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise field_error(error) from None


# --- errors ---------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class RequestError(Exception):
    """An error to send as the answer to a request.

    Attributes:
        status: the HTTP status.
        param: the field of the request that is wrong.
        code: a constant identifier for programs.
        headers: HTTP headers of the answer.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] | None = None


def unknown_model(model: object, served: str) -> RequestError:
    """Return the error for a model that is not served here."""
    status = 404 if isinstance(model, str) else 400
    message = (
        f"there is no model {reprlib.repr(model)} here; this server has {served!r}"
    )
    return RequestError(status, message, "model", "model_not_found")


def too_long() -> RequestError:
    """Return the error for a conversation that cannot be shortened enough."""
    return RequestError(
        400,
        "the intent and the assistant's last answer do not fit the model's context length; "
        "shorten them",
        "messages",
        "context_length_exceeded",
    )


_UNION_MEMBERS = (
    *("str", "constrained-str", "dict[str,any]"),
    *("list[union[str,dict[str,any]]]", "list[constrained-str]"),
    *("NamedTool", "literal['none','auto','required']"),
)
"""Names in pydantic's field paths that are members of a union, not fields."""

_EXPECTED = {"missing": "be given", "model_type": "be an object"}
"""Texts after "it should", for pydantic errors whose own message is unclear."""


def field_error(error: ValidationError) -> RequestError:
    """Return pydantic's error as a sentence: the field, its value, and what it should be."""
    # A union has an error for each member; the deepest one belongs to the intended member.
    details = max(error.errors(), key=lambda details: len(details["loc"]))
    location = [part for part in details["loc"] if part not in _UNION_MEMBERS]
    kind = details["type"]
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    param = path.removeprefix(".")
    found = "missing" if kind == "missing" else reprlib.repr(details["input"])
    # pydantic's messages are sentences such as "Input should be a valid string".
    expected = _EXPECTED.get(kind) or details["msg"].partition("should ")[2]
    expected = expected.partition(" after validation")[0]
    message = f"{param or 'the body'} is {found}; it should {expected}"
    return RequestError(400, message, param or None)


# --- answers --------------------------------------------------------------------------------------


class AssistantMessage(BaseModel):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChoiceInfo(BaseModel):
    """The field `userlm` of a choice.

    Attributes:
        sample: its number among those that were asked for, which its seed comes from; its `index`
            is another one if a choice before it failed.
        ended: whether the user ended the conversation.
        p_end: the model's probability of the end; `None` if unknown.
        stop: why the conversation stopped, one of `userlm.types.STOPS`; `None` if it continues.
        rejected: how many drafts the guard rejected.
        violates: the violations of a draft that was kept in spite of them.
    """

    sample: int
    ended: bool
    p_end: float | None
    stop: str | None
    rejected: int
    violates: list[str]


class Choice(BaseModel):
    index: int
    message: AssistantMessage
    finish_reason: str  # stop, length, content_filter or tool_calls
    userlm: ChoiceInfo
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """The answer.

    Attributes:
        userlm: the same as in the first choice, and the request's `intent`, `roles`, `seed`,
            `ignored` (fields without effect) and `notes` (what was changed in the request).
    """

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None
    userlm: dict[str, Any]
    object: Literal["chat.completion"] = "chat.completion"

"""Bots of any kind as speakers: a function, an object, a command, a server with JSON of its own.

A bot gets what was said in the form that it takes, and may answer in any of the usual forms.
Whatever goes wrong in it ends one conversation.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from typing import Any, get_origin
from uuid import NAMESPACE_OID, uuid5

from userlm.content import split_content
from userlm.imports import RAISED, describe_error
from userlm.json_files import dumps
from userlm.kept_meta import kept_meta
from userlm.keys import without_keys
from userlm.models.event_loops import event_loop, late
from userlm.text import named_type
from userlm.types import (
    STOPS,
    Conversation,
    InputError,
    Message,
    ModelError,
    Reply,
    messages_of,
)

TIMEOUT = 120.0
"""Seconds for one answer of a bot."""
LONGEST_ANSWER = 1 << 20
"""Characters of an answer. A longer one would be sent again with every later turn."""
LONGEST_ERROR = 300
"""Characters that are kept of what a bot says when it fails."""
TEXT_FIELDS = ("content", "text", "answer", "output", "response", "reply", "message")
"""Where the text of an answer is, if the answer is an object."""
ANSWER_FIELDS = (*TEXT_FIELDS, "choices", "messages")
SESSION_NAMES = ("session", "session_id", "thread_id", "conversation_id")
METHODS = {"reply": "conversation", "invoke": "messages"}
"""The methods of an object that are called, and what they take if they do not say."""
TEXT_NAMES = ("text", "message", "question", "query", "prompt")
MESSAGES_NAMES = ("messages", "history", "chat_history")
GIVE = "return a text, a message with `content`, or userlm.Reply"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a bot is asked.

    Attributes:
        conversation: what was said.
        messages: the same as messages, after the system prompt if there is one.
        session: an id that is the same for all turns of the conversation, in this run alone.
    """

    conversation: Conversation
    messages: Sequence[Message]
    session: str

    @property
    def text(self) -> str:
        """What was said last; empty if nothing was said."""
        turns = self.conversation.turns
        return turns[-1].text if turns else ""


@dataclass(frozen=True)
class Bot:
    """A bot as a speaker.

    Attributes:
        name: its address, for errors.
        ask: returns its answer; an awaitable is awaited, always in the same event loop.
        run: what distinguishes this run from others, so that a bot that remembers its sessions
            begins anew.
        timeout: seconds for an answer that is awaited.
    """

    name: str
    ask: Callable[[Asked], object]
    system: str | None = None
    run: str = ""
    timeout: float = TIMEOUT

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the bot's answer; raise `ModelError` for whatever goes wrong in it."""
        messages = messages_of(conversation.turns)
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        session = str(uuid5(NAMESPACE_OID, f"{self.run}/{conversation.id}"))
        try:
            answer = self.ask(Asked(conversation, messages, session))
            if inspect.isawaitable(answer):
                answer = self._awaited(answer)
            reply = _checked(read_answer(answer))
            if reply.stop and conversation.next_role == "assistant":
                raise ModelError(
                    f"it stopped for {reply.stop!r}; only a user ends a conversation"
                )
            return reply
        except ModelError as error:
            raise self._error(str(error), error.reason, error.permanent) from error
        except RAISED as error:
            raise self._error(describe_error(error)) from error

    def _error(
        self, said: str, reason: str = "error", permanent: bool = False
    ) -> ModelError:
        said = " ".join(without_keys(said).split())[:LONGEST_ERROR]
        return ModelError(
            f"{without_keys(self.name)}: {said}", reason, permanent=permanent
        )

    def _awaited(self, answer: Awaitable[object]) -> object:
        async def wait() -> object:
            limit = asyncio.timeout(self.timeout)
            try:
                async with limit:
                    return await answer
            except TimeoutError:
                if limit.expired():
                    raise late(self.timeout) from None
                raise
            except SystemExit as error:  # it would end the event loop, for all bots
                raise ModelError(describe_error(error)) from error

        pending = asyncio.run_coroutine_threadsafe(wait(), event_loop("bots"))
        return pending.result()


# --- what a bot takes -----------------------------------------------------------------------------


def python_bot(
    found: Any, name: str, has_system: bool = False
) -> Callable[[Asked], object]:
    """Return how to ask what a module holds: a function, an instance, a class of such, or a
    function without parameters that returns one.

    Args:
        has_system: whether there is a system prompt, which needs a bot that takes messages.

    Raises:
        InputError: if it is none of these, or takes what nobody can give.
    """
    if inspect.isclass(found) or (inspect.isfunction(found) and _needs_nothing(found)):
        try:
            found = found()
        except RAISED as error:
            raise InputError(f"{name}: {describe_error(error)}") from None
    method = next(
        (each for each in METHODS if callable(getattr(found, each, None))), ""
    )
    if not method and not callable(found):
        raise InputError(
            f"{name} is {named_type(found)}; give a function of a text or of messages, or an "
            "object with a method `reply` or `invoke`"
        )
    function = getattr(found, method) if method else found
    wanted = METHODS.get(method, "text")
    takes = _wanted(function, wanted, name)
    if has_system and "messages" not in takes:
        raise InputError(
            f"--system: {name} takes no messages, so it would not get the system prompt"
        )
    if wanted == "messages" and _takes_state(found):
        return partial(_ask_graph, found)
    return partial(_ask, function, takes)


def _needs_nothing(function: Callable[..., object]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return not any(
        each.kind is each.VAR_POSITIONAL
        or (each.default is each.empty and each.kind is not each.VAR_KEYWORD)
        for each in parameters
    )


def _ask(function: Callable[..., object], takes: Sequence[str], asked: Asked) -> object:
    given: list[Any] = []
    for wanted in takes:
        value = getattr(asked, wanted)
        # A bot may add to its list.
        given.append(list(map(dict, value)) if wanted == "messages" else value)
    return function(*given)


def _wanted(function: Callable[..., object], first: str, name: str) -> list[str]:
    """Return what the parameters of a function want, as names of attributes of `Asked`: by their
    annotations, else by their names, else `first`."""
    try:
        parameters = _signature(function).parameters.values()
    except ValueError:  # of some functions in C
        return [first]
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    takes: list[str] = []
    for each in parameters:
        is_optional = each.default is not inspect.Parameter.empty
        if each.kind in positional and each.name in SESSION_NAMES and takes:
            takes.append("session")
        elif each.kind in positional and not takes:
            takes.append(_kind(each) or first)
        elif not is_optional and each.kind in (*positional[:2], each.KEYWORD_ONLY):
            raise InputError(
                f"{name}: nobody gives its parameter {each.name!r}; a bot takes the last text or "
                "the messages and, if it keeps state, a `session`"
            )
        else:
            break
    if not takes:
        raise InputError(f"{name}: it takes nothing; let it take a text or messages")
    return takes


def _signature(function: Callable[..., object]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, TypeError, SyntaxError, AttributeError):
        return inspect.signature(function)


def _kind(parameter: inspect.Parameter) -> str:
    """Return what a parameter wants; empty if it does not say."""
    kind = get_origin(parameter.annotation) or parameter.annotation
    if kind is Conversation:
        return "conversation"
    if kind is str:
        return "text"
    is_type = isinstance(kind, type) and kind is not parameter.empty
    if is_type and issubclass(kind, Iterable) and not issubclass(kind, Mapping):
        return "messages"
    if parameter.name in TEXT_NAMES:
        return "text"
    return "messages" if parameter.name in MESSAGES_NAMES else ""


def _takes_state(found: Any) -> bool:
    """Return whether an object of LangChain is a graph or chain whose input is an object with
    `messages`, and not the messages themselves."""
    describe = getattr(found, "get_input_jsonschema", None)
    try:
        schema = describe() if describe else {}
        return "messages" in schema.get("properties", {})
    except Exception:  # it cannot describe what its functions take
        return False


def _ask_graph(graph: Any, asked: Asked) -> object:
    config = {"configurable": {"thread_id": asked.session}}
    messages = list(asked.messages)
    if _remembers(graph, config):
        messages = messages[-1:]
    return graph.invoke({"messages": messages}, config)


def _remembers(graph: Any, config: Mapping[str, Any]) -> bool:
    """Return whether a graph has heard what was said before: not at the first turn of its own, and
    not if it kept that in memory and the run was interrupted."""
    if not getattr(graph, "checkpointer", None):
        return False
    return bool(graph.get_state(config).values)


# --- what a bot answers ---------------------------------------------------------------------------


def read_answer(answer: object) -> Reply:
    """Return the reply in an answer: a text, a message of the usual APIs, or an object that has one
    in one of `TEXT_FIELDS`. Tool calls go to `meta["tool_calls"]`.

    Raises:
        ModelError: if it is none of these, or only calls tools.
    """
    if isinstance(answer, Reply):
        return answer
    if isinstance(answer, str):
        return Reply(answer)
    message = _fields(answer)
    if message is None:
        raise _broken(f"it returned {named_type(answer)}; {GIVE}")
    calls: list[dict[str, Any]] = []
    text, thought = _read(message, calls)
    if text is None:
        names = ", ".join(call["name"] for call in calls)
        if calls:
            raise _broken(
                f"it called {names} and said nothing; run its tools inside the bot, and return "
                "what it says then"
            )
        fields = ", ".join(map(str, message)) or "none"
        raise _broken(
            f"its answer has no text: the fields are {fields}, and none of "
            f"{', '.join(TEXT_FIELDS)} is a text"
        )
    meta: dict[str, Any] = {}
    if calls:
        meta["tool_calls"] = calls
    if thought:
        meta["thought"] = thought
    return Reply(text, meta=meta)


def read_output(text: str) -> Reply:
    """Return the reply in what a command writes: a JSON object with a text in one of
    `ANSWER_FIELDS`, else the text itself."""
    try:
        value = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        value = None
    # An answer may itself be JSON, such as one that was asked for.
    if isinstance(value, dict) and any(name in value for name in ANSWER_FIELDS):
        return read_answer(value)
    return Reply(text)


def _broken(why: str) -> ModelError:
    return ModelError(why, "broken answer")


def _fields(answer: object) -> Mapping[str, Any] | None:
    """Return the fields of an object: a dictionary, a model of pydantic, or a dataclass."""
    if isinstance(answer, Mapping):
        return answer
    dump = getattr(answer, "model_dump", None)
    if callable(dump):
        fields: Mapping[str, Any] = dump()
        return fields
    if is_dataclass(answer) and not isinstance(answer, type):
        return asdict(answer)
    return None


def _read(
    message: Mapping[str, Any], calls: list[dict[str, Any]]
) -> tuple[str | None, str]:
    """Return the text in an answer, `None` if it has none, and the thought; add its tool calls."""
    choices = message.get("choices")
    if isinstance(choices, Sequence) and choices:
        first = _fields(choices[0]) or {}  # else these are for the user to choose from
        message = _fields(first.get("message")) or message
    if isinstance(message.get("messages"), Sequence):
        return _read_last(message["messages"], calls)
    calls += _calls(message)
    for name in (*TEXT_FIELDS, "refusal"):
        value = message.get(name)
        if isinstance(value, Mapping):
            return _read(value, calls)
        text, thought = split_content(value)
        if text.strip():
            return text, thought
    return None, ""


def _read_last(
    messages: Sequence[Any], calls: list[dict[str, Any]]
) -> tuple[str | None, str]:
    """Return the text of the last message, and the tool calls of all since the user's: what an
    agent returns that was called with the messages."""
    since: list[Mapping[str, Any]] = []
    for each in reversed(messages):
        message = _fields(each) or {}
        if (message.get("role") or message.get("type")) in ("user", "human"):
            break
        since.insert(0, message)
    found: tuple[str | None, str] = (None, "")
    for message in since:
        found = _read(message, calls)
    return found


def _calls(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tool calls of a message of OpenAI, LangChain or Anthropic, as names and
    arguments."""
    listed = message.get("tool_calls") or []
    content = message.get("content")
    if isinstance(content, list) and not listed:
        listed = [part for part in map(_fields, content) if part]
        listed = [part for part in listed if part.get("type") == "tool_use"]
    calls = []
    for item in listed:
        call = _fields(item) or {}
        call = _fields(call.get("function")) or call
        name = call.get("name")
        if not isinstance(name, str):
            raise _broken(f"a tool call has no name: {dumps(call)[:100]}")
        given = [call[key] for key in ("args", "arguments", "input") if key in call]
        calls.append({"name": name, "arguments": _arguments(given, name)})
    return calls


def _arguments(given: list[Any], name: str) -> dict[str, Any]:
    value = given[0] if given else {}
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, Mapping):
        raise _broken(f"the arguments of the tool {name} are no JSON object")
    return dict(value)


def _checked(reply: Reply) -> Reply:
    """Return a reply that can be written and read again, without keys, which a bot may repeat;
    raise `ModelError` if it is none."""
    if not isinstance(reply.text, str):
        raise _broken(f"the text of its answer is {named_type(reply.text)}; {GIVE}")
    if len(reply.text) > LONGEST_ANSWER:
        raise _broken(
            f"its answer has {len(reply.text):,} characters; at most {LONGEST_ANSWER:,} are taken"
        )
    if reply.stop is not None and reply.stop not in STOPS:
        raise _broken(f"it stopped for {reply.stop!r}; give one of {', '.join(STOPS)}")
    meta = kept_meta(reply.meta)
    if reply.stop == "error":
        raise ModelError(str(meta.get("error") or "it stopped for an error"))
    return Reply(without_keys(str(reply.text)), reply.stop, without_keys(meta))

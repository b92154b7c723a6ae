"""A model on any server that speaks the OpenAI API, through the `openai` client: OpenAI, vLLM,
llama.cpp, Ollama, ...

`EndpointModel` chats. `served` (trained users) and `prompt_logprobs` (scoring) send requests
through it, so they share its retries, deadlines and limits, and errors never contain the key.

All requests run in one event loop, in a thread of its own, since only there a whole try can have a
deadline. The timeouts of a blocking client are between two bytes, so a slow server never ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar
from warnings import warn

import openai
from openai.types.chat import ChatCompletion

from userlm.address import place
from userlm.content import THOUGHT_FIELDS, split_content
from userlm.keys import SHORTEST_SECRET, mask_keys
from userlm.models.budget import TRIES, check_wanted, count_request, pause
from userlm.models.event_loops import event_loop
from userlm.models.faults import (
    CONTEXT_EXCEEDED,
    LONGEST_PAUSE,
    UNREADABLE,
    Fault,
    error_message,
    possibly_billed,
    status_fault,
)
from userlm.models.http_client import (
    AUTHORIZATION,
    header_secrets,
    http_client,
    key_headers,
)
from userlm.text import has_words
from userlm.thought import reseeded, spoken
from userlm.types import (
    Completion,
    Message,
    ModelError,
    ModelWarning,
    Sampling,
    encodable,
)

T = TypeVar("T")

Send: TypeAlias = "Callable[[openai.AsyncOpenAI], Awaitable[T | Fault]]"
"""Sends a request, and returns what its answer says; see `receive`."""

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
"""The environment variable of the key for `openai:`."""
LONGEST_CALL = 135.0
"""Seconds that all tries of a call may take together, without the pauses: after a try that took all
of its time, a short one shows whether only that request was lost."""
SHORTEST_TRY = 1.0
"""Seconds. If less is left, there is no other try."""
CONNECT_TIMEOUT = 20.0
"""Seconds. A try that ends here sent nothing, so it cannot be billed."""
REQUESTS_PER_CLIENT = 32
"""A client goes through all of its connections for each request, so many make it slow."""
MAX_TOKEN_LENGTH = 128
"""Characters of the longest tokens in the usual vocabularies (they are white space)."""
USE_VLLM = "serve the model with vLLM, or give its folder"
TAKE_IDS = (
    "the server adds a token (a BOS?) or truncates the prompt; configure it to use the ids "
    "unchanged"
)
"""Advice at the end of errors of `served` and `prompt_logprobs`."""

PARAMETERS = ("response_format", "top_p", "temperature", "seed", "max_tokens")
CUTS = ("length", "content_filter")
"""Reasons to finish in which the text may not be whole."""
NOT_THE_FORMAT = ("content_filter", CONTEXT_EXCEEDED)
"""Codes of errors of a request that would be refused without a `response_format` too."""
UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed"
    r"|extra inputs|cannot both|deprecated",
    re.IGNORECASE,
)


class EndpointModel:
    """A chat model behind an OpenAI-compatible endpoint.

    If the server does not support a parameter (newer OpenAI models need `max_completion_tokens`,
    some allow no temperature, and many servers know no `response_format`), this and all later calls
    are sent without it, and a fault is counted.

    Args:
        model: its name on the server.
        base_url: where the server is; `None`: api.openai.com.
        api_key: removed from every error; `None` for a server that needs none.
        retries: how often a call is repeated after a temporary failure (429, 5xx, a timeout, a lost
            connection, an unusable answer).
        timeout: of one whole try, in seconds: from the connection to the last byte.
        timeout_setting: what allows another timeout, for errors.
        pause: seconds before the second try, doubled before each later one, unless the server asks
            for another pause.
        key_variable: the environment variable that should hold the key, for errors. If it is
            OPENAI_API_KEY, the server also gets what OPENAI_CUSTOM_HEADERS, OPENAI_ORG_ID and
            OPENAI_PROJECT_ID hold.
        key_header: the header of the key, for a server without the OpenAI API.
        headers: sent in place of the key.
        secrets: removed from every error, as the key is.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None,
        api_key: str | None,
        retries: int = TRIES - 1,
        timeout: float = 120,
        timeout_setting: str = "",
        pause: float = 0.5,
        key_variable: str = "USERLM_API_KEY",
        key_header: str = AUTHORIZATION,
        headers: Mapping[str, str] | None = None,
        secrets: Iterable[str] = (),
    ) -> None:
        self.name = model
        self._key = api_key
        self._key_variable = key_variable
        # OpenAI also gets what the variables of its client hold.
        own = None if key_variable == OPENAI_KEY else key_headers(api_key, key_header)
        self._headers = own if headers is None else headers
        custom = _custom_secrets() if own is None else ()
        self._secrets = [*dict.fromkeys((api_key or "", *secrets, *custom))]
        self.masked("")  # compiles patterns, for which an answer would have to wait
        self._retries = retries
        self._timeout = timeout
        self._timeout_setting = timeout_setting
        self._pause = pause
        self._unsupported: frozenset[str] = frozenset()
        self._says_usage = True
        self._loop = event_loop("requests")
        self._base_url = base_url or OPENAI_URL
        self._client = openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=api_key or "none",
            max_retries=0,  # the client's own retries are neither seen nor counted
            timeout=openai.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
            http_client=self._http_client(),
        )
        self._in_flight = Counter({self._client: 0})

    @property
    def url(self) -> str:
        """Where requests go."""
        return str(self._client.base_url)

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's answer; raises `ModelError` if there is none after all retries."""
        faults: list[str] = []
        excess_tokens = 0

        async def send(client: openai.AsyncOpenAI) -> Completion | Fault:
            nonlocal excess_tokens
            # The same seed would give the same answer, which was paid for.
            tried = reseeded(sampling, faults.count("empty answer"))
            got = await self._chat(client, messages, tried)
            excess_tokens += got.excess_tokens
            return got

        try:
            answer = self.ask(send, faults)
        except ModelError as error:
            error.excess_tokens = excess_tokens
            raise
        if self._says_usage and None in (answer.tokens_in, answer.tokens_out):
            self._says_usage = False  # said once
            warn(
                f"{self.name}: the server does not say how many tokens its answers took; they are "
                "counted at their maximum",
                ModelWarning,
                stacklevel=2,
            )
        billed = possibly_billed(faults)
        answer = replace(
            answer,
            faults=tuple(faults),
            possibly_billed=billed,
            excess_tokens=excess_tokens,
        )
        return self.without_key(answer)

    def masked(self, text: str) -> str:
        """Return the text without the keys, which the server may repeat."""
        return mask_keys(text, self._secrets)

    def without_key(self, answer: Completion) -> Completion:
        """Return the answer without the keys, for files. A short key is no secret but a word, such
        as `ollama`, and stays."""
        secrets = [each for each in self._secrets if len(each) >= SHORTEST_SECRET]
        if not secrets:
            return answer
        text, thought = (
            mask_keys(said, secrets) for said in (answer.text, answer.thought)
        )
        return replace(answer, text=text, thought=thought)

    def ask(self, send: Send[T], faults: list[str], may_bill: bool = True) -> T:
        """Return the server's answer to `send`, after retries.

        Args:
            faults: the kinds of the faults of all tries are added to it.
            may_bill: whether the request may be billed, so that it counts.

        Raises:
            ModelError: if there is no answer after all retries, if retries cannot help, or if
                another one is not wanted any more or not allowed by a cap.
        """
        retries = 0
        left = max(LONGEST_CALL, self._timeout)
        check_wanted()  # the caller may have left while this one waited for another thread
        if may_bill:
            count_request()
        while True:
            begun = time.monotonic()
            got = self._once(send, min(self._timeout, left))
            if not isinstance(got, Fault):
                return got
            faults.append(got.kind)
            left -= time.monotonic() - begun
            if got.adapted:
                self._before_retry(0, False, faults)
                continue
            if not got.passing or retries == self._retries or left < SHORTEST_TRY:
                raise self._error(got, faults)
            backoff = self._pause * 2**retries
            wait = backoff if got.wait is None else got.wait
            jitter = random.uniform(0, min(backoff, LONGEST_PAUSE) / 2)
            counts = may_bill and possibly_billed([got.kind]) > 0
            self._before_retry(min(wait, LONGEST_PAUSE) + jitter, counts, faults)
            retries += 1

    def _error(self, fault: Fault, faults: Sequence[str]) -> ModelError:
        """Return the error of a call whose last try had this fault."""
        message = " ".join(self.masked(fault.message).split())
        return ModelError(
            f"{self.name}: {message[:300]}",
            fault.kind,
            permanent=fault.permanent,
            faults=tuple(faults),
            possibly_billed=possibly_billed(faults),
        )

    def _before_retry(
        self, seconds: float, counts: bool, faults: Sequence[str]
    ) -> None:
        """Wait, and count another request if it `counts`; raise `ModelError` with all faults if it
        is not wanted any more, or not allowed by a cap."""
        try:
            pause(seconds)
            if counts:
                count_request(is_retry=True)
        except ModelError as error:
            error.faults = tuple(faults)
            error.possibly_billed = possibly_billed(faults)
            raise

    def _once(self, send: Send[T], timeout: float) -> T | Fault:
        """Return the answer of one try, or its fault."""
        trying = self._in_time(send, timeout)
        pending = asyncio.run_coroutine_threadsafe(trying, self._loop)
        try:
            return pending.result()
        except TimeoutError:
            return self._late()
        except openai.APIStatusError as error:
            return status_fault(error, bool(self._key), self._key_variable)
        except openai.APIConnectionError as error:
            if isinstance(error, openai.APITimeoutError) and not _sent_nothing(error):
                return self._late()
            return _connection_fault(error, self.url)
        except UNREADABLE as error:
            return _unusable(str(error))

    def _late(self) -> Fault:
        advice = (
            f"; {self._timeout_setting} allows more" if self._timeout_setting else ""
        )
        message = (
            f"the server did not answer in time ({self._timeout:.3g} seconds{advice})"
        )
        return Fault("timed out", message, passing=True)

    async def _in_time(self, send: Send[T], timeout: float) -> T | Fault:
        """Send it, and raise `TimeoutError` if that takes longer."""
        client = self._free_client()
        self._in_flight[client] += 1
        try:
            async with asyncio.timeout(timeout):
                return await send(client)
        finally:
            self._in_flight[client] -= 1

    def _free_client(self) -> openai.AsyncOpenAI:
        """Return the client with the fewest requests, or a new one if each has enough. This runs in
        the event loop, so in one thread."""
        client = min(self._in_flight, key=self._in_flight.__getitem__)
        if self._in_flight[client] >= REQUESTS_PER_CLIENT:
            client = client.copy(http_client=self._http_client())
        return client

    def _http_client(self) -> Any:
        return http_client(self._headers, self._base_url)

    async def _chat(
        self,
        client: openai.AsyncOpenAI,
        messages: Sequence[Message],
        sampling: Sampling,
    ) -> Completion | Fault:
        unsupported = self._unsupported
        values = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed_of(sampling),
        }
        if "max_tokens" in unsupported:
            values["max_completion_tokens"] = sampling.max_tokens
        if sampling.schema:
            values["response_format"] = _response_format(sampling.schema)
        for name in unsupported:
            values.pop(name, None)
        create: Any = client.chat.completions.with_streaming_response.create
        request = create(
            model=self.name, messages=[dict(each) for each in messages], **values
        )
        try:
            answer = ChatCompletion.construct(**await receive(request))
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            refused = _unsupported_parameter(error, unsupported)
            if "response_format" in values and error.code not in NOT_THE_FORMAT:
                # servers say in many ways that they do not know it, or this kind of it
                refused = refused or "response_format"
            if refused:
                self._unsupported |= {refused}
                return Fault(f"{refused} not taken", "", adapted=True)
            raise
        try:
            got = _completion(answer)
        except ValueError as error:
            got = _unusable(str(error))
        counted = token_count(answer, "completion_tokens") or 0
        excess_tokens = max(
            counted + _reasoning_tokens(answer) - sampling.max_tokens, 0
        )
        if isinstance(got, Fault):
            if got.kind == "empty answer" and values.get("temperature") == 0:
                got = replace(got, passing=False)  # another try would give the same
            return _with_excess(got, excess_tokens)
        most = MAX_TOKEN_LENGTH * sampling.max_tokens
        if len(got.text) > most:
            # as context it would cost more than all other calls together
            long = (
                f"it has {len(got.text):,} characters, and {sampling.max_tokens} tokens were "
                "allowed"
            )
            return _with_excess(_unusable(long), excess_tokens)
        if None in (got.tokens_in, got.tokens_out):  # then it is counted at its maximum
            got = replace(got, excess_tokens=excess_tokens)
        return replace(got, thought=got.thought[:most])


def _unusable(why: str) -> Fault:
    return Fault("broken answer", f"the answer cannot be used: {why}", passing=True)


def _with_excess(fault: Fault, excess_tokens: int) -> Fault:
    """Return the fault of an answer with so many tokens beyond the allowed ones: if any, the server
    knows no limit, and another try would cost as much."""
    passing = fault.passing and not excess_tokens
    return replace(fault, passing=passing, excess_tokens=excess_tokens)


async def receive(request: AbstractAsyncContextManager[Any]) -> dict[str, Any]:
    """Return the body of an answer, a JSON object; raise `ValueError` if it is none.

    Args:
        request: a request of `with_streaming_response`, which was not sent yet.
    """
    async with request as response:
        answer = json.loads(await response.read())
    if not isinstance(answer, dict):
        raise ValueError("it is not a JSON object; does the URL end in /v1?")
    return answer


def first_choice(answer: Any) -> Any:
    """The first choice of an answer; raises `ValueError` if it has none."""
    try:
        return answer.choices[0]
    except (AttributeError, LookupError, TypeError):
        # a web page, an array, or an answer without choices
        raise ValueError("this is not a completion; does the URL end in /v1?") from None


def token_count(answer: Any, name: str) -> int | None:
    """A number of tokens in the answer's `usage`; `None` if the server gave none."""
    return _count(getattr(answer, "usage", None), name)


def _count(usage: Any, name: str) -> int | None:
    count = getattr(usage, name, None)
    # Some servers do not count and say 0, but every prompt and every answer has a token.
    return count if type(count) is int and 0 < count < 2**31 else None


def _reasoning_tokens(answer: Any) -> int:
    """Return the tokens that are not among `completion_tokens`: xAI and Gemini count those of
    reasoning only in `total_tokens`, or in the details."""
    names = ("total_tokens", "prompt_tokens", "completion_tokens")
    total, *counted = (token_count(answer, name) or 0 for name in names)
    details = getattr(getattr(answer, "usage", None), "completion_tokens_details", None)
    reasoning = _count(details, "reasoning_tokens") or 0
    if reasoning <= counted[-1]:
        reasoning = 0  # it is among the completion tokens
    return max(total - sum(counted), reasoning)


def seed_of(sampling: Sampling) -> Any:
    """Return the seed in the range of servers: at most 31 bits."""
    return openai.omit if sampling.seed is None else sampling.seed % 2**31


def _completion(answer: Any) -> Completion | Fault:
    choice = first_choice(answer)
    try:
        content = choice.message.content
        refusal = choice.message.refusal
    except AttributeError:
        raise ValueError(
            "this is not a chat completion; does the URL end in /v1?"
        ) from None
    if content and not isinstance(content, str | list):
        return Fault(
            "broken answer", "the content of the answer is not text", passing=True
        )
    text, thought = split_content(content)
    is_refusal = bool(refusal) and not has_words(text)
    found = spoken(
        Completion(
            encodable(str(refusal) if is_refusal else text),
            tokens_in=token_count(answer, "prompt_tokens"),
            tokens_out=token_count(answer, "completion_tokens"),
            reasoning_tokens=_reasoning_tokens(answer),
            thought=encodable(_reasoning(choice.message) or thought),
            refused=is_refusal,
            cut=_is_cut(choice.finish_reason),
        )
    )
    if has_words(found.text) or found.thought:
        return found
    if choice.finish_reason == "content_filter":
        return Fault("refused", "refused: the content filter stopped the answer")
    if (
        choice.finish_reason == "length"
    ):  # a reasoning model, which would use as many tokens again
        return Fault(
            "empty answer",
            "the answer is empty: all tokens were used before it (by reasoning?); allow more",
        )
    return Fault("empty answer", "the answer is empty", passing=True)


def _is_cut(finish_reason: Any) -> bool | None:
    known = finish_reason in (*CUTS, "stop")
    return finish_reason in CUTS if known else None


def _reasoning(message: Any) -> str:
    """The thought in a field of its own; empty if there is none."""
    fields = message.model_extra or {}
    for name in THOUGHT_FIELDS:
        if isinstance(thought := fields.get(name), str):
            return thought
    return ""


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    described = {"name": "answer", "strict": True, "schema": dict(schema)}
    return {"type": "json_schema", "json_schema": described}


def _custom_secrets() -> list[str]:
    """Return the keys in what OpenAI's client sends besides its own, such as that of a gateway."""
    secrets = []
    for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines():
        name, _, value = line.partition(":")
        secrets += header_secrets(name.strip(), value)
    return secrets


def _sent_nothing(error: openai.APIConnectionError) -> bool:
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def _connection_fault(error: openai.APIConnectionError, url: str) -> Fault:
    if _sent_nothing(error):
        where = place(url).rstrip("/")
        message = f"no connection to {where}; is it running, and is the URL right?"
        return Fault("no connection", message, passing=True, permanent=True)
    message = f"the connection was cut: {error.__cause__ or error}"
    return Fault("connection cut", message, passing=True)


def _unsupported_parameter(
    error: openai.APIStatusError,
    known: frozenset[str],
) -> str | None:
    """The parameter that the server does not support; `None` if only its value is out of range."""
    message = error_message(error)
    if not UNSUPPORTED.search(message):
        return None
    named = (error.param,) if error.param in PARAMETERS else PARAMETERS
    for name in named:
        if name not in known and re.search(rf"\b{name}\b", message):
            return name
    return None

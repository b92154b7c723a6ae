"""Any server that speaks the OpenAI API, through the `openai` client: OpenAI, vLLM, llama.cpp,
Ollama, ...

It chats; through it `completions` continues token ids, as a trained user must to speak, and
`prompt_logprobs` scores them.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import mktime_tz, parsedate_tz
from typing import Any, TypeVar, cast

import openai

from userlm.types import Completion, Message, ModelError, Sampling, encodable

T = TypeVar("T")

RETRIES = 5
LONGEST_PAUSE = 60.0  # seconds, whatever the server asks for
POSSIBLY_BILLED = frozenset(
    ("timed out", "connection cut", "broken answer", "empty answer", "refused")
)
"""Faults of tries that may have been billed. The others were not: a server that is busy or down
wrote nothing."""
NOT_OFFERED = ("not found", "bad request")
"""Faults with which a server answers a request that it does not know."""


class EndpointModel:
    """A chat model behind an OpenAI-compatible endpoint.

    A parameter that the server does not take (newer OpenAI models want `max_completion_tokens`, and
    some no temperature) is left out of this and all later calls, and counted as a fault.

    Args:
        model: its name on the server.
        base_url: where the server is; `None`: api.openai.com.
        api_key: never shown: it is cut out of every error. `None` for a server that asks for none.
        retries: how often a call that failed for a passing reason (429, 5xx, a timeout, a cut
            connection, an answer that cannot be used) is tried again.
        timeout: of one try, in seconds.
        pause: before the second try, in seconds; it doubles with each further one. What the server
            asks for comes first.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None,
        api_key: str | None,
        retries: int = RETRIES,
        timeout: float = 120,
        pause: float = 0.5,
    ) -> None:
        self.name = model
        self._key = api_key
        self._key_variable = "USERLM_API_KEY" if base_url else "OPENAI_API_KEY"
        self._retries, self._pause = retries, pause
        self._not_taken: frozenset[str] = frozenset()
        self._client = openai.OpenAI(
            base_url=base_url or "https://api.openai.com/v1",
            api_key=api_key or "none",
            max_retries=0,  # tries that the client makes by itself are neither seen nor counted
            timeout=timeout,
        )

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """One answer; raises `ModelError` when retries did not help or would not."""
        said, faults, possibly_billed = self.ask(
            lambda client: self._chat(client, messages, sampling)
        )
        return replace(said, faults=faults, possibly_billed=possibly_billed)

    def ask(self, send: Callable[[openai.OpenAI], T | Fault]) -> tuple[T, tuple[str, ...], int]:
        """What `send` gets from the server, with the faults and the possibly_billed tries before
        it; see `Completion`.

        Raises:
            ModelError: when retries did not help or would not.
        """
        faults: list[Fault] = []
        left = self._retries
        while isinstance(got := self._once(send), Fault):
            faults.append(got)
            if got.adapted:
                continue
            if not (got.passing and left):
                kinds, possibly_billed = _sum(faults)
                said = f"{self.name}: {self._hide_key(got.said)}"
                raise ModelError(
                    said,
                    got.kind,
                    permanent=got.permanent,
                    faults=kinds,
                    possibly_billed=possibly_billed,
                )
            backoff = self._pause * 2 ** (self._retries - left)
            wait = backoff if got.wait is None else got.wait
            time.sleep(
                min(wait, LONGEST_PAUSE) + random.uniform(0, min(backoff, LONGEST_PAUSE) / 2)
            )
            left -= 1
        return got, *_sum(faults)

    def _once(self, send: Callable[[openai.OpenAI], T | Fault]) -> T | Fault:
        try:
            return send(self._client)
        except openai.APIStatusError as error:
            return self._status(error)
        except openai.APIConnectionError as error:
            return _connection(error)
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            return Fault("broken answer", f"the answer cannot be read: {error}", passing=True)

    def _chat(
        self, client: openai.OpenAI, messages: Sequence[Message], sampling: Sampling
    ) -> Completion | Fault:
        not_taken = self._not_taken
        values = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": openai.omit if sampling.seed is None else sampling.seed % 2**31,
        }
        if "max_tokens" in not_taken:
            values["max_completion_tokens"] = sampling.max_tokens
        taken = cast(Any, {name: value for name, value in values.items() if name not in not_taken})
        spelled = cast(Any, [dict(message) for message in messages])
        try:
            answer = client.chat.completions.create(model=self.name, messages=spelled, **taken)
        except openai.BadRequestError as error:
            if name := _not_taken(error, not_taken):
                self._not_taken |= {name}
                return Fault(f"{name} not taken", "", adapted=True)
            raise
        return _completion(answer)

    def _status(self, error: openai.APIStatusError) -> Fault:
        """What an answer that is an error means."""
        status = error.status_code
        said = f"{_said(error)} (HTTP {status})"
        if error.code == "content_filter":
            return Fault("refused", f"refused: {said}")
        if error.code == "insufficient_quota" or status == 402:
            return Fault("no credit", f"the account has no credit left: {said}", permanent=True)
        if status == 401:  # the server's own words may hold a part of the key
            wanted = "refused the key" if self._key else "wants a key"
            advice = f"put the right one into the environment variable {self._key_variable}"
            return Fault("key refused", f"the server {wanted} (HTTP 401); {advice}", permanent=True)
        if status == 403:
            return Fault("not allowed", f"this key may not use the model: {said}", permanent=True)
        if status in (404, 405):
            advice = "check the model's name, and that the URL ends in /v1"
            return Fault(
                "not found",
                f"the server knows no such model or path: {said}; {advice}",
                permanent=True,
            )
        wait = _wait(error.response.headers)
        if status in (408, 504, 524):  # a gateway gave up; the model behind it may have gone on
            return Fault("timed out", f"the server timed out: {said}", passing=True, wait=wait)
        if status == 429:
            return Fault("rate limited", f"too many requests: {said}", passing=True, wait=wait)
        if status == 409 or status >= 500:
            return Fault("server error", f"the server failed: {said}", passing=True, wait=wait)
        return Fault("bad request", f"the server does not take this request: {said}")

    def _hide_key(self, reason: str) -> str:
        hidden = reason.replace(self._key, "[key]") if self._key else reason
        return " ".join(hidden.split())[:300]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a try gave no answer.

    Attributes:
        kind: in two words, for counting.
        said: in a sentence.
        passing: another try may fare better.
        permanent: no call whatever will.
        adapted: the next try is made differently.
        wait: seconds that the server asks for; `None` if it does not.
    """

    kind: str
    said: str
    passing: bool = False
    permanent: bool = False
    adapted: bool = False
    wait: float | None = None


def _sum(faults: Sequence[Fault]) -> tuple[tuple[str, ...], int]:
    return tuple(fault.kind for fault in faults), sum(
        fault.kind in POSSIBLY_BILLED for fault in faults
    )


def _completion(answer: Any) -> Completion | Fault:
    try:
        choice, usage = answer.choices[0], answer.usage
        text, refusal = choice.message.content, getattr(choice.message, "refusal", None)
        finish = getattr(choice, "finish_reason", None)
    except (AttributeError, LookupError, TypeError):  # a page, an array, an answer without choices
        return Fault(
            "broken answer", "this is no chat completion; does the URL end in /v1?", passing=True
        )
    if text and not isinstance(text, str):
        return Fault("broken answer", "the content of the answer is no text", passing=True)
    if refusal or finish == "content_filter":
        return Fault("refused", f"refused: {refusal or 'the content filter stopped the answer'}")
    if text and text.strip():
        return Completion(
            encodable(text),
            tokens_in=_count(usage, "prompt_tokens"),
            tokens_out=_count(usage, "completion_tokens"),
        )
    if finish == "length":  # a model that thinks first; it would think as long again
        return Fault(
            "empty answer",
            "the answer is empty: all its tokens were spent before it began; allow more",
        )
    return Fault("empty answer", "the answer is empty", passing=True)


def _count(usage: object, name: str) -> int | None:
    """A number of tokens, if the server gave one."""
    count = getattr(usage, name, None)
    return count if type(count) is int and 0 <= count < 2**31 else None


def _connection(error: openai.APIConnectionError) -> Fault:
    if type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):  # nothing was sent
        said = "no connection to the server; is it running, and is the URL right?"
        return Fault("no connection", said, passing=True, permanent=True)
    if isinstance(error, openai.APITimeoutError):
        return Fault("timed out", "the server did not answer in time", passing=True)
    return Fault(
        "connection cut", f"the connection was cut: {error.__cause__ or error}", passing=True
    )


def _said(error: openai.APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, Mapping) else None
    return message if isinstance(message, str) else error.message


def _not_taken(error: openai.BadRequestError, known: frozenset[str]) -> str | None:
    """The parameter that a server does not take at all; a value that is out of range is another
    matter."""
    said = _said(error)
    if not _UNSUPPORTED.search(said):
        return None
    named = (error.param,) if error.param in _PARAMETERS else _PARAMETERS
    return next(
        (name for name in named if name not in known and re.search(rf"\b{name}\b", said)), None
    )


_PARAMETERS = ("top_p", "temperature", "seed", "max_tokens")
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra "
    r"inputs|"
    r"cannot both|deprecated",
    re.IGNORECASE,
)


def _wait(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a
    date."""
    for name, divisor in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        return seconds if seconds >= 0 else None
    try:
        date = parsedate_tz(headers.get("retry-after"))
        return max(0.0, mktime_tz(date) - time.time()) if date else None
    except (ValueError, OverflowError):
        return None

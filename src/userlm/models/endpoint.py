"""Any server that speaks the OpenAI API, through the `openai` client: OpenAI, vLLM, llama.cpp, Ollama, ...

It chats. Servers that take raw token ids, which a trained user model needs, are not spoken to yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import openai

from userlm.types import Completion, Message, ModelError, Sampling


class EndpointModel:
    """A chat model behind an OpenAI-compatible endpoint.

    Args:
        model: its name on the server.
        base_url: where the server is; `None`: api.openai.com.
        api_key: never shown: it is cut out of every error. `None` for a server that asks for none.
        retries: how often a call that failed for a passing reason (429, 5xx, a cut connection) is tried again,
            with the pauses that the server asks for.
        timeout: of one try, in seconds.
    """

    def __init__(
        self, model: str, base_url: str | None, api_key: str | None, retries: int = 5, timeout: float = 120
    ) -> None:
        self.name = model
        self._key = api_key
        self._client = openai.OpenAI(
            base_url=base_url or "https://api.openai.com/v1",
            api_key=api_key or "none",
            max_retries=retries,
            timeout=timeout,
        )

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """One answer; raises `ModelError` when retries did not help or the answer is empty."""
        try:
            answer = self._client.chat.completions.create(
                model=self.name,
                messages=cast(Any, [dict(message) for message in messages]),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=openai.omit if sampling.seed is None else sampling.seed % 2**31,
            )
        except (openai.OpenAIError, ValueError) as error:
            raise ModelError(f"{self.name}: {self._hide_key(str(error))}") from None
        try:
            text, usage = answer.choices[0].message.content, answer.usage
        except (AttributeError, LookupError, TypeError):  # a page, an array, an answer without choices
            raise ModelError(f"{self.name}: this is no chat completion; does the URL end in /v1?") from None
        if text and not isinstance(text, str):
            raise ModelError(f"{self.name}: the content of the answer is no text")
        if not text:
            raise ModelError(f"{self.name}: the answer is empty")
        return Completion(
            text,
            tokens_in=_count(usage, "prompt_tokens"),
            tokens_out=_count(usage, "completion_tokens"),
        )

    def _hide_key(self, reason: str) -> str:
        hidden = reason.replace(self._key, "[key]") if self._key else reason
        return " ".join(hidden.split())[:300]


def _count(usage: object, name: str) -> int | None:
    """A number of tokens, if the server gave one."""
    count = getattr(usage, name, None)
    return count if isinstance(count, int) else None

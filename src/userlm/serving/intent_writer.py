"""Intents that a chat model writes for the prompts of harnesses: `userlm serve --intent-by`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256

from userlm.data.intents import description_request, write_after
from userlm.models.budget import is_wanted_here, while_wanted
from userlm.models.call_cache import answer_of
from userlm.models.shared_calls import SharedCalls
from userlm.serving.schema import NO_RETRY, RequestError
from userlm.text import stable_hash
from userlm.types import Chat, Conversation, Message, ModelError, Sampling

TRIES = 2
MAX_TOKENS = 2_000
"""An intent has 50; the others are for a model that thinks first."""
MAX_KEPT = 10_000
"""Intents; with their keys they take a few MB."""


class IntentWriter:
    """A chat model that says in one sentence what a described user wants. It is thread-safe.

    An intent is kept by the hash of its description, so that all conversations of a harness with
    the same prompt have the same one. Those that were not asked for longest are dropped first.

    Args:
        name: the name of the model, for notes and errors.
        max_kept: how many intents are kept.
    """

    def __init__(self, name: str, chat: Chat, max_kept: int = MAX_KEPT) -> None:
        self.name = name
        self._chat = chat
        self._max_kept = max_kept
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._writing = SharedCalls[str]()
        self._callers: dict[str, list[Callable[[], bool]]] = {}

    def write(self, description: str) -> str:
        """Return the intent. Threads with the same description wait for the first of them, which
        asks as long as one of them is wanted.

        Raises:
            RequestError: 503 if the model fails, 502 if it writes no intent. Neither is kept.
            ModelError: if a cap does not allow the call, or if nobody waits for it any more.
        """
        key = sha256(description.encode(errors="surrogatepass")).hexdigest()
        caller = is_wanted_here()
        with self._lock:
            callers = self._callers.setdefault(key, [])
            callers.append(caller)

        def write() -> str:
            with self._lock:
                known = self._kept.pop(key, None)
            if known is None:
                with while_wanted(lambda: any(is_there() for is_there in [*callers])):
                    known = self._written(description)
            with self._lock:
                self._kept[key] = known  # behind those that were asked for before
                if len(self._kept) > self._max_kept:
                    self._kept.popitem(last=False)
            return known

        try:
            return self._writing.result(key, write)[0]
        finally:
            with self._lock:
                callers.remove(caller)
                if not callers:
                    del self._callers[key]

    def _written(self, description: str) -> str:
        def ask(number: int, messages: Sequence[Message]) -> tuple[str | None, str]:
            seed = stable_hash(description, number) % 2**63
            sampling = Sampling(temperature=0, max_tokens=MAX_TOKENS, seed=seed)
            answer = answer_of(self._chat.chat(messages, sampling), sampling)
            return answer.text, answer.reason

        nothing_said = Conversation("")
        try:
            intent, reason = write_after(
                description_request(description), nothing_said, ask, TRIES
            )
        except ModelError as error:
            if error.reason in ("cap", "stopped"):
                raise
            raise self._failed(503, f"failed: {error}") from error
        if intent is None:
            raise self._failed(502, f"wrote no intent for this prompt ({reason})")
        return intent

    def _failed(self, status: int, what: str) -> RequestError:
        # The model was asked more than once already, so clients should not retry.
        return RequestError(
            status,
            f"{self.name}, which writes the intents, {what}; send userlm.intent, or put the intent "
            "into the prompt",
            code="intent_failed",
            headers=NO_RETRY,
        )

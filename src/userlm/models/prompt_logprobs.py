"""Scoring on a server that gives the log-probability of each token of a prompt, such as vLLM.

A prompt is sent as token ids to `/v1/completions`. There are two forms of requests; the one that a
server supports is detected once:

    vLLM      `prompt_logprobs`: a log-probability for each id of the prompt, by id
    others    `echo` with `logprobs`, as in the first OpenAI API: one for each token, without its id

Both can be wrong without an error: a server may add a BOS, truncate a long prompt, or return no
log-probabilities for the part in its prefix cache. So they are counted, and before the first row a
probe is scored twice, the second time after a row with the same prefix. A server whose answers
differ is refused.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from random import SystemRandom
from typing import Any

import openai

from userlm.models.endpoint import (
    NOT_OFFERED,
    TAKE_IDS,
    USE_VLLM,
    EndpointModel,
    first_choice,
    token_count,
)
from userlm.types import InputError, ModelError

TOLERANCE = 0.5
"""Nats. In half precision the log-probability of a token varies by hundredths with the other rows
of the batch. If tokens were mixed up, some in a row would differ by more than this."""

PROBE_TOKENS = 400
"""Minimum length of the row that is scored twice: servers cache blocks of 16 to 128 tokens."""

Row = tuple[Sequence[int], Sequence[bool]]
"""Token ids, and a mask of the tokens to score."""

Request = Callable[[openai.OpenAI, str, Sequence[int]], "list[Any] | None"]
"""Asks a server for the log-probability of each id; `None` for the first id or a missing one.
Returns `None` instead of the list if the server answers without log-probabilities."""


class PromptLogprobs:
    """Scores rows on a server.

    Args:
        endpoint: the server; its retries are used here too.
        workers: the number of concurrent requests.
    """

    def __init__(self, endpoint: EndpointModel, workers: int = 16) -> None:
        self._endpoint = endpoint
        self._workers = workers
        self._request: Request | None = None
        self._lock = threading.Lock()

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        """Return the log-probability of each masked token, in nats, in the order of the
        rows.

        Raises:
            InputError: if the server returns no or wrong log-probabilities; the message says what
            to do. ModelError: if the server fails.
        """
        if any(len(mask) and mask[0] for _, mask in rows):
            raise ValueError(
                "the first token of a row has nothing before it and cannot be scored"
            )
        scored = [ids for ids, mask in rows if any(mask)]
        if not scored:
            return [[] for _ in rows]
        with self._lock:
            self._request = request = self._request or self._probe(max(scored, key=len))
        pool = ThreadPoolExecutor(self._workers)
        try:
            return list(pool.map(partial(self._score_row, request), rows))
        finally:  # after an error, start no more rows
            pool.shutdown(wait=False, cancel_futures=True)

    def _score_row(self, request: Request, row: Row) -> list[float]:
        ids, mask = row
        if not any(mask):
            return []
        logprobs = self._ask(request, ids)
        if logprobs is None:
            raise self._not_scorable(
                "the server left out the log-probabilities of a prompt"
            )
        return list(compress(logprobs, mask))

    def _ask(
        self,
        request: Request,
        ids: Sequence[int],
    ) -> list[float] | None:
        """Return the log-probability of each id, 0 for the first; `None` if the server returns
        none."""
        values, _, _ = self._endpoint.ask(
            lambda client: request(client, self._endpoint.name, ids)
        )
        if values is None:
            return None
        if len(values) != len(ids):
            raise self._not_scorable(
                f"{len(ids)} token ids were sent, and {len(values)} log-probabilities were "
                f"returned: "
                f"{TAKE_IDS}, or give a lower --max-tokens"
            )
        for number, value in enumerate(values[1:], 2):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise self._not_scorable(
                    f"the log-probability of token {number} of {len(ids)} is {value!r}; if the "
                    "server is vLLM, start it with --no-enable-prefix-caching"
                )
        return [0.0, *map(float, values[1:])]

    def _probe(self, longest: Sequence[int]) -> Request:
        """Return the form of request that the server supports, tested with a probe.

        A probe starts with random tokens, so that it is not in a cache from an earlier run.
        """
        ids = list(longest)
        random_start = SystemRandom().choices(ids, k=8)
        repeats = 1 + PROBE_TOKENS // len(ids)
        probe = random_start + ids * repeats
        probe = probe[: max(len(ids), PROBE_TOKENS)]
        refused: dict[str, None] = {}  # an ordered set
        for request in (_prompt_logprobs, _echo, _echo_and_one):
            try:
                logprobs = self._ask(request, probe)
            except ModelError as error:
                if error.reason not in NOT_OFFERED:
                    raise
                refused[str(error)] = None
                continue
            if logprobs is not None:
                self._check_cache(request, probe, logprobs)
                return request
            refused["it leaves them out"] = None
        raise self._not_scorable(
            "the server returns no log-probabilities of a prompt, neither by `prompt_logprobs` nor "
            f"by `echo` ({'; '.join(refused)}); {USE_VLLM}"
        )

    def _check_cache(
        self,
        request: Request,
        probe: list[int],
        logprobs: list[float],
    ) -> None:
        """Raise `InputError` if a probe gets different log-probabilities after a row with the same
        first three quarters."""
        shared = len(probe) * 3 // 4
        self._ask(request, probe[:shared] + probe[shared:][::-1])
        again = self._ask(request, probe)
        if again is None:
            raise self._not_scorable(
                "the server left out the log-probabilities of a prompt"
            )
        largest = max(abs(a - b) for a, b in zip(logprobs, again, strict=True))
        if largest > TOLERANCE:
            raise self._not_scorable(
                "the same row got different log-probabilities after a row with the same prefix (by "
                f"up to {largest:.2g} nats): the server reads parts of prompts from a cache; start "
                "vLLM with --no-enable-prefix-caching"
            )

    def _not_scorable(self, why: str) -> InputError:
        return InputError(f"{self._endpoint.name}: cannot be used for scoring: {why}")


def _prompt_logprobs(
    client: openai.OpenAI,
    model: str,
    ids: Sequence[int],
) -> list[Any] | None:
    """Send vLLM's form of request. The answer maps, for each position, the id and other ids to
    values."""
    answer = client.completions.create(
        model=model,
        prompt=[*ids],
        max_tokens=1,
        temperature=0,
        extra_body={"prompt_logprobs": 0},  # no other ids
    )
    entries = getattr(first_choice(answer), "prompt_logprobs", None)
    if not isinstance(entries, list):
        return None
    if len(entries) != len(ids):
        return entries
    return list(map(_logprob, ids, entries))


def _logprob(id: int, entry: Any) -> Any:
    """Return the log-probability of an id; `None` if the entry belongs to another prompt."""
    known = entry.get(str(id)) if isinstance(entry, dict) else None
    return known.get("logprob") if isinstance(known, dict) else None


def _echo(
    client: openai.OpenAI, model: str, ids: Sequence[int], max_tokens: int = 0
) -> list[Any] | None:
    """Send `echo` with `logprobs`, without generating tokens."""
    answer = client.completions.create(
        model=model,
        prompt=[*ids],
        max_tokens=max_tokens,
        temperature=0,
        echo=True,
        logprobs=1,
    )
    logprobs = getattr(first_choice(answer), "logprobs", None)
    values = getattr(logprobs, "token_logprobs", None)
    if not isinstance(values, list):
        return None
    if not max_tokens:
        return values
    tokens_in = token_count(answer, "prompt_tokens")
    if tokens_in is None:
        # a BOS at the start could not be distinguished from a token at the end
        return None
    return values[:-1] if tokens_in == len(ids) else values[:tokens_in]


_echo_and_one = partial(_echo, max_tokens=1)
"""The same for servers that generate at least one token; this last token is ignored."""

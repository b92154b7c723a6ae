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

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from random import SystemRandom
from typing import Any

import openai
from openai.types import Completion

from userlm.models.budget import count_test
from userlm.models.endpoint import (
    TAKE_IDS,
    USE_VLLM,
    EndpointModel,
    first_choice,
    receive,
    token_count,
)
from userlm.models.faults import NOT_OFFERED
from userlm.types import InputError, ModelError

TOLERANCE = 0.5
"""Nats. In half precision the log-probability of a token varies by hundredths with the other rows
of the batch. If tokens were mixed up, some in a row would differ by more than this."""

PROBE_TOKENS = 400
"""Minimum length of the row that is scored twice: servers cache blocks of 16 to 128 tokens."""

LOWEST = -1e6
"""Nats. Logits in half precision, the widest apart, differ by less."""

LEFT_OUT = "the server left out the log-probabilities of a prompt"

Row = tuple[Sequence[int], Sequence[bool]]
"""Token ids, and a mask of the tokens to score."""

Form = dict[str, Any]
"""The parameters of a request for log-probabilities, beside model and prompt."""
PROMPT_LOGPROBS: Form = {
    "max_tokens": 1,
    "extra_body": {"prompt_logprobs": 0},  # no other ids
}
ECHO: Form = {"max_tokens": 0, "echo": True, "logprobs": 1}
ECHO_AND_ONE = ECHO | {"max_tokens": 1}
"""For servers that generate at least one token; this last token is ignored."""


class PromptLogprobs:
    """Scores rows on a server.

    Args:
        endpoint: the server; its retries are used here too.
        workers: the number of concurrent requests.
    """

    def __init__(self, endpoint: EndpointModel, workers: int = 16) -> None:
        self._endpoint = endpoint
        self._workers = workers
        self._form: Form | None = None
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
            self._form = form = self._form or self._find_form(max(scored, key=len))
        if len(rows) == 1:
            return [self._score_row(form, rows[0])]
        pool = ThreadPoolExecutor(self._workers)
        try:
            return list(pool.map(partial(self._score_row, form), rows))
        finally:  # after an error, start no more rows
            pool.shutdown(wait=False, cancel_futures=True)

    def _score_row(self, form: Form, row: Row) -> list[float]:
        ids, mask = row
        if not any(mask):
            return []
        return list(compress(self._logprobs(form, ids), mask))

    def _logprobs(self, form: Form, ids: Sequence[int]) -> list[float]:
        """Return the log-probability of each id, 0 for the first."""
        logprobs = self._ask(form, ids)
        if logprobs is None:
            raise self._not_scorable(LEFT_OUT)
        return logprobs

    def _ask(self, form: Form, ids: Sequence[int]) -> list[float] | None:
        """Return the same as `_logprobs`; `None` if a server that is tested returns none."""
        name = self._endpoint.name

        async def send(client: openai.AsyncOpenAI) -> tuple[list[Any] | None, str]:
            create: Any = client.completions.with_streaming_response.create
            request = create(model=name, prompt=[*ids], temperature=0, **form)
            answer = Completion.construct(**await receive(request))
            values = _values(answer, ids, form)
            problem = _problem(values, len(ids))
            if problem and self._form:
                # the server can do it, so this answer is an exception, and is tried again
                raise ValueError(problem)
            return values, problem

        values, problem = self._endpoint.ask(send, [])
        if values is None:
            return None
        if problem:
            raise self._not_scorable(problem)
        return [0.0, *map(float, values[1:])]

    def _find_form(self, longest: Sequence[int]) -> Form:
        """Return the form of request that the server supports. Two tests must fail before it is
        refused, since any server may give one odd answer."""
        try:
            return self._probe(longest)
        except InputError:
            return self._probe(longest)

    def _probe(self, longest: Sequence[int]) -> Form:
        """Return the form of request that the server supports, tested with a probe.

        A probe starts with random tokens, so that it is not in a cache from an earlier run.
        """
        ids = list(longest)
        random_start = SystemRandom().choices(ids, k=8)
        repeats = 1 + PROBE_TOKENS // len(ids)
        probe = random_start + ids * repeats
        probe = probe[: max(len(ids), PROBE_TOKENS)]
        refused: dict[str, None] = {}  # an ordered set
        for form in (PROMPT_LOGPROBS, ECHO, ECHO_AND_ONE):
            try:
                count_test(len(probe))
                logprobs = self._ask(form, probe)
            except ModelError as error:
                if error.reason not in NOT_OFFERED:
                    raise
                refused[str(error)] = None
                continue
            if logprobs is not None:
                self._check_cache(form, probe, logprobs)
                return form
            refused["it leaves them out"] = None
        raise self._not_scorable(
            "the server returns no log-probabilities of a prompt, neither by `prompt_logprobs` nor "
            f"by `echo` ({'; '.join(refused)}); {USE_VLLM}"
        )

    def _check_cache(self, form: Form, probe: list[int], logprobs: list[float]) -> None:
        """Raise `InputError` if a probe gets different log-probabilities after a row with the same
        first three quarters."""
        shared = len(probe) * 3 // 4
        count_test(2 * len(probe))
        self._ask(form, probe[:shared] + probe[shared:][::-1])
        again = self._logprobs(form, probe)
        largest = max(abs(a - b) for a, b in zip(logprobs, again, strict=True))
        if largest > TOLERANCE:
            raise self._not_scorable(
                "the same row got different log-probabilities after a row with the same prefix (by "
                f"up to {largest:.2g} nats): the server reads parts of prompts from a cache; start "
                "vLLM with --no-enable-prefix-caching"
            )

    def _not_scorable(self, why: str) -> InputError:
        message = f"{self._endpoint.name}: cannot be used for scoring: {why}"
        return InputError(self._endpoint.masked(message))


def _problem(values: list[Any] | None, tokens_sent: int) -> str:
    """Return why the log-probabilities of an answer cannot be used; empty if they can."""
    if values is None:
        return LEFT_OUT
    if len(values) != tokens_sent:
        return (
            f"{tokens_sent} token ids were sent, and {len(values)} log-probabilities were "
            f"returned: {TAKE_IDS}, or give a lower --max-tokens"
        )
    for number, value in enumerate(values[1:], 2):
        if not _is_logprob(value):
            found = "None" if value is None else "impossible"
            return (
                f"the log-probability of token {number} of {tokens_sent} is {found}; if the "
                "server is vLLM, start it with --no-enable-prefix-caching"
            )
    return ""


def _is_logprob(value: Any) -> bool:
    """Whether it is a number in the range of log-probabilities, which rounding may exceed."""
    return type(value) in (int, float) and LOWEST <= value <= 1e-3


def _values(answer: Any, ids: Sequence[int], form: Form) -> list[Any] | None:
    """Return the log-probability of each id, `None` for the first one and for missing ones; `None`
    instead of the list if the server answers without log-probabilities."""
    choice = first_choice(answer)
    if form is PROMPT_LOGPROBS:
        # For each position, it maps the id and other ids to values.
        values = getattr(choice, "prompt_logprobs", None)
        if isinstance(values, list) and len(values) == len(ids):
            return list(map(_logprob, ids, values))
    else:
        values = getattr(getattr(choice, "logprobs", None), "token_logprobs", None)
    if not isinstance(values, list):
        return None
    if form is ECHO_AND_ONE:
        tokens_in = token_count(answer, "prompt_tokens")
        if tokens_in is None:
            # a BOS at the start could not be distinguished from a token at the end
            return None
        return values[:-1] if tokens_in == len(ids) else values[:tokens_in]
    return values


def _logprob(id: int, entry: Any) -> Any:
    """Return the log-probability of an id; `None` if the entry belongs to another prompt."""
    known = entry.get(str(id)) if isinstance(entry, dict) else None
    return known.get("logprob") if isinstance(known, dict) else None

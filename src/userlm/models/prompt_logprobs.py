"""A model on a server that tells how probable each token of a prompt is: vLLM, and whatever else
can.

A prompt is sent as token ids to `/v1/completions`, in one of two ways; which of them a server
offers is found out
once:

    vLLM        `prompt_logprobs`: for each id of the prompt its log-probability, by id
    others      `echo` with `logprobs`, as the first OpenAI models had it: one for each token, without its id

Both can be silently wrong: a server may put a BOS in front, cut a long prompt, or take a part of it
from the cache of an earlier one without its log-probabilities. So they are counted, and before
anything else one row is asked for alone and again behind a row that shares its beginning. What does
not agree is refused.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import SystemRandom
from typing import Any

import openai

from userlm.models.endpoint import NOT_OFFERED, EndpointModel
from userlm.types import InputError, ModelError

TOLERANCE = 0.5
"""Nats. Half precision moves the log-probability of a token by hundredths when other rows are
computed with it; if it is that of another token, some in a row are off by more than this."""

CHECKED = 400
"""Tokens of the row that is asked for twice, at least: servers cache blocks of 16 to 128."""

Way = Callable[[openai.OpenAI, str, Sequence[int]], "list[Any] | None"]
"""Asks a server for the log-probability of each id under a model: numbers, and `None` where it
gives none, as for the first. `None` in all if it answers and leaves them out."""


class PromptLogprobs:
    """Scores rows on a server.

    Args:
        endpoint: where it is; its retries and its care for the key serve here, too.
        workers: rows at once.
    """

    def __init__(self, endpoint: EndpointModel, workers: int = 16) -> None:
        self._endpoint, self._workers = endpoint, workers
        self._way: Way | None = None
        self._lock = threading.Lock()

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> list[list[float]]:
        """The log-probability of each masked token, in nats, in the order of the rows.

        Raises:
            InputError: if the server gives none, or wrong ones; it says what to do.
            ModelError: if it fails.
        """
        if any(len(mask) and mask[0] for _, mask in rows):
            raise ValueError("the first token of a row has nothing before it and cannot be scored")
        wanted = [ids for ids, mask in rows if any(mask)]
        if not wanted:
            return [[] for _ in rows]
        with self._lock:
            way = self._way = self._way or self._find_way(max(wanted, key=len))
        pool = ThreadPoolExecutor(self._workers)
        try:
            return list(pool.map(partial(self._score_row, way), rows))
        finally:  # after an error begin nothing new
            pool.shutdown(wait=False, cancel_futures=True)

    def _score_row(self, way: Way, row: tuple[Sequence[int], Sequence[bool]]) -> list[float]:
        ids, mask = row
        if not any(mask):
            return []
        logprobs = self._ask(way, ids)
        if logprobs is None:
            raise self._unfit("the server left the log-probabilities of a prompt out")
        return [logprobs[i] for i, wanted in enumerate(mask) if wanted]

    def _ask(self, way: Way, ids: Sequence[int]) -> list[float] | None:
        """One for each id (0 for the first); `None` if the server does not offer this way."""
        got, _, _ = self._endpoint.ask(lambda client: way(client, self._endpoint.name, ids))
        if got is None:
            return None
        if len(got) != len(ids):
            raise self._unfit(
                f"{len(ids)} token ids were sent, and {len(got)} log-probabilities came back: the "
                "server adds a "
                "token (a BOS?) or cuts the prompt; make it take ids as they are, or give a lower "
                "--max-tokens"
            )
        for i, value in enumerate(got[1:], 1):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise self._unfit(
                    f"the log-probability of token {i + 1} of {len(ids)} is {value!r}; if the "
                    "server is vLLM, "
                    "start it with --no-enable-prefix-caching"
                )
        return [0.0, *map(float, got[1:])]

    def _find_way(self, longest: Sequence[int]) -> Way:
        """What the server offers, once it is seen that its answer does not hang on what it was
        asked before.

        The rows for that begin with some tokens drawn anew, so that no cache holds them from an
        earlier run.
        """
        ids = list(longest)
        row = SystemRandom().choices(ids, k=8) + ids + ids * (CHECKED // len(ids))
        row = row[: max(len(ids), CHECKED)]
        said: dict[str, None] = {}
        for way in (_vllm, _echo, _echo_and_one):
            try:
                alone = self._ask(way, row)
            except ModelError as error:
                if error.reason not in NOT_OFFERED:
                    raise
                said[str(error)] = None
                continue
            if alone is None:
                said["it leaves them out"] = None
                continue
            shared = len(row) * 3 // 4
            self._ask(way, [*row[:shared], *reversed(row[shared:])])
            again = self._ask(way, row) or [math.nan] * len(row)
            worst = max(abs(a - b) for a, b in zip(alone, again, strict=True))
            if not worst <= TOLERANCE:
                raise self._unfit(
                    "the same row got other log-probabilities behind a row that shares its "
                    "beginning (by up to "
                    f"{worst:.2g} nats): the server takes parts of prompts from a cache; start "
                    "vLLM with "
                    "--no-enable-prefix-caching"
                )
            return way
        raise self._unfit(
            "the server gives no log-probabilities of a prompt, neither by `prompt_logprobs` nor "
            "by `echo` "
            f"({'; '.join(said)}); serve the model with vLLM, or give its folder"
        )

    def _unfit(self, why: str) -> InputError:
        return InputError(f"{self._endpoint.name}: not scorable: {why}")


def _vllm(client: openai.OpenAI, model: str, ids: Sequence[int]) -> list[Any] | None:
    """`prompt_logprobs`: for each id a mapping from ids, the prompt's own among them, to what is
    known of them."""
    asked = {"prompt_logprobs": 0}  # 0: of no other ids
    choice = _first(
        client.completions.create(
            model=model, prompt=[*ids], max_tokens=1, temperature=0, extra_body=asked
        )
    )
    entries = getattr(choice, "prompt_logprobs", None)
    if not isinstance(entries, list) or len(entries) != len(ids):
        return entries if isinstance(entries, list) else None
    return [_of(id, entry) for id, entry in zip(ids, entries, strict=True)]


def _of(id: int, entry: Any) -> Any:
    """The log-probability of an id; `None` if the entry is of other ids, and so of another
    prompt."""
    known = entry.get(str(id)) if isinstance(entry, dict) else None
    return known.get("logprob") if isinstance(known, dict) else None


def _echo(client: openai.OpenAI, model: str, ids: Sequence[int]) -> list[Any] | None:
    """`echo` with `logprobs`, and nothing generated."""
    answer = client.completions.create(
        model=model, prompt=[*ids], max_tokens=0, temperature=0, echo=True, logprobs=1
    )
    return _echoed(answer)


def _echo_and_one(client: openai.OpenAI, model: str, ids: Sequence[int]) -> list[Any] | None:
    """The same for servers that generate at least one token: it comes last."""
    answer = client.completions.create(
        model=model, prompt=[*ids], max_tokens=1, temperature=0, echo=True, logprobs=1
    )
    values, usage = _echoed(answer), getattr(answer, "usage", None)
    prompt = getattr(usage, "prompt_tokens", None)
    if values is None or not isinstance(
        prompt, int
    ):  # a BOS in front could not be told from a token behind
        return None
    return values[: len(values) - 1] if prompt == len(ids) else values[:prompt]


def _echoed(answer: Any) -> list[Any] | None:
    values = getattr(getattr(_first(answer), "logprobs", None), "token_logprobs", None)
    return values if isinstance(values, list) else None


def _first(answer: Any) -> Any:
    try:
        return answer.choices[0]
    except (AttributeError, LookupError, TypeError):  # a page, an array, an answer without choices
        raise ValueError("this is no completion; does the URL end in /v1?") from None

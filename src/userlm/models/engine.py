"""Concurrent completions from one transformers model: the engine behind `LocalModel.complete`.

Conversations keep their keys and values between turns (`models.kv_cache`), so a turn costs only its
new tokens. Prompts of new requests and the last tokens of running ones go through the model
together (continuous batching).
"""

from __future__ import annotations

import atexit
import math
import os
import random
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from userlm.models.attention import (
    DOCUMENT_MASKING,
    TRIAL_PROMPTS,
    check_kv_cache,
    document_masking,
    packed_logits,
    same_logits,
)
from userlm.models.kv_cache import CacheRow, KVCache, default_budget, shared_prefix
from userlm.models.sampling import sample_tokens
from userlm.types import TOO_LONG, ModelError, Sampling

CHUNK = 2048
"""Maximum number of prompt tokens in one step, so that a long prompt does not block other
requests."""
ROWS_PER_REQUEST = 16
"""Cache rows per concurrent completion; most belong to conversations that wait for the next
turn."""
TOKENS_PER_REQUEST = 1536
"""Tokens in cache rows per concurrent completion, where the memory is that of the host: with 32,
enough for 16 conversations at once (`--workers`) of 3,000 tokens each."""
IDLE = 1.0
"""Seconds without a request after which the worker thread ends."""

Mode = Literal["kv_cache", "transformers_cache", "no_cache"]
Inputs = dict["Request", list[int]]
"""The tokens of one step."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The tokens of a completion, without the one that ended it; see `userlm.types.Completion`."""

    ids: tuple[int, ...]
    stop_id: int | None
    p_end: float | None


@dataclass(slots=True, eq=False)
class Request:
    """One completion while it is being generated.

    Attributes:
        ids: the prompt, and the tokens sampled so far.
        max_length: the maximum length of both together.
        random: its own random numbers, so that its text does not depend on other requests.
        row: the cache row: the ids that went through the model, with their keys and values.
        cache: the cache of transformers, in mode `transformers_cache`.
        future: what its caller waits for; cancelled if the caller stopped waiting.
    """

    ids: list[int]
    prompt_length: int
    max_length: int
    sampling: Sampling
    random: random.Random
    row: CacheRow = field(default_factory=lambda: CacheRow(0))
    cache: dict[str, Any] = field(default_factory=dict)
    p_end: float | None = None
    stop_id: int | None = None
    future: Future[Generated] = field(default_factory=Future)

    @property
    def pending(self) -> list[int]:
        """The ids that the model has not processed yet."""
        return self.ids[len(self.row.ids) :]

    @property
    def at_first_token(self) -> bool:
        """Whether no token was sampled yet."""
        return len(self.ids) == self.prompt_length


class Engine:
    """Completes requests of many threads concurrently; new ones join between two steps.

    One worker thread does all the work. It starts with the first request and ends after some time
    without requests. Callers only wait, so Ctrl-C in one of them leaves nothing half done.

    The KV cache needs an architecture that passes information between tokens only by attention;
    this is tested once. Others (state space models, attention with caps or sinks, LongRoPE)
    complete one request at a time, with transformers' own cache, or without one if that gives
    different logits.

    Args:
        model: in evaluation mode. Its weights must not change, since the cache has keys and values
            from them.
        batch: the number of concurrent completions; with 1, each depends only on prompt, seed and
            sampling, bit for bit. Without a KV cache it becomes 1.
        budget: the size of the KV cache in bytes; by default `default_budget`.

    Attributes:
        lock: held while the model runs, since its attention is replaced then. Acquire it to use the
            model for anything else.
        mode: how requests are completed; `None` before the first one.
        tokens_processed: the number of tokens that went through the model.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        context_length: int,
        batch: int,
        budget: int | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self.context_length = context_length
        self.batch = batch
        self.budget = budget
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self.mode: Mode | None = None
        self.tokens_processed = 0
        self._own_attention = model.config._attn_implementation
        self._cache: KVCache | None = None
        self._banned: dict[frozenset[int], Tensor] = {}
        self._reset()
        _engines.add(self)

    def _reset(self) -> None:
        """Set the state without a thread and requests: initially, and in a forked process.

        A fork copies no threads, and it may come in the middle of a step, with the lock held, the
        attention replaced and some row half written.
        """
        self.lock = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: list[Request] = []
        self._active: list[Request] = []
        self._worker: threading.Thread | None = None
        self._stopping = False
        if self._cache:
            self._cache.rows.clear()
        if self.model.config._attn_implementation == DOCUMENT_MASKING:
            self.model.config._attn_implementation = self._own_attention

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Generated:
        """Continue a prompt.

        Raises:
            ModelError: if it does not fit, no token can be sampled, or the model fails.
        """
        check_length(self.name, len(ids), self.context_length, new=1)
        named = [*ids, sampling.end_id or 0]
        if not ids or min(named) < 0 or max(named) >= self.vocabulary:
            raise ModelError(
                f"{self.name}: a prompt needs tokens, and their ids must be from 0 to "
                f"{self.vocabulary - 1}"
            )
        max_length = min(self.context_length, len(ids) + sampling.max_tokens)
        seed = None if sampling.seed is None else sampling.seed % 2**63
        request = Request(
            list(ids), len(ids), max_length, sampling, random.Random(seed)
        )
        with self._changed:
            if self._worker is None:
                # A daemon thread does not keep Python from exiting; `_stop_all` ends it at exit.
                self._worker = threading.Thread(
                    target=self._work, name="userlm-engine", daemon=True
                )
                self._worker.start()
            self._waiting.append(request)
            self._changed.notify_all()
        try:
            return request.future.result()
        finally:
            request.future.cancel()  # after Ctrl-C; otherwise it is done

    def drop_rows(self) -> None:
        """Free the memory of conversations that wait for their next turn, if no request runs."""
        with self._changed:
            if self._cache and not self._active and not self._waiting:
                self._cache.rows.clear()

    def stop(self) -> None:
        """End the worker after its current step; requests that are not done fail."""
        with self._changed:
            self._stopping = True
            worker = self._worker
            self._changed.notify_all()
        if worker:
            worker.join()

    # --- in the worker thread

    @torch.inference_mode()
    def _work(self) -> None:
        while self._schedule():
            try:
                self._step()
            except Exception as error:  # the step failed for all its requests
                for request in list(self._active):
                    self._fail(request, error)

    def _schedule(self) -> bool:
        """Drop cancelled requests and admit waiting ones; return whether any is active."""
        with self._changed:
            if not (self._active or self._waiting or self._stopping):
                self._changed.wait(IDLE)
            for request in [*self._active, *self._waiting]:
                if request.future.cancelled() or self._stopping:
                    self._finish(
                        request, ModelError(f"{self.name}: the request was cancelled")
                    )
            for request in list(self._waiting):
                if not self._admit(request):
                    break
            if not self._active:
                # then no request waits either, since they only wait for active ones
                self._worker = None
            return bool(self._active)

    def _admit(self, request: Request) -> bool:
        """Start a waiting request if it may; return whether later ones may start before it."""
        try:
            if self.mode is None:
                self._choose_mode()
            if len(self._active) >= self.batch:
                return False
            if self._cache:
                if self._is_prefilled_elsewhere(request, self._cache):
                    return True
                row = self._cache.acquire(request.ids, request.max_length)
                if row is None:
                    return False
                request.row = row
        except Exception as error:
            self._fail(request, error)
        else:
            self._waiting.remove(request)
            self._active.append(request)
        return True

    def _is_prefilled_elsewhere(self, request: Request, cache: KVCache) -> bool:
        """Return whether an active request is processing most of this prompt, since copying its row
        is cheaper."""
        _, known = cache.longest_prefix(request.ids)
        for other in self._active:
            if len(other.row.ids) < other.prompt_length:
                gain = shared_prefix(other.ids, request.ids, known) - known
                if 2 * gain > request.prompt_length - known:
                    return True
        return False

    def _finish(self, request: Request, error: Exception | None = None) -> None:
        if request in self._active:
            self._active.remove(request)
            if self._cache:
                self._cache.release(request.row)
        else:
            self._waiting.remove(request)
        found = tuple(request.ids[request.prompt_length :])
        with suppress(InvalidStateError):  # its caller stopped waiting
            if error:
                request.future.set_exception(error)
            else:
                request.future.set_result(
                    Generated(found, request.stop_id, request.p_end)
                )

    def _fail(self, request: Request, error: Exception) -> None:
        """Finish with an error. A RuntimeError comes from the model, such as out of memory. Any
        other kind is a bug and is raised unchanged in the caller."""
        if isinstance(error, RuntimeError):
            error = ModelError(f"{self.name}: the model failed: {first_line(error)}")
        self._finish(request, error)
        if self._cache:
            self._cache.drop_free_rows()  # a row may be only partly copied or written

    def _step(self) -> None:
        """Run the model once, and sample a token for each request whose ids have all been
        processed."""
        inputs = self._step_inputs()
        found = self._forward(inputs, self.mode) if inputs else {}
        ready = {}
        for request in self._active:
            if request.pending:
                continue
            logits: Any = found.get(request, request.row.logits)
            if request.at_first_token and request.row.logits is None:
                # Kept for other samples of the prompt; a copy, so that the memory of the batch is
                # freed.
                request.row.logits = logits.clone()
            ready[request] = logits
        if ready:
            self._sample([*ready], torch.stack([*ready.values()]))

    def _step_inputs(self) -> Inputs:
        """Return what goes through the model next: for each request the token that was sampled
        last, or a part of its prompt.

        The oldest prompt gets half of the chunk, so that it makes progress; then the shortest come
        first.
        """
        if self.mode == "no_cache":
            for request in self._active:
                request.row.ids = []
        inputs = {request: request.pending for request in self._active}
        if self.mode != "kv_cache":
            return inputs
        prefill = [request for request, new in inputs.items() if len(new) > 1]
        shortest_first = sorted(prefill[1:], key=lambda request: len(inputs[request]))
        left = CHUNK
        share = left // 2 if shortest_first else left
        for request in [*prefill[:1], *shortest_first]:
            inputs[request] = inputs[request][:share]
            left -= len(inputs[request])
            share = left
        return {request: new for request, new in inputs.items() if new}

    def _forward(self, inputs: Inputs, mode: Mode | None) -> dict[Request, Tensor]:
        """Run the model; return the logits after the tokens of each request, float32."""
        with self.lock:
            if mode == "kv_cache":
                rows = [request.row for request in inputs]
                with document_masking(self.model):
                    logits = packed_logits(self.model, [*inputs.values()], cache=rows)
            else:
                [(request, new)] = inputs.items()
                cached = mode == "transformers_cache"
                out = self.model(
                    input_ids=torch.tensor([new], device=self.model.device),
                    use_cache=cached,
                    logits_to_keep=1,
                    **request.cache,
                )
                # The caches of attention, and of state space models.
                for name in ("past_key_values", "cache_params"):
                    if cached and out.get(name) is not None:
                        request.cache[name] = out[name]
                logits = out.logits[:, -1]
        for request, new in inputs.items():
            request.row.ids += new
            self.tokens_processed += len(new)
        return dict(zip(inputs, logits.float(), strict=True))

    def _sample(self, requests: Sequence[Request], logits: Tensor) -> None:
        """Sample a token for each request from its row of logits, which is modified."""
        for request, row in zip(requests, logits, strict=True):
            self._restrict(request, row)
        samplings = [request.sampling for request in requests]
        numbers = [request.random.random() for request in requests]
        tokens = sample_tokens(logits, samplings, numbers)
        for request, row, token in zip(requests, logits, tokens, strict=True):
            if request.stop_id is None:
                if token is None:
                    why = "its logits are not finite numbers"
                    if (row == -math.inf).all():
                        why = "every token is banned here"
                    error = ModelError(f"{self.name}: no token can be sampled: {why}")
                    self._finish(request, error)
                    continue
                if token in request.sampling.stop_ids:
                    request.stop_id = token
                else:
                    request.ids.append(token)
            if request.stop_id is not None or len(request.ids) == request.max_length:
                self._finish(request)

    def _restrict(self, request: Request, logits: Tensor) -> None:
        """Mask banned tokens in the logits. At the first position, read P(end) before that, and end
        if it reaches the threshold."""
        sampling = request.sampling
        end = sampling.end_id
        banned = sampling.banned_ids
        if request.at_first_token:
            banned |= sampling.banned_first
            if end is not None:
                request.p_end = float(logits.softmax(-1)[end])
                if sampling.end_threshold is not None:
                    banned |= {end}
                    if request.p_end >= sampling.end_threshold:
                        request.stop_id = end
        if banned:
            logits.index_fill_(0, self._indices(banned), -math.inf)

    def _indices(self, tokens: frozenset[int]) -> Tensor:
        """Tokens as indices on the model's device, where they are kept: each copy to a GPU waits
        for it, and most requests ban the same tokens at every step."""
        found = self._banned.get(tokens)
        if found is None:
            known = [token for token in tokens if 0 <= token < self.vocabulary]
            found = torch.tensor(known, dtype=torch.long, device=self.model.device)
            self._banned[tokens] = found
        return found

    def _choose_mode(self) -> None:
        """Choose the fastest mode that works: a prompt that is processed in parts, next to others,
        must get the same logits as alone and whole."""
        expected, _ = self._trial("no_cache")
        mode: Mode
        for mode in ("kv_cache", "transformers_cache"):
            try:
                found, row = self._trial(mode)
            except torch.OutOfMemoryError:  # says nothing about the architecture
                raise
            except Exception:  # its code may raise any error for unknown arguments
                continue
            if same_logits(self.model, found, expected):
                break
        else:
            mode = "no_cache"
        if mode == "kv_cache":
            token_bytes = row.token_bytes()
            enough = TOKENS_PER_REQUEST * self.batch
            self._cache = KVCache(
                budget=self.budget
                or default_budget(self.model.device, enough * token_bytes),
                token_bytes=token_bytes,
                row_bytes=4 * self.vocabulary,  # the logits after its prompt
                max_rows=ROWS_PER_REQUEST * self.batch,
                context_length=self.context_length,
                exact=self.batch == 1,
            )
        else:
            self.batch = 1
        self.mode = mode
        self.tokens_processed = 0

    def _trial(self, mode: Mode) -> tuple[Tensor, CacheRow]:
        """The logits at the end of each trial prompt, and the cache row of the first one."""
        requests = []
        for prompt in TRIAL_PROMPTS:
            ids = list(prompt)
            size = len(ids)
            row = CacheRow(size)
            requests.append(Request(ids, size, size, Sampling(), random.Random(), row))
        first, second, third = requests
        batches = [[request] for request in requests]
        if mode == "kv_cache":
            check_kv_cache(self.model, self.name, self.context_length)
            # Then two rows have one new token, on both sides of one with several.
            known = {first: first.ids[:8], second: second.ids[:6], third: third.ids[:4]}
            self._forward(known, mode)
            batches = [requests]
        elif mode == "transformers_cache":
            for request in requests:
                self._forward({request: request.ids[:-1]}, mode)
        found: list[Tensor] = []
        for batch in batches:
            pending = {request: request.pending for request in batch}
            found += self._forward(pending, mode).values()
        return torch.stack(found), first.row


def check_length(name: str, tokens: int, context_length: int, new: int = 0) -> None:
    """Raise `ModelError` if these tokens and new ones are longer than the context length."""
    if tokens + new > context_length:
        raise ModelError(
            f"{name}: {tokens} tokens do not fit its context length of {context_length}",
            TOO_LONG,
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, and the next one if it ends in a colon; its name
    if it has no message."""
    first, *others = (str(error).strip() or repr(error)).splitlines()
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _reset_all() -> None:
    for engine in list(_engines):
        engine._reset()


def _stop_all() -> None:
    """Stop the worker threads before Python exits: a thread inside torch would crash it."""
    for engine in list(_engines):
        engine.stop()


atexit.register(_stop_all)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_reset_all)

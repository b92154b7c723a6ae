"""Many completions at once from one transformers model: the engine behind `LocalModel.complete`.

Every conversation keeps a row of keys and values between its turns (`models.rows`), so that a turn
costs what is new in it. What is read of new prompts and what is drawn for others goes through the
model together.
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
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from userlm.models.attention import attending
from userlm.models.kv_cache import KV_CACHE, CacheRow, KVCache, check_attention, common
from userlm.models.sampling import draw
from userlm.types import ModelError, Sampling

CHUNK = 2048
"""Tokens of prompts that one forward pass reads, so that nobody waits for somebody's long one."""
ROWS = 16
"""Rows that are kept for each completion at once, at most."""
IDLE = 1.0
"""Seconds without a call after which the worker ends."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The tokens of a completion, without the one that closed it; see `userlm.types.Completion`."""

    ids: tuple[int, ...]
    stop_id: int | None
    p_end: float | None


@dataclass(slots=True, eq=False)
class Call:
    """One completion on its way.

    Attributes:
        prompt: how many tokens were asked for.
        tokens: those, and what was drawn.
        most: how many they may come to.
        row: holds the keys and values of the first of them.
        cache: what transformers keeps, where no row can.
        abandoned: nobody waits for it any more.
    """

    prompt: int
    tokens: list[int]
    most: int
    sampling: Sampling
    random: random.Random
    row: CacheRow = field(default_factory=lambda: CacheRow(0))
    cache: dict[str, Any] = field(default_factory=dict)
    p_end: float | None = None
    stop_id: int | None = None
    error: Exception | None = None
    abandoned: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Completes for many threads at once; between two steps it takes up what is new.

    All work is done by one thread, which begins with the first call and ends when there was nothing
    to do for a while. Callers only wait, so one that is interrupted leaves nothing half done.

    Rows are for architectures whose tokens know of each other by attention alone, which is tried
    once. Others (state spaces, attention with caps or sinks, positions that change with the length)
    are completed one at a time, with the cache that transformers has for them, or without one where
    that gives other logits.

    Args:
        model: in evaluation mode. Its weights must not change any more: rows hold what they gave.
        context_length: tokens of its context.
        batch: completions at once. With 1, what is drawn depends, to the bit, on prompt, seed and
            sampling alone.
        budget: bytes of all rows; by default half of a GPU's memory that is free at first,
            elsewhere a quarter.

    Attributes:
        lock: held while the model runs or is told how to attend. Whoever else uses the model holds
            it, too.
        way: `rows`, `cache` or `whole` (no cache); `None`: not tried yet.
        read: how many tokens went through the model.
    """

    def __init__(
        self, model: Any, name: str, context_length: int, batch: int, budget: int | None = None
    ) -> None:
        self.model, self.name, self.context_length, self.batch, self.budget = (
            model,
            name,
            context_length,
            batch,
            budget,
        )
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self.way: str | None = None
        self.read = 0
        self._usual = model.config._attn_implementation
        self._rows: KVCache | None = None
        self._begin()
        _engines.add(self)

    def _begin(self) -> None:
        """Nobody works and nobody waits: at first, and in a process that was forked, which has none
        of our threads and may have been forked in the middle of a step."""
        self.lock = threading.Lock()
        self._wake = threading.Condition()
        self._waiting: list[Call] = []
        self._active: list[Call] = []
        self._worker: threading.Thread | None = None
        self._stopping = False
        if self._rows:
            self._rows.kept.clear()
        if self.model.config._attn_implementation == KV_CACHE:
            self.model.set_attn_implementation(self._usual)

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Generated:
        """Continue the ids.

        Raises:
            ModelError: if they do not fit, if there is nothing to draw, or if the model fails.
        """
        if len(ids) >= self.context_length:
            raise ModelError(
                f"{self.name}: {len(ids)} tokens do not fit its context length of "
                f"{self.context_length}"
            )
        named = [*ids] if sampling.end_id is None else [*ids, sampling.end_id]
        if not ids or not 0 <= min(named) <= max(named) < self.vocabulary:
            raise ModelError(
                f"{self.name}: a prompt has tokens, and no other than its {self.vocabulary}"
            )
        most = min(self.context_length, len(ids) + sampling.max_tokens)
        call = Call(len(ids), list(ids), most, sampling, _numbers(sampling.seed))
        with self._wake:
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="userlm-engine", daemon=True)
                self._worker = worker
                try:
                    worker.start()
                except BaseException:
                    self._worker = None
                    raise
            self._waiting.append(call)
            self._wake.notify_all()
        try:
            call.done.wait()
        except BaseException:  # Ctrl-C
            call.abandoned = True
            raise
        if call.error:
            raise call.error
        return Generated(tuple(call.tokens[call.prompt :]), call.stop_id, call.p_end)

    # --- by the worker

    @torch.inference_mode()
    def _work(self) -> None:
        while self._next():
            try:
                self._step()
            except Exception as error:
                for call in list(self._active):
                    self._finish(call, self._failure(error))
                if self._rows:
                    self._rows.clear()

    def stop(self) -> None:
        """End after the step that is under way."""
        with self._wake:
            self._stopping, worker = True, self._worker
            self._wake.notify_all()
        if worker:
            worker.join()

    def _next(self) -> bool:
        """Let go whom nobody waits for, and take up who can be; `False` if there is nothing to
        do."""
        with self._wake:
            if not self._active and not self._waiting:
                self._wake.wait(IDLE)
            for call in [*self._active, *self._waiting]:
                if call.abandoned or self._stopping:
                    self._finish(call, ModelError(f"{self.name}: nobody waits for it any more"))
            waiting, self._waiting = [call for call in self._waiting if not call.done.is_set()], []
            while waiting:
                call = waiting.pop(0)
                try:
                    taken = self._take_up(call)
                except Exception as error:
                    self._finish(call, self._failure(error))
                    if self._rows:
                        self._rows.clear()  # one may be half copied, for want of memory
                    continue
                if taken is None:  # nobody overtakes
                    self._waiting += [call, *waiting]
                    break
                (self._active if taken else self._waiting).append(call)
            if not self._active:  # then nobody waits either: what they wait for is others
                self._worker = None
            return bool(self._active)

    def _take_up(self, call: Call) -> bool | None:
        """Begin with it. `False`: not yet, somebody is reading the same into a row just now;
        `None`: no place."""
        if self.way is None:
            self._find_way()
        if self._rows is None:
            return None if self._active else True
        if len(self._active) >= self.batch:
            return None
        known = self._rows.nearest(call.tokens)[1]
        for other in self._active:
            reading = len(other.row.ids) < other.prompt
            if (
                reading
                and 2 * (common(other.tokens, call.tokens, known) - known) > call.prompt - known
            ):
                return False
        row = self._rows.take(call.tokens, call.most)
        if row is None:
            return None
        call.row = row
        return True

    def _finish(self, call: Call, error: Exception | None = None) -> None:
        if call in self._active:
            self._active.remove(call)
            if self._rows:
                self._rows.give_back(call.row)
        call.error = error
        call.done.set()

    def _failure(self, error: Exception) -> Exception:
        """What callers are told: that the model failed, such as for want of memory; other mistakes
        are ours."""
        if not isinstance(error, RuntimeError):
            return error
        return ModelError(
            f"{self.name}: the model failed: {(str(error).strip() or repr(error)).splitlines()[0]}"
        )

    def _step(self) -> None:
        """One forward pass, and one token for each call whose tokens are all read."""
        feeds = self._feeds()
        behind = dict(
            zip((call for call, _ in feeds), self._forward(feeds) if feeds else (), strict=True)
        )
        ready: list[tuple[Call, torch.Tensor]] = []
        for call in self._active:
            logits = behind.get(call, call.row.logits)
            if len(call.row.ids) == len(call.tokens) and logits is not None:
                if len(call.tokens) == call.prompt and call.row.logits is None and self._rows:
                    call.row.logits = logits.clone()  # the others in this memory go
                ready.append((call, logits))
        if ready:
            self._draw([call for call, _ in ready], torch.stack([logits for _, logits in ready]))

    def _feeds(self) -> list[tuple[Call, list[int]]]:
        """What each call reads next: the token that was drawn for it, or its share of a chunk. The
        one that reads for the longest gets half of it; of the others, those that have least to read
        come first."""
        if self.way != "rows":
            return [
                (call, call.tokens[0 if self.way == "whole" else len(call.row.ids) :])
                for call in self._active
            ]
        unread = [(call, call.tokens[len(call.row.ids) :]) for call in self._active]
        feeds = [(call, new) for call, new in unread if len(new) == 1]
        readers = [(call, new) for call, new in unread if len(new) > 1]
        left = CHUNK
        for n, (call, new) in enumerate(
            readers[:1] + sorted(readers[1:], key=lambda reader: len(reader[1]))
        ):
            part = new[: left // 2 if n == 0 and len(readers) > 1 else left]
            left -= len(part)
            if part:
                feeds.append((call, part))
        return feeds

    def _forward(self, feeds: Sequence[tuple[Call, list[int]]]) -> torch.Tensor:
        """Read for each call some tokens more; the logits behind them, (calls, vocabulary),
        float32."""
        ids = torch.tensor([[token for _, new in feeds for token in new]], device=self.model.device)
        with self.lock:
            if self.way == "rows":
                logits = self._forward_rows(feeds, ids)
            else:
                [(call, _)] = feeds
                cached = self.way == "cache"
                out = self.model(input_ids=ids, use_cache=cached, logits_to_keep=1, **call.cache)
                if cached:
                    names = ("past_key_values", "cache_params")  # of attention, of state spaces
                    call.cache = {name: out[name] for name in names if out.get(name) is not None}
                logits = out.logits[:, -1]
        for call, new in feeds:
            if self.way == "whole":
                call.row.ids.clear()
            call.row.ids += new
        self.read += ids.numel()
        return logits.float()

    def _forward_rows(
        self, feeds: Sequence[tuple[Call, list[int]]], ids: torch.Tensor
    ) -> torch.Tensor:
        stops = list(accumulate(len(new) for _, new in feeds))
        spans = [
            (call.row, stop - len(new), stop)
            for (call, new), stop in zip(feeds, stops, strict=True)
        ]
        places = [len(row.ids) + i for row, begin, stop in spans for i in range(stop - begin)]
        with attending(self.model, KV_CACHE):
            out = self.model(
                input_ids=ids,
                position_ids=torch.tensor([places], device=ids.device),
                use_cache=False,
                logits_to_keep=torch.tensor(stops, device=ids.device) - 1,
                cache_rows=spans,
            )
        logits: torch.Tensor = out.logits[0]
        return logits

    def _draw(self, calls: Sequence[Call], logits: torch.Tensor) -> None:
        """One token for each call, from logits (calls, vocabulary), which are written to."""
        for call, row in zip(calls, logits, strict=True):
            sampling = call.sampling
            banned = sampling.banned_ids
            if len(call.tokens) == call.prompt:
                banned |= sampling.banned_first
                if sampling.end_id is not None:
                    call.p_end = float(row.softmax(-1)[sampling.end_id])
                    if sampling.end_threshold is not None:
                        if call.p_end >= sampling.end_threshold:
                            call.stop_id = sampling.end_id
                        banned |= {sampling.end_id}
            if banned:
                row[[token for token in banned if 0 <= token < self.vocabulary]] = -math.inf
        samplings = [call.sampling for call in calls]
        tokens = draw(logits, samplings, [call.random.random() for call in calls])
        for call, row, token in zip(calls, logits, tokens, strict=True):
            if call.stop_id is not None:
                self._finish(call)
            elif token is None:
                forbidden = bool((row == -math.inf).all())
                why = (
                    "every token is banned here"
                    if forbidden
                    else "its logits are no numbers (NaN or infinite)"
                )
                self._finish(call, ModelError(f"{self.name}: nothing can be drawn: {why}"))
            elif token in call.sampling.stop_ids:
                call.stop_id = token
                self._finish(call)
            else:
                call.tokens.append(token)
                if len(call.tokens) == call.most:
                    self._finish(call)

    def _find_way(self) -> None:
        """Try it: what is read in parts and beside others must get the logits that it gets whole
        and alone."""
        prompts = [
            [(7 * i + j) % self.vocabulary for j in range(n)] for i, n in enumerate((9, 14, 5))
        ]
        with self.lock:
            read = [torch.tensor([ids], device=self.model.device) for ids in prompts]
            plain = torch.stack(
                [self.model(input_ids=ids, use_cache=False).logits[0, -1] for ids in read]
            ).float()
        most = float(plain.std()) * (1e-3 if self.model.dtype == torch.float32 else 0.1)
        for way in ("rows", "cache"):
            self.way = way
            calls = [
                Call(len(ids), ids, len(ids), Sampling(), _numbers(0), CacheRow(len(ids)))
                for ids in prompts
            ]
            a, b, c = calls
            try:
                if way == "rows":
                    check_attention(self.model.config, self.context_length)
                    self._forward([(a, a.tokens[:8]), (b, b.tokens[:6])])
                    found = self._forward([(a, a.tokens[8:]), (b, b.tokens[6:]), (c, c.tokens)])
                else:
                    for call in calls:
                        self._forward([(call, call.tokens[:-1])])
                    found = torch.cat([self._forward([(call, call.tokens[-1:])]) for call in calls])
            except torch.OutOfMemoryError:
                self.way = None
                raise
            except Exception:  # whatever its code says to a call that it does not know
                continue
            if not float((found - plain).abs().max()) <= most:
                continue
            if way == "rows":
                states = [state for held in a.row.layers.values() for state in held]
                token = sum(state[:, 0].numel() * state.element_size() for state in states)
                budget = self.budget or _budget(self.model.device)
                most_rows = ROWS * self.batch
                self._rows = KVCache(
                    budget,
                    token,
                    4 * self.vocabulary,
                    most_rows,
                    self.context_length,
                    self.batch == 1,
                )
            self.read = 0
            return
        self.way = "whole"


def _numbers(seed: int | None) -> random.Random:
    """Each completion has numbers of its own, so that its words do not depend on who else is drawn
    for."""
    return random.Random(None if seed is None else seed % 2**63)


def _budget(device: torch.device) -> int:
    """Bytes for rows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = {
            name: int(rest.split()[0]) * 1024
            for name, _, rest in (line.partition(":") for line in lines)
        }
    except OSError:  # not Linux
        return 2**31
    limits = [free.get("MemAvailable", 2**33)]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container, version 2 and 1
        with suppress(OSError, ValueError):
            limits.append(int((Path("/sys/fs/cgroup") / limit).read_text(encoding="ascii")))
    return min(limits) // 4


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _begin_all() -> None:
    for engine in list(_engines):
        engine._begin()


def _stop_all() -> None:
    """A thread that is within torch when Python ends would crash it."""
    for engine in list(_engines):
        engine.stop()


atexit.register(_stop_all)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_begin_all)

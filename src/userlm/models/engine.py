"""Many completions at once from one transformers model: the engine behind `LocalModel.complete`.

Every conversation keeps a row of keys and values between its turns, so that a turn costs what is new in it. What
is read of new prompts and what is drawn for others goes through the model together, end to end, without padding;
an attention function of our own behind transformers' attention interface shows each its own row only.

On every device that is a loop of torch's attention over the rows. It was measured on CPUs; it never ran on a GPU.
"""

from __future__ import annotations

import atexit
import math
import os
import random
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from userlm.types import InputError, ModelError, Sampling

KEPT_ROWS = "userlm_kept_rows"
CHUNK = 2048
"""Tokens of prompts that one forward pass reads, so that nobody waits for somebody's long one."""
ROWS = 16
"""Rows that are kept for each completion at once, at most."""
TOP = 256
"""Candidates among which a nucleus is looked for first. To sort a large vocabulary takes longer than a step of a
small model."""
IDLE = 1.0
"""Seconds without a call after which the worker ends."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tokens of a completion, without the one that closed it; see `userlm.types.Completion`."""

    ids: tuple[int, ...]
    stop_id: int | None
    p_end: float | None


# --- rows ----------------------------------------------------------------------------------------------------


class Row:
    """The keys and values of a sequence of tokens in all layers.

    Attributes:
        ids: the tokens whose keys and values are held.
        prompt: how many of them were asked for; the others were drawn.
        logits: behind the prompt, float32; `None` if they are not known.
        capacity: how many tokens there is memory for.
        layers: keys and values by layer, each (groups, capacity, size); made when first written to.
        used: when it was given back; the clock is that of `Rows`.
    """

    __slots__ = ("busy", "capacity", "ids", "layers", "logits", "prompt", "used")

    def __init__(self, capacity: int) -> None:
        self.ids: list[int] = []
        self.prompt, self.capacity, self.used, self.busy = 0, capacity, 0, False
        self.logits: torch.Tensor | None = None
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put what is new, (groups, tokens, size), behind that of `ids`; all that there is then."""
        if layer not in self.layers:
            self.layers[layer] = (_room(keys, self.capacity), _room(values, self.capacity))
        held_keys, held_values = self.layers[layer]
        start, stop = len(self.ids), len(self.ids) + keys.shape[1]
        held_keys[:, start:stop] = keys
        held_values[:, start:stop] = values
        return held_keys[:, :stop], held_values[:, :stop]

    def copy(self, other: Row, tokens: int, capacity: int) -> None:
        """Hold the first tokens of a row, another or this one, in new memory."""
        for layer, (held_keys, held_values) in other.layers.items():
            keys, values = _room(held_keys, capacity), _room(held_values, capacity)
            keys[:, :tokens], values[:, :tokens] = held_keys[:, :tokens], held_values[:, :tokens]
            self.layers[layer] = keys, values
        self.ids, self.capacity = other.ids[:tokens], capacity


def _room(states: torch.Tensor, capacity: int) -> torch.Tensor:
    return states.new_empty(states.shape[0], capacity, states.shape[2])


class Rows:
    """The rows that are kept, within a budget; the least recently used go first.

    Args:
        budget: bytes.
        token, fixed: bytes of a token, and of what else a row holds.
        most: how many rows.
        window: tokens of the longest.
        exact: a row serves the very same prompt only, so that what is drawn does not depend, not by a rounding
            error, on what was asked before.
    """

    def __init__(self, budget: int, token: int, fixed: int, most: int, window: int, exact: bool) -> None:
        self.budget, self.token, self.fixed, self.most = budget, token, fixed, most
        self.window, self.exact = window, exact
        self.kept: list[Row] = []
        self._clock = 0

    def bytes(self, but: Row | None = None) -> int:
        """What all rows may come to, but one."""
        return sum(row.capacity * self.token + self.fixed for row in self.kept if row is not but)

    def nearest(self, ids: list[int]) -> tuple[Row | None, int]:
        """The row that knows most of a prompt, and how many tokens; all of them only if their logits are known."""
        best, most = None, 0
        for row in sorted(self.kept, key=lambda row: (row.busy, -row.used)):
            shared = common(row.ids, ids, most)
            if shared == len(ids) and (row.prompt != shared or row.logits is None):
                shared -= 1
            if shared > most and (shared == len(ids) or not self.exact):
                best, most = row, shared
        return best, most

    def take(self, ids: list[int], tokens: int) -> Row | None:
        """A row that holds as much of a prompt as is known, with room for so many tokens; `None` if there is no
        memory before others are done.

        The row that shares most with the prompt is taken over if nobody uses it and its own prompt is the
        beginning of this one: it is the next turn of its conversation, or the same turn drawn again. Otherwise it
        may be wanted yet, and what is shared is copied, which costs next to nothing.
        """
        best, shared = self.nearest(ids)
        over = best if best and not best.busy and min(best.prompt, len(best.ids)) <= shared else None
        capacity = tokens
        if over:
            wider = min(self.window, max(tokens, over.capacity * 3 // 2))
            capacity = over.capacity if over.capacity >= tokens else wider
        if not self._make_room(capacity, over):
            return None
        row = over or Row(capacity)
        logits = best.logits if best and shared == len(ids) else None
        if best and (best is not row or capacity > row.capacity):
            row.copy(best, shared, capacity)
        if row is not over:
            self.kept.append(row)
        del row.ids[shared:]
        row.prompt, row.logits, row.busy = len(ids), logits, True
        return row

    def give_back(self, row: Row) -> None:
        """Nobody uses it for now."""
        self._clock += 1
        row.busy, row.used = False, self._clock

    def clear(self) -> None:
        """Drop all that nobody uses."""
        self.kept = [row for row in self.kept if row.busy]

    def _make_room(self, capacity: int, over: Row | None) -> bool:
        """Drop free rows until one of this capacity, in the place of `over`, is within the budget; if nobody is
        using any, it may exceed that."""
        free = sorted((row for row in self.kept if not row.busy and row is not over), key=lambda row: -row.used)
        more = capacity * self.token + self.fixed
        while self.bytes(but=over) + more > self.budget or len(self.kept) + (over is None) > self.most:
            if not free:
                return not any(row.busy for row in self.kept)
            self.kept.remove(free.pop())
        return True


def common(held: list[int], ids: list[int], least: int = 0) -> int:
    """How many tokens two sequences share at their beginning; 0 if they are not more than `least`."""
    if held[: least + 1] != ids[: least + 1]:
        return 0
    pairs = zip(held, ids, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(held), len(ids)))


# --- completions ---------------------------------------------------------------------------------------------


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
    row: Row = field(default_factory=lambda: Row(0))
    cache: dict[str, Any] = field(default_factory=dict)
    p_end: float | None = None
    stop_id: int | None = None
    error: Exception | None = None
    abandoned: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Completes for many threads at once; between two steps it takes up what is new.

    All work is done by one thread, which begins with the first call and ends when there was nothing to do for a
    while. Callers only wait, so one that is interrupted leaves nothing half done.

    Rows are for architectures whose tokens know of each other by attention alone, which is tried once. Others
    (state spaces, attention with caps or sinks, positions that change with the length) are completed one at a
    time, with the cache that transformers has for them, or without one where that gives other logits.

    Args:
        model: in evaluation mode. Its weights must not change any more: rows hold what they gave.
        window: tokens of its context.
        batch: completions at once. With 1, what is drawn depends, to the bit, on prompt, seed and sampling alone.
        budget: bytes of all rows; by default half of a GPU's memory that is free at first, elsewhere a quarter.

    Attributes:
        lock: held while the model runs or is told how to attend. Whoever else uses the model holds it, too.
        way: `rows`, `cache` or `whole` (no cache); `None`: not tried yet.
        read: how many tokens went through the model.
    """

    def __init__(self, model: Any, name: str, window: int, batch: int, budget: int | None = None) -> None:
        self.model, self.name, self.window, self.batch, self.budget = model, name, window, batch, budget
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self.way: str | None = None
        self.read = 0
        self._usual = model.config._attn_implementation
        self._rows: Rows | None = None
        self._begin()
        _engines.add(self)

    def _begin(self) -> None:
        """Nobody works and nobody waits: at first, and in a process that was forked, which has none of our threads
        and may have been forked in the middle of a step."""
        self.lock = threading.Lock()
        self._wake = threading.Condition()
        self._waiting: list[Call] = []
        self._active: list[Call] = []
        self._worker: threading.Thread | None = None
        self._stopping = False
        if self._rows:
            self._rows.kept.clear()
        if self.model.config._attn_implementation == KEPT_ROWS:
            self.model.set_attn_implementation(self._usual)

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Drawn:
        """Continue the ids.

        Raises:
            ModelError: if they do not fit, if there is nothing to draw, or if the model fails.
        """
        if len(ids) >= self.window:
            raise ModelError(f"{self.name}: {len(ids)} tokens do not fit its window of {self.window}")
        named = [*ids] if sampling.end_id is None else [*ids, sampling.end_id]
        if not ids or not 0 <= min(named) <= max(named) < self.vocabulary:
            raise ModelError(f"{self.name}: a prompt has tokens, and no other than its {self.vocabulary}")
        most = min(self.window, len(ids) + sampling.max_tokens)
        call = Call(len(ids), list(ids), most, sampling, _numbers(sampling.seed))
        with self._wake:
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="userlm-engine", daemon=True)
                worker.start()
                self._worker = worker
            self._waiting.append(call)
            self._wake.notify_all()
        try:
            call.done.wait()
        except BaseException:  # Ctrl-C
            call.abandoned = True
            raise
        if call.error:
            raise call.error
        return Drawn(tuple(call.tokens[call.prompt :]), call.stop_id, call.p_end)

    # --- by the worker

    @torch.inference_mode()
    def _work(self) -> None:
        atexit.register(self._stop)  # a thread that is within torch when Python ends would crash it
        while self._next():
            try:
                self._step()
            except Exception as error:
                for call in list(self._active):
                    self._finish(call, self._failure(error))
                if self._rows:
                    self._rows.clear()
        atexit.unregister(self._stop)

    def _stop(self) -> None:
        """End after the step that is under way."""
        with self._wake:
            self._stopping, worker = True, self._worker
            self._wake.notify_all()
        if worker:
            worker.join()

    def _next(self) -> bool:
        """Let go whom nobody waits for, and take up who can be; `False` if there is nothing to do."""
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
                    continue
                if taken is None:  # nobody overtakes
                    self._waiting += [call, *waiting]
                    break
                (self._active if taken else self._waiting).append(call)
            if not self._active:  # then nobody waits either: what they wait for is others
                self._worker = None
            return bool(self._active)

    def _take_up(self, call: Call) -> bool | None:
        """Begin with it. `False`: not yet, somebody is reading the same into a row just now; `None`: no place."""
        if self.way is None:
            self._find_way()
        if self._rows is None:
            return None if self._active else True
        if len(self._active) >= self.batch:
            return None
        known = self._rows.nearest(call.tokens)[1]
        for other in self._active:
            reading = len(other.row.ids) < other.prompt
            if reading and 2 * (common(other.tokens, call.tokens, known) - known) > call.prompt - known:
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
        """What callers are told: that the model failed, such as for want of memory; other mistakes are ours."""
        if not isinstance(error, RuntimeError):
            return error
        return ModelError(f"{self.name}: the model failed: {(str(error).strip() or repr(error)).splitlines()[0]}")

    def _step(self) -> None:
        """One forward pass, and one token for each call whose tokens are all read."""
        feeds = self._feeds()
        behind = dict(zip((call for call, _ in feeds), self._forward(feeds) if feeds else (), strict=True))
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
        """What each call reads next: the token that was drawn for it, or its share of a chunk. The one that reads
        for the longest gets half of it; of the others, those that have least to read come first."""
        if self.way != "rows":
            return [
                (call, call.tokens[0 if self.way == "whole" else len(call.row.ids) :]) for call in self._active
            ]
        unread = [(call, call.tokens[len(call.row.ids) :]) for call in self._active]
        feeds = [(call, new) for call, new in unread if len(new) == 1]
        readers = [(call, new) for call, new in unread if len(new) > 1]
        left = CHUNK
        for n, (call, new) in enumerate(readers[:1] + sorted(readers[1:], key=lambda reader: len(reader[1]))):
            part = new[: left // 2 if n == 0 and len(readers) > 1 else left]
            left -= len(part)
            if part:
                feeds.append((call, part))
        return feeds

    def _forward(self, feeds: Sequence[tuple[Call, list[int]]]) -> torch.Tensor:
        """Read for each call some tokens more; the logits behind them, (calls, vocabulary), float32."""
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

    def _forward_rows(self, feeds: Sequence[tuple[Call, list[int]]], ids: torch.Tensor) -> torch.Tensor:
        stops = list(accumulate(len(new) for _, new in feeds))
        spans = [(call.row, stop - len(new), stop) for (call, new), stop in zip(feeds, stops, strict=True)]
        places = [len(row.ids) + i for row, begin, stop in spans for i in range(stop - begin)]
        with _kept_rows(self.model):
            out = self.model(
                input_ids=ids,
                position_ids=torch.tensor([places], device=ids.device),
                use_cache=False,
                logits_to_keep=torch.tensor(stops, device=ids.device) - 1,
                kept_rows=spans,
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
                    if sampling.end_above is not None:
                        if call.p_end >= sampling.end_above:
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
                why = "every token is banned here" if forbidden else "its logits are no numbers (NaN or infinite)"
                self._finish(call, ModelError(f"{self.name}: nothing can be drawn: {why}"))
            elif token in call.sampling.stop_ids:
                call.stop_id = token
                self._finish(call)
            else:
                call.tokens.append(token)
                if len(call.tokens) == call.most:
                    self._finish(call)

    def _find_way(self) -> None:
        """Try it: what is read in parts and beside others must get the logits that it gets whole and alone."""
        prompts = [[(7 * i + j) % self.vocabulary for j in range(n)] for i, n in enumerate((9, 14, 5))]
        with self.lock:
            read = [torch.tensor([ids], device=self.model.device) for ids in prompts]
            plain = torch.stack([self.model(input_ids=ids, use_cache=False).logits[0, -1] for ids in read]).float()
        most = float(plain.std()) * (1e-3 if self.model.dtype == torch.float32 else 0.1)
        for way in ("rows", "cache"):
            self.way = way
            calls = [Call(len(ids), ids, len(ids), Sampling(), _numbers(0), Row(len(ids))) for ids in prompts]
            a, b, c = calls
            try:
                if way == "rows":
                    _check_attention(self.model.config, self.window)
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
                self._rows = Rows(budget, token, 4 * self.vocabulary, most_rows, self.window, self.batch == 1)
            self.read = 0
            return
        self.way = "whole"


def _numbers(seed: int | None) -> random.Random:
    """Each completion has numbers of its own, so that its words do not depend on who else is drawn for."""
    return random.Random(None if seed is None else seed % 2**63)


def _budget(device: torch.device) -> int:
    """Bytes for rows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        return free["MemAvailable"] // 4
    except (OSError, KeyError):  # not Linux
        return 2**31


# --- drawing -------------------------------------------------------------------------------------------------


def draw(logits: torch.Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> list[int | None]:
    """A token for each row of logits, (rows, vocabulary): temperature, then nucleus (Holtzman et al., 2020).

    Args:
        numbers: between 0 and 1, one a row: how much of the nucleus' probability lies before the token.

    Returns:
        `None` for a row that holds NaN or infinity, or nothing but -infinity.
    """
    peaks, greedy = logits.max(-1)
    fine, tokens = peaks.isfinite().tolist(), greedy.tolist()
    drawn = [i for i, sampling in enumerate(samplings) if sampling.temperature and fine[i]]
    if drawn:
        heat = torch.tensor([max(samplings[i].temperature, 1e-30) for i in drawn], device=logits.device)
        probabilities = ((logits[drawn] - peaks[drawn, None]) / heat[:, None]).softmax(-1)
        some = _draw(probabilities, [samplings[i].top_p for i in drawn], [numbers[i] for i in drawn])
        for i, token in zip(drawn, some, strict=True):
            tokens[i] = token
    return [token if ok else None for token, ok in zip(tokens, fine, strict=True)]


def _draw(probabilities: torch.Tensor, top_p: Sequence[float], numbers: Sequence[float]) -> list[int]:
    """Tokens from the nuclei of rows of probabilities. Among equals the smaller id comes first."""
    tokens = [0] * len(top_p)
    levels, shares = torch.tensor(numbers, dtype=torch.float64), torch.tensor(top_p, dtype=torch.float64)
    if whole := [i for i, share in enumerate(top_p) if share == 1]:
        picked = _pick(probabilities[whole].cpu().double(), levels[whole]).tolist()
        for i, token in zip(whole, picked, strict=True):
            tokens[i] = token
    left, count = [i for i, share in enumerate(top_p) if share < 1], TOP
    while left:
        count = min(count, probabilities.shape[1])
        values, ids = (found.cpu() for found in probabilities[left].topk(count))
        ids, order = ids.sort(-1)
        values, order = values.gather(-1, order).double().sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(-1, order)
        inside = values.cumsum(-1) - values < shares[left, None]  # what is before it is not enough yet
        ends = ~(inside & (values == values[:, -1:])).any(-1)  # else more of the least may belong to it
        picked = ids.gather(-1, _pick(values.masked_fill(~inside, 0), levels[left])[:, None])[:, 0].tolist()
        done = [end or count == probabilities.shape[1] for end in ends.tolist()]
        for i, token in zip(left, picked, strict=True):
            tokens[i] = token
        left = [i for i, ready in zip(left, done, strict=True) if not ready]
        count *= 16
    return tokens


def _pick(weights: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Where the running sum of a row of weights passes its level, a share of the total. Never at a weight of 0: a
    double below 1 times the total is less than the total, rounded, too."""
    sums = weights.cumsum(-1)
    return (sums <= (levels * sums[:, -1])[:, None]).sum(-1)


# --- attention -----------------------------------------------------------------------------------------------


@contextmanager
def _kept_rows(model: Any) -> Iterator[None]:
    """Within it, the model attends to rows, and to nothing else."""
    before = model.config._attn_implementation
    model.set_attn_implementation(KEPT_ROWS)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _check_attention(config: Any, window: int) -> None:
    """Raise `InputError` for what a short trial would not show: attention or positions that change further on."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise InputError(f"{config.model_type}: layers of {', '.join(sorted(kinds))}")
    rope = getattr(config, "rope_parameters", None) or {}
    usual = rope.get("original_max_position_embeddings") or window
    if rope.get("rope_type") in ("longrope", "dynamic") and window > usual:
        raise InputError(f"{config.model_type}: positions that change with the length")


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    kept_rows: Sequence[tuple[Row, int, int]] | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row, as transformers' attention interface wants it.

    query, key, value: (1, heads or groups, tokens, size); the result: (1, tokens, heads, size).

    Args:
        kept_rows: rows, and where in the tokens stands what is new in each.
    """
    if kept_rows is None or softcap is not None or s_aux is not None or position_bias is not None:
        raise InputError(f"{module.config.model_type}: there are no rows for attention like this")
    parts = []
    for row, begin, stop in kept_rows:
        keys, values = row.write(module.layer_idx, key[0, :, begin:stop], value[0, :, begin:stop])
        parts.append(_attend_row(query[:, :, begin:stop], keys[None], values[None], scaling, sliding_window))
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _attend_row(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Of the last tokens of a row to all of it; (1, heads or groups, tokens, size) each."""
    new, all_ = query.shape[2], keys.shape[2]
    if window is not None and all_ > window + new - 1:  # the first that anybody sees
        keys, values = keys[:, :, -(window + new - 1) :], values[:, :, -(window + new - 1) :]
        all_ = window + new - 1
    if new == 1:  # the heads that share keys stand in for tokens: the keys need not be repeated
        grouped = query.view(1, keys.shape[1], -1, query.shape[3])
        return F.scaled_dot_product_attention(grouped, keys, values, scale=scaling).reshape(query.shape)
    band = None
    if all_ > new or (window is not None and all_ > window):
        band = torch.ones(new, all_, dtype=torch.bool, device=query.device).tril(all_ - new)
        if window is not None:
            band = band.triu(all_ - new + 1 - window)
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=band, is_causal=band is None, scale=scaling, enable_gqa=True
    )


def _no_mask(*_: Any, **__: Any) -> None:
    """Rows are kept apart by `_attend`."""


AttentionInterface.register(KEPT_ROWS, _attend)
AttentionMaskInterface.register(KEPT_ROWS, _no_mask)


# --- forks ---------------------------------------------------------------------------------------------------

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _begin_all() -> None:
    for engine in list(_engines):
        engine._begin()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_begin_all)

"""A trained user on a server that continues token ids, such as vLLM.

What a trained user needs, and the parameters of vLLM's `/v1/completions` for it (`flavours` has
those of other servers):

    exactly these ids     `prompt` as ids; `usage.prompt_tokens` must be equal
    the token that        `stop_token_ids` with `ignore_eos`, so that no other token ends it; it is
    ended a completion    the last of `token_ids`, or the `stop_reason`
    P(end)                `logprob_token_ids`, in the same call; else a second call for one token,
                          the end, forced by `logit_bias`: log-probabilities are those before it
    banned tokens         `logit_bias`, which is applied before temperature and top_p, as in `local`
    tokens banned at the  two calls: one token, and what follows it
    first position only

A server silently ignores fields that it does not know. So before the first completion two tokens
are forced: the end token and an ordinary one. That shows whether the server reports the token that
ended a completion, respects bans, and returns log-probabilities from before a ban.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any
from warnings import warn

import openai

from userlm.models.endpoint import (
    MAX_TOKEN_LENGTH,
    TAKE_IDS,
    USE_VLLM,
    EndpointModel,
    receive,
)
from userlm.models.faults import NOT_OFFERED, possibly_billed
from userlm.models.flavours import (
    LLAMA_CPP,
    SGLANG,
    UNKNOWN_END,
    Answer,
    Flavour,
    Request,
    completions,
    llama_cpp,
    server_root,
    sglang,
)
from userlm.models.templates import added_ids, control_ids, decode_content
from userlm.text import stable_hash
from userlm.thought import spoken
from userlm.types import (
    TOO_LONG,
    Completion,
    InputError,
    ModelError,
    ModelWarning,
    Sampling,
    encodable,
)

BIAS = 100
"""The largest `logit_bias` that servers allow. A ban multiplies the odds of a token by 4e-44."""

TEXT_ONLY = (
    ("api/version", "version", "Ollama"),
    ("info", "model_id", "text-generation-inference"),
)
"""Servers that take no token ids: a path of theirs, a key of what is there, and their names."""

PROBE_TOKENS = 32
"""The test of what a server supports sends this many of the last tokens of the first prompt."""


class ServedModel:
    """Continues token ids on a server. It is thread-safe.

    Args:
        endpoint: the server; its retries are used here too.
        tokenizer: the model's tokenizer from transformers; ids are decoded here, not on the server.

    Attributes:
        notes: sentences on what the server cannot do; empty before the first completion.
    """

    def __init__(self, endpoint: EndpointModel, tokenizer: Any) -> None:
        self.name = endpoint.name
        self._endpoint = endpoint
        self._tokenizer = tokenizer
        self._control_ids = control_ids(tokenizer)
        added = added_ids(tokenizer)
        tokens = [text for text in added if added[text] in self._control_ids]
        tokens.sort(key=len, reverse=True)  # a token may begin with another one
        self._control_tokens = re.compile("|".join(map(re.escape, tokens)))
        self.notes: tuple[str, ...] = ()
        self._support: _Support | None = None
        self._flavour: Flavour = completions
        self._lock = threading.Lock()
        self._failed_test: ModelError | None = None  # the last one

    def context_length(self) -> int | None:
        """The model's context length in tokens; `None` if the server does not report it.

        Raises:
            ModelError: if the server fails.
        """
        try:
            models = self._endpoint.ask(_models, [], may_bill=False)
            owners = {model["owned_by"] for model in models}
            if SGLANG in owners:
                self._flavour = sglang
            if LLAMA_CPP in owners:
                self._flavour = llama_cpp
                body = self._endpoint.ask(partial(_get, "props"), [], may_bill=False)
                length = body["default_generation_settings"]["n_ctx"]
            else:
                [model] = [model for model in models if model["id"] == self.name]
                length = model["max_model_len"]
        except ModelError as error:
            if error.reason in NOT_OFFERED:
                return None
            raise
        except (LookupError, TypeError, ValueError):  # the server does not report it
            return None
        return length if type(length) is int and length > 0 else None

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue the ids; see `Sampling`, whose `stop_ids` are required here.

        The server's generation_config is not used. The usage includes all calls for a completion.

        Raises:
            InputError: if the server cannot do this; the message says what to do.
            ModelError: if the server fails, or if the ids do not fit its context length.
        """
        support = self._tested(ids, sampling)
        if support.context_length is not None:
            room = support.context_length - len(ids)
            if room < 1:
                raise ModelError(
                    f"{self.name}: {len(ids)} tokens do not fit the server's context length of "
                    f"{support.context_length}",
                    TOO_LONG,
                )
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        calls = _Calls()
        try:
            text, stop_id, p_end = self._generate(ids, sampling, support, calls)
        except ModelError as error:
            error.faults = tuple(calls.faults)
            error.possibly_billed = possibly_billed(calls.faults)
            error.possibly_billed += len(calls.usage)  # these answers are lost
            raise
        tokens_in, tokens_out = map(sum, zip(*calls.usage, strict=True))
        completion = Completion(
            text,
            stop_id,
            p_end,
            tokens_in,
            tokens_out,
            faults=tuple(calls.faults),
            possibly_billed=possibly_billed(calls.faults),
        )
        return self._endpoint.without_key(spoken(completion))

    def ask(
        self, ids: Sequence[int], sampling: Sampling, forced: int | None = None
    ) -> Answer:
        """Make one call and return its answer, whatever else the server supports; with `forced`
        only that token can be sampled. For checks of a server.

        Raises:
            InputError: if the answer shows that the server cannot be used.
            ModelError: if the server fails.
        """
        return self._ask(ids, sampling, _Calls(), forced)

    @property
    def api(self) -> str:
        """How the server is asked; it is known after `context_length`."""
        is_llama_cpp = self._flavour is llama_cpp
        return "/completion of llama.cpp" if is_llama_cpp else "/v1/completions"

    def _generate(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        support: _Support,
        calls: _Calls,
    ) -> tuple[str, int | None, float | None]:
        """Return the text, the id that ended it, and P(end)."""
        banned_first = self._banned_first(sampling, support)
        end = None if support.p_end_problem else sampling.end_id
        every = replace(sampling, end_id=end)
        first = every
        if banned_first:
            first = replace(
                every, max_tokens=1, banned_ids=every.banned_ids | banned_first
            )
        answer = self._ask(ids, first, calls)
        p_end = answer.p_end
        if end is not None and p_end is None:
            forced = self._ask(ids, every, calls, forced=end)
            p_end = forced.p_first if forced.stop_id == end else None
        if end is not None and p_end is None:
            raise ModelError(
                f"{self.name}: the server left out P(end)", "broken answer"
            )
        threshold = sampling.end_threshold
        if threshold is not None and p_end is not None and p_end >= threshold:
            return "", end, p_end
        ids_said = answer.ids
        if banned_first and answer.stop_id is None and every.max_tokens > 1:
            begun = answer.ids or []
            seed = sampling.seed
            if seed is not None:  # a different seed from that of the first token
                seed = stable_hash(seed, "behind the first token")
            left = sampling.max_tokens - 1
            rest = replace(every, max_tokens=left, end_id=None, seed=seed)
            answer = self._ask([*ids, *begun], rest, calls)
            ids_said = [*begun, *(answer.ids or ())]
        if ids_said is None:
            # control tokens are removed even if the server includes them
            text = encodable(self._control_tokens.sub("", answer.text))
        else:
            text = decode_content(self._tokenizer, ids_said, self._control_ids)
        return text, answer.stop_id, p_end

    def _banned_first(self, sampling: Sampling, support: _Support) -> frozenset[int]:
        """Return the ids that are banned at the first position only, with the end token if a
        threshold decides about the end."""
        banned = sampling.banned_first - sampling.banned_ids
        if sampling.end_threshold is not None and sampling.end_id is not None:
            banned |= {sampling.end_id}
            if support.p_end_problem:
                raise self._not_usable(
                    f"--end-threshold needs P(end): {support.p_end_problem}"
                )
        if banned and not support.ids:
            raise self._not_usable(
                "--end-threshold and first words in a guard ban tokens at the first position only, "
                "and the server does not return the ids that it samples there; vLLM does from "
                "0.10.2 on"
            )
        return banned

    def _ask(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        calls: _Calls,
        forced: int | None = None,
    ) -> Answer:
        """Make one call, and check its answer. Settings of `sampling` for the first position only
        are ignored; with `forced` only that token is sampled."""
        bias = dict.fromkeys(sorted(sampling.banned_ids), -BIAS)
        if forced is not None:
            bias = {forced: BIAS}
            sampling = replace(
                sampling, temperature=0, max_tokens=1, banned_ids=frozenset()
            )
        request = Request(self.name, ids, sampling, bias, forced is not None)

        async def send(client: openai.AsyncOpenAI) -> tuple[Answer, str]:
            answer = await self._flavour(client, request)
            problem = self._problem(answer, len(ids), sampling)
            if problem and self._support:
                # the server can do it, so this answer is an exception, and is tried again
                raise ValueError(problem)
            return answer, problem

        answer, problem = self._endpoint.ask(send, calls.faults)
        if answer.usage:
            calls.usage.append(answer.usage)
        if problem:
            raise self._not_usable(problem)
        return answer

    def _problem(self, answer: Answer, tokens_sent: int, sampling: Sampling) -> str:
        """Return why the server cannot be used, as an answer shows; empty if it can."""
        tokens_in, tokens_out = answer.usage or (None, 0)
        sampled = {*(answer.ids or ())}
        support = self._support
        has_length = support and support.context_length is not None
        if tokens_in is None:
            return (
                f"the server does not count the tokens of a prompt (usage); {USE_VLLM}"
            )
        if support and support.ids and answer.ids is None:
            return "the server left out the ids that it sampled"
        if tokens_in != tokens_sent:
            return (
                f"{tokens_sent} token ids were sent, and the server counted {tokens_in}: "
                f"{TAKE_IDS}"
            )
        most = sampling.max_tokens
        tokens = max(tokens_out, len(answer.ids or ()))
        if tokens > most or len(answer.text) > MAX_TOKEN_LENGTH * most:
            return f"the server wrote more than the {most} tokens that were allowed; {USE_VLLM}"
        if answer.finish == "stop" and answer.stop_id is None:
            return (
                "the server does not say which token ended a turn, and only the model's own end "
                f"token may end a conversation; {USE_VLLM}"
            )
        if sampled & sampling.stop_ids:
            return f"the server continues after a token of `stop_token_ids`; {USE_VLLM}"
        if sampling.banned_ids & {*sampled, answer.stop_id}:
            return f"the server sampled a token that `logit_bias` bans; {USE_VLLM}"
        if has_length and answer.stop_id is None and tokens_out < most:
            return (
                f"the server stopped after {tokens_out} tokens, and {most} were allowed; if "
                "its generation_config has `max_new_tokens`, start vLLM with "
                "--generation-config vllm"
            )
        return ""

    def _tested(self, ids: Sequence[int], sampling: Sampling) -> _Support:
        """Return what the server supports. All who wait for its test have what comes of it: one
        failed test after another would hold a run for hours."""
        failed_before = self._failed_test
        with self._lock:
            failed = self._failed_test
            if failed and failed is not failed_before:
                raise ModelError(str(failed), failed.reason, permanent=failed.permanent)
            try:
                self._support = self._support or self._find_support(ids, sampling)
            except ModelError as error:
                self._failed_test = error
                raise
            return self._support

    def _find_support(self, ids: Sequence[int], sampling: Sampling) -> _Support:
        """Return what the server supports. Two tests must fail before it is refused, since any
        server may give one odd answer."""
        try:
            return self._probe(ids, sampling)
        except InputError:
            pass
        try:
            return self._probe(ids, sampling)
        except InputError as error:
            why = self.text_only()
            if not why:
                raise
            raise self._not_usable(why) from error

    def text_only(self) -> str:
        """Return why a server that is known to take no token ids cannot be used; empty for
        others."""
        for path, key, kind in TEXT_ONLY:
            try:
                said = self._endpoint.ask(partial(_get, path), [], may_bill=False)
            except ModelError:
                continue
            if isinstance(said, dict) and key in said:
                return (
                    f"the server is {kind}, which takes prompts as text and no token ids; "
                    f"{USE_VLLM}, or serve it with llama.cpp (docs/local-servers.md)"
                )
        return ""

    def _probe(self, ids: Sequence[int], sampling: Sampling) -> _Support:
        """Test what the server supports with two calls for one token: the end token, and an
        ordinary one."""
        if not sampling.stop_ids or sampling.end_id not in (None, *sampling.stop_ids):
            raise ValueError(
                "stop_ids must hold the ids that end a completion, and end_id"
            )
        context_length = self.context_length()
        prompt = ids[-PROBE_TOKENS:]
        end = min(sampling.stop_ids) if sampling.end_id is None else sampling.end_id
        other = next(id for id in count() if id not in sampling.stop_ids)
        probe, ended = self._force_end(prompt, end, sampling.stop_ids)
        went_on = self._ask(prompt, probe, _Calls(), forced=other)
        stopped_at_end = ended.finish == "stop" and ended.stop_id == end
        if not stopped_at_end or went_on.finish == "stop":
            raise self._not_usable(
                f"the server was made to sample the end token ({end}) by `logit_bias` and did not "
                "stop there, as `stop_token_ids` asks, or it also stopped at another token; "
                f"{USE_VLLM}"
            )
        if went_on.ids not in (None, [other]):
            raise self._not_usable(
                f"the server was made to sample token {other} by `logit_bias` and sampled "
                f"{went_on.ids}; {USE_VLLM}"
            )
        p_end_problem = why_no_p_end(ended, went_on)
        notes = [p_end_problem] if p_end_problem else []
        if ended.ids is None:
            notes.append(
                "the server returns no token ids, so turns are taken from its text"
            )
        if ended.runs_on:
            notes.append(UNKNOWN_END.format(end))
        for note in notes:
            warn(f"{self.name}: {note}", ModelWarning, stacklevel=2)
        self.notes = tuple(notes)
        return _Support(context_length, ended.ids is not None, p_end_problem)

    def _force_end(
        self, prompt: Sequence[int], end: int, stop_ids: frozenset[int]
    ) -> tuple[Sampling, Answer]:
        """Return the request that the server accepts, with or without log-probabilities, and its
        answer."""
        for end_id in (end, None):
            probe = Sampling(stop_ids=stop_ids, end_id=end_id)
            try:
                return probe, self._ask(prompt, probe, _Calls(), forced=end)
            except ModelError as error:
                if error.reason not in NOT_OFFERED:
                    raise
                refused = str(error).removeprefix(f"{self.name}: ")
        raise self._not_usable(f"{refused}; start it without what it names, {USE_VLLM}")

    def _not_usable(self, why: str) -> InputError:
        message = f"{self.name}: not usable as a trained user: {why}"
        return InputError(self._endpoint.masked(message))


@dataclass(frozen=True, slots=True)
class _Support:
    """What a server supports.

    Attributes:
        context_length: in tokens; `None` if the server does not report it.
        ids: whether it returns the ids that it samples.
        p_end_problem: why P(end) is unknown; empty if it is known.
    """

    context_length: int | None
    ids: bool
    p_end_problem: str


def why_no_p_end(ended: Answer, went_on: Answer) -> str:
    """Return why P(end) is unknown, as two answers with a forced token each show; empty if it is
    known."""
    if ended.p_first is None or went_on.p_first is None:
        return "the server gives no log-probabilities, so P(end) is unknown"
    if ended.p_first + went_on.p_first > 1.01:
        # With the bias, each token is almost certain; without it, both together have 1.
        return (
            "the server's log-probabilities are those after a ban, so P(end) is unknown; start "
            "vLLM with --logprobs-mode raw_logprobs"
        )
    return ""


@dataclass(frozen=True, slots=True)
class _Calls:
    """The calls for one completion.

    Attributes:
        faults: the kinds of faults of all tries.
        usage: tokens in and out of each answer.
    """

    faults: list[str] = field(default_factory=list)
    usage: list[tuple[int, int]] = field(default_factory=list)


async def _models(client: openai.AsyncOpenAI) -> list[dict[str, Any]]:
    """Return the server's list of models; empty if it has none."""
    try:
        body = await receive(client.models.with_streaming_response.list())
        return [{"owned_by": "", **model} for model in body["data"]]
    except (LookupError, TypeError, ValueError, RecursionError):
        return []


async def _get(path: str, client: openai.AsyncOpenAI) -> Any:
    """Return what is at a path of the server's own API."""
    return await client.get(server_root(client) + path, cast_to=object)

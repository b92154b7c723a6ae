"""How a server that continues token ids is asked, and how its answer is read.

vLLM, SGLang   `/v1/completions`; the token that ended a turn is the last of `token_ids`, or
               `stop_reason` (vLLM), or `matched_stop` (SGLang). With `ignore_eos`, SGLang heeds no
               `stop_token_ids` either; and the last token that is allowed has the reason `length`
               there, whatever it is. (Source: its `schedule_batch.py` and `serving_completions.py`)
llama.cpp      `/completion`: its `/v1/completions` names no ids. It knows no `stop_token_ids`,
               so what it writes behind the first of them is cut
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeGuard

import openai
from openai.types import Completion as Completed

from userlm.models.endpoint import first_choice, receive, seed_of, token_count
from userlm.types import Sampling

LLAMA_CPP, SGLANG = "llamacpp", "sglang"
"""What these servers say in `/v1/models` that their models are owned by."""
UNKNOWN_END = (
    "the server does not know token {} as an end and writes on behind it, which is cut; name it in "
    "the GGUF's metadata (docs/local-servers.md)"
)


@dataclass(frozen=True, slots=True)
class Request:
    """A completion that is asked for.

    Attributes:
        bias: what is added to the logits of tokens.
        forced: whether the bias leaves one token, whose log-probability before it is wanted.
    """

    model: str
    prompt: Sequence[int]
    sampling: Sampling
    bias: Mapping[int, int]
    forced: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer to one call.

    Attributes:
        ids: the sampled ids without the stop id; `None` if it does not return them.
        text: as the server decodes them.
        stop_id: the id that ended it; `None` if none did, or if it is not reported.
        finish: `stop` or `length`.
        p_first: the probability of the first sampled token.
        p_end: the probability of `Sampling.end_id` at the first position.
        usage: tokens in and out; `None` if it does not count them.
        runs_on: whether the server does not itself stop at the stop id.
    """

    ids: list[int] | None
    text: str
    stop_id: int | None
    finish: str
    p_first: float | None
    p_end: float | None
    usage: tuple[int, int] | None
    runs_on: bool = False


Flavour: TypeAlias = Callable[[openai.AsyncOpenAI, Request], Awaitable[Answer]]
"""Sends a request; raises `ValueError` if the answer is no completion."""


async def completions(client: openai.AsyncOpenAI, request: Request) -> Answer:
    """Ask `/v1/completions`, as vLLM has it."""
    return await _completions(client, request, ignore_eos=True)


async def sglang(client: openai.AsyncOpenAI, request: Request) -> Answer:
    """Ask `/v1/completions`, as SGLang has it."""
    answer = await _completions(client, request, ignore_eos=False)
    finish = answer.finish if answer.stop_id is None else "stop"
    return replace(answer, finish=finish)


async def _completions(
    client: openai.AsyncOpenAI, request: Request, ignore_eos: bool
) -> Answer:
    create: Any = client.completions.with_streaming_response.create
    bias = {str(id): value for id, value in request.bias.items()}
    body = await receive(
        create(
            model=request.model,
            prompt=[*request.prompt],
            logit_bias=bias or openai.omit,
            **_parameters(request.sampling, ignore_eos),
        )
    )
    return _read(Completed.construct(**body), request.sampling)


def _parameters(sampling: Sampling, ignore_eos: bool) -> dict[str, Any]:
    """The parameters of a request, beside model, prompt and bans."""
    extra: dict[str, Any] = {
        "stop_token_ids": sorted(sampling.stop_ids),
        "ignore_eos": ignore_eos,
        "include_stop_str_in_output": False,
        "skip_special_tokens": False,
        "return_token_ids": True,
        "top_k": -1,
        "min_p": 0,
        "repetition_penalty": 1,
    }
    parameters = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "seed": seed_of(sampling),
        "extra_body": extra,
    }
    if sampling.end_id is not None:
        parameters["logprobs"] = 1
        extra["logprob_token_ids"] = [sampling.end_id]
        extra["return_tokens_as_token_ids"] = True
    return parameters


def _read(answer: Any, sampling: Sampling) -> Answer:
    """Parse a completion; raise `ValueError` if it is not one."""
    choice = first_choice(answer)
    text = getattr(choice, "text", None)
    finish = getattr(choice, "finish_reason", None)
    if not isinstance(text, str):
        raise ValueError("it has no text")
    if finish not in ("stop", "length"):  # a server that shuts down returns `abort`
        raise ValueError("its finish_reason is neither `stop` nor `length`")
    ids = _ids(getattr(choice, "token_ids", None))
    stop_id = None
    if ids and ids[-1] in sampling.stop_ids:
        stop_id = ids.pop()
    else:
        for name in ("stop_reason", "matched_stop"):
            said = getattr(choice, name, None)
            if type(said) is int and said in sampling.stop_ids:
                stop_id = said
    logprobs = getattr(choice, "logprobs", None)
    p_first = _first_probability(getattr(logprobs, "token_logprobs", None))
    top = getattr(logprobs, "top_logprobs", None)
    p_end = _first_probability(top, f"token_id:{sampling.end_id}")
    tokens_in = token_count(answer, "prompt_tokens")
    tokens_out = token_count(answer, "completion_tokens")
    usage = None
    if tokens_in is not None and tokens_out is not None:
        usage = (tokens_in, tokens_out)
    return Answer(ids, text, stop_id, finish, p_first, p_end, usage)


async def llama_cpp(client: openai.AsyncOpenAI, request: Request) -> Answer:
    """Ask llama.cpp's own `/completion`."""
    sampling = request.sampling
    seed = seed_of(sampling)
    body = {
        "model": request.model,
        "prompt": [*request.prompt],
        "n_predict": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        # No other sampler, whatever the server was started with; dynatemp is within the first.
        "samplers": ["temperature", "top_p"],
        "dynatemp_range": 0,
        "mirostat": 0,
        "grammar": "",
        "stop": [],
        "logit_bias": [[id, value] for id, value in request.bias.items()],
        "n_probs": int(request.forced),
        "return_tokens": True,
    } | ({} if seed is openai.omit else {"seed": seed})
    url = server_root(client) + "completion"
    return _read_llama_cpp(await client.post(url, body=body, cast_to=object), sampling)


def _read_llama_cpp(answer: Any, sampling: Sampling) -> Answer:
    """Parse an answer of llama.cpp, cut at the first stop id; raise `ValueError` if it is none."""
    if not isinstance(answer, dict) or not isinstance(answer.get("content"), str):
        raise ValueError("it has no text")
    ids = _ids(answer.get("tokens"))
    ended = answer.get("stop_type")
    if ended not in ("eos", "limit"):
        raise ValueError("its stop_type is neither `eos` nor `limit`")
    stop_id = None
    for n, id in enumerate(ids or ()):
        if ids and id in sampling.stop_ids:
            stop_id = id
            ids = ids[:n]
            break
    logprobs = answer.get("completion_probabilities")
    p_first = _first_probability(logprobs, "logprob")
    tokens_in, tokens_out = map(answer.get, ("tokens_evaluated", "tokens_predicted"))
    usage = None
    if _is_id(tokens_in) and _is_id(tokens_out) and tokens_in and tokens_out:
        usage = (tokens_in, tokens_out)
    finish = "stop" if stop_id is not None or ended == "eos" else "length"
    runs_on = stop_id is not None and ended == "limit"
    return Answer(
        ids, answer["content"], stop_id, finish, p_first, None, usage, runs_on
    )


def server_root(client: openai.AsyncOpenAI) -> str:
    """Where a server's own API is, beside that of OpenAI under /v1."""
    url = str(client.base_url).rstrip("/")
    return url.removesuffix("/v1") + "/"


def _ids(value: Any) -> list[int] | None:
    """A list of token ids; `None` if it is none."""
    return value if isinstance(value, list) and all(map(_is_id, value)) else None


def _is_id(value: Any) -> TypeGuard[int]:
    """Whether it can be a token id; a tokenizer decodes no larger number."""
    return type(value) is int and 0 <= value < 2**31


def _first_probability(logprobs: Any, token: str = "") -> float | None:
    """Return the probability at the first position, of this token if there are several; `None` if
    the server returned none."""
    first: Any = logprobs[0] if isinstance(logprobs, list) and logprobs else None
    if isinstance(first, dict):
        first = first.get(token)
    if type(first) in (int, float) and first < 1e-3:
        # Rounding may put a log-probability above 0. An integer may be too large for `exp`.
        return math.exp(max(min(first, 0), -1000))
    return None

"""The answers of a server that continues token ids as vLLM does, or that lacks a part of it; for
`fake_server.serving`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from fake_server import Said, error

VLLM = frozenset(
    (
        "stop_token_ids",
        "ignore_eos",
        "logit_bias",
        "return_token_ids",
        "logprobs",
        "logprob_token_ids",
        "return_tokens_as_token_ids",
        "stop_reason",
        "usage",
    )
)
"""The fields of a request that the server knows, and those of its answer."""


def continuing(
    logits: Callable[[list[int]], Sequence[float]],
    decode: Callable[[list[int]], str],
    *,
    lacks: Sequence[str] = (),
    refuses: Sequence[str] = (),
    context_length: int | None = None,
    eos: int | None = None,
    bos: Sequence[int] = (),
    processed: bool = False,
    bans: bool = True,
    most: int = 10**6,
    goes_on: int = 0,
    matched: bool = False,
) -> Callable[[dict[str, Any], int], Said]:
    """A model behind a server.

    Args:
        logits: of the token after some ids.
        decode: ids to text, control tokens too.
        lacks: fields of `VLLM` that it ignores silently.
        refuses: fields of a request that it refuses.
        eos: ends a completion, unless a request says to ignore it.
        bos: put before each prompt.
        processed: whether its log-probabilities are those after a bias.
        bans: whether `logit_bias` may lower a logit.
        most: the most tokens that it samples, whatever is allowed.
        goes_on: the position from which on nothing ends a completion.
        matched: whether it is SGLang, which has `matched_stop` in place of `stop_reason`, heeds no
            `stop_token_ids` with `ignore_eos`, and looks at the length first.
    """
    knows = VLLM.difference(lacks)

    def reply(body: dict[str, Any], n: int) -> Said:
        if not body:
            listed = {
                "id": "m",
                "object": "model",
                "created": 0,
                "owned_by": "sglang" if matched else "x",
                "max_model_len": context_length,
            }
            return Said(
                body={
                    "object": "list",
                    "data": [{**listed, "id": "other", "max_model_len": 7}, listed],
                }
            )
        if taken := sorted(body.keys() & {*refuses}):
            return error(400, f"{taken[0]}: Extra inputs are not permitted; {body}")
        asked = {
            name: value
            for name, value in body.items()
            if name in knows or name not in VLLM
        }
        prompt = [*bos, *asked["prompt"]]
        if context_length and len(prompt) + asked["max_tokens"] > context_length:
            return error(
                400, f"This model's maximum context length is {context_length} tokens."
            )
        unnamed = () if asked.get("ignore_eos") else (eos,)
        stops = {*asked.get("stop_token_ids", ()), *unnamed}
        if matched and asked.get("ignore_eos"):
            stops = set()
        bias = {
            int(id): value
            for id, value in asked.get("logit_bias", {}).items()
            if bans or value > 0
        }
        chance = random.Random(asked.get("seed"))
        sampled: list[int] = []

        def closed(sampled: list[int]) -> bool:
            return bool(
                sampled
                and sampled[-1] in stops
                and (not goes_on or len(sampled) < goes_on)
                and not (matched and len(sampled) >= asked["max_tokens"])
            )

        first: list[float] = []
        while len(sampled) < min(asked["max_tokens"], most) and not closed(sampled):
            raw = logits([*prompt, *sampled])
            moved = [value + bias.get(id, 0) for id, value in enumerate(raw)]
            first = first or log_softmax(moved if processed else raw)
            sampled.append(sample(moved, asked["temperature"], asked["top_p"], chance))
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop" if closed(sampled) else "length",
        }
        choice["text"] = decode(sampled[:-1] if closed(sampled) else sampled)
        if "stop_reason" in knows:
            choice["stop_reason"] = (
                sampled[-1] if closed(sampled) and sampled[-1] not in unnamed else None
            )
        if matched:
            choice["matched_stop"] = choice.pop("stop_reason", None)
        if asked.get("return_token_ids"):
            choice["token_ids"] = sampled
        if asked.get("logprobs"):
            top = {sampled[0], *asked.get("logprob_token_ids", ())}
            named = (
                "token_id:{}".format
                if asked.get("return_tokens_as_token_ids")
                else "<{}>".format
            )
            values = {
                "token_logprobs": [first[sampled[0]]],
                "top_logprobs": [{named(id): first[id] for id in top}],
            }
            choice["logprobs"] = {
                "tokens": [named(sampled[0])],
                "text_offset": [0],
                **values,
            }
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(sampled),
            "total_tokens": 0,
        }
        about = {
            "id": "1",
            "object": "text_completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
        }
        return Said(body=about | ({"usage": usage} if "usage" in knows else {}))

    return reply


def llama_cpp(
    logits: Callable[[list[int]], Sequence[float]],
    decode: Callable[[list[int]], str],
    *,
    eog: Sequence[int],
    context_length: int = 512,
    processed: bool = False,
) -> Callable[[dict[str, Any], int], Said]:
    """A model behind llama.cpp's server: its `/completion`, `/v1/models` and `/props`.

    Args:
        eog: the tokens that its GGUF names as an end of generation.
        processed: whether its log-probabilities are those after a bias.
    """

    def reply(body: dict[str, Any], n: int) -> Said:
        if not body:
            listed = {"id": "model.gguf", "object": "model", "owned_by": "llamacpp"}
            settings = {"n_ctx": context_length}
            return Said(
                body={"data": [listed], "default_generation_settings": settings}
            )
        bias = dict(body["logit_bias"])
        chance = random.Random(body.get("seed"))
        sampled: list[int] = []
        first: list[float] = []
        while len(sampled) < body["n_predict"] and not {*sampled[-1:]} & {*eog}:
            raw = logits([*body["prompt"], *sampled])
            moved = [value + bias.get(id, 0) for id, value in enumerate(raw)]
            first = first or log_softmax(moved if processed else raw)
            sampled.append(sample(moved, body["temperature"], body["top_p"], chance))
        answer = {
            "content": decode([id for id in sampled if id not in eog]),
            "tokens": sampled,
            "tokens_evaluated": len(body["prompt"]),
            "tokens_predicted": len(sampled),
            "stop_type": "eos" if sampled[-1] in eog else "limit",
            "truncated": False,
        }
        if body["n_probs"]:
            found = {"id": sampled[0], "logprob": first[sampled[0]], "top_logprobs": []}
            answer["completion_probabilities"] = [found]
        return Said(body=answer)

    return reply


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Log-probabilities."""
    highest = max(logits)
    total = highest + math.log(sum(math.exp(value - highest) for value in logits))
    return [value - total for value in logits]


def sample(
    logits: Sequence[float], temperature: float, top_p: float, chance: random.Random
) -> int:
    """One id, sampled as vLLM does."""
    order = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)
    if not temperature:
        return order[0]
    values = log_softmax([logits[id] / temperature for id in order])
    kept, before = [], 0.0
    for value in values:
        if before >= top_p:
            break
        kept.append(math.exp(value))
        before += kept[-1]
    return chance.choices(order[: len(kept)], kept)[0]

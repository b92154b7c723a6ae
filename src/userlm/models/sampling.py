"""Sampling of tokens: temperature and nucleus (top-p), for many rows of logits at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from userlm.types import Sampling

TOP = 256
"""The nucleus is first searched among this many most probable tokens, since sorting a large
vocabulary takes longer than a step of a small model."""


def sample_tokens(
    logits: Tensor,
    samplings: Sequence[Sampling],
    numbers: Sequence[float],
) -> list[int | None]:
    """Return a token for each row of logits, (rows, vocabulary): temperature, then nucleus
    (Holtzman et al., 2020).

    Args:
        numbers: a random number from 0 to 1 for each row: the share of the nucleus' probability
            before the sampled token. Each row has its own, so that it does not depend on the
            others.

    Returns:
        `None` for a row with NaN or infinity, or with -infinity only.
    """
    peaks, greedy = logits.max(-1)
    tokens: list[int | None] = greedy.tolist()
    sampled = []
    for i, finite in enumerate(peaks.isfinite().tolist()):
        if not finite:
            tokens[i] = None
        elif samplings[i].temperature:
            sampled.append(i)
    if not sampled:
        return tokens
    # A smaller temperature than 1e-30 could be 0 in float32.
    temperatures = [max(samplings[i].temperature, 1e-30) for i in sampled]
    divisors = torch.tensor(temperatures, device=logits.device)
    below_peak = logits[sampled] - peaks[sampled, None]
    probabilities = (below_peak / divisors[:, None]).softmax(-1)
    shares = [samplings[i].top_p for i in sampled]
    found = _sample_nuclei(
        probabilities,
        torch.tensor(shares, dtype=torch.float64),
        torch.tensor([numbers[i] for i in sampled], dtype=torch.float64),
    )
    for i, token in zip(sampled, found.tolist(), strict=True):
        tokens[i] = token
    return tokens


def _sample_nuclei(
    probabilities: Tensor,
    shares: Tensor,
    levels: Tensor,
) -> Tensor:
    """Return a token from the nucleus of each row: the most probable tokens with a share of the
    probability. Of equally probable tokens the smaller id comes first."""
    vocabulary = probabilities.shape[1]
    tokens = torch.zeros(len(shares), dtype=torch.long)
    whole = (shares == 1).nonzero()[:, 0]
    if len(whole):  # no token is excluded, so no sorting is needed
        tokens[whole] = _pick(probabilities[whole].cpu().double(), levels[whole])
    left = (shares < 1).nonzero()[:, 0]
    for limit in (TOP, 16 * TOP, vocabulary):
        if not len(left):
            break
        count = min(limit, vocabulary)
        candidates, ids = _most_probable(probabilities[left], count)
        before = candidates.cumsum(-1) - candidates
        # A token is inside if those before it have less than the share.
        inside = before < shares[left, None]
        places = _pick(candidates.masked_fill(~inside, 0), levels[left])
        tokens[left] = ids.gather(-1, places[:, None])[:, 0]
        if count == vocabulary:
            break
        # If the least probable candidate is in the nucleus, more tokens may be: use more
        # candidates.
        least = candidates == candidates[:, -1:]
        left = left[(inside & least).any(-1)]
    return tokens


def _most_probable(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest probabilities of each row, sorted, in double precision, and their
    tokens."""
    if count == probabilities.shape[1]:
        return probabilities.cpu().double().sort(dim=-1, descending=True, stable=True)
    values, ids = (found.cpu() for found in probabilities.topk(count))
    # topk returns equals in any order: sort them by id before the stable sort.
    ids, order = ids.sort(-1)
    values = values.gather(-1, order)
    values, order = values.double().sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _pick(weights: Tensor, levels: Tensor) -> Tensor:
    """Return the index in each row where the cumulative sum exceeds a share of the total.

    Its weight is never 0: a double below 1 times the total, rounded, is less than the total.
    """
    sums = weights.cumsum(-1)
    passed = levels * sums[:, -1]
    return (sums <= passed[:, None]).sum(-1)

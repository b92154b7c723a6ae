"""Sampling of tokens: temperature and nucleus (top-p), for many rows of logits at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from userlm.types import Sampling

TOP = 256
"""The most probable tokens among which a nucleus is looked for first: sorting a large vocabulary takes
longer than a step of a small model."""


def sample_tokens(
    logits: torch.Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]
) -> list[int | None]:
    """Return a token for each row of logits, (rows, vocabulary): temperature, then nucleus (Holtzman
    et al., 2020).

    Args:
        numbers: a random number from 0 to 1 for each row: how much of the probability of the nucleus
            lies before the token. Each row has its own, so that no row depends on the others.

    Returns:
        `None` for a row with NaN or infinity, or with nothing but -infinity.
    """
    peaks, greedy = logits.max(-1)
    tokens: list[int | None] = greedy.tolist()
    sampled = []
    for i, finite in enumerate(peaks.isfinite().tolist()):
        if not finite:
            tokens[i] = None
        elif samplings[i].temperature:
            sampled.append(i)
    if sampled:
        # A smaller temperature than 1e-30 could be 0 in float32.
        temperatures = [max(samplings[i].temperature, 1e-30) for i in sampled]
        divisors = torch.tensor(temperatures, device=logits.device)
        below_peak = logits[sampled] - peaks[sampled, None]
        probabilities = (below_peak / divisors[:, None]).softmax(-1)
        shares = [samplings[i].top_p for i in sampled]
        found = _sample_nuclei(probabilities, shares, [numbers[i] for i in sampled])
        for i, token in zip(sampled, found, strict=True):
            tokens[i] = token
    return tokens


def _sample_nuclei(
    probabilities: torch.Tensor, top_p: Sequence[float], numbers: Sequence[float]
) -> list[int]:
    """Return a token from the nucleus of each row. Among equally probable tokens the smaller id comes
    first."""
    vocabulary = probabilities.shape[1]
    shares = torch.tensor(top_p, dtype=torch.float64)
    levels = torch.tensor(numbers, dtype=torch.float64)
    tokens = torch.zeros(len(top_p), dtype=torch.long)
    whole = [i for i, share in enumerate(top_p) if share == 1]
    if whole:  # nothing is left out, so nothing needs to be sorted
        tokens[whole] = _pick(probabilities[whole].cpu().double(), levels[whole])
    left = [i for i, share in enumerate(top_p) if share < 1]
    for limit in (TOP, 16 * TOP, vocabulary):
        if not left:
            break
        count = min(limit, vocabulary)
        candidates, ids = _most_probable(probabilities[left], count)
        # A token is in the nucleus if the tokens before it hold too little.
        inside = candidates.cumsum(-1) - candidates < shares[left, None]
        chosen = _pick(candidates.masked_fill(~inside, 0), levels[left])
        tokens[left] = ids.gather(-1, chosen[:, None])[:, 0]
        if count == vocabulary:
            break
        # If the least of the candidates is inside, tokens beyond them may be, too: look at more.
        least = candidates == candidates[:, -1:]
        unfinished = (inside & least).any(-1).tolist()
        left = [i for i, more in zip(left, unfinished, strict=True) if more]
    found: list[int] = tokens.tolist()
    return found


def _most_probable(probabilities: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest probabilities of each row in double precision, sorted, and their tokens.
    `topk` leaves the order of equals open, so they are put in the order of their ids first."""
    if count == probabilities.shape[1]:
        return probabilities.cpu().double().sort(dim=-1, descending=True, stable=True)
    values, ids = (found.cpu() for found in probabilities.topk(count))
    ids, order = ids.sort(-1)
    values = values.gather(-1, order)
    values, order = values.double().sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _pick(weights: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return where the running sum of each row passes its level, a share of the total; never at a
    weight of 0, since a double below 1 times the total, rounded, is less than the total."""
    sums = weights.cumsum(-1)
    return (sums <= (levels * sums[:, -1])[:, None]).sum(-1)

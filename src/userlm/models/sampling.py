"""Drawing tokens: temperature and nucleus, for many rows of logits at once, each with a number of
its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from userlm.types import Sampling

TOP = 256
"""Candidates among which a nucleus is looked for first. To sort a large vocabulary takes longer
than a step of a small model."""


def draw(
    logits: torch.Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]
) -> list[int | None]:
    """A token for each row of logits, (rows, vocabulary): temperature, then nucleus (Holtzman et
    al., 2020).

    Args:
        numbers: between 0 and 1, one a row: how much of the nucleus' probability lies before the
            token.

    Returns:
        `None` for a row that holds NaN or infinity, or nothing but -infinity.
    """
    peaks, greedy = logits.max(-1)
    fine, tokens = peaks.isfinite().tolist(), greedy.tolist()
    drawn = [i for i, sampling in enumerate(samplings) if sampling.temperature and fine[i]]
    if drawn:
        heat = torch.tensor(
            [max(samplings[i].temperature, 1e-30) for i in drawn], device=logits.device
        )
        probabilities = ((logits[drawn] - peaks[drawn, None]) / heat[:, None]).softmax(-1)
        some = _draw(
            probabilities, [samplings[i].top_p for i in drawn], [numbers[i] for i in drawn]
        )
        for i, token in zip(drawn, some, strict=True):
            tokens[i] = token
    return [token if ok else None for token, ok in zip(tokens, fine, strict=True)]


def _draw(
    probabilities: torch.Tensor, top_p: Sequence[float], numbers: Sequence[float]
) -> list[int]:
    """Tokens from the nuclei of rows of probabilities. Among equals the smaller id comes first."""
    tokens = [0] * len(top_p)
    levels, shares = (
        torch.tensor(numbers, dtype=torch.float64),
        torch.tensor(top_p, dtype=torch.float64),
    )
    if whole := [i for i, share in enumerate(top_p) if share == 1]:
        picked = _pick(probabilities[whole].cpu().double(), levels[whole]).tolist()
        for i, token in zip(whole, picked, strict=True):
            tokens[i] = token
    left, count = [i for i, share in enumerate(top_p) if share < 1], TOP
    while left:
        if count < probabilities.shape[1]:
            values, ids = (found.cpu() for found in probabilities[left].topk(count))
            ids, order = ids.sort(-1)
            values, order = (
                values.gather(-1, order).double().sort(dim=-1, descending=True, stable=True)
            )
            ids = ids.gather(-1, order)
        else:
            count = probabilities.shape[1]
            values, ids = (
                probabilities[left].cpu().double().sort(dim=-1, descending=True, stable=True)
            )
        inside = (
            values.cumsum(-1) - values < shares[left, None]
        )  # what is before it is not enough yet
        ends = ~(inside & (values == values[:, -1:])).any(
            -1
        )  # else more of the least may belong to it
        picked = ids.gather(-1, _pick(values.masked_fill(~inside, 0), levels[left])[:, None])[
            :, 0
        ].tolist()
        done = [end or count == probabilities.shape[1] for end in ends.tolist()]
        for i, token in zip(left, picked, strict=True):
            tokens[i] = token
        left = [i for i, ready in zip(left, done, strict=True) if not ready]
        count *= 16 if count == TOP else probabilities.shape[1]  # far from the first: all of them
    return tokens


def _pick(weights: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Where the running sum of a row of weights passes its level, a share of the total. Never at a
    weight of 0: a double below 1 times the total is less than the total, rounded, too."""
    sums = weights.cumsum(-1)
    return (sums <= (levels * sums[:, -1])[:, None]).sum(-1)

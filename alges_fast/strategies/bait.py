"""BAIT: frames whose Fisher information tells most about the whole pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.embedding import by_candidate, by_cell, gathered, last_layer_inputs, on_every_process
from alges_fast.strategies.rating import by_choosing
from alges_fast.strategies.registry import register_strategy

TRIED = 256
"""Candidates whose objective is computed at once."""
RIDGE = 1e-3
"""Of the prior, in units of a candidate's mean eigenvalue: M is invertible before anything is labelled."""


@register_strategy
class Bait(Strategy):
    """Greedily least tr((M + F_i)⁻¹ F̄): what is labelled should leave little variance where the pool is.

    F_i = Σ over a candidate's pixels of p̂ (1 - p̂) z zᵀ, p̂ the probability of the predicted class and z the last
    layer's input: Fisher information of the binary question whether the prediction is right. M is the sum over what is
    labelled or picked, with a thousandth of a candidate's mean eigenvalue as ridge, F̄ the sum over candidates and what
    is labelled. Every process holds d² numbers for each candidate.
    """

    name: ClassVar[str] = "bait"
    reference: ClassVar[str] = "Ash et al., Gone fishing, NeurIPS 2021, in the binary form of arXiv 2404.08981"

    def rate(self, query: Query) -> Rating:
        positions, candidates = gathered(query, *_information(query))
        others = query.labelled_elsewhere()
        nothing = torch.zeros(candidates.shape[1:], dtype=torch.float64)
        known = on_every_process(query, others, _information).sum(0, dtype=torch.float64) if others else nothing
        total = candidates.sum(0, dtype=torch.float64)
        ridge = RIDGE * total.trace() / candidates.shape[1] / max(len(candidates), 1)
        prior = known + ridge.clamp(min=torch.finfo(torch.float32).tiny) * torch.eye(len(total), dtype=torch.float64)

        def choose(n: int, picked: Sequence[int], closed: Tensor) -> list[int]:
            current = prior + candidates[list(picked)].sum(0, dtype=torch.float64)
            return greedy(candidates, current, total + known, n, closed)

        return by_choosing(query, positions, choose)


def _information(query: Query) -> tuple[Tensor, Tensor]:
    rows = []
    for features, logits in last_layer_inputs(query):
        weight = variance(logits, features.shape[2:])
        rows.append(by_cell(query, information, features.float(), weight).cpu())
    return by_candidate(query, rows)


def variance(logits: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, 1, *grid): p̂ (1 - p̂) of every pixel, averaged over the pixels of the logits that one of the grid covers."""
    likely = logits.float().softmax(1).amax(1, keepdim=True)
    return F.interpolate(likely * (1 - likely), size=tuple(grid), mode="area")


def information(features: Tensor, weight: Tensor) -> Tensor:
    """(B, d, d): Σ over pixels of w z zᵀ, of features (B, d, H, W) and weights (B, 1, H, W)."""
    z = features.flatten(2)
    return (z * weight.flatten(2)) @ z.mT


def greedy(candidates: Tensor, start: Tensor, target: Tensor, n: int, closed: Tensor) -> list[int]:
    """n positions, each the one whose F_i leaves tr((M + F_i)⁻¹ F̄) smallest; M then grows by it.

    F_i has full rank, so no rank-one update serves: every objective is a Cholesky factorisation. But X ↦ X⁻¹ is convex,
    so tr(M⁻¹F̄) - tr(M⁻¹F̄M⁻¹F_i) is a lower bound that costs a dot product. Candidates are tried in its order, until no
    bound left is below the best objective: the pick is the best of all, as if every one had been tried.

    Args:
        candidates: (N, d, d) F_i.
        start: (d, d) M, positive definite.
        target: (d, d) F̄.
        n: how many, at most the open ones.
        closed: (N,) bool, what may not be picked.
    """
    current, target = start.double(), target.double()
    values, vectors = torch.linalg.eigh(target)
    root = vectors * values.clamp(min=0).sqrt()
    closed = closed.clone()
    picks = []
    for _ in range(n):
        inverse = torch.linalg.inv(current)
        slope = inverse @ target @ inverse
        bounds = (inverse * target).sum() - (candidates.flatten(1) @ slope.flatten().to(candidates)).double()
        bounds[closed] = torch.inf
        order = bounds.sort(stable=True)
        best, at = torch.inf, -1
        for first in range(0, len(order.values), TRIED):
            rows = order.indices[first : first + TRIED]
            rows = rows[~closed[rows]]
            if not len(rows) or float(order.values[first]) > best:
                break
            factors = torch.linalg.cholesky(current + candidates[rows].double())
            objective = torch.linalg.solve_triangular(factors, root, upper=False).square().sum((1, 2))
            least = float(objective.amin())
            where = int(rows[objective == least].amin())
            if least < best or (least == best and where < at):
                best, at = least, where
        closed[at] = True
        current = current + candidates[at].double()
        picks.append(at)
    return picks

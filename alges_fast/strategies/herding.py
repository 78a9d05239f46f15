"""Herding: frames whose neighbourhoods cover the pool, by a kernel on mean features; no label and no model needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.embedding import embed, gathered
from alges_fast.strategies.rating import by_choosing
from alges_fast.strategies.registry import register_strategy
from alges_fast.strategies.untrained import mean_points

BLOCK = 128, 2048
"""Rows and columns of the kernel at a time: 1 MB, which stays in cache, whatever the pool."""
FARTHEST = 80.0
"""Of an exponent: e⁻⁸⁰ counts for nothing, and smaller numbers soon are denormal, which took twice the time."""
SAMPLE = 1024
"""Points whose nearest neighbour is looked for: enough for a median."""
TIED = 1e-5
"""Relative: gains this close are one, as those of two points that have only each other near."""
REFRESHED = 32
"""Candidates whose gain is computed again at once; a few are enough to find the best."""


@register_strategy
class Herding(Strategy):
    """Largest Σ_j max(0, κ(i, j) - c_j), c_j the best κ of candidate j to anything labelled or picked.

    κ is a Gaussian of features averaged over a candidate's pixels, its σ the median distance to the nearest neighbour
    (`typical_width`). The features are a frozen encoder's where the query has them, else what enters the last layer.
    """

    name: ClassVar[str] = "herding"
    reference: ClassVar[str] = "Bae et al., Generalized coverage for more robust low-budget active learning, ECCV 2024"
    needs_model: ClassVar[bool] = False

    def rate(self, query: Query) -> Rating:
        positions, points, centres = mean_points(query)
        points, weights = points.to(query.device), self.weights(query, positions)
        return by_choosing(query, positions, Coverage(points, weights, centres=centres).pick)

    def weights(self, query: Query, positions: Tensor) -> Tensor | None:
        """(N,) u of the candidates at these positions; None for 1 each."""
        return None


@register_strategy
class UncertaintyHerding(Herding):
    """Herding in which candidate j counts u_j = S_j, the summed entropy of its pixels."""

    name: ClassVar[str] = "uherding"
    reference: ClassVar[str] = "Bae et al., Uncertainty herding, 2024, arXiv 2412.20644"
    needs_model: ClassVar[bool] = True

    def weights(self, query: Query, positions: Tensor) -> Tensor | None:
        found = embed(query, ("entropy",))
        known, entropy = gathered(query, found.positions, found.outputs["entropy"])
        return entropy[torch.isin(known, positions)]


class Coverage:
    """Greedy maximisation of Σ_j u_j max_{i picked} κ(i, j), κ(i, j) = exp(-‖x_i - x_j‖² / 2 σ²).

    A pick's gain is Σ_j u_j max(0, κ(i, j) - c_j), c_j the best κ of j to anything picked; it never grows (the sum is
    submodular), so what was computed once bounds it from then on, and only candidates whose bound beats the best gain
    are computed again (Minoux 1978): the picks are those of computing every gain every time. All gains are computed
    once, N² kernel values that pass through a block at a time; memory is a few numbers a point.

    Args:
        points: (N, d).
        weights: (N,) u, or None for 1 each.
        width: σ; default `typical_width(points)`.
        centres: (M, d) points that count as picked from the start.
    """

    def __init__(
        self,
        points: Tensor,
        weights: Tensor | None = None,
        width: float | None = None,
        centres: Tensor | None = None,
    ) -> None:
        width = typical_width(points) if width is None else width
        # About their mean and in units of σ: the expanded square below then loses few digits.
        middle = points.double().mean(0) if len(points) else points.double().sum(0)
        self.points = ((points.double() - middle) / (width * math.sqrt(2))).float()
        self.half_norms = self.points.square().sum(1)
        self.weights = torch.ones_like(self.half_norms) if weights is None else weights.to(self.half_norms)
        self.covered = torch.zeros_like(self.half_norms)
        if centres is not None and len(centres):
            self.covered = self._covered_by(
                ((centres.to(middle) - middle) / (width * math.sqrt(2))).float(), self.covered
            )
        self.bounds = self._gains(self.points, self.covered)

    def pick(self, n: int, taken: Sequence[int], closed: Tensor) -> list[int]:
        """n positions of largest gain, one after the other; of equal ones (TIED) the earlier.

        Args:
            n: how many, at most the positions that are open.
            taken: positions that count as picked.
            closed: (N,) bool, what may not be picked.
        """
        covered = self._covered_by(self.points[list(taken)], self.covered) if taken else self.covered.clone()
        bounds = self.bounds.masked_fill(closed, -torch.inf)
        picks: list[int] = []
        for _ in range(n):
            fresh = torch.full_like(bounds, -torch.inf)
            stale = bounds.clone()
            best, at = -math.inf, -1
            while at < 0 or float(stale.amax()) >= best * (1 - TIED):
                rows = stale.topk(min(REFRESHED, len(stale))).indices.sort().values
                rows = rows[stale[rows] > -torch.inf]
                if not len(rows):
                    break
                fresh[rows] = torch.minimum(self._gains(self.points[rows], covered), bounds[rows])
                stale[rows] = -torch.inf
                best = float(fresh.amax())
                at = int((fresh >= best * (1 - TIED)).nonzero()[0])
            bounds = torch.where(fresh > -torch.inf, fresh, bounds)
            bounds[at] = -torch.inf
            covered = self._covered_by(self.points[at : at + 1], covered)
            picks.append(at)
        return picks

    def _kernel(self, rows: Tensor, columns: slice) -> Tensor:
        """(R, C): κ of these points to a slice of the pool's."""
        half = rows.square().sum(1, keepdim=True) + self.half_norms[columns]
        return torch.addmm(half, rows, self.points[columns].T, alpha=-2).clamp_(0, FARTHEST).neg_().exp_()

    def _gains(self, rows: Tensor, covered: Tensor) -> Tensor:
        gains = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for start in range(0, len(rows), BLOCK[0]):
            for column in range(0, len(self.points), BLOCK[1]):
                columns = slice(column, column + BLOCK[1])
                kernel = self._kernel(rows[start : start + BLOCK[0]], columns)
                kernel = kernel.sub_(covered[columns]).clamp_(min=0)
                gains[start : start + BLOCK[0]] += kernel @ self.weights[columns]
        return gains

    def _covered_by(self, centres: Tensor, covered: Tensor) -> Tensor:
        covered = covered.clone()
        for start in range(0, len(centres), BLOCK[0]):
            for column in range(0, len(self.points), BLOCK[1]):
                columns = slice(column, column + BLOCK[1])
                kernel = self._kernel(centres[start : start + BLOCK[0]], columns)
                torch.maximum(covered[columns], kernel.amax(0), out=covered[columns])
        return covered


def typical_width(points: Tensor) -> float:
    """The median distance of a point to its nearest other one, over up to SAMPLE points evenly spaced in the pool.

    Where half of the points or more have a copy it is the mean instead; of a pool of copies alone it is 1.
    """
    if len(points) < 2:
        return 1.0
    step = max(1, len(points) // SAMPLE)
    rows = torch.arange(0, len(points), step, device=points.device)
    nearest = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=points.device)
    for column in range(0, len(points), BLOCK[1]):
        distances = torch.cdist(points[rows].double(), points[column : column + BLOCK[1]].double())
        own = rows - column
        inside = ((own >= 0) & (own < distances.shape[1])).nonzero()[:, 0]
        distances[inside, own[inside]] = torch.inf
        nearest = torch.minimum(nearest, distances.amin(1))
    return float(nearest.median()) or float(nearest.mean()) or 1.0

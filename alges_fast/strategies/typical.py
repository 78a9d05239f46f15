"""Typical frames: those nearest to the centres of a k-means of the pool; no label and no model needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from alges_fast.seeding import kmeans_plusplus
from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.rating import by_choosing
from alges_fast.strategies.registry import register_strategy
from alges_fast.strategies.untrained import mean_points

ITERATIONS = 20
TIED = 1e-5
"""Relative: squared distances this close are one, as those of two points to their mean."""
BLOCK = 1 << 24
"""Distances at a time."""


@register_strategy
class Typical(Strategy):
    """The candidate nearest to each of n centres of a k-means on mean features, that of the largest cluster first.

    What is labelled or picked is a centre that stays: its surroundings are seen to. The features are those of
    `herding`; a smaller batch is not the beginning of a larger one, which has other clusters.
    """

    name: ClassVar[str] = "typical"
    reference: ClassVar[str] = "ALPS, as in MedCAL-Bench, 2025, arXiv 2508.03441"
    needs_model: ClassVar[bool] = False

    def rate(self, query: Query) -> Rating:
        positions, points, others = mean_points(query)
        points = points.float()
        known = points[:0] if others is None else others.float()
        seed = query.stream_seed("k-means")

        def choose(n: int, picked: Sequence[int], closed: Tensor) -> list[int]:
            return typical(points, n, torch.cat([known, points[list(picked)]]), closed, seed)

        return by_choosing(query, positions, choose)


def typical(points: Tensor, n: int, fixed: Tensor, closed: Tensor, seed: int) -> list[int]:
    """n positions: the open point nearest to each of n centres of a k-means, of equally near ones (TIED) the
    earlier, and the centre of most points first.

    Args:
        points: (N, d).
        n: how many, at most the open ones.
        fixed: (M, d) centres that stay where they are, and that no pick is made for.
        closed: (N,) bool, what may not be picked.
        seed: of k-means++, which the centres start from.
    """
    start = kmeans_plusplus(points, n, seed=seed, existing=fixed if len(fixed) else None).indices
    centres = torch.cat([fixed.to(points), points[start]])
    nearest = torch.full((len(points),), -1)
    for _ in range(ITERATIONS):
        before, nearest = nearest, _nearest(points, centres)
        if torch.equal(before, nearest):
            break
        counts = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros(len(centres), points.shape[1], dtype=torch.float64).index_add_(0, nearest, points.double())
        moved = counts > 0  # one without points stays where it is, as the fixed ones do
        moved[: len(fixed)] = False
        centres[moved] = (sums[moved] / counts[moved, None]).to(centres)
    sizes = torch.bincount(nearest, minlength=len(centres))[len(fixed) :]
    free, picks = ~closed, []
    for number in sizes.sort(descending=True, stable=True).indices.tolist():
        rows = ((nearest == len(fixed) + number) & free).nonzero()[:, 0]
        if not len(rows):  # none of its points is free: the nearest of another centre's
            rows = free.nonzero()[:, 0]
        distances = (points[rows].double() - centres[len(fixed) + number].double()).square().sum(1)
        at = int(rows[distances <= distances.amin() * (1 + TIED)][0])
        free[at] = False
        picks.append(at)
    return picks


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """(N,) number of the nearest centre."""
    step = max(1, BLOCK // len(centres))
    half = centres.square().sum(1) / 2
    return torch.cat([(half - chunk @ centres.T).argmin(1) for chunk in points.split(step)])

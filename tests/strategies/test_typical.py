"""Typical and strided picks against their definitions."""

from __future__ import annotations

import torch

from alges_fast.seeding import kmeans_plusplus
from alges_fast.strategies.typical import typical


def by_definition(points: torch.Tensor, n: int, fixed: torch.Tensor, seed: int) -> list[int]:
    """Lloyd's iterations by loops, to their end; the member nearest each mean, largest cluster first."""
    points, fixed = points.double(), fixed.double()
    start = kmeans_plusplus(points.float(), n, seed=seed, existing=fixed.float() if len(fixed) else None).indices
    centres = [*fixed, *points[start]]
    members: list[list[int]] = []
    while True:
        before, members = members, [[] for _ in centres]
        for i, point in enumerate(points):
            members[min(range(len(centres)), key=lambda k: float((point - centres[k]).square().sum()))].append(i)
        if members == before:
            break
        for k in range(len(fixed), len(centres)):
            if members[k]:
                centres[k] = points[members[k]].mean(0)
    order = sorted(range(len(fixed), len(centres)), key=lambda k: -len(members[k]))
    picks = []
    for k in order:
        distances = [float((points[i] - centres[k]).square().sum()) for i in members[k]]
        picks.append(next(i for i, d in zip(members[k], distances, strict=True) if d <= min(distances) * (1 + 1e-5)))
    return picks


def groups(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    middles = 10 * torch.randn(count, 3, generator=generator)
    return (middles.repeat_interleave(size, 0) + torch.randn(count * size, 3, generator=generator))[
        torch.randperm(count * size, generator=generator)
    ]


def test_picks_are_the_points_nearest_to_the_centres_of_a_k_means() -> None:
    points, closed = groups(6, 8), torch.zeros(48, dtype=torch.bool)
    for n, fixed in ((6, points[:0]), (4, points[:3] + 0.5)):
        found = typical(points, n, fixed, closed, seed=5)
        assert found == by_definition(points, n, fixed, 5)
        assert len(set(found)) == n


def test_what_is_closed_is_left_to_its_neighbours() -> None:
    points = torch.tensor([[0.0], [1.0], [2.2], [100.0], [101.0], [102.2]])
    open = torch.zeros(6, dtype=torch.bool)
    assert sorted(typical(points, 2, points[:0], open, seed=0)) == [1, 4]
    closed = torch.tensor([False, True, False, False, False, False])
    assert sorted(typical(points, 2, points[:0], closed, seed=0)) == [0, 4]

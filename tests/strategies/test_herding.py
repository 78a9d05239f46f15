"""Herding's picks against every gain computed every time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alges_fast.strategies import herding
from alges_fast.strategies.herding import Coverage, typical_width

N, D = 60, 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(herding, "BLOCK", (7, 11))
    monkeypatch.setattr(herding, "REFRESHED", 3)


def clustered(n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    middles = 4 * torch.randn(6, D, generator=generator) + 100
    return middles[torch.randint(6, (n,), generator=generator)] + torch.randn(n, D, generator=generator)


def by_definition(
    points: Tensor, weights: Tensor, width: float, centres: Tensor, n: int, closed: set[int]
) -> list[int]:
    points, centres = points.double(), centres.double()
    kernel = torch.exp(-torch.cdist(points, points).square() / (2 * width**2))
    covered = torch.exp(-torch.cdist(points, centres).square() / (2 * width**2))
    best = covered.amax(1) if len(centres) else torch.zeros(len(points)).double()
    picks: list[int] = []
    for _ in range(n):
        gains = ((kernel - best).clamp(min=0) * weights.double()).sum(1)
        gains[[*picks, *closed]] = -math.inf
        picks.append(int((gains >= gains.amax() * (1 - 1e-5)).nonzero()[0]))
        best = torch.maximum(best, kernel[picks[-1]])
    return picks


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_centres", [0, 4])
def test_each_pick_has_the_largest_gain_of_all(weighted: bool, n_centres: int) -> None:
    points, width = clustered(), 1.7
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1)) if weighted else torch.ones(N)
    centres = points[:n_centres] + 0.1
    taken, closed = [3, 40], {0, 17, 59}
    coverage = Coverage(points, weights if weighted else None, width, centres)
    gone = torch.zeros(N, dtype=torch.bool)
    gone[[*taken, *closed]] = True
    found = coverage.pick(20, taken, gone)
    expected = by_definition(points, weights, width, torch.cat([centres, points[taken]]), 20, closed | set(taken))
    assert found == expected
    assert coverage.pick(20, taken, gone) == found  # a draw leaves no trace
    assert coverage.pick(5, [*taken, *found[:15]], gone.index_fill(0, torch.tensor(found[:15]), True)) == found[15:]


def test_all_that_is_open_is_picked_in_the_end_and_copies_last() -> None:
    points = clustered(12)
    points[6:] = points[:6]
    closed = torch.zeros(12, dtype=torch.bool)
    found = Coverage(points).pick(12, [], closed)
    assert sorted(found) == list(range(12))
    assert sorted(found[:6]) == list(range(6))


def test_the_width_is_the_median_distance_to_the_nearest_other_point() -> None:
    points = clustered()
    distances = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    assert typical_width(points) == pytest.approx(float(distances.amin(1).median()), rel=1e-5)


def test_the_width_of_copies_is_that_of_the_others_or_one() -> None:
    points = torch.tensor([[0.0], [0.0], [0.0], [3.0]])
    assert typical_width(points) == pytest.approx(3 / 4)
    assert typical_width(points[:3]) == 1
    assert typical_width(points[:1]) == 1

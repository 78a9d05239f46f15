"""BAIT's picks against the objective of every candidate, computed every time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alges_fast.strategies import bait
from alges_fast.strategies.bait import greedy, information, variance

N, D, PIXELS = 50, 6, 9


def pool() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(N, D, PIXELS, generator=generator).relu() * torch.rand(N, 1, 1, generator=generator) ** 2
    return z @ z.mT


@pytest.mark.parametrize("start", [1e-3, 10.0])
def test_each_pick_leaves_the_smallest_trace_of_all(start: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bait, "TRIED", 4)
    candidates = pool()
    target, current = candidates.double().mean(0), start * torch.eye(D).double()
    closed = torch.zeros(N, dtype=torch.bool)
    closed[[1, 2, 30]] = True
    found = greedy(candidates, current, target, 12, closed)
    gone, expected = {1, 2, 30}, []
    for _ in range(12):
        objective = {
            i: float(torch.trace(torch.linalg.inv(current + candidates[i].double()) @ target))
            for i in range(N)
            if i not in gone
        }
        expected.append(min(objective, key=objective.__getitem__))
        gone.add(expected[-1])
        current = current + candidates[expected[-1]].double()
    assert found == expected
    assert sorted(greedy(candidates, current, target, N - 3, closed)) == sorted(set(range(N)) - {1, 2, 30})


def test_the_bound_spares_most_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bait, "TRIED", 4)
    tried = []
    cholesky = torch.linalg.cholesky
    monkeypatch.setattr(torch.linalg, "cholesky", lambda matrices: tried.append(len(matrices)) or cholesky(matrices))
    candidates = pool()
    greedy(candidates, candidates.sum(0), candidates.mean(0), 5, torch.zeros(N, dtype=torch.bool))
    assert sum(tried) < 5 * N / 2


def test_information_is_the_sum_over_pixels_of_the_binary_variance_times_zzT() -> None:
    generator = torch.Generator().manual_seed(1)
    features, logits = torch.randn(2, D, 4, 3, generator=generator), torch.randn(2, 5, 4, 3, generator=generator)
    expected = torch.zeros(2, D, D)
    for image in range(2):
        for y in range(4):
            for x in range(3):
                likely, z = logits[image, :, y, x].softmax(0).max(), features[image, :, y, x]
                expected[image] += likely * (1 - likely) * z.outer(z)
    torch.testing.assert_close(information(features, variance(logits, (4, 3))), expected)
    doubled = F.interpolate(logits, scale_factor=2, mode="nearest")
    torch.testing.assert_close(information(features, variance(doubled, (4, 3))), expected)

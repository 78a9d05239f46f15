"""Properties of k-means++ and k-centre seeding that hold for every backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from alges_fast.seeding import k_center_greedy, kmeans_plusplus
from alges_fast.seeding.race import exponentials, philox

BACKENDS = ["cpu", "torch", "faiss"]


def blobs(n: int, dimension: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Clusters of unequal size and spread, away from the origin."""
    draw = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(7, dimension, generator=draw, dtype=torch.float64) + 3
    label = torch.randint(7, (n,), generator=draw)
    spread = torch.tensor([0.1, 0.3, 0.5, 1, 1, 2, 4], dtype=torch.float64)
    noise = torch.randn(n, dimension, generator=draw, dtype=torch.float64)
    return (centres[label] + spread[label, None] * noise).to(dtype)


def sq_distances(points: Tensor, centres: Tensor) -> Tensor:
    return (points.double()[:, None] - centres.double()[None]).square().sum(dim=2)


def test_philox_gives_the_published_vectors() -> None:
    ones = 0xFFFFFFFF
    zeros = [int(word) for word in philox((0, 0, 0, 0), 0)]
    full = [int(word) for word in philox((ones, ones, ones, ones), 2**64 - 1)]
    assert zeros == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert full == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_a_point_draws_the_same_number_in_any_shard() -> None:
    device = torch.device("cpu")
    whole = exponentials(range(1001), 5, 3, 1, device)
    assert torch.equal(exponentials(range(333, 1001), 5, 3, 1, device), whole[333:])
    strided = torch.arange(1, 1001, 3)
    assert torch.equal(exponentials(strided, 5, 3, 1, device), whole[strided])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trials", [1, 5])
def test_min_sq_distance_is_to_the_nearest_pick(backend: str, trials: int) -> None:
    points = blobs(500, 11)
    seeding = kmeans_plusplus(points, 20, seed=1, trials=trials, backend=backend, existing=points[:2] + 1)
    centres = torch.cat([points[:2] + 1, points[seeding.indices]])
    torch.testing.assert_close(
        seeding.min_sq_distance.double(), sq_distances(points, centres).amin(dim=1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_points_are_filled_uniformly(backend: str) -> None:
    counts = np.zeros(8)
    for seed in range(400):
        indices = kmeans_plusplus(torch.full((8, 5), 0.1), 3, seed=seed, backend=backend).indices.tolist()
        assert len(set(indices)) == 3
        counts[indices] += 1
    assert counts.min() > 150 - 50  # expectation 150, standard deviation 10
    assert counts.max() < 150 + 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_k_center_takes_the_farthest(backend: str) -> None:
    points = blobs(300, 4, seed=2)
    picked = k_center_greedy(points, 12, first="largest", backend=backend).indices.tolist()
    assert picked[0] == int(points.double().norm(dim=1).argmax())
    for count in range(1, 12):
        nearest = sq_distances(points, points[picked[:count]]).amin(dim=1)
        assert picked[count] == int(nearest.argmax())

"""A model and a pool of forty small images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1)).eval()


@pytest.fixture(scope="module")
def pool() -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(f"frame{i:02d}", torch.rand(3, 13, 10, generator=generator) * (1 + i % 4)) for i in range(40)]

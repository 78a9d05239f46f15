"""A small model, a pool of images, and their embeddings."""

from __future__ import annotations

import pytest
import torch
from pool_forms import CLASSES, N
from torch import Tensor, nn

from alges_fast import LastLayer


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(stem, nn.Conv2d(8, CLASSES, 3, padding=1)).train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(N, 3, 12, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def expected(model: nn.Module, images: Tensor) -> Tensor:
    return LastLayer.find(model, images[:1]).pixel_gradients(images, outputs=("image",)).image

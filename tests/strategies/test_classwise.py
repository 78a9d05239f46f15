"""ALGES with every class its due, against the definition on a small pool."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alges_fast.strategies.classwise import balanced

N, K, D = 40, 3, 4


def embeddings() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(N, K, D, generator=generator)
    return rows * torch.tensor([1.0, 5.0, 0.01]).view(1, K, 1) * torch.rand(N, 1, 1, generator=generator)


def test_balanced_rows_have_mean_norm_one_and_a_class_without_gradient_stays_zero() -> None:
    rows = embeddings()
    rows[:, 1] = 0
    found = balanced(rows, rows.norm(dim=2).mean(0))
    assert found.norm(dim=2).mean(0).tolist() == pytest.approx([1, 0, 1])
    torch.testing.assert_close(found[:, 2] / found[0, 2], rows[:, 2] / rows[0, 2])

"""The benchmark's rivals compute what `pixel_gradients` defines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from alges_fast import pixel_gradients

sys.path.append(str(Path(__file__).parents[2] / "bench"))
from rivals import RIVALS, missing


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    "name", [name for name in RIVALS if name != "compiled"]
)  # eager's code; compiling takes a minute
def test_a_rival_means_the_same(name: str, kernel: int) -> None:
    if (reason := missing(name)) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    features, weight, bias = torch.randn(2, 6, 9, 11), torch.randn(5, 6, kernel, kernel), torch.randn(5)
    expected = pixel_gradients(features, weight, bias, backend="reference")
    image, semantic = RIVALS[name](features, weight, bias)
    if image is not None:
        torch.testing.assert_close(image, expected.image)
    if semantic is not None:
        torch.testing.assert_close(semantic, expected.semantic)

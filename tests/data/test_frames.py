"""FrameSet keeps names and pixels together; to_input is the one place of normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alges_fast.data import FrameSet, to_input


def frames(n: int, **changes: object) -> FrameSet:
    rng = np.random.default_rng(0)
    parts = {
        "ids": tuple(f"a/{i}" for i in range(n)),
        "videos": tuple(f"v{i % 2}" for i in range(n)),
        "clips": tuple(f"c{i % 3}" for i in range(n)),
        "images": rng.integers(0, 256, (n, 3, 8, 8), np.uint8),
        "masks": rng.integers(0, 4, (n, 8, 8), np.uint8),
    }
    return FrameSet(**{**parts, **changes})


def test_subset_carries_every_part() -> None:
    whole = frames(7)
    part = whole.subset([5, 0, 3])
    assert part.ids == ("a/5", "a/0", "a/3")
    assert part.videos == ("v1", "v0", "v1")
    assert part.clips == ("c2", "c0", "c0")
    for position, name in enumerate(part.ids):
        np.testing.assert_array_equal(part.images[position], whole.images[whole.index(name)])
        np.testing.assert_array_equal(part.masks[position], whole.masks[whole.index(name)])


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8), (0, 3, 8, 8), (2, 4, 3, 8, 8)])
def test_to_input_of_arrays_and_tensors(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    pixels.flags.writeable = False
    value = to_input(pixels)
    assert value.dtype == torch.float32
    assert tuple(value.shape) == shape
    assert torch.equal(value, to_input(torch.tensor(pixels)))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_to_input_refuses_what_is_not_pixels() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        to_input(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        to_input(torch.zeros(3, 8, 8))

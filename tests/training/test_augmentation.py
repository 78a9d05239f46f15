"""Frames and their labels are moved together, and by what was asked for alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alges_fast.errors import UserError
from alges_fast.training.augmentation import KINDS, LEAST_AREA, augmentation, augmented, kinds_of

SIZE = 48


def batch(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """A coloured square on black, its mask, and the same as two classes' probabilities."""
    mask = torch.zeros(n, SIZE, SIZE, dtype=torch.uint8)
    mask[:, 10:30, 4:20] = 1
    image = torch.stack([mask * 200, mask * 100, mask * 50], 1)
    return image, mask, torch.stack([1 - mask.float(), mask.float()], 1)


def moved(kinds: str, seed: int = 0) -> tuple[Tensor, ...]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return augmented(augmentation(kinds_of(kinds), (SIZE, SIZE)), *batch())


def test_a_mask_and_soft_labels_stay_with_their_image() -> None:
    image, mask, soft = moved("flip,scale")
    assert (image.dtype, mask.dtype, soft.dtype) == (torch.uint8, torch.uint8, torch.float32)
    assert image.shape == (6, 3, SIZE, SIZE)
    assert not torch.equal(mask, batch()[1])
    assert len({int(each.sum()) for each in mask}) > 3  # every frame by itself
    assert ((image[:, 0] > 100) == (mask == 1)).float().mean() > 0.97  # but for the edge, which is blurred
    assert torch.equal(soft.argmax(1).to(torch.uint8), mask)


def test_a_crop_is_of_half_the_frame_at_least() -> None:
    wide = torch.arange(SIZE * SIZE).view(1, SIZE, SIZE).expand(64, -1, -1)
    (_, places) = augmented(augmentation(("scale",), (SIZE, SIZE)), batch(64)[0], wide)
    rows, columns = places // SIZE, places % SIZE
    area = (rows.amax((1, 2)) - rows.amin((1, 2)) + 1) * (columns.amax((1, 2)) - columns.amin((1, 2)) + 1)
    assert area.min() >= 0.95 * LEAST_AREA * SIZE * SIZE
    assert area.min() < 0.75 * SIZE * SIZE


def test_colours_change_and_labels_do_not() -> None:
    image, mask, _ = moved("colour")
    assert torch.equal(mask, batch()[1])
    assert not torch.equal(image, batch()[0])
    bright = [
        image[i, 0][mask[i] == 1].float().mean() > image[i, 0][mask[i] == 0].float().mean() + 20 for i in range(6)
    ]
    assert all(bright)


def test_nothing_is_moved_by_none_and_a_seed_fixes_the_rest() -> None:
    assert all(map(torch.equal, moved("none"), batch()))
    assert all(map(torch.equal, moved(",".join(KINDS)), moved(",".join(KINDS))))
    assert not torch.equal(moved("scale")[1], moved("scale", seed=1)[1])
    with pytest.raises(UserError, match="--augment rotate is unknown: use flip, scale, colour"):
        kinds_of("flip, rotate")

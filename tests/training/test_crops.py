"""Crops around labelled windows, and training on them."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from alges_fast.data import FrameSet
from alges_fast.labels import UNLABELLED
from alges_fast.strategies import get_strategy
from alges_fast.training.crops import Crop, crops_of
from alges_fast.training.labelled import Labelled
from alges_fast.training.whole_network import batches_of_crops, cut_out, shuffled_batches, train
from alges_fast.windows import Window, windows_of

SIZE = 96


def pool(n: int = 4) -> FrameSet:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, 3, SIZE, SIZE), dtype=np.uint8)
    names = tuple(f"frame{i}" for i in range(n))
    return FrameSet(names, names, names, images, (images[:, 0] > images[:, 1]).astype(np.uint8))


def test_a_window_gets_a_crop_of_twice_its_side_around_it_and_a_frame_itself() -> None:
    labelled = Labelled(pool(), ("frame2", Window("frame0", 40, 40, 16, 16), Window("frame0", 0, 80, 16, 16)))
    assert crops_of(labelled) == [Crop(0, 0, 0, 96), Crop(1, 32, 32, 32), Crop(1, 64, 0, 32)]


def test_crops_are_multiples_of_32_and_end_at_the_frame() -> None:
    assert crops_of(Labelled(pool(), (Window("frame0", 24, 24, 24, 12),))) == [Crop(0, 0, 4, 64)]
    both = (Window("frame0", 0, 0, 48, 48), Window("frame0", 48, 48, 48, 48))
    assert crops_of(Labelled(pool(), both)) == [Crop(0, 0, 0, 96)]  # once, for both


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (3, 5), (7, 2)])
def test_every_window_is_in_its_crop_and_every_crop_in_the_frame(grid: tuple[int, int]) -> None:
    windows = windows_of("frame1", (SIZE, SIZE), grid)
    for window in windows:
        (crop,) = crops_of(Labelled(pool(), (window,)))
        assert 0 <= crop.y <= window.y
        assert window.y + window.height <= crop.y + crop.side <= SIZE
        assert 0 <= crop.x <= window.x
        assert window.x + window.width <= crop.x + crop.side <= SIZE


def test_a_step_has_the_pixels_of_a_batch_of_frames_and_an_epoch_shows_every_crop_once() -> None:
    crops = [Crop(i, 0, 0, 96) for i in range(3)] + [Crop(3, i, 0, 32) for i in range(40)]
    batches = batches_of_crops(crops, SIZE, 2, seed=5)
    assert sorted(chain.from_iterable(batches)) == sorted(crops)
    assert all(len({crop.side for crop in batch}) == 1 for batch in batches)
    assert sorted(len(batch) for batch in batches) == [3, 4, 18, 18]
    assert batches == batches_of_crops(crops, SIZE, 2, seed=5) != batches_of_crops(crops, SIZE, 2, seed=6)


def test_whole_frames_alone_are_shown_as_without_windows() -> None:
    frames = [Crop(i, 0, 0, SIZE) for i in range(9)]
    expected = [list(batch) for batch in shuffled_batches(9, 4, 3)]
    assert [[crop.frame for crop in batch] for batch in batches_of_crops(frames, SIZE, 4, 3)] == expected


def test_cut_out_is_the_part_of_the_frame() -> None:
    values = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    cut = cut_out(values, [Crop(1, 2, 4, 4), Crop(0, 0, 1, 4)])
    assert torch.equal(cut, torch.stack([values[1, :, 2:6, 4:8], values[0, :, 0:4, 1:5]]))
    assert torch.equal(cut_out(values, [Crop(1, 0, 0, 8)]), values[1:])


def test_pixels_that_are_not_labelled_are_in_no_loss() -> None:
    """Whatever the pool's masks hold outside the windows, training ends with the same weights."""
    first, other = pool(), pool()
    labelled = [
        Labelled(frames, ("frame3", *windows_of("frame0", (SIZE, SIZE), (4, 4))[2:9])) for frames in (first, other)
    ]
    outside = labelled[0].frames().masks[1] == UNLABELLED
    other.masks[0][outside] = 1 - other.masks[0][outside]
    other.masks[1] = 0
    seen: list[Tensor] = []

    def loss(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        seen.append(masks)
        return get_strategy("random")().loss(model, images, masks)

    weights = []
    for each in labelled:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        train(
            Fabric(accelerator="cpu", devices=1),
            model,
            each.frames(),
            epochs=2,
            batch_size=2,
            lr=0.05,
            seed=0,
            round=0,
            loss=loss,
            crops=crops_of(each),
        )
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*weights)
    assert {mask.shape[-1] for mask in seen} == {64, 96}
    assert any((mask == UNLABELLED).any() for mask in seen)

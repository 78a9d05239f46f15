"""The folder loader on real frames and on trees with every fault a user has sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alges_fast.data import IGNORE, load_dataset
from alges_fast.errors import UserError


@pytest.mark.parametrize(("size", "ignore", "n_classes"), [(48, 11, 11), (64, None, 12)])
def test_camvid(camvid: Path, tmp_path: Path, size: int, ignore: int | None, n_classes: int) -> None:
    data = load_dataset("folder", root=camvid, image_size=size, ignore_index=ignore, cache_dir=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (367, 101, 233)
    assert data.train.images.shape == (367, 3, size, size)
    assert len(data.classes) == len(data.palette) == n_classes
    assert "0001TP" in data.train.videos
    assert "train/0001TP_006690" in data.train.ids
    values = np.unique(data.train.masks)
    assert (IGNORE in values) == (ignore is not None)


def test_frames_are_the_files(camvid: Path, tmp_path: Path) -> None:
    data = load_dataset("folder", root=camvid, image_size=64, ignore_index=11, cache_dir=tmp_path)
    position = data.test.index("test/0001TP_008550")
    with Image.open(camvid / "test/images/0001TP_008550.jpg") as picture:
        image = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    with Image.open(camvid / "test/masks/0001TP_008550.png") as picture:
        mask = np.array(picture.resize((64, 64), Image.Resampling.NEAREST))
    mask[mask == 11] = IGNORE
    np.testing.assert_array_equal(data.test.images[position], image)
    np.testing.assert_array_equal(data.test.masks[position], mask)


def test_missing_root_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no-such-folder: no such folder: give .*--data_root"):
        load_dataset("folder", root=tmp_path / "no-such-folder", cache_dir=tmp_path)

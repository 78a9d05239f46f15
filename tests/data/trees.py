"""Small data sets on disk for the tests of the loaders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)


def folder_tree(root: Path, frames: int = 3) -> Path:
    """A healthy folder data set: `frames` frames a split, classes 0 to 2, value 11 and 255 not labelled."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(frames):
            image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
            mask = rng.integers(0, 3, SIZE, np.uint8)
            mask[0], mask[1] = 255, 11
            save(root / split / "images" / f"{split}A_{number}.png", image)
            save(root / split / "masks" / f"{split}A_{number}.png", mask)
    return root


def m2caiseg_tree(root: Path, colours: list[tuple[int, int, int]]) -> Path:
    """m2caiSeg's layout: train 1 to 4, trainval 1 to 6, test 7 and 8; frame 2's mask is larger than its image."""
    rng = np.random.default_rng(0)
    for split, numbers in {"train": range(1, 5), "trainval": range(1, 7), "test": (7, 8)}.items():
        for number in numbers:
            size = (48, 64) if number == 2 else SIZE
            save(root / split / "images" / f"1_{number}.jpg", rng.integers(0, 256, (*SIZE, 3), np.uint8))
            mask = np.array(colours, np.uint8)[rng.integers(0, len(colours), size)]
            save(root / split / "groundtruth" / f"1_{number}_gt.png", mask)
    return root


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)

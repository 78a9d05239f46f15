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


def tile_tree(root: Path, tile: int) -> Path:
    """A folder data set of two videos whose frames are 4 x 4 tiles of so many pixels, each tile's colour its class."""
    generator = np.random.default_rng(0)
    for split, n in (("train", 9), ("val", 2), ("test", 3)):
        for number in range(n):
            mask = np.kron(generator.integers(0, 3, (4, 4)), np.ones((tile, tile))).astype(np.uint8)
            image = np.stack([80 * mask, 255 - 60 * mask, 20 * mask], axis=-1).astype(np.uint8)
            save(root / split / "images" / f"v{number % 2}_{number}.png", image)
            save(root / split / "masks" / f"v{number % 2}_{number}.png", mask)
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

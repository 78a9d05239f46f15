"""Data sets: `load_dataset` gives any of them as decoded frames, `to_input` makes a network's input of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alges_fast.data import synthetic
from alges_fast.data.cache import CacheWriter, load_or_build
from alges_fast.data.files import SPLITS, Faults
from alges_fast.data.frames import Dataset, FrameSet
from alges_fast.data.layouts import LAYOUTS, list_tree
from alges_fast.data.layouts.cholecseg8k import CLASSES, PALETTE
from alges_fast.data.loading import load_listing, map_in_order
from alges_fast.errors import UserError
from alges_fast.normalisation import IMAGENET
from alges_fast.progress import Progress, silent

__all__ = ["DATASETS", "Dataset", "FrameSet", "load_dataset", "to_input"]

DATASETS = ("synthetic", "synthetic-full", *LAYOUTS)


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int = 224,
    split: str | None = None,
    ignore_index: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    on_bad_image: str = "stop",
    progress: Progress = silent,
) -> Dataset:
    """A data set, decoded at image_size x image_size and kept in the cache.

    name: one of DATASETS. root: where its files lie (synthetic data has none). split: which videos go to which split,
    where the data set has several ways: "alges" (default) or "endovit". ignore_index: mask value that is not labelled,
    for folder. seed: of the synthetic video. cache_dir: default $ALGES_FAST_CACHE, else ~/.cache/alges_fast.
    on_bad_image: "stop" at the first faulty file, or "skip" such frames and list them in Dataset.notes.

    Images are stretched to the square bilinearly (antialiased), masks by nearest neighbour.
    Raises UserError, one line that names what is wrong and the remedy.
    """
    if name not in DATASETS:
        raise UserError(f"dataset {name!r} is unknown: use one of {', '.join(DATASETS)}")
    if image_size < 16:
        raise UserError(f"image_size {image_size} is too small: use at least 16")
    cache = Path(cache_dir) if cache_dir is not None else None
    if name in ("synthetic", "synthetic-full"):
        if root is not None or ignore_index is not None:
            given = "a data root" if root is not None else "ignore_index"
            raise UserError(f"{name} is drawn, not read: leave out {given}, or name the data set you mean")
        return _load_synthetic(name, image_size, split or "alges", seed, cache, progress)

    if root is None:
        raise UserError(f"dataset {name} needs a data root: give --data_root DIR")
    listing = list_tree(name, Path(root), split, ignore_index, Faults(on_bad_image))
    return load_listing(listing, on_bad_image, image_size, cache, progress)


def to_input(images: Tensor | NDArray[np.uint8]) -> Tensor:
    """uint8 RGB (..., 3, S, S) to a network's float32 input, on the same device: ImageNet's mean 0 and deviation 1."""
    return IMAGENET(torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images)


def _load_synthetic(
    name: str, image_size: int, split: str, seed: int, cache: Path | None, progress: Progress
) -> Dataset:
    frames = synthetic.plan(full=name == "synthetic-full", split=split, seed=seed)

    def build(writer: CacheWriter) -> dict[str, Any]:
        def draw(item: tuple[str, synthetic.SyntheticFrame]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
            return synthetic.draw(item[1], (image_size, image_size))

        items = [(part, frame) for part in SPLITS for frame in frames[part]]
        for done, ((part, frame), drawn) in enumerate(zip(items, map_in_order(draw, items), strict=True), start=1):
            writer.append(part, frame.id, frame.video, frame.clip, *drawn)
            progress("drawing frames", done, len(items))
        return {}

    splits, _ = load_or_build(cache, name, f"{synthetic.drawing_key()} {split} {seed}", image_size, build)
    drawn = {frame.id: frame for part in SPLITS for frame in frames[part]}
    splits = {
        part: replace(kept, read=lambda id, side: synthetic.draw(drawn[id], (side, side))[0])
        for part, kept in splits.items()
    }
    note = f"synthetic video, drawn (seed {seed}), not surgery: it shows that the method runs, not how well it does"
    return Dataset(name, CLASSES, PALETTE, **splits, notes=(note,))

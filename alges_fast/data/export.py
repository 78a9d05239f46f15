"""Synthetic video as files, in CholecSeg8k's layout and encodings with the faults its files have.

What is written tests the loader of the real data, and stands in for it where it is not at hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alges_fast.data import synthetic
from alges_fast.data.layouts.cholecseg8k import PALETTE, SYNTHETIC_MARK, SYNTHETIC_NOTE, WATERSHED_CODES
from alges_fast.data.loading import map_in_order
from alges_fast.errors import UserError
from alges_fast.progress import Progress, silent

UNLABELLED_CODE, STRAY_CODES, FRAME = 0, (35, 36), 255
RGBA_VIDEOS = ("video18", "video35", "video37")
PATCHY_VIDEOS = ("video43", "video52")


def write_cholecseg8k(root: Path, *, full: bool, seed: int, height: int = 480, progress: Progress = silent) -> int:
    """Draw the synthetic video and write it under root, which must be empty or not exist; returns the frames written.

    height x round(height * 854 / 480) pixels. Beside each frame lie its watershed, colour and annotation masks. As in
    the original, nearly every mask has a white frame of one pixel, single masks of videos 18, 35 and 37 are RGBA, masks
    of videos 43 and 52 leave 1 to 2 % unlabelled, and the codes 35 and 36 occur. Raises UserError.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise UserError(f"{root}: not empty: give a new folder")
        (root / SYNTHETIC_MARK).write_text(f"{SYNTHETIC_NOTE}. Written by python -m alges_fast.data write-synthetic.\n")
        plan = synthetic.plan(full=full, split="alges", seed=seed)
        frames = [frame for part in plan.values() for frame in part]
        size = (height, round(height * 854 / 480))
        for done, _ in enumerate(map_in_order(lambda frame: _write_frame(root, frame, size), frames), start=1):
            progress("drawing frames", done, len(frames))
    except OSError as error:
        raise UserError(
            f"{root}: cannot be written ({error.strerror or error}): free space or give another folder"
        ) from None
    return len(frames)


def watershed_mask(frame: synthetic.SyntheticFrame, ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame's class ids (H, W) as watershed codes (H, W, 3), or (H, W, 4) where the original has such a mask."""
    rng = np.random.default_rng((frame.seed, *frame.place))
    height, width = ids.shape
    codes = np.array(WATERSHED_CODES, np.uint8)[ids]
    if frame.video in PATCHY_VIDEOS and frame.number % 16 == 0:
        area = rng.uniform(0.012, 0.018) * ids.size
        side = int(np.sqrt(area))
        top, left = rng.integers(1, height - side), rng.integers(1, width - side)
        codes[top : top + side, left : left + side] = UNLABELLED_CODE
    if frame.number % 24 == 0:
        for code in STRAY_CODES:
            codes[rng.integers(0, height, 12), rng.integers(0, width, 12)] = code
    if rng.random() < 0.97:
        codes[[0, -1]] = FRAME
        codes[:, [0, -1]] = FRAME
    _, clip, number = frame.place
    rgba = frame.video in RGBA_VIDEOS and clip == 0 and number == 72
    return np.dstack([codes, codes, codes, np.full_like(codes, 255)] if rgba else [codes, codes, codes])


def _write_frame(root: Path, frame: synthetic.SyntheticFrame, size: tuple[int, int]) -> None:
    image, ids = synthetic.draw(frame, size)
    codes = watershed_mask(frame, ids)
    colours = np.array(PALETTE, np.uint8)[ids]
    colours[codes[..., 0] == FRAME] = 255
    outlines = np.where(ids == np.roll(ids, 1, axis=1), codes[..., 0], FRAME).astype(np.uint8)
    folder = root / frame.video / frame.clip
    folder.mkdir(parents=True, exist_ok=True)
    for kind, pixels in (
        ("", image.transpose(1, 2, 0)),
        ("_watershed_mask", codes),
        ("_color_mask", colours),
        ("_mask", np.dstack([outlines] * 3)),
    ):
        Image.fromarray(np.ascontiguousarray(pixels)).save(
            folder / f"frame_{frame.number}_endo{kind}.png", compress_level=1
        )

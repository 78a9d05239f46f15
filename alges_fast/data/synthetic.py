"""Synthetic laparoscopic video: seventeen videos cut and split as CholecSeg8k is, with its imbalance of classes.

The frames are drawn (see scene.py), so that everything runs with no data at hand. The demonstration's set is part of the
full one: the same frames, fewer clips a video and fewer frames a clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alges_fast.data import scene
from alges_fast.data.cholecseg8k import CLASSES, PALETTE, VIDEO_SPLITS
from alges_fast.data.files import SPLITS
from alges_fast.errors import UserError

__all__ = ["CLASSES", "PALETTE", "VERSION", "SyntheticFrame", "draw", "plan"]

VERSION = 1
"""Part of the cache's key: raise it when the same frame would be drawn differently."""

CLIPS = {
    "01": 16, "09": 3, "12": 8, "17": 4, "18": 2, "20": 2, "24": 12, "25": 4, "26": 4, "27": 5, "28": 7, "35": 3,
    "37": 6, "43": 9, "48": 3, "52": 10, "55": 3,
}  # fmt: skip
"""Clips per video of CholecSeg8k; a clip has 80 frames, so these make its 8080."""

DEMO_FRAMES_PER_CLIP = 10

TISSUE_SHARES = {
    "train": {0: 27.1, 1: 20.1, 2: 21.2, 3: 1.6, 4: 13.0, 10: 7.0},
    "validation": {0: 30.3, 1: 23.9, 2: 19.6, 3: 2.1, 4: 13.9, 10: 6.0},
    "test": {0: 21.6, 1: 23.3, 2: 23.0, 3: 2.3, 4: 19.8, 10: 5.3},
}
"""Percent of pixels per class that every video of a split (of the "alges" split) shows, as measured on CholecSeg8k."""

RARE_SHARES = {
    "01": {6: 6.0, 8: 0.12}, "43": {6: 6.0}, "52": {6: 7.4, 12: 1.0}, "12": {7: 1.4}, "37": {7: 1.2}, "55": {7: 1.4},
    "09": {11: 0.4, 12: 2.7}, "48": {8: 0.5, 12: 2.7}, "18": {8: 0.1},
}  # fmt: skip
"""Percent of pixels of the classes that only some videos show, so that their shares per split are CholecSeg8k's."""

TOOL_RATES = {"train": (0.75, 0.55), "validation": (0.85, 0.45), "test": (1.5, 0.0)}
"""Graspers and L-hooks per clip."""


@dataclass(frozen=True)
class SyntheticFrame:
    """One frame to draw: its names, and the numbers that fix its content."""

    id: str
    video: str
    clip: str
    number: int
    seed: int
    place: tuple[int, int, int]
    """Index of the video, of its clip, and of the frame in the clip."""


def plan(*, full: bool, split: str, seed: int) -> dict[str, tuple[SyntheticFrame, ...]]:
    """The frames of each split, in order: all 8080, or for the demonstration half the clips at ten frames each."""
    if split not in VIDEO_SPLITS:
        raise UserError(f"split {split!r} is unknown: use one of {', '.join(VIDEO_SPLITS)}")
    return {
        part: tuple(frame for name in VIDEO_SPLITS[split][part] for frame in _video(name, full, seed))
        for part in SPLITS
    }


def draw(frame: SyntheticFrame, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """RGB (3, H, W) and class ids (H, W) of a frame; size is (H, W)."""
    video, clip, number = frame.place
    return scene.draw(frame.seed, video, _cast(tuple(CLIPS)[video], frame.seed), clip, number, size)


def _video(name: str, full: bool, seed: int) -> list[SyntheticFrame]:
    video = tuple(CLIPS).index(name)
    clips = CLIPS[name] if full else (CLIPS[name] + 1) // 2
    step = 1 if full else scene.FRAMES_PER_CLIP // DEMO_FRAMES_PER_CLIP
    frames = []
    for clip in range(clips):
        start = 80 + 640 * clip
        for number in range(0, scene.FRAMES_PER_CLIP, step):
            clip_name = f"video{name}_{start:05d}"
            frame_id = f"{clip_name}/frame_{start + number}"
            frames.append(
                SyntheticFrame(frame_id, f"video{name}", clip_name, start + number, seed, (video, clip, number))
            )
    return frames


@lru_cache(maxsize=64)
def _cast(name: str, seed: int) -> scene.Cast:
    """What a video shows: its split's shares, each video's own way."""
    part = next(part for part in SPLITS if name in VIDEO_SPLITS["alges"][part])
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, int(name), 0, 2**32]))
    common = {k: share * float(np.exp(rng.normal(0, 0.12))) for k, share in TISSUE_SHARES[part].items()}
    shares = {**common, **RARE_SHARES.get(name, {})}
    return scene.Cast(tuple(shares.get(k, 0.0) / 100 for k in range(len(CLASSES))), *TOOL_RATES[part])

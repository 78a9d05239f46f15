"""Synthetic laparoscopic video: seventeen videos cut and split as CholecSeg8k is, with its imbalance of classes.

The frames are drawn (see scene.py), so that everything runs with no data at hand. The demonstration's set is part of
the full one: the same frames, fewer clips a video and fewer frames a clip.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alges_fast.data import scene, textures
from alges_fast.data.files import SPLITS
from alges_fast.data.layouts.cholecseg8k import CLASSES, FRAMES_PER_VIDEO, VIDEO_SPLITS
from alges_fast.errors import UserError

CLIPS = {name: frames // scene.FRAMES_PER_CLIP for name, frames in FRAMES_PER_VIDEO.items()}

DEMO_FRAMES_PER_CLIP = 10

TISSUE_SHARES = {
    "train": {0: 27.1, 1: 20.1, 2: 21.2, 3: 1.6, 4: 13.0, 10: 7.0},
    "validation": {0: 30.3, 1: 23.9, 2: 19.6, 3: 2.1, 4: 13.9, 10: 6.0},
    "test": {0: 21.6, 1: 23.3, 2: 23.0, 3: 2.3, 4: 19.8, 10: 5.3},
}
"""Percent of pixels per class that every video of a split (of the "alges" split) shows, as measured on CholecSeg8k."""

RARE_SHARES = {
    "01": {6: 6.0, 8: 0.12}, "43": {6: 6.0}, "52": {6: 7.4, 12: 2.6}, "12": {7: 2.4}, "37": {7: 2.0}, "55": {7: 4.0},
    "09": {11: 0.4, 12: 2.7}, "48": {8: 0.5, 12: 2.7}, "18": {8: 0.1},
}  # fmt: skip
"""Percent of pixels of the classes that only some videos show, so that their shares per split are CholecSeg8k's."""

TOOL_RATES = {"train": (0.8, 0.85), "validation": (0.9, 0.8), "test": (1.5, 0.0)}
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
    return scene.draw(frame.seed, video, _casts(frame.seed)[tuple(CLIPS)[video]], clip, number, size)


def drawing_key() -> str:
    """Digest of the drawing code: frames cached by another version of it are not taken for this one's."""
    sources = b"".join(Path(path).read_bytes() for path in (__file__, scene.__file__, textures.__file__))
    return hashlib.blake2b(sources, digest_size=8).hexdigest()


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


@lru_cache(maxsize=4)
def _casts(seed: int) -> dict[str, scene.Cast]:
    """What each video shows: its split's shares in its own way, with the split's mean kept."""
    casts = {}
    for part, names in VIDEO_SPLITS["alges"].items():
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, SPLITS.index(part), 0, 2**32]))
        own = np.exp(rng.normal(0, 0.15, (len(names), len(CLASSES))))
        own /= np.average(own, axis=0, weights=[CLIPS[name] for name in names])
        for name, factors in zip(names, own, strict=True):
            percent = {k: share * factors[k] for k, share in TISSUE_SHARES[part].items()} | RARE_SHARES.get(name, {})
            shares = tuple(float(percent.get(k, 0)) / 100 for k in range(len(CLASSES)))
            casts[name] = scene.Cast(shares, *TOOL_RATES[part])
    return casts

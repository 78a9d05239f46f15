"""What every data set becomes: frames decoded at one size, with ids that never depend on their position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TAKEN_NAMES = ("image", "released")
"""Names no class may have: the metrics dice_image and dice_released are not those of a class."""


@dataclass(frozen=True, eq=False)
class FrameSet:
    """Frames of one split, decoded at the run's image size.

    ids: unique and stable names, such as "video12_15750/frame_15761".
    videos: the video each frame is from.
    clips: the clip (run of near-duplicate frames) each is from; equals videos where clips are unknown.
    images: (N, 3, S, S) uint8 RGB, possibly a read-only memory map.
    masks: (N, S, S) uint8 class ids, UNLABELLED where a pixel is not labelled.
    read: (id, side) -> the frame's image (3, side, side), from where it is from; None: the kept image is resized.

    Raises ValueError where lengths, shapes or types do not agree or an id occurs twice.
    """

    ids: tuple[str, ...]
    videos: tuple[str, ...]
    clips: tuple[str, ...]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    read: Callable[[str, int], NDArray[np.uint8]] | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        if len(self.videos) != n or len(self.clips) != n:
            raise ValueError(
                f"videos and clips: expected {n} each, as ids; got {len(self.videos)} and {len(self.clips)}"
            )
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[:2] != (n, 3):
            raise ValueError(f"images: expected uint8 ({n}, 3, S, S), got {self.images.dtype} {self.images.shape}")
        if self.masks.dtype != np.uint8 or self.masks.shape != (n, *self.images.shape[2:]):
            raise ValueError(
                f"masks: expected uint8 {(n, *self.images.shape[2:])}, got {self.masks.dtype} {self.masks.shape}"
            )
        if len(self._positions) != n:
            twice = next(name for position, name in enumerate(self.ids) if self._positions[name] != position)
            raise ValueError(f"ids: {twice!r} occurs more than once")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.ids)}

    def index(self, name: str) -> int:
        """Position of the frame with this id. Raises KeyError where there is none."""
        return self._positions[name]

    def subset(self, indices: Sequence[int] | NDArray[np.integer]) -> FrameSet:
        """The frames at these positions, in this order, copied into memory."""
        chosen = np.asarray(indices, dtype=np.int64)
        return FrameSet(
            ids=tuple(self.ids[i] for i in chosen),
            videos=tuple(self.videos[i] for i in chosen),
            clips=tuple(self.clips[i] for i in chosen),
            images=np.asarray(self.images[chosen]),
            masks=np.asarray(self.masks[chosen]),
            read=self.read,
        )

    def pictures(self, positions: Sequence[int], side: int) -> NDArray[np.uint8]:
        """The images at these positions at another size, (n, 3, side, side)."""
        return np.stack([self._picture(position, side) for position in positions])

    def _picture(self, position: int, side: int) -> NDArray[np.uint8]:
        if self.read is not None:
            return self.read(self.ids[position], side)
        kept = Image.fromarray(np.ascontiguousarray(self.images[position].transpose(1, 2, 0)))
        return np.asarray(kept.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in its three splits; `train` is the pool that is annotated from.

    classes: name per class id. palette: RGB per class id, for drawing.
    notes: one line each on what the loader mapped, left out or found odd.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    train: FrameSet
    validation: FrameSet
    test: FrameSet
    notes: tuple[str, ...]

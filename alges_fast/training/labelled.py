"""What of a pool is labelled: which frames and windows, what they teach, and what labelling them took.

Effort is counted in three measures, because pixels alone mislead: background is labelled with one click.

    labelled_share  pixels of the labelled frames and windows over the pool's
    n_frames        frames that had to be opened: those labelled whole and those with a window
    outline         what an annotator draws: see `outline`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alges_fast.data import FrameSet
from alges_fast.labels import UNLABELLED
from alges_fast.windows import Window, frame_of

Piece: TypeAlias = str | Window
"""What is labelled in one go: a whole frame, by its id, or a window of one."""

Box: TypeAlias = tuple[slice, slice]
"""Rows and columns of a piece."""


@dataclass(frozen=True)
class Effort:
    """What labelling took so far; see the top of this file."""

    labelled_share: float
    n_frames: int
    outline: int


@dataclass(frozen=True, eq=False)
class Labelled:
    """The labelled part of a pool.

    Attributes:
        pool: all frames, with the masks that the annotator copies from.
        pieces: frames and windows in the order in which they were labelled; no pixel is in two of them.
    """

    pool: FrameSet
    pieces: tuple[Piece, ...] = ()

    def with_pieces(self, pieces: Iterable[Piece]) -> Labelled:
        """The same after these have been labelled too."""
        return replace(self, pieces=(*self.pieces, *pieces))

    @cached_property
    def boxes(self) -> dict[int, list[Box]]:
        """The labelled boxes of every frame that has one, by its position, in the order of the first of each."""
        found: dict[int, list[Box]] = {}
        for piece in self.pieces:
            found.setdefault(self.pool.index(str(frame_of(piece))), []).append(box_of(piece))
        return found

    @property
    def positions(self) -> list[int]:
        """Where in the pool the frames are that have a label."""
        return list(self.boxes)

    @property
    def windows(self) -> bool:
        """Whether any piece is less than a frame."""
        return any(isinstance(piece, Window) for piece in self.pieces)

    def frames(self, positions: Sequence[int] | None = None) -> FrameSet:
        """Those at these positions of the pool, by default all that have a label; masks are UNLABELLED outside the
        pieces."""
        positions = self.positions if positions is None else positions
        chosen = self.pool.subset(positions)
        masks = np.full_like(chosen.masks, UNLABELLED)
        for mask, truth, position in zip(masks, chosen.masks, positions, strict=True):
            for box in self.boxes.get(position, ()):
                mask[box] = truth[box]
        return replace(chosen, masks=masks)

    def effort(self) -> Effort:
        """What labelling these took."""
        drawn = sum(outline(mask) for mask in self._masks())
        return Effort(self.n_pixels / self.pool.masks.size, len(self.boxes), drawn)

    @property
    def n_pixels(self) -> int:
        """Pixels of all pieces, those that the pool's own masks leave unlabelled included: they had to be looked at."""
        return sum(mask.size for mask in self._masks())

    def class_shares(self, n_classes: int) -> Tensor:
        """(K,) float64, each class's share of the labelled pixels; they sum to 1. Zeros where no pixel has a class."""
        counts = np.zeros(256, np.int64)
        for mask in self._masks():
            counts += np.bincount(mask.ravel(), minlength=256)
        known = counts[:n_classes].astype(np.float64)
        return torch.from_numpy(known / max(known.sum(), 1.0))

    def _masks(self) -> Iterable[NDArray[np.uint8]]:
        for position, boxes in self.boxes.items():
            mask = self.pool.masks[position]
            for box in boxes:
                yield mask[box]


def outline(mask: NDArray[np.uint8]) -> int:
    """Length of the class boundaries inside a piece, in pixels' sides at the size of the mask.

    The number of pairs of pixels side by side or one above the other, both in the piece, both labelled, that differ in
    class. A boundary between a class and pixels that are not labelled is none, nor is the piece's own edge, where an
    annotator stops drawing: windows sum to a little less than their frame, by one in w pairs for windows w pixels wide.

    Args:
        mask: (H, W) class ids, UNLABELLED where a pixel has none.
    """
    return _changes(mask[:, 1:], mask[:, :-1]) + _changes(mask[1:], mask[:-1])


def unlabelled(pieces: Sequence[Piece], labelled: Iterable[Piece]) -> list[Piece]:
    """The pieces that may be asked for, in their order: none that is labelled, and no window of a frame that is."""
    taken = set(labelled)
    return [piece for piece in pieces if piece not in taken and frame_of(piece) not in taken]


def box_of(piece: Piece) -> Box:
    """Where the piece is in its frame."""
    if not isinstance(piece, Window):
        return slice(None), slice(None)
    return slice(piece.y, piece.y + piece.height), slice(piece.x, piece.x + piece.width)


def _changes(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(((one != other) & (one != UNLABELLED) & (other != UNLABELLED)).sum())

"""What of a pool is labelled: which frames and windows, what they teach, and what labelling them took.

Effort is counted in several measures, because pixels alone mislead: background is labelled with one click.

    labelled_share  pixels of the labelled frames and windows over the pool's
    n_frames        frames that have a label
    windows         windows and whole frames that were looked at
    pictures        pictures that were opened for them: a sheet for every 30 windows of a query, and whole frames
    openings        frames that were opened in their place where windows are annotated in their frames, query by query
    outline         what an annotator draws: see `outline`; in pixels of frames whose sides are `side` long
    corrected       what one draws who is shown a prediction: see `corrected`
    seconds         what all of that takes on sheets, from outline; seconds_corrected from what is corrected
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alges_fast.data import FrameSet
from alges_fast.labels import UNLABELLED
from alges_fast.prices import Prices, sheets_for
from alges_fast.windows import Window, frame_of

Piece: TypeAlias = str | Window
"""What is labelled in one go: a whole frame, by its id, or a window of one."""

Slices: TypeAlias = tuple[slice, slice]
"""Rows and columns of a piece."""
WHOLE: Slices = slice(None), slice(None)
Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Effort:
    """What labelling took so far; see the top of this file."""

    labelled_share: float
    n_frames: int
    windows: int
    pictures: int
    openings: int
    outline: int
    corrected: int
    side: float
    seconds: float
    seconds_corrected: float


@dataclass(frozen=True, eq=False)
class Labelled:
    """The labelled part of a pool.

    Attributes:
        pool: all frames, with the masks that the annotator copies from.
        pieces: frames and windows in the order in which they were labelled; no pixel is in two of them.
        pictures, openings, corrected: see the top of this file.
    """

    pool: FrameSet
    pieces: tuple[Piece, ...] = ()
    pictures: int = 0
    openings: int = 0
    corrected: int = 0

    def with_pieces(self, pieces: Sequence[Piece], corrected: int | None = None) -> Labelled:
        """The same after these have been labelled too, in one query.

        Args:
            corrected: of their outline; None where nothing was predicted, and all of it was drawn.
        """
        windows = sum(isinstance(piece, Window) for piece in pieces)
        if corrected is None:
            corrected = sum(outline(self.truth(piece)) for piece in pieces)
        return replace(
            self,
            pieces=(*self.pieces, *pieces),
            pictures=self.pictures + len(pieces) - windows + sheets_for(windows),
            openings=self.openings + len(set(map(frame_of, pieces))),
            corrected=self.corrected + corrected,
        )

    def leaves(self, pieces: Iterable[Piece], of: Collection[Piece]) -> bool:
        """Whether these pieces may be asked for: they are of those that there are, none is labelled, and no window's
        frame is."""
        taken = frozenset(self.pieces)
        return all(piece in of and piece not in taken and frame_of(piece) not in taken for piece in pieces)

    def truth(self, piece: Piece) -> NDArray[np.uint8]:
        """The mask of a piece of the pool, labelled or not."""
        mask: NDArray[np.uint8] = self.pool.masks[self.pool.index(str(frame_of(piece)))]
        return mask[box_of(piece)]

    @cached_property
    def boxes(self) -> dict[int, list[Slices]]:
        """The labelled boxes of every frame that has one, by its position, in the order of the first of each."""
        found: dict[int, list[Slices]] = {}
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
        drawn = sum(outline(self.pool.masks[position], boxes) for position, boxes in self.boxes.items())
        prices, side = Prices(), sum(self.pool.masks.shape[1:]) / 2
        seconds, corrected = (
            prices.seconds(pictures=self.pictures, looks=len(self.pieces), outline=length, side=side)
            for length in (drawn, self.corrected)
        )
        return Effort(
            labelled_share=self.n_pixels / self.pool.masks.size,
            n_frames=len(self.boxes),
            windows=len(self.pieces),
            pictures=self.pictures,
            openings=self.openings,
            outline=drawn,
            corrected=self.corrected,
            side=side,
            seconds=round(seconds, 1),
            seconds_corrected=round(corrected, 1),
        )

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


def outline(mask: NDArray[np.integer[Any]], boxes: Sequence[Slices] = (WHOLE,)) -> int:
    """Length of the class boundaries inside pieces of a frame, in pixels' sides at the size of the mask.

    The number of pairs of pixels side by side or one above the other, both in the piece, both labelled, that differ in
    class. A boundary between a class and pixels that are not labelled is none, nor is the piece's own edge, where an
    annotator stops drawing: windows sum to a little less than their frame, by one in w pairs for windows w pixels wide.

    Args:
        mask: (H, W) class ids, UNLABELLED where a pixel has none.
        boxes: of the pieces, by default all of it. A frame may have hundreds: all are read off sums over the frame.
    """
    if len(boxes) == 1:
        inside = mask[boxes[0]]
        return int(_changes(inside[:, 1:], inside[:, :-1]).sum() + _changes(inside[1:], inside[:-1]).sum())
    height, width = mask.shape
    bounds = [(*y.indices(height)[:2], *x.indices(width)[:2]) for y, x in boxes]
    top, bottom, left, right = np.array(bounds, np.int64).reshape(-1, 4).T
    beside, below = _sums(_changes(mask[:, 1:], mask[:, :-1])), _sums(_changes(mask[1:], mask[:-1]))
    return _inside(beside, top, bottom, left, right - 1) + _inside(below, top, bottom - 1, left, right)


def corrected(mask: NDArray[np.uint8], predicted: NDArray[np.uint8], boxes: Sequence[Slices] = (WHOLE,)) -> int:
    """What of the outline of pieces is drawn by an annotator who is shown a prediction: that of the parts which are
    wrong.

    Where the prediction is right nothing is drawn, so it counts as one class; a piece that is wrong throughout and has
    one class takes none, for a key says so.

    Args:
        mask: (H, W) class ids, UNLABELLED where a pixel has none.
        predicted: (H, W) class ids.
        boxes: as for `outline`.
    """
    right = (mask == predicted) & (mask != UNLABELLED)
    return outline(np.where(right, np.int16(-1), mask.astype(np.int16)), boxes)


def box_of(piece: Piece) -> Slices:
    """Where the piece is in its frame."""
    return piece.box if isinstance(piece, Window) else WHOLE


def _changes(one: NDArray[np.integer[Any]], other: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    differ: NDArray[np.bool_] = (one != other) & (one != UNLABELLED) & (other != UNLABELLED)
    return differ


def _sums(counted: NDArray[np.bool_]) -> Ints:
    """(H + 1, W + 1): how many are above and left of every corner."""
    sums = np.zeros((counted.shape[0] + 1, counted.shape[1] + 1), np.int64)
    sums[1:, 1:] = counted.cumsum(0, dtype=np.int64).cumsum(1)
    return sums


def _inside(sums: Ints, top: Ints, bottom: Ints, left: Ints, right: Ints) -> int:
    """How many are in these boxes, together."""
    return int((sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]).sum())

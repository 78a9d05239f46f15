"""What a network trained whole is shown of frames in which only windows are labelled: crops around the windows.

Shown whole, a frame with one window of 8 x 8 labelled costs as much as one labelled throughout and teaches a 64th of
it. A crop of twice the window's side keeps the window's surroundings and is mostly labelled or near a label. Frames
that are labelled whole are shown whole, so what a run begins with trains as it does without windows.
"""

from __future__ import annotations

from typing import NamedTuple

from alges_fast.training.labelled import Box, Labelled

STRIDE = 32
"""Crops are this many pixels or a multiple: what networks of five halvings can take."""


class Crop(NamedTuple):
    """A square of a labelled frame.

    Attributes:
        frame: its place among the labelled frames, as in `Labelled.frames`.
        y, x: the upper left corner.
        side: in pixels; the frame's for a frame that is shown whole.
    """

    frame: int
    y: int
    x: int
    side: int


def crops_of(labelled: Labelled) -> list[Crop]:
    """One whole view of every frame labelled whole, and a crop around every labelled window, in order.

    Near an edge a crop is moved to lie within its frame. Where it would be as large as that, the frame is shown, once.
    Other labelled windows in a crop count there too.
    """
    size = labelled.pool.masks.shape[-1]
    found: list[Crop] = []
    for frame, boxes in enumerate(labelled.boxes.values()):
        around = [_around(frame, box, size) for box in boxes]
        found += around if all(crop.side < size for crop in around) else [Crop(frame, 0, 0, size)]
    return found


def side_around(window: int, size: int) -> int:
    """Side of the crop around a window of this side, in frames of this size."""
    return min(size, STRIDE * -(-2 * window // STRIDE))


def _around(frame: int, box: Box, size: int) -> Crop:
    (top, bottom, _), (left, right, _) = (side.indices(size) for side in box)
    side = side_around(max(bottom - top, right - left), size)
    y, x = (min(max((low + high - side) // 2, 0), size - side) for low, high in ((top, bottom), (left, right)))
    return Crop(frame, y, x, side)

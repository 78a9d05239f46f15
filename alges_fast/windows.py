"""Windows of an image: a grid that covers every pixel exactly once, and views of maps cut to one of its cells.

A box may have any number of axes: a whole image or volume is a box too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Box",
    "Window",
    "cell_boxes",
    "class_changes",
    "cut",
    "frame_of",
    "grid_of",
    "inside",
    "named",
    "padded",
    "rim",
    "whole_box",
    "windows_of",
]

Box = tuple[range, ...]
"""Positions along each spatial axis: rows and columns of a cell."""


class Window(NamedTuple):
    """A rectangle of an image, in its pixels from the upper left corner on."""

    id: str | int
    """The image."""
    x: int
    y: int
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def box(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    def overlaps(self, other: Window) -> bool:
        """Whether they share a pixel of one image."""
        across = self.x < other.x + other.width and other.x < self.x + self.width
        down = self.y < other.y + other.height and other.y < self.y + self.height
        return across and down and self.id == other.id

    def __str__(self) -> str:
        """The image and the window as a media fragment has it (https://www.w3.org/TR/media-frags/#naming-space)."""
        return f"{self.id}#xywh={self.x},{self.y},{self.width},{self.height}"


def frame_of(piece: str | int | Window) -> str | int:
    """The id of the image that it is, or is a window of."""
    return piece.id if isinstance(piece, Window) else piece


def named(text: str) -> str | Window:
    """The window that `str` wrote so, or the text itself where it names none."""
    found = re.fullmatch(r"(.+)#xywh=(\d+),(\d+),(\d+),(\d+)", text, re.DOTALL)
    return Window(found[1], *(int(found[i]) for i in range(2, 6))) if found else text


def grid_of(text: str) -> tuple[int, int]:
    """Rows and columns of a grid as people write it, "4x3". Raises ValueError where it is not one."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise ValueError(f"{text}: give rows x columns, such as 8x8")
    return int(found[1]), int(found[2])


def cell_boxes(size: Sequence[int], regions: tuple[int, int]) -> list[Box]:
    """The cells of a grid over (height, width), row by row; their sides differ by at most one pixel.

    Args:
        size: height and width.
        regions: rows and columns of the grid.

    Raises:
        ValueError: more rows or columns than pixels, or none.
    """
    rows, columns = regions
    if len(size) != 2:
        raise ValueError(f"regions: windows need images with two spatial axes, got {len(size)}: {tuple(size)}")
    if not (1 <= rows <= size[0] and 1 <= columns <= size[1]):
        raise ValueError(
            f"regions: {rows} rows x {columns} columns of windows do not fit {size[0]} x {size[1]} pixels (height x "
            "width): ask for fewer, at least one of each"
        )
    return [(top, left) for top in _pieces(size[0], rows) for left in _pieces(size[1], columns)]


def windows_of(id: str | int, size: Sequence[int], regions: tuple[int, int]) -> list[Window]:
    """The windows of an image of (height, width) pixels, row by row."""
    return [Window(id, xs.start, ys.start, len(xs), len(ys)) for ys, xs in cell_boxes(size, regions)]


def class_changes(classes: Tensor, regions: tuple[int, int] = (1, 1)) -> Tensor:
    """(B, R C) float32: how many neighbours inside each window, side by side or one above the other, differ in class.

    It is the length of the class boundaries inside the window, in pixels of this grid: what an annotator draws there.

    Args:
        classes: (B, H, W) integers.
        regions: rows R and columns C of a grid of windows, as in `cell_boxes`.

    Raises:
        ValueError: a grid finer than the map.
    """
    cell_boxes(classes.shape[1:], regions)  # refuses what does not fit
    rows, columns = (_pieces(length, n) for length, n in zip(classes.shape[1:], regions, strict=True))
    beside = F.pad((classes[:, :, 1:] != classes[:, :, :-1]).float(), (0, 1))
    below = F.pad((classes[:, 1:] != classes[:, :-1]).float(), (0, 0, 0, 1))
    beside[:, :, [piece.stop - 1 for piece in columns]] = 0  # a window's last column has no neighbour in it
    below[:, [piece.stop - 1 for piece in rows]] = 0
    changes = beside + below
    down, across = (torch.zeros(len(p), p[-1].stop, device=changes.device) for p in (rows, columns))
    for pieces, matrix in ((rows, down), (columns, across)):
        for number, piece in enumerate(pieces):
            matrix[number, piece.start : piece.stop] = 1
    return (down @ changes @ across.T).flatten(1)


def whole_box(size: Sequence[int]) -> Box:
    """All of a map of this size."""
    return tuple(map(range, size))


def rim(box: Box, kernel: Sequence[int], size: Sequence[int]) -> Box:
    """The box and what its pixels' kernel-sized patches reach beyond it, within a map of this size.

    Where it ends at the image's border the zero padding is the image's own, so patches in the box are what they are
    in the whole image.
    """
    return tuple(
        range(max(side.start - reach // 2, 0), min(side.stop + reach // 2, length))
        for side, reach, length in zip(box, kernel, size, strict=True)
    )


def padded(values: Tensor, box: Box, around: Box) -> Tensor:
    """(..., *box) as (..., *around), zeros (False) outside the box."""
    if box == around:
        return values
    sides = zip(reversed(box), reversed(around), strict=True)  # F.pad begins with the last axis
    return F.pad(values, [n for side, outer in sides for n in (side.start - outer.start, outer.stop - side.stop)])


def cut(values: Tensor, box: Box) -> Tensor:
    """A view of (..., *spatial) at the box."""
    for axis, side in enumerate(box, start=values.ndim - len(box)):
        values = values.narrow(axis, side.start, len(side))
    return values


def inside(box: Box, around: Box, batch: int, device: torch.device) -> Tensor | None:
    """(batch, *around) bool, true in the box alone; None where that is everywhere."""
    if box == around:
        return None
    ones = torch.ones([len(side) for side in box], dtype=torch.bool, device=device)
    return padded(ones, box, around).expand(batch, *[-1] * len(box))


def _pieces(length: int, n: int) -> list[range]:
    edges = [length * i // n for i in range(n + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(edges)]

"""Windows as a person annotates them: magnified, with what is around them, many on a sheet or one a picture.

A window of 53 x 30 pixels in a frame of 854 x 480 is a spot that an annotator must look for, in a picture of its own.
On a sheet it is a cell: its number and frame, the window at a whole-number magnification, outlined, with its own side
of context around it, and a thumbnail of the frame with the place marked.

Context and thumbnails are to be looked at. What is drawn on a window maps back to its own pixels: each of them is a
square of the sheet, and takes the class that most of the square has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from alges_fast.annotation.pictures import fitted
from alges_fast.labels import UNLABELLED
from alges_fast.windows import Window, named

Desk: TypeAlias = Literal["auto", "sheets", "crops", "frames"]
"""What windows go to an annotator on: sheets of many, a picture each, or the frames that they are of."""
DESK = "desk.json"
"""The sheets of a round, in its folder."""
CELLS = range(24, 37)
"""How many cells a sheet may have; fewer where windows are so large that it would exceed `MOST_PIXELS`."""
MOST_PIXELS = 24_000_000
"""Of a sheet: what the tools' editors open at once."""
SHOWN_SIDE, MOST_MAGNIFIED = 200, 12
"""A window is magnified as often as its longer side goes into so many pixels, at most so often."""
SHAPE = 4 / 3
"""Width over height that a sheet comes nearest to."""

_THUMBNAIL, _CAPTION, _GAP = 160, 24, 14
_PAPER, _INK, _BEYOND = (250, 250, 248), (28, 33, 38), (70, 70, 70)
_MARK = (255, 212, 0)


@dataclass(frozen=True)
class Cell:
    """A window on a sheet.

    Attributes:
        window: in pixels of its frame.
        number: its place among the picks, from 1 on.
        x, y: its upper left corner on the sheet.
        scale: how often it is magnified.
    """

    window: Window
    number: int
    x: int
    y: int
    scale: int

    @property
    def box(self) -> tuple[slice, slice]:
        """Its rows and columns on the sheet."""
        width, height = self.window.width * self.scale, self.window.height * self.scale
        return slice(self.y, self.y + height), slice(self.x, self.x + width)

    @property
    def around(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what is shown of it on the sheet: itself and its surroundings."""
        width, height = self.window.width * self.scale, self.window.height * self.scale
        return self.x - width, self.y - height, self.x + 2 * width, self.y + 2 * height

    def on(self, name: str) -> Window:
        """The same place as a window of the sheet of this name."""
        return Window(name, self.x, self.y, self.window.width * self.scale, self.window.height * self.scale)


@dataclass(frozen=True)
class Sheet:
    """A picture of cells.

    Attributes:
        name: in files, without folders.
        size: height and width in pixels.
        cells: in order of picking.
    """

    name: str
    size: tuple[int, int]
    cells: tuple[Cell, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        cells = [[str(cell.window), cell.number, cell.x, cell.y, cell.scale] for cell in self.cells]
        return {"name": self.name, "size": list(self.size), "cells": cells}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Sheet:
        """Raises ValueError, KeyError or TypeError where the values are no sheet."""
        height, width = values["size"]
        cells = []
        for text, *numbers in values["cells"]:
            window = named(text)
            if not isinstance(window, Window):
                raise ValueError(f"{text!r} is no window")
            cells.append(Cell(window, *map(int, numbers)))
        return Sheet(str(values["name"]), (int(height), int(width)), tuple(cells))


@dataclass(frozen=True, eq=False)
class View:
    """What is shown of a window.

    Attributes:
        surroundings: (3 h, 3 w, 3) uint8 RGB: a window of h x w pixels in the middle, its own side around it.
        thumbnail: its frame, the place marked.
        mask: (h, w) predicted class ids.
    """

    surroundings: NDArray[np.uint8]
    thumbnail: Image.Image
    mask: NDArray[np.uint8]


def view_of(window: Window, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> View:
    """Of a frame (H, W, 3) and the classes predicted in it, (H, W)."""
    height, width = window.height, window.width
    surroundings = np.empty((3 * height, 3 * width, 3), np.uint8)
    surroundings[:] = _BEYOND  # beyond the frame's edge
    top, left = max(window.y - height, 0), max(window.x - width, 0)
    part = image[top : window.y + 2 * height, left : window.x + 2 * width]
    y, x = top - (window.y - height), left - (window.x - width)
    surroundings[y : y + part.shape[0], x : x + part.shape[1]] = part
    return View(surroundings, _marked(window, image), mask[window.box])


def lay_out(windows: Sequence[Window], prefix: str, *, alone: bool = False) -> list[Sheet]:
    """Sheets for these windows, in order of picking, named `prefix`_sheet01.jpg and so on.

    Args:
        windows: one at least, of frames of any size.
        prefix: what makes the names different from those of other rounds.
        alone: one window a picture, as large as the window asks, without a thumbnail: `prefix`_window001.jpg.
    """
    widest, highest = max(w.width for w in windows), max(w.height for w in windows)
    scale = min(max(SHOWN_SIDE // max(widest, highest), 1), MOST_MAGNIFIED)
    width, height = 3 * widest * scale, 3 * highest * scale
    if alone:
        digits = len(str(len(windows)))
        return [
            _sheet(f"{prefix}_window{number:0{digits}d}.jpg", [window], number, 1, (height, width), scale, 0)
            for number, window in enumerate(windows, 1)
        ]
    cell = max(height, _THUMBNAIL) + _CAPTION + _GAP, width + _THUMBNAIL + 2 * _GAP
    columns, rows = _table(cell)
    starts = range(0, len(windows), columns * rows)
    digits = len(str(len(starts)))
    return [
        _sheet(
            f"{prefix}_sheet{number:0{digits}d}.jpg",
            windows[start : start + columns * rows],
            start + 1,
            min(columns, len(windows) - start),
            cell,
            scale,
            _CAPTION,
        )
        for number, start in enumerate(starts, 1)
    ]


def draw(sheet: Sheet, views: Mapping[Window, View]) -> Image.Image:
    """The picture of a sheet, or of a window alone."""
    height, width = sheet.size
    picture = Image.new("RGB", (width, height), _PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for cell in sheet.cells:
        view, window, scale = views[cell.window], cell.window, cell.scale
        left, top, end, bottom = cell.around
        size = end - left, bottom - top
        picture.paste(Image.fromarray(view.surroundings).resize(size, Image.Resampling.BICUBIC), (left, top))
        right, bottom = cell.x + window.width * scale, cell.y + window.height * scale
        pen.rectangle((cell.x - 3, cell.y - 3, right + 2, bottom + 2), outline=_INK)
        pen.rectangle((cell.x - 2, cell.y - 2, right + 1, bottom + 1), outline=_MARK, width=2)
        if top:  # room for a caption
            picture.paste(view.thumbnail, (left + size[0] + _GAP, top))
            text = fitted(f"{cell.number}   {window.id}", size[0] + _THUMBNAIL, lambda t: pen.textlength(t, font))
            pen.text((left, top - _CAPTION + 3), text, fill=_INK, font=font)
    return picture


def cut_out(picture: Image.Image, cell: Cell, alone: Sheet) -> Image.Image:
    """The picture of a window alone, as `draw` makes it, of that of a sheet on which it is as large."""
    height, width = alone.size
    cut = Image.new("RGB", (width, height), _PAPER)
    cut.paste(picture.crop(cell.around))
    return cut


def on_sheet(sheet: Sheet, masks: Mapping[Window, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The sheet's mask: that of every window (h, w), each pixel a square; UNLABELLED elsewhere."""
    spread = np.full(sheet.size, UNLABELLED, np.uint8)
    for cell in sheet.cells:
        spread[cell.box] = masks[cell.window].repeat(cell.scale, 0).repeat(cell.scale, 1)
    return spread


def from_sheet(sheet: Sheet, mask: NDArray[np.uint8]) -> dict[Window, NDArray[np.uint8]]:
    """The mask (h, w) of every window from the sheet's: each pixel has the class that most of its square has, of
    classes that are as frequent the one of the lowest id, before UNLABELLED."""
    return {cell.window: _majority(mask[cell.box], cell.scale) for cell in sheet.cells}


def _majority(mask: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    height, width = (side // scale for side in mask.shape)
    squares = mask.reshape(height, scale, width, scale)
    ids = np.full((height, width), UNLABELLED, np.uint8)
    most = np.zeros((height, width), np.int64)
    for class_id in np.unique(mask):  # ascending, so UNLABELLED comes last
        count = (squares == class_id).sum((1, 3))
        ids[count > most] = class_id
        most = np.maximum(most, count)
    return ids


def _table(cell: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows of cells (height, width)."""
    height, width = cell
    fits = [n for n in CELLS if n * height * width <= MOST_PIXELS] or [max(MOST_PIXELS // (height * width), 1)]
    tables = [(columns, n // columns) for n in fits for columns in range(1, n + 1) if n % columns == 0]
    return min(tables, key=lambda t: (abs(math.log(t[0] * width / (t[1] * height) / SHAPE)), -t[0] * t[1]))


def _sheet(
    name: str,
    windows: Sequence[Window],
    first: int,
    columns: int,
    cell: tuple[int, int],
    scale: int,
    caption: int,
) -> Sheet:
    gap = _GAP if caption else 0
    cells = []
    for place, window in enumerate(windows):
        left, top = gap + place % columns * cell[1], gap + caption + place // columns * cell[0]
        cells.append(Cell(window, first + place, left + window.width * scale, top + window.height * scale, scale))
    return Sheet(name, (gap + -(-len(windows) // columns) * cell[0], gap + columns * cell[1]), tuple(cells))


def _marked(window: Window, image: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    across, down = picture.width / image.shape[1], picture.height / image.shape[0]
    corners = (
        window.x * across,
        window.y * down,
        (window.x + window.width) * across,
        (window.y + window.height) * down,
    )
    ImageDraw.Draw(picture).rectangle([round(corner) for corner in corners], outline=_MARK, width=2)
    return picture

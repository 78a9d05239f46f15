"""Windows of an image: a grid that covers every pixel exactly once, and views of maps cut to one of its cells.

A box may have any number of axes: a whole image or volume is a box too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

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
    match = re.fullmatch(r"(.+)#xywh=(\d+),(\d+),(\d+),(\d+)", text, re.DOTALL)
    return Window(match[1], *(int(match[i]) for i in range(2, 6))) if match else text


def parse_regions(text: str) -> tuple[int, int]:
    """Rows and columns of a grid as people write it, "4x3". Raises ValueError where it is not one."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"{text}: give rows x columns, such as 8x8")
    return int(match[1]), int(match[2])


def check_regions(size: Sequence[int], regions: tuple[int, int]) -> None:
    """Raises ValueError where a grid has more rows or columns than (height, width) pixels, or none."""
    rows, columns = regions
    if len(size) != 2:
        raise ValueError(f"regions: windows need images with two spatial axes, got {len(size)}: {tuple(size)}")
    if not (1 <= rows <= size[0] and 1 <= columns <= size[1]):
        raise ValueError(
            f"regions: {rows} rows x {columns} columns of windows do not fit {size[0]} x {size[1]} pixels (height x "
            "width): ask for fewer, at least one of each"
        )


def cell_boxes(size: Sequence[int], regions: tuple[int, int]) -> list[Box]:
    """The cells of a grid over (height, width), row by row; their sides differ by at most one pixel.

    Raises:
        ValueError: as `check_regions`.
    """
    check_regions(size, regions)
    rows, columns = regions
    return [(top, left) for top in _pieces(size[0], rows) for left in _pieces(size[1], columns)]


def windows_of(id: str | int, size: Sequence[int], regions: tuple[int, int]) -> list[Window]:
    """The windows of an image of (height, width) pixels, row by row."""
    return [Window(id, xs.start, ys.start, len(xs), len(ys)) for ys, xs in cell_boxes(size, regions)]


_PIECE = 1 << 18
"""Windows of which something is looked up at a time."""


class GridWindows(Sequence[Window]):
    """Windows of a grid over images, in order, kept as numbers: a `Window` is made when one is indexed, as hours of
    video hold millions. What is asked of many at once is answered by arrays.

    Args:
        ids: of the images, no one twice.
        sizes: (height, width) of each.
        regions: rows R and columns C of the grid.
        numbers: (n,) int64 ascending, image x R C + cell of those that belong; all by default.

    Raises:
        ValueError: a grid finer than an image.
    """

    def __init__(
        self,
        ids: Sequence[str | int],
        sizes: Sequence[Sequence[int]],
        regions: tuple[int, int],
        numbers: Tensor | None = None,
    ) -> None:
        self.ids = tuple(ids)
        self.sizes = sizes
        self.regions = regions
        self.n_cells = regions[0] * regions[1]
        self.numbers = torch.arange(len(self.ids) * self.n_cells) if numbers is None else numbers
        kinds: dict[tuple[int, ...], int] = {}
        self._kind = torch.tensor([kinds.setdefault(tuple(size), len(kinds)) for size in sizes], dtype=torch.int64)
        boxes = [[window[1:] for window in windows_of("", size, regions)] for size in kinds]
        self._boxes = torch.tensor(boxes, dtype=torch.int64).view(len(kinds), self.n_cells, 4)  # x, y, width, height
        self._box_lists = boxes
        self._cells = [{box: cell for cell, box in enumerate(of_size)} for of_size in boxes]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Window: ...

    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...

    def __getitem__(self, index: int | slice) -> Window | list[Window]:
        if isinstance(index, slice):
            return [self._window(number) for number in self.numbers[index].tolist()]
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return self._window(int(self.numbers[index]))

    def __iter__(self) -> Iterator[Window]:
        for part in self.numbers.split(1 << 16):
            yield from map(self._window, part.tolist())

    def __contains__(self, item: object) -> bool:
        return bool(self.positions_of([item])[0] >= 0)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """As of any sequence."""
        at = int(self.positions_of([value])[0])
        if not start <= at < (len(self) if stop is None else stop):
            raise ValueError(f"{value} is not among the windows")
        return at

    @property
    def images(self) -> Tensor:
        """(n,) int64: of which image each is, as a place in `ids`."""
        return self.numbers // self.n_cells

    @property
    def cells(self) -> Tensor:
        """(n,) int64: which window of its image each is, row by row."""
        return self.numbers % self.n_cells

    def areas(self) -> Tensor:
        """(n,) int64, in pixels."""
        return self._of_boxes(self._boxes[..., 2:].prod(2), self.numbers)

    def sides(self, positions: Tensor) -> Tensor:
        """(m,) float64: (height + width) / 2 of the windows at these positions."""
        return self._of_boxes(self._boxes[..., 2:].sum(2).double() / 2, self.numbers[positions])

    def _of_boxes(self, values: Tensor, numbers: Tensor) -> Tensor:
        """(n,) of values (kinds, cells), piece by piece: of hours of video every whole array between takes 0.1 GB."""
        taken = values.new_empty(len(numbers))
        for part, into in zip(numbers.split(_PIECE), taken.split(_PIECE), strict=True):
            into.copy_(values[self._kind[part // self.n_cells], part % self.n_cells])
        return taken

    def numbers_of(self, items: Iterable[object]) -> Tensor:
        """(m,) int64: the number of each window of the grid, whether it belongs or not; -1 of anything else."""
        numbers = []
        for item in items:
            image = self._images.get(item.id) if isinstance(item, Window) else None
            cell = None if image is None else self._cells[self._kinds[image]].get(tuple(item[1:]))  # type: ignore[index]
            numbers.append(-1 if image is None or cell is None else image * self.n_cells + cell)
        return torch.tensor(numbers, dtype=torch.int64)

    def positions_of(self, items: Iterable[object]) -> Tensor:
        """(m,) int64: where each is among the windows; -1 where it is not."""
        numbers = self.numbers_of(items)
        if not len(self.numbers):
            return torch.full_like(numbers, -1)
        at = torch.searchsorted(self.numbers, numbers).clamp(max=len(self.numbers) - 1)
        return torch.where(self.numbers[at] == numbers, at, -1)

    def overlapping(self, item: Window | str | int) -> Tensor:
        """(m,) int64: numbers of the grid's windows that share a pixel with one of any grid, or are of an image."""
        image = self._images.get(item.id if isinstance(item, Window) else item)
        if image is None:
            return torch.empty(0, dtype=torch.int64)
        numbers = torch.arange(image * self.n_cells, (image + 1) * self.n_cells)
        if not isinstance(item, Window):
            return numbers
        x, y, width, height = self._boxes[self._kinds[image]].unbind(1)
        across = (x < item.x + item.width) & (item.x < x + width)
        return numbers[across & (y < item.y + item.height) & (item.y < y + height)]

    def of_images(self, images: Collection[str | int]) -> Tensor:
        """(n,) bool: which are windows of these images."""
        wanted = torch.tensor([id in images for id in self.ids], dtype=torch.bool)
        return torch.cat([wanted[part // self.n_cells] for part in self.numbers.split(_PIECE)])

    def without(self, numbers: Tensor) -> GridWindows:
        """The others."""
        stay = torch.ones(len(self), dtype=torch.bool)
        if len(self) and len(numbers):
            at = torch.searchsorted(self.numbers, numbers).clamp(max=len(self) - 1)
            stay[at[self.numbers[at] == numbers]] = False
        return GridWindows(self.ids, self.sizes, self.regions, self.numbers[stay])

    @cached_property
    def _images(self) -> dict[str | int, int]:
        return {id: image for image, id in enumerate(self.ids)}

    @cached_property
    def _kinds(self) -> list[int]:
        return list(self._kind.tolist())

    def _window(self, number: int) -> Window:
        image, cell = divmod(number, self.n_cells)
        return Window(self.ids[image], *self._box_lists[self._kinds[image]][cell])


def class_changes(classes: Tensor, regions: tuple[int, int] = (1, 1)) -> Tensor:
    """(B, R C) float32: how many neighbours inside each window, side by side or one above the other, differ in class.

    It is the length of the class boundaries inside the window, in pixels of this grid: what an annotator draws there.

    Args:
        classes: (B, H, W) integers.
        regions: rows R and columns C of a grid of windows, as in `cell_boxes`.

    Raises:
        ValueError: a grid finer than the map.
    """
    check_regions(classes.shape[1:], regions)
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

"""The cells of a grid as a batch of their own, so that a GPU is asked once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alges_fast.windows import Box


class CellBatch:
    """Maps (B, C, height, width) cut into cells and what patches reach beyond them, all of one size: that of the
    largest, so that others hold some of their neighbours' pixels too, and zeros beyond the map.

    Args:
        cells: of a grid over the map, row by row (`windows.cell_boxes`).
    """

    def __init__(self, cells: Sequence[Box], kernel: Sequence[int], size: Sequence[int], device: torch.device) -> None:
        self.reach = [side // 2 for side in kernel]
        self.positions, own = [], []
        for axis, (reach, length) in enumerate(zip(self.reach, size, strict=True)):
            pieces = list(dict.fromkeys(cell[axis] for cell in cells))
            longest = max(map(len, pieces))
            edges = torch.tensor([(piece.start, piece.stop) for piece in pieces], device=device)
            starts, stops = edges[:, :1], edges[:, 1:]
            at = starts + torch.arange(-reach, longest + reach, device=device)
            own.append((at >= starts) & (at < stops))
            self.positions.append(at.clamp(max=length - 1 + reach) + reach)
        self.own = (own[0][:, None, :, None] & own[1][None, :, None, :]).flatten(0, 1)
        """(cells, h, w) bool: the cells' own pixels."""

    def cut(self, values: Tensor) -> Tensor:
        """(B cells, C, h, w) of maps (B, C, height, width)."""
        down, across = self.reach
        rows, columns = self.positions
        if down or across:
            values = F.pad(values, (across, across, down, down))
        cells = values[:, :, rows[:, :, None, None], columns[None, None]]  # (B, C, rows, h, columns, w)
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def valid(self, batch: int, valid: Tensor | None) -> Tensor:
        """(B cells, h, w) bool: the cells' own pixels, of `valid` (B, height, width) those that are."""
        own = self.own.repeat(batch, 1, 1)
        return own if valid is None else own & self.cut(valid[:, None])[:, 0]

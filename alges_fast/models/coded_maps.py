"""Maps kept in 8 bits a number, decoded where they are read: half the bytes of float16."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEVELS = 255
"""Steps between the smallest and the largest number of a channel."""


class CodedMaps:
    """Maps (N, C, h, w), which are decoded to float16 where they are indexed, their channels last in memory.

    Every channel of every frame has a step of its own, so that no number is cut off and no frame depends on another.

    Args:
        rows: (N, bytes) uint8, as `code_maps` makes them.
        channels: C.
        grid: h and w.
    """

    ndim = 4
    dtype = np.dtype(np.float16)

    def __init__(self, rows: NDArray[np.uint8], channels: int, grid: tuple[int, int]) -> None:
        self.rows = rows
        self.shape = (len(rows), channels, *grid)

    @property
    def nbytes(self) -> int:
        """Of the rows."""
        return self.rows.nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> NDArray[np.float16]:
        """As of an array of the frames: one, a slice, or a list of positions."""
        rows = np.asarray(self.rows[index])
        _, channels, height, width = self.shape
        scales = np.ascontiguousarray(rows[..., : 8 * channels]).view("<f4").reshape(*rows.shape[:-1], 2, channels)
        low, step = torch.from_numpy(scales).unsqueeze(-2).unbind(-3)
        codes = torch.from_numpy(np.ascontiguousarray(rows[..., 8 * channels :]))
        values = codes.view(*rows.shape[:-1], height * width, channels).float().mul_(step).add_(low).half()
        maps: NDArray[np.float16] = values.view(*rows.shape[:-1], height, width, channels).movedim(-1, -3).numpy()
        return maps


KeptMaps: TypeAlias = NDArray[Any] | CodedMaps
"""Maps (N, C, h, w), or other inputs of a network, in an array or decoded where they are indexed."""


def code_maps(maps: Tensor) -> NDArray[np.uint8]:
    """Rows of `CodedMaps`, (B, bytes): the channels' smallest numbers and steps, 2 C float32, then (h, w, C) codes.

    Args:
        maps: (B, C, h, w), finite.
    """
    values = maps.float().flatten(2).transpose(1, 2).cpu()
    low, high = values.aminmax(dim=1, keepdim=True)
    step = (high - low) / LEVELS
    codes = ((values - low) / torch.where(step > 0, step, 1)).round_().to(torch.uint8)
    scales = torch.cat([low, step], 1).contiguous().numpy().astype("<f4", copy=False)
    return np.concatenate([scales.reshape(len(codes), -1).view(np.uint8), codes.flatten(1).numpy()], 1)


def coded_bytes(channels: int, grid: tuple[int, int]) -> int:
    """Of a row."""
    return channels * (8 + grid[0] * grid[1])

"""The CPU kernel's shard: distance, running minimum and draw in one read of the points (csrc/cpu/seeding.h)."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from alges_fast._native import cpu_kernels
from alges_fast.seeding.pools import Draw, Pool
from alges_fast.seeding.shards import Candidates

SKETCH_FROM = 16  # centres to measure; with fewer, writing the sketch costs more than it saves
CACHED = 8 << 20  # bytes of a pool that is read from cache at every pick anyway


def wants_sketch(centres: int, points: Tensor, memory: int) -> bool:
    """Whether 8-bit codes of the points pay for so many centres, and fit: a quarter of a float32 pool's bytes."""
    rows, columns = points.shape
    large = rows * columns * points.element_size() > CACHED
    return centres >= SKETCH_FROM and large and rows * (columns + 12) <= memory // 4


class NativePool(Pool):
    """The native CPU kernels: distance, running minimum and race in one read of the points."""

    name = "cpu"
    measured = 0  # rows the last pass measured in full, over all its centres: the sketch spared the others

    def __init__(
        self,
        points: Tensor,
        index: range | Tensor,
        centres: int,
        weights: Tensor | None = None,
        *,
        nearest: bool = False,
    ) -> None:
        super().__init__(
            points if points.stride(1) == 1 else points.contiguous(), index, centres, weights, nearest=nearest
        )
        kernels = cpu_kernels()
        assert kernels is not None
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._draw_type = kernels.SeedingDraw
        self._native = kernels.SeedingPool(
            self.points.data_ptr(),
            str(self.points.dtype).removeprefix("torch."),
            *self.points.shape,
            self.points.stride(0),
            index.start if isinstance(index, range) else 0,
            0 if isinstance(index, range) else index.data_ptr(),
            self.min_sq_distance.data_ptr(),
            0 if self.weights is None else self.weights.data_ptr(),
            0 if self.nearest is None else self.nearest.data_ptr(),
            wants_sketch(centres, self.points, memory),
        )

    def draw(self, draw: Draw | None) -> Candidates:
        return self.absorb(self.points.new_empty(0, self.points.shape[1], dtype=self.dtype), draw)

    def absorb(self, centres: Tensor, draw: Draw | None) -> Candidates:
        centres = centres.contiguous()
        return self._candidates(self._native.absorb(*_address(centres), self._drawn(draw), torch.get_num_threads()))

    def chain(self, draw: Draw, count: int) -> list[int]:
        picks: list[int] = self._native.chain(self._drawn(draw), count, torch.get_num_threads())
        return picks

    def potentials(self, centres: Tensor, scale: float) -> Tensor:
        centres = centres.contiguous()
        sums = self._native.potentials(*_address(centres), scale, torch.get_num_threads())
        return torch.tensor(sums, dtype=torch.float64)

    def accept(self, trial: int, draw: Draw | None) -> Candidates:
        return self._candidates(self._native.accept(trial, self._drawn(draw), torch.get_num_threads()))

    def _candidates(self, result: tuple[list[float], list[int], list[int], float, int]) -> Candidates:
        keys, indices, positions, largest, self.measured = result
        return Candidates(keys, indices, positions, largest)

    def _drawn(self, draw: Draw | None) -> Any:
        if draw is None:
            return self._draw_type("none", 0, 0, 0)
        return self._draw_type(draw.rule, draw.seed, draw.round, draw.trials)


def _address(centres: Tensor) -> tuple[int, int]:
    return centres.data_ptr(), len(centres)

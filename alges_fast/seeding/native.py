"""The CPU kernel's shard: distance, running minimum and draw in one read of the points (csrc/cpu/seeding.h)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alges_fast._native import cpu_kernels
from alges_fast.seeding.ranks import Leaders
from alges_fast.seeding.shard import DrawSpec, Shard

SKETCH_FROM = 16  # centres to measure; with fewer, writing the sketch costs more than it saves
CACHED = 8 << 20  # bytes of a pool that is read from cache at every pick anyway
UNKNOWN = 8 << 30  # bytes of memory taken for available where the system, not Linux, does not say


def wants_sketch(centres: int, points: Tensor, memory: Callable[[], int]) -> bool:
    """Whether 8-bit codes of the points pay for so many centres, and fit: a quarter of a float32 pool's bytes."""
    rows, columns = points.shape
    large = rows * columns * points.element_size() > CACHED
    return centres >= SKETCH_FROM and large and rows * (columns + 12) <= memory() // 4


def available_memory(root: Path = Path("/")) -> int:
    """Bytes the system can still give this process: what it has free, and no more than a container may have in all."""
    limits = [int(kib) << 10 for kib in re.findall(r"MemAvailable: *([0-9]+) kB", _read(root / "proc/meminfo"))]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, version 2 and 1
        limits += [int(limit) for limit in re.findall(r"^[0-9]+$", _read(root / "sys/fs/cgroup" / name).strip())]
    return min(limits, default=UNKNOWN)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class NativeShard(Shard):
    """The native CPU kernels: distance, running minimum and race in one read of the points."""

    name = "cpu"
    measured = 0  # rows the last pass measured in full, over all its centres: the sketch spared the others

    def prepare(self, centres: int) -> None:
        kernels = cpu_kernels()
        assert kernels is not None
        self._draw_type = kernels.SeedingDraw
        self._native = kernels.SeedingPool(*self.as_native(), wants_sketch(centres, self.points, available_memory))

    def absorb(self, centres: Tensor, draw: DrawSpec | None) -> Leaders:
        centres = centres.contiguous()
        return self._candidates(self._native.absorb(*_address(centres), self._drawn(draw), torch.get_num_threads()))

    def chain(self, draw: DrawSpec, count: int) -> list[int]:
        picks: list[int] = self._native.chain(self._drawn(draw), count, torch.get_num_threads())
        return picks

    def potentials(self, centres: Tensor, scale: float) -> Tensor:
        centres = centres.contiguous()
        sums = self._native.potentials(*_address(centres), scale, torch.get_num_threads())
        return torch.tensor(sums, dtype=torch.float64)

    def accept(self, trial: int, draw: DrawSpec | None) -> Leaders:
        return self._candidates(self._native.accept(trial, self._drawn(draw), torch.get_num_threads()))

    def _candidates(self, result: tuple[list[float], list[int], list[int], float, int]) -> Leaders:
        keys, indices, positions, largest, self.measured = result
        return Leaders(keys, indices, positions, largest)

    def _drawn(self, draw: DrawSpec | None) -> Any:
        if draw is None:
            return self._draw_type("none", 0, 0, 0)
        return self._draw_type(draw.rule, draw.seed, draw.round, draw.trials)


def _address(centres: Tensor) -> tuple[int, int]:
    return centres.data_ptr(), len(centres)

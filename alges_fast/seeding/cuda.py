"""The CUDA kernels' shard (csrc/cuda/seeding.h). A pool on one device is seeded with one copy back to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from alges_fast._native import cuda_kernels
from alges_fast.seeding.ranks import Leaders
from alges_fast.seeding.shard import DrawSpec, Picked, Shard, dtype_name

WARPS = 8  # of a block
ONE_LAUNCH = 32 << 20  # bytes of a pool that stays in the last-level cache, where launches take longer than reading it


def grid(rows: int, resident: int) -> tuple[int, int]:
    """(blocks, rows a warp takes at a time): small tiles while that keeps more warps busy."""
    tile = next((tile for tile in (4, 8, 16) if rows <= tile * WARPS * resident), 32)
    return max(1, min(resident, -(-rows // (tile * WARPS)))), tile


class CudaShard(Shard):
    """The native CUDA kernels: one cooperative launch for a small pool, one launch a pick for a large one."""

    name = "cuda"

    _absorbed = 0

    def prepare(self, centres: int) -> None:
        self._kernels = self.kernels()
        count = self._kernels.cuda_seeding_resident_blocks
        resident = self.on_device(lambda device, _: count(dtype_name(self.points.dtype), device))
        self._blocks, tile = grid(len(self.points), resident)
        self._seeding = self._kernels.CudaSeeding(*self.as_native(), self._blocks, tile)
        self._partials = torch.empty(0, dtype=torch.int64, device=self.points.device)

    def kernels(self) -> Any:
        return cuda_kernels()

    def on_device(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call with the points' device and its current stream as last arguments; torch's device stays as it was."""
        device = self.points.device
        with torch.cuda.device(device):
            return call(*arguments, device.index, torch.cuda.current_stream(device).cuda_stream)

    def absorb(self, centres: Tensor, draw: DrawSpec | None) -> Leaders:
        self._run(centres.contiguous(), draw, None)
        self._absorbed += len(centres)
        largest = self.largest()
        if draw is None:
            return Leaders((), (), (), largest)
        keys, indices, positions = zip(*map(min, self._found(draw.trials)), strict=True)
        return Leaders(keys, indices, positions, largest)

    def potentials(self, centres: Tensor, scale: float) -> Tensor:
        self._tried = self.min_sq_distance.new_empty(len(centres), len(self.points))
        self._run(centres.contiguous(), None, self._tried)
        return (self.weighted(self._tried).double() * scale).round().sum(dim=1)

    def chain(self, draw: DrawSpec, count: int) -> list[int]:
        indices = torch.empty(count, dtype=torch.int64, device=self.points.device)
        self._start_chain(draw, indices)
        picks = [index for index in indices.tolist() if index >= 0]
        self._absorbed += len(picks)
        return picks

    def pick_at_once(self, existing: Tensor, first: str, draw: DrawSpec, count: int) -> Picked:
        # The indices, then the largest D² after the first pass and after the last: one copy brings them all.
        on_device = torch.zeros(count + 2, dtype=torch.int64, device=self.points.device)
        largest = on_device[count:].view(torch.float64)
        if len(existing):
            self._run(existing, draw, None)
            self._absorbed += len(existing)
            largest[0] = self.min_sq_distance.amax()
        elif first == "largest":  # the farthest from the origin
            origin = torch.zeros(1, self.points.shape[1], dtype=self.dtype, device=self.points.device)
            self._run(origin, replace(draw, rule="farthest"), None)
            largest[0] = self.min_sq_distance.amax()
            self.forget()
        else:
            self._run(
                self.points.new_empty(0, self.points.shape[1], dtype=self.dtype), replace(draw, rule="uniform"), None
            )
        self._start_chain(draw, on_device[:count])
        largest[1] = self.min_sq_distance.amax()
        back = on_device.cpu()
        picks = [index for index in back[:count].tolist() if index >= 0]
        self._absorbed += len(picks)
        before, after = back[count:].view(torch.float64).tolist()
        if not picks and first == "largest":  # all points lie at the origin, and no distance is known yet
            after = 0.0
        finite = before < float("inf") and after < float("inf")
        return Picked(on_device[:count], picks, after if finite else float("nan"))

    def _start_chain(self, draw: DrawSpec, indices: Tensor) -> None:
        self._prepare(draw)
        one_launch = self.points.numel() * self.points.element_size() <= ONE_LAUNCH
        self.on_device(self._seeding.chain, indices.data_ptr(), len(indices), self._absorbed, one_launch)

    def _run(self, centres: Tensor, draw: DrawSpec | None, tried: Tensor | None) -> None:
        self._prepare(draw)
        address = 0 if tried is None else tried.data_ptr()
        self.on_device(self._seeding.run, centres.data_ptr(), len(centres), self._absorbed, address)

    def _prepare(self, draw: DrawSpec | None) -> None:
        trials = draw.trials if draw else 1
        # A candidate is three 64-bit words; two steps of a chain take turns.
        words = 2 * self._blocks * trials * self._kernels.cuda_seeding_candidate_bytes // 8
        if len(self._partials) < words:
            self._partials = self._partials.new_empty(words)
        rule, seed, round = (draw.rule, draw.seed, draw.round) if draw else ("none", 0, 0)
        self._seeding.draw(rule, seed, round, trials, self._partials.data_ptr())

    def _found(self, trials: int) -> list[list[tuple[float, int, int]]]:
        """(key, global index, row) of every block, by trial: the smallest is the winner."""
        words = self._partials[: self._blocks * trials * 3].cpu().view(self._blocks, trials, 3)
        keys = words.view(torch.float64)[..., 0]
        return [
            list(zip(keys[:, trial].tolist(), *words[:, trial, 1:].T.tolist(), strict=True)) for trial in range(trials)
        ]

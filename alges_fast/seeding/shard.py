"""A shard of the pool with its running squared distances, over a provider of distances: plain torch (the definition) or
faiss.

`Shard` holds what every provider needs; a provider says how rows are measured against centres. The native pools
(native.py, cuda.py) fuse distance, running minimum and draw into one read of the points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from alges_fast.seeding.race import exponentials
from alges_fast.seeding.ranks import Leaders

CHUNK_BYTES = 1 << 22  # of rows at a time: stays in cache, and bounds what is read from a memory-mapped pool


@dataclass(frozen=True)
class DrawSpec:
    """What to draw from the running squared distances D²."""

    rule: Literal["uniform", "race", "farthest"]  # every point alike; in proportion to D²; the largest D²
    seed: int
    round: int
    trials: int = 1  # independent draws, streams 0 .. trials - 1 of the race


@dataclass(frozen=True)
class Picked:
    """What a provider picked in one go."""

    indices: Tensor  # (count,) int64, global, on the points' device; -1 from where every point lies on a centre
    picks: list[int]  # the same on the host, without those
    largest: float  # D² left, of all points; NaN where one is not finite, now or after the first pass


class Shard(ABC):
    """One shard: (N, D) points, their global indices, and `min_sq_distance` (N,) to the centres absorbed so far.

    `centres` is how many will be measured in all, as far as is known: what a provider prepares must pay by then.
    With `weights` (N,) a point counts so many times in draws and sums. With `nearest` the pool keeps the number of each
    point's nearest centre, in order of absorption, along with the distance.
    """

    name: ClassVar[str]
    _tried: Tensor | None = None
    """(T, N) D² with each of the centres that `potentials` tried, where a provider keeps that."""

    def __init__(
        self,
        points: Tensor,
        index: range | Tensor,
        centres: int,
        weights: Tensor | None = None,
        *,
        nearest: bool = False,
    ) -> None:
        self.points = points
        self.index = index
        self.dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
        self.min_sq_distance = torch.full((len(points),), torch.inf, dtype=self.dtype, device=points.device)
        self.weights = None if weights is None else weights.to(self.dtype)
        self.nearest = torch.full((len(points),), -1, dtype=torch.int32, device=points.device) if nearest else None
        self.prepare(centres)

    def prepare(self, centres: int) -> None:  # noqa: B027  torch alone needs nothing
        """What a provider makes once, before it measures so many centres."""

    def draw(self, draw: DrawSpec | None) -> Leaders:
        """The shard's candidates for every trial, and its largest D². Only "uniform" can pick a point at D² = 0."""
        return self.absorb(self.points.new_empty(0, self.points.shape[1], dtype=self.dtype), draw)

    @abstractmethod
    def absorb(self, centres: Tensor, draw: DrawSpec | None) -> Leaders:
        """Count `centres` (M, D) from now on, then draw.

        A row equal to a centre gets D² = 0 exactly; one that holds NaN or Inf gets one of them.
        """

    @abstractmethod
    def potentials(self, centres: Tensor, scale: float) -> Tensor:
        """(T,) float64: for each trial centre Σ_i round(scale · w_i · min(D²_i, ‖x_i - c_t‖²)), exactly."""

    def accept(self, trial: int, draw: DrawSpec | None) -> Leaders:
        """Absorb one of the centres that `potentials` tried, then draw."""
        assert self._tried is not None
        self.min_sq_distance.copy_(self._tried[trial])
        self._tried = None
        return self.draw(draw)

    def chain(self, draw: DrawSpec, count: int) -> list[int]:
        """Up to `count` picks at once, the first of them what the last draw found, where a provider can: the global
        indices. Of the race `draw` gives the rule, the seed and the round of the first pick."""
        return []

    def pick_at_once(self, existing: Tensor, first: str, draw: DrawSpec, count: int) -> Picked | None:
        """All picks from the first on, of a pool that is one shard, where a provider can do so without the host."""
        return None

    def forget(self) -> None:
        """Forget every centre."""
        self.min_sq_distance.fill_(torch.inf)

    def uniform_order(self, draw: DrawSpec, without: Sequence[int], count: int) -> list[tuple[float, int]]:
        """The first `count` points of a uniform race as (key, global index), without the rows in `without`."""
        keys = exponentials(self.index, draw.seed, draw.round, 0, self.points.device)
        keys[list(without)] = torch.inf
        best = keys.topk(min(count, len(keys) - len(without)), largest=False)
        return sorted((key, self.global_index(row)) for key, row in zip(*map(Tensor.tolist, best), strict=True))

    def as_native(self) -> tuple[int | str, ...]:
        """The shard as the native kernels take it (csrc/seeding_bindings.h); columns are laid side by side."""
        if self.points.stride(1) != 1:
            self.points = self.points.contiguous()
        return (
            self.points.data_ptr(),
            dtype_name(self.points.dtype),
            *self.points.shape,
            self.points.stride(0),
            self.index.start if isinstance(self.index, range) else 0,
            0 if isinstance(self.index, range) else self.index.data_ptr(),
            self.min_sq_distance.data_ptr(),
            0 if self.weights is None else self.weights.data_ptr(),
            0 if self.nearest is None else self.nearest.data_ptr(),
        )

    def rows(self, positions: Sequence[int]) -> Tensor:
        """(T, D) in the dtype distances are computed in; zeros where the position is -1."""
        rows = torch.zeros(len(positions), self.points.shape[1], dtype=self.dtype, device=self.points.device)
        for row, position in enumerate(positions):
            if position >= 0:
                rows[row] = self.points[position]
        return rows

    def global_index(self, position: int) -> int:
        return int(self.index[position])

    def positions(self, indices: Sequence[int]) -> list[int]:
        """The rows of this shard among the global `indices`."""
        if isinstance(self.index, range):
            return [index - self.index.start for index in indices if index in self.index]
        wanted = torch.tensor(indices, dtype=torch.int64, device=self.index.device)
        return [int(row) for row in torch.isin(self.index, wanted).nonzero()[:, 0]]

    def weighted(self, sq_distances: Tensor) -> Tensor:
        return sq_distances if self.weights is None else sq_distances * self.weights

    def largest(self) -> float:
        """D², NaN where one is not finite; 0 of no points."""
        largest = float(self.min_sq_distance.amax()) if len(self.min_sq_distance) else 0.0  # NaN wins over any number
        return largest if largest < float("inf") else float("nan")

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """The points in the dtype of the distances, some megabytes at a time."""
        step = chunk_rows(self.points.shape[1], self.dtype)
        for start in range(0, len(self.points), step):
            rows = slice(start, min(start + step, len(self.points)))
            yield rows, self.points[rows].to(self.dtype)


class MeasuredShard(Shard):
    """A pool over whole rows of distances: a provider measures, and torch keeps the minimum and draws."""

    _absorbed = 0

    @abstractmethod
    def sq_distances(self, centres: Tensor) -> Tensor:
        """(M, N) squared distances, exactly 0 to itself, accurate at least where they are below `min_sq_distance`."""

    def lower(self, centres: Tensor) -> None:
        """Lower `min_sq_distance` to the distance to the nearest of `centres` where that is nearer."""
        for number, centre in enumerate(centres):
            self._keep(slice(None), self.sq_distances(centre[None])[0], self._absorbed + number)

    def _keep(self, rows: slice, distances: Tensor, numbers: Tensor | int) -> None:
        minimum = self.min_sq_distance[rows]
        if self.nearest is not None:
            self.nearest[rows] = torch.where(distances < minimum, numbers, self.nearest[rows])
        torch.minimum(minimum, distances, out=minimum)

    def absorb(self, centres: Tensor, draw: DrawSpec | None) -> Leaders:
        self.lower(centres)
        self._absorbed += len(centres)
        return self.draw(draw)

    def potentials(self, centres: Tensor, scale: float) -> Tensor:
        self._tried = torch.minimum(self.sq_distances(centres), self.min_sq_distance)
        return (self.weighted(self._tried).double() * scale).round().sum(dim=1)

    def draw(self, draw: DrawSpec | None) -> Leaders:
        largest = self.largest()
        if draw is None:
            return Leaders((), (), (), largest)
        winners = [self._winner(self._keys(draw, trial)) for trial in range(draw.trials)]
        keys, indices, positions = zip(*winners, strict=True)
        return Leaders(keys, indices, positions, largest)

    def _keys(self, draw: DrawSpec, trial: int) -> Tensor:
        if draw.rule == "farthest":
            return torch.where(self.min_sq_distance > 0, -self.min_sq_distance.double(), torch.inf)
        weights = self.weighted(self.min_sq_distance).double()
        keys = exponentials(self.index, draw.seed, draw.round, trial, self.points.device)
        return keys if draw.rule == "uniform" else keys / weights  # E / 0 = inf: E is never 0

    def _winner(self, keys: Tensor) -> tuple[float, int, int]:
        if not len(keys) or not bool((keys < torch.inf).any()):
            return float("inf"), -1, -1
        best = keys.nan_to_num(torch.inf, torch.inf, -torch.inf).amin()
        tied = (keys == best).nonzero()[:, 0].tolist()
        index, position = min((self.global_index(row), row) for row in tied)
        return float(best), index, position


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" and the like."""
    return str(dtype).removeprefix("torch.")


def chunk_rows(dimension: int, dtype: torch.dtype) -> int:
    """How many points of this dimension fill CHUNK_BYTES."""
    return max(16, CHUNK_BYTES // (max(dimension, 1) * dtype.itemsize))


class TorchShard(MeasuredShard):
    """Σ (x - c)² in plain torch: no cancellation, any device."""

    name = "torch"

    def sq_distances(self, centres: Tensor) -> Tensor:
        distances = torch.empty(len(centres), len(self.points), dtype=self.dtype, device=self.points.device)
        # Chunks of one shape, the last one filled up: torch may sum in another order for another shape, and a row's
        # distance must not depend on how the pool is cut.
        difference = torch.zeros(
            chunk_rows(centres.shape[1], self.dtype), centres.shape[1], dtype=self.dtype, device=self.points.device
        )
        for rows, chunk in self.chunks():
            for trial, centre in enumerate(centres):
                torch.sub(chunk, centre, out=difference[: len(chunk)])
                distances[trial, rows] = difference.square_().sum(dim=1)[: len(chunk)]
        return distances


class _PairedShard(MeasuredShard):
    """faiss, which measures all pairs, with the points' norms computed once.

    It expands ‖x - c‖² = ‖x‖² - 2 x·c + ‖c‖², which cancels near a centre: where the result is below 1/64 of ‖x‖² +
    ‖c‖² and would lower the minimum, that row is measured again directly. So copies of a centre are at 0 exactly, and
    picks equal the other providers' up to rounding.
    """

    name = "faiss"

    def prepare(self, centres: int) -> None:
        self._faiss = _faiss()
        self._sq_norms = torch.empty_like(self.min_sq_distance)
        for rows, chunk in self.chunks():
            self._sq_norms[rows] = chunk.square().sum(dim=1)

    @abstractmethod
    def _all_pairs(self, centres: Tensor, chunk: Tensor, sq_norms: Tensor) -> Tensor:
        """(M, n) of contiguous centres (M, D) and points (n, D)."""

    def sq_distances(self, centres: Tensor) -> Tensor:
        distances = torch.empty(len(centres), len(self.points), device=self.points.device)
        for rows, chunk in self.chunks():
            block = self._all_pairs(centres.contiguous(), chunk.contiguous(), self._sq_norms[rows])
            for trial, centre in enumerate(centres):
                distances[trial, rows] = mend(
                    block[trial], centre.expand_as(chunk), chunk, self._sq_norms[rows], self.min_sq_distance[rows]
                )
        return distances


class FaissShard(_PairedShard):
    """On the CPU: `pairwise_distances`, and `knn` for many centres at once."""

    def lower(self, centres: Tensor) -> None:
        if len(centres) == 1:
            return super().lower(centres)
        for rows, chunk in self.chunks():
            distances, nearest = self._faiss.knn(chunk.contiguous().numpy(), centres.numpy(), 1)
            numbers = torch.from_numpy(nearest[:, 0])
            mended = mend(
                torch.from_numpy(distances[:, 0]),
                centres[numbers],
                chunk,
                self._sq_norms[rows],
                self.min_sq_distance[rows],
            )
            self._keep(rows, mended, (self._absorbed + numbers).int())
        return None

    def _all_pairs(self, centres: Tensor, chunk: Tensor, sq_norms: Tensor) -> Tensor:
        return torch.from_numpy(self._faiss.pairwise_distances(centres.numpy(), chunk.numpy()))


class FaissGpuShard(_PairedShard):
    """On the GPU: `bfKnn` of all pairs."""

    _resources: ClassVar[Any] = None  # one for the process, which by itself would take 1.5 GiB of scratch

    def prepare(self, centres: int) -> None:
        super().prepare(centres)
        if FaissGpuShard._resources is None:
            FaissGpuShard._resources = self._faiss.StandardGpuResources()
            FaissGpuShard._resources.setTempMemory(64 << 20)

    def _all_pairs(self, centres: Tensor, chunk: Tensor, sq_norms: Tensor) -> Tensor:
        faiss, device = self._faiss, chunk.device
        stream = faiss.cast_integer_to_cudastream_t(torch.cuda.current_stream(device).cuda_stream)
        FaissGpuShard._resources.setDefaultStream(device.index, stream)
        distances = torch.empty(len(centres), len(chunk), device=device)
        parameters = faiss.GpuDistanceParams()
        parameters.metric = faiss.METRIC_L2
        parameters.k = -1  # all pairs
        parameters.dims = chunk.shape[1]
        parameters.vectors = faiss.cast_integer_to_float_ptr(chunk.data_ptr())
        parameters.vectorType = faiss.DistanceDataType_F32
        parameters.vectorsRowMajor = True
        parameters.numVectors = len(chunk)
        parameters.vectorNorms = faiss.cast_integer_to_float_ptr(sq_norms.data_ptr())
        parameters.queries = faiss.cast_integer_to_float_ptr(centres.data_ptr())
        parameters.queryType = faiss.DistanceDataType_F32
        parameters.queriesRowMajor = True
        parameters.numQueries = len(centres)
        parameters.outDistances = faiss.cast_integer_to_float_ptr(distances.data_ptr())
        parameters.device = device.index
        parameters.use_cuvs = False
        faiss.bfKnn(FaissGpuShard._resources, parameters)
        return distances


def mend(distances: Tensor, centres: Tensor, chunk: Tensor, sq_norms: Tensor, minimum: Tensor) -> Tensor:
    """Measure again, directly, the rows whose expanded distance may lower the minimum and has lost digits."""
    scale = (sq_norms + centres.square().sum(dim=1)) / 64
    doubtful = (distances <= torch.minimum(scale, minimum + scale / 64)).nonzero()[:, 0]
    distances[doubtful] = (chunk[doubtful] - centres[doubtful]).square().sum(dim=1)
    return distances


def faiss_has_gpu() -> bool:
    """Whether the installed faiss was built with GPU support."""
    return hasattr(_faiss(), "StandardGpuResources")


def _faiss() -> Any:
    """faiss, imported here alone and after torch: the other order has crashed."""
    import faiss

    return faiss

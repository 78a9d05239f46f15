"""k-means++ and greedy k-centre: which points of a pool to pick, on one device or with the pool cut into shards."""

from __future__ import annotations

import importlib.util
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from alges_fast._native import cpu_kernels, native_status
from alges_fast.seeding.native import NativePool
from alges_fast.seeding.pools import Draw, FaissPool, Pool, TorchPool
from alges_fast.seeding.shards import Shards

logger = logging.getLogger(__name__)

Backend = Literal["faiss", "cpu", "cuda", "torch"]
POOLS: dict[str, type[Pool]] = {"faiss": FaissPool, "cpu": NativePool, "torch": TorchPool}
BACKENDS = ("faiss", "cpu", "cuda", "torch")


@dataclass(frozen=True)
class Seeding:
    """What was picked."""

    indices: Tensor  # (n_clusters,) int64, global, in order of picking; the same on every rank
    min_sq_distance: Tensor  # (N,) D² of this shard's points, `existing` centres counted; float64 for float64 points


def kmeans_plusplus(
    points: Tensor | np.ndarray[Any, Any],
    n_clusters: int,
    *,
    seed: int = 0,
    first: Literal["uniform", "largest"] = "uniform",
    trials: int = 1,
    existing: Tensor | np.ndarray[Any, Any] | None = None,
    backend: Backend | None = None,
    group: dist.ProcessGroup | None = None,
    global_index: Tensor | np.ndarray[Any, Any] | None = None,
) -> Seeding:
    """Pick points one after the other, each with probability proportional to D², its squared distance to the nearest
    centre so far.

    The same seed gives the same picks whatever the backend (up to ties in rounding), the number of threads, and the cut
    into shards.

    Args:
        points: (N, D) float32, bfloat16, float16 or float64; a tensor or an array, also a memory-mapped one, which is
            read in chunks.
        n_clusters: how many to pick, at most the points of all shards.
        seed: 0 to 2^64 - 1.
        first: the first pick is any point alike ("uniform") or the one of largest norm ("largest", as in BADGE). With
            `existing` centres the first pick is drawn like the others.
        trials: above 1, the greedy variant: of so many drawn candidates the one that leaves the smallest Σ D².
        existing: (M, D) centres that count from the start; the same on every rank.
        backend: "cpu" and "cuda" are the native kernels, "faiss" and "torch" run without them. Default: the native
            kernel of the points' device, else faiss, else torch.
        group: a torch.distributed group whose ranks each hold a shard and all make this call. A shard may be empty.
        global_index: (N,) int64, the points' indices in the whole pool. Default: a shard's rows follow those of the
            ranks before it.

    Returns:
        Seeding: the indices and the final D² of this shard's points. No index occurs twice; once every point lies on a
        centre, the rest is filled uniformly.

    Raises:
        ValueError, TypeError: wrong shape, dtype, value or name; n_clusters above the number of points; NaN or Inf in
            the pool; squared distances that overflow. With a group it is raised on every rank.

    References:
        Arthur & Vassilvitskii 2007, "k-means++: the advantages of careful seeding", section 2.2; Ash et al. 2020
        (BADGE).
    """
    return _seed(points, n_clusters, "race", seed, first, trials, existing, backend, group, global_index)


def k_center_greedy(
    points: Tensor | np.ndarray[Any, Any],
    n_clusters: int,
    *,
    seed: int = 0,
    first: Literal["uniform", "largest"] = "uniform",
    existing: Tensor | np.ndarray[Any, Any] | None = None,
    backend: Backend | None = None,
    group: dist.ProcessGroup | None = None,
    global_index: Tensor | np.ndarray[Any, Any] | None = None,
) -> Seeding:
    """Pick points one after the other, each the farthest from the centres so far (ties: lowest index).

    Within a factor 2 of the best covering radius (Gonzalez 1985); Core-set selection is this with the labelled points
    as `existing` (Sener & Savarese 2018). `seed` matters for a uniform first pick, and for filling up once every point
    lies on a centre. Arguments, result and errors are those of `kmeans_plusplus`.
    """
    return _seed(points, n_clusters, "farthest", seed, first, 1, existing, backend, group, global_index)


def choose_backend(requested: str | None, device: str, missing: Mapping[str, str]) -> str:
    """The backend for points on a device ("cpu", "cuda"), where `missing` says which backends cannot serve them and
    why."""
    if requested is not None:
        if requested not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or None, got {requested!r}")
        if requested in missing:
            raise ValueError(f"backend={requested!r} cannot serve these points: {missing[requested]}")
        return requested
    return next(name for name in ("cuda" if device == "cuda" else "cpu", "faiss", "torch") if name not in missing)


def _missing(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Backends that cannot serve points of this device and dtype, with the reason."""
    elsewhere = f"the points are on {device}"
    missing = {"cuda": "the CUDA kernels were not built" if device.type == "cuda" else elsewhere}
    if device.type != "cpu":
        missing["cpu"] = elsewhere
    elif cpu_kernels() is None:
        missing["cpu"] = native_status()
    if device.type != "cpu":
        missing["faiss"] = elsewhere
    elif dtype == torch.float64:
        missing["faiss"] = "faiss computes in float32, the points are float64"
    elif importlib.util.find_spec("faiss") is None:
        missing["faiss"] = "faiss is not installed (pip install faiss-gpu on Linux x86-64, faiss-cpu elsewhere)"
    return missing


@cache
def _say_once(message: str) -> None:
    logger.info(message)


def _seed(
    points: Any,
    n_clusters: int,
    rule: Literal["race", "farthest"],
    seed: int,
    first: str,
    trials: int,
    existing: Any,
    backend: str | None,
    group: dist.ProcessGroup | None,
    global_index: Any,
) -> Seeding:
    shards = Shards(group, points.device if isinstance(points, Tensor) else torch.device("cpu"))
    error: Exception | None = None
    facts: dict[str, Any] = {}
    try:
        points = _as_tensor(points, "points")
        _check_points(points)
        _check_count("n_clusters", n_clusters, 1)
        _check_count("trials", trials, 1)
        _check_count("seed", seed, 0)
        if seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {seed}")
        if first not in ("uniform", "largest"):
            raise ValueError(f"first must be 'uniform' or 'largest', got {first!r}")
        centres = _existing_centres(existing, points)
        index = _check_index(global_index, points)
        missing = _missing(points.device, points.dtype)
        chosen = choose_backend(backend, points.device.type, missing)
        native = "cuda" if points.device.type == "cuda" else "cpu"
        if backend is None and chosen != native:
            _say_once(f"seeding runs with {chosen}: {missing[native]}")
        facts = {
            "D (columns of points)": points.shape[1],
            "dtype of points": points.dtype,
            "n_clusters": n_clusters,
            "seed": seed,
            "first": first,
            "trials": trials,
            "number of existing centres": len(centres),
            "backend": chosen,
            "whether global_index is given": index is not None,
        }
    except (TypeError, ValueError) as problem:
        error = problem
    shards.agree(error, facts)
    sizes: list[int] = shards.gather(len(points))
    total = sum(sizes)
    if n_clusters > total:
        raise ValueError(f"n_clusters must be at most the number of points, {total}, got {n_clusters}")
    start = sum(sizes[: shards.rank])
    own_index = range(start, start + len(points)) if index is None else index
    pool = POOLS[chosen](points, own_index, len(centres) + n_clusters * trials)
    return _picks(pool, shards, total, n_clusters, centres, first, Draw(rule, seed, 0, trials))


def _picks(
    pool: Pool, shards: Shards, total: int, n_clusters: int, existing: Tensor, first: str, draw: Draw
) -> Seeding:
    if len(existing):
        candidates = pool.absorb(existing, draw)
    elif first == "largest":
        origin = torch.zeros(1, pool.points.shape[1], dtype=pool.dtype, device=pool.points.device)
        candidates = pool.absorb(origin, replace(draw, rule="farthest", trials=1))
        pool.forget()
    else:
        candidates = pool.draw(replace(draw, rule="uniform", trials=1))
    picks: list[int] = []
    own: list[int] = []  # rows of this shard that were picked
    while True:
        winners = shards.best(candidates)
        if math.isnan(winners.largest) and (picks or len(existing) or first == "largest"):
            raise ValueError(_why_not_finite(shards, pool))
        if len(picks) == n_clusters:
            break
        if not winners.indices or winners.keys[0] == math.inf:  # every point lies on a centre
            count = n_clusters - len(picks)
            orders = shards.gather(pool.uniform_order(replace(draw, round=len(picks)), own, count))
            picks += [index for _, index in sorted(pair for order in orders for pair in order)[:count]]
            break
        held = zip(candidates.positions, winners.owners, strict=True)
        mine = [row if owner == shards.rank else -1 for row, owner in held]
        centres = shards.rows(pool.rows(mine), winners.owners)
        more = replace(draw, round=len(picks) + 1) if len(picks) + 1 < n_clusters else None
        best = 0
        if len(centres) > 1:
            potentials = shards.sum(pool.potentials(centres, exact_scale(winners.largest, total)))
            best = int(potentials.argmin())
            candidates = pool.accept(best, more)
        else:
            candidates = pool.absorb(centres, more)
        picks.append(winners.indices[best])
        own += [mine[best]] if mine[best] >= 0 else []
    indices = torch.tensor(picks, dtype=torch.int64, device=pool.points.device)
    return Seeding(indices, pool.min_sq_distance)


def exact_scale(largest: float, count: int) -> float:
    """A power of two s: `count` numbers round(s · v), 0 <= v <= largest, add up without rounding in float64, in any
    order."""
    bits = min(51, 53 - math.ceil(math.log2(max(count, 2))))
    return math.ldexp(1.0, min(bits - math.frexp(largest)[1], 1000))


def _why_not_finite(shards: Shards, pool: Pool) -> str:
    spoilt = [
        pool.global_index(rows.start + int(row))
        for rows, chunk in pool.chunks()
        for row in (~chunk.isfinite().all(dim=1)).nonzero()[:1]
    ]
    rows = [row for row in shards.gather(spoilt[0] if spoilt else None) if row is not None]
    if rows:
        return f"points must be finite, got NaN or Inf at index {min(rows)}"
    return f"squared distances between the points overflow {pool.dtype}; scale the points down or pass float64"


def _as_tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray):
        with warnings.catch_warnings():  # a read-only array, such as a memory map: nothing here writes to it
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return torch.from_numpy(value)
    raise TypeError(f"{name} must be a torch.Tensor or a numpy array, got {type(value).__name__}")


def _check_points(points: Tensor) -> None:
    if points.ndim != 2:
        raise ValueError(f"points must have shape (N, D), got {tuple(points.shape)}")
    if points.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(f"points must be float32, bfloat16, float16 or float64, got {points.dtype}")


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _existing_centres(existing: Any, points: Tensor) -> Tensor:
    """(M, D) on the points' device, in the dtype distances are computed in."""
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    if existing is None:
        return torch.empty(0, points.shape[1], dtype=dtype, device=points.device)
    centres = _as_tensor(existing, "existing")
    if centres.ndim != 2 or centres.shape[1] != points.shape[1]:
        raise ValueError(f"existing must have shape (M, {points.shape[1]}), got {tuple(centres.shape)}")
    if not centres.is_floating_point():
        raise TypeError(f"existing must be floating point, got {centres.dtype}")
    if centres.device != points.device:
        raise ValueError(f"existing must be on the points' device, {points.device}, got {centres.device}")
    if not bool(centres.isfinite().all()):
        raise ValueError("existing must be finite, got NaN or Inf")
    return centres.to(dtype).contiguous()


def _check_index(global_index: Any, points: Tensor) -> Tensor | None:
    if global_index is None:
        return None
    index = _as_tensor(global_index, "global_index")
    if index.shape != points.shape[:1] or index.dtype != torch.int64:
        given = f"{index.dtype} of {tuple(index.shape)}"
        raise ValueError(f"global_index must be int64 of shape ({len(points)},), got {given}")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < 2**53:
        raise ValueError("global_index must be between 0 and 2**53 - 1")
    if len(torch.unique(index)) != len(index):
        raise ValueError("global_index must not hold an index twice")
    return index.to(points.device)

"""k-means++ and greedy k-centre: which points of a pool to pick, on one device or with the pool cut into shards."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from alges_fast._native import cpu_kernels, cuda_unavailable, native_status
from alges_fast.backends import check_backend, choose_backend, say_what_was_passed_over
from alges_fast.seeding.checks import as_tensor, check_count, check_index, check_points, digest_of, existing_centres
from alges_fast.seeding.cuda import CudaShard
from alges_fast.seeding.native import NativeShard
from alges_fast.seeding.race import uniforms
from alges_fast.seeding.ranks import Leaders, Ranks, Winners
from alges_fast.seeding.shard import DrawSpec, FaissGpuShard, FaissShard, Picked, Shard, TorchShard, faiss_has_gpu
from alges_fast.seeding.sketched import SketchedRows, SketchedShard

Backend = Literal["faiss", "cpu", "cuda", "torch"]
SHARDS: dict[str, type[Shard]] = {"faiss": FaissShard, "cpu": NativeShard, "cuda": CudaShard, "torch": TorchShard}
BACKENDS = ("faiss", "cpu", "cuda", "torch")
TIED = 1e-6  # relative; potentials this close are one, as those of two points nearest to each other, on every backend
ROUNDS_ABOVE = 10_000  # picks: beyond, one pass over the pool and one exchange between ranks a pick take too long
# Bytes of the whole pool. The rounds measure 3.5 times as many distances: on two cores 12 000 picks of 200 000 x 32
# (26 MB) took 12 s and more against 4.4 s one at a time, 1500 picks of 1 000 000 x 64 (256 MB) 8.8 s either way.
ROUNDS_FROM = 1 << 28
ROUNDS = 5  # enough in Bahmani et al., section 5, with ℓ = n / 2
JOIN_STREAM = 1 << 31  # of the race's random numbers: no trial's


@dataclass(frozen=True)
class Seeding:
    """What was picked."""

    indices: Tensor  # (n_clusters,) int64, global, in order of picking; the same on every rank
    min_sq_distance: Tensor  # (N,) D² of this shard's points, `existing` centres counted; float64 for float64 points


def kmeans_plusplus(
    points: Tensor | np.ndarray[Any, Any] | SketchedRows,
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
        points: (N, D) float32, bfloat16, float16 or float64; a tensor or an array. A memory-mapped one is read as it
            comes and never held whole; the 8-bit codes that spare later reads are, where they fit. Or `SketchedRows`,
            which are never held at all and picked as if they were; for these `first` is "uniform" and `trials` 1, the
            native kernels are needed, and of D² upper bounds are known.
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
        centre, the rest is filled uniformly. Points that differ, but by so little that their squares underflow, are
        picked as at a larger scale.

    Raises:
        ValueError, TypeError: wrong shape, dtype, value or name; n_clusters above the number of points; NaN or Inf in
            the pool; squared distances that overflow. With a group it is raised on every rank.

    References:
        Arthur & Vassilvitskii 2007, "k-means++: the advantages of careful seeding", section 2.2; Ash et al. 2020
        (BADGE).
    """
    if isinstance(points, SketchedRows):
        if (first, trials, backend) not in (("uniform", 1, None), ("uniform", 1, "cpu")):
            raise ValueError("points: of sketched rows the first pick is uniform, trials 1 and the backend cpu")
        return _seed_sketched(points, n_clusters, seed, existing, group, global_index)
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


def _missing(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Backends that cannot serve points of this device and dtype, with the reason."""
    elsewhere = f"the points are on {device}"
    missing = {}
    if device.type != "cuda":
        missing["cuda"] = elsewhere + ("" if torch.cuda.is_available() else ", and there is no CUDA device")
    elif (reason := cuda_unavailable(device.index)) is not None:
        missing["cuda"] = reason
    if device.type != "cpu":
        missing["cpu"] = elsewhere
    elif cpu_kernels() is None:
        missing["cpu"] = native_status()
    if device.type not in ("cpu", "cuda"):
        missing["faiss"] = elsewhere
    elif dtype == torch.float64:
        missing["faiss"] = "faiss computes in float32, the points are float64"
    elif importlib.util.find_spec("faiss") is None:
        missing["faiss"] = "faiss is not installed (pip install faiss-gpu on Linux x86-64, faiss-cpu elsewhere)"
    elif device.type == "cuda" and not faiss_has_gpu():
        missing["faiss"] = "this faiss was built without GPU support"
    return missing


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
    ranks = Ranks(group, points.device if isinstance(points, Tensor) else torch.device("cpu"))
    error: Exception | None = None
    facts: dict[str, Any] = {}
    try:
        points = as_tensor(points, "points")
        check_points(points)
        check_count("n_clusters", n_clusters, 1)
        check_count("trials", trials, 1)
        check_count("seed", seed, 0)
        n_clusters, trials, seed = int(n_clusters), int(trials), int(seed)
        if seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {seed}")
        if first not in ("uniform", "largest"):
            raise ValueError(f"first must be 'uniform' or 'largest', got {first!r}")
        centres = existing_centres(existing, points)
        index = check_index(global_index, points)
        check_backend(backend, BACKENDS)
        preferred = ("cuda" if points.is_cuda else "cpu", "faiss", "torch")
        chosen, passed_over = choose_backend(backend, preferred, _missing(points.device, points.dtype).get)
        say_what_was_passed_over("seeding", chosen, passed_over)
        facts = {
            "D (columns of points)": points.shape[1],
            "dtype of points": points.dtype,
            "n_clusters": n_clusters,
            "seed": seed,
            "first": first,
            "trials": trials,
            "number of existing centres": len(centres),
            "existing (a hash of the values)": "" if group is None else digest_of(centres),
            "backend": chosen,
            "whether global_index is given": index is not None,
        }
    except (TypeError, ValueError) as problem:
        error = problem
    ranks.agree(error, facts)
    sizes: list[int] = ranks.gather(len(points))
    total = sum(sizes)
    if n_clusters > total:
        raise ValueError(f"n_clusters must be at most the number of points, {total}, got {n_clusters}")
    start = sum(sizes[: ranks.rank])
    own_index = range(start, start + len(points)) if index is None else index
    make = FaissGpuShard if chosen == "faiss" and points.is_cuda else SHARDS[chosen]
    draw = DrawSpec(rule, seed, 0, trials)
    rounds = rule == "race" and wants_rounds(n_clusters, total, points.shape[1] * points.element_size())

    def pick(points: Tensor, centres: Tensor) -> tuple[list[int] | Picked, Shard]:
        shard = make(points, own_index, len(centres) + n_clusters * trials, nearest=rounds)
        if ranks.size == 1 and trials == 1 and not rounds:
            picked = shard.pick_at_once(centres, first, draw, n_clusters)
            if picked is not None and math.isnan(picked.largest):
                raise ValueError(_why_not_finite(ranks, shard))
            if picked is not None and len(picked.picks) == n_clusters:
                return picked, shard
            if picked is not None and picked.picks:  # every point lies on a centre
                leaders = shard.draw(replace(draw, round=len(picked.picks)))
                return _picks(shard, ranks, total, n_clusters, draw, leaders, picked.picks), shard
        leaders = _first_draw(shard, ranks, centres, first, draw)
        if not rounds:
            return _picks(shard, ranks, total, n_clusters, draw, leaders, []), shard
        measured = len(centres) or int(first == "largest")  # by the first draw: the existing centres, or the origin
        return _picks_by_rounds(shard, ranks, total, n_clusters, centres, measured, draw, leaders), shard

    picks, shard = pick(points, centres)
    if (factor := _too_small(ranks, shard, centres, picks.largest if isinstance(picks, Picked) else None)) > 1:
        picks, shard = pick(points * factor, centres * factor)
        shard.min_sq_distance.div_(factor).div_(factor)
    if isinstance(picks, Picked):
        return Seeding(picks.indices, shard.min_sq_distance)
    if len(set(picks)) < len(picks):
        raise ValueError("global_index must not hold an index on two ranks")
    indices = torch.tensor(picks, dtype=torch.int64, device=points.device)
    return Seeding(indices, shard.min_sq_distance)


def _seed_sketched(
    points: SketchedRows,
    n_clusters: int,
    seed: int,
    existing: Any,
    group: dist.ProcessGroup | None,
    global_index: Any,
) -> Seeding:
    """As `_seed` over the rows themselves."""
    ranks = Ranks(group, points.device)
    if wants_rounds(n_clusters, sum(ranks.gather(len(points))), 4 * points.shape[1]):
        raise ValueError(f"n_clusters must be at most {ROUNDS_ABOVE} of sketched rows, got {n_clusters}")
    error: Exception | None = None
    facts: dict[str, Any] = {}
    try:
        check_count("n_clusters", n_clusters, 1)
        check_count("seed", seed, 0)
        centres = existing_centres(existing, torch.empty(0, points.shape[1]))
        index = check_index(global_index, points.codes)
        facts = {"D": points.shape[1], "n_clusters": n_clusters, "seed": seed, "existing": digest_of(centres)}
    except (TypeError, ValueError) as problem:
        error = problem
    ranks.agree(error, facts)
    sizes: list[int] = ranks.gather(len(points))
    total = sum(ranks.gather(points.n_open))
    if n_clusters > total:
        raise ValueError(f"n_clusters must be at most the number of points, {total}, got {n_clusters}")
    start = sum(sizes[: ranks.rank])
    shard = SketchedShard(points, torch.arange(start, start + len(points)) if index is None else index)
    draw = DrawSpec("race", int(seed), 0, 1)
    leaders = _first_draw(shard, ranks, centres, "uniform", draw)
    picks = _picks(shard, ranks, total, n_clusters, draw, leaders, [])
    return Seeding(
        torch.tensor(picks, dtype=torch.int64), shard.min_sq_distance.clone()
    )  # the next one goes on with it


def _first_draw(shard: Shard, ranks: Ranks, existing: Tensor, first: str, draw: DrawSpec) -> Leaders:
    if len(existing):
        return shard.absorb(existing, draw)
    if first == "largest":  # the farthest from the origin
        origin = torch.zeros(1, shard.points.shape[1], dtype=shard.dtype, device=shard.points.device)
        leaders = shard.absorb(origin, replace(draw, rule="farthest", trials=1))
        shard.forget()
        if _agreed(ranks, shard, leaders).keys[0] < math.inf:  # else all points lie at the origin
            return leaders
    return replace(shard.draw(replace(draw, rule="uniform", trials=1)), largest=0.0)  # no distance is known yet


def _picks(
    shard: Shard, ranks: Ranks, total: int, n_clusters: int, draw: DrawSpec, leaders: Leaders, picks: list[int]
) -> list[int]:
    """Go on from `picks` and what was drawn after them, one pick at a time, to `n_clusters`."""
    picks = list(picks)
    if ranks.size == 1 and draw.trials == 1:
        _agreed(ranks, shard, leaders)
        chained = shard.chain(replace(draw, round=len(picks)), n_clusters - len(picks))
        if chained:
            picks += chained
            left = replace(draw, round=len(picks)) if len(picks) < n_clusters else None
            leaders = shard.draw(left)
    while True:
        winners = _agreed(ranks, shard, leaders)
        if len(picks) == n_clusters:
            return picks
        if winners.keys[0] == math.inf:  # every point lies on a centre: the next ones in a uniform order
            count = n_clusters - len(picks)
            order = shard.uniform_order(replace(draw, round=len(picks)), shard.positions(picks), count)
            return picks + [index for _, index in sorted(pair for own in ranks.gather(order) for pair in own)[:count]]
        centres = _rows(shard, ranks, leaders, winners)
        following = replace(draw, round=len(picks) + 1) if len(picks) + 1 < n_clusters else None
        best = 0
        if len(centres) > 1:
            potentials = ranks.sum(shard.potentials(centres, exact_scale(winners.largest, total)))
            best = int((potentials <= potentials.amin() * (1 + TIED)).nonzero()[0])
            leaders = shard.accept(best, following)
        else:
            leaders = shard.absorb(centres, following)
        picks.append(winners.indices[best])


def _agreed(ranks: Ranks, shard: Shard, leaders: Leaders) -> Winners:
    winners = ranks.best(leaders)
    if math.isnan(winners.largest):
        raise ValueError(_why_not_finite(ranks, shard))
    return winners


def _rows(shard: Shard, ranks: Ranks, leaders: Leaders, winners: Winners) -> Tensor:
    """(T, D): the winners' rows, on every rank."""
    held = zip(leaders.positions, winners.owners, strict=True)
    return ranks.rows(shard.rows([row if owner == ranks.rank else -1 for row, owner in held]), winners.owners)


def wants_rounds(n_clusters: int, total: int, row_bytes: int) -> bool:
    """Whether to seed by the rounds of k-means‖: they read the pool some ten times instead of once a pick.

    Of the whole pool's size alone, so that every cut of it decides, and picks, alike.
    """
    return n_clusters > ROUNDS_ABOVE and total >= 8 * n_clusters and total * row_bytes >= ROUNDS_FROM


def _picks_by_rounds(
    shard: Shard,
    ranks: Ranks,
    total: int,
    n_clusters: int,
    existing: Tensor,
    measured: int,
    draw: DrawSpec,
    leaders: Leaders,
) -> list[int]:
    """k-means‖ (Bahmani et al. 2012, algorithm 2), with the same picks for any cut of the pool.

    1. C is the first pick, or the existing centres.
    2. A number of times: every point joins C with probability min(1, ℓ D² / Σ D²), ℓ = n / 2.
    3. A candidate weighs as many points as are nearest to it.
    4. k-means++ on the weighted candidates.
    5. Where they were too few, go on one pick at a time.
    """
    picks: list[int] = []
    joined_rows: list[tuple[int, Tensor]] = []  # (global index, row), in the order of absorption
    if not len(existing):
        winners = _agreed(ranks, shard, leaders)
        if winners.keys[0] == math.inf:
            return _picks(shard, ranks, total, n_clusters, draw, leaders, picks)
        row = _rows(shard, ranks, leaders, winners)
        picks, joined_rows = [winners.indices[0]], [(winners.indices[0], row[0])]
        leaders = shard.absorb(row, None)
    for round in range(ROUNDS):
        winners = _agreed(ranks, shard, replace(leaders, keys=(), indices=(), positions=()))
        if winners.largest == 0:
            break
        scaled = shard.min_sq_distance.double() * exact_scale(winners.largest, total)
        potential = ranks.sum(scaled.round().sum())
        chance = uniforms(shard.index, draw.seed, round, JOIN_STREAM, scaled.device)
        joined = (chance * potential < n_clusters / 2 * scaled).nonzero()[:, 0].tolist()
        own = ([shard.global_index(row) for row in joined], shard.rows(joined).cpu())
        new = sorted(
            (pair for indices, rows in ranks.gather(own) for pair in zip(indices, rows, strict=True)),
            key=lambda pair: pair[0],
        )
        joined_rows += new
        if new:
            leaders = shard.absorb(torch.stack([row for _, row in new]).to(shard.points.device), None)
    assert shard.nearest is not None
    counts = torch.bincount(shard.nearest.long(), minlength=measured + len(joined_rows)).double()
    weights = ranks.sum(counts)[measured:]

    rows = torch.stack([row.to(shard.points.device) for _, row in joined_rows])
    wanted = min(n_clusters, len(joined_rows))
    index = torch.tensor([index for index, _ in joined_rows], device=rows.device)
    small = type(shard)(rows, index, len(existing) + wanted * draw.trials, weights)
    start = existing if len(existing) else rows[:1]
    again = small.absorb(start, replace(draw, round=len(picks)))
    picks = _picks(small, Ranks(None, rows.device), total, wanted, draw, again, picks)

    number = {index: at for at, (index, _) in enumerate(joined_rows)}
    shard.forget()
    leaders = shard.absorb(
        torch.cat([existing, rows[[number[index] for index in picks]]]), replace(draw, round=len(picks))
    )
    return _picks(shard, ranks, total, n_clusters, draw, leaders, picks)


def exact_scale(largest: float, count: int) -> float:
    """A power of two s: `count` numbers round(s · v), 0 <= v <= largest, add up without rounding in float64, in any
    order."""
    bits = 51 - math.ceil(math.log2(max(count, 2)))  # 51, not 53: native code rounds by adding 1.5 · 2^52
    return math.ldexp(1.0, min(bits - math.frexp(largest)[1], 1000))


def _why_not_finite(ranks: Ranks, shard: Shard) -> str:
    spoilt = [
        shard.global_index(rows.start + int(row))
        for rows, chunk in shard.chunks()
        for row in (~chunk.isfinite().all(dim=1)).nonzero()[:1]
    ]
    rows = [row for row in ranks.gather(spoilt[0] if spoilt else None) if row is not None]
    if rows:
        return f"points must be finite, got NaN or Inf at index {min(rows)}"
    return f"squared distances between the points overflow {shard.dtype}; scale the points down or pass float64"


def _too_small(ranks: Ranks, shard: Shard, existing: Tensor, largest: float | None) -> float:
    """The power of two to multiply the points by where they differ by so little that squares underflow; else 1.

    Their distances are then 0 as if they were identical. It shows when all of them are, so only then is the pool read.
    `largest` is the largest distance where it is known already.
    """
    if largest is None:
        largest = float(shard.min_sq_distance.amax()) if len(shard.points) else 0.0
    if not all(ranks.gather(largest == 0)):
        return 1.0
    extremes = [torch.stack([chunk.amin(dim=0), chunk.amax(dim=0)]).double().cpu() for _, chunk in shard.chunks()]
    bounds = torch.stack([two for own in ranks.gather(extremes) for two in own])
    low, high = bounds[:, 0].amin(dim=0), bounds[:, 1].amax(dim=0)
    spread = max((high - low).tolist(), default=0.0)
    limits = torch.finfo(shard.dtype)
    if not 0 < spread < math.sqrt(limits.tiny):
        return 1.0
    largest = max(float(bounds.abs().amax()), float(existing.abs().amax()) if len(existing) else 0.0)
    room = (math.frexp(limits.max)[1] - 8) // 2 - math.frexp(largest)[1]  # squares and their sums stay finite
    return math.ldexp(1.0, max(0, min(-math.frexp(spread)[1], room)))

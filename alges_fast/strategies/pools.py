"""What strategies do with a pool: run the model over this process's share of it, and tell the other processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from alges_fast.pool import PoolEmbeddings, embed_pool
from alges_fast.seeding import Seeding
from alges_fast.strategies.base import Picks, Query


def embed(query: Query, outputs: Sequence[str]) -> PoolEmbeddings:
    """Outputs of `pixel_gradients` for this process's share of the unlabelled frames, on the CPU."""
    return embed_pool(
        query.model,
        query.unlabelled,
        output=outputs,
        batch_size=query.batch_size,
        device=query.device,
        precision=query.precision,
        channels_last=True,
        progress=False,
        group=query.group,
    )


def seed_batch(
    query: Query,
    points: Tensor,
    positions: Tensor,
    choose: Callable[..., Seeding],
    *,
    embed_seconds: float,
    existing: Tensor | None = None,
) -> Picks:
    """Pick a batch by seeding, the points staying on the process that made them.

    Args:
        query: what is asked.
        points, positions: this process's points (N, D), and where they are in `query.unlabelled`, (N,).
        choose: `kmeans_plusplus` or `k_center_greedy`.
        embed_seconds: what making the points took.
        existing: (M, D) points that count as picked from the start.
    """
    start = time.perf_counter()
    seeding = choose(
        points.to(query.device),
        query.n,
        seed=query.stream_seed("seeding"),
        existing=None if existing is None else existing.to(query.device),
        group=query.group,
        global_index=positions,
    )
    ids = query.unlabelled_ids()
    picks = tuple(ids[i] for i in seeding.indices.tolist())
    return Picks(picks, embed_seconds=embed_seconds, seeding_seconds=time.perf_counter() - start)


def pick_highest(query: Query, score: Callable[[], Mapping[str, float]]) -> Picks:
    """The n frames of highest score; of equal ones the earlier in the pool.

    Args:
        query: what is asked.
        score: makes id -> score of this process's share.
    """
    start = time.perf_counter()
    share = dict(score())
    embedded = time.perf_counter()
    ids = query.unlabelled_ids()
    found = {name: value for part in gather(query, share) for name, value in part.items()}
    scores = {name: found[name] for name in ids}
    picks = sorted(ids, key=lambda name: -scores[name])[: query.n]
    return Picks(tuple(picks), scores, embed_seconds=embedded - start, seeding_seconds=time.perf_counter() - embedded)


def gather(query: Query, value: Any) -> list[Any]:
    """The value of every process of the query, in order of rank."""
    if query.group is None:
        return [value]
    parts: list[Any] = [None] * dist.get_world_size(query.group)
    dist.all_gather_object(parts, value, group=query.group)
    return parts

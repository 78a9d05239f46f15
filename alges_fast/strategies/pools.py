"""What strategies do with a pool: run the model over this process's share of it, and tell the other processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alges_fast.errors import UserError
from alges_fast.last_layer import LastLayer
from alges_fast.pool import PRECISIONS, PoolEmbeddings, embed_pool
from alges_fast.seeding import Seeding
from alges_fast.strategies.base import Picks, Pool, Query

T = TypeVar("T")


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


def pick_highest(query: Query, scores: Mapping[str, float], *, embed_seconds: float) -> Picks:
    """The n frames of highest score; of equal ones the earlier in the pool.

    Args:
        query: what is asked.
        scores: id -> score of this process's frames.
        embed_seconds: what making the scores took.

    Raises:
        UserError: a score is not finite.
    """
    start = time.perf_counter()
    found = {name: value for part in gather(query, dict(scores)) for name, value in part.items()}
    in_order = {name: found[name] for name in query.unlabelled_ids()}
    if broken := [name for name, score in in_order.items() if not math.isfinite(score)]:
        raise UserError(
            f"the model makes a NaN or infinity of {len(broken)} of the pool's frames, first of {broken[0]!r}: "
            "train at a lower --lr or in another --precision"
        )
    picks = sorted(in_order, key=lambda name: -in_order[name])[: query.n]
    return Picks(tuple(picks), in_order, embed_seconds, time.perf_counter() - start)


def gather(query: Query, value: Any) -> list[Any]:
    """The value of every process of the query, in order of rank."""
    if query.group is None:
        return [value]
    parts: list[Any] = [None] * dist.get_world_size(query.group)
    dist.all_gather_object(parts, value, group=query.group)
    return parts


def share(query: Query) -> range:
    """Positions in `query.unlabelled` of the frames that are this process's: every world_size-th."""
    if query.group is None:
        return range(len(query.unlabelled))
    return range(dist.get_rank(query.group), len(query.unlabelled), dist.get_world_size(query.group))


@torch.no_grad()
def forward(query: Query, pool: Pool, positions: range, run: Callable[[Tensor], T]) -> Iterator[T]:
    """run(images (B, 3, S, S)) for these items of a pool, batch by batch, in the query's precision."""
    dtype = PRECISIONS[query.precision or "32-true"]
    for start in range(0, len(positions), query.batch_size):
        images = torch.stack([pool[i][1] for i in positions[start : start + query.batch_size]]).to(query.device)
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            found = run(images.contiguous(memory_format=torch.channels_last))
        yield found  # outside: the caller's work is not the model's


@torch.no_grad()
def last_layer_inputs(query: Query, pool: Pool, positions: range) -> Iterator[tuple[Tensor, Tensor]]:
    """(features (B, d, *spatial), logits) of these items of a pool, batch by batch."""
    layer = LastLayer.find(query.model, pool[0][1].unsqueeze(0).to(query.device))
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = args[0] if args else kwargs["input"]
        seen.append(features.movedim(-1, 1) if isinstance(module, nn.Linear) else features)

    handle = layer.module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for logits in forward(query, pool, positions, query.model):
            yield seen.pop(), logits
    finally:
        handle.remove()

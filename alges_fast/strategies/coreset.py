"""Core-set: frames that leave no frame of the pool far from a labelled one."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alges_fast.last_layer import LastLayer
from alges_fast.seeding import k_center_greedy
from alges_fast.strategies.base import Picks, Pool, Query, Strategy, register_strategy
from alges_fast.strategies.pools import seed_batch


@register_strategy
class Coreset(Strategy):
    """Greedy k-centre over the last layer's input, averaged over the frame; the labelled frames count from the start.

    The features are Sener & Savarese's, who take what enters the last fully connected layer. Here that layer is a
    convolution, and the average over pixels makes one vector of d numbers a frame, whatever the architecture.
    """

    name: ClassVar[str] = "coreset"
    reference: ClassVar[str] = (
        "Sener & Savarese, Active learning for convolutional neural networks, ICLR 2018, Algorithm 1"
    )

    def query(self, query: Query) -> Picks:
        start = time.perf_counter()
        rank, size = (0, 1) if query.group is None else (dist.get_rank(query.group), dist.get_world_size(query.group))
        share = range(rank, len(query.unlabelled), size)
        points = mean_features(query, query.unlabelled, share)
        existing = mean_features(query, query.labelled, range(len(query.labelled))) if len(query.labelled) else None
        return seed_batch(
            query,
            points,
            torch.tensor(share, dtype=torch.int64),
            k_center_greedy,
            embed_seconds=time.perf_counter() - start,
            existing=existing,
        )


@torch.no_grad()
def mean_features(query: Query, pool: Pool, positions: range) -> Tensor:
    """(len(positions), d) float32 on the CPU: the last layer's input, averaged over pixels, of these items."""
    example = query.unlabelled[0][1].unsqueeze(0).to(query.device)
    with _autocast(query):
        layer = LastLayer.find(query.model, example)
    means: list[Tensor] = []

    def keep_mean(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = args[0] if args else kwargs["input"]
        channel = features.ndim - 1 if isinstance(module, nn.Linear) else 1
        means.append(features.float().movedim(channel, 1).flatten(2).mean(2).cpu())

    handle = layer.module.register_forward_pre_hook(keep_mean, with_kwargs=True)
    try:
        for start in range(0, len(positions), query.batch_size):
            images = torch.stack([pool[i][1] for i in positions[start : start + query.batch_size]]).to(query.device)
            with _autocast(query):
                query.model(images.contiguous(memory_format=torch.channels_last))
    finally:
        handle.remove()
    weight = layer.module.weight
    assert isinstance(weight, Tensor)
    empty = torch.empty(0, weight.shape[1])
    return torch.cat([empty, *means])


def _autocast(query: Query) -> torch.autocast:
    types = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    kind = torch.device(query.device).type
    return torch.autocast(kind, dtype=types.get(query.precision or ""), enabled=query.precision in types)

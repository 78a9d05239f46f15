"""Core-set: frames that leave no frame of the pool far from a labelled one."""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from torch import Tensor

from alges_fast.seeding import k_center_greedy
from alges_fast.strategies.base import Picks, Pool, Query, Strategy, register_strategy
from alges_fast.strategies.pools import last_layer_inputs, seed_batch, share


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
        mine = share(query)
        labelled = range(len(query.labelled))
        return seed_batch(
            query,
            mean_features(query, query.unlabelled, mine),
            torch.tensor(mine, dtype=torch.int64),
            k_center_greedy,
            existing=mean_features(query, query.labelled, labelled) if labelled else None,
            embed_seconds=time.perf_counter() - start,
        )


def mean_features(query: Query, pool: Pool, positions: range) -> Tensor:
    """(len(positions), d) float32 on the CPU: the last layer's input, averaged over pixels, of these items."""
    batches = last_layer_inputs(query, pool, positions)
    means = [features.float().flatten(2).mean(2).cpu() for features, _ in batches]
    # A process without a share still says how many columns its shard has.
    return torch.cat(means) if means else mean_features(query, pool, range(1))[:0]

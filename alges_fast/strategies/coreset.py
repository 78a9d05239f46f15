"""Core-set: candidates that leave none of the pool far from a labelled one."""

from __future__ import annotations

from typing import ClassVar

from alges_fast.seeding import k_center_greedy
from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.embedding import embed_features, mean_features
from alges_fast.strategies.rating import by_seeding
from alges_fast.strategies.registry import register_strategy


@register_strategy
class Coreset(Strategy):
    """Greedy k-centre over the last layer's input, averaged over pixels; what is labelled counts from the start.

    The features are Sener & Savarese's, who take what enters the last fully connected layer. Here that layer is a
    convolution, and the average over pixels makes one vector of d numbers a candidate, whatever the architecture.
    """

    name: ClassVar[str] = "coreset"
    reference: ClassVar[str] = (
        "Sener & Savarese, Active learning for convolutional neural networks, ICLR 2018, Algorithm 1"
    )

    def rate(self, query: Query) -> Rating:
        others = query.labelled_elsewhere()
        found = embed_features(query)
        existing = mean_features(query, others) if others else None
        return by_seeding(query, found.outputs["mean"], found.positions, k_center_greedy, existing=existing)

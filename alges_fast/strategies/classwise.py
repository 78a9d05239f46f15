"""ALGES with every class its due: rows of Eq. 4 balanced, and paid for by predicted effort."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from alges_fast.seeding import kmeans_plusplus
from alges_fast.strategies.alges import weighted
from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.effort import predicted_costs
from alges_fast.strategies.embedding import Embedded, embed, gathered
from alges_fast.strategies.rating import by_seeding
from alges_fast.strategies.registry import register_strategy


@register_strategy
class AlgesImageBalanced(Strategy):
    """k-means++ over Eq. 4 with class k's row divided by its mean norm over all candidates.

    The gradients of large classes are large in most candidates; so divided, every class has as much to say.
    """

    name: ClassVar[str] = "alges-img-balanced"
    reference: ClassVar[str] = "alges_fast: Aklilu & Yeung 2022, Eq. 4, with rows of mean norm 1"
    weighs_classes: ClassVar[bool] = True

    def rate(self, query: Query) -> Rating:
        found = embed(query, ("image",))
        points = self.points(query, found).flatten(1)
        return by_seeding(query, points, found.positions, kmeans_plusplus, scores=lambda: points.norm(dim=1))

    def points(self, query: Query, found: Embedded) -> Tensor:
        """(N, K, ...) of this process's candidates."""
        rows = found.outputs["image"]
        return weighted(balanced(rows, mean_norms(query, found.positions, rows)), query.class_weights)


@register_strategy
class AlgesEffort(AlgesImageBalanced):
    """`alges-img-balanced` over predicted cost: every embedding is divided by the square root of what its candidate is
    expected to cost an annotator.

    The cost is the predicted outline inside the candidate, the changes of class of the argmax map, plus a quarter of
    its side, which drawing nothing costs (see `predicted_costs`). With points so scaled a candidate's squared norm, its
    D² to a centre at 0, is divided by its cost; between two candidates both are scaled. That is the definition, and not
    D² over cost, in which a centre's cost would play no part.
    """

    name: ClassVar[str] = "alges-effort"
    reference: ClassVar[str] = "alges_fast; cost-aware as Mackowiak et al., CEREALS, BMVC 2018"

    def points(self, query: Query, found: Embedded) -> Tensor:
        rows = super().points(query, found)
        cost = predicted_costs(query, found.positions)
        return rows / cost.sqrt().to(rows).view(-1, *[1] * (rows.ndim - 1))


def mean_norms(query: Query, positions: Tensor, rows: Tensor) -> Tensor:
    """(K,) float64: the mean norm of each class's row over all candidates of all processes.

    Summed in the query's order on every process: the same bit for bit however the pool is cut.
    """
    _, norms = gathered(query, positions, rows.flatten(2).double().norm(dim=2))
    return norms.mean(0)


def balanced(rows: Tensor, mean_norms: Tensor) -> Tensor:
    """(N, K, ...) with row k divided by the k-th mean norm; a class without gradient anywhere keeps its zeros."""
    scale = torch.where(mean_norms > 0, 1 / mean_norms, 0).to(rows.dtype)
    return rows * scale.view(-1, *[1] * (rows.ndim - 2))

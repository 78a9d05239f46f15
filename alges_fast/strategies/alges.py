"""ALGES: k-means++ over the last layer's gradients against the model's own prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from alges_fast.seeding import kmeans_plusplus
from alges_fast.seeding.sketched import SketchedRows
from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.embedded_rows import embed_rows
from alges_fast.strategies.embedding import on_every_process
from alges_fast.strategies.rating import by_seeding
from alges_fast.strategies.registry import register_strategy


class _Alges(Strategy):
    weighs_classes: ClassVar[bool] = True

    def rate(self, query: Query) -> Rating:
        positions, points = self.points(query)

        def of_centres(asked: Query) -> tuple[Tensor, Tensor]:
            positions, points = self.points(asked)
            return positions, points[range(len(points))]

        centres = on_every_process(query, query.centres, of_centres) if query.centres else None
        return by_seeding(query, points, positions, kmeans_plusplus, existing=centres, scores=True)

    def points(self, query: Query) -> tuple[Tensor, Tensor | SketchedRows]:
        """Positions and points (N, D) of this process's candidates."""
        found = embed_rows(query, self.embedding)
        weights = query.class_weights

        def scale(rows: Tensor, at: Tensor) -> Tensor:
            return weighted(rows, weights)

        n_classes = 1 if found.sketched is None else found.sketched.norm_sums.shape[1]
        of_classes = torch.ones(n_classes) if weights is None else torch.tensor(weights)
        return found.positions, found.points(scale, of_classes.double(), None)


@register_strategy
class AlgesImage(_Alges):
    """A candidate is the gradient of its mean loss: (K, d) numbers, one row per class (Eq. 4)."""

    name: ClassVar[str] = "alges-img"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Eq. 4 and Algorithm 1"
    embedding: ClassVar[str] = "image"


@register_strategy
class AlgesSemantic(_Alges):
    """A candidate is K numbers: the pixels' gradient norms, summed by predicted class (Eq. 6 and its text)."""

    name: ClassVar[str] = "alges-sem"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Eq. 6 and Algorithm 1"
    embedding: ClassVar[str] = "semantic"


@register_strategy
class AlgesSemanticVector(_Alges):
    """A candidate is (K, d) numbers: per class the summed gradient of the pixels predicted as it (Eq. 6 as printed)."""

    name: ClassVar[str] = "alges-sem-vector"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Eq. 6 as printed"
    embedding: ClassVar[str] = "semantic_vector"


def weighted(embeddings: Tensor, class_weights: Sequence[float] | None) -> Tensor:
    """(N, K, ...) embeddings with row k times the k-th weight.

    Raises:
        ValueError: not K weights, or a negative one.
    """
    if class_weights is None:
        return embeddings
    weights = torch.as_tensor(class_weights, dtype=embeddings.dtype)
    if weights.shape != embeddings.shape[1:2]:
        raise ValueError(f"class_weights: expected {embeddings.shape[1]}, one per class, got {len(class_weights)}")
    if not bool((weights >= 0).all() and weights.isfinite().all() and weights.any()):
        raise ValueError(f"class_weights must be finite, not negative and not all 0, got {list(class_weights)}")
    return embeddings * weights.view(-1, *[1] * (embeddings.ndim - 2))

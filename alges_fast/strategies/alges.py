"""ALGES: k-means++ over the last layer's gradients against the model's own prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from alges_fast.seeding import kmeans_plusplus
from alges_fast.seeding.sketched import SketchedRows
from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.embedded_rows import EmbeddedRows, embed_rows
from alges_fast.strategies.embedding import on_every_process
from alges_fast.strategies.rating import by_seeding
from alges_fast.strategies.registry import register_strategy


class Alges(Strategy):
    """k-means++ over gradient embeddings, of which a subclass may balance the classes' rows and count the cost."""

    weighs_classes: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = ()
    """What `cost` needs to know of a candidate."""

    def rate(self, query: Query) -> Rating:
        found = embed_rows(query, self.embedding, self.beside)
        norms = self.row_norms(query, found)

        def of_centres(asked: Query) -> tuple[Tensor, Tensor]:
            known = embed_rows(asked, self.embedding, self.beside)
            points = self.points(asked, known, norms)
            return known.positions, points[range(len(points))]

        centres = on_every_process(query, query.centres, of_centres) if query.centres else None
        points = self.points(query, found, norms)
        return by_seeding(query, points, found.positions, kmeans_plusplus, existing=centres, scores=True)

    def points(self, query: Query, found: EmbeddedRows, norms: Tensor | None) -> Tensor | SketchedRows:
        """(N, D) of this process's candidates, each class's row over its norm (K,)."""
        weights, cost = query.class_weights, self.cost(query, found)

        def scale(rows: Tensor, at: Tensor) -> Tensor:
            rows = weighted(balanced(rows, norms), weights)
            return rows if cost is None else rows.div_(cost[at].view(-1, *[1] * (rows.ndim - 1)))  # balanced made them

        of_classes = balanced(torch.ones(1, found.n_classes, dtype=torch.float64), norms)
        return found.points(scale, weighted(of_classes, weights)[0], None if cost is None else 1 / cost)

    def row_norms(self, query: Query, found: EmbeddedRows) -> Tensor | None:
        """(K,) float64 that classes' rows are divided by; None for 1 each."""
        return None

    def cost(self, query: Query, found: EmbeddedRows) -> Tensor | None:
        """(N,) float32 that every balanced embedding is divided by; None for 1 each."""
        return None


@register_strategy
class AlgesImage(Alges):
    """A candidate is the gradient of its mean loss: (K, d) numbers, one row per class (Eq. 4)."""

    name: ClassVar[str] = "alges-img"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Eq. 4 and Algorithm 1"
    embedding: ClassVar[str] = "image"


@register_strategy
class AlgesSemantic(Alges):
    """A candidate is K numbers: the pixels' gradient norms, summed by predicted class (Eq. 6 and its text)."""

    name: ClassVar[str] = "alges-sem"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Eq. 6 and Algorithm 1"
    embedding: ClassVar[str] = "semantic"


@register_strategy
class AlgesSemanticVector(Alges):
    """A candidate is (K, d) numbers: per class the summed gradient of the pixels predicted as it (Eq. 6 as printed)."""

    name: ClassVar[str] = "alges-sem-vector"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Eq. 6 as printed"
    embedding: ClassVar[str] = "semantic_vector"


def balanced(rows: Tensor, norms: Tensor | None) -> Tensor:
    """(N, K, ...) with row k divided by the k-th norm; a class without gradient anywhere keeps its zeros."""
    if norms is None:
        return rows
    scale = torch.where(norms > 0, 1 / norms, 0).to(rows.dtype)
    return rows * scale.view(-1, *[1] * (rows.ndim - 2))


def weighted(embeddings: Tensor, class_weights: Sequence[float] | None) -> Tensor:
    """(N, K, ...) embeddings with row k times the k-th weight. Raises ValueError: not K weights, or a negative one."""
    if class_weights is None:
        return embeddings
    weights = torch.as_tensor(class_weights, dtype=embeddings.dtype)
    if weights.shape != embeddings.shape[1:2]:
        raise ValueError(f"class_weights: expected {embeddings.shape[1]}, one per class, got {len(class_weights)}")
    if not bool((weights >= 0).all() and weights.isfinite().all() and weights.any()):
        raise ValueError(f"class_weights must be finite, not negative and not all 0, got {list(class_weights)}")
    return embeddings * weights.view(-1, *[1] * (embeddings.ndim - 2))

"""ALGES: k-means++ over the last layer's gradients against the model's own prediction."""

from __future__ import annotations

import time
from typing import ClassVar

from alges_fast.seeding import kmeans_plusplus
from alges_fast.strategies.base import Picks, Query, Strategy, register_strategy
from alges_fast.strategies.pools import embed, seed_batch


class _Alges(Strategy):
    output: ClassVar[str]

    def query(self, query: Query) -> Picks:
        start = time.perf_counter()
        found = embed(query, (self.output,))
        seconds = time.perf_counter() - start
        return seed_batch(query, found.values.flatten(1), found.positions, kmeans_plusplus, embed_seconds=seconds)


@register_strategy
class AlgesImage(_Alges):
    """A frame is the gradient of its mean loss: (K, d) numbers, one row per class (Eq. 4)."""

    name: ClassVar[str] = "alges-img"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Eq. 4 and Algorithm 1"
    output: ClassVar[str] = "image"


@register_strategy
class AlgesSemantic(_Alges):
    """A frame is K numbers: the pixels' gradient norms, summed by predicted class (Eq. 6 and its text)."""

    name: ClassVar[str] = "alges-sem"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Eq. 6 and Algorithm 1"
    output: ClassVar[str] = "semantic"


@register_strategy
class AlgesSemanticVector(_Alges):
    """A frame is (K, d) numbers: per class the summed gradient of the pixels predicted as it (Eq. 6 as printed)."""

    name: ClassVar[str] = "alges-sem-vector"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Eq. 6 as printed"
    output: ClassVar[str] = "semantic_vector"

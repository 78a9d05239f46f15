"""Uncertainty sampling: the frames whose pixels the model is least sure of, averaged over the frame.

The sums over pixels come from the fused op, so class probabilities are never stored.
"""

from __future__ import annotations

import time
from typing import ClassVar

from torch import Tensor

from alges_fast.strategies.base import Picks, Query, Strategy, register_strategy
from alges_fast.strategies.pools import embed, pick_highest


class _Uncertainty(Strategy):
    output: ClassVar[str]

    def query(self, query: Query) -> Picks:
        start = time.perf_counter()
        found = embed(query, (self.output, "class_pixels"))
        means = found.values.double() / found.outputs["class_pixels"].sum(1).clamp(min=1)
        scores = dict(zip(map(str, found.ids), self.uncertainty(means).tolist(), strict=True))
        return pick_highest(query, scores, embed_seconds=time.perf_counter() - start)

    def uncertainty(self, mean: Tensor) -> Tensor:
        """(N,) score, higher is less sure, from (N,) means over pixels of `output`."""
        return mean


@register_strategy
class Entropy(_Uncertainty):
    """Largest mean entropy of the predicted class, in nats."""

    name: ClassVar[str] = "entropy"
    reference: ClassVar[str] = "Shannon 1948; Settles 2009, section 3.1; ALGES, appendix B"
    output: ClassVar[str] = "entropy"


@register_strategy
class Margin(_Uncertainty):
    """Smallest mean difference between the two largest probabilities; the score is one minus it."""

    name: ClassVar[str] = "margin"
    reference: ClassVar[str] = "Scheffer et al. 2001; ALGES, appendix B"
    output: ClassVar[str] = "margin"

    def uncertainty(self, mean: Tensor) -> Tensor:
        return 1 - mean


@register_strategy
class LeastConfidence(_Uncertainty):
    """Smallest mean of the largest probability; the score is one minus it."""

    name: ClassVar[str] = "least-confidence"
    reference: ClassVar[str] = "Lewis & Gale 1994; ALGES, appendix B"
    output: ClassVar[str] = "confidence"

    def uncertainty(self, mean: Tensor) -> Tensor:
        return 1 - mean

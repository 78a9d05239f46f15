"""Uncertainty sampling: the candidates whose pixels the model is least sure of, on average.

The sums over pixels come from the fused op, so class probabilities are never stored.
"""

from __future__ import annotations

from typing import ClassVar

from alges_fast.strategies.base import ByCandidate, Query, Rating, Strategy
from alges_fast.strategies.embedding import embed
from alges_fast.strategies.rating import by_score
from alges_fast.strategies.registry import register_strategy


class _Uncertainty(Strategy):
    output: ClassVar[str]
    of_certainty: ClassVar[bool] = False
    """Whether `output` is large where the model is sure."""

    def rate(self, query: Query) -> Rating:
        found = embed(query, (self.output, "class_pixels"))
        sums, class_pixels = found.outputs[self.output], found.outputs["class_pixels"]
        mean = sums.double() / class_pixels.sum(1).clamp(min=1)
        return by_score(query, ByCandidate(query.candidates, found.positions, 1 - mean if self.of_certainty else mean))


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
    of_certainty: ClassVar[bool] = True


@register_strategy
class LeastConfidence(_Uncertainty):
    """Smallest mean of the largest probability; the score is one minus it."""

    name: ClassVar[str] = "least-confidence"
    reference: ClassVar[str] = "Lewis & Gale 1994; ALGES, appendix B"
    output: ClassVar[str] = "confidence"
    of_certainty: ClassVar[bool] = True

"""Power strategies: candidates drawn at random, in proportion to what the model is unsure of.

Where the n largest scores are taken, a batch is of one kind; noise of ln score + Gumbel(0, 1) makes it a weighted draw
(Kirsch et al. 2023).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.embedding import embed, named
from alges_fast.strategies.gumbel import gumbels, log
from alges_fast.strategies.rating import by_score
from alges_fast.strategies.registry import register_strategy


class _Power(Strategy):
    outputs: ClassVar[tuple[str, ...]]

    def rate(self, query: Query) -> Rating:
        found = embed(query, self.outputs)
        keys = log(self.mass(query, found.outputs)) + gumbels(query, found.positions)
        return by_score(query, named(query, found.positions, keys))

    @abstractmethod
    def mass(self, query: Query, outputs: Mapping[str, Tensor]) -> Tensor:
        """(N,) weight of every candidate of this process."""


@register_strategy
class PowerEntropy(_Power):
    """Largest ln S + G, S the summed entropy of a candidate's pixels."""

    name: ClassVar[str] = "power-entropy"
    reference: ClassVar[str] = "Kirsch et al., Stochastic batch acquisition, TMLR 2023 (power acquisition)"
    outputs: ClassVar[tuple[str, ...]] = ("entropy",)

    def mass(self, query: Query, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["entropy"]

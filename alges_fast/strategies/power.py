"""Power strategies: candidates drawn at random, in proportion to what the model is unsure of, or holds for foreground.

Where the n largest scores are taken, a batch is of one kind; noise of ln score + Gumbel(0, 1) makes it a weighted draw
(Kirsch et al. 2023). S_ic = Σ over pixels of p_c H(p) is what class c has in the entropy of candidate i.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from alges_fast.strategies.base import ByCandidate, Query, Rating, Strategy
from alges_fast.strategies.embedding import embed, gather
from alges_fast.strategies.gumbel import gumbels, log
from alges_fast.strategies.rating import by_score
from alges_fast.strategies.registry import register_strategy

PRIOR = 0.01
"""Added to every class's share: one not labelled yet counts a hundred times, not infinitely often."""


class _Power(Strategy):
    outputs: ClassVar[tuple[str, ...]]

    def rate(self, query: Query) -> Rating:
        found = embed(query, self.outputs)
        keys = log(self.mass(query, found.outputs)) + gumbels(query, found.positions)
        return by_score(query, ByCandidate(query.candidates, found.positions, keys))

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


@register_strategy
class BalancedEntropy(_Power):
    """Largest ln Σ_c S_c / (q_c + 0.01) + G, q_c the share of class c among labelled pixels.

    Uncertainty about a class counts the more the less of it is labelled. Where the labels' shares are not known, they
    are what the model predicts of the pool.
    """

    name: ClassVar[str] = "balanced-entropy"
    reference: ClassVar[str] = "alges_fast: power entropy of Kirsch et al. 2023, weighed by inverse class shares"
    outputs: ClassVar[tuple[str, ...]] = ("class_entropy", "class_mass")

    def mass(self, query: Query, outputs: Mapping[str, Tensor]) -> Tensor:
        shares = query.class_shares
        if shares is None:
            shares = predicted_shares(query, outputs["class_mass"])
        return (outputs["class_entropy"].double() / (shares.double().cpu() + PRIOR)).sum(1)


@register_strategy
class ForegroundRandom(_Power):
    """A random draw in proportion to predicted foreground: the probability mass of all classes but the background.

    The background is the class with the largest predicted share over the pool.
    """

    name: ClassVar[str] = "foreground-random"
    reference: ClassVar[str] = "Lüth et al., nnActive, 2025: hardly a method beats random draws aware of the foreground"
    outputs: ClassVar[tuple[str, ...]] = ("class_mass",)

    def mass(self, query: Query, outputs: Mapping[str, Tensor]) -> Tensor:
        mass = outputs["class_mass"].double()
        background = int(predicted_shares(query, mass).argmax())
        foreground = [k for k in range(mass.shape[1]) if k != background]
        return mass[:, foreground].sum(1)


def predicted_shares(query: Query, class_mass: Tensor) -> Tensor:
    """(K,) float64: each class's share of the probability mass over the whole pool, on every process.

    class_mass: (N, K), this process's.
    """
    total = torch.stack(gather(query, class_mass.double().sum(0))).sum(0)
    return total / total.sum()

"""DEAL: frames on which a learned branch expects the network to be wrong."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast.labels import UNLABELLED
from alges_fast.losses import labelled_cross_entropy
from alges_fast.models.deal import DealModel
from alges_fast.strategies.base import ByCandidate, Query, Rating, Strategy
from alges_fast.strategies.embedding import by_candidate, by_cell, forward
from alges_fast.strategies.rating import by_score
from alges_fast.strategies.registry import register_strategy

N_BINS = 10


class _Deal(Strategy):
    reference: ClassVar[str] = "Xie et al., DEAL: difficulty-aware active learning for semantic segmentation, ACCV 2020"
    trains_own_model: ClassVar[bool] = True

    def prepare_model(self, model: nn.Module, n_classes: int, seed: int) -> nn.Module:
        return DealModel(model, n_classes, seed)

    def loss(self, model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        """Cross-entropy plus binary cross-entropy of difficulty against error; an ignored pixel is no error."""
        logits, difficulty_logits = model(images)
        wrong = (logits.argmax(1) != masks) & (masks != UNLABELLED)
        of_difficulty = F.binary_cross_entropy_with_logits(difficulty_logits, wrong.to(difficulty_logits.dtype))
        return labelled_cross_entropy(logits, masks) + of_difficulty

    def rate(self, query: Query) -> Rating:
        model = query.model
        if not isinstance(model, DealModel):
            raise ValueError(
                f"strategy: {self.name!r} needs a model that was trained for it, one with DEAL's difficulty branch "
                "(alges_fast.models.deal.DealModel)"
            )
        found = [by_cell(query, self.score, *maps).cpu() for maps in forward(query, model.difficulty)]
        return by_score(query, ByCandidate(query.candidates, *by_candidate(query, found)))

    @abstractmethod
    def score(self, logits: Tensor, difficulty: Tensor) -> Tensor:
        """(B,) from logits (B, K, S, S) and difficulty (B, S, S)."""


@register_strategy
class Deal(_Deal):
    """Largest difficulty entropy: that of the histogram of a frame's difficulty, ten bins from its least to its most.

    The variant that ALGES compares against.
    """

    name: ClassVar[str] = "deal"

    def score(self, logits: Tensor, difficulty: Tensor) -> Tensor:
        return difficulty_entropy(difficulty)


@register_strategy
class DealScore(_Deal):
    """Largest difficulty score: the mean over pixels of the prediction's entropy times the difficulty."""

    name: ClassVar[str] = "deal-score"

    def score(self, logits: Tensor, difficulty: Tensor) -> Tensor:
        log_p = logits.float().log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1)
        return (entropy * difficulty).flatten(1).mean(1)


def difficulty_entropy(difficulty: Tensor) -> Tensor:
    """Entropy (B,), in nats, of each map's histogram over N_BINS bins from its least to its largest value.

    NaN for a map that has one.
    """
    values = difficulty.float().flatten(1)
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    position = (values - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    bins = (position * N_BINS).long().clamp(0, N_BINS - 1)
    counts = torch.zeros(len(values), N_BINS, dtype=torch.int64, device=values.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins))
    shares = counts.double() / values.shape[1]
    return -shares.xlogy(shares).sum(1).masked_fill(high[:, 0].isnan(), math.nan)

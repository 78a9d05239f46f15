"""ALGES as its released code computes it, which is not what the paper says: to see how much of Table 1 comes from that.

Written from a description of that code's behaviour, not from its text. The random numbers are this package's own, so
picks agree with it in distribution, not one by one.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from alges_fast.errors import UserError
from alges_fast.models.batch_norm import has_statistics_of_one_value
from alges_fast.seeding import Seeding, kmeans_plusplus
from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.embedding import (
    by_candidate,
    by_cell,
    embed,
    forward,
    gathered,
    last_layer_inputs,
    trained_model,
)
from alges_fast.strategies.rating import by_seeding
from alges_fast.strategies.registry import register_strategy


@register_strategy
class AlgesImageReleased(Strategy):
    """`alges-img` with what the released code does.

    - Gradients are never set to zero: the embedding of frame i is of the sum of the gradients of frames 0 to i, in the
      pool's order. (Here the sum starts at zero; there, at the last training step's gradient.)
    - Of that (K, d) sum only the norm of each class's row is kept: K numbers.
    - The network is in train mode and sees one frame at a time, so batch normalisation uses that frame's statistics.
    - The seeding is scikit-learn's greedy k-means++ with random_state 0, every round and every seed.
    """

    name: ClassVar[str] = "alges-img-released"
    reference: ClassVar[str] = "the code released with Aklilu & Yeung 2022"

    def rate(self, query: Query) -> Rating:
        changed = replace(query, model=with_batch_statistics(trained_model(query)), batch_size=1)
        model = trained_model(query)
        if next(forward(changed, lambda images: has_statistics_of_one_value(model, images)), False):
            why = "takes the statistics of one frame, and this model's deepest layers have one value of it"
            raise UserError(f"{self.name} {why}: raise --image_size, or leave it out")
        found = embed(changed, ("image",))
        positions, gradients = gathered(query, found.positions, found.outputs["image"].double().flatten(2))
        return _released_seeding(query, positions, gradients.cumsum(0).norm(dim=2).float())


@register_strategy
class AlgesSemanticReleased(Strategy):
    """`alges-sem` with what the released code does.

    - A pixel counts with (Σ p² + K (1 - 2 p_max)) ‖z‖²: the paper's ‖r‖² has K where it should have 1 (and so can be
      negative), and neither factor is under a root.
    - The seeding is scikit-learn's greedy k-means++ with random_state 0, every round and every seed.
    """

    name: ClassVar[str] = "alges-sem-released"
    reference: ClassVar[str] = "the code released with Aklilu & Yeung 2022"

    def rate(self, query: Query) -> Rating:
        found = []
        for features, logits in last_layer_inputs(query):
            _check_resolution(features, logits)
            found.append(by_cell(query, _summed_by_class, features, logits))
        return _released_seeding(query, *gathered(query, *by_candidate(query, found)))


def with_batch_statistics(model: nn.Module) -> nn.Module:
    """A copy whose batch normalisation uses the batch's own statistics in eval mode too, as it does in train mode."""
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return changed


def _check_resolution(features: Tensor, logits: Tensor) -> None:
    if features.ndim != 4 or features.shape[2:] != logits.shape[2:]:
        raise UserError(
            f"alges-sem-released is defined for a last convolution at full resolution, and this model's works on "
            f"{tuple(features.shape[2:])} for logits of {tuple(logits.shape[2:])}: leave it out, or use a U-Net"
        )


def _summed_by_class(features: Tensor, logits: Tensor) -> Tensor:
    """(B, K) float32 on the CPU: the released weight of each pixel, summed over the pixels predicted as each class."""
    n_classes = logits.shape[1]
    probability = logits.float().softmax(1)
    largest, predicted = probability.max(1)
    weight = (probability**2).sum(1) + n_classes * (1 - 2 * largest)
    weight *= (features.float() ** 2).sum(1)
    # Not scatter_add: a GPU's adds in the order in which threads arrive.
    sums = [weight.masked_fill(predicted != k, 0).sum((1, 2), dtype=torch.float64) for k in range(n_classes)]
    return torch.stack(sums, 1).float().cpu()


def _released_seeding(query: Query, positions: Tensor, points: Tensor) -> Rating:
    """scikit-learn's number of local trials; every process holds all points."""

    def choose(points: Tensor, n: int, *, seed: int, **options: Any) -> Seeding:
        return kmeans_plusplus(points, n, **{**options, "seed": 0, "trials": 2 + int(math.log(n))})

    return by_seeding(replace(query, group=None), points, positions, choose)

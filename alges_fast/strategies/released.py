"""ALGES as its released code computes it, which is not what the paper says: to see how much of Table 1 comes from that.

Written from a description of that code's behaviour, not from its text. The random numbers are this package's own, so
picks agree with it in distribution, not one by one.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from alges_fast.errors import UserError
from alges_fast.seeding import kmeans_plusplus
from alges_fast.strategies.base import Picks, Query, Strategy, register_strategy
from alges_fast.strategies.pools import embed, gather, last_layer_inputs, share


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

    def query(self, query: Query) -> Picks:
        start = time.perf_counter()
        try:
            found = embed(replace(query, model=with_batch_statistics(query.model), batch_size=1), ("image",))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            why = "takes the statistics of one frame, and this model's deepest layers have one value of it"
            raise UserError(f"{self.name} {why}: raise --image_size, or leave it out") from error
        rows = zip(found.positions.tolist(), found.values.double().flatten(2), strict=True)
        gradients = dict(row for part in gather(query, dict(rows)) for row in part.items())
        running_sum = torch.stack([gradients[position] for position in sorted(gradients)]).cumsum(0)
        return _released_seeding(query, running_sum.norm(dim=2).float(), start)


@register_strategy
class AlgesSemanticReleased(Strategy):
    """`alges-sem` with what the released code does.

    - A pixel counts with (Σ p² + K (1 - 2 p_max)) ‖z‖²: the paper's ‖r‖² has K where it should have 1 (and so can be
      negative), and neither factor is under a root.
    - The seeding is scikit-learn's greedy k-means++ with random_state 0, every round and every seed.
    """

    name: ClassVar[str] = "alges-sem-released"
    reference: ClassVar[str] = "the code released with Aklilu & Yeung 2022"

    def query(self, query: Query) -> Picks:
        start = time.perf_counter()
        mine = share(query)
        parts = [_summed_by_class(z, logits) for z, logits in last_layer_inputs(query, query.unlabelled, mine)]
        rows = zip(mine, torch.cat(parts) if parts else torch.empty(0), strict=True)
        embeddings = dict(row for part in gather(query, dict(rows)) for row in part.items())
        return _released_seeding(query, torch.stack([embeddings[i] for i in sorted(embeddings)]), start)


def with_batch_statistics(model: nn.Module) -> nn.Module:
    """A copy whose batch normalisation uses the batch's own statistics in eval mode too, as it does in train mode."""
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return changed


def _summed_by_class(features: Tensor, logits: Tensor) -> Tensor:
    """(B, K) float32 on the CPU: the released weight of each pixel, summed over the pixels predicted as each class."""
    if features.ndim != 4 or features.shape[2:] != logits.shape[2:]:
        raise UserError(
            f"alges-sem-released is defined for a last convolution at full resolution, and this model's works on "
            f"{tuple(features.shape[2:])} for logits of {tuple(logits.shape[2:])}: leave it out, or use a U-Net"
        )
    n_classes = logits.shape[1]
    probability = logits.float().softmax(1)
    largest, predicted = probability.max(1)
    weight = (probability**2).sum(1) + n_classes * (1 - 2 * largest)
    weight *= (features.float() ** 2).sum(1)
    # Not scatter_add: a GPU's adds in the order in which threads arrive.
    sums = [weight.masked_fill(predicted != k, 0).sum((1, 2), dtype=torch.float64) for k in range(n_classes)]
    return torch.stack(sums, 1).float().cpu()


def _released_seeding(query: Query, points: Tensor, start: float) -> Picks:
    """scikit-learn's number of local trials; every process holds all points."""
    embedded = time.perf_counter()
    seeding = kmeans_plusplus(points.to(query.device), query.n, seed=0, trials=2 + int(math.log(query.n)))
    ids = query.unlabelled_ids()
    picks = tuple(ids[i] for i in seeding.indices.tolist())
    return Picks(picks, embed_seconds=embedded - start, seeding_seconds=time.perf_counter() - embedded)

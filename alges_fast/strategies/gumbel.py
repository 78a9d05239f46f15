"""Weighted draws as an order. Of candidates ranked by ln w + G, G ~ Gumbel(0, 1), the first is i with probability
w_i / Σ w, and so on without replacement (Gumbel-top-k; Kool et al. 2019).

A candidate's G is named by its place in the whole pool, so it is the same on whatever process holds the candidate, and
there is one per candidate and round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alges_fast.seeding.race import exponentials
from alges_fast.strategies.base import Query

SMALLEST = torch.finfo(torch.float64).tiny


def gumbels(query: Query, positions: Tensor) -> Tensor:
    """(N,) float64, one for every position in `query.candidates` ((N,) int64), fixed by the query's seed and round."""
    return -exponentials(positions, query.stream_seed("gumbel"), 0, 0, torch.device("cpu")).log()


def log(mass: Tensor) -> Tensor:
    """ln of a mass in float64; of 0 the smallest number's, which no noise lifts over that of another mass."""
    return mass.double().clamp(min=SMALLEST).log()

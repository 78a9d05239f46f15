"""What labelling a candidate is expected to cost: predicted outline, and a quarter of its side."""

from __future__ import annotations

import torch
from torch import Tensor

from alges_fast.last_layer import OUTLINE
from alges_fast.strategies.base import Query
from alges_fast.strategies.embedding import Embedded
from alges_fast.windows import Window

IDLE = 0.25
"""Of the side: the cost of a candidate in which nothing is to be drawn, which must be looked at too."""


def predicted_costs(query: Query, found: Embedded) -> Tensor:
    """(n,) float64: predicted outline plus a quarter of the side of the candidates of which `OUTLINE` was embedded.

    Outline and side, (height + width) / 2, are in pixels of the image for windows, in pixels of the logits for frames:
    where all frames have one size that is the same but for a factor.
    """
    outlines, sides = predicted_outlines(query, found).unbind(1)
    return outlines + IDLE * sides


def predicted_outlines(query: Query, found: Embedded) -> Tensor:
    """(n, 2) float64: how long the boundaries between predicted classes are inside each candidate, and its side."""
    measured = found.outputs[OUTLINE].double()
    if query.regions is None:
        return measured
    windows = [query.candidates[at] for at in found.positions.tolist()]
    sides = torch.tensor([(w.width + w.height) / 2 for w in windows if isinstance(w, Window)]).double()
    return measured * (sides / measured[:, 1])[:, None]

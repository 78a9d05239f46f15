"""What labelling a candidate is expected to cost: predicted outline, and a quarter of its side."""

from __future__ import annotations

import torch
from torch import Tensor

from alges_fast.last_layer import OUTLINE
from alges_fast.strategies.base import Query
from alges_fast.strategies.embedded_rows import EmbeddedRows
from alges_fast.strategies.embedding import Embedded
from alges_fast.windows import GridWindows, Window

IDLE = 0.25
"""Of the side: the cost of a candidate in which nothing is to be drawn, which must be looked at too."""


def predicted_costs(query: Query, found: Embedded | EmbeddedRows) -> Tensor:
    """(n,) float64: predicted outline plus a quarter of the side of the candidates of which `OUTLINE` was embedded.

    Outline and side, (height + width) / 2, are in pixels of the image for windows, in pixels of the logits for frames:
    where all frames have one size that is the same but for a factor.
    """
    outlines, sides = predicted_outlines(query, found).unbind(1)
    return outlines + IDLE * sides


def predicted_outlines(query: Query, found: Embedded | EmbeddedRows) -> Tensor:
    """(n, 2) float64: how long the boundaries between predicted classes are inside each candidate, and its side."""
    measured = found.outputs[OUTLINE].double()
    if query.regions is None:
        return measured
    return measured * (_sides(query, found.positions) / measured[:, 1])[:, None]


def _sides(query: Query, positions: Tensor) -> Tensor:
    """(n,) float64: (height + width) / 2 of the candidates there, which are windows."""
    windows = query.candidates
    if isinstance(windows, GridWindows):
        return windows.widths_and_heights()[positions].sum(1).double() / 2
    some = [windows[at] for at in positions.tolist()]
    return torch.tensor([(w.width + w.height) / 2 for w in some if isinstance(w, Window)]).double()

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
    costs = torch.empty(len(found.positions), dtype=torch.float64)
    for start in range(0, len(costs), _PIECE):
        outlines, sides = predicted_outlines(query, found, slice(start, start + _PIECE)).unbind(1)
        costs[start : start + _PIECE] = outlines + IDLE * sides
    return costs


_PIECE = 1 << 18
"""Candidates at a time: of millions, whole arrays of float64 would take more than what is kept of their embeddings."""


def predicted_outlines(query: Query, found: Embedded | EmbeddedRows, some: slice = slice(None)) -> Tensor:
    """(n, 2) float64: how long the boundaries between predicted classes are inside some candidates, and their sides."""
    measured = found.outputs[OUTLINE][some].double()
    if query.regions is None:
        return measured
    return measured * (_sides(query, found.positions[some]) / measured[:, 1])[:, None]


def _sides(query: Query, positions: Tensor) -> Tensor:
    """(n,) float64: (height + width) / 2 of the candidates there, which are windows."""
    windows = query.candidates
    if isinstance(windows, GridWindows):
        return windows.sides(positions)
    some = [windows[at] for at in positions.tolist()]
    return torch.tensor([(w.width + w.height) / 2 for w in some if isinstance(w, Window)]).double()

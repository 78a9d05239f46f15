"""What labelling a candidate is expected to cost: predicted outline, and a quarter of its side."""

from __future__ import annotations

import torch
from torch import Tensor

from alges_fast.last_layer import logits_of
from alges_fast.strategies.base import Query
from alges_fast.strategies.embedding import by_candidate, forward, trained_model
from alges_fast.windows import Window, cell_boxes, class_changes

IDLE = 0.25
"""Of the side: the cost of a candidate in which nothing is to be drawn, which must be looked at too."""


def predicted_costs(query: Query, positions: Tensor) -> Tensor:
    """(n,) float64 for this process's candidates at these positions: predicted outline plus a quarter of the side.

    Outline and side, (height + width) / 2, are in pixels of the image for windows, in pixels of the logits for frames:
    where all frames have one size that is the same but for a factor.
    """
    outlines, sides = predicted_outlines(query, positions).unbind(1)
    return outlines + IDLE * sides


def predicted_outlines(query: Query, positions: Tensor) -> Tensor:
    """(n, 2) float64: how long the class boundaries of the argmax map are inside each candidate, and its side."""
    model, regions, rows = trained_model(query), query.regions or (1, 1), []
    for logits in forward(query, lambda images: logits_of(model(images))):
        changes = class_changes(logits.argmax(1), regions).double().cpu()
        sides = [(len(ys) + len(xs)) / 2 for ys, xs in cell_boxes(logits.shape[2:], regions)]
        measured = torch.stack([changes, torch.tensor(sides).double().expand_as(changes)], 2)
        rows.append(measured if query.regions is not None else measured[:, 0])
    known, found = by_candidate(query, rows)
    found = found[torch.isin(known, positions)]
    candidates = [query.candidates[at] for at in positions.tolist()]
    if query.regions is not None:
        image_sides = [(c.width + c.height) / 2 for c in candidates if isinstance(c, Window)]
        found = found * (torch.tensor(image_sides).double() / found[:, 1])[:, None]
    return found

"""What labelling a query's candidates is expected to take, for budgets that are counted in outline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from alges_fast.last_layer import OUTLINE
from alges_fast.strategies import Candidate, Query
from alges_fast.strategies.base import ByCandidate, frames_of
from alges_fast.strategies.effort import IDLE, predicted_outlines
from alges_fast.strategies.embedding import embed, gathered


@dataclass(frozen=True)
class PredictedEffort:
    """In pixels of the images.

    Attributes:
        outlines: candidate -> how long the boundaries between predicted classes are in it.
        costs: candidate -> that and a quarter of its side, which a look at it takes, rounded up.
        average_frame: cost of a whole frame, on average over the candidates'.
    """

    outlines: Mapping[Candidate, float]
    costs: Mapping[Candidate, Any]
    average_frame: float

    def of_frames(self, n: float) -> int:
        """What n average frames cost, rounded down: never more than all of them."""
        return math.floor(n * self.average_frame)


def predict_effort(query: Query) -> PredictedEffort:
    """Of every process's candidates, the same on every process.

    Where the query keeps its scores and its strategy has predicted the outlines, they are read and not predicted again.

    Args:
        query: with a model, and the sizes of the candidates' frames.

    Raises:
        ValueError: no model, or what `embed_pool` raises.
    """
    if query.model is None:
        raise ValueError("budget: outlines are predicted by a trained model, got None")
    found = embed(query, (OUTLINE,))
    positions, measured = gathered(query, found.positions, predicted_outlines(query, found))
    frames = frames_of(query.candidates)
    image_sides = {frame: sum(query.sizes[frame]) / 2 for frame in frames}
    outlines, sides = measured.unbind(1)
    if query.regions is None:  # in pixels of the logits so far
        of_images = torch.tensor([image_sides[query.candidates[at]] for at in positions.tolist()]).double()
        outlines, sides = outlines * of_images / sides, of_images
    costs = (outlines + IDLE * sides).ceil().clamp(min=1).long()
    average = float(outlines.mean()) if frames else 0.0
    return PredictedEffort(
        outlines=ByCandidate(query.candidates, positions, outlines),
        costs=ByCandidate(query.candidates, positions, costs),
        average_frame=average * query.n_cells + IDLE * sum(image_sides.values()) / max(len(frames), 1),
    )

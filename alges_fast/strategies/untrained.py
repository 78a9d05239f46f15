"""Features for strategies that need no trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from alges_fast.strategies.base import Query
from alges_fast.strategies.embedding import embed_features, gathered, mean_features


def mean_points(query: Query) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions (n,) and mean features (n, d) of every process's candidates, and (m, d) of what else is labelled, if
    anything: of a frozen encoder where the query has them, else what enters the last layer."""
    looked, others = over_features(query), query.labelled_elsewhere()
    found = embed_features(looked)
    positions, points = gathered(query, found.positions, found.outputs["mean"])
    return positions, points, mean_features(looked, others) if others else None


def over_features(query: Query) -> Query:
    """The query over the maps of a frozen encoder, with a head that reads them in the model's place, so that what
    enters the last layer are the maps; where it has no such maps, the query as it is.

    Raises:
        ValueError: neither features nor a model.
    """
    maps: Any = query.features
    if maps is None:
        if query.model is None:
            raise ValueError("features: there is no trained model, so this strategy needs maps of a frozen encoder")
        return query
    example = maps[0]
    channels = torch.as_tensor(example[1] if isinstance(example, tuple) else example).shape[0]
    head = nn.Conv2d(channels, 2, 1).to(query.device).eval()
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    further: Mapping[str, Any] = {name: value for name, value in query.embedding.items() if name != "last_layer"}
    return replace(query, pool=maps, model=head, transform=None, precision=None, embedding=further)

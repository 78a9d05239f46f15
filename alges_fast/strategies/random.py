"""Random baselines: uniform, and balanced over videos."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from alges_fast.strategies.base import Query, Rating, Strategy, Taken, frames_at
from alges_fast.strategies.rating import by_order
from alges_fast.strategies.registry import register_strategy
from alges_fast.windows import frame_of


@register_strategy
class Random(Strategy):
    """Candidates drawn uniformly without replacement."""

    name: ClassVar[str] = "random"
    reference: ClassVar[str] = "the baseline of every active-learning study"
    needs_model: ClassVar[bool] = False
    reads_images: ClassVar[bool] = False

    def rate(self, query: Query) -> Rating:
        free = _unlabelled(query)
        generator = np.random.default_rng(query.stream_seed("random"))
        return by_order(query, free[torch.from_numpy(generator.permutation(len(free)))])


@register_strategy
class StratifiedRandom(Strategy):
    """Candidates drawn so that every video has, as nearly as it can, as many labelled ones as any other.

    One at a time: of the videos with the fewest labelled candidates that still have an unlabelled one, one drawn
    uniformly; of its unlabelled candidates, one drawn uniformly. With no videos known this is `random`.
    """

    name: ClassVar[str] = "stratified-random"
    reference: ClassVar[str] = "Lüth et al., nnActive, 2025: few strategies beat a random baseline made with care"
    needs_model: ClassVar[bool] = False
    reads_images: ClassVar[bool] = False

    def rate(self, query: Query) -> Rating:
        generator = np.random.default_rng(query.stream_seed("stratified-random"))
        of_video: dict[str, list[int]] = {}
        free = _unlabelled(query)
        for at, frame in zip(free.tolist(), frames_at(query.candidates, free), strict=True):
            of_video.setdefault(query.videos.get(frame, ""), []).append(at)
        unlabelled = {video: [these[i] for i in generator.permutation(len(these))] for video, these in of_video.items()}
        n_labelled = Counter(query.videos.get(frame_of(item), "") for item in query.labelled)
        order: list[int] = []
        while unlabelled:
            fewest = min(n_labelled[video] for video in unlabelled)
            behind = [video for video in unlabelled if n_labelled[video] == fewest]
            video = behind[generator.integers(len(behind))]
            order.append(unlabelled[video].pop())
            n_labelled[video] += 1
            if not unlabelled[video]:
                del unlabelled[video]
        return by_order(query, torch.tensor(order, dtype=torch.int64))


def _unlabelled(query: Query) -> Tensor:
    """(n,) int64 ascending: which candidates are not labelled."""
    return (~Taken(query.labelled).among(query.candidates)[1]).nonzero()[:, 0]

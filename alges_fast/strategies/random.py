"""Random baselines: uniform, and balanced over videos."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np

from alges_fast.strategies.base import Candidate, Query, Rating, Strategy, frame_of
from alges_fast.strategies.rating import by_order
from alges_fast.strategies.registry import register_strategy


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
        return by_order(query, [free[i] for i in generator.permutation(len(free))])


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
        found: dict[str, list[Candidate]] = {}
        for candidate in _unlabelled(query):
            found.setdefault(_video(query, candidate), []).append(candidate)
        unlabelled = {video: [these[i] for i in generator.permutation(len(these))] for video, these in found.items()}
        n_labelled = Counter(_video(query, candidate) for candidate in query.labelled)
        order: list[Candidate] = []
        while unlabelled:
            fewest = min(n_labelled[video] for video in unlabelled)
            behind = [video for video in unlabelled if n_labelled[video] == fewest]
            video = behind[generator.integers(len(behind))]
            order.append(unlabelled[video].pop())
            n_labelled[video] += 1
            if not unlabelled[video]:
                del unlabelled[video]
        return by_order(query, order)


def _unlabelled(query: Query) -> list[Candidate]:
    labelled = frozenset(query.labelled)
    return [candidate for candidate in query.candidates if candidate not in labelled]


def _video(query: Query, candidate: Candidate) -> str:
    return query.videos.get(frame_of(candidate), "")

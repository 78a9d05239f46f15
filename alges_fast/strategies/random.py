"""Random baselines: uniform over frames, and balanced over videos."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np

from alges_fast.strategies.base import Picks, Query, Strategy, register_strategy


@register_strategy
class Random(Strategy):
    """Frames drawn uniformly without replacement."""

    name: ClassVar[str] = "random"
    reference: ClassVar[str] = "the baseline of every active-learning study"

    def query(self, query: Query) -> Picks:
        ids = query.unlabelled_ids()
        generator = np.random.default_rng(query.stream_seed("random"))
        return Picks(tuple(ids[i] for i in generator.permutation(len(ids))[: query.n]))


@register_strategy
class StratifiedRandom(Strategy):
    """Frames drawn so that every video has, as nearly as it can, as many labelled frames as any other.

    One frame at a time: of the videos with the fewest labelled frames that still have an unlabelled one, one drawn
    uniformly; of its unlabelled frames, one drawn uniformly. With no videos known this is `random` over frames.
    """

    name: ClassVar[str] = "stratified-random"
    reference: ClassVar[str] = "Lüth et al., nnActive, 2025: few strategies beat a random baseline made with care"

    def query(self, query: Query) -> Picks:
        generator = np.random.default_rng(query.stream_seed("stratified-random"))
        frames: dict[str, list[str]] = {}
        for name in query.unlabelled_ids():
            frames.setdefault(query.videos.get(name, ""), []).append(name)
        unlabelled = {video: [names[i] for i in generator.permutation(len(names))] for video, names in frames.items()}
        n_labelled = Counter(query.videos.get(name, "") for name, _ in query.labelled)
        picks: list[str] = []
        while len(picks) < query.n:
            fewest = min(n_labelled[video] for video in unlabelled)
            candidates = [video for video in unlabelled if n_labelled[video] == fewest]
            video = candidates[generator.integers(len(candidates))]
            picks.append(unlabelled[video].pop())
            n_labelled[video] += 1
            if not unlabelled[video]:
                del unlabelled[video]
        return Picks(tuple(picks))

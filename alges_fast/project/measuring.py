"""What a training can say of itself: which frames are held out, Dice with its interval, and what choosing saved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alges_fast.project.asking import strategy_of
from alges_fast.project.folder import Project
from alges_fast.random_streams import stream_seed
from alges_fast.training.metrics import class_dice, mean_dice

ENOUGH = 10
"""Annotated frames from which on a fifth is held out."""
TELLING = 5
"""Held-out frames from which on an interval means something."""
RANDOM = ("random", "stratified-random")
"""Strategies whose frames stand for the pool."""
RESAMPLES = 1000


@dataclass(frozen=True)
class HeldOut:
    """Which annotated frames measure. whole_videos: whether none of their videos has a frame in training."""

    ids: tuple[str, ...]
    whole_videos: bool


def hold_out(videos: Mapping[str, str], before: Collection[str]) -> HeldOut | None:
    """A fifth of the frames, by video where that can be; None where there are too few.

    Args:
        videos: annotated frame -> its video.
        before: what was held out before; it stays so, for the curve to be one.
    """
    if len(videos) < ENOUGH:
        return None
    target = len(videos) // 5
    groups: dict[str, list[str]] = {}
    for id, video in videos.items():
        groups.setdefault(video, []).append(id)
    held = {videos[id] for id in before if id in videos}
    chosen: list[str] = []
    for video in sorted(groups, key=lambda video: (video not in held, shuffled(video))):
        if len(chosen) < target and len(chosen) + len(groups[video]) <= len(videos) // 3:
            chosen += groups[video]
    if chosen:
        return HeldOut(tuple(id for id in videos if id in set(chosen)), True)
    known = set(before)
    order = sorted(videos, key=lambda id: (id not in known, shuffled(id)))
    return HeldOut(tuple(id for id in videos if id in set(order[:target])), False)


def dice_with_intervals(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Dice and its 95 % interval from resampled frames, mean and by class.

    Args:
        counts: (N, 3, K), as `SegmentationCounts.per_image` has them.

    Returns:
        "mean" and "classes": [value, low, high], None where not defined; low and high from `TELLING` frames on.
    """
    draws = [counts[rows] for rows in _resamples(len(counts))]
    of_classes = np.array([class_dice(drawn) for drawn in draws]).reshape(-1, counts.shape[2])
    return {
        "mean": _interval(mean_dice(counts), [mean_dice(drawn) for drawn in draws]),
        "classes": [_interval(float(value), of_classes[:, k].tolist()) for k, value in enumerate(class_dice(counts))],
    }


def gain_with_interval(more: NDArray[np.int64], fewer: NDArray[np.int64]) -> list[float | None]:
    """[difference, low, high] of the mean Dice of two models on the same held-out frames, resampled together."""
    pairs = [mean_dice(more[rows]) - mean_dice(fewer[rows]) for rows in _resamples(len(more))]
    return _interval(mean_dice(more) - mean_dice(fewer), pairs)


@dataclass(frozen=True)
class Comparison:
    """Frames that were chosen, and random ones of the same project, to train on as many of each.

    Attributes:
        chosen, random: in the order in which they were picked, none of them held out.
        held_out: frames that were drawn at random too: they favour neither.
        strategies: that chose.
    """

    chosen: Sequence[str]
    random: Sequence[str]
    held_out: Sequence[str]
    strategies: Sequence[str]

    @property
    def sizes(self) -> list[int]:
        """Numbers of random frames to train on, the second of them as many as of the chosen."""
        n = min(len(self.chosen), len(self.random))
        return [n // 2, n, *([len(self.random)] if len(self.random) > n else [])]

    @property
    def n_frames(self) -> int:
        return self.sizes[1] + sum(self.sizes)

    def saving(self, counts: Callable[[Sequence[str], Sequence[str]], NDArray[np.int64]]) -> dict[str, Any]:
        """What as many chosen frames reach, and how many random ones reach that.

        Args:
            counts: (frames to train on, frames to test on) -> counts of the one trained there.
        """
        n = self.sizes[1]
        reached = counts(self.chosen[:n], self.held_out)
        random = [counts(self.random[:size], self.held_out) for size in self.sizes]
        dice = mean_dice(reached)
        return {
            "frames": n,
            "held_out": len(self.held_out),
            "strategies": list(self.strategies),
            "dice": dice,
            "random_dice": mean_dice(random[1]),
            "difference": gain_with_interval(reached, random[1]),
            "random_frames": frames_for(dice, self.sizes, [mean_dice(each) for each in random]),
            "most": self.sizes[-1],
        }


def comparison(project: Project, seen: Collection[str], held: Collection[str]) -> Comparison | None:
    """None where frames of either kind are fewer than `TELLING`: nothing can be known then."""
    chosen: dict[str, str] = {}
    random: list[str] = []
    whole = {id for id, windows in project.labelled.items() if windows is None}
    for round in project.rounds:
        ids = [pick for pick in round.picks or () if isinstance(pick, str) and pick in whole]
        if not ids:
            continue
        if (name := strategy_of(round.asked, round.model)) in RANDOM:
            random += ids
        else:
            chosen |= dict.fromkeys(ids, name)
    parts = (
        [id for id in chosen if id in seen],
        [id for id in random if id in seen],
        [id for id in random if id in held],
    )
    if min(map(len, parts)) < TELLING:
        return None
    return Comparison(*parts, list(dict.fromkeys(chosen[id] for id in parts[0])))


def frames_for(dice: float, sizes: Sequence[int], reached: Sequence[float]) -> float | None:
    """How many random frames reach this Dice, on a curve that never falls; None where the last of it does not."""
    best = np.maximum.accumulate(reached)
    if not dice <= best[-1]:
        return None
    return float(np.interp(dice, best, sizes))


def _resamples(n: int) -> list[NDArray[np.int64]]:
    """Draws of as many of n frames, with replacement; none where frames are too few to tell anything."""
    if n < TELLING:
        return []
    return list(np.random.default_rng(stream_seed("held-out frames", n)).integers(0, n, (RESAMPLES, n)))


def _interval(value: float, draws: Sequence[float]) -> list[float | None]:
    if np.isnan(value):
        return [None, None, None]
    known = [draw for draw in draws if not np.isnan(draw)]
    if len(known) < RESAMPLES // 2:
        return [value, None, None]
    low, high = np.percentile(known, [2.5, 97.5])
    return [value, float(low), float(high)]


def shuffled(name: str) -> bytes:
    """A place in an order that new names do not change."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()

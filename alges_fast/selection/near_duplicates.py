"""How alike the frames of videos are, and which of them stand for the others."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from alges_fast.random_streams import stream_seed

PAIRS = 20_000
"""Pairs of frames whose median distance is the typical one."""
BLOCK = 1 << 24
"""Distances at a time."""


def typical_distance(points: NDArray[np.float32], videos: Sequence[str]) -> float:
    """The median distance between frames of different videos, over pairs that are drawn; of one video alone, between
    any of its frames. 0 where there are no two.

    Args:
        points: (N, d), that say in few numbers what is in a frame.
        videos: of each.
    """
    numbers = np.unique(np.asarray(videos), return_inverse=True)[1]
    generator = np.random.default_rng(stream_seed("pairs of frames"))
    one, other = generator.integers(0, len(points), (2, PAIRS))
    apart = numbers[one] != numbers[other] if numbers.max() else one != other
    between = np.linalg.norm(points[one[apart]] - points[other[apart]], axis=1)
    return float(np.median(between)) if len(between) else 0.0


def nearest_in_video(points: NDArray[np.float32], videos: Sequence[str]) -> NDArray[np.float64]:
    """(N,) distances to the nearest other frame of the same video; infinite of a frame that is alone."""
    numbers = np.unique(np.asarray(videos), return_inverse=True)[1]
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    nearest = np.full(len(points), np.inf)
    for video in range(numbers.max() + 1):
        at = np.flatnonzero(numbers == video)
        nearest[at] = _nearest_others(centred[at])
    return nearest


def representatives(
    points: NDArray[np.float32], videos: Sequence[str], radius: float, first: Collection[int] = ()
) -> list[int]:
    """Positions of frames such that every frame is within the radius of one of its video, and no two but `first` are.

    In one pass in the order of time a frame stands for itself where none before it is near enough, as centres are taken
    for a given radius by Hochbaum & Shmoys, "A best possible heuristic for the k-center problem", 1985: no cover of
    half the radius has fewer.

    Args:
        points: (N, d).
        videos: of each; a video's frames in order of time.
        radius: a distance between points.
        first: positions that are taken whatever is near them, before all others.
    """
    rows: dict[str, list[int]] = {}
    for position, video in enumerate(videos):
        rows.setdefault(video, []).append(position)
    chosen: list[int] = []
    for of_video in rows.values():
        held = np.empty((len(of_video), points.shape[1]), points.dtype)
        taken = [position for position in of_video if position in first]
        held[: len(taken)] = points[taken]
        known = set(taken)
        for position in of_video:
            distances = np.square(held[: len(taken)] - points[position]).sum(1)
            if position not in known and (not len(taken) or distances.min() > radius**2):
                held[len(taken)] = points[position]
                taken.append(position)
        chosen += taken
    return sorted(chosen)


def _nearest_others(points: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = np.square(points).sum(1)
    nearest = np.empty(len(points))
    step = max(BLOCK // len(points), 1)
    for start in range(0, len(points), step):
        some = slice(start, start + step)
        distances = squares[some, None] + squares - 2 * points[some] @ points.T
        distances[np.arange(len(distances)), np.arange(start, start + len(distances))] = np.inf
        nearest[some] = np.sqrt(distances.min(1).clip(min=0))
    return nearest

"""Frames of a large pool that a query considers: drawn anew for every round, even over videos and over time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alges_fast.pool import Id


def draw_considered(
    frames: Sequence[Id],
    n: int,
    place: Callable[[Id], tuple[str, float]],
    avoided: Callable[[Id], bool],
    seed: int,
) -> list[Id]:
    """So many of these frames, in their order; all of them where there are no more.

    Every video gives the same number, or all that it has. Its frames in order of time are cut into as many stretches
    of equal length, and one is drawn from each.

    Args:
        frames: those of which something can be picked, in pool order.
        n: how many, at least one.
        place: of a frame, its video and its time there.
        avoided: frames that are drawn only where there are too few others, such as neighbours of labelled ones.
        seed: of the draw.
    """
    if n >= len(frames):
        return list(frames)
    generator = np.random.default_rng(seed)
    places = {frame: place(frame) for frame in frames}
    free = [frame for frame in frames if not avoided(frame)]
    drawn = set(_stratified(free, min(n, len(free)), places, generator))
    if len(drawn) < n:
        near = [frame for frame in frames if frame not in drawn]
        drawn.update(_stratified(near, n - len(drawn), places, generator))
    return [frame for frame in frames if frame in drawn]


def _stratified(
    frames: Sequence[Id], n: int, places: Mapping[Id, tuple[str, float]], generator: np.random.Generator
) -> list[Id]:
    videos: dict[str, list[Id]] = {}
    for frame in frames:
        videos.setdefault(places[frame][0], []).append(frame)
    quotas = _even_shares(n, [len(of_video) for of_video in videos.values()], generator)
    drawn: list[Id] = []
    for of_video, quota in zip(videos.values(), quotas, strict=True):
        in_time = sorted(of_video, key=lambda frame: places[frame][1])
        edges = [len(in_time) * stretch // max(quota, 1) for stretch in range(quota + 1)]
        drawn += [in_time[generator.integers(start, end)] for start, end in itertools.pairwise(edges)]
    return drawn


def _even_shares(n: int, sizes: Sequence[int], generator: np.random.Generator) -> list[int]:
    """n shared out as evenly as these sizes allow; which get one more is drawn."""
    shares, left = np.zeros(len(sizes), np.int64), n
    while left:
        room = np.asarray(sizes) - shares
        open = np.flatnonzero(room)
        each = left // len(open)
        if each == 0:
            shares[generator.choice(open, left, replace=False)] += 1
            break
        more = np.minimum(room[open], each)
        shares[open] += more
        left -= int(more.sum())
    return [int(share) for share in shares]

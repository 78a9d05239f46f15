"""Every k-th frame of a video, videos in turn; no label and no model needed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import ClassVar

import torch

from alges_fast.pool import Id, pool_ids
from alges_fast.strategies.base import Candidate, Query, Rating, Strategy, Taken, frames_at, frames_of
from alges_fast.strategies.registry import register_strategy
from alges_fast.windows import frame_of


@register_strategy
class Strided(Strategy):
    """Every k-th frame of a video, videos in turn, that with the fewest labelled frames first.

    A video of m frames that is given n of a draw is cut into strides of k = m / n; their start is chosen so that the
    picks lie far from what is labelled, so a second round falls between the frames of the first. Where no videos are
    known the pool is one. With windows all of a frame's are drawn, one after the other, before the next frame; one of
    which some are labelled comes when no other is left. A smaller batch is not the beginning of a larger one.
    """

    name: ClassVar[str] = "strided"
    reference: ClassVar[str] = "a strong baseline for volumes, arXiv 2207.00845"
    needs_model: ClassVar[bool] = False
    reads_images: ClassVar[bool] = False

    def rate(self, query: Query) -> Rating:
        ids = frames_of(query.candidates)
        numbers = {id: number for number, id in enumerate(ids)}
        of_frame = torch.tensor([numbers[id] for id in frames_at(query.candidates)], dtype=torch.int64)
        by_frame = of_frame.argsort(stable=True)
        places = by_frame.split(of_frame.bincount(minlength=len(ids)).tolist())
        videos: dict[str, list[Id]] = {}
        for id in pool_ids(query.pool):
            videos.setdefault(query.videos.get(id, ""), []).append(id)
        _, labelled = Taken(query.labelled).among(query.candidates)

        def draw(n: int, taken: Taken) -> list[Candidate]:
            taken = Taken.of(taken)
            begun = {*map(frame_of, taken.picked), *(frame_of(i) for i in query.labelled if i not in taken.closed)}
            free = ~(taken.among(query.candidates)[1] | labelled)
            n_free = of_frame[free].bincount(minlength=len(ids))
            left = {ids[number]: count for number, count in enumerate(n_free.tolist()) if count}
            picks: list[int] = []
            while len(picks) < n and not begun.issuperset(left):
                chosen = in_turn(list(videos.values()), begun, left, -(-(n - len(picks)) // max(left.values())))
                for id in chosen:
                    some = places[numbers[id]]
                    picks += some[free[some]].tolist()
                    free[some] = False
                    del left[id]
                begun.update(chosen)
            if len(picks) < n:
                picks += by_frame[free[by_frame]].tolist()
            return [query.candidates[at] for at in picks[:n]]

        return Rating(query.candidates, {}, draw)


def in_turn(videos: Sequence[Sequence[Id]], begun: Collection[Id], free: Collection[Id], n: int) -> list[Id]:
    """Up to n frames that are free and not begun, as `Strided` takes them.

    Args:
        videos: the frames of each video in order.
        begun: frames of which something is labelled; picks lie far from them.
        free: frames of which something may be picked.
        n: how many.
    """
    labelled = [sum(id in begun for id in video) for video in videos]
    left = [sum(id in free and id not in begun for id in video) for video in videos]
    turns: list[int] = []
    for _ in range(min(n, sum(left))):
        turn = min((number for number in range(len(videos)) if left[number]), key=labelled.__getitem__)
        turns.append(turn)
        labelled[turn] += 1
        left[turn] -= 1
    places = {}
    for number, count in Counter(turns).items():
        video = videos[number]
        away = [at for at, id in enumerate(video) if id in begun]
        closed = [at for at, id in enumerate(video) if id not in free]
        places[number] = iter(every_kth(len(video), count, away, closed))
    return [videos[number][next(places[number])] for number in turns]


def every_kth(length: int, n: int, taken: Collection[int], closed: Collection[int]) -> list[int]:
    """n free places of 0 .. length - 1, k = length / n apart, from that start in the first k whose places lie farthest
    from `taken` ones (the nearest two of them as far apart as can be; of equal ones the middle of the first stride,
    then the earliest); where a place is not free, the nearest free one.

    Args:
        length: places.
        n: how many, at most the free ones.
        taken: places that are not free, and that others keep away from.
        closed: places that are not free, no more.
    """
    if n == 0:
        return []
    k = length / n
    distance = _distances(length, taken)

    def places(start: int) -> list[int]:
        return [min(length - 1, math.floor(start + i * k)) for i in range(n)]

    middle = math.floor(k / 2)
    starts = sorted(range(math.ceil(k)), key=lambda start: (abs(start - middle), start))
    best = max(starts, key=lambda start: min(distance[place] for place in places(start)))
    gone, found = {*taken, *closed}, []
    for place in places(best):
        at = next(
            near
            for reach in range(length)
            for near in (place - reach, place + reach)
            if 0 <= near < length and near not in gone
        )
        gone.add(at)
        found.append(at)
    return found


def _distances(length: int, taken: Collection[int]) -> list[float]:
    """Of every place to the nearest taken one; infinite where there is none."""
    found: list[float] = [math.inf] * length
    for places in (range(length), reversed(range(length))):
        since = math.inf
        for place in places:
            since = 0 if place in taken else since + 1
            found[place] = min(found[place], since)
    return found

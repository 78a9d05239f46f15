"""Picks from a strategy's rating as a user wants them: within a budget, apart in time, without what was refused."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

from alges_fast.pool import Id
from alges_fast.strategies import Candidate, Rating, Taken, frame_of, scores_of
from alges_fast.windows import Window

logger = logging.getLogger(__name__)

Place: TypeAlias = tuple[str, float]
"""A frame's video, and its time in it."""

C = TypeVar("C", bound=Candidate)


class BrokenPromise(ValueError):
    """A strategy drew what it must not: a candidate twice, one that is taken, or nothing.

    Attributes:
        rule: what it must do, and what it did, with the strategy as the sentence's subject.
    """

    def __init__(self, rule: str) -> None:
        super().__init__(f"strategy: it {rule}")
        self.rule = rule


@dataclass(frozen=True)
class Candidates(Generic[C]):
    """A rated pool as picks are drawn from it: frames or windows, each at its cost.

    Attributes:
        rating: the strategy's.
        labelled: never picked, and centres of a seeding from the start.
        places: frame -> its place.
        min_gap: frames of one video are picked at least this far apart in time, and from labelled ones.
        budget: its name, and what it is counted in.
        costs: what each costs; None for 1 a frame and the pixels of a window.
        shared: whether processes share the query.

    Raises:
        ValueError: something labelled is not among the rated.
    """

    rating: Rating
    labelled: frozenset[C]
    places: Mapping[Id, Place]
    min_gap: float
    budget: tuple[str, str]
    costs: Mapping[C, int] | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        unknown = self.labelled.difference(self.ids)
        if unknown:
            raise ValueError(f"labelled: {min(map(str, unknown))!r} is not in the pool ({len(unknown)} such ids)")

    @property
    def ids(self) -> Sequence[C]:
        return cast("Sequence[C]", self.rating.ids)

    def cost(self, candidate: C) -> int:
        if self.costs is not None:
            return self.costs[candidate]
        return candidate.pixels if isinstance(candidate, Window) else 1

    def scores(self, picks: Sequence[C]) -> Mapping[Any, float]:
        """Of all candidates; where processes share the query of the picks alone, so that a pool's are not sent."""
        return scores_of(self.rating, picks) if self.shared else self.rating.scores

    def fill(self, picks: Sequence[C], budget: int, refused: Collection[C]) -> list[C]:
        """Add picks until the next would exceed the budget.

        As many as may be missing are drawn and taken in order, but for those too near an earlier one in its video; what
        is then missing is drawn again from what is far enough from all of them.
        """
        gone = {*self.labelled, *refused}
        free = [self.cost(id) for id in self.ids if id not in gone]
        if not (free and min(free) <= budget <= sum(free)):
            name, what = self.budget
            raise ValueError(f"{name} must be between {min(free, default=1)} and {sum(free)}, the {what}, got {budget}")
        chosen, gap, left = list(picks), self.min_gap, budget - sum(map(self.cost, picks))
        frames = dict.fromkeys(map(frame_of, self.ids))
        while left > 0:
            out = gone.union(chosen)
            min_gap = _MinGap(map(frame_of, (*self.labelled, *chosen)), self.places, gap)
            near = {frame for frame in frames if min_gap.forbids(frame)}
            open = [id for id in self.ids if id not in out and frame_of(id) not in near]
            if not open:
                gap = gap / 2 if gap > 1e-3 else 0.0
                logger.warning("too few images lie that far apart: min_gap is now %g", gap)
                continue
            missing = min(left // min(map(self.cost, open)), len(open))
            if not missing:
                break
            too_near = [id for id in self.ids if id not in out and frame_of(id) in near] if near else []
            taken = Taken((*self.labelled, *chosen), (*refused, *too_near))
            drawn = cast("Sequence[C]", self.rating.draw(missing, taken))
            if not drawn or len(set(drawn)) < len(drawn) or not set(open).issuperset(drawn):
                raise BrokenPromise(
                    f"must draw up to {missing} different candidates, none of them taken; it gave "
                    f"{len(drawn)}, {len(set(open).intersection(drawn))} of them different and free"
                )
            for pick in drawn:
                if min_gap.forbids(frame_of(pick)):
                    continue
                if self.cost(pick) > left:
                    return chosen
                chosen.append(pick)
                left -= self.cost(pick)
                min_gap.add(frame_of(pick))
        return chosen


class _MinGap:
    """Images, and how far apart in time others of their video must be."""

    def __init__(self, images: Iterable[Id], places: Mapping[Id, Place], gap: float) -> None:
        self.places = places
        self.gap = gap
        self.images: set[Id] = set()
        self.times: dict[str, list[float]] = {}
        for image in images:
            self.add(image)

    def add(self, image: Id) -> None:
        if image not in self.images and image in self.places:
            video, time = self.places[image]
            times = self.times.setdefault(video, [])
            times.insert(bisect_left(times, time), time)
        self.images.add(image)

    def forbids(self, image: Id) -> bool:
        """Whether the image is none of them, and too near to one."""
        if image in self.images or image not in self.places:
            return False
        video, time = self.places[image]
        times = self.times.get(video, [])
        after = bisect_left(times, time)
        return any(abs(other - time) < self.gap for other in times[max(after - 1, 0) : after + 1])

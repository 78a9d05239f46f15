"""The one way from a pool to picks, for `run`, `select` and `project` alike: which frames or windows are candidates,
what is a centre, budgets and costs, gaps in time, what is refused and what takes its place."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alges_fast.pool import Id, pool_ids
from alges_fast.selection.considered import draw_considered
from alges_fast.selection.effort import predict_effort
from alges_fast.strategies import Candidate, Query, Rating, Strategy, Taken, frame_of, scores_of
from alges_fast.strategies.base import ByCandidate, Closed, frames_of, in_frames, positions_of
from alges_fast.strategies.embedding import Frames
from alges_fast.windows import GridWindows, Window, windows_of

logger = logging.getLogger(__name__)

LABELLED_ARE_CENTRES = False
"""Whether seedings by k-means++ start from what is labelled; those for coverage (coreset, alges-class) always do.

On validation data of CamVid and ACDC nothing was gained by it, and drawing took four times as long: a frame labelled
whole is as many centres as it has windows (bench/results/CENTRES.md)."""
LABELLED_COUNT_IN_NORMS = False
"""Whether classes' mean norms are over what is labelled too; measured together with the centres."""

MANY = 1 << 20
"""Candidates of which no score is kept but those of the picks."""

Place: TypeAlias = tuple[str, float]
"""A frame's video, and its time in it."""

Unit: TypeAlias = Literal["pixels", "outline"]
"""What a budget is counted in."""


class NotEnough(ValueError):
    """A budget below the least that a pick costs, or above what all candidates do.

    Attributes:
        n_left: candidates that could be picked.
    """

    def __init__(self, budget: int, costs: Tensor) -> None:
        least, most = (int(costs.min()), int(costs.sum())) if len(costs) else (1, 0)
        what = f"what the {len(costs)} that can be picked cost together"
        super().__init__(f"must be between {least} and {most}, {what}, got {budget}")
        self.n_left = len(costs)


class BrokenPromise(ValueError):
    """A strategy drew what it must not: a candidate twice, one that is taken, or nothing."""


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        ids: ids of images, or windows of images, in order of picking.
        scores: a number per candidate, higher is more wanted: the norm of an ALGES embedding, or the mean uncertainty
            of a pixel; where processes share the pool, or it has millions of windows, of the picks alone.
            Empty for strategies that rate nothing by
            itself, such as coreset and the random ones.
        outlines: the predicted outline of every candidate, in pixels of its image, where the budget is counted in it;
            else empty.
        budget: what there was to spend: images, pixels of windows, or pixels of outline.
        rating: what the strategy said of all candidates.
        seconds: that rating and drawing took.
        n_considered, n_open: frames that were considered, of those of which something could be picked.
    """

    ids: tuple[Candidate, ...]
    scores: Mapping[Any, float]
    outlines: Mapping[Any, float]
    budget: int
    rating: Rating = field(repr=False, compare=False)
    seconds: tuple[float, float] = field(repr=False, compare=False)
    n_considered: int
    n_open: int
    _pool: _RatedPool = field(repr=False, compare=False)
    _refused: tuple[Candidate, ...] = field(default=(), repr=False)

    def cost(self, candidate: Candidate) -> int:
        """What a candidate takes of the budget."""
        return self._pool.cost(candidate)

    def reject(self, refused: Iterable[Candidate]) -> Selection:
        """The same selection with these picks, or all windows of an image, replaced for what they cost.

        The other picks stay, as centres, and the new ones come last. Each is replaced in turn, so rejecting [a, b] is
        rejecting [a] and then [b], and what is refused never comes back: of an image no window does, picked or not.

        Raises:
            ValueError: what is not among the picks, an image that is not in the pool, or too little left.
        """
        kept, gone = list(self.ids), list(self._refused)
        for item in refused:
            these = [pick for pick in kept if pick == item]
            if self._pool.windows and not isinstance(item, Window):
                already = frozenset(gone)
                of_image = in_frames(self.rating.ids, [item]).nonzero()[:, 0].tolist()
                these = [window for at in of_image if (window := self.rating.ids[at]) not in already]
            if not these:
                raise ValueError(f"refused: {str(item)!r} is not among the picks, or refused already")
            gone += these
            left = [pick for pick in kept if pick not in these]
            if len(left) < len(kept):
                kept = self._pool.fill(left, self.budget, gone)
        return replace(self, ids=tuple(kept), scores=self._pool.scores(kept), _refused=tuple(gone))

    def without(self, refused: Sequence[Candidate]) -> Selection:
        """The same with every pick replaced that is refused, or is a window of an image that is, until none is."""
        selection = self
        while (again := selection._first_of(refused)) is not None:
            selection = selection.reject([again])
        return selection

    def _first_of(self, items: Sequence[Candidate]) -> Candidate | None:
        picked = {*self.ids, *map(frame_of, self.ids)}
        return next((item for item in items if item in picked), None)


def choose(
    strategy: Strategy,
    query: Query,
    n: int | None = None,
    *,
    pixels: int | None = None,
    budget: Unit = "pixels",
    places: Mapping[Id, Place] | None = None,
    min_gap: float = 0.0,
    away: Iterable[Candidate] = (),
    frames_at_most: int | None = None,
    consider: int | None = None,
) -> Selection:
    """Ask a strategy which frames, or windows of frames, to annotate next.

    Args:
        query: over whole frames: `candidates` are ids of the pool, whatever of them is labelled, and with `regions`
            they are cut into windows of `sizes`. What is labelled may be frames, or windows of any grid. A frame of
            which a part is labelled is no candidate as a whole; a window is none that shares a pixel with what is
            labelled.
        n: how many frames; with windows, how many frames' pixels: of those that are not labelled, on average.
        pixels: how many pixels of windows, in the place of n.
        budget: "outline": as many as cost together what so many frames do on average; see `predict_effort`.
        places: frame -> its video and time, for min_gap.
        min_gap: frames of one video are picked at least this far apart in time, and from labelled ones. Halved where
            too few are left, with a warning.
        away: frames and windows that are no candidates, such as those that an annotator has now.
        frames_at_most: windows are picked of so many frames at most, those that are drawn first. Where these have too
            few, less is picked than there is to spend, with a warning.
        consider: of how many frames, at most, the strategy hears, drawn anew for every round of a seed; all by default.
            See `draw_considered`; what min_gap forbids is considered last.

    Raises:
        NotEnough: a budget out of range. BrokenPromise: what the strategy drew. ValueError: what is labelled is not of
            the pool, or what the strategy or `embed_pool` raises.
    """
    frames, query = _open_frames(query), _over_candidates(query, frozenset(away))
    known, places = tuple(dict.fromkeys(map(frame_of, query.labelled))), places or {}
    of_candidates = frames_of(query.candidates)
    considered = of_candidates
    if consider is not None and consider < len(of_candidates):
        times = {id: (query.videos.get(id, ""), float(at)) for at, id in enumerate(of_candidates)} | dict(places)
        near = _MinGap(known, places, min_gap).forbids
        considered = draw_considered(
            of_candidates, consider, times.__getitem__, near, query.stream_seed("considered frames")
        )
        query = _over_frames(query, considered)
    start = time.perf_counter()
    rating = strategy.rate(query)
    rated = time.perf_counter()
    effort = predict_effort(query) if budget == "outline" else None
    pool = _RatedPool(
        rating,
        strategy=strategy.name,
        windows=query.regions is not None,
        known=known,
        places=places,
        min_gap=min_gap,
        costs=None if effort is None else effort.costs,
        shared=query.group is not None,
        frames_at_most=frames_at_most,
    )
    spend = _pixels(query, frames, n or 0) if pixels is None and query.regions is not None else pixels or n or 0
    if effort is not None:
        spend = effort.of_frames(n or 0 if pixels is None else pixels / _pixels(query, frames, 1))
    ids = tuple(pool.fill([], spend, ()))
    seconds = rated - start, time.perf_counter() - rated
    return Selection(
        ids,
        pool.scores(ids),
        {} if effort is None else effort.outlines,
        spend,
        rating,
        seconds,
        len(considered),
        len(of_candidates),
        pool,
    )


def _open_frames(query: Query) -> list[Id]:
    """Those frames of the candidates' that are not labelled as a whole."""
    whole = {item for item in query.labelled if not isinstance(item, Window)}
    return [id for id in map(frame_of, query.candidates) if id not in whole]


def _pixels(query: Query, frames: Sequence[Id], n: int) -> int:
    """Of n of these frames, on average."""
    sizes = [query.sizes[id] for id in frames]
    return n * sum(height * width for height, width in sizes) // max(len(sizes), 1)


def _over_candidates(query: Query, away: frozenset[Candidate]) -> Query:
    """A query over frames as one over what of them, or of their windows, may be picked."""
    ids, frames = frozenset(pool_ids(query.pool)), _open_frames(query)
    if unknown := [frame for frame in map(frame_of, query.labelled) if frame not in ids]:
        raise ValueError(f"labelled: {str(unknown[0])!r} is not in the pool ({len(unknown)} such ids)")
    labelled: tuple[Candidate, ...]
    known: tuple[Candidate, ...] = ()
    candidates: Sequence[Candidate]
    if query.regions is None:
        labelled = known = tuple(dict.fromkeys(map(frame_of, query.labelled)))
        candidates = [id for id in frames if id not in away.union(known)]
    else:
        grid = GridWindows(frames, [query.sizes[id] for id in frames], query.regions)
        labelled = tuple(dict.fromkeys(_on_grid(query, grid)))
        numbers = [grid.numbers_of(labelled), *map(grid.overlapping, away)]
        candidates = grid.without(torch.cat(numbers).unique())
        if LABELLED_ARE_CENTRES or LABELLED_COUNT_IN_NORMS:
            known = tuple(cell for piece in labelled for cell in _cells(query, piece))
    centres = known if LABELLED_ARE_CENTRES else ()
    in_norms = known if LABELLED_COUNT_IN_NORMS else ()
    return replace(query, candidates=candidates, labelled=labelled, centres=centres, in_norms=in_norms)


def _over_frames(query: Query, frames: Sequence[Id]) -> Query:
    """A query over what of its candidates is, or is a window of, one of these frames."""
    kept, candidates = frozenset(frames), query.candidates
    if isinstance(candidates, GridWindows):
        belong = candidates.of_images(kept)
        candidates = GridWindows(candidates.ids, candidates.sizes, candidates.regions, candidates.numbers[belong])
    else:
        candidates = list(frames)
    query = replace(query, candidates=candidates)
    if query.scores_out is None or isinstance(query.pool, DataLoader):
        return query
    # What is said of a pool is kept for all of it.
    wanted = kept.union(map(frame_of, query.labelled))
    return replace(query, pool=Frames(query.pool, [at for at, id in enumerate(pool_ids(query.pool)) if id in wanted]))


def _on_grid(query: Query, grid: GridWindows) -> Iterator[Candidate]:
    """What is labelled: frames as they are, and of others the windows, or those that share a pixel with one of another
    grid."""
    whole = {item for item in query.labelled if not isinstance(item, Window)}
    pieces = [item for item in query.labelled if item in whole or frame_of(item) not in whole]
    for piece, number in zip(pieces, grid.numbers_of(pieces).tolist(), strict=True):
        if number >= 0 or piece in whole:
            yield piece
        else:
            yield from _cells(query, piece)


def _cells(query: Query, item: Candidate) -> list[Window]:
    """All windows of a frame; those that share a pixel with a window, which may be one of another grid."""
    assert query.regions is not None
    id = frame_of(item)
    cells = windows_of(id, query.sizes[id], query.regions)
    return [cell for cell in cells if cell.overlaps(item)] if isinstance(item, Window) else cells


@dataclass(frozen=True)
class _RatedPool:
    """Rated frames or windows as picks are drawn from them, each at its cost.

    Attributes:
        windows: whether they are windows.
        known: frames of which something is labelled.
        places: frame -> its place.
        min_gap: frames of one video are picked at least this far apart in time, and from known ones.
        costs: what each costs; None for 1 a frame and the pixels of a window.
        shared: whether processes share the query.
        frames_at_most: that picks may be of; None for any number.
    """

    rating: Rating
    strategy: str
    windows: bool
    known: tuple[Id, ...]
    places: Mapping[Id, Place]
    min_gap: float
    costs: Mapping[Candidate, int] | None
    shared: bool
    frames_at_most: int | None

    def cost(self, candidate: Candidate) -> int:
        if self.costs is not None:
            return self.costs[candidate]
        return candidate.pixels if isinstance(candidate, Window) else 1

    @cached_property
    def all_costs(self) -> Tensor:
        """(n,) int64, of all that are rated."""
        ids, costs = self.rating.ids, self.costs
        if isinstance(costs, ByCandidate) and costs.candidates is ids and len(costs) == len(ids):
            return costs.values_in_order
        if costs is None and isinstance(ids, GridWindows):
            return ids.areas()
        return torch.tensor([self.cost(item) for item in ids], dtype=torch.int64)

    def scores(self, picks: Sequence[Candidate]) -> Mapping[Any, float]:
        """Of all candidates; where processes share the query, or these are millions, of the picks alone."""
        alone = self.shared or len(self.rating.ids) > MANY
        return scores_of(self.rating, picks) if alone else self.rating.scores

    def fill(self, picks: Sequence[Candidate], budget: int, refused: Collection[Candidate]) -> list[Candidate]:
        """Add picks until the next would exceed the budget.

        As many as may be missing are drawn and taken in order, but for those too near an earlier one in its video; what
        is then missing is drawn again from what is far enough from all of them.
        """
        ids, refused = self.rating.ids, frozenset(refused)
        shut = Taken(refused).among(ids)[1]
        costs = self.all_costs[~shut] if len(refused) else self.all_costs
        if not (len(costs) and costs.min() <= budget <= costs.sum()):
            raise NotEnough(budget, costs)
        chosen, gap, left = list(picks), self.min_gap, budget - sum(map(self.cost, picks))
        frames = frames_of(ids)
        while left > 0:
            min_gap = _MinGap((*self.known, *map(frame_of, chosen)), self.places, gap)
            opened = frozenset(map(frame_of, chosen))
            is_full = self.frames_at_most is not None and len(opened) >= self.frames_at_most
            near = [frame for frame in frames if min_gap.forbids(frame)] if gap else []
            if is_full:
                near = [frame for frame in frames if frame not in opened]
            open = ~(shut | Taken(chosen).among(ids)[1])
            if near:
                open &= ~in_frames(ids, frozenset(near))
            if is_full and not open.any():
                logger.warning("frames_at_most: %d frames have no more windows: %d are not spent", len(opened), left)
                break
            if not open.any():
                gap = gap / 2 if gap > 1e-3 else 0.0
                logger.warning("too few images lie that far apart: min_gap is now %g", gap)
                continue
            missing = min(left // int(self.all_costs[open].min()), int(open.sum()))
            if not missing:
                break
            drawn = self.rating.draw(missing, Taken(chosen, Closed(refused, near, ids)))
            at = positions_of(ids, drawn)
            free = (at >= 0) & open[at]
            if not drawn or len(set(drawn)) < len(drawn) or not free.all():
                raise BrokenPromise(
                    f"strategy {self.strategy!r} must draw up to {missing} different candidates, none of them taken; "
                    f"it gave {len(drawn)}, {len(at[free].unique())} of them different and free"
                )
            for pick in drawn:
                frame = frame_of(pick)
                if min_gap.forbids(frame) or (frame not in opened and len(opened) == self.frames_at_most):
                    continue
                opened |= {frame}
                if self.cost(pick) > left:
                    return chosen
                chosen.append(pick)
                left -= self.cost(pick)
                min_gap.add(frame)
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

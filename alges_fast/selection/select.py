"""Which images of a pool to annotate next, or which windows of them: the functions `select` and `select_regions`.

The strategies are those of `alges_fast.strategies` that need no training of their own, with what a user's own pool asks
for besides: labelled images as centres, neighbours in a video kept apart, classes to aim at, picks that an annotator
refuses. It needs torch and numpy alone; `python -m alges_fast.select` is built on it.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from alges_fast.pool import Id, Pool, embed_pool, pool_ids, pool_sizes
from alges_fast.random_streams import stream_seed
from alges_fast.seeding import Seeding, k_center_greedy, kmeans_plusplus
from alges_fast.strategies import Query
from alges_fast.strategies.alges import AlgesImage, AlgesSemantic, AlgesSemanticVector
from alges_fast.strategies.coreset import Coreset
from alges_fast.strategies.full import Full
from alges_fast.strategies.random import Random, StratifiedRandom
from alges_fast.strategies.released import AlgesImageReleased, AlgesSemanticReleased
from alges_fast.strategies.uncertainty import Entropy, LeastConfidence, Margin
from alges_fast.windows import Window, windows_of

__all__ = ["STRATEGIES", "RegionSelection", "Selection", "select", "select_regions", "unfit", "weighted"]

logger = logging.getLogger(__name__)

EMBEDDING = {cls.name: cls.output for cls in (AlgesImage, AlgesSemantic, AlgesSemanticVector)}
"""The output of `pixel_gradients` that each ALGES strategy seeds from."""

_UNCERTAINTY = {cls.name: cls for cls in (Entropy, Margin, LeastConfidence)}
DRAWN = {cls.name: cls for cls in (Random, StratifiedRandom)}
"""Strategies that read no image."""

STRATEGIES = (*DRAWN, *_UNCERTAINTY, Coreset.name, *EMBEDDING)

Place: TypeAlias = tuple[str, float]
_C = TypeVar("_C", bound="Id | Window")
"""What is picked."""
_Draw: TypeAlias = Callable[[Sequence[int], int, Sequence[int], int], Iterable[int]]
"""Positions to choose from, how many, positions of the centres so far, seed -> positions, best first."""


@dataclass(frozen=True)
class Selection:
    """What `select` chose.

    Attributes:
        ids: n ids in order of picking.
        scores: a number per image of the pool, higher is more wanted: the norm of an ALGES embedding, or the mean
            uncertainty of a pixel. Empty for coreset and the random strategies, which rate no image by itself.
    """

    ids: tuple[Id, ...]
    scores: Mapping[Id, float]
    _candidates: _Candidates[Id] = field(repr=False, compare=False)
    _refused: tuple[Id, ...] = field(default=(), repr=False)

    def reject(self, ids: Iterable[Id]) -> Selection:
        """The same selection with these picks replaced; the others stay, as centres, and the new ones come last.

        Each is replaced in turn and never comes back, so rejecting [a, b] is rejecting [a] and then [b].

        Raises:
            ValueError: an id that is not among the picks, or no image left to replace it.
        """
        kept, refused = list(self.ids), list(self._refused)
        for id in ids:
            if id not in kept:
                raise ValueError(f"ids: {id!r} is not among the picks")
            kept.remove(id)
            refused.append(id)
            kept = self._candidates.fill(kept, len(kept) + 1, refused)
        return replace(self, ids=tuple(kept), _refused=tuple(refused))


@dataclass(frozen=True)
class RegionSelection:
    """What `select_regions` chose.

    Attributes:
        windows: in order of picking, together at most `budget_pixels` large.
        scores: a number per window of the pool, as in `Selection`.
        budget_pixels: what there was to spend.
    """

    windows: tuple[Window, ...]
    scores: Mapping[Window, float]
    budget_pixels: int
    _candidates: _Candidates[Window] = field(repr=False, compare=False)
    _refused: tuple[Window, ...] = field(default=(), repr=False)

    def reject(self, refused: Iterable[Window | Id]) -> RegionSelection:
        """The same selection with these windows, or all windows of an image, replaced by others for their pixels.

        The other picks stay, as centres, and the new ones come last. Each item is replaced in turn, and what is refused
        never comes back: of an image no window does, picked or not.

        Raises:
            ValueError: a window that is not among the picks, an image that is not in the pool, or too little left.
        """
        kept, gone = list(self.windows), list(self._refused)
        for item in refused:
            if isinstance(item, Window):
                these = [window for window in kept if window == item]
            else:
                these = [window for window in self._candidates.ids if window.id == item and window not in gone]
            if not these:
                where = "among the picks" if isinstance(item, Window) else "in the pool, or refused already"
                raise ValueError(f"refused: {str(item)!r} is not {where}")
            gone += these
            left = [window for window in kept if window not in these]
            if len(left) < len(kept):
                kept = self._candidates.fill(left, self.budget_pixels, gone)
        return replace(self, windows=tuple(kept), _refused=tuple(gone))


def select(
    model: nn.Module,
    pool: Pool,
    n: int,
    *,
    strategy: str = "alges-img",
    seed: int = 0,
    labelled: Iterable[Id] = (),
    places: Mapping[Id, Place] | None = None,
    min_gap: float = 0.0,
    class_weights: Sequence[float] | None = None,
    excluded: Collection[Id] = (),
    out: str | Path | None = None,
    **options: Any,
) -> Selection:
    """Choose the n images of a pool to annotate next.

    Args:
        model: trained, on its device; see `LastLayer.find`.
        pool: see `embed_pool`. Images of a DataLoader or sequence without an attribute `ids` are also read by the
            random strategies, for their names alone.
        n: how many, at most the images that are not labelled.
        strategy: one of `STRATEGIES`.
        seed: fixes every pick.
        labelled: ids of images of the pool that are annotated already: never picked, and centres of the seeding from
            the start.
        places: id -> (video, time in it). `stratified-random` balances the videos.
        min_gap: images of one video are picked at least this far apart in time, and from labelled ones. Where that
            leaves too few the gap is halved until it does not, with a warning.
        class_weights: (K,) factors, not negative: row k of an image's embedding is multiplied by the k-th before the
            seeding, so that a class of weight 10 counts like gradients ten times as large. ALGES strategies only.
        excluded: ids of images to choose as if they were not in the pool, though they are scored with it.
        out: a folder for the scores of the pool; with `resume=True` a killed call continues there.
        **options: batch_size, device, precision, transform, progress, resume, ... of `embed_pool`.

    Returns:
        Selection. With no labelled images, gap or weights the ids are those the strategy itself picks in round 0.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong kind, an unknown name, or what `embed_pool`
            raises.

    Example:
        >>> model = torch.nn.Conv2d(3, 2, 1)
        >>> pool = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> len(select(model, pool, 5, progress=False).ids)
        5
    """
    _check(strategy, class_weights, min_gap, seed)
    places = {} if places is None else places
    taken = frozenset(labelled)
    rated = _rate(model, pool, strategy, seed, taken, places, class_weights, excluded, None, {**options, "out": out})
    unit = "n", "images that can be picked"
    candidates: _Candidates[Id] = _Candidates(rated.ids, taken, places, min_gap, seed, rated.draw, unit)
    return Selection(tuple(candidates.fill([], n, [])), rated.scores, candidates)


def select_regions(
    model: nn.Module,
    pool: Pool,
    budget_pixels: int,
    *,
    regions: tuple[int, int] = (8, 8),
    strategy: str = "alges-img",
    seed: int = 0,
    labelled: Iterable[Id | Window] = (),
    sizes: Mapping[Any, tuple[int, int]] | None = None,
    places: Mapping[Id, Place] | None = None,
    min_gap: float = 0.0,
    class_weights: Sequence[float] | None = None,
    excluded: Collection[Id] = (),
    out: str | Path | None = None,
    **options: Any,
) -> RegionSelection:
    """Choose the windows of a pool's images to annotate next, within a budget of pixels.

    Every image is cut into a grid of windows, and a window is to the strategy what an image is to `select`: alges-img
    seeds from the mean of r ⊗ z̃ over its pixels (Eq. 4 restricted to the window), alges-sem from its pixels' gradient
    norms summed by class; the uncertainty strategies take the mean over its pixels, coreset its mean features, and the
    random strategies draw windows. Seeding wants what is far from all picks: windows without gradient lie on one point
    and are picked once, windows with much of it in many directions. Aklilu & Yeung name regions as future work.

    Args:
        model: trained, on its device; see `LastLayer.window_gradients`.
        pool: see `embed_pool`; images with two spatial axes.
        budget_pixels: windows are picked until the next one would exceed it. n whole images have n x height x width.
        regions: rows and columns of the grid; windows cover every pixel once, and their sides differ by at most one.
            The model sees the same grid over its logits: where the two do not divide alike, a window's border there is
            within a pixel of its own.
        strategy: one of `STRATEGIES`.
        seed: fixes every pick.
        labelled: images, or windows of this grid, that are annotated already: never picked, and centres of the seeding
            from the start.
        sizes: id -> (height, width) that windows are given in and the budget is counted in. Default: the images' own;
            unless the pool is an array it is read once more for them.
        places: as for `select`.
        min_gap: windows of two images of one video are picked only if the images are at least this far apart in time,
            labelled ones counted. Windows of one image may always be picked together. Halved as in `select`.
        class_weights: as for `select`, on the rows of a window's embedding.
        excluded: as for `select`; they need no size.
        out: as for `select`.
        **options: as for `select`.

    Returns:
        RegionSelection.

    Raises:
        ValueError, TypeError: as for `select`; a grid finer than an image; a budget below the smallest window or above
            what can be picked.

    Example:
        >>> model = torch.nn.Conv2d(3, 2, 1)
        >>> pool = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> len(select_regions(model, pool, 2 * 8 * 8, regions=(4, 4), progress=False).windows)
        32
    """
    _check(strategy, class_weights, min_gap, seed)
    places = {} if places is None else places
    known: Mapping[Any, Sequence[int]] = pool_sizes(pool) if sizes is None else sizes
    grids = {id: windows_of(id, size, regions) for id, size in known.items()}
    taken: set[Window] = set()
    for item in labelled:
        image = _image_of(item)
        if image not in grids:
            raise ValueError(f"labelled: {image!r} is not in the pool")
        if isinstance(item, Window) and item not in grids[image]:
            raise ValueError(f"labelled: '{item}' is no window of a grid of {regions[0]} x {regions[1]} over its image")
        taken.update([item] if isinstance(item, Window) else grids[image])
    embed_options = {**options, "out": out, "regions": regions}
    rated = _rate(model, pool, strategy, seed, taken, places, class_weights, excluded, grids, embed_options)
    unit = "budget_pixels", "pixels of the smallest window and of all that can be picked"
    candidates: _Candidates[Window] = _Candidates(rated.ids, frozenset(taken), places, min_gap, seed, rated.draw, unit)
    return RegionSelection(tuple(candidates.fill([], budget_pixels, [])), rated.scores, budget_pixels, candidates)


def weighted(embeddings: Tensor, class_weights: Sequence[float] | None) -> Tensor:
    """(N, K, ...) embeddings with row k times the k-th weight.

    Raises:
        ValueError: not K weights, or a negative one.
    """
    if class_weights is None:
        return embeddings
    weights = torch.as_tensor(class_weights, dtype=embeddings.dtype)
    if weights.shape != embeddings.shape[1:2]:
        raise ValueError(f"class_weights: expected {embeddings.shape[1]}, one per class, got {len(class_weights)}")
    if not bool((weights >= 0).all() and weights.isfinite().all() and weights.any()):
        raise ValueError(f"class_weights must be finite, not negative and not all 0, got {list(class_weights)}")
    return embeddings * weights.view(-1, *[1] * (embeddings.ndim - 2))


def unfit(strategy: str) -> str | None:
    """Why a strategy cannot choose from a user's own pool, and which can; None for one of STRATEGIES."""
    if strategy in STRATEGIES:
        return None
    if strategy.startswith("deal"):
        why = "needs a model that was trained for it"
    elif strategy in (AlgesImageReleased.name, AlgesSemanticReleased.name):
        why = "reproduces the faults of the paper's released code, to compare with in python -m alges_fast.run"
    elif strategy == Full.name:
        why = "takes the whole pool, so there is nothing to choose"
    else:
        why = "is unknown"
    return f"{why}: use {', '.join(STRATEGIES)}"


def _check(strategy: str, class_weights: object, min_gap: float, seed: int) -> None:
    if (why := unfit(strategy)) is not None:
        raise ValueError(f"strategy: {strategy!r} {why}")
    if class_weights is not None and strategy not in EMBEDDING:
        raise ValueError(f"class_weights: {strategy} has no rows per class to weigh; use {', '.join(EMBEDDING)}")
    if not 0 <= min_gap < math.inf:
        raise ValueError(f"min_gap must be finite, 0 or more, got {min_gap}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")


@dataclass(frozen=True)
class _Rated:
    """The pool's images, or their windows, as a strategy sees them."""

    ids: Sequence[Any]
    scores: dict[Any, float]
    draw: _Draw


def _rate(
    model: nn.Module,
    pool: Pool,
    strategy: str,
    seed: int,
    taken: Collection[Any],
    places: Mapping[Id, Place],
    class_weights: Sequence[float] | None,
    excluded: Collection[Id],
    grids: Mapping[Id, Sequence[Window]] | None,
    options: dict[str, Any],
) -> _Rated:
    def named(images: Sequence[Id]) -> Sequence[Any]:
        images = [id for id in images if id not in excluded] if excluded else images
        if grids is None:
            return images
        unknown = [id for id in images if id not in grids]
        if unknown:
            raise ValueError(f"sizes: has no size of image {unknown[0]!r} ({len(unknown)} such images)")
        return [window for id in images for window in grids[id]]

    def embed(*outputs: str, **more: Any) -> tuple[Sequence[Any], list[Tensor]]:
        found = embed_pool(model, pool, output=outputs, **{**options, **more})
        values = [found.outputs[name] for name in outputs]
        if excluded:
            kept = torch.tensor([id not in excluded for id in found.ids])
            values = [value[kept] for value in values]
        return named(found.ids), values if grids is None else [value.flatten(0, 1) for value in values]

    if strategy in DRAWN:
        ids = named(pool_ids(pool))
        return _Rated(ids, {}, _in_order(_drawn_order(DRAWN[strategy], model, ids, taken, places, seed)))
    if strategy in _UNCERTAINTY:
        measure = _UNCERTAINTY[strategy]
        ids, (sums, class_pixels) = embed(measure.output, "class_pixels")
        means = sums.double() / class_pixels.sum(1).clamp(min=1)
        scores = measure().uncertainty(means).tolist()
        order = sorted(range(len(ids)), key=lambda position: -scores[position])
        return _Rated(ids, dict(zip(ids, scores, strict=True)), _in_order(order))
    if strategy == Coreset.name:
        # The gradient of the mean logit of class 0 is the mean of the features: one pass of the engine, resumable.
        ids, (values,) = embed("image", loss=_MeanLogit())
        taps = values[:, 0].flatten(2) if values.ndim > 3 else values[:, 0, :, None]
        return _Rated(ids, {}, _by_seeding(taps[:, :, taps.shape[2] // 2].contiguous(), k_center_greedy))
    ids, (values,) = embed(EMBEDDING[strategy])
    points = weighted(values, class_weights).flatten(1)
    norms = points.norm(dim=1).tolist()
    return _Rated(ids, dict(zip(ids, norms, strict=True)), _by_seeding(points, kmeans_plusplus))


@dataclass(frozen=True)
class _Candidates(Generic[_C]):
    """The pool as picks are drawn from it: images that cost 1 each, or windows that cost their pixels."""

    ids: Sequence[_C]
    labelled: frozenset[_C]
    places: Mapping[Id, Place]
    min_gap: float
    seed: int
    draw: _Draw
    unit: tuple[str, str]
    """Name of the budget, and what it is counted in."""

    def __post_init__(self) -> None:
        unknown = self.labelled.difference(self.ids)
        if unknown:
            raise ValueError(f"labelled: {min(map(str, unknown))!r} is not in the pool ({len(unknown)} such ids)")

    def fill(self, picks: Sequence[_C], budget: int, refused: Collection[_C]) -> list[_C]:
        """Add picks until the next would exceed the budget.

        As many as may be missing are drawn and taken in order, but for those too near an earlier one in its video; what
        is then missing is drawn again from what is far enough from all of them.
        """
        gone = {*self.labelled, *refused}
        free = [_cost(id) for id in self.ids if id not in gone]
        if not (free and min(free) <= budget <= sum(free)):
            name, what = self.unit
            raise ValueError(f"{name} must be between {min(free, default=1)} and {sum(free)}, the {what}, got {budget}")
        chosen, gap, left = list(picks), self.min_gap, budget - sum(map(_cost, picks))
        position = {id: at for at, id in enumerate(self.ids)}
        centres = [position[id] for id in self.ids if id in self.labelled] if self.labelled else []
        images = dict.fromkeys(map(_image_of, self.ids))
        while left > 0:
            out = gone.union(chosen)
            crowd = _Crowd(map(_image_of, (*self.labelled, *chosen)), self.places, gap)
            near = {image for image in images if crowd.near(image)}
            open = [at for at, id in enumerate(self.ids) if id not in out and _image_of(id) not in near]
            if not open:
                gap = gap / 2 if gap > 1e-3 else 0.0
                logger.warning("too few images lie that far apart: min_gap is now %g", gap)
                continue
            # Of the first draw, the seed is the one that the strategy itself has in round 0.
            seed = stream_seed("seeding", self.seed, len(chosen) + len(refused))
            missing = min(left // min(_cost(self.ids[at]) for at in open), len(open))
            if not missing:
                break
            for at in self.draw(open, missing, [*centres, *(position[id] for id in chosen)], seed):
                pick = self.ids[at]
                if crowd.near(_image_of(pick)):
                    continue
                if _cost(pick) > left:
                    return chosen
                chosen.append(pick)
                left -= _cost(pick)
                crowd.add(_image_of(pick))
        return chosen


def _image_of(candidate: Id | Window) -> Id:
    return candidate.id if isinstance(candidate, Window) else candidate


def _cost(candidate: Id | Window) -> int:
    return candidate.pixels if isinstance(candidate, Window) else 1


class _Crowd:
    """Images that others of their video must keep a distance from."""

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

    def near(self, image: Id) -> bool:
        """Whether the image is none of them, and too near to one."""
        if image in self.images or image not in self.places:
            return False
        video, time = self.places[image]
        times = self.times.get(video, [])
        after = bisect_left(times, time)
        return any(abs(other - time) < self.gap for other in times[max(after - 1, 0) : after + 1])


@dataclass(frozen=True)
class _MeanLogit:
    """A loss whose last-layer gradient is the mean of the layer's input; its repr names it in a resumable file."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits[:, 0].mean()


@dataclass(frozen=True)
class _Names(Sequence[tuple[Any, Tensor]]):
    """A pool of names, for strategies that look at nothing else."""

    ids: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return self.ids[index], torch.empty(0)


def _drawn_order(
    strategy: type[Random] | type[StratifiedRandom],
    model: nn.Module,
    ids: Sequence[Any],
    taken: Collection[Any],
    places: Mapping[Id, Place],
    seed: int,
) -> list[int]:
    """The unlabelled images, or windows, in the order in which the strategy picks them all."""
    unlabelled = _Names(tuple(id for id in ids if id not in taken))
    query: Any = Query(
        model=model,
        unlabelled=unlabelled,
        labelled=_Names(tuple(id for id in ids if id in taken)),
        videos={id: places[_image_of(id)][0] for id in ids if _image_of(id) in places},
        n=len(unlabelled),
        seed=seed,
    )
    position: dict[Any, int] = {id: at for at, id in enumerate(ids)}
    return [position[id] for id in strategy().query(query).ids]


def _in_order(order: Sequence[int]) -> _Draw:
    def draw(open: Sequence[int], n: int, centres: Sequence[int], seed: int) -> list[int]:
        allowed = set(open)
        return [at for at in order if at in allowed][:n]

    return draw


def _by_seeding(points: Tensor, choose: Callable[..., Seeding]) -> _Draw:
    def draw(open: Sequence[int], n: int, centres: Sequence[int], seed: int) -> list[int]:
        index = torch.tensor(open, dtype=torch.int64)
        candidates = points if len(index) == len(points) else points[index]
        existing = points[torch.tensor(centres, dtype=torch.int64)] if centres else None
        # Named by their place in the whole pool, images keep their random numbers whichever others are open.
        chosen: list[int] = choose(candidates, n, seed=seed, existing=existing, global_index=index).indices.tolist()
        return chosen

    return draw

"""Which images of a pool to annotate next, or which windows of them: the functions `select` and `select_regions`.

Any strategy of `alges_fast.strategies`, or of a user's own file, with what a user's own pool asks for besides: labelled
images as centres, neighbours in a video kept apart, classes to aim at, picks that an annotator refuses. It needs torch
and numpy alone; `python -m alges_fast.select` is built on it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from alges_fast.errors import UserError
from alges_fast.pool import Id, Pool, pool_ids, pool_sizes
from alges_fast.selection.candidates import Candidates, Place
from alges_fast.selection.defaults import FRAMES, WINDOWS
from alges_fast.selection.effort import PredictedEffort, predict_effort
from alges_fast.strategies import Candidate, Query, Strategy, frame_of, get_strategy, strategy_names
from alges_fast.strategies.embedding import Frames
from alges_fast.windows import Window, windows_of

__all__ = ["RegionSelection", "Selection", "select", "select_regions"]

Budget: TypeAlias = Literal["pixels", "outline"]
"""What a budget is counted in."""

OUTLINE_UNIT = "budget", "pixels of predicted outline of the cheapest and of all that can be picked"


@dataclass(frozen=True)
class Selection:
    """What `select` chose.

    Attributes:
        ids: n ids in order of picking.
        scores: a number per image of the pool, higher is more wanted: the norm of an ALGES embedding, or the mean
            uncertainty of a pixel; where processes share the pool, of the picks alone. Empty for coreset and the random
            strategies, which rate no image by itself.
        outlines: the predicted outline of every image, in its pixels, where the budget is counted in it; else empty.
        budget: what there was to spend: images, or pixels of outline.
    """

    ids: tuple[Id, ...]
    scores: Mapping[Id, float]
    outlines: Mapping[Id, float]
    budget: int
    _candidates: Candidates[Id] = field(repr=False, compare=False)
    _refused: tuple[Id, ...] = field(default=(), repr=False)

    def cost(self, id: Id) -> int:
        """What an image of the pool takes of the budget."""
        return self._candidates.cost(id)

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
            kept = self._candidates.fill(kept, self.budget, refused)
        scores = self._candidates.scores(kept)
        return replace(self, ids=tuple(kept), scores=scores, _refused=tuple(refused))


@dataclass(frozen=True)
class RegionSelection:
    """What `select_regions` chose.

    Attributes:
        windows: in order of picking, together at most `budget_pixels` large, or as dear as so many pixels on average.
        scores: a number per window of the pool, as in `Selection`.
        budget_pixels: what there was to spend.
        outlines: the predicted outline of every window, in pixels of its image, where the budget is counted in it; else
            empty.
        budget: what there was to spend: `budget_pixels`, or what as many pixels' outline takes.
    """

    windows: tuple[Window, ...]
    scores: Mapping[Window, float]
    budget_pixels: int
    outlines: Mapping[Window, float]
    budget: int
    _candidates: Candidates[Window] = field(repr=False, compare=False)
    _refused: tuple[Window, ...] = field(default=(), repr=False)

    def cost(self, window: Window) -> int:
        """What a window of the pool takes of the budget."""
        return self._candidates.cost(window)

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
                kept = self._candidates.fill(left, self.budget, gone)
        scores = self._candidates.scores(kept)
        return replace(self, windows=tuple(kept), scores=scores, _refused=tuple(gone))


def select(
    model: nn.Module | None,
    pool: Pool,
    n: int,
    *,
    budget: Budget = "pixels",
    strategy: str = FRAMES,
    seed: int = 0,
    labelled: Iterable[Id] = (),
    sizes: Mapping[Any, tuple[int, int]] | None = None,
    places: Mapping[Id, Place] | None = None,
    min_gap: float = 0.0,
    class_weights: Sequence[float] | None = None,
    excluded: Collection[Id] = (),
    features: Pool | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Selection:
    """Choose the n images of a pool to annotate next.

    Args:
        model: trained, on its device; see `LastLayer.find`. None for a strategy that needs none, such as `random`.
        pool: see `embed_pool`. A DataLoader or sequence without an attribute `ids` is read once more, for the names.
        n: how many, at most the images that are not labelled.
        budget: "pixels": n images; "outline": as many as cost together what n images do on average, where an image
            costs the outline that the model predicts in it and a quarter of its side, for a look at it.
        strategy: a name of `alges_fast.strategies.strategy_names()` but `full`, or a class of your own as
            "path/to/file.py:Class" or "package.module:Class"; see `alges_fast.strategies.Strategy`.
        seed: fixes every pick.
        labelled: ids of images of the pool that are annotated already: never picked, and centres of the seeding from
            the start.
        sizes: id -> (height, width) of the images, for outlines. Default: their own.
        places: id -> (video, time in it). `stratified-random` balances the videos.
        min_gap: images of one video are picked at least this far apart in time, and from labelled ones. Where that
            leaves too few the gap is halved until it does not, with a warning.
        class_weights: (K,) factors, not negative: row k of an image's embedding is multiplied by the k-th before the
            seeding, so that a class of weight 10 counts like gradients ten times as large. ALGES strategies only.
        excluded: ids of images to choose as if they were not in the pool, though they are scored with it.
        features: (id, map (C, h, w)) of the pool's images by an encoder that was never trained on them, for `herding`
            and `typical`, which without them look at what enters the model's last layer.
        out: a folder for the scores of the pool; with `resume=True` a killed call continues there. Processes of a group
            each have a folder of their own in it.
        **options: batch_size, device, precision, transform, progress, resume, group, ... of `embed_pool`. The processes
            of a group share the work, make the same call and get the same selection.

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
    asked = _Asked(strategy, seed, min_gap, places or {}, class_weights, features, out, options)
    pool = _named(pool)
    ids = [id for id in pool_ids(pool) if id not in excluded] if excluded else pool_ids(pool)
    taken = tuple(dict.fromkeys(labelled))
    query = asked.query(model, pool, ids, taken, None)
    rating = asked.chosen().rate(query)
    unit, spend, effort = ("n", "images that can be picked"), n, None
    if budget == "outline":
        effort = predict_effort(query, pool_sizes(pool) if sizes is None else sizes)  # type: ignore[arg-type]
        unit, spend = OUTLINE_UNIT, effort.of_frames(n)
    costs: Any = None if effort is None else effort.costs
    shared = query.group is not None
    candidates: Candidates[Id] = Candidates(rating, frozenset(taken), asked.places, min_gap, unit, costs, shared)
    picks = tuple(candidates.fill([], spend, []))
    return Selection(picks, candidates.scores(picks), _outlines(effort), spend, candidates)


def select_regions(
    model: nn.Module | None,
    pool: Pool,
    budget_pixels: int,
    *,
    regions: tuple[int, int] = (8, 8),
    budget: Budget = "pixels",
    strategy: str = WINDOWS,
    seed: int = 0,
    labelled: Iterable[Id | Window] = (),
    sizes: Mapping[Any, tuple[int, int]] | None = None,
    places: Mapping[Id, Place] | None = None,
    min_gap: float = 0.0,
    class_weights: Sequence[float] | None = None,
    excluded: Collection[Id] = (),
    features: Pool | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> RegionSelection:
    """Choose the windows of a pool's images to annotate next, within a budget of pixels.

    Every image is cut into a grid of windows, and a window is to the strategy what an image is to `select`: alges-img
    seeds from the mean of r ⊗ z̃ over its pixels (Eq. 4 restricted to the window), alges-effort divides that by what
    drawing the window's outline is expected to cost, alges-sem sums its pixels' gradient norms by class; the
    uncertainty strategies take the mean over its pixels, coreset its mean features, and the random strategies draw
    windows. Seeding wants what is far from all picks: windows without gradient lie on one point and are picked once,
    windows with much of it in many directions. Aklilu & Yeung name regions as future work.

    Args:
        model: trained, on its device; see `LastLayer.window_gradients`.
        pool: see `embed_pool`; images with two spatial axes.
        budget_pixels: windows are picked until the next one would exceed it. n whole images have n x height x width.
        budget: "pixels", or "outline": as many windows as cost together what whole images of so many pixels do on
            average; see `select`.
        regions: rows and columns of the grid; windows cover every pixel once, and their sides differ by at most one.
            The model sees the same grid over its logits: where the two do not divide alike, a window's border there is
            within a pixel of its own.
        strategy: as for `select`.
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
        features: as for `select`.
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
    asked = _Asked(strategy, seed, min_gap, places or {}, class_weights, features, out, options)
    pool = _named(pool)
    known: Mapping[Any, Sequence[int]] = pool_sizes(pool) if sizes is None else sizes
    images = [id for id in pool_ids(pool) if id not in excluded]
    unknown = [id for id in images if id not in known]
    if unknown:
        raise ValueError(f"sizes: has no size of image {unknown[0]!r} ({len(unknown)} such images)")
    grids = {id: windows_of(id, size, regions) for id, size in known.items()}
    taken: dict[Window, None] = {}
    for item in labelled:
        image = frame_of(item)
        if image not in grids:
            raise ValueError(f"labelled: {image!r} is not in the pool")
        if isinstance(item, Window) and item not in grids[image]:
            raise ValueError(f"labelled: '{item}' is no window of a grid of {regions[0]} x {regions[1]} over its image")
        taken.update(dict.fromkeys([item] if isinstance(item, Window) else grids[image]))
    windows = [window for id in images for window in grids[id]]
    query = asked.query(model, pool, windows, tuple(taken), regions)
    rating = asked.chosen().rate(query)
    unit = "budget_pixels", "pixels of the smallest window and of all that can be picked"
    spend, effort = budget_pixels, None
    if budget == "outline":
        effort = predict_effort(query, known)  # type: ignore[arg-type]
        n_frames = budget_pixels * len(images) / sum(window.pixels for window in windows)
        unit, spend = OUTLINE_UNIT, effort.of_frames(n_frames)
    costs: Any = None if effort is None else effort.costs
    shared = query.group is not None
    candidates: Candidates[Window] = Candidates(rating, frozenset(taken), asked.places, min_gap, unit, costs, shared)
    picks = tuple(candidates.fill([], spend, []))
    return RegionSelection(picks, candidates.scores(picks), budget_pixels, _outlines(effort), spend, candidates)


@dataclass(frozen=True)
class _Asked:
    """What both functions are asked for, checked.

    Raises:
        ValueError: an argument out of range or an unknown strategy, or one that does not heed an argument.
    """

    strategy: str
    seed: int
    min_gap: float
    places: Mapping[Id, Place]
    class_weights: Sequence[float] | None
    features: Pool | None
    out: str | Path | None
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.class_weights is not None and not self.chosen.weighs_classes:
            others = [name for name in strategy_names() if get_strategy(name).weighs_classes]
            raise ValueError(f"class_weights: {self.strategy} has no rows per class to weigh; use {', '.join(others)}")
        if self.chosen.takes_whole_pool:
            raise ValueError(f"strategy: {self.strategy!r} takes the whole pool, so there is nothing to choose")
        if not 0 <= self.min_gap < math.inf:
            raise ValueError(f"min_gap must be finite, 0 or more, got {self.min_gap}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    @cached_property
    def chosen(self) -> type[Strategy]:
        try:
            return get_strategy(self.strategy)
        except UserError as error:
            raise ValueError(str(error)) from error

    def query(
        self,
        model: nn.Module | None,
        pool: Pool,
        candidates: Sequence[Candidate],
        labelled: Sequence[Candidate],
        regions: tuple[int, int] | None,
    ) -> Query:
        if model is None and self.chosen.needs_model:
            others = [name for name in strategy_names() if not get_strategy(name).needs_model]
            raise ValueError(
                f"model: strategy {self.strategy!r} needs a trained model, got None; {', '.join(others)} need none"
            )
        own = {name: value for name, value in self.options.items() if name in _OF_QUERY}
        more = {name: value for name, value in self.options.items() if name not in _OF_QUERY}
        if own.get("device") is None:
            parameters = () if model is None else model.parameters()
            own["device"] = next((p.device for p in parameters if p.is_floating_point()), torch.device("cpu"))
        return Query(
            candidates=candidates,
            pool=pool,
            model=model,
            labelled=labelled,
            regions=regions,
            class_weights=self.class_weights,
            videos={id: video for id, (video, _) in self.places.items()},
            features=self.features,
            seed=self.seed,
            scores_out=None if self.out is None else Path(self.out),
            embedding={"resume": False, **more},
            **{"progress": True, **own},
        )


_OF_QUERY = frozenset({"batch_size", "device", "precision", "transform", "progress", "group"})
"""Options of `embed_pool` that a query has fields for."""


def _outlines(effort: PredictedEffort | None) -> dict[Any, float]:
    return {} if effort is None else dict(effort.outlines)


def _named(pool: Pool) -> Pool:
    """The pool with its names at hand. An array, what has an attribute `ids`, and a DataLoader, whose workers decode
    its images, stay as they are."""
    if isinstance(pool, (DataLoader, Tensor, np.ndarray)) or hasattr(pool, "ids"):
        return pool
    return Frames(pool)

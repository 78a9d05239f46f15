"""Which images of a pool to annotate next, or which windows of them: the function `select`.

Any strategy of `alges_fast.strategies`, or of a user's own file, with what a user's own pool asks for besides: what is
labelled, neighbours in a video kept apart, classes to aim at, picks that an annotator refuses. It needs torch and numpy
alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from alges_fast.errors import UserError
from alges_fast.pool import Id, Pool, pool_ids, pool_sizes
from alges_fast.selection.choose import NotEnough, Place, Selection, Unit, choose
from alges_fast.selection.defaults import FRAMES, WINDOWS
from alges_fast.strategies import Candidate, Query, Strategy, get_strategy, strategy_names
from alges_fast.strategies.embedding import Frames


def select(
    model: nn.Module | None,
    pool: Pool,
    n: int | None = None,
    *,
    regions: tuple[int, int] | None = None,
    pixels: int | None = None,
    budget: Unit = "pixels",
    frames_at_most: int | None = None,
    consider: int | None = None,
    strategy: str | Strategy | None = None,
    seed: int = 0,
    labelled: Iterable[Candidate] = (),
    class_shares: Tensor | None = None,
    sizes: Mapping[Any, Sequence[int]] | None = None,
    places: Mapping[Id, Place] | None = None,
    min_gap: float = 0.0,
    class_weights: Sequence[float] | None = None,
    excluded: Collection[Id] = (),
    features: Pool | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Selection:
    """Choose the images of a pool to annotate next, or with `regions` the windows of images.

    With regions every image is cut into a grid, and a window is to the strategy what an image is without: alges-img
    seeds from the mean of r ⊗ z̃ over its pixels (Eq. 4 restricted to the window), alges-effort divides that by what
    drawing the window's outline is expected to cost, alges-sem sums its pixels' gradient norms by class; the
    uncertainty strategies take the mean over its pixels, coreset its mean features, and the random strategies draw
    windows. Seeding wants what is far from all picks: windows without gradient lie on one point and are picked once,
    windows with much of it in many directions. Aklilu & Yeung name regions as future work.

    Args:
        model: trained, on its device; see `LastLayer.find`. None for a strategy that needs none, such as `random`.
        pool: see `embed_pool`; with regions images of two spatial axes. A DataLoader or sequence without an attribute
            `ids` is read once more, for the names.
        n: how many images; with regions, as many images' pixels of windows: of those that are not labelled as a whole,
            on average.
        regions: rows and columns of the grid; windows cover every pixel once, and their sides differ by at most one.
            The model sees the same grid over its logits: where the two do not divide alike, a window's border there is
            within a pixel of its own.
        pixels: with regions and in the place of n, how many pixels: windows are picked until the next would exceed
            them.
        budget: "pixels", or "outline": as many images, or windows, as cost together what so many images do on average,
            where each costs the outline that the model predicts in it and a quarter of its side, for a look at it.
        frames_at_most: with regions, of how many images windows may be picked; by default of any.
        consider: of how many images, at most, the strategy hears: even over the videos and times of `places`, those
            that `min_gap` forbids last; by default of all.
        strategy: a name of `alges_fast.strategies.strategy_names()` but `full`, a class of your own as
            "path/to/file.py:Class" or "package.module:Class", or an instance; see `alges_fast.strategies.Strategy`. By
            default alges-img, with regions random.
        seed: fixes every pick.
        labelled: images, or windows, that are annotated already: never picked, and seen by the strategies that cover a
            pool. With regions a window counts for those of the grid that it shares a pixel with; without, for its
            image.
        class_shares: (K,) shares of the classes among labelled pixels, for `balanced-entropy`.
        sizes: id -> (height, width) that windows are given in and a budget is counted in. Default: the images' own;
            unless the pool is an array it is read once more for them.
        places: id -> (video, time in it). `stratified-random` balances the videos.
        min_gap: images of one video are picked, or windows of them, at least this far apart in time, and from labelled
            ones; windows of one image may always be picked together. Where that leaves too few the gap is halved until
            it does not, with a warning.
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
        Selection. Without a gap or weights the ids are those that the strategy picks in the first round of `run`.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong kind, an unknown name, a grid finer than an
            image, a budget below the least pick or above all, or what `embed_pool` raises.

    Example:
        >>> model = torch.nn.Conv2d(3, 2, 1)
        >>> pool = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> len(select(model, pool, 5, progress=False).ids)
        5
        >>> len(select(model, pool, 2, regions=(4, 4), strategy="alges-img", progress=False).ids)
        32
    """
    chosen = _strategy(strategy or (FRAMES if regions is None else WINDOWS))
    _check(chosen, model, class_weights)
    if not 0 <= min_gap < math.inf:
        raise ValueError(f"min_gap must be finite, 0 or more, got {min_gap}")
    if frames_at_most is not None and (frames_at_most < 1 or regions is None):
        raise ValueError(f"frames_at_most must be 1 or more, with regions, got {frames_at_most}")
    if consider is not None and consider < max(n or 1, 1):
        raise ValueError(f"consider must be at least n, 1 or more, got {consider}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if (n is None) == (pixels is None) or (regions is None and pixels is not None):
        raise ValueError(f"n, or with regions pixels, must be given, and not both: got n={n}, pixels={pixels}")
    pool = _named(pool)
    frames = [id for id in pool_ids(pool) if id not in excluded]
    sized = regions is not None or budget == "outline"
    known: Mapping[Any, Sequence[int]] = {} if not sized else pool_sizes(pool) if sizes is None else sizes
    if sized and (unknown := [id for id in frames if id not in known]):
        raise ValueError(f"sizes: has no size of image {unknown[0]!r} ({len(unknown)} such images)")
    own = {name: value for name, value in options.items() if name in _OF_QUERY}
    more = {name: value for name, value in options.items() if name not in _OF_QUERY}
    if own.get("device") is None:
        parameters = () if model is None else model.parameters()
        own["device"] = next((p.device for p in parameters if p.is_floating_point()), torch.device("cpu"))
    query = Query(
        candidates=frames,
        pool=pool,
        model=model,
        labelled=tuple(labelled),
        regions=regions,
        sizes=known,
        class_shares=class_shares,
        class_weights=class_weights,
        videos={id: video for id, (video, _) in (places or {}).items()},
        features=features,
        seed=seed,
        scores_out=None if out is None else Path(out),
        embedding={"resume": False, **more},
        **{"progress": True, **own},
    )
    try:
        return choose(
            chosen,
            query,
            n,
            pixels=pixels,
            budget=budget,
            places=places,
            min_gap=min_gap,
            frames_at_most=frames_at_most,
            consider=consider,
        )
    except NotEnough as error:
        raise ValueError(f"{'n' if pixels is None else 'pixels'}: the budget {error}") from error


_OF_QUERY = frozenset({"batch_size", "device", "precision", "transform", "progress", "group"})
"""Options of `embed_pool` that a query has fields for."""


def _strategy(strategy: str | Strategy) -> Strategy:
    if isinstance(strategy, Strategy):
        return strategy
    try:
        return get_strategy(strategy)()
    except UserError as error:
        raise ValueError(str(error)) from error


def _check(strategy: Strategy, model: nn.Module | None, class_weights: Sequence[float] | None) -> None:
    """Raises ValueError for a strategy that does not heed an argument."""
    named = {name: get_strategy(name) for name in strategy_names()}
    if class_weights is not None and not strategy.weighs_classes:
        others = ", ".join(name for name, of in named.items() if of.weighs_classes)
        raise ValueError(f"class_weights: {strategy.name} has no rows per class to weigh; use {others}")
    if strategy.takes_whole_pool:
        raise ValueError(f"strategy: {strategy.name!r} takes the whole pool, so there is nothing to choose")
    if model is None and strategy.needs_model:
        others = ", ".join(name for name, of in named.items() if not of.needs_model)
        raise ValueError(f"model: strategy {strategy.name!r} needs a trained model, got None; {others} need none")


def _named(pool: Pool) -> Pool:
    """The pool with its names at hand. An array, what has an attribute `ids`, and a DataLoader, whose workers decode
    its images, stay as they are."""
    if isinstance(pool, (DataLoader, Tensor, np.ndarray)) or hasattr(pool, "ids"):
        return pool
    return Frames(pool)

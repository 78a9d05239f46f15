"""Which images of a pool to annotate next, for anyone with a model: the function `select`.

The strategies are those of `alges_fast.strategies` that need no training of their own, with what a user's own pool asks
for besides: labelled images as centres, neighbours in a video kept apart, classes to aim at, picks that an annotator
refuses. It needs torch and numpy alone; `python -m alges_fast.select` is built on it.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from alges_fast.pool import Id, Pool, embed_pool, pool_ids
from alges_fast.random_streams import stream_seed
from alges_fast.seeding import Seeding, k_center_greedy, kmeans_plusplus
from alges_fast.strategies import Query
from alges_fast.strategies.alges import AlgesImage, AlgesSemantic, AlgesSemanticVector
from alges_fast.strategies.coreset import Coreset
from alges_fast.strategies.random import Random, StratifiedRandom
from alges_fast.strategies.uncertainty import Entropy, LeastConfidence, Margin

__all__ = ["STRATEGIES", "Selection", "select", "weighted"]

logger = logging.getLogger(__name__)

EMBEDDING = {cls.name: cls.output for cls in (AlgesImage, AlgesSemantic, AlgesSemanticVector)}
"""The output of `pixel_gradients` that each ALGES strategy seeds from."""

_UNCERTAINTY = {cls.name: cls for cls in (Entropy, Margin, LeastConfidence)}
_DRAWN = {cls.name: cls for cls in (Random, StratifiedRandom)}

STRATEGIES = (*_DRAWN, *_UNCERTAINTY, Coreset.name, *EMBEDDING)

Place: TypeAlias = tuple[str, float]
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
    _candidates: _Candidates = field(repr=False, compare=False)
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
    if strategy not in STRATEGIES:
        why = "needs a model that was trained for it" if strategy.startswith("deal") else "is unknown"
        raise ValueError(f"strategy: {strategy!r} {why}; choose from {', '.join(STRATEGIES)}")
    if class_weights is not None and strategy not in EMBEDDING:
        raise ValueError(f"class_weights: {strategy} has no rows per class to weigh; use {', '.join(EMBEDDING)}")
    if not min_gap >= 0:
        raise ValueError(f"min_gap must be 0 or more, got {min_gap}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    places = {} if places is None else places
    taken = frozenset(labelled)
    embed_options = {**options, "out": out}
    scores: dict[Id, float] = {}
    draw: _Draw

    if strategy in _DRAWN:
        ids = pool_ids(pool)
        draw = _in_order(_drawn_order(_DRAWN[strategy], model, ids, taken, places, seed))
    elif strategy in _UNCERTAINTY:
        measure = _UNCERTAINTY[strategy]
        found = embed_pool(model, pool, output=(measure.output, "class_pixels"), **embed_options)
        ids = found.ids
        means = found.values.double() / found.outputs["class_pixels"].sum(1).clamp(min=1)
        scores = dict(zip(ids, measure().uncertainty(means).tolist(), strict=True))
        draw = _in_order(sorted(range(len(ids)), key=lambda position: -scores[ids[position]]))
    elif strategy == Coreset.name:
        # The gradient of the mean logit of class 0 is the mean of the features: one pass of the engine, resumable.
        found = embed_pool(model, pool, output=("image",), **{**embed_options, "loss": _MeanLogit()})
        ids, taps = found.ids, found.values[:, 0].flatten(2) if found.values.ndim > 3 else found.values[:, 0, :, None]
        draw = _by_seeding(taps[:, :, taps.shape[2] // 2].contiguous(), k_center_greedy)
    else:
        found = embed_pool(model, pool, output=(EMBEDDING[strategy],), **embed_options)
        ids, points = found.ids, weighted(found.values, class_weights).flatten(1)
        scores = dict(zip(ids, points.norm(dim=1).tolist(), strict=True))
        draw = _by_seeding(points, kmeans_plusplus)

    candidates = _Candidates(ids, taken, places, min_gap, seed, draw)
    return Selection(tuple(candidates.fill([], n, [])), scores, candidates)


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


@dataclass(frozen=True)
class _Candidates:
    """The pool as picks are drawn from it."""

    ids: Sequence[Id]
    labelled: frozenset[Id]
    places: Mapping[Id, Place]
    min_gap: float
    seed: int
    draw: _Draw

    def __post_init__(self) -> None:
        unknown = self.labelled.difference(self.ids)
        if unknown:
            raise ValueError(f"labelled: {min(map(str, unknown))!r} is not in the pool ({len(unknown)} such ids)")

    def fill(self, picks: Sequence[Id], n: int, refused: Sequence[Id]) -> list[Id]:
        """Add picks until there are n.

        As many as are missing are drawn and taken in order, but for those too near an earlier one in its video; what is
        then missing is drawn again from what is far enough from all of them.
        """
        available = len(self.ids) - len(self.labelled) - len(refused)
        if not 1 <= n <= available:
            raise ValueError(f"n must be between 1 and {available}, the images that can be picked, got {n}")
        chosen, gap = list(picks), self.min_gap
        position = {id: at for at, id in enumerate(self.ids)}
        centres = [position[id] for id in self.ids if id in self.labelled] if self.labelled else []
        while len(chosen) < n:
            out = {*self.labelled, *refused, *chosen}
            crowd = _Crowd([self.places[id] for id in (*self.labelled, *chosen) if id in self.places], gap)
            open = [at for at, id in enumerate(self.ids) if id not in out and not crowd.near(self.places.get(id))]
            if not open:
                gap = gap / 2 if gap > 1e-3 else 0.0
                logger.warning("too few images lie that far apart: min_gap is now %g", gap)
                continue
            # Of the first draw, the seed is the one that the strategy itself has in round 0.
            seed = stream_seed("seeding", self.seed, len(chosen) + len(refused))
            missing = min(n - len(chosen), len(open))
            for at in self.draw(open, missing, [*centres, *(position[id] for id in chosen)], seed):
                place = self.places.get(self.ids[at])
                if not crowd.near(place):
                    chosen.append(self.ids[at])
                    crowd.add(place)
        return chosen


class _Crowd:
    """Places that others must keep a distance from."""

    def __init__(self, places: Iterable[Place], gap: float) -> None:
        self.gap = gap
        self.times: dict[str, list[float]] = {}
        for place in places:
            self.add(place)

    def add(self, place: Place | None) -> None:
        if place is not None:
            times = self.times.setdefault(place[0], [])
            times.insert(bisect_left(times, place[1]), place[1])

    def near(self, place: Place | None) -> bool:
        if place is None or place[0] not in self.times:
            return False
        times = self.times[place[0]]
        after = bisect_left(times, place[1])
        return any(abs(time - place[1]) < self.gap for time in times[max(after - 1, 0) : after + 1])


@dataclass(frozen=True)
class _MeanLogit:
    """A loss whose last-layer gradient is the mean of the layer's input; its repr names it in a resumable file."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits[:, 0].mean()


@dataclass(frozen=True)
class _Names(Sequence[tuple[Id, Tensor]]):
    """A pool of names, for strategies that look at nothing else."""

    ids: tuple[Id, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return self.ids[index], torch.empty(0)


def _drawn_order(
    strategy: type[Random] | type[StratifiedRandom],
    model: nn.Module,
    ids: Sequence[Id],
    labelled: frozenset[Id],
    places: Mapping[Id, Place],
    seed: int,
) -> list[int]:
    """The unlabelled images in the order in which the strategy picks them all."""
    unlabelled = _Names(tuple(id for id in ids if id not in labelled))
    query: Any = Query(
        model=model,
        unlabelled=unlabelled,  # type: ignore[arg-type]
        labelled=_Names(tuple(id for id in ids if id in labelled)),  # type: ignore[arg-type]
        videos={id: video for id, (video, _) in places.items()},  # type: ignore[misc]
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

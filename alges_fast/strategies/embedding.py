"""What a model says of a query's candidates: one row for each frame or window, of this process's share of the frames.

A process takes every world_size-th of the frames that have a candidate, with all their windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from alges_fast.last_layer import LastLayer
from alges_fast.pool import PRECISIONS, Id, PoolEmbeddings, embed_pool, pool_ids
from alges_fast.strategies.base import Candidate, Query, frames_of
from alges_fast.windows import GridWindows, Window, cell_boxes, cut, frame_of

T = TypeVar("T")


@dataclass(frozen=True)
class Embedded:
    """Rows of this process's candidates.

    Attributes:
        positions: (n,) int64, where they are among the query's candidates.
        outputs: name -> (n, ...) on the CPU.
    """

    positions: Tensor
    outputs: Mapping[str, Tensor]


def embed(query: Query, outputs: Sequence[str]) -> Embedded:
    """Outputs of `pixel_gradients` for every candidate of this process, resumable in the query's `scores_out`.

    Raises:
        ValueError: the query has no model, or what `embed_pool` raises.
    """
    found = embed_frames(query, outputs)
    return _by_candidate(query, query.candidates, found.ids, found.outputs)


def embed_frames(
    query: Query, outputs: Sequence[str], frames: Sequence[int] | None = None, **arguments: Any
) -> PoolEmbeddings:
    """What `embed_pool` makes, with these arguments besides, of frames at these places of the pool; by default of this
    process's share of those with a candidate."""
    model, pool, out = trained_model(query), query.pool, query.scores_out
    if out is None and not isinstance(pool, DataLoader):
        frames = _frames_with_candidates(query) if frames is None else frames
        pool = pool if len(frames) == len(pool) else Frames(pool, frames)
    elif out is not None and query.group is not None:
        out = out / f"rank{dist.get_rank(query.group)}of{dist.get_world_size(query.group)}"
    return embed_pool(
        model,
        pool,
        **{
            "output": tuple(outputs),
            "regions": query.regions,
            "batch_size": query.batch_size,
            "device": query.device,
            "precision": query.precision,
            "transform": query.transform,
            "out": out,
            "resume": out is not None,
            "progress": query.progress,
            "group": query.group,
            **query.embedding,
            **({"resume": False} if out is None else {}),
            **arguments,
        },
    )


def embed_features(query: Query) -> Embedded:
    """`mean`, (n, d): the last layer's input averaged over the pixels of each candidate of this process.

    They are the pixels of the logits, where a resize at most lies between: one pass of the engine, resumable. After any
    other tail they are those of the layer's own grid.
    """
    if not isinstance(query.pool, DataLoader):
        layer, example = found_layer(query)
        if not layer.defines("feature_sum", example):
            means = [by_cell(query, _mean, features) for features in forward(query, layer.features)]
            positions, rows = by_candidate(query, means)
            # A process without a share still says how many columns its shard has.
            return Embedded(positions, {"mean": rows if len(rows) else _mean(layer.features(example))[:0]})
        query = replace(query, embedding={**query.embedding, "last_layer": layer})
    out = None if query.scores_out is None else query.scores_out / "features"
    found = embed(replace(query, scores_out=out), ("feature_sum", "class_pixels"))
    n_pixels = found.outputs["class_pixels"].sum(1, keepdim=True).clamp(min=1)
    return Embedded(found.positions, {"mean": found.outputs["feature_sum"] / n_pixels})


def mean_features(query: Query, candidates: Sequence[Candidate]) -> Tensor:
    """(n, d) float32, the same on every process: the last layer's input averaged over the pixels of these frames or
    windows of the query's pool, which need not be among its candidates."""

    def rows(query: Query) -> tuple[Tensor, Tensor]:
        found = embed_features(query)
        return found.positions, found.outputs["mean"]

    return on_every_process(query, candidates, rows)


def on_every_process(
    query: Query, candidates: Sequence[Candidate], rows: Callable[[Query], tuple[Tensor, Tensor]]
) -> Tensor:
    """(n, ...), the same on every process: what `rows` makes of these frames or windows of the query's pool, which need
    not be among its candidates.

    Args:
        candidates: which frames or windows, one at least.
        rows: query -> positions (m,) and rows (m, ...) of this process's candidates of that query.
    """
    whole = [at for at, candidate in enumerate(candidates) if not isinstance(candidate, Window)]
    if query.regions is not None and whole:  # frames that were labelled before windows were asked for
        windows = [at for at, candidate in enumerate(candidates) if isinstance(candidate, Window)]
        parts = [(whole, replace(query, regions=None)), (windows, query)]
        found = torch.cat([on_every_process(part, [candidates[i] for i in at], rows) for at, part in parts if at])
        return found[torch.tensor(whole + windows).argsort()]
    if unknown := {frame_of(candidate) for candidate in candidates}.difference(pool_ids(query.pool)):
        raise ValueError(f"labelled: {min(map(str, unknown))!r} is not in the pool ({len(unknown)} such ids)")
    asked = replace(query, candidates=candidates, sizes=_sizes(query), scores_out=None, progress=False)
    return gathered(query, *rows(asked))[1]


def gathered(query: Query, positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The positions and rows (n, ...) of every process, in the candidates' order."""
    parts = gather(query, (positions, rows))
    positions = torch.cat([positions for positions, _ in parts])
    order = positions.argsort()
    return positions[order], torch.cat([rows for _, rows in parts if len(rows)] or [rows])[order]


def gather(query: Query, value: T) -> list[T]:
    """The value of every process of the query, in order of rank."""
    if query.group is None:
        return [value]
    parts: list[Any] = [None] * dist.get_world_size(query.group)
    dist.all_gather_object(parts, value, group=query.group)
    return parts


def trained_model(query: Query) -> nn.Module:
    """The query's model. Raises ValueError: there is none."""
    if query.model is None:
        raise ValueError("model: this strategy asks a trained model, and there is none yet: give one")
    return query.model


# Frame by frame, for strategies that look at more than `pixel_gradients` has.


def embedded_frames(query: Query) -> list[int]:
    """Where this process's frames with a candidate are in the query's pool."""
    rank, world_size = (0, 1) if query.group is None else (dist.get_rank(query.group), dist.get_world_size(query.group))
    return _frames_with_candidates(query)[rank::world_size]


@torch.no_grad()
def forward(query: Query, run: Callable[[Tensor], T]) -> Iterator[T]:
    """run(images (B, C, H, W)) for this process's frames, batch by batch, in the query's precision."""
    dtype = PRECISIONS[query.precision or "32-true"]
    positions = embedded_frames(query)
    for start in range(0, len(positions), query.batch_size):
        images = torch.stack([_image(query.pool, at) for at in positions[start : start + query.batch_size]])
        images = _as_input(query, images.to(query.device))
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            found = run(images.contiguous(memory_format=torch.channels_last))
        yield found  # outside: the caller's work is not the model's


def last_layer_inputs(query: Query) -> Iterator[tuple[Tensor, Tensor]]:
    """(features (B, d, *grid), logits (B, K, *spatial)) of this process's frames, batch by batch."""
    return forward(query, found_layer(query)[0].features_and_logits)


def by_cell(query: Query, measure: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    """measure(*maps) of maps (B, ..., height, width), (B, ...); with windows of every cell, (B, cells, ...)."""
    if query.regions is None:
        return measure(*maps)
    boxes = cell_boxes(maps[0].shape[-2:], query.regions)
    return torch.stack([measure(*(cut(values, box) for values in maps)) for box in boxes], 1)


def by_candidate(query: Query, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Positions (n,) and rows (n, ...) of this process's candidates, from batches of rows of its frames as `forward`
    goes through them: (B, ...), with windows (B, cells, ...)."""
    ids = pool_ids(query.pool)
    found = {"rows": torch.cat(list(rows))} if rows else {}
    embedded = _by_candidate(query, query.candidates, [ids[at] for at in embedded_frames(query)], found)
    return embedded.positions, embedded.outputs.get("rows", torch.empty(0))


def candidate_images(query: Query) -> Iterator[tuple[Candidate, Tensor]]:
    """(candidate, image (C, height, width)) of this process's candidates as the query's transform makes it, without one
    as the pool has it; a window's is cut out of its frame."""
    ids, frames = pool_ids(query.pool), embedded_frames(query)
    for at, row in torch.stack(placed(query, query.candidates, [ids[at] for at in frames]), 1).tolist():
        frame, cell = divmod(row, query.n_cells)
        image = _image(query.pool, frames[frame])
        if query.transform is not None:
            image = query.transform(image[None])[0]
        if query.regions is not None:
            image = cut(image, cell_boxes(image.shape[-2:], query.regions)[cell])
        yield query.candidates[at], image


class Frames(Sequence[tuple[Id, Tensor]]):
    """Frames of a pool as (id, image) pairs; an item is decoded when it is indexed.

    Args:
        pool: a sequence of images or pairs, or an array.
        positions: which of its frames; default all.

    Attributes:
        ids: the frames' ids, in order.
    """

    def __init__(self, pool: Any, positions: Sequence[int] | None = None) -> None:
        known = getattr(pool, "ids", None)  # looked at where there are many of these over one pool: as they are
        ids = known if isinstance(known, tuple) and positions is not None else pool_ids(pool)
        self.pool = pool
        self.positions = range(len(ids)) if positions is None else positions
        self.ids = tuple(ids[at] for at in self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        item = self.pool[self.positions[index]]
        return self.ids[index], item[1] if isinstance(item, (tuple, list)) else item

    def views_of(self, positions: Sequence[int]) -> list[Tensor] | None:
        """As the pool has it, which need not have it."""
        views_of = getattr(self.pool, "views_of", None)
        views: list[Tensor] | None = None if views_of is None else views_of([self.positions[at] for at in positions])
        return views


def _frames_with_candidates(query: Query) -> list[int]:
    wanted = frozenset(frames_of(query.candidates))
    return [at for at, id in enumerate(pool_ids(query.pool)) if id in wanted]


def _image(pool: Any, at: int) -> Tensor:
    if isinstance(pool, DataLoader):
        raise TypeError("pool: this strategy looks at frames one by one: give the DataLoader's dataset")
    item = pool[at]
    return torch.as_tensor(item[1] if isinstance(item, (tuple, list)) else item)


def _as_input(query: Query, images: Tensor) -> Tensor:
    """A batch as `embed_pool` gives it to the model."""
    if query.transform is not None:
        images = query.transform(images)
    elif images.dtype == torch.uint8:
        images = images / 255
    weight = next((p for p in trained_model(query).parameters() if p.is_floating_point()), images)
    return images.to(weight.dtype)


def found_layer(query: Query) -> tuple[LastLayer, Tensor]:
    """The model's last layer, and the first image of the pool as the model takes it."""
    example = _as_input(query, _image(query.pool, 0)[None].to(query.device))
    known = query.embedding.get("last_layer")
    return known if isinstance(known, LastLayer) else LastLayer.find(trained_model(query), example, name=known), example


def _mean(features: Tensor) -> Tensor:
    """(B, d) float32 on the CPU, of (B, d, *grid)."""
    return features.float().flatten(2).mean(2).cpu()


def _sizes(query: Query) -> Mapping[Any, Sequence[int]]:
    """id -> (height, width) that windows are given in: as the query has them; of a frame that it has none of, so large
    that its windows fit."""
    if isinstance(query.candidates, GridWindows):
        return {**dict(zip(query.candidates.ids, query.candidates.sizes, strict=True)), **query.sizes}
    sizes: dict[Id, tuple[int, int]] = {}
    for item in (*query.candidates, *query.labelled):
        if isinstance(item, Window) and item.id not in query.sizes:
            height, width = sizes.get(item.id, (0, 0))
            sizes[item.id] = max(height, item.y + item.height), max(width, item.x + item.width)
    return {**sizes, **query.sizes}


def placed(query: Query, candidates: Sequence[Candidate], ids: Sequence[Id]) -> tuple[Tensor, Tensor]:
    """Which candidates are of these frames, and where: positions (m,) int64 ascending, and rows (m,), the frame's place
    in `ids` times the windows of a frame plus the window's number in it."""
    places = {id: row for row, id in enumerate(ids)}
    if isinstance(candidates, GridWindows) and candidates.regions == query.regions:
        row_of = torch.tensor([places.get(id, -1) for id in candidates.ids], dtype=torch.int64)
        if len(candidates) == len(ids) * query.n_cells and torch.equal(row_of, torch.arange(len(ids))):
            return torch.arange(len(candidates)), candidates.numbers
        frames = row_of[candidates.images]
        mine = frames >= 0
        return mine.nonzero()[:, 0], frames[mine] * query.n_cells + candidates.cells[mine]
    if query.regions is None:
        rows = torch.tensor([places.get(frame_of(item), -1) for item in candidates], dtype=torch.int64)
    else:
        sizes = _sizes(query)
        grid = GridWindows(ids, [sizes.get(id, query.regions) for id in ids], query.regions)
        rows = grid.numbers_of(candidates)
        strangers = [candidates[at] for at in (rows < 0).nonzero()[:, 0].tolist()]
        if wrong := [item for item in strangers if frame_of(item) in places]:
            of_grid = "is no window of a grid of {} x {} over its image".format(*query.regions)
            raise ValueError(f"candidates: '{wrong[0]}' {of_grid}")
    mine = (rows >= 0).nonzero()[:, 0]
    return mine, rows[mine]


def _by_candidate(
    query: Query, candidates: Sequence[Candidate], ids: Sequence[Id], outputs: Mapping[str, Tensor]
) -> Embedded:
    """Rows of the candidates whose frames these ids are, from outputs (frames, ...) or (frames, cells, ...)."""
    positions, rows = placed(query, candidates, ids)
    if query.regions is not None:
        outputs = {name: values.flatten(0, 1) for name, values in outputs.items()}
    n_rows = len(ids) * query.n_cells
    if len(rows) != n_rows or not torch.equal(rows, torch.arange(n_rows)):  # else as they are: they may be mapped
        outputs = {name: values[rows] for name, values in outputs.items()}
    return Embedded(positions, dict(outputs))

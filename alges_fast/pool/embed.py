"""Score a whole pool of images at the speed of the model's forward pass: `embed_pool`.

The model runs up to its last layer and the fused op does the rest. Images go through in pool order, one row per image;
a rank of a distributed run takes every world_size-th image, so no image is scored twice to fill a batch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from alges_fast.last_layer import LastLayer, evaluating, unwrapped
from alges_fast.losses import Loss
from alges_fast.ops import check_outputs
from alges_fast.pool.row_file import RowFile, fingerprint, signature

__all__ = ["PRECISIONS", "Id", "Pool", "PoolEmbeddings", "Progress", "embed_pool", "pool_ids", "pool_sizes"]

logger = logging.getLogger(__name__)

Id: TypeAlias = str | int
Pool: TypeAlias = "Sequence[Any] | Tensor | np.ndarray[Any, Any] | DataLoader[Any]"
Progress: TypeAlias = Callable[[int, "int | None"], None]
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class PoolEmbeddings:
    """Outputs of every image scored, in pool order.

    Attributes:
        ids: the images' names, or their positions where the pool gives none.
        values: (N, *shape of the output for one image) on the CPU: float32, but float64 for a float64 model and int64
            for class_pixels; backed by the file where `out` was given. Of several outputs the first.
        positions: (N,) int64, the images' positions in the pool: `global_index` of a sharded seeding.
        outputs: every output asked for, by name, each like `values`.
    """

    ids: tuple[Id, ...]
    values: Tensor
    positions: Tensor
    outputs: dict[str, Tensor]


def embed_pool(
    model: nn.Module,
    pool: Pool,
    *,
    output: str | Sequence[str] = "image",
    batch_size: int = 16,
    last_layer: LastLayer | str | None = None,
    loss: Loss | None = None,
    regions: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    precision: str | None = None,
    channels_last: bool = True,
    transform: Callable[[Tensor], Tensor] | None = None,
    backend: str | None = None,
    progress: bool | Progress = True,
    out: str | Path | None = None,
    resume: bool = False,
    on_nan: str = "raise",
    rank: int | None = None,
    world_size: int | None = None,
    group: Any = None,
) -> PoolEmbeddings:
    """Gradient embeddings or uncertainty scores of every image of a pool, in one pass of the model.

    The model runs in eval mode without gradients and is left as it was. Results do not depend on `batch_size` beyond
    what the model's own kernels do.

    Args:
        model: see `LastLayer.find`; already on its device.
        pool: a sequence of images (C, H, W) or of (id, image) pairs, a tensor or array (N, C, H, W), or a DataLoader
            that gives batches of images or (ids, images). Images are uint8 or floating. Where no ids are given an
            image's id is its position, so a DataLoader that takes images in an order of its own must give ids.
        output: a field of `PixelGradients`, or several.
        batch_size: images per forward pass on a GPU, at most that on the CPU, where fewer large images go through at
            once are faster; a DataLoader has its own.
        last_layer: a `LastLayer`, or its name; default `LastLayer.find` on the first image.
        loss: as for `LastLayer.pixel_gradients`.
        regions: rows R and columns C of a grid of windows: outputs are those of `LastLayer.window_gradients`, and an
            image's row of values has an axis of R C windows first.
        device: where the model is; default its parameters' device.
        precision: "32-true", "bf16-mixed" or "16-mixed" (autocast); default the caller's autocast state.
        channels_last: memory format of the batches, the faster one for convolutions (for volumes on CUDA alone).
        transform: applied to every batch on the device, such as `alges_fast.data.to_input`. Without it uint8 images
            are divided by 255.
        backend: as for `pixel_gradients`.
        progress: a bar (where rich is installed), or a callable of (images done, images in all or None).
        out: a .npy file for the values, memory-mapped in the result; ids are kept in `<out>.ids` beside it. For several
            outputs a folder, with a file for each. Every rank needs an `out` of its own.
        resume: continue the files a killed call left at `out`. The last images in them are read again: those of another
            pool, model, loss or transform are refused.
        on_nan: "raise" stops at the first batch with a NaN or infinity and names its images; "skip" leaves those images
            out and logs their ids.
        rank, world_size: score the images rank, rank + world_size, ... only.
        group: a torch.distributed group to take rank and world_size from.

    Returns:
        PoolEmbeddings of the images this rank scored.

    Raises:
        ValueError: a duplicate id, a NaN or infinity, images of different sizes where the output depends on the size,
            a DataLoader that leaves images out, files that cannot be continued, or an argument out of range.
        TypeError: an item that is neither an image nor an (id, image) pair, or a masked array.
        OSError: a file that cannot be written.
    """
    names = (output,) if isinstance(output, str) else tuple(output)
    _validate(names, batch_size, on_nan, precision, resume, out)
    rank, world_size = _shard(rank, world_size, group)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    device = parameter.device if device is None else torch.device(device)
    if isinstance(last_layer, LastLayer) and last_layer.model is not unwrapped(model):
        raise ValueError("last_layer was found in another model: LastLayer.find(model, example) finds this one's")
    source = _Source(pool, rank, world_size, batch_size)
    files: dict[str, RowFile] = {}
    if out is not None:
        made_by = {
            "model": fingerprint(unwrapped(model)),
            "last_layer": last_layer.name if isinstance(last_layer, LastLayer) else last_layer,
            "loss": signature(loss),
            "transform": signature(transform),
            "precision": precision,
            "shard": [rank, world_size],
            "images": source.total,
            "ids": None if (known := _known_ids(pool)) is None else _digest(known),
            **({} if regions is None else {"regions": list(regions)}),
        }
        paths = [Path(out)] if isinstance(output, str) else [Path(out) / f"{name}.npy" for name in names]
        for name, path in zip(names, paths, strict=True):
            files[name] = RowFile(path, {"output": name, **made_by}, resume=resume)
    rows = _Rows(names, files, skip_bad=on_nan == "skip")
    first, start = source.restart(rows.done)
    rows.go_back_to(start)

    if device.type == "cpu":
        _keep_freed_memory()
    with _progress(progress, source.total) as advance, evaluating(model), torch.no_grad(), _autocast(device, precision):

        def score(batch: _Batch) -> _Scored:
            nonlocal last_layer
            checksums = _checksums(batch.images) if files else [0] * len(batch.ids)
            images = _to_device(batch.images, device, parameter.dtype, channels_last, transform)
            if not isinstance(last_layer, LastLayer):
                last_layer = LastLayer.find(model, images[:1], name=last_layer)
            parts = []
            for part in _parts(images):
                if regions is None:
                    found = last_layer.pixel_gradients(part, outputs=names, loss=loss, backend=backend)
                else:
                    found = last_layer.window_gradients(part, regions, outputs=names, loss=loss, backend=backend)
                parts.append([getattr(found, name) for name in names])
            values = [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
            return _Scored(batch, checksums, *_to_host([_finite(images), *values]))

        advance(start)
        waiting: _Scored | None = None
        for batch in source.batches(first):
            if first < start:
                rows.compare(first, batch)
                first += len(batch.ids)
                continue
            scored = score(batch)
            # One batch behind, so that a GPU has the next one to work on while this one is looked at.
            if waiting is not None:
                advance(rows.add(waiting))
            waiting = scored
        if waiting is not None:
            advance(rows.add(waiting))
        if not rows.done:
            rows.add_none(score(source.any_image()))
    return rows.finish()


def pool_ids(pool: Pool) -> tuple[Id, ...]:
    """The ids of a pool's images in order. Nothing is decoded where it is an array or has an attribute `ids`."""
    if isinstance(pool, (Tensor, np.ndarray)):
        return tuple(range(len(pool)))
    known = _known_ids(pool)
    ids = [id for batch in _Source(pool, 0, 1).batches() for id in batch.ids] if known is None else known
    _check_unique(ids)
    return tuple(ids)


def pool_sizes(pool: Pool) -> dict[Id, tuple[int, ...]]:
    """id -> spatial sizes of a pool's images. One that is no array is read for them."""
    if isinstance(pool, (Tensor, np.ndarray)):
        return dict.fromkeys(range(len(pool)), tuple(pool.shape[2:]))
    sizes = [(id, tuple(batch.images.shape[2:])) for batch in _Source(pool, 0, 1).batches() for id in batch.ids]
    _check_unique([id for id, _ in sizes])
    return dict(sizes)


def _validate(
    names: Sequence[str], batch_size: int, on_nan: str, precision: str | None, resume: bool, out: object
) -> None:
    if not names:
        raise ValueError("output must name at least one output")
    check_outputs(names, "output")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"output: {name!r} is named twice")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if on_nan not in ("raise", "skip"):
        raise ValueError(f"on_nan must be 'raise' or 'skip', got {on_nan!r}")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if resume and out is None:
        raise ValueError("resume needs out, the file to continue")


def _shard(rank: int | None, world_size: int | None, group: Any) -> tuple[int, int]:
    if group is not None:
        if rank is not None or world_size is not None:
            raise ValueError("give group, or rank and world_size, not both")
        rank, world_size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        if rank < 0:
            raise ValueError("group: this process is not in it, so no share of the pool is its own")
        return rank, world_size
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank and world_size go together, got rank={rank} and world_size={world_size}")
    rank, world_size = rank or 0, 1 if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..world_size - 1, got rank={rank} and world_size={world_size}")
    return rank, world_size


# Reading the pool.


@dataclass(frozen=True)
class _Batch:
    positions: Sequence[int]
    ids: Sequence[Id]
    images: Tensor


class _Source:
    """This rank's images of a pool, in order, in batches of one size and type.

    Attributes:
        total: how many images; None where the pool does not say.
        step: images per batch. Batches begin at multiples of it, wherever reading begins, so that a run that goes on
            makes the batches of one that was never stopped. None where reading cannot begin in the middle.
        in_order: whether image number i to arrive is the i-th of the pool.
    """

    def __init__(self, pool: Pool, rank: int, world_size: int, batch_size: int = 1) -> None:
        self.pool = pool
        self.rank = rank
        self.world_size = world_size
        self.step: int | None = batch_size
        self.in_order = True
        if isinstance(pool, DataLoader):
            size = self._look_at(pool)
            if world_size > 1 and self.step is None:
                raise ValueError(
                    "pool: a DataLoader with a sampler of its own, without batches of its own, or over an "
                    "IterableDataset cannot be cut into shards; give its dataset, or a list of its images"
                )
        else:
            if isinstance(pool, Mapping):
                raise TypeError(
                    "pool must be a sequence, got a mapping: list(pool.items()) is one of (id, image) pairs"
                )
            if isinstance(pool, IterableDataset) or not (hasattr(pool, "__getitem__") and hasattr(pool, "__len__")):
                raise TypeError(
                    "pool must be a sequence of images or of (id, image) pairs, or a DataLoader, got "
                    f"{type(pool).__name__}"
                )
            if isinstance(pool, np.ndarray):
                _check_whole(pool, "pool")
            size = len(pool)
        if size == 0:
            raise ValueError("pool is empty: there is nothing to score")
        self.total = None if size is None else len(range(rank, size, world_size))

    def _look_at(self, loader: DataLoader[Any]) -> int | None:
        """Set `step` and `in_order`; the number of images, where the loader says it."""
        batches = loader.batch_sampler
        if getattr(batches, "drop_last", False):
            raise ValueError(
                "pool: a DataLoader with drop_last=True leaves out the last images; make it with drop_last=False"
            )
        if isinstance(loader.dataset, IterableDataset):
            # Several workers take turns, and give every image each unless the dataset takes care.
            self.step, self.in_order = None, loader.num_workers < 2
            return None
        size = len(loader.dataset)  # type: ignore[arg-type]
        # A DataLoader with a batch_sampler of its own has a SequentialSampler too, which it does not use.
        sampler: Any = loader.sampler if batches is None else batches.sampler if type(batches) is BatchSampler else None
        whole = type(sampler) is SequentialSampler and len(sampler) == size
        if whole and type(batches) is BatchSampler:
            self.step = batches.batch_size
            return size
        self.step, self.in_order = None, whole and (loader.in_order or loader.num_workers < 2)
        if batches is None:  # the items of the dataset are batches, of so many images as they have
            return None if size else 0
        return len(sampler) if hasattr(sampler, "__len__") else None

    def restart(self, done: int) -> tuple[int, int]:
        """Where to read from and where to score from when the first `done` images are there.

        Scoring goes on at the beginning of a batch; the batch before that is read to see that the pool is the same.
        """
        if not done:
            return 0, 0
        if self.step is None:
            raise ValueError(
                "resume needs a pool in a fixed order: a sequence, or a DataLoader without a sampler of its own; "
                "resume=False begins anew"
            )
        start = done if done == self.total else done - done % self.step
        return max(start - 1, 0) // self.step * self.step, start

    def batches(self, first: int = 0) -> Iterator[_Batch]:
        """Batches from this rank's image number `first`, a multiple of `step`, on."""
        if isinstance(self.pool, DataLoader):
            yield from self._from_loader(self.pool, first)
            return
        assert self.step is not None
        positions = range(self.rank, len(self.pool), self.world_size)[first:]
        if isinstance(self.pool, (Tensor, np.ndarray)):
            for at in range(0, len(positions), self.step):
                some = positions[at : at + self.step]
                yield _Batch(some, some, _tensor(self.pool[some.start : some.stop : some.step], "pool"))
            return
        named: list[tuple[int, Id]] = []
        images = torch.empty(0)
        for number, position in enumerate(positions, first):
            id, image = _item(self.pool[position], position)
            if named and (image.shape, image.dtype, image.device) != (images.shape[1:], images.dtype, images.device):
                yield _batch(named, images)
                named = []
            if not named:
                images = image.new_empty(self.step - number % self.step, *image.shape)
            images[len(named)] = image  # at once: a reader may give the next image in the same memory
            named.append((position, id))
            if len(named) == len(images):
                yield _batch(named, images)
                named = []
        if named:
            yield _batch(named, images)

    def any_image(self) -> _Batch:
        """A batch of one, for a rank that has no image of its own."""
        for batch in _Source(self.pool, 0, 1).batches():
            return batch
        raise ValueError("pool is empty: there is nothing to score")

    def _from_loader(self, loader: DataLoader[Any], first: int) -> Iterator[_Batch]:
        if first or self.world_size > 1 or (self.step is not None and not loader.in_order):
            # The caller's loader but for its sampler: how workers start, their seeds and when they are given up matter.
            # Not so persistent_workers, with one pass to make, nor pin_memory_device, since embed_pool pins batches.
            loader = DataLoader(
                loader.dataset,
                batch_size=self.step,
                sampler=range(self.rank, len(loader.dataset), self.world_size)[first:],  # type: ignore[arg-type]
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
                pin_memory=loader.pin_memory,
                timeout=loader.timeout,
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
                generator=loader.generator,
                prefetch_factor=loader.prefetch_factor,
            )
        arrived = first
        for item in loader:
            ids, images = _loaded(item)
            if ids is None and not self.in_order:
                raise ValueError(
                    "pool: a DataLoader that shuffles must give (ids, images), and so must one with a sampler of its "
                    "own, with in_order=False, or with several workers over an IterableDataset; without ids an image "
                    "is named by its position, which means nothing here"
                )
            self._check_size(arrived, len(images))
            numbers = range(arrived, arrived + len(images))
            positions = range(self.rank + numbers.start * self.world_size, self.rank + numbers.stop * self.world_size)
            positions = positions[:: self.world_size]
            yield _Batch(positions, positions if ids is None else ids, images)
            arrived = numbers.stop
        if self.step is not None and arrived != self.total:
            raise ValueError(f"pool: the DataLoader ended after {arrived} of {self.total} images")

    def _check_size(self, arrived: int, size: int) -> None:
        """A collate_fn that leaves out images it cannot read would give the next ones their places."""
        if self.step is None or self.total is None:
            return
        expected = min(self.step, self.total - arrived)
        if size != expected:
            raise ValueError(
                f"pool: the DataLoader's batch from image {arrived} on holds {size} images, where {expected} were "
                "asked for: its collate_fn must give every image it gets, and once; on_nan='skip' leaves out images "
                "of NaN"
            )


def _item(item: object, position: int) -> tuple[Id, Tensor]:
    """An image, named by its position, or an (id, image) pair."""
    name = f"pool item {position}"
    if isinstance(item, (Tensor, np.ndarray)):
        return position, _tensor(item, name)
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], (Tensor, np.ndarray)):
        id = _id(item[0])
        if id is not None:
            return id, _tensor(item[1], name)
    raise TypeError(f"{name} must be an image or an (id, image) pair, got {_kind(item)}")


def _loaded(item: object) -> tuple[Sequence[Id] | None, Tensor]:
    """The ids and images of what a DataLoader gives."""
    if isinstance(item, (tuple, list)) and len(item) == 1:
        item = item[0]
    if isinstance(item, Tensor):
        return None, item
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], Tensor):
        given, images = item
        if isinstance(given, (Tensor, np.ndarray)) and given.ndim == 1:
            given = given.tolist()
        if isinstance(given, (tuple, list)) and len(given) == len(images):
            ids = [id for id in map(_id, given) if id is not None]
            if len(ids) == len(given):
                return ids, images
    raise TypeError(f"pool: the DataLoader must give batches of images or (ids, images), got {_kind(item)}")


def _id(value: object) -> Id | None:
    """A name as a str or int, also from a NumPy scalar or a tensor of one; None for what names nothing."""
    if isinstance(value, np.generic) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0):
        value = value.item()
    return value if isinstance(value, (str, int)) else None


def _known_ids(pool: Any) -> list[Id] | None:
    """The attribute `ids` of a pool that has one."""
    given = getattr(pool, "ids", None)
    if given is None:
        return None
    ids = [id for id in map(_id, given) if id is not None]
    if len(ids) != len(given) or len(ids) != len(pool):
        raise ValueError(
            f"pool: its attribute ids must name its {len(pool)} images by a str or int each, got {given!r}"
        )
    return ids


def _digest(ids: Sequence[Id]) -> str:
    return hashlib.blake2b(json.dumps(ids).encode(), digest_size=8).hexdigest()


def _check_unique(ids: Sequence[Id]) -> None:
    if len(set(ids)) < len(ids):
        seen: set[Id] = set()
        twice = next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
        raise ValueError(f"pool: id {twice!r} occurs twice; ids must name one image each")


def _tensor(image: Tensor | np.ndarray[Any, Any], name: str) -> Tensor:
    if isinstance(image, Tensor):
        return image.detach()
    _check_whole(image, name)
    try:
        return torch.as_tensor(image)
    except (TypeError, ValueError) as error:  # its type, byte order or strides
        raise type(error)(f"{name} cannot be taken as a tensor: {error}") from None


def _check_whole(image: np.ndarray[Any, Any], name: str) -> None:
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must not be a masked array, whose mask would be lost; give .filled(value), or set what is masked "
            "to NaN and leave such images out with on_nan='skip'"
        )


def _kind(item: object) -> str:
    if isinstance(item, (tuple, list)):
        return f"({', '.join(_kind(part) for part in item[:4])}{', ...' if len(item) > 4 else ''})"
    if isinstance(item, (Tensor, np.ndarray)):
        return f"{type(item).__name__} of shape {tuple(item.shape)}"
    return type(item).__name__


def _batch(named: Sequence[tuple[int, Id]], images: Tensor) -> _Batch:
    return _Batch([position for position, _ in named], [id for _, id in named], images[: len(named)])


def _checksums(images: Tensor) -> list[int]:
    """A number for every image that another image hardly has: of its pixels on a grid of some 32 each way."""
    grid = (slice(None), slice(None), *(slice(None, None, max(size // 32, 1)) for size in images.shape[2:]))
    some = images[grid].detach().cpu().contiguous()
    return [zlib.crc32(image.flatten().view(torch.uint8).numpy()) for image in some]


# To the device and back.


def _to_device(
    images: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
    transform: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"pool: images must be uint8 or floating, got {images.dtype}")
    if device.type == "cuda" and images.device.type == "cpu":
        images = images.pin_memory().to(device, non_blocking=True)
    else:
        images = images.to(device)
    if transform is not None:
        images = transform(images)
    elif images.dtype == torch.uint8:
        images = images.to(dtype) / 255
    images = images.to(dtype)
    if channels_last and images.ndim == 4:
        return images.to(memory_format=torch.channels_last)
    if channels_last and images.ndim == 5 and device.type == "cuda":
        return images.to(memory_format=torch.channels_last_3d)
    return images


def _parts(images: Tensor) -> tuple[Tensor, ...]:
    """A batch on the CPU in parts of `_CPU_PIXELS`, one image at least."""
    if images.device.type != "cpu":
        return (images,)
    at_once = max(_CPU_PIXELS // max(math.prod(images.shape[2:]), 1), 1)
    return images.tensor_split(max(math.ceil(len(images) / at_once), 1))


_CPU_PIXELS = 160_000
"""A U-Net holds some 400 bytes for every pixel (measured, ResNet-18 encoder), and `_KEPT_BYTES` are kept of what it
frees. What is not kept the next layer faults in again, page by page: a quarter of the time at 224 x 224."""

_KEPT_BYTES = 2**26


def _keep_freed_memory() -> None:
    """Have glibc keep as much freed memory as it ever does: twice the largest block freed before, 64 MiB at the most.

    See M_TRIM_THRESHOLD in mallopt(3). The block is not touched, so it costs nothing; other allocators do not mind.
    """
    torch.empty(_KEPT_BYTES // 2 - 2**16, dtype=torch.uint8)  # of 32 MiB and more glibc takes no notice


def _finite(images: Tensor) -> Tensor:
    """(B,) bool: no NaN or infinity. From the extremes, since a sum may overflow: of float16 it soon does."""
    axes = tuple(range(1, images.ndim))
    return images.amax(axes).isfinite() & images.amin(axes).isfinite()


def _to_host(tensors: list[Tensor]) -> tuple[list[Tensor], torch.cuda.Event | None]:
    """Start copies to the host; they are there once the event has passed."""
    if tensors[0].device.type != "cuda":
        return [tensor.cpu() for tensor in tensors], None
    copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
    event = torch.cuda.Event()
    event.record()
    return copies, event


def _autocast(device: torch.device, precision: str | None) -> AbstractContextManager[Any]:
    if precision is None:
        return nullcontext()
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, enabled=dtype is not None, dtype=dtype)


# Keeping the results.


@dataclass(frozen=True)
class _Scored:
    batch: _Batch
    checksums: Sequence[int]
    """As the files keep them, of the images before a transform or the model could write to them."""
    tensors: list[Tensor]
    """Whether each image is finite, then every output."""
    event: torch.cuda.Event | None


class _Rows:
    """Rows of every output as they come, in memory or in files."""

    def __init__(self, names: Sequence[str], files: dict[str, RowFile], *, skip_bad: bool) -> None:
        self.names = names
        self.files = files
        self.skip_bad = skip_bad
        self.items: list[tuple[int, Id]] = []
        self.values: dict[str, list[Tensor]] = {name: [] for name in names}
        self.skipped: list[Id] = []
        self.seen: set[Id] = set()
        self.done = min((file.done for file in files.values()), default=0)  # a kill may have come between two of them
        """Images of this rank's shard looked at so far, skipped ones included."""

    def go_back_to(self, done: int) -> None:
        """Forget the images after the first `done`."""
        self.done = done
        for file in self.files.values():
            file.truncate(done)
            self.seen = {id for _, id, _, _ in file.items}
            left_out = [id for _, id, kept, _ in file.items if not kept]
            if left_out and not self.skip_bad:
                raise ValueError(
                    f"out: {file.path} was made with on_nan='skip', without image {', '.join(map(repr, left_out))}; "
                    "resume=False begins anew"
                )

    def compare(self, first: int, batch: _Batch) -> None:
        """Check that a batch is what the files hold from their image number `first` on."""
        for file in self.files.values():
            held = file.items[first : first + len(batch.ids)]
            read = zip(batch.positions, batch.ids, _checksums(batch.images), strict=True)
            for (position, id, checksum), (_, before, _, checksum_before) in zip(read, held, strict=True):
                if (id, checksum) != (before, checksum_before):
                    what = f"{before!r} with other pixels" if id == before else f"{before!r}, not {id!r}"
                    raise ValueError(
                        f"pool: it has changed since {file.path} was made: image {position} was {what}; resume=False "
                        "begins anew"
                    )

    def add(self, scored: _Scored) -> int:
        """Check and keep a batch; the number of its images."""
        if scored.event is not None:
            scored.event.synchronize()
        batch, (finite, *outputs) = scored.batch, scored.tensors
        for id in batch.ids:
            if id in self.seen:
                raise ValueError(f"pool: id {id!r} occurs twice; ids must name one image each")
            self.seen.add(id)
        good = finite.clone()
        for values in outputs:
            good &= values.flatten(1).isfinite().all(1) if values.ndim > 1 else values.isfinite()
        if not good.all():
            self._refuse([id for id, fine in zip(batch.ids, finite.tolist(), strict=True) if not fine], _BAD_IMAGE)
            self._refuse(
                [id for id, f, g in zip(batch.ids, finite.tolist(), good.tolist(), strict=True) if f and not g],
                _BAD_MODEL,
            )
        items = list(zip(batch.positions, batch.ids, good.tolist(), scored.checksums, strict=True))
        for name, values in zip(self.names, outputs, strict=True):
            rows = values if good.all() else values[good]
            if name in self.files:
                self.files[name].append(items, rows)
                continue
            earlier = self.values[name]
            if earlier and earlier[0].shape[1:] != rows.shape[1:]:
                raise ValueError(
                    f"pool: {name} of image {batch.ids[0]!r} has shape {tuple(rows.shape[1:])}, of the first image "
                    f"{tuple(earlier[0].shape[1:])}: for this output all images must have one size"
                )
            earlier.append(rows)
        self.items += [(position, id) for position, id, keep, _ in items if keep]
        self.done += len(items)
        return len(items)

    def add_none(self, scored: _Scored) -> None:
        """No rows, but of the shape of this batch's: for a rank that has no image."""
        for name, values in zip(self.names, scored.tensors[1:], strict=True):
            if name in self.files:
                self.files[name].append([], values[:0])
            else:
                self.values[name].append(values[:0])

    def finish(self) -> PoolEmbeddings:
        items, skipped = self.items, self.skipped
        outputs = {name: torch.cat(values) for name, values in self.values.items() if values}
        for name, file in self.files.items():
            items = [(position, id) for position, id, kept, _ in file.items if kept]
            skipped = [id for _, id, kept, _ in file.items if not kept]
            outputs[name] = file.finish()
        if skipped:
            logger.warning("embed_pool left out %d images: %s", len(skipped), ", ".join(map(repr, skipped)))
        return PoolEmbeddings(
            ids=tuple(id for _, id in items),
            values=outputs[self.names[0]],
            positions=torch.tensor([position for position, _ in items], dtype=torch.int64),
            outputs=outputs,
        )

    def _refuse(self, ids: list[Id], what: str) -> None:
        if ids and not self.skip_bad:
            raise ValueError(f"{what} {', '.join(map(repr, ids))}; on_nan='skip' leaves such images out")
        self.skipped += ids


_BAD_IMAGE = "pool: NaN or infinity in the pixels of image"
_BAD_MODEL = "pool: the pixels are finite but the model makes a NaN or infinity of image"


@contextmanager
def _progress(progress: bool | Progress, total: int | None) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of images just done."""
    if callable(progress):
        report, done = progress, 0

        def count(n: int) -> None:
            nonlocal done
            done += n
            report(done, total)

        yield count
    elif progress and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("scoring the pool"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda n: bar.advance(task, n)
    else:
        yield lambda n: None

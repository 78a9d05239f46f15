"""Score a whole pool of images at the speed of the model's forward pass: `embed_pool`.

The model runs up to its last layer and the fused op does the rest. Images go through in pool order, one row per image;
a rank of a distributed run takes every world_size-th image, so no image is scored twice to fill a batch.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset

from alges_fast.last_layer import LastLayer, evaluating, unwrapped
from alges_fast.losses import Loss
from alges_fast.ops import OUTPUTS
from alges_fast.row_file import RowFile, fingerprint

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
            image's id is its position.
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
            outputs a folder, with a file for each.
        resume: continue the files a killed call left at `out`.
        on_nan: "raise" stops at the first batch with a NaN or infinity and names its images; "skip" leaves those images
            out and logs their ids.
        rank, world_size: score the images rank, rank + world_size, ... only.
        group: a torch.distributed group to take rank and world_size from.

    Returns:
        PoolEmbeddings of the images this rank scored.

    Raises:
        ValueError: a duplicate id, a NaN or infinity, images of different sizes where the output depends on the size,
            or an argument out of range.
        TypeError: an item that is neither an image nor an (id, image) pair.
    """
    names = (output,) if isinstance(output, str) else tuple(output)
    _validate(names, batch_size, on_nan, precision, resume, out)
    rank, world_size = _shard(rank, world_size, group)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    device = parameter.device if device is None else torch.device(device)
    files: dict[str, RowFile] = {}
    if out is not None:
        made_by = {
            "model": fingerprint(model),
            "loss": getattr(loss, "__qualname__", repr(loss)),
            "precision": precision,
            "shard": [rank, world_size],
            **({} if regions is None else {"regions": list(regions)}),
        }
        paths = [Path(out)] if isinstance(output, str) else [Path(out) / f"{name}.npy" for name in names]
        for name, path in zip(names, paths, strict=True):
            files[name] = RowFile(path, {"output": name, **made_by}, resume=resume)
    if isinstance(last_layer, LastLayer) and last_layer.model is not unwrapped(model):
        raise ValueError("last_layer was found in another model: LastLayer.find(model, example) finds this one's")
    source = _Source(pool, rank, world_size)
    rows = _Rows(names, files, skip_bad=on_nan == "skip")
    if rows.done != source.total:
        # The batches of the run that was killed, so that the rows are the same to the last bit.
        step = batch_size if not isinstance(pool, DataLoader) else pool.batch_size or 1
        rows.go_back_to(rows.done - rows.done % step)

    if device.type == "cpu":
        _keep_freed_memory()
    with _progress(progress, source.total) as advance, evaluating(model), torch.no_grad(), _autocast(device, precision):

        def score(batch: _Batch) -> _Scored:
            nonlocal last_layer
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
            return _Scored(batch, *_to_host([_finite(images), *values]))

        advance(rows.done)
        waiting: _Scored | None = None
        for batch in source.batches(batch_size, start=rows.done):
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
    known = getattr(pool, "ids", None)
    if known is not None:
        return tuple(known)
    return tuple(id for batch in _Source(pool, 0, 1).batches(1, start=0) for id in batch.ids)


def pool_sizes(pool: Pool) -> dict[Id, tuple[int, ...]]:
    """id -> spatial sizes of a pool's images. One that is no array is read for them."""
    if isinstance(pool, (Tensor, np.ndarray)):
        return dict.fromkeys(range(len(pool)), tuple(pool.shape[2:]))
    batches = _Source(pool, 0, 1).batches(1, start=0)
    return {id: tuple(batch.images.shape[2:]) for batch in batches for id in batch.ids}


def _validate(
    names: Sequence[str], batch_size: int, on_nan: str, precision: str | None, resume: bool, out: object
) -> None:
    if not names:
        raise ValueError("output must name at least one output")
    for name in names:
        if name not in OUTPUTS:
            raise ValueError(f"output: unknown name {name!r}; choose from {', '.join(OUTPUTS)}")
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
        return torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
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
    """This rank's images of a pool, in order, in batches of one size and type."""

    def __init__(self, pool: Pool, rank: int, world_size: int) -> None:
        self.pool = pool
        self.rank = rank
        self.world_size = world_size
        self.total: int | None = None
        dataset = pool.dataset if isinstance(pool, DataLoader) else pool
        if isinstance(pool, DataLoader):
            self.ordered = isinstance(pool.sampler, SequentialSampler) and not isinstance(dataset, IterableDataset)
            if world_size > 1 and not self.ordered:
                raise ValueError(
                    "pool: a DataLoader with a sampler of its own cannot be cut into shards; give its dataset"
                )
        elif not hasattr(pool, "__getitem__") or not hasattr(pool, "__len__"):
            raise TypeError(
                f"pool must be a sequence of images or of (id, image) pairs, or a DataLoader, got {type(pool).__name__}"
            )
        if not isinstance(dataset, IterableDataset):
            size = len(dataset)  # type: ignore[arg-type]
            if size == 0:
                raise ValueError("pool is empty: there is nothing to score")
            self.total = len(range(rank, size, world_size))

    def batches(self, batch_size: int, *, start: int) -> Iterator[_Batch]:
        """Batches from this rank's image number `start` on."""
        if isinstance(self.pool, DataLoader):
            yield from self._from_loader(self.pool, start)
            return
        positions = range(self.rank, len(self.pool), self.world_size)[start:]
        if isinstance(self.pool, (Tensor, np.ndarray)):
            for first in range(0, len(positions), batch_size):
                some = positions[first : first + batch_size]
                yield _Batch(some, some, torch.as_tensor(self.pool[some.start : some.stop : some.step]))
            return
        batch: list[tuple[int, Id, Tensor]] = []
        for position in positions:
            id, image = _item(self.pool[position], position)
            if batch and (
                len(batch) == batch_size or (image.shape, image.dtype) != (batch[0][2].shape, batch[0][2].dtype)
            ):
                yield _stack(batch)
                batch = []
            batch.append((position, id, image))
        if batch:
            yield _stack(batch)

    def any_image(self) -> _Batch:
        """A batch of one, for a rank that has no image of its own."""
        for batch in _Source(self.pool, 0, 1).batches(1, start=0):
            return batch
        raise ValueError("pool is empty: there is nothing to score")

    def _from_loader(self, loader: DataLoader[Any], start: int) -> Iterator[_Batch]:
        if self.ordered and (start or self.world_size > 1):
            positions = range(self.rank, len(loader.dataset), self.world_size)[start:]  # type: ignore[arg-type]
            loader = DataLoader(
                Subset(loader.dataset, positions),
                batch_size=loader.batch_size,
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
                pin_memory=loader.pin_memory,
                worker_init_fn=loader.worker_init_fn,
                prefetch_factor=loader.prefetch_factor,
            )
            arrived = start
        elif start:
            raise ValueError(
                "resume needs a pool in a fixed order: a sequence, or a DataLoader without a sampler of its own"
            )
        else:
            arrived = 0
        for item in loader:
            ids, images = _loaded(item)
            numbers = range(arrived, arrived + len(images))
            positions = range(self.rank + numbers.start * self.world_size, self.rank + numbers.stop * self.world_size)
            positions = positions[:: self.world_size]
            if ids is None and not self.ordered and not isinstance(loader.dataset, IterableDataset):
                raise ValueError(
                    "pool: a DataLoader that shuffles must give (ids, images); without ids an image is named by its "
                    "position, which means nothing here"
                )
            yield _Batch(positions, positions if ids is None else ids, images)
            arrived = numbers.stop


def _item(item: object, position: int) -> tuple[Id, Tensor]:
    """An image, named by its position, or an (id, image) pair."""
    if isinstance(item, (Tensor, np.ndarray)):
        return position, torch.as_tensor(item)
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], (Tensor, np.ndarray)):
        id = (
            item[0].item() if isinstance(item[0], (Tensor, np.generic)) and item[0].size in (1, torch.Size) else item[0]
        )
        if isinstance(id, (str, int)):
            return id, torch.as_tensor(item[1])
    raise TypeError(f"pool item {position} must be an image or an (id, image) pair, got {_kind(item)}")


def _loaded(item: object) -> tuple[Sequence[Id] | None, Tensor]:
    """The ids and images of what a DataLoader gives."""
    if isinstance(item, (tuple, list)) and len(item) == 1:
        item = item[0]
    if isinstance(item, Tensor):
        return None, item
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], Tensor):
        ids = item[0].tolist() if isinstance(item[0], (Tensor, np.ndarray)) and item[0].ndim == 1 else item[0]
        if (
            isinstance(ids, (tuple, list))
            and len(ids) == len(item[1])
            and all(isinstance(id, (str, int)) for id in ids)
        ):
            return ids, item[1]
    raise TypeError(f"pool: the DataLoader must give batches of images or (ids, images), got {_kind(item)}")


def _kind(item: object) -> str:
    if isinstance(item, (tuple, list)):
        return f"({', '.join(_kind(part) for part in item[:4])}{', ...' if len(item) > 4 else ''})"
    if isinstance(item, (Tensor, np.ndarray)):
        return f"{type(item).__name__} of shape {tuple(item.shape)}"
    return type(item).__name__


def _alike(image: Tensor, other: Tensor) -> bool:
    return image.shape == other.shape and image.dtype == other.dtype


def _stack(batch: list[tuple[int, Id, Tensor]]) -> _Batch:
    positions, ids, images = zip(*batch, strict=True)
    return _Batch(positions, ids, torch.stack(images))


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
        self.done = 0
        """Images of this rank's shard looked at so far, skipped ones included."""
        if files:  # a kill may have come between two of them
            self.go_back_to(min(file.done for file in files.values()))

    def go_back_to(self, done: int) -> None:
        """Forget the images after the first `done`."""
        self.done = done
        for file in self.files.values():
            file.truncate(done)
            self.seen = {id for _, id, _ in file.items}

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
        kept = good.tolist()
        items = list(zip(batch.positions, batch.ids, kept, strict=True))
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
        self.items += [(position, id) for position, id, keep in items if keep]
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
        if self.skipped:
            logger.warning("embed_pool left out %d images: %s", len(self.skipped), ", ".join(map(repr, self.skipped)))
        items, outputs = self.items, {name: torch.cat(values) for name, values in self.values.items() if values}
        for name, file in self.files.items():
            items, outputs[name] = [(position, id) for position, id, keep in file.items if keep], file.finish()
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

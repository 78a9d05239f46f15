"""A pool's images in order, in batches of one size and type, whatever form the pool has."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from alges_fast.pool.errors import CannotContinue

Id: TypeAlias = str | int
Pool: TypeAlias = "Sequence[Any] | Tensor | np.ndarray[Any, Any] | DataLoader[Any]"


def pool_ids(pool: Pool) -> tuple[Id, ...]:
    """The ids of a pool's images in order. Nothing is decoded where it is an array or has an attribute `ids`."""
    if isinstance(pool, (Tensor, np.ndarray)):
        return tuple(range(len(pool)))
    known = known_ids(pool)
    ids = [id for batch in Source(pool, 0, 1).batches() for id in batch.ids] if known is None else known
    check_unique(ids)
    return tuple(ids)


def pool_sizes(pool: Pool) -> dict[Id, tuple[int, ...]]:
    """id -> spatial sizes of a pool's images. One that is no array is read for them."""
    if isinstance(pool, (Tensor, np.ndarray)):
        return dict.fromkeys(range(len(pool)), tuple(pool.shape[2:]))
    sizes = [(id, tuple(batch.images.shape[2:])) for batch in Source(pool, 0, 1).batches() for id in batch.ids]
    check_unique([id for id, _ in sizes])
    return dict(sizes)


@dataclass(frozen=True)
class Batch:
    """Images (B, C, *spatial) with their places in the pool and their ids."""

    positions: Sequence[int]
    ids: Sequence[Id]
    images: Tensor


class Source:
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
            size = self._set_order(pool)
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

    def _set_order(self, loader: DataLoader[Any]) -> int | None:
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
            raise CannotContinue(
                "resume needs a pool in a fixed order: a sequence, or a DataLoader without a sampler of its own"
            )
        start = done if done == self.total else done - done % self.step
        return max(start - 1, 0) // self.step * self.step, start

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Batches from this rank's image number `first`, a multiple of `step`, on."""
        if isinstance(self.pool, DataLoader):
            yield from self._from_loader(self.pool, first)
            return
        assert self.step is not None
        positions = range(self.rank, len(self.pool), self.world_size)[first:]
        if isinstance(self.pool, (Tensor, np.ndarray)):
            for at in range(0, len(positions), self.step):
                some = positions[at : at + self.step]
                yield Batch(some, some, _tensor(self.pool[some.start : some.stop : some.step], "pool"))
            return
        ids, views_of = known_ids(self.pool), getattr(self.pool, "views_of", None)
        for at in range(0, len(positions), self.step):
            some = positions[at : at + self.step]
            views = None if ids is None or views_of is None else views_of(some)
            if ids is None or views is None:
                yield from _copied(self.pool, some)
                continue
            for view in views:
                these, some = some[: len(view)], some[len(view) :]
                yield Batch(these, [ids[position] for position in these], view)

    def any_image(self) -> Batch:
        """A batch of one, for a rank that has no image of its own."""
        for batch in Source(self.pool, 0, 1).batches():
            return batch
        raise ValueError("pool is empty: there is nothing to score")

    def _from_loader(self, loader: DataLoader[Any], first: int) -> Iterator[Batch]:
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
            yield Batch(positions, positions if ids is None else ids, images)
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


def _copied(pool: Sequence[Any], positions: Sequence[int]) -> Iterator[Batch]:
    """These images as a batch, or where their size or type changes as several."""
    named: list[tuple[int, Id]] = []
    images = torch.empty(0)
    for number, position in enumerate(positions):
        id, image = _item(pool[position], position)
        if named and (image.shape, image.dtype, image.device) != (images.shape[1:], images.dtype, images.device):
            yield _batch(named, images)
            named = []
        if not named:
            images = _room_for(len(positions) - number, image)
        images[len(named)] = image  # at once: a reader may give the next image in the same memory
        named.append((position, id))
    yield _batch(named, images)


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


def known_ids(pool: Any) -> list[Id] | None:
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


def digest_of_ids(ids: Sequence[Id]) -> str:
    """16 hexadecimal digits that other ids, or these in another order, hardly have."""
    return hashlib.blake2b(json.dumps(ids).encode(), digest_size=8).hexdigest()


def check_unique(ids: Sequence[Id]) -> None:
    """Raise ValueError, naming it, where an id occurs twice."""
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


def _room_for(n: int, image: Tensor) -> Tensor:
    """Room for n images (n, ...) laid out like this one: channels last where its are, so that copies are straight."""
    if image.ndim == 3 and image.stride(0) == 1 and image.shape[0] > 1:
        return image.new_empty(n, *image.shape[1:], image.shape[0]).movedim(-1, 1)
    return image.new_empty(n, *image.shape)


def _batch(named: Sequence[tuple[int, Id]], images: Tensor) -> Batch:
    return Batch([position for position, _ in named], [id for _, id in named], images[: len(named)])


def checksums(images: Tensor) -> list[int]:
    """A number for every image that another image hardly has: of its pixels on a grid of some 32 each way."""
    grid = (slice(None), slice(None), *(slice(None, None, max(size // 32, 1)) for size in images.shape[2:]))
    some = images[grid].detach().cpu().contiguous()
    return [zlib.crc32(image.flatten().view(torch.uint8).numpy()) for image in some]

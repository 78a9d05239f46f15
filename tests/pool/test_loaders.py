"""`embed_pool` over a DataLoader: its order, its workers and its batches stay its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pool_forms import N, Pairs, Stream, check
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    Sampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from alges_fast import embed_pool


class Order(Sampler[list[int]]):
    """A batch_sampler of a user's own: batches of 3, from the end of the pool."""

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(N))[::-1]
        return iter([order[start : start + 3] for start in range(0, N, 3)])


class Batched(Dataset):
    """A pool whose items are batches already."""

    def __init__(self, images: Tensor) -> None:
        self.batches = images.split(4)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Tensor:
        if index >= len(self):
            raise IndexError
        return self.batches[index]


def without_the_first(items: list[tuple[str, Tensor]]) -> object:
    """As those do that leave out what could not be read."""
    return default_collate(items[1:] or items)


@pytest.mark.parametrize("ids", [False, True])
def test_a_batch_sampler_of_its_own_is_an_order_of_its_own(
    model: nn.Module, images: Tensor, expected: Tensor, ids: bool
) -> None:
    dataset: Dataset = Pairs(images) if ids else TensorDataset(images)
    loader = DataLoader(dataset, batch_sampler=Order())
    if ids:
        found = embed_pool(model, loader, progress=False)
        assert found.ids == tuple(f"frame_{i}" for i in range(N))[::-1]
        torch.testing.assert_close(found.values, expected.flip(0), rtol=1e-5, atol=1e-7)
    else:
        with pytest.raises(ValueError, match=r"must give \(ids, images\), and so must one with a sampler of its own"):
            embed_pool(model, loader, progress=False)
    with pytest.raises(ValueError, match="cannot be cut into shards; give its dataset"):
        embed_pool(model, loader, rank=0, world_size=2, progress=False)


def test_a_batch_sampler_in_turn_is_the_pools_order(
    model: nn.Module, images: Tensor, expected: Tensor, tmp_path: Path
) -> None:
    dataset = TensorDataset(images)
    loader = DataLoader(dataset, batch_sampler=BatchSampler(SequentialSampler(dataset), 4, drop_last=False))
    check(embed_pool(model, loader, progress=False), expected, named=False)
    shard = embed_pool(model, loader, rank=1, world_size=2, progress=False)
    assert shard.ids == tuple(range(1, N, 2))
    torch.testing.assert_close(shard.values, expected[1::2], rtol=1e-5, atol=1e-7)
    check(embed_pool(model, loader, out=tmp_path / "image.npy", progress=False), expected, named=False)
    check(embed_pool(model, loader, out=tmp_path / "image.npy", resume=True, progress=False), expected, named=False)


def test_a_sampler_of_some_images_is_not_the_whole_pool(model: nn.Module, images: Tensor) -> None:
    some = DataLoader(Pairs(images), batch_size=2, sampler=SequentialSampler(range(5)))
    assert embed_pool(model, some, progress=False).ids == tuple(f"frame_{i}" for i in range(5))
    with pytest.raises(ValueError, match="cannot be cut into shards"):
        embed_pool(model, some, rank=0, world_size=2, progress=False)


def test_without_automatic_batches_items_are_batches(model: nn.Module, images: Tensor, expected: Tensor) -> None:
    for loader in (
        DataLoader(Batched(images), batch_size=None),
        DataLoader(Batched(images), batch_size=None, num_workers=0, sampler=SequentialSampler(range(3))),
        DataLoader(Stream(Batched(images)), batch_size=None),  # type: ignore[arg-type]
    ):
        seen: list[int | None] = []
        found = embed_pool(model, loader, progress=lambda done, total, seen=seen: seen.append(total))  # type: ignore[misc]
        check(found, expected, named=False)
        assert set(seen) == {None}  # 3 is not the number of images
        with pytest.raises(ValueError, match="cannot be cut into shards"):
            embed_pool(model, loader, rank=0, world_size=2, progress=False)


def test_a_loader_that_drops_the_last_images_is_refused(model: nn.Module, images: Tensor) -> None:
    sampler = SequentialSampler(range(N))
    for loader in (
        DataLoader(Pairs(images), batch_size=4, drop_last=True),
        DataLoader(Pairs(images), batch_sampler=BatchSampler(sampler, 4, drop_last=True)),
        DataLoader(Stream(images), batch_size=4, drop_last=True),
    ):
        with pytest.raises(ValueError, match="leaves out the last images; make it with drop_last=False"):
            embed_pool(model, loader, progress=False)


@pytest.mark.parametrize("arguments", [{}, {"rank": 1, "world_size": 2}])
def test_a_collate_fn_that_leaves_images_out_is_found(
    model: nn.Module, images: Tensor, arguments: dict[str, int]
) -> None:
    loader = DataLoader(Pairs(images), batch_size=4, collate_fn=without_the_first)
    with pytest.raises(ValueError, match="from image 0 on holds 3 images, where 4 were asked for: its collate_fn"):
        embed_pool(model, loader, progress=False, **arguments)  # type: ignore[arg-type]


def test_several_workers_over_a_stream_must_name_the_images(model: nn.Module, images: Tensor) -> None:
    """Each of them gives every image."""
    with pytest.raises(ValueError, match="several workers over an IterableDataset"):
        embed_pool(model, DataLoader(Stream(images), batch_size=2, num_workers=2), progress=False)


class Watched(Pairs):
    """A pool that only a worker of the kind asked for may read, and only once the worker has made it ready."""

    ready: str | None = None

    def __init__(self, images: Tensor, last: int = -1) -> None:
        super().__init__(images)
        self.last = last

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        assert self.ready == type(multiprocessing.current_process()).__name__
        if index == self.last:
            raise RuntimeError("the reader stops here")
        if index < 2:
            time.sleep(0.2)  # the other worker's batch is there first
        return super().__getitem__(index)


def make_ready(worker: int) -> None:
    info = get_worker_info()
    info.dataset.ready = type(multiprocessing.current_process()).__name__


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("in_order", [True, False])
def test_a_loader_keeps_its_workers_ways(
    model: nn.Module, images: Tensor, expected: Tensor, method: str, in_order: bool, tmp_path: Path
) -> None:
    """In one pass, in shards and after a kill: how workers start, what they begin with, and the order of images."""

    def loader(last: int = -1) -> DataLoader:
        return DataLoader(
            Watched(images, last),
            batch_size=2,
            num_workers=2,
            worker_init_fn=make_ready,
            multiprocessing_context=method,
            persistent_workers=True,
            in_order=in_order,
            timeout=100,
            generator=torch.Generator().manual_seed(3),
        )

    check(embed_pool(model, loader(), progress=False), expected, named=True)
    shard = embed_pool(model, loader(), rank=1, world_size=2, progress=False)
    assert shard.ids == tuple(f"frame_{i}" for i in range(1, N, 2))
    torch.testing.assert_close(shard.values, expected[1::2], rtol=1e-5, atol=1e-7)
    whole, out = tmp_path / "whole.npy", tmp_path / "image.npy"
    embed_pool(model, loader(), out=whole, progress=False)
    with pytest.raises(RuntimeError, match="the reader stops here"):
        embed_pool(model, loader(9), out=out, progress=False)
    check(embed_pool(model, loader(), out=out, resume=True, progress=False), expected, named=True)
    for suffix in (".npy", ".npy.ids"):
        assert out.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()


def test_workers_seeds_do_not_depend_on_shards(model: nn.Module, images: Tensor) -> None:
    """Nor is the caller's global random state drawn from, where the loader has a generator."""
    loader = DataLoader(Pairs(images), batch_size=2, generator=torch.Generator().manual_seed(3))
    before = torch.get_rng_state()
    embed_pool(model, loader, rank=1, world_size=2, progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_order_of_its_own_cannot_be_gone_on_with(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    loader = DataLoader(Pairs(images), batch_size=2, shuffle=True)
    embed_pool(model, loader, out=tmp_path / "image.npy", progress=False)
    with pytest.raises(ValueError, match="resume needs a pool in a fixed order"):
        embed_pool(model, loader, out=tmp_path / "image.npy", resume=True, progress=False)

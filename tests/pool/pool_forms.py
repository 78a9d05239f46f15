"""A pool of images in the forms that `embed_pool` takes, and what it must make of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from alges_fast import PoolEmbeddings

N, CLASSES = 11, 4


class Pairs(Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        return f"frame_{index}", self.images[index]


class Stream(IterableDataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.images)


def check(found: PoolEmbeddings, expected: Tensor, *, named: bool) -> None:
    assert found.ids == tuple(f"frame_{i}" if named else i for i in range(N))
    assert found.positions.tolist() == list(range(N))
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-7)

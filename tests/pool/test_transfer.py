"""Copies to the host are waited for on the device that makes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alges_fast.pool import transfer
from alges_fast.pool.source import Source
from alges_fast.pool.transfer import are_finite


class Event:
    """Stands in for `torch.cuda.Event`: remembers where it was recorded, by default on the current device's stream."""

    def __init__(self) -> None:
        self.stream = ""

    def record(self, stream: str = "stream of cuda:0") -> None:
        self.stream = stream


def test_the_event_is_recorded_on_the_tensors_device_not_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device="cuda:0": f"stream of {device}")
    monkeypatch.setattr(transfer, "_start_copy", lambda tensor: tensor)
    tensors: Any = [SimpleNamespace(device=torch.device("cuda:1"))]
    copies, event = transfer.to_host(tensors)
    assert isinstance(event, Event)
    assert event.stream == "stream of cuda:1"
    assert copies == tensors


def test_tensors_on_the_host_are_there_at_once() -> None:
    copies, event = transfer.to_host([torch.arange(3)])
    assert event is None
    assert copies[0].tolist() == [0, 1, 2]


@pytest.mark.gpu
def test_copies_from_a_device_are_there_once_the_event_has_passed() -> None:
    copies, event = transfer.to_host([torch.arange(1 << 20, device="cuda")])
    event.synchronize()
    assert torch.equal(copies[0], torch.arange(1 << 20))


def test_finite_images_are_told_whatever_their_sum() -> None:
    images = torch.full((4, 3, 4, 4), 3e38)  # sums to infinity
    images[1, 2, 3, 3] = torch.nan
    images[2, 0, 0, 0] = -torch.inf
    assert are_finite(images).tolist() == [True, False, False, True]
    assert are_finite(images[:1]).tolist() == [True]
    assert are_finite(torch.ones(2, 1, 3, 3, dtype=torch.float16)).tolist() == [True, True]


def test_batches_keep_channels_last_images_as_they_are() -> None:
    maps = torch.randn(5, 4, 6, 3).permute(0, 3, 1, 2)
    batches = list(Source([(str(i), image) for i, image in enumerate(maps)], 0, 1, 2).batches())
    assert [len(batch.ids) for batch in batches] == [2, 2, 1]
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    assert torch.equal(torch.cat([batch.images for batch in batches]), maps)

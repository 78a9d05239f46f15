"""Copies to the host are waited for on the device that makes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alges_fast.pool import transfer


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
    assert event is not None
    event.synchronize()
    assert torch.equal(copies[0], torch.arange(1 << 20))

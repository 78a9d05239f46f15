"""How the benchmarks time a GPU: what it works, whatever the host takes to ask for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import floors

HOST, KERNEL = 100e-6, 20e-6  # seconds a call


class Machine:
    """A host and a GPU with clocks of their own, by torch.cuda's names. The GPU does what is queued in order."""

    def __init__(self, *, captures: bool, waits: bool = False) -> None:
        self.host = self.gpu = 0.0
        self.captures, self.waits, self.capturing = captures, waits, 0
        self.CUDAGraph = lambda: SimpleNamespace(kernels=0, replay=None)

    def work(self, seconds: float) -> None:
        self.gpu = max(self.gpu, self.host) + seconds

    def run(self) -> None:
        self.host += HOST
        if self.capturing:
            if not self.captures:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.capturing += 1
            return
        self.work(KERNEL)
        if self.waits:
            self.synchronize()

    def synchronize(self) -> None:
        self.host = max(self.host, self.gpu)

    def _sleep(self, cycles: int) -> None:
        self.work(cycles / floors.SLEEP_HZ)

    @contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.capturing = 1
        try:
            yield
            kernels = self.capturing - 1
            graph.replay = lambda: self.work(kernels * KERNEL)
        finally:
            self.capturing = 0

    def Event(self, enable_timing: bool) -> Any:
        machine, event = self, SimpleNamespace(at=0.0, synchronize=self.synchronize)

        def record() -> None:
            event.at = max(machine.gpu, machine.host)

        event.record = record
        event.query = lambda: event.at <= machine.host
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event


@pytest.mark.parametrize(("captures", "how"), [(True, "graph"), (False, "queue")])
def test_the_hosts_time_is_not_in_a_kernels(monkeypatch: pytest.MonkeyPatch, captures: bool, how: str) -> None:
    machine = Machine(captures=captures)
    monkeypatch.setattr(floors.time, "perf_counter", lambda: machine.host)
    timing = floors.gpu_seconds(machine.run, cuda=machine)
    assert timing.how == how
    assert timing.seconds == pytest.approx(KERNEL)


def test_where_a_call_waits_for_the_gpu_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(captures=False, waits=True)
    monkeypatch.setattr(floors.time, "perf_counter", lambda: machine.host)
    assert floors.gpu_seconds(machine.run, cuda=machine).how == "queue, the host in it"

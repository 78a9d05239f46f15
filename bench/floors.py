"""What this machine can do at best, measured in the run that quotes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch


def seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """The shortest of some runs, after one to warm up; the GPU's work included where there is one."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    run()
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def event_seconds(run: Callable[[], object]) -> float:
    """Of what a call puts on the current stream, by the GPU's own clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@cache
def copy_bandwidth(device: str = "cpu") -> float:
    """Bytes a second, read and written together, of copying 400 MB of float32."""
    source = torch.randn(100_000_000, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


@cache
def read_bandwidth(device: str = "cpu") -> float:
    """Bytes a second of summing 400 MB of float32."""
    source = torch.randn(100_000_000, device=device)
    return source.nbytes / seconds(source.sum)


@cache
def matmul_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Flops a second of a matrix product of side 2048, or 8192 on a GPU."""
    side = 2048 if device == "cpu" else 8192
    a, b = torch.randn(2, side, side, device=device).to(dtype).unbind()
    return 2 * side**3 / seconds(lambda: a @ b)

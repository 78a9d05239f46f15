"""What this machine can do at best, measured in the run that quotes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch


def seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """The shortest of some runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@cache
def copy_bandwidth() -> float:
    """Bytes a second, read and written together, of copying 400 MB of float32."""
    source = torch.randn(100_000_000)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


@cache
def matmul_rate(dtype: torch.dtype) -> float:
    """Flops a second of a 2048 x 2048 x 2048 matrix product."""
    a, b = torch.randn(2, 2048, 2048).to(dtype).unbind()
    return 2 * 2048**3 / seconds(lambda: a @ b)

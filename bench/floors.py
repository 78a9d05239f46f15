"""What this machine can do at best, measured in the run that quotes it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

from alges_fast._native import cpu_kernels, native_status

SLEEP_HZ = 2e9
"""Cycles a second of a sleeping GPU, at the most."""


class Timing(NamedTuple):
    seconds: float
    how: str
    """"graph" or "queue", and whether the host is in it all the same."""


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


def gpu_seconds(run: Callable[[], object], calls: int = 20, repeats: int = 5, cuda: Any = torch.cuda) -> Timing:
    """What a call keeps the GPU at work for, without the host, which takes longer to make one than a GPU to run it.

    So many calls are captured in a graph, and the graph is replayed; what cannot be captured is queued behind a kernel
    that sleeps until all calls are made. The median of the repeats, after one that warms up.
    """
    run()
    cuda.synchronize()
    how, queue, n = "graph", _captured(run, calls, cuda), calls
    if queue is None:
        how, n = "queue", calls

        def queue() -> None:
            for _ in range(calls):
                run()

    begun = time.perf_counter()
    queue()
    asleep = time.perf_counter() - begun
    cuda.synchronize()
    taken, waited = [], False
    for repeat in range(repeats + 1):
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        cuda._sleep(int((2 * asleep + 1e-3) * SLEEP_HZ))
        start.record()
        queue()
        waited |= bool(start.query())  # the GPU was awake before all was queued
        end.record()
        end.synchronize()
        if repeat:
            taken.append(start.elapsed_time(end) / 1e3 / n)
    return Timing(statistics.median(taken), how + ", the host in it" * waited)


def _captured(run: Callable[[], object], calls: int, cuda: Any) -> Callable[[], None] | None:
    """A graph of so many calls to replay, or None where something in them waits for the host."""
    graph = cuda.CUDAGraph()
    try:
        with cuda.graph(graph):
            for _ in range(calls):
                run()
    except Exception:  # whatever the rival's library says to capturing
        cuda.synchronize()
        return None
    replay: Callable[[], None] = graph.replay
    return replay


@cache
def copy_bandwidth(device: str = "cpu") -> float:
    """Bytes a second, read and written together, of copying 400 MB of float32, on a GPU 4 GB."""
    source = torch.randn(100_000_000 if device == "cpu" else 1_000_000_000, device=device)
    target = torch.empty_like(source)
    if device == "cpu":
        return 2 * source.nbytes / seconds(lambda: target.copy_(source))
    return 2 * source.nbytes / gpu_seconds(lambda: target.copy_(source), calls=5).seconds


@cache
def read_bandwidth(device: str = "cpu") -> float:
    """Bytes a second of summing 400 MB of float32."""
    source = torch.randn(100_000_000, device=device)
    return source.nbytes / seconds(source.sum)


@cache
def fma_rate(threads: int) -> float:
    """Flops a second of the processor's multiply-adds, in a loop of nothing else and the kernels' own instruction set.

    What torch's matrix product reaches is no floor: on AMD it runs AVX2.
    """
    kernels = cpu_kernels()
    if kernels is None:
        raise RuntimeError(native_status())
    flops: list[int] = []
    taken = seconds(lambda: flops.append(kernels.multiply_add(2_000_000, threads)), repeats=15)
    return flops[-1] / taken


@cache
def matmul_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Flops a second of a matrix product of side 2048, or 8192 on a GPU."""
    side = 2048 if device == "cpu" else 8192
    a, b = torch.randn(2, side, side, device=device).to(dtype).unbind()
    taken = seconds(lambda: a @ b) if device == "cpu" else gpu_seconds(lambda: a @ b, calls=5).seconds
    return 2 * side**3 / taken

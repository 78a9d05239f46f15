"""`pixel_gradients` against the other ways to its numbers, outputs image and semantic, in one run.

    python -m pytest bench/test_bench_pixel_gradients.py --benchmark-json bench/results/pixel_gradients.json

The floor is the slower of two things no implementation can avoid: the features read once, at the bandwidth of a copy,
and 4 K d (kernel area) flops a pixel, at the rate of a large matrix product; both measured here. On a machine with a
GPU the same cases run there too, at sizes that fill it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from floors import copy_bandwidth, event_seconds, matmul_rate
from pytest_benchmark.fixture import BenchmarkFixture
from rivals import RIVALS, missing
from torch import Tensor

from alges_fast import pixel_gradients
from alges_fast.ops import cpu
from alges_fast.ops.problem import Problem


@dataclass(frozen=True)
class Case:
    device: str
    batch: int
    channels: int
    classes: int
    side: int
    kernel: int = 1
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format

    def __str__(self) -> str:
        """Also the benchmark's group: rivals of one case stand together."""
        words = [self.device, f"B{self.batch}", f"d{self.channels}", f"K{self.classes}", f"{self.side}x{self.side}"]
        words += [f"{self.kernel}x{self.kernel} head", str(self.dtype).removeprefix("torch.")]
        return " ".join(words + ["channels-last"] * (self.layout is torch.channels_last))

    @property
    def flops(self) -> int:
        return 4 * self.classes * self.channels * self.kernel**2 * self.batch * self.side**2

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        draw = {"device": self.device, "dtype": self.dtype}
        features = torch.randn(self.batch, self.channels, self.side, self.side, **draw).to(memory_format=self.layout)
        weight = torch.randn(self.classes, self.channels, self.kernel, self.kernel, **draw)
        return features, weight / (self.channels**0.5 * self.kernel), torch.randn(self.classes, **draw)

    def naive_bytes(self) -> int:
        """Of the gradients of one image's pixels, and their squares."""
        return 2 * self.flops // self.batch * self.dtype.itemsize // 4


CPU = [
    Case("cpu", 8, 16, 13, 224),
    Case("cpu", 8, 64, 13, 128),
    Case("cpu", 4, 256, 19, 128),
    Case("cpu", 4, 16, 13, 224, kernel=3),
]
CPU_VARIANTS = [
    Case("cpu", 8, 16, 13, 224, layout=torch.channels_last),
    Case("cpu", 8, 16, 13, 224, dtype=torch.bfloat16),
]
# Features of 500 MB and more, past every cache. Channels-last is what `embed_pool` gives.
GPU = [
    Case("cuda", 160, 16, 13, 224),
    Case("cuda", 320, 16, 13, 224, dtype=torch.bfloat16),
    Case("cuda", 128, 64, 19, 128),
    Case("cuda", 64, 128, 19, 128),
    Case("cuda", 32, 256, 19, 128),
    Case("cuda", 64, 256, 19, 128, dtype=torch.bfloat16),
    Case("cuda", 160, 16, 13, 224, layout=torch.channels_last),
    Case("cuda", 320, 16, 13, 224, dtype=torch.bfloat16, layout=torch.channels_last),
    Case("cuda", 32, 256, 19, 128, layout=torch.channels_last),
    Case("cuda", 64, 256, 19, 128, dtype=torch.bfloat16, layout=torch.channels_last),
    Case("cuda", 160, 16, 13, 224, kernel=3),
    Case("cuda", 320, 16, 13, 224, kernel=3, dtype=torch.bfloat16),
]
HERE = CPU + (GPU if torch.cuda.is_available() else [])


def measure(
    benchmark: BenchmarkFixture, case: Case, run: Callable[[], object], rounds: int, scratch: int | None
) -> None:
    """On a GPU the rate is of the events' median; the benchmark's own time has the host's cost and a wait in it."""
    on_gpu: list[float] = []

    def whole() -> None:
        if case.device == "cpu":
            run()
        else:
            on_gpu.append(event_seconds(run))

    benchmark.group = str(case)
    benchmark.pedantic(whole, rounds=rounds, warmup_rounds=3 if rounds > 5 else 1)
    if benchmark.stats is None:  # --benchmark-disable
        return
    taken = statistics.median(on_gpu[-rounds:]) if on_gpu else benchmark.stats["median"]
    features = case.batch * case.channels * case.side**2 * case.dtype.itemsize
    rate = matmul_rate(case.dtype if case.device == "cuda" else torch.float32, case.device)
    floor = max(features / copy_bandwidth(case.device), case.flops / rate)
    benchmark.extra_info.update(
        {
            "ms": 1e3 * taken,
            "ms an image": 1e3 * taken / case.batch,
            "GFLOP/s": case.flops / taken / 1e9,
            "GB/s of features": features / taken / 1e9,
            "% of floor": 100 * floor / taken,
            "% of product rate": 100 * case.flops / taken / rate,
            "product GFLOP/s": rate / 1e9,
            "copy GB/s": copy_bandwidth(case.device) / 1e9,
        }
    )
    if scratch is not None:
        benchmark.extra_info["scratch KB"] = scratch / 1024


@pytest.mark.parametrize(
    ("case", "backend"),
    [(case, "cpu") for case in CPU + CPU_VARIANTS]
    + [(case, backend) for case in HERE if case.device == "cuda" for backend in ("triton", "cuda")],
    ids=str,
)
def test_alges_fast(benchmark: BenchmarkFixture, case: Case, backend: str) -> None:
    operands = case.operands()
    scratch = None
    if backend == "cpu":
        features, weight, bias = (operands[0].unsqueeze(2), operands[1].float().unsqueeze(2), operands[2].float())
        problem = Problem(features, weight, bias, None, None, None, frozenset({"image", "semantic"}))
        scratch = cpu.scratch_bytes(problem)
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        pixel_gradients(*operands, backend=backend)
        scratch = torch.cuda.max_memory_allocated() - before
    measure(benchmark, case, lambda: pixel_gradients(*operands, backend=backend), 60, scratch)


SMALL = Case("cuda", 8, 16, 13, 224)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_host_cost_of_a_call(benchmark: BenchmarkFixture, backend: str) -> None:
    """Until the call returns, the GPU at work meanwhile: what Python and the launches take."""
    operands = Case("cuda", 1, 16, 13, 16).operands()
    benchmark.group = "host cost of a call"
    benchmark.pedantic(lambda: pixel_gradients(*operands, backend=backend), rounds=50, iterations=20, warmup_rounds=5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("case", [SMALL, *GPU[:2]], ids=str)
def test_replayed_graph(benchmark: BenchmarkFixture, case: Case, backend: str) -> None:
    """The same call without the host: a CUDA graph, replayed."""
    operands = case.operands()
    pixel_gradients(*operands, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pixel_gradients(*operands, backend=backend)
    measure(benchmark, case, graph.replay, 60, None)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("case", HERE, ids=str)
def test_rival(benchmark: BenchmarkFixture, case: Case, rival: str) -> None:
    if (reason := missing(rival)) is not None:
        pytest.skip(reason)
    if rival == "naive" and case.naive_bytes() > 2**30:
        pytest.skip(f"stores {case.naive_bytes() / 2**30:.1f} GiB an image")
    operands = case.operands()
    measure(benchmark, case, lambda: RIVALS[rival](*operands), {"compiled": 20, "eager": 5}.get(rival, 3), None)

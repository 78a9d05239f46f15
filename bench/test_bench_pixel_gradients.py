"""`pixel_gradients` against the other ways to its numbers, outputs image and semantic, in one run.

    python -m pytest bench/test_bench_pixel_gradients.py --benchmark-json bench/results/pixel_gradients.json

The floor is the slower of two things no implementation can avoid: the features read once, at the bandwidth of a copy,
and 4 K d (kernel area) flops a pixel, at the rate of a bare loop of multiply-adds, on a GPU of a large matrix product;
all measured here. On a machine with a GPU the same cases run there too, at sizes that fill it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from floors import copy_bandwidth, fma_rate, gpu_seconds, matmul_rate
from pytest_benchmark.fixture import BenchmarkFixture
from rivals import RIVALS, missing
from torch import Tensor

from alges_fast import pixel_gradients
from alges_fast.ops import cpu
from alges_fast.ops.operands import Operands, mask_of


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
    weights: torch.dtype | None = None
    """Where other than the features'."""
    rows: int | None = None
    """Where other than the side."""

    def __str__(self) -> str:
        """Also the benchmark's group: rivals of one case stand together."""
        words = [self.device, f"B{self.batch}", f"d{self.channels}", f"K{self.classes}", f"{self.height}x{self.side}"]
        words += [f"{self.kernel}x{self.kernel} head", str(self.dtype).removeprefix("torch.")]
        words += ["channels-last"] * (self.layout is torch.channels_last)
        return " ".join(words + [f"{str(self.weights).removeprefix('torch.')} weights"] * (self.weights is not None))

    @property
    def height(self) -> int:
        return self.rows or self.side

    @property
    def flops(self) -> int:
        return 4 * self.classes * self.channels * self.kernel**2 * self.batch * self.height * self.side

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        draw = {"device": self.device, "dtype": self.dtype}
        features = torch.randn(self.batch, self.channels, self.height, self.side, **draw).to(memory_format=self.layout)
        weight = torch.randn(self.classes, self.channels, self.kernel, self.kernel, **draw)
        weight, bias = weight / (self.channels**0.5 * self.kernel), torch.randn(self.classes, **draw)
        of_layer = self.weights or self.dtype
        return features, weight.to(of_layer), bias.to(of_layer)

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
    # What autocast gives, and one image of a street.
    Case("cuda", 128, 64, 19, 128, dtype=torch.bfloat16),
    Case("cuda", 64, 256, 19, 128, dtype=torch.bfloat16, weights=torch.float32),
    Case("cuda", 128, 64, 19, 128, dtype=torch.bfloat16, weights=torch.float32, layout=torch.channels_last),
    Case("cuda", 4, 64, 19, 2048, dtype=torch.bfloat16, rows=1024),
    Case("cuda", 1, 16, 13, 2048, rows=1024),
]
HERE = CPU + (GPU if torch.cuda.is_available() else [])


def measure(
    benchmark: BenchmarkFixture, case: Case, run: Callable[[], object], rounds: int, scratch: int | None
) -> None:
    """On a GPU by `gpu_seconds`, and the benchmark's own time is that of one such measurement."""
    benchmark.group = str(case)
    if case.device == "cpu":
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=3 if rounds > 5 else 1)
        if benchmark.stats is None:  # --benchmark-disable
            return
        taken = benchmark.stats["median"]
    else:
        taken, how = benchmark.pedantic(lambda: gpu_seconds(run, calls=min(rounds, 20)), rounds=1)
        benchmark.extra_info |= {"timed by": how, "ms": 1e3 * taken}
    features = case.batch * case.channels * case.height * case.side * case.dtype.itemsize
    rate = matmul_rate(case.dtype if case.device == "cuda" else torch.float32, case.device)
    best = fma_rate(torch.get_num_threads()) if case.device == "cpu" else rate
    floor = max(features / copy_bandwidth(case.device), case.flops / best)
    if case.device == "cpu":
        benchmark.extra_info |= {"% of FMA rate": 100 * case.flops / taken / best, "FMA GFLOP/s": best / 1e9}
    benchmark.extra_info.update(
        {
            "ms an image": 1e3 * taken / case.batch,
            "GFLOP/s": case.flops / taken / 1e9,
            "GB/s of features": features / taken / 1e9,
            "% of floor": 100 * floor / taken,
            "% of copy": 100 * features / taken / copy_bandwidth(case.device),
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
    + [(case, backend) for backend in ("cuda", "triton") for case in HERE if case.device == "cuda"],
    ids=str,
)
def test_alges_fast(benchmark: BenchmarkFixture, case: Case, backend: str) -> None:
    operands = case.operands()
    scratch = None
    if backend == "cpu":
        scratch = cpu.scratch_bytes(Operands(*operands, outputs=mask_of(("image", "semantic"))).problem())
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        pixel_gradients(*operands, backend=backend)
        scratch = torch.cuda.max_memory_allocated() - before
    measure(benchmark, case, lambda: pixel_gradients(*operands, backend=backend), 60, scratch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_host_cost_of_a_call(benchmark: BenchmarkFixture, backend: str) -> None:
    """Until the call returns, the GPU at work meanwhile: what Python and the launches take."""
    operands = Case("cuda", 1, 16, 13, 16).operands()
    benchmark.group = "host cost of a call"
    benchmark.pedantic(lambda: pixel_gradients(*operands, backend=backend), rounds=50, iterations=20, warmup_rounds=5)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("case", HERE, ids=str)
def test_rival(benchmark: BenchmarkFixture, case: Case, rival: str) -> None:
    if (reason := missing(rival)) is not None:
        pytest.skip(reason)
    if case.weights is not None:
        pytest.skip("rivals multiply operands of one type")
    if rival == "naive" and case.naive_bytes() > 2**30:
        pytest.skip(f"stores {case.naive_bytes() / 2**30:.1f} GiB an image")
    operands = case.operands()
    measure(benchmark, case, lambda: RIVALS[rival](*operands), {"compiled": 20, "eager": 5}.get(rival, 3), None)

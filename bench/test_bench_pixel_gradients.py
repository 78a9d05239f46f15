"""`pixel_gradients` against the other ways to its numbers, outputs image and semantic, in one run.

    python -m pytest bench/test_bench_pixel_gradients.py --benchmark-json bench/results/pixel_gradients.json

The floor is the slower of two things no implementation can avoid: the features read once, at the bandwidth of a copy,
and 4 K d (kernel area) flops a pixel, at the rate of a large matrix product; both measured here. On a machine with a
GPU the same cases run there too, at sizes that fill it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from floors import copy_bandwidth, matmul_rate
from pytest_benchmark.fixture import BenchmarkFixture
from rivals import RIVALS
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
GPU = [
    Case("cuda", 256, 16, 13, 224),
    Case("cuda", 256, 16, 13, 224, dtype=torch.bfloat16),
    Case("cuda", 64, 256, 19, 128, dtype=torch.bfloat16),
    Case("cuda", 64, 16, 13, 224, kernel=3),
]
HERE = CPU + (GPU if torch.cuda.is_available() else [])


def measure(
    benchmark: BenchmarkFixture, case: Case, run: Callable[[], object], rounds: int, scratch: int | None
) -> None:
    def whole() -> None:
        run()
        if case.device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = str(case)
    benchmark.pedantic(whole, rounds=rounds, warmup_rounds=3 if rounds > 5 else 1)
    if benchmark.stats is None:  # --benchmark-disable
        return
    taken = benchmark.stats["median"]
    features = case.batch * case.channels * case.side**2 * case.dtype.itemsize
    rate = matmul_rate(case.dtype if case.device == "cuda" else torch.float32, case.device)
    floor = max(features / copy_bandwidth(case.device), case.flops / rate)
    benchmark.extra_info.update(
        {
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
    measure(benchmark, case, lambda: pixel_gradients(*operands, backend=backend), 60, scratch)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("case", HERE, ids=str)
def test_rival(benchmark: BenchmarkFixture, case: Case, rival: str) -> None:
    if rival == "naive" and case.naive_bytes() > 2**30:
        pytest.skip(f"stores {case.naive_bytes() / 2**30:.1f} GiB an image")
    operands = case.operands()
    measure(benchmark, case, lambda: RIVALS[rival](*operands), {"compiled": 20, "eager": 5}.get(rival, 3), None)

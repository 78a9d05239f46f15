"""What is special to the CUDA backend: the launch plans, the machine code, and the kernels in emulation."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from emulation import ROOT, load
from torch import Tensor

from alges_fast.ops import cuda, reference
from alges_fast.ops.problem import OUTPUTS, Problem

SHARED_LIMITS = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_90": 227 * 1024}


@pytest.fixture(scope="module")
def emulated() -> ModuleType:
    return load()


def draw(
    batch: int,
    channels: int,
    n_classes: int,
    spatial: tuple[int, int, int],
    kernel: tuple[int, int, int] = (1, 1, 1),
    *,
    dtype: torch.dtype = torch.float32,
    given: tuple[str, ...] = (),
    outputs: tuple[str, ...] = OUTPUTS,
) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Problem(
        features=normal(batch, channels, *spatial).to(dtype),
        weight=normal(n_classes, channels, *kernel) / channels**0.5,
        bias=normal(n_classes) if "bias" in given else None,
        logits=normal(batch, n_classes, *spatial).to(dtype) if "logits" in given else None,
        residual=normal(batch, n_classes, *spatial) if "residual" in given else None,
        valid=torch.rand(batch, *spatial, generator=generator) < 0.7 if "valid" in given else None,
        outputs=frozenset(outputs),
    )


def in_type(problem: Problem, dtype: torch.dtype) -> Problem:
    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    features, weight = problem.features.to(dtype), problem.weight.to(dtype)
    bias, logits, residual = cast(problem.bias), cast(problem.logits), cast(problem.residual)
    return Problem(features, weight, bias, logits, residual, problem.valid, problem.outputs)


CASES = {
    "1x1": draw(2, 16, 13, (1, 20, 23), given=("bias",)),
    "1x1, many channels": draw(1, 300, 19, (1, 7, 9)),
    "1x1, one axis": draw(1, 5, 3, (1, 1, 700), given=("valid",)),
    "3x3": draw(2, 3, 5, (1, 40, 33), (1, 3, 3), given=("bias",)),
    "3x3, half, all given": draw(
        1, 17, 21, (1, 9, 10), (1, 3, 3), dtype=torch.float16, given=("bias", "logits", "residual", "valid")
    ),
    "3x1x3, bfloat16": draw(1, 40, 2, (5, 4, 6), (3, 1, 3), dtype=torch.bfloat16, given=("valid",)),
    "150 classes": draw(1, 64, 150, (1, 9, 9), given=("residual",)),
    "256 classes, 2048 channels": draw(1, 2048, 256, (1, 2, 2)),
    "one class": draw(1, 5, 1, (1, 1, 7)),
}


@pytest.mark.parametrize("limit", SHARED_LIMITS.values(), ids=SHARED_LIMITS.keys())
@pytest.mark.parametrize("problem", CASES.values(), ids=CASES.keys())
def test_the_kernels_keep_to_the_error_budget_in_emulation(emulated: ModuleType, problem: Problem, limit: int) -> None:
    emulated.set_shared_limit(limit)
    found = cuda.launch(emulated, problem, 0, 0)
    truth, plain = reference.run(in_type(problem, torch.float64)), reference.run(in_type(problem, torch.float32))
    assert torch.equal(found.pop("class_pixels"), truth["class_pixels"])
    for name, value in found.items():
        error, allowed = ((each.double() - truth[name]).abs().max() for each in (value, plain[name]))
        assert error <= 2 * allowed + 1e-6 * truth[name].abs().max(), name


@pytest.mark.parametrize("problem", CASES.values(), ids=CASES.keys())
def test_no_order_of_threads_between_barriers_changes_a_bit(emulated: ModuleType, problem: Problem) -> None:
    expected = cuda.launch(emulated, problem, 0, 0)
    try:
        for seed in (1, 2):
            emulated.set_order(seed)
            found = cuda.launch(emulated, problem, 0, 0)
            assert all(torch.equal(found[name], expected[name]) for name in problem.outputs)
    finally:
        emulated.set_order(0)


@pytest.mark.parametrize("limit", SHARED_LIMITS.values(), ids=SHARED_LIMITS.keys())
def test_plans_fit_the_machine(emulated: ModuleType, limit: int) -> None:
    channels = (*range(1, 40), 63, 64, 65, 128, 129, 255, 256, 304, 512, 1000, 1024, 2048)
    sizes = ((1, 1, 1), (1, 1, 50176), (1, 224, 224), (1, 129, 130), (8, 31, 7), (1, 30000, 40000))
    for n_classes, d in itertools.product(range(1, 257), channels):
        size = sizes[(n_classes + d) % len(sizes)]
        for kernel in ((1, 1, 1), (1, 3, 3)):
            shape = emulated.CudaPixelGradientsShape(64, d, n_classes, size, kernel)
            plan = shape.plan_tile(limit)
            gradient = n_classes * d * kernel[1] * kernel[2]
            if isinstance(plan, str):
                assert gradient > 4_000_000, plan
                continue
            assert plan["shared_bytes"] <= limit
            assert plan["words"] == gradient + 2 * n_classes + 4
            assert 1 <= plan["chunks"] <= plan["tiles"]
            assert 1 <= plan["images_a_launch"] <= 64
            assert plan["images_a_launch"] * plan["chunks"] * plan["words"] * 4 <= 16 * 2**20
            assert plan["images_a_launch"] * plan["chunks"] < 2**31
            assert plan["pixels"] == plan["tile"][0] * plan["tile"][1] * plan["tile"][2]
            assert 1 <= plan["groups"] <= plan["channel_blocks"]
            assert plan["channel_blocks"] * plan["channel_block"] >= d


def test_a_plan_does_not_depend_on_the_batch(emulated: ModuleType) -> None:
    shapes = [emulated.CudaPixelGradientsShape(batch, 256, 19, (1, 128, 128), (1, 1, 1)) for batch in (1, 7, 512)]
    plans = [shape.plan_tile(SHARED_LIMITS["sm_90"]) for shape in shapes]
    for plan in plans:
        del plan["images_a_launch"]
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", [80, 90, 120])
def test_kernels_spill_no_registers(architecture: int, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++17", "-O3", f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    sources = sorted((ROOT / "csrc" / "cuda").glob("pixel_gradients*.cu"))
    for source in sources:
        built = subprocess.run(
            [*command, "-Xptxas=-v", f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(tmp_path / "kernels.o")],
            check=True,
            capture_output=True,
            text=True,
        )
        report = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", built.stderr)
        assert report
        assert all(numbers == ("0", "0", "0") for numbers in report), built.stderr

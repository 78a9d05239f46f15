"""What is special to the CUDA backend: the launch plans, the machine code, and the kernels in emulation.

Where there is no GPU the conformance suite runs here on the emulated kernels: every test of it that takes a backend.
"""

from __future__ import annotations

import inspect
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import oracle
import pytest
import test_pixel_gradients
import test_pixel_gradients_calls
import torch
from backends_here import Backend, same
from ops.emulation import HERE, ROOT, build, load
from oracle import OUTPUTS, Inputs, draw

from alges_fast.ops import cuda, dispatch
from alges_fast.ops.native import layout
from alges_fast.ops.operands import Operands, mask_of
from alges_fast.ops.problem import Problem

SHARED_LIMITS = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_90": 227 * 1024}

if not torch.cuda.is_available():
    for _name, _test in [*vars(test_pixel_gradients).items(), *vars(test_pixel_gradients_calls).items()]:
        if _name.startswith("test_") and "backend" in inspect.signature(_test).parameters:
            globals()[_name] = _test


@pytest.fixture(scope="module")
def emulated() -> ModuleType:
    return load()


@pytest.fixture
def backend(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """backend="cuda" on CPU tensors, by the emulated kernels."""
    unavailable = dispatch.unavailable

    def unsupported(problem: Problem) -> str | None:
        return "float64 features" if problem.features.dtype == torch.float64 else None

    def bind(operands: Operands) -> Callable[[Operands], list[torch.Tensor]]:
        launch = cuda.launcher(emulated, operands, 0)
        return lambda operands: launch(operands, 0)

    monkeypatch.setattr(dispatch, "unavailable", lambda name: None if name == "cuda" else unavailable(name))
    monkeypatch.setattr(dispatch, "_runners", {})
    monkeypatch.setattr(cuda, "unsupported", unsupported)
    monkeypatch.setattr(cuda, "bind", bind)
    return Backend("cuda", "cpu", most_pixels=6000, most_weights=2**13)


def channels_last(inputs: Inputs) -> Inputs:
    return replace(inputs, features=oracle.channels_last(inputs.features))


# `plan_stream` takes these: sizes of 16 bytes; several tiles, and each number of warps that share channels.
STREAMED = {
    "float32": draw(2, 13, 16, (56, 64)),
    "float32, channels last": channels_last(draw(1, 21, 40, (31, 24), given=("valid",))),
    "float32, 2 warps share": draw(1, 24, 100, (17, 16), given=("logits", "residual", "valid")),
    "float32, 4 warps share, channels last": channels_last(draw(1, 19, 256, (9, 17))),
    "bfloat16": draw(2, 19, 64, (24, 40), dtype=torch.bfloat16, given=("valid",)),
    "bfloat16, channels last": channels_last(draw(1, 3, 8, (56, 64), dtype=torch.bfloat16)),
    "bfloat16, 2 warps share, float32 weight": replace(
        draw(1, 19, 250, (24, 16)), features=draw(1, 19, 250, (24, 16)).features.bfloat16()
    ),
    "bfloat16, 4 warps share, channels last": channels_last(draw(1, 1, 512, (5, 5), dtype=torch.bfloat16)),
}
CASES = {
    **STREAMED,
    "1x1": draw(2, 13, 16, (20, 23)),
    "1x1, many channels": draw(1, 19, 300, (7, 9)),
    "1x1, one axis": draw(1, 3, 5, (700,), given=("valid",)),
    "3x3": draw(2, 5, 3, (40, 33), (3, 3)),
    "3x3, many channels": draw(1, 21, 200, (9, 10), (3, 3), dtype=torch.float16, given=("logits", "residual", "valid")),
    "150 classes": draw(1, 150, 64, (9, 9), given=("residual",)),
}


@pytest.mark.parametrize("inputs", CASES.values(), ids=CASES.keys())
def test_every_plan_keeps_to_the_error_budget_and_no_order_of_threads_between_barriers_changes_a_bit(
    emulated: ModuleType, backend: Backend, inputs: Inputs
) -> None:
    try:
        for limit in SHARED_LIMITS.values():
            emulated.set_shared_limit(limit)
            found = backend(inputs)
            oracle.assert_within_budget(found, inputs)
        for seed in (1, 2):
            emulated.set_order(seed)
            same(backend(inputs), found)
    finally:
        emulated.set_order(0)
        emulated.set_shared_limit(SHARED_LIMITS["sm_90"])


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("classes", "channels"), [(3, 8), (19, 64), (5, 256), (1, 512)])
def test_bfloat16_channels_last_runs_in_any_order(
    emulated: ModuleType, backend: Backend, classes: int, channels: int, weights: torch.dtype
) -> None:
    """A race was seen here once, in an order unknown; every number of warps that share channels, a masked last tile."""
    inputs = draw(1, classes, channels, (9, 13), dtype=weights, given=("valid",))
    inputs = channels_last(replace(inputs, features=inputs.features.bfloat16()))
    expected = backend(inputs)
    try:
        for seed in range(3, 9):
            emulated.set_order(seed)
            same(backend(inputs), expected)
    finally:
        emulated.set_order(0)


def test_a_launch_is_not_judged_by_the_one_before(tmp_path: Path) -> None:
    """Addresses of the launch before passed for shared memory: a race that was none, or a jump to where nothing is."""
    program = build([HERE / "launches.cu", HERE / "hooks.cpp"], tmp_path / "launches")
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "")


def test_plain_tf32_runs_where_torch_allows_it(backend: Backend) -> None:
    inputs = draw(1, 13, 64, (24, 40))
    exact = backend(inputs)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        found = backend(inputs)
    finally:
        torch.set_float32_matmul_precision(before)
    error = (found.image - exact.image).abs().max() / exact.image.abs().max()
    assert 1e-6 < error < 1e-3


def call(emulated: ModuleType, inputs: Inputs) -> Any:
    problem = Operands(**inputs.keywords(), outputs=mask_of(OUTPUTS)).problem()
    return emulated.CudaPixelGradientsCall(**layout(problem), weight_is_bfloat16=problem.weight_dtype == torch.bfloat16)


@pytest.mark.parametrize("inputs", STREAMED.values(), ids=STREAMED.keys())
def test_aligned_rows_stream(emulated: ModuleType, inputs: Inputs) -> None:
    plan = call(emulated, inputs).plan_stream(SHARED_LIMITS["sm_90"])
    assert not isinstance(plan, str), plan


NOT_STREAMED = {
    "kernel": (draw(1, 3, 16, (8, 8), (3, 3)), "kernel"),
    "classes": (draw(1, 25, 16, (8, 8)), "classes"),
    "channels": (draw(1, 3, 257, (8, 8)), "channels"),
    "float16": (draw(1, 3, 16, (8, 8), dtype=torch.float16), "float16"),
    "odd rows": (draw(1, 3, 16, (7, 7)), "16 bytes"),
    "odd channels": (channels_last(draw(1, 3, 17, (7, 7))), "16 bytes"),
    "cut rows": (replace(draw(1, 3, 16, (8, 8)), features=torch.ones(1, 16, 8, 16)[..., :8]), "rows"),
    "unaligned": (replace(draw(1, 3, 16, (8, 8)), features=torch.ones(1025)[1:].view(1, 16, 8, 8)), "16 bytes"),
}


@pytest.mark.parametrize(("inputs", "reason"), NOT_STREAMED.values(), ids=NOT_STREAMED.keys())
def test_other_calls_say_why_they_do_not_stream(emulated: ModuleType, inputs: Inputs, reason: str) -> None:
    assert reason in call(emulated, inputs).plan_stream(SHARED_LIMITS["sm_90"])


@pytest.mark.parametrize("laid_out", [lambda inputs: inputs, channels_last], ids=["planar", "channels last"])
@pytest.mark.parametrize("n_classes", [13, 21])
def test_two_blocks_of_256_channels_fit_a_multiprocessor(
    emulated: ModuleType, laid_out: Callable[[Inputs], Inputs], n_classes: int
) -> None:
    features = torch.empty(3, 256, 224, 224, dtype=torch.bfloat16, device="meta")
    of_two = SHARED_LIMITS["sm_90"] // 2 - 1024
    for weight_type, parts in ((torch.bfloat16, 1), (torch.float32, 3)):
        inputs = laid_out(Inputs(features, torch.empty(n_classes, 256, dtype=weight_type)))
        plan = call(emulated, inputs).plan_stream(2 * of_two + 2048)
        assert plan["weight_parts"] == parts
        assert plan["shared_bytes"] <= of_two
        if parts == 1:
            assert plan["sharing"] == 2  # and not by warps that share more


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", SHARED_LIMITS.values(), ids=SHARED_LIMITS.keys())
def test_stream_plans_fit_the_machine(emulated: ModuleType, limit: int, dtype: torch.dtype) -> None:
    for last, n_classes, channels in itertools.product((False, True), range(1, 25), range(8, 513, 8)):
        features = torch.empty(3, channels, 224, 224, dtype=dtype, device="meta")
        inputs = Inputs(oracle.channels_last(features) if last else features, torch.empty(n_classes, channels))
        plan = call(emulated, inputs).plan_stream(limit)
        if isinstance(plan, str):
            assert channels >= (200 if limit == SHARED_LIMITS["sm_86"] else 257), plan
            continue
        assert plan["shared_bytes"] <= limit
        assert plan["stages"] * plan["stage_bytes"] >= plan["class_tiles"] * 8 * plan["channel_tiles"] * 16 * 4
        assert plan["stage_bytes"] % 16 == 0
        assert plan["tiles_a_warp"] * plan["sharing"] >= plan["channel_tiles"]
        assert plan["pixels"] % (32 * 4 // plan["sharing"]) == 0
        assert plan["images_a_launch"] * plan["chunks"] * plan["words"] * 4 <= 16 * 2**20


@pytest.mark.parametrize("limit", SHARED_LIMITS.values(), ids=SHARED_LIMITS.keys())
def test_plans_fit_the_machine(emulated: ModuleType, limit: int) -> None:
    channels = (*range(1, 40), 63, 64, 65, 128, 129, 255, 256, 304, 512, 1000, 1024, 2048)
    sizes = ((1, 1, 1), (1, 1, 50176), (1, 224, 224), (1, 129, 130), (8, 31, 7), (1, 30000, 40000))
    for n_classes, d in itertools.product(range(1, 257), channels):
        size = sizes[(n_classes + d) % len(sizes)]
        for kernel in ((1, 1, 1), (1, 3, 3)):
            plan = emulated.cuda_tile_plan((64, d, n_classes, *size, *kernel), limit)
            gradient = n_classes * d * kernel[1] * kernel[2]
            if isinstance(plan, str):
                assert gradient > 4_000_000, plan
                continue
            assert plan["shared_bytes"] <= limit
            assert plan["words"] == gradient + 4 * n_classes + 4 + d
            assert 1 <= plan["chunks"] <= plan["tiles"]
            assert 1 <= plan["images_a_launch"] <= 64
            assert plan["images_a_launch"] * plan["chunks"] * plan["words"] * 4 <= 16 * 2**20
            assert plan["images_a_launch"] * plan["chunks"] < 2**31
            assert plan["pixels"] == plan["tile"][0] * plan["tile"][1] * plan["tile"][2]
            assert 1 <= plan["groups"] <= plan["channel_blocks"]
            assert plan["channel_blocks"] * plan["channel_block"] >= d


def test_an_image_has_at_most_256_chunks_unless_they_outgrow_float32_sums(emulated: ModuleType) -> None:
    for side, most in ((224, 256), (1024, 256), (2048, 256), (8192, 1024)):
        inputs = Inputs(torch.empty(1, 64, side, side, dtype=torch.bfloat16, device="meta"), torch.empty(19, 64))
        plan = call(emulated, inputs).plan_stream(SHARED_LIMITS["sm_90"])
        assert plan["chunks"] <= most
        assert plan["chunks"] * 2**16 >= side**2


def test_chunks_are_added_by_lanes_without_loss(backend: Backend, emulated: ModuleType) -> None:
    """More chunks than lanes, a number of them that the lanes do not share evenly, in all three readings."""
    inputs = draw(1, 3, 4, (1, 1, 5300), given=("valid",))
    assert emulated.cuda_tile_plan((1, 4, 3, 1, 1, 5300, 1, 1, 1), SHARED_LIMITS["sm_90"])["chunks"] % 8
    oracle.assert_within_budget(backend(inputs), inputs)


TF32_PROGRAM = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from alges_fast import pixel_gradients
from alges_fast.ops.problem import tf32_allowed
features, weight = torch.randn(1, 3, 4, 4), torch.randn(2, 3)
matmul = torch.backends.cuda.matmul
assert not tf32_allowed()
for setting, expected in (("high", True), ("highest", False), ("medium", True), ("highest", False)):
    torch.set_float32_matmul_precision(setting)
    assert tf32_allowed() == expected, setting
for setting, expected in (("tf32", True), ("ieee", False), ("tf32", True)):
    matmul.fp32_precision = setting
    assert tf32_allowed() == expected, setting
pixel_gradients(features, weight, backend="triton")  # in this state torch.get_float32_matmul_precision raises
torch.backends.fp32_precision, matmul.fp32_precision = "tf32", "ieee"
assert not tf32_allowed()
"""


def test_tf32_is_allowed_by_either_api_of_torch() -> None:
    done = subprocess.run([sys.executable, "-c", TF32_PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
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

"""What only the C++ backend has: instruction sets, threads, and a bound on scratch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import assert_within_budget, draw
from torch import Tensor

from alges_fast._native import cpu_kernels
from alges_fast.ops import OUTPUTS, cpu, hidden_pixel_gradients, hidden_windows, pixel_gradients
from alges_fast.ops.problem import Problem

pytestmark = pytest.mark.skipif(cpu_kernels() is None, reason="no native kernels")

ISA_PROGRAM = """
import torch
from alges_fast import pixel_gradients
from alges_fast._native import cpu_kernels
from alges_fast.ops import OUTPUTS, hidden_pixel_gradients, hidden_windows
assert cpu_kernels().isa() == {isa!r}
torch.manual_seed(0)


def check(found, exact, *case):
    for name, ours, theirs in zip(exact._fields, found, exact):
        scale = theirs.double().abs().max().clamp(min=1).item()
        assert (ours.double() - theirs).abs().max() <= 5e-6 * scale, (name, *case)


for dtype, kernel, channels, classes in (
    (torch.float32, 1, 16, 13), (torch.float16, 1, 19, 21), (torch.bfloat16, 3, 35, 5), (torch.float32, 3, 70, 3),
):
    features = torch.randn(2, channels, 23, 37).to(dtype)
    weight, bias = torch.randn(classes, channels, kernel, kernel) / (channels**0.5 * kernel), torch.randn(classes)
    hidden = torch.randn(20, channels) / channels**0.5, torch.randn(20), torch.randn(classes, 20) / 4, bias
    valid = torch.rand(2, 23, 37) < 0.8

    def both(op, given, operands, **more):
        doubles = [each.double() for each in (given, *operands)]
        check(op(given, *operands, backend="cpu", **more), op(*doubles, backend="reference", **more), op, dtype, kernel)

    for layout in (torch.contiguous_format, torch.channels_last):
        given = features.to(memory_format=layout)
        both(pixel_gradients, given, (weight, bias), outputs=OUTPUTS, valid=valid)
        if kernel == 1:
            both(hidden_pixel_gradients, given, hidden, outputs=OUTPUTS, valid=valid)
        if kernel == 1 and layout == torch.channels_last:
            both(hidden_windows, given, hidden, regions=(4, 9))
"""

MEMORY_PROGRAM = """
import resource
import torch
from alges_fast import pixel_gradients
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weight = torch.randn(3, 16)
pixel_gradients(torch.randn(1, 16, 8, 8), weight, backend="cpu")
before = peak()
pixel_gradients(torch.randn(1, 16, 1, 1).expand(1, 16, 2048, 2048), weight, backend="cpu")
print((peak() - before) / 1024)
"""


def test_the_kernels_have_the_outputs_of_the_contract_in_its_order() -> None:
    assert cpu_kernels().OUTPUTS == OUTPUTS


def run_program(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def processor_has(isa: str) -> bool:
    program = "from alges_fast._native import cpu_kernels; print(cpu_kernels().isa())"
    return run_program(program, ALGES_FAST_ISA=isa).strip() == isa


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512", "neon"])
def test_every_instruction_set_computes_the_same(isa: str) -> None:
    if not processor_has(isa):
        pytest.skip(f"this processor or build has no {isa}")
    run_program(ISA_PROGRAM.format(isa=isa), ALGES_FAST_ISA=isa)


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU core alone (neon.cpp), compiled for a 64-bit Arm processor."""
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on PATH (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)")
    source, program = Path(__file__).parents[2] / "csrc", tmp_path_factory.mktemp("arm") / "neon"
    core = [Path(__file__).with_name("neon.cpp")]
    core += [source / "cpu" / f"{name}.cpp" for name in ("isa", "team", "pixel_gradients", "pixel_gradients_kernel")]
    # As csrc/cpu/sources.cmake compiles them, the last option apart: qemu-user then needs no Arm libraries.
    options = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-DALGES_ISA=neon"]
    options += [f"-I{source}", "-o", str(program), "-static"]
    subprocess.run(["aarch64-linux-gnu-g++", *options, *map(str, core)], check=True)
    return program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "kernel", "channels", "classes", "inputs"),
    [
        *[(torch.float32, 1, 16, 13, 0), (torch.float32, 1, 150, 21, 0), (torch.float32, 3, 70, 3, 0)],
        *[(torch.bfloat16, 1, 19, 3, 0), (torch.float16, 3, 19, 5, 0)],
        *[(torch.float16, 1, 32, 13, 64), (torch.float32, 1, 35, 21, 67)],
    ],
)
def test_neon_computes_the_same_under_emulation(
    arm_program: Path, dtype: torch.dtype, kernel: int, channels: int, classes: int, inputs: int
) -> None:
    torch.manual_seed(0)
    batch, height, width = 2, 23, 37
    features = torch.randn(batch, inputs or channels, height, width).to(dtype)
    weight = torch.randn(classes, channels, kernel, kernel) / (channels**0.5 * kernel)
    bias, valid = torch.randn(classes), torch.rand(batch, height, width) < 0.8
    hidden = (torch.randn(channels, inputs) / 8, torch.randn(channels)) if inputs else ()
    kind = (torch.float32, torch.bfloat16, torch.float16).index(dtype)

    def emulated(rows: int = 0, columns: int = 0) -> bytes:
        sizes = [batch, channels, classes, 1, height, width, 1, kernel, kernel, kind, inputs, rows, columns]
        kept = features.movedim(1, -1).contiguous() if inputs else features
        given = (torch.tensor(sizes), kept.view(torch.uint8), weight, bias, valid, *hidden)
        answer = subprocess.run(
            ["qemu-aarch64", str(arm_program)],
            input=b"".join(each.numpy().tobytes() for each in given),
            capture_output=True,
            check=True,
            timeout=500,
        ).stdout
        assert answer[:8].rstrip(b"\0") == b"neon"
        return answer[8:]

    def check(answer: bytes, exact: dict[str, Tensor]) -> None:
        position = 0
        for name, theirs in exact.items():
            kind_of = np.int64 if name == "class_pixels" else np.float32
            ours = np.frombuffer(answer, kind_of, theirs.numel(), position).reshape(theirs.shape)
            position += ours.nbytes
            scale = max(1.0, theirs.double().abs().max().item())
            assert np.abs(ours - theirs.numpy()).max() <= 5e-6 * scale, name
        assert position == len(answer)

    doubles = [each.double() for each in (features, *hidden, weight, bias)]
    definition: Any = hidden_pixel_gradients if inputs else pixel_gradients
    exact = definition(*doubles, outputs=OUTPUTS, valid=valid, backend="reference")
    check(emulated(), exact._asdict())
    if inputs:
        check(emulated(4, 9), hidden_windows(*doubles, regions=(4, 9), backend="reference")._asdict())


def test_strided_features_are_not_copied() -> None:
    """256 MB of features that are one pixel, repeated by stride 0."""
    assert float(run_program(MEMORY_PROGRAM)) < 32


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.usefixtures("threads_of_its_own")
def test_bits_do_not_depend_on_threads_or_layout(kernel: int) -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(3, 20, 61, 67), torch.randn(7, 20, kernel, kernel)
    wide = torch.randn(3, 20, 122, 134)
    wide[:, :, ::2, ::2] = features
    expected = pixel_gradients(features, weight, outputs=OUTPUTS, backend="cpu")
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        for same in (features, features.to(memory_format=torch.channels_last), wide[:, :, ::2, ::2]):
            found = pixel_gradients(same, weight, outputs=OUTPUTS, backend="cpu")
            for name, ours, theirs in zip(OUTPUTS, found, expected, strict=True):
                assert torch.equal(ours, theirs), (name, count, same.stride())


@pytest.mark.usefixtures("threads_of_its_own")
@pytest.mark.parametrize("outputs", [("image", "semantic"), OUTPUTS])
def test_scratch_stays_below_a_megabyte_a_thread(outputs: tuple[str, ...]) -> None:
    for batch, channels, classes, spatial, kernel in (
        *[(8, 16, 13, (1, 224, 224), (1, 1, 1)), (8, 16, 13, (1, 2160, 3840), (1, 1, 1))],
        *[(4, 256, 19, (1, 128, 128), (1, 1, 1)), (1, 2048, 256, (1, 33, 33), (1, 1, 1))],
        *[(8, 16, 13, (1, 224, 224), (1, 3, 3)), (2, 256, 21, (1, 128, 128), (1, 3, 3))],
        *[(2, 16, 5, (96, 96, 96), (3, 3, 3)), (2, 255, 1000, (1, 97, 97), (1, 1, 1))],
        *[(2, 300, 256, (1, 97, 97), (1, 3, 3)), (2, 1000, 21, (1, 33, 33), (1, 3, 3))],
        (2, 1, 1000, (1, 97, 97), (1, 5, 5)),
    ):
        features = torch.empty(1).expand(batch, channels, *spatial)
        weight = torch.empty(classes, channels, *kernel)
        problem = Problem(features, weight, None, None, None, None, frozenset(outputs))
        for count in (1, 2, 8):
            torch.set_num_threads(count)
            assert 0 < cpu.scratch_bytes(problem) <= count * 2**20, (channels, classes, kernel)


@pytest.mark.parametrize(("channels", "classes", "kernel"), [(255, 65, 3), (300, 150, 1), (1000, 21, 3)])
def test_sums_that_are_held_in_the_output_are_those_of_the_reference(channels: int, classes: int, kernel: int) -> None:
    inputs = draw(3, classes, channels, (9, 11), (kernel, kernel) if kernel > 1 else ())
    assert_within_budget(pixel_gradients(**inputs.keywords(), outputs=OUTPUTS, backend="cpu"), inputs)


def test_what_does_not_fit_the_cache_is_refused_and_runs_in_the_reference() -> None:
    features, weight = torch.randn(1, 20_000, 2, 2), torch.randn(3, 20_000)
    with pytest.raises(ValueError, match="20000 channels"):
        pixel_gradients(features, weight, backend="cpu")
    assert pixel_gradients(features, weight).image is not None

"""`pixel_gradients` on the CPU: vectorised C++ (csrc/cpu), on torch's number of threads.

A thread takes at most 1 MB beside the outputs. Layers of which 32 positions do not fit in it are refused (and run in
the reference by default): with 21 classes, from about 4000 channels on with a 1 x 1 kernel, 1300 with 3 x 3, 770 with
5 x 5.

`ALGES_FAST_ISA` names an instruction set other than the best this processor has: plain, avx2, avx512, neon.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alges_fast._native import cpu_kernels, native_status
from alges_fast.ops.native import addresses, operands
from alges_fast.ops.problem import OUTPUTS, Problem


def unavailable() -> str | None:
    """Why this backend cannot run on this machine."""
    return native_status() if cpu_kernels() is None else None


def unsupported(problem: Problem) -> str | None:
    """Why this backend cannot run these inputs."""
    if problem.features.device.type != "cpu":
        return f"features are on {problem.features.device}"
    if problem.features.dtype == torch.float64:
        return "it computes in float32; float64 runs on backend 'reference'"
    if scratch_bytes(problem) == 0:
        channels, classes, kernel = problem.channels, problem.classes, problem.kernel
        if problem.hidden is not None:
            inputs = problem.features.shape[1]
            return (
                f"{inputs} inputs, {channels} hidden channels and {classes} classes, with a kernel of {kernel}: the "
                "hidden layer takes more than 256 KB, or the kernel more than a pixel"
            )
        return (
            f"{channels} channels and {classes} classes with a kernel of {kernel}: 32 positions of them "
            "take more than the 768 KB of a thread's scratch memory"
        )
    return None


def run(problem: Problem) -> dict[str, Tensor]:
    """All outputs asked for, in canonical shape."""
    found = {name: problem.empty(name) for name in problem.outputs}
    _call(problem, addresses(found)).run()
    return found


def run_windows(problem: Problem, regions: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What `hidden_windows` returns, in canonical shape."""
    n_windows = regions[0] * regions[1]
    image = problem.features.new_empty((problem.batch, n_windows, *problem.weight.shape[:2]), dtype=problem.accumulator)
    outline = image.new_empty(image.shape[:2])
    _call(problem, addresses({"image": image}), regions, outline.data_ptr()).run()
    return image, outline


def unsupported_windows(problem: Problem, regions: tuple[int, int]) -> str | None:
    """Why this backend cannot run the windows of these inputs; `unsupported` has said of the images that it can."""
    if _call(problem, addresses({"image": problem.features}), regions, 1).scratch() == 0:
        return "a pixel's channels do not lie together, or 32 positions take more than a thread's scratch memory"
    return None


def scratch_bytes(problem: Problem) -> int:
    """Memory that `run` takes beside its outputs, for all threads together; 0 where it cannot run."""
    size: int = _call(problem, [int(name in problem.outputs) for name in OUTPUTS]).scratch()
    return size


def _call(problem: Problem, outputs: list[int], regions: tuple[int, int] = (0, 0), outline: int = 0) -> Any:
    kernels = cpu_kernels()
    assert kernels is not None
    more = {"threads": torch.get_num_threads()}
    if outline:
        more |= {"rows": regions[0], "columns": regions[1], "outline": outline}
    if problem.hidden is not None:
        weight, bias = problem.hidden
        more["inputs"] = weight.shape[1]
        more["hidden_weight"] = weight.data_ptr()
        more["hidden_bias"] = 0 if bias is None else bias.data_ptr()
    return kernels.PixelGradientsCall(**operands(problem), outputs=outputs, **more)

"""`pixel_gradients` on the CPU: vectorised C++ (csrc/cpu), on torch's number of threads.

A thread takes at most 1 MB beside the outputs. Layers of which 32 positions do not fit in it are refused (and run in
the reference by default): with 21 classes, from about 4000 channels on with a 1 x 1 kernel, 1300 with 3 x 3, 770 with
5 x 5.

`ALGES_FAST_ISA` names an instruction set other than the best this processor has: plain, avx2, avx512, neon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from alges_fast._native import cpu_kernels, native_status
from alges_fast.ops.native import Arguments, layout
from alges_fast.ops.operands import Operands
from alges_fast.ops.problem import Problem


def unavailable() -> str | None:
    """Why this backend cannot run on this machine."""
    return native_status() if cpu_kernels() is None else None


def unsupported(problem: Problem) -> str | None:
    """Why this backend cannot run these inputs."""
    if problem.features.device.type != "cpu":
        return f"features are on {problem.features.device}"
    if problem.features.dtype == torch.float64:
        return "it computes in float32; float64 runs on backend 'reference'"
    if scratch_bytes(problem) > 0:
        return None
    if problem.regions is not None:
        return "a pixel's channels do not lie together, or 32 positions take more than a thread's scratch memory"
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


def bind(operands: Operands) -> Callable[[Operands], list[Tensor]]:
    """What runs calls of this layout."""
    call, arguments = _call(operands.problem()), Arguments(operands)

    def run(operands: Operands) -> list[Tensor]:
        results, _kept, given, outputs = arguments.of(operands)
        outline = results[-1].data_ptr() if operands.regions else 0
        call.run(given, outputs, outline, torch.get_num_threads())
        return results

    return run


def scratch_bytes(problem: Problem) -> int:
    """Memory that a call takes beside its outputs, for all threads together; 0 where it cannot run."""
    size: int = _call(problem).scratch()
    return size


def _call(problem: Problem) -> Any:
    kernels = cpu_kernels()
    assert kernels is not None
    more: dict[str, Any] = {"threads": torch.get_num_threads()}
    if problem.regions is not None:
        more |= {"rows": problem.regions[0], "columns": problem.regions[1], "outline": 1}
    if problem.hidden is not None:
        weight, bias = problem.hidden
        more |= {"inputs": weight.shape[1], "hidden_weight": 1, "hidden_bias": int(bias is not None)}
    return kernels.PixelGradientsCall(**layout(problem), **more)

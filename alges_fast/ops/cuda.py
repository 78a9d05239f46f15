"""`pixel_gradients` in CUDA C++ (csrc/cuda): tensors in, pointers, strides and the current stream out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from alges_fast import _native
from alges_fast.ops.native import Arguments, layout, sizes
from alges_fast.ops.operands import Operands
from alges_fast.ops.problem import HIDDEN, Problem, tf32_allowed


def unavailable() -> str | None:
    """Why this backend cannot run on this machine."""
    if _native.cuda_kernels() is None:
        return f"built without CUDA kernels ({_native.native_status()})"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


def unsupported(problem: Problem) -> str | None:
    """Why this backend cannot run these inputs."""
    if problem.features.device.type != "cuda":
        return f"features are on {problem.features.device}, not on a CUDA device"
    if problem.hidden is not None:
        return HIDDEN
    if problem.features.dtype == torch.float64:
        return "float64 features; it computes in float32"
    reason = _native.cuda_unavailable(problem.features.device.index)
    if reason is not None:
        return reason
    native: Any = _native.cuda_kernels()
    plan = native.cuda_tile_plan(sizes(problem), native.cuda_shared_limit(problem.features.device.index))
    return plan if isinstance(plan, str) else None


def streams(problem: Problem) -> bool:
    """Whether the stream kernel takes this call, where any does."""
    if unsupported(problem) is not None:
        return False
    native: Any = _native.cuda_kernels()
    call = native.CudaPixelGradientsCall(**layout(problem), weight_is_bfloat16=problem.weight_dtype == torch.bfloat16)
    return not isinstance(call.plan_stream(native.cuda_shared_limit(problem.features.device.index)), str)


def bind(operands: Operands) -> Callable[[Operands], list[Tensor]]:
    """What runs calls of this layout."""
    device = operands.features.device
    launch = launcher(_native.cuda_kernels(), operands, device.index)

    def run(operands: Operands) -> list[Tensor]:
        stream = torch.cuda.current_stream(device).cuda_stream
        if torch.cuda.current_device() == device.index:  # to enter a device and leave it costs as much as a launch
            return launch(operands, stream)
        with torch.cuda.device(device):
            return launch(operands, stream)

    return run


def launcher(native: Any, operands: Operands, device: int) -> Callable[[Operands, int], list[Tensor]]:
    """What allocates outputs and scratch, and launches the kernels of the module `native` on a stream."""
    problem, arguments = operands.problem(), Arguments(operands)
    call = native.CudaPixelGradientsCall(**layout(problem), weight_is_bfloat16=problem.weight_dtype == torch.bfloat16)
    scratch_bytes = call.scratch_bytes(device)

    def launch(operands: Operands, stream: int) -> list[Tensor]:
        results, _kept, given, outputs = arguments.of(operands)
        scratch = operands.features.new_empty(scratch_bytes, dtype=torch.uint8)
        call.run(given, outputs, tf32_allowed(), device, scratch.data_ptr(), stream)
        return results

    return launch

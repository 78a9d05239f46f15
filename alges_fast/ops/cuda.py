"""`pixel_gradients` in CUDA C++ (csrc/cuda): tensors in, pointers, strides and the current stream out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alges_fast import _native
from alges_fast.ops.native import addresses, operands, sizes
from alges_fast.ops.problem import Problem, tf32_allowed


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
        return "a hidden layer; it runs on backends 'cpu' and 'reference'"
    if problem.features.dtype == torch.float64:
        return "float64 features; it computes in float32"
    reason = _native.cuda_unavailable(problem.features.device.index)
    if reason is not None:
        return reason
    native: Any = _native.cuda_kernels()
    plan = native.cuda_tile_plan(sizes(problem), native.cuda_shared_limit(problem.features.device.index))
    return plan if isinstance(plan, str) else None


def run(problem: Problem) -> dict[str, Tensor]:
    """All outputs asked for, in canonical shape."""
    device = problem.features.device
    with torch.cuda.device(device):
        return launch(_native.cuda_kernels(), problem, device.index, torch.cuda.current_stream(device).cuda_stream)


def launch(native: Any, problem: Problem, device: int, stream: int) -> dict[str, Tensor]:
    """Allocate outputs and scratch, and launch the kernels of the module `native`."""
    outputs = {name: problem.empty(name) for name in problem.outputs}
    call = native.CudaPixelGradientsCall(
        **operands(problem),
        outputs=addresses(outputs),
        weight_is_bfloat16=problem.weight_dtype == torch.bfloat16,
        allow_tf32=tf32_allowed(),
    )
    scratch = problem.features.new_empty(call.scratch_bytes(device), dtype=torch.uint8)
    call.run(device, scratch.data_ptr(), stream)
    return outputs

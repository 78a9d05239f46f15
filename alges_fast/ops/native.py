"""How both native backends are handed a call: addresses, types by number, strides (csrc/bindings.h)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alges_fast.ops.problem import OUTPUTS, Problem

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.bool: 3}  # enum Type of csrc/call.h


def sizes(problem: Problem) -> tuple[int, ...]:
    """B, d, K, D, H, W, kD, kH, kW."""
    return (problem.batch, problem.channels, problem.classes, *problem.spatial, *problem.kernel)


def operands(problem: Problem) -> dict[str, Any]:
    """Arguments of a native call that are the same on every device."""
    return {
        "shape": sizes(problem),
        "features": _operand(problem.features),
        "weight": problem.weight.data_ptr(),
        "bias": 0 if problem.bias is None else problem.bias.data_ptr(),
        "logits": _operand(problem.logits),
        "residual": _operand(problem.residual),
        "valid": None if problem.valid is None else _operand(problem.valid.unsqueeze(1)),
    }


def addresses(outputs: Mapping[str, Tensor]) -> list[int]:
    """Of every output there can be, 0 where it is not asked for."""
    return [outputs[name].data_ptr() if name in outputs else 0 for name in OUTPUTS]


def _operand(tensor: Tensor | None) -> tuple[int, int, tuple[int, ...]] | None:
    return None if tensor is None else (tensor.data_ptr(), TYPES[tensor.dtype], tensor.stride())

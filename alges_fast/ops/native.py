"""How both native backends are handed a call: addresses, types by number, strides (csrc/bindings.h)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alges_fast.ops.operands import Operands
from alges_fast.ops.outputs import OUTPUTS
from alges_fast.ops.problem import Problem

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.bool: 3}  # enum Type of csrc/call.h


def sizes(problem: Problem) -> tuple[int, ...]:
    """B, d, K, D, H, W, kD, kH, kW."""
    return (problem.batch, problem.channels, problem.classes, *problem.spatial, *problem.kernel)


def layout(problem: Problem) -> dict[str, Any]:
    """The arguments of a native call that are the same on every device. Outputs are only told from none."""
    return {
        "shape": sizes(problem),
        "features": _map(problem.features),
        "weight": 1,
        "bias": int(problem.bias is not None),
        "logits": _map(problem.logits),
        "residual": _map(problem.residual),
        "valid": None if problem.valid is None else _map(problem.valid.unsqueeze(1)),
        "outputs": [int(name in problem.outputs) for name in OUTPUTS],
    }


class Arguments:
    """What every call of one layout hands to the kernels: room for its results, and where everything lies."""

    def __init__(self, operands: Operands) -> None:
        self.shapes = operands.shapes()
        self.places = [OUTPUTS.index(name) for name in operands.names if name in OUTPUTS]  # an outline is none of them
        given = _given(operands)
        self.converted = [place for place in _SMALL if not _as_kernels_take_it(given[place])]

    def of(self, operands: Operands) -> tuple[list[Tensor], list[Tensor | None], list[int], list[int]]:
        """The results; the tensors given, to be kept until the call returns; addresses of both, 0 where there is none,
        in the order of `Tensors` and of `OUTPUTS`."""
        new = operands.features.new_empty
        results = [new(shape, dtype=dtype) for shape, dtype in self.shapes]
        given = _given(operands)
        for place in self.converted:
            given[place] = given[place].float().contiguous()  # type: ignore[union-attr]
        outputs = [0] * len(OUTPUTS)
        for place, result in zip(self.places, results, strict=False):
            outputs[place] = result.data_ptr()
        return results, given, [0 if tensor is None else tensor.data_ptr() for tensor in given], outputs


_SMALL = (1, 2, 6, 7)
"""Weights and biases among `Tensors`: the kernels take them contiguous, in float32."""


def _as_kernels_take_it(tensor: Tensor | None) -> bool:
    return tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous())


def _given(operands: Operands) -> list[Tensor | None]:
    """In the order of `Tensors`."""
    return [*operands[:6], operands.hidden_weight, operands.hidden_bias]


def _map(tensor: Tensor | None) -> tuple[int, int, tuple[int, ...]] | None:
    return None if tensor is None else (tensor.data_ptr(), TYPES[tensor.dtype], tensor.stride())

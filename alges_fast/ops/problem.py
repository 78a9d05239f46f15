"""What a backend is given: one canonical form of every call, and the facts that decide who can run it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alges_fast.ops.outputs import TABLE

HIDDEN = "windows behind a hidden layer run on 'cpu' and 'reference' alone"


def tf32_allowed() -> bool:
    """Whether torch lets products of float32 matrices run in TF32.

    By its newer API, which knows what was set through the older one; once something was set through the newer one,
    `torch.get_float32_matmul_precision` raises.
    """
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


@dataclass(frozen=True, slots=True)
class Problem:
    """A call with three spatial axes (missing ones have size 1, in front) and small operands in the accumulator's type.

    Attributes:
        features: (B, d, D, H, W), float16, bfloat16, float32 or float64, any strides.
        weight: (K, d, kD, kH, kW), contiguous, in `accumulator`.
        bias: (K,), contiguous, in `accumulator`, or None.
        logits, residual: (B, K, D, H, W) in the features' type or float32, any strides, or None.
        valid: (B, D, H, W) bool, any strides, or None for all.
        outputs: names out of `OUTPUTS`.
        hidden: weight (d, c) and bias (d,) of a layer in front, contiguous, in `accumulator`; `features` are then its
            inputs (B, c, D, H, W), and what is written of features holds for relu(weight * inputs + bias). None: none.
        weight_dtype: the type the weight was given in, in which its values are exact.
        regions: rows and columns of a grid of windows over images of one plane, whose `image` and outline are asked.

    B and the number of pixels are at least 1: empty calls never reach a backend. What an invalid pixel holds never
    matters, NaN included, save as part of a valid pixel's patch.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    logits: Tensor | None
    residual: Tensor | None
    valid: Tensor | None
    outputs: frozenset[str]
    weight_dtype: torch.dtype = torch.float32
    hidden: tuple[Tensor, Tensor | None] | None = None
    regions: tuple[int, int] | None = None

    @property
    def accumulator(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def batch(self) -> int:
        return self.features.shape[0]

    @property
    def channels(self) -> int:
        return self.weight.shape[1]

    @property
    def classes(self) -> int:
        return self.weight.shape[0]

    @property
    def spatial(self) -> tuple[int, int, int]:
        depth, height, width = self.features.shape[2:]
        return depth, height, width

    @property
    def kernel(self) -> tuple[int, int, int]:
        depth, height, width = self.weight.shape[2:]
        return depth, height, width

    @property
    def needs_prediction(self) -> bool:
        """Whether anything asked for depends on softmax or argmax."""
        independent = {"never"} if self.residual is None else {"never", "without residual"}
        return any(TABLE[name].predicts not in independent for name in self.outputs)

"""What the op is called with: `Operands`, in the order of its schema, checked once and for every door to it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alges_fast.backends import check_backend
from alges_fast.ops.outputs import OUTPUTS, TABLE
from alges_fast.ops.problem import Problem
from alges_fast.windows import check_regions

BACKENDS = ("reference", "cpu", "triton", "cuda")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OUTLINE = "outline"
"""Beside `image`, of windows: how many neighbours inside a window differ in prediction."""

SCHEMA = (
    "pixel_gradients(Tensor features, Tensor weight, Tensor? bias, Tensor? logits, Tensor? residual, Tensor? valid, "
    "int outputs, str backend, Tensor? hidden_weight=None, Tensor? hidden_bias=None, int[] regions=[]) -> Tensor[]"
)


class Operands(NamedTuple):
    """One call of the op. The arguments of `pixel_gradients`, and

    Attributes:
        outputs: a bit mask over `OUTPUTS`; results come in their order.
        backend: a name, or "auto".
        hidden_weight, hidden_bias: (d, c[, 1 ...]) and (d,) of a layer in front: the features are then its inputs.
        regions: rows and columns of a grid of windows, (): none. Results are then `image` and `OUTLINE`, a window each.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None = None
    logits: Tensor | None = None
    residual: Tensor | None = None
    valid: Tensor | None = None
    outputs: int = 0
    backend: str = "auto"
    hidden_weight: Tensor | None = None
    hidden_bias: Tensor | None = None
    regions: Sequence[int] = ()

    def validate(self) -> None:
        """Raises ValueError or TypeError, naming the argument, what was given and what was expected."""
        features, hidden = self.features, self.hidden_weight
        if hidden is None:
            _check_layer(features, self.weight, self.bias)
        else:
            for name, weight in (("hidden_weight", hidden), ("weight", self.weight)):
                if isinstance(weight, Tensor) and (weight.ndim < 2 or any(size != 1 for size in weight.shape[2:])):
                    raise ValueError(f"{name} must have a kernel of 1, got shape {_shape(weight)}")
            _check_layer(features, hidden, self.hidden_bias)
            # What is known of the features: their shape, and that they have the inputs' type or float32.
            made = features.new_empty(()).expand(len(features), len(hidden), *features.shape[2:])
            _check_layer(made, self.weight, self.bias)
        batch, spatial = features.shape[0], features.shape[2:]
        for name, operand in (("logits", self.logits), ("residual", self.residual)):
            if operand is not None:
                _check_operand(name, operand, features, (batch, len(self.weight), *spatial))
        if self.valid is not None:
            _check_operand("valid", self.valid, features, (batch, *spatial))
        if self.regions:
            check_regions(spatial, (self.regions[0], self.regions[1]))
        check_backend(None if self.backend == "auto" else self.backend, BACKENDS)

    def key(self) -> Hashable:
        """All that decides how the call is run: calls of one key differ in addresses and values alone."""
        tensors = (*self[:6], self.hidden_weight, self.hidden_bias)
        layouts = [None if t is None else (t.dtype, t.shape, t.stride()) for t in tensors]
        where = self.features.device, self.features.data_ptr() % 16
        return (*layouts, where, self.outputs, self.backend, tuple(self.regions))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the results, in order."""
        return (
            ("image", OUTLINE) if self.regions else tuple(n for bit, n in enumerate(OUTPUTS) if self.outputs >> bit & 1)
        )

    @property
    def accumulator(self) -> torch.dtype:
        return torch.float64 if self.features.dtype == torch.float64 else torch.float32

    def shapes(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of every result."""
        batch, spatial, accumulator = len(self.features), self.features.shape[2:], self.accumulator
        if self.regions:
            windows = batch, self.regions[0] * self.regions[1]
            return [((*windows, *self.weight.shape[:2]), accumulator), (windows, accumulator)]
        outputs = [TABLE[name] for name in self.names]
        return [(each.shape(batch, self.weight.shape, spatial), each.dtype(accumulator)) for each in outputs]

    def empty(self) -> list[Tensor]:
        """Room for every result."""
        return [self.features.new_empty(shape, dtype=dtype) for shape, dtype in self.shapes()]

    def problem(self) -> Problem:
        """The call in canonical form: three spatial axes, small operands in the accumulator's type."""
        missing, dtype = 5 - self.features.ndim, self.accumulator

        def three_axes(tensor: Tensor | None, axis: int) -> Tensor | None:
            if tensor is not None:
                for _ in range(missing):
                    tensor = tensor.unsqueeze(axis)
            return tensor

        def small(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype).contiguous()

        features, weight = three_axes(self.features, 2), small(self.weight)
        assert features is not None
        assert weight is not None
        while weight.ndim < 5:
            weight = weight.unsqueeze(2)
        hidden_weight = small(None if self.hidden_weight is None else self.hidden_weight.flatten(1))
        return Problem(
            features=features,
            weight=weight,
            bias=small(self.bias),
            logits=three_axes(self.logits, 2),
            residual=three_axes(self.residual, 2),
            valid=three_axes(self.valid, 1),
            outputs=frozenset(("image",) if self.regions else self.names),
            weight_dtype=self.weight.dtype,
            hidden=None if hidden_weight is None else (hidden_weight, small(self.hidden_bias)),
            regions=(self.regions[0], self.regions[1]) if self.regions else None,
        )


def mask_of(outputs: Sequence[str]) -> int:
    """The bit mask of these names."""
    mask = 0
    for name in outputs:
        mask |= 1 << OUTPUTS.index(name)
    return mask


def _check_layer(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("features", features), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    _check_dense("features", features)
    if features.dtype not in DTYPES:
        raise TypeError(f"features must be float16, bfloat16, float32 or float64, got {_name(features.dtype)}")
    _check_operand("weight", weight, features, None)
    sizes, of_weight = features.shape, weight.shape
    if not 3 <= len(sizes) <= 5:
        raise ValueError(f"features must be (B, d, *spatial) with 1 to 3 spatial axes, got shape {_shape(features)}")
    if len(of_weight) not in (2, len(sizes)):
        raise ValueError(
            f"weight must be (K, d) or (K, d, *kernel) with {len(sizes) - 2} kernel axes for features of shape "
            f"{_shape(features)}, got {_shape(weight)}"
        )
    channels, n_classes, weight_channels = sizes[1], of_weight[0], of_weight[1]
    if n_classes < 1 or channels < 1:
        raise ValueError(
            f"weight and features must have at least one class and one channel, got shapes {_shape(weight)} and "
            f"{_shape(features)}"
        )
    if weight_channels != channels:
        raise ValueError(
            f"weight has {weight_channels} channels (shape {_shape(weight)}) but features have {channels} (shape "
            f"{_shape(features)})"
        )
    if len(of_weight) > 2 and any(size % 2 == 0 for size in of_weight[2:]):
        raise ValueError(f"weight must have an odd kernel, got shape {_shape(weight)}")
    if bias is not None:
        _check_operand("bias", bias, features, (n_classes,))


def _check_operand(name: str, operand: Tensor, features: Tensor, shape: tuple[int, ...] | None) -> None:
    if not isinstance(operand, Tensor):
        raise TypeError(f"{name} must be a tensor or None, got {type(operand).__name__}")
    _check_dense(name, operand)
    if shape is not None and operand.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {_shape(operand)}")
    if operand.device != features.device:
        raise ValueError(f"{name} is on {operand.device}, but features are on {features.device}; move one of them")
    if name == "valid":
        if operand.dtype != torch.bool:
            raise TypeError(f"valid must be bool, got {_name(operand.dtype)}")
    elif operand.dtype != features.dtype and (operand.dtype != torch.float32 or features.dtype == torch.float64):
        also = "" if features.dtype in (torch.float32, torch.float64) else " or float32"
        raise TypeError(f"{name} must be {_name(features.dtype)}{also} like features, got {_name(operand.dtype)}")


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense tensor, got a {layout} one")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Transposed convolutions as last layers: their weight's gradient, and the norms of their patches.

Pixel q of the input reaches pixel s q + e κ - p of the output through the kernel's element κ (stride s, dilation e,
padding p): o = Σ over q and κ of W[:, :, κ]ᵀ z[q]. So the weight's gradient is, for every κ, Σ over q of r ⊗ z with r
taken at s q + e κ - p: a product of the features with a strided view of the residual, as of a 1 x 1 layer. And the
patch z̃ of an output pixel is, for every κ, the one input pixel that reaches it through κ, or zeros.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast.last_layer.layouts import to_compute_dtype
from alges_fast.ops import pixel_gradients
from alges_fast.windows import Box, cut


def transposed_weight_sum(
    features: Tensor, residual: Tensor, box: Box, layer: nn.Module, *, backend: str | None
) -> Tensor:
    """Σ over the output's pixels in a box of r ⊗ z̃, classes first.

    Args:
        features: (B, d, *input's grid).
        residual: (B, K, *box).
        box: where the residual lies in the layer's output.
        layer: a transposed convolution.
        backend: as for `alges_fast.pixel_gradients`.

    Returns:
        (B, K, d, *kernel): the weight's own shape with its first two axes exchanged.
    """
    axes = _axes(layer)
    under = tuple(axis.sources(side, length) for axis, side, length in zip(axes, box, features.shape[2:], strict=True))
    crop = cut(features, under)
    first = [axis.target(side.start, 0) - out.start for axis, side, out in zip(axes, under, box, strict=True)]
    last = [
        axis.target(side.stop - 1, axis.kernel - 1) - out.start
        for axis, side, out in zip(axes, under, box, strict=True)
    ]
    margins = [(max(-low, 0), max(high + 1 - len(out), 0)) for low, high, out in zip(first, last, box, strict=True)]
    around = F.pad(residual, [n for margin in reversed(margins) for n in margin])
    starts = [low + before for low, (before, _) in zip(first, margins, strict=True)]
    like_weight = crop.new_zeros(residual.shape[1], crop.shape[1])  # of a residual that is given no value of it is read
    taps = []
    for view in _taps(around, axes, starts, [len(side) for side in under]):
        mean = pixel_gradients(
            crop, like_weight, outputs=("image",), residual=to_compute_dtype(view, crop), backend=backend
        ).image
        assert mean is not None
        taps.append(mean)
    n_pixels = math.prod(crop.shape[2:])  # the op returns the mean over them
    return torch.stack(taps, -1).view(*taps[0].shape, *[axis.kernel for axis in axes]) * n_pixels


def transposed_patch_norms(features: Tensor, size: Sequence[int], layer: nn.Module) -> Tensor:
    """‖z̃‖ (B, *size) of every pixel of a transposed convolution's output; float32, or float64 for float64 features."""
    axes = _axes(layer)
    squared = features.to(torch.promote_types(features.dtype, torch.float32)).square().sum(1)
    sizes = [
        max(axis.padding + length, axis.stride * (source - 1) + axis.dilation * (axis.kernel - 1) + 1)
        for axis, length, source in zip(axes, size, squared.shape[1:], strict=True)
    ]
    uncropped = squared.new_zeros(len(squared), *sizes)
    for view in _taps(uncropped, axes, [0] * len(axes), squared.shape[1:]):
        view += squared
    return cut(uncropped, tuple(range(a.padding, a.padding + n) for a, n in zip(axes, size, strict=True))).sqrt()


@dataclass(frozen=True)
class _Axis:
    kernel: int
    stride: int
    padding: int
    dilation: int

    def target(self, source: int, element: int) -> int:
        return self.stride * source + self.dilation * element - self.padding

    def sources(self, targets: range, length: int) -> range:
        """Input pixels, of `length`, that may reach these output pixels."""
        reach = self.dilation * (self.kernel - 1)
        first = max(-((reach - self.padding - targets.start) // self.stride), 0)
        return range(first, max(min((targets.stop - 1 + self.padding) // self.stride + 1, length), first))


def _axes(layer: nn.Module) -> list[_Axis]:
    assert isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    assert not isinstance(layer.padding, str)  # those are for convolutions alone
    return [_Axis(*sizes) for sizes in zip(layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)]


def _taps(values: Tensor, axes: Sequence[_Axis], starts: Sequence[int], lengths: Sequence[int]) -> Iterator[Tensor]:
    """Views of (..., *spatial) at what the input's pixels reach through each element of the kernel, in its order."""
    for element in itertools.product(*(range(axis.kernel) for axis in axes)):
        slices: list[Any] = [...]
        for axis, index, start, length in zip(axes, element, starts, lengths, strict=True):
            first = start + axis.dilation * index
            slices.append(slice(first, first + axis.stride * (length - 1) + 1 if length else first, axis.stride))
        yield values[tuple(slices)]

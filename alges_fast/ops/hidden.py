"""A hidden layer in front of a backend that reads features: matrix products make its maps, some images at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alges_fast.ops.operands import Operands

MAP_BYTES = 16 << 20
"""Of inputs and maps in the accumulator's type at one time, or those of one image."""


def by_products(operands: Operands, run: Callable[[Operands], list[Tensor]]) -> list[Tensor]:
    """The results of a call with a hidden layer and no windows, in order.

    Reads the inputs and writes and reads the maps once each; an image's bits depend on no other image.

    Args:
        run: what runs a call without one.
    """
    assert operands.hidden_weight is not None
    features, itemsize = operands.features, operands.accumulator.itemsize
    image_bytes = features[0].numel() // features.shape[1] * sum(operands.hidden_weight.shape[:2]) * itemsize
    at_once = max(1, MAP_BYTES // image_bytes)
    parts = []
    for start in range(0, len(features), at_once):
        images = slice(start, start + at_once)
        maps = hidden_maps(features[images], operands.hidden_weight, operands.hidden_bias)
        valid = None if operands.valid is None else operands.valid[images]
        parts.append(run(operands._replace(features=maps, valid=valid, hidden_weight=None, hidden_bias=None)))
    return parts[0] if len(parts) == 1 else [torch.cat(results) for results in zip(*parts, strict=True)]


@torch.no_grad()
def hidden_maps(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """relu(weight * inputs + bias), (B, d, *spatial), in the accumulator's type; of -inf a NaN.

    An image is a product of its own, whose rounding no batch changes; in TF32 where
    `torch.get_float32_matmul_precision` allows it, which cuDNN's convolutions do not ask.
    """
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    with torch.autocast(inputs.device.type, enabled=False):
        weight, pixels = weight.flatten(1).to(dtype), inputs.flatten(2).to(dtype)
        maps = torch.empty((len(pixels), len(weight), pixels.shape[2]), dtype=dtype, device=pixels.device)
        for image, to in zip(pixels, maps, strict=True):
            torch.mm(weight, image, out=to)
        if bias is not None:
            maps += bias.to(dtype)[:, None]
        maps = torch.where(maps < 0, maps * 0, maps)
    return maps.view(*maps.shape[:2], *inputs.shape[2:])

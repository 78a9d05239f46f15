"""The kinds of last layer there are, how each lays out its channels, and the types of what goes with its input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Bilinear)


def channels_first(tensor: Tensor, layer: nn.Module) -> Tensor:
    """A linear layer keeps channels last, (B, *spatial, d); a view with them second."""
    return tensor.movedim(-1, 1) if isinstance(layer, (nn.Linear, nn.Bilinear)) else tensor


def on_grid(features: Tensor, layer: nn.Module, grid: tuple[int, ...]) -> Tensor:
    """The layer's input as (B, d, *grid), without a copy; a transposed convolution's on a grid of its own."""
    features = channels_first(features, layer)
    if isinstance(layer, TRANSPOSED) or features.shape[2:] == grid:
        return features
    return features.view(*features.shape[:2], *grid)


def kernel_of(weight: Tensor, grid: Sequence[int]) -> Sequence[int]:
    """The kernel's sizes; a linear layer's are 1."""
    return weight.shape[2:] or (1,) * len(grid)


def to_compute_dtype(tensor: Tensor, features: Tensor) -> Tensor:
    """In the features' type, or in float32, which every op takes beside a narrower type."""
    if tensor.dtype == features.dtype:
        return tensor
    return tensor.to(torch.promote_types(features.dtype, torch.float32))


def full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast is for the model; the op has its own types."""
    return torch.autocast(tensor.device.type, enabled=False)


def graph_nodes(tensor: Tensor) -> Iterator[Any]:
    """Autograd's nodes behind a tensor, breadth first."""
    queue: list[Any] = [tensor.grad_fn] if tensor.grad_fn is not None else []
    seen = set(queue)
    for node in queue:  # grows while it is walked
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)

"""What the trainings of heads and of whole networks share: the loss they are given, and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from alges_fast.losses import labelled_cross_entropy

LossFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, images (B, C, h, w) float32, masks (B, h, w) int64) -> scalar; `Strategy.loss` is one."""

MEMORY_FORMAT = torch.channels_last
"""Measured: a step of U-Net with ResNet-18 takes 0.65 to 0.97 of its time in torch's default layout (AVX-512)."""

WARM_UP = 0.3
"""Share of the steps in which the learning rate rises; then it falls, both along a cosine (one-cycle)."""


def plain_loss(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """The loss of a training with no strategy of its own: cross-entropy over labelled pixels."""
    return labelled_cross_entropy(model(images), masks)


def one_cycle(step: int, steps: int, peak: float) -> float:
    """The learning rate of a step: from a 25th of the peak up to it, then down to next to nothing, along cosines."""
    top = max(WARM_UP * steps - 1, 0)
    if step < top:
        low, high, way = peak / 25, peak, step / top
    else:
        low, high, way = peak, peak / 25e4, (step - top) / max(steps - 1 - top, 1)
    return low + (high - low) * (1 - math.cos(math.pi * way)) / 2

"""Batch normalisation over a single value, which has no statistics: torch refuses it in the middle of a pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def has_statistics_of_one_value(model: nn.Module, images: Tensor) -> bool:
    """Whether a batch normalisation of this model is given one value per channel: of one image, a map of one pixel.

    Args:
        model: left as it is; it is run once in eval mode.
        images: a batch as the model takes it.
    """
    found = False

    def inspect(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal found
        found |= args[0].numel() == args[0].shape[1]

    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    training = [module for module in model.modules() if module.training]
    handles = [layer.register_forward_pre_hook(inspect) for layer in layers]
    try:
        model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return found

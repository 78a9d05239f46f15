"""Fused ops over the input of a segmentation model's last layer."""

from alges_fast.ops.dispatch import one_pass_with_hidden
from alges_fast.ops.operands import BACKENDS
from alges_fast.ops.outputs import OUTPUTS, PixelGradients, check_outputs
from alges_fast.ops.pixel_gradients import WindowSums, hidden_pixel_gradients, hidden_windows, pixel_gradients

__all__ = [
    "BACKENDS",
    "OUTPUTS",
    "PixelGradients",
    "WindowSums",
    "check_outputs",
    "hidden_pixel_gradients",
    "hidden_windows",
    "one_pass_with_hidden",
    "pixel_gradients",
]

"""What a network's weights were trained on: the mean and deviation of each colour, so that images are given as then."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """(image - mean) / deviation for each colour, red, green, blue, of images between 0 and 1."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 RGB (..., 3, H, W) to float32, on the same device.

        Raises:
            ValueError: another type or another number of channels.
        """
        if images.dtype != torch.uint8 or images.ndim < 3 or images.shape[-3] != 3:
            raise ValueError(f"images: expected uint8 (..., 3, S, S), got {images.dtype} {tuple(images.shape)}")
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        deviation = torch.tensor(self.deviation, device=images.device).view(3, 1, 1)
        return (images.float() / 255 - mean) / deviation


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""-1 to 1: what TensorFlow's networks were trained on."""
UNIT = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""0 to 1."""

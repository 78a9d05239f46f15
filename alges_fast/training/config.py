"""Which network is trained, and how. The commands' configurations have these settings among their flags."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alges_fast.errors import UserError
from alges_fast.models import FROZEN
from alges_fast.models.weights import frozen_encoder


@dataclass(frozen=True)
class TrainConfig:
    """A network and its training; every field is a flag of the same name.

    Attributes:
        image_size: side of the square of an image, in pixels.
        architecture: a name of segmentation-models-pytorch, or `FROZEN`.
        encoder, encoder_weights: of the network; "" and None become the architecture's own.
        head_kernel: side of a whole network's last convolution.
        epochs, batch_size, lr: of a whole network.
        head_steps, head_pixels, head_lr, head_weight_decay: of a frozen encoder's head, see `head.train_head`.

    Raises:
        UserError: a value out of range, or a frozen encoder without weights.
    """

    image_size: int = 64
    architecture: str = "unet"
    encoder: str = ""
    encoder_weights: str | None = None
    head_kernel: int = 1
    epochs: int = 8
    batch_size: int = 8
    lr: float = 1e-3
    head_steps: int = 600
    head_pixels: int = 512
    head_lr: float = 2e-2
    head_weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        encoder, weights = self.encoder or "resnet18", self.encoder_weights
        if self.architecture == FROZEN:
            encoder, weights = frozen_encoder(self.encoder, weights)
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "encoder_weights", weights)
        for name in ("epochs", "batch_size", "head_steps", "head_pixels"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}: give at least 1")
        for name in ("lr", "head_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name} is {getattr(self, name)}: give a finite number above 0")
        if not 0 <= self.head_weight_decay < math.inf:
            raise UserError(f"--head_weight_decay is {self.head_weight_decay}: give a finite number from 0 on")

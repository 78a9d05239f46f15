"""Which network is trained, and how. The commands' configurations have these settings among their flags."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alges_fast.errors import UserError
from alges_fast.models import FROZEN
from alges_fast.models.weights import frozen_encoder
from alges_fast.settings import setting


@dataclass(frozen=True)
class TrainConfig:
    """A network and its training; every field is a flag of the same name.

    Args:
        image_size: side in pixels that frames are resized to; some architectures want a multiple of 32.
        architecture: a network of smp's, or frozen, which trains in seconds. Names are those of
            segmentation-models-pytorch, such as unet, fpn or deeplabv3plus; frozen is a small head over a pretrained
            encoder that is not trained.
        encoder: encoder of the network, such as resnet18 (the default) or mit_b0; of timm with the prefix tu-.
        encoder_weights: pretrained weights of the encoder: packaged (EfficientNet-Lite0 without a network, the default
            of frozen, of encoder tu-tf_efficientnet_lite0), a name such as imagenet, or a file; otherwise none.
        head_kernel: size of the last convolution, odd; the paper's is 1.
        epochs: passes over the labelled images in each training, which starts from scratch.
        batch_size: images per optimiser step.
        lr: learning rate of Adam.
        head_steps: optimiser steps of each training of a frozen encoder's head; epochs, batch_size and lr are not its.
        head_pixels: labelled pixels in each of them.
        head_lr: their highest learning rate.
        head_weight_decay: of AdamW.

    Raises:
        UserError: a value out of range, or a frozen encoder without weights.
    """

    image_size: int = 64
    architecture: str = setting("unet", "NAME", first=True)
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

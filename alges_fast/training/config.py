"""Which network is trained, and how. The commands' configurations have these settings among their flags."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from alges_fast.errors import UserError
from alges_fast.models import FROZEN, TUNED
from alges_fast.models.weights import frozen_encoder
from alges_fast.settings import setting
from alges_fast.training.augmentation import KINDS, kinds_of

STEPS, TUNING_STEPS = 1000, 200
"""Of a whole network's training, where no budget is given: from scratch, and from a head's on."""


@dataclass(frozen=True)
class TrainConfig:
    """A network and its training; every field is a flag of the same name.

    Args:
        image_size: side in pixels that frames are resized to; some architectures want a multiple of 32.
        architecture: one of smp's, frozen (seconds) or tuned (minutes). Names are those of
            segmentation-models-pytorch, such as unet, fpn or deeplabv3plus; frozen is a small head over a pretrained
            encoder that is not trained; tuned trains that head, and then the encoder too.
        encoder: encoder of the network, such as resnet18 (the default) or mit_b0; of timm with the prefix tu-.
        encoder_weights: pretrained weights of the encoder: packaged (the default of frozen and tuned; encoder
            tu-tf_efficientnet_lite0 or tu-tf_efficientnet_lite2), a name such as imagenet, or a file; otherwise none.
        head_kernel: size of the last convolution, odd; the paper's is 1.
        steps: optimiser steps of each training of a whole network, which starts from scratch; 1000 (tuned: 200) where
            neither they nor epochs are given. The learning rate rises and falls, and the weights are averaged.
        epochs: the paper's budget in place of steps: passes over the labelled images, at one learning rate.
        batch_size: images per optimiser step.
        lr: learning rate of Adam, 1e-3 where it is not given; with steps the highest, 4e-3 (tuned: 5e-4).
        augment: how images are moved while a whole network trains: flip, scale, colour, with commas between, or none.
            All of them with steps, none with epochs.
        teacher: what tells a whole network of pixels without a label. frozen is a head over a frozen encoder, trained
            on the same labels.
        self_training: how often a whole network is trained once more, from scratch, taught by the one before. Each is
            as long as the first; after it no other teacher is asked.
        head_steps: optimiser steps of each training of a frozen encoder's head; steps, epochs, batch_size and lr are
            not its.
        head_pixels: labelled pixels in each of them.
        head_lr: their highest learning rate.
        head_weight_decay: of AdamW.
        feature_bits: 16, or 8 for half the disk, that features of a frozen encoder are kept in.

    Raises:
        UserError: a value out of range, or a frozen encoder without weights.
    """

    image_size: int = 64
    architecture: str = setting("unet", "NAME", first=True)
    encoder: str = ""
    encoder_weights: str | None = None
    head_kernel: int = 1
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 8
    lr: float | None = None
    augment: str = ""
    teacher: Literal["none", "frozen"] = "none"
    self_training: int = 0
    head_steps: int = 600
    head_pixels: int = 512
    head_lr: float = 2e-2
    head_weight_decay: float = 1e-2
    feature_bits: int = 16

    def __post_init__(self) -> None:
        encoder, weights = self.encoder or "resnet18", self.encoder_weights
        if self.architecture in (FROZEN, TUNED):
            encoder, weights = frozen_encoder(self.encoder, weights)
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "encoder_weights", weights)
        if self.steps is not None and self.epochs is not None:
            raise UserError("--steps and --epochs are two budgets of one training: give one of them")
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", TUNING_STEPS if self.architecture == TUNED else STEPS)
        if not self.augment:
            object.__setattr__(self, "augment", ",".join(KINDS) if self.epochs is None else "none")
        kinds_of(self.augment)  # says what is wrong with them
        if self.teacher != "none" and self.architecture in (FROZEN, TUNED):
            raise UserError("--teacher is for another network: give --architecture too, such as --architecture unet")
        if self.self_training < 0:
            raise UserError(f"--self_training is {self.self_training}: give at least 0")
        if self.self_training and (self.architecture in (FROZEN, TUNED) or self.epochs is not None):
            raise UserError("--self_training is for another network, trained by --steps: give --architecture unet too")
        for name in ("steps", "epochs", "batch_size", "head_steps", "head_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} is {value}: give at least 1")
        if self.feature_bits not in (8, 16):
            raise UserError(f"--feature_bits is {self.feature_bits}: give 8 or 16")
        if self.lr is None:
            object.__setattr__(self, "lr", 1e-3 if self.steps is None else 5e-4 if self.architecture == TUNED else 4e-3)
        for name in ("lr", "head_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name} is {getattr(self, name)}: give a finite number above 0")
        if not 0 <= self.head_weight_decay < math.inf:
            raise UserError(f"--head_weight_decay is {self.head_weight_decay}: give a finite number from 0 on")

    def frames_shown(self, n_frames: float) -> float:
        """Frames that one training of a whole network on so many shows it, each as often as it is shown."""
        return self.steps * self.batch_size if self.steps else (self.epochs or 0) * n_frames

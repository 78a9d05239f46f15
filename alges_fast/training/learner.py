"""What is trained, and what it is given of a frame: a whole network and pixels, or a frozen encoder's head and maps.

Runs and projects read `Learner` and need not know which it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from alges_fast.models import FROZEN, build_model, check_image_size
from alges_fast.models.features_cache import FrozenEncoder, load_or_fit
from alges_fast.models.features_cache import Progress as Encoding
from alges_fast.models.frozen import FrozenHead, build_trunk, grid_of
from alges_fast.models.saved import Card
from alges_fast.models.weights import normalisation_of
from alges_fast.normalisation import Normalisation
from alges_fast.training.config import TrainConfig
from alges_fast.training.crops import crops_of
from alges_fast.training.head import labels_on, train_head
from alges_fast.training.labelled import Labelled
from alges_fast.training.whole_network import LossFunction, plain_loss, train


@dataclass(frozen=True, eq=False)
class Training:
    """One training.

    Attributes:
        labelled: what of the pool is labelled.
        inputs: of all frames of the pool, (N, C, h, w), on any device.
        seed, round: fix everything random.
        loss: of a batch.
        needs_places: whether the loss wants to know where in their frames pixels are, and so must see maps.
        on_batch: called with the work done after each step, as `Learner.training_work` counts it.
    """

    labelled: Labelled
    inputs: Tensor | NDArray[Any]
    seed: int
    round: int = 0
    loss: LossFunction = plain_loss
    needs_places: bool = False
    on_batch: Callable[[float], None] = lambda work: None


class Learner(ABC):
    """A kind of network.

    Attributes:
        transform: makes the network's input of a batch of `inputs`, on its device.
        is_frozen: whether `inputs` are maps of an encoder that is never trained, which tell frames apart by themselves.
    """

    transform: Callable[[Tensor], Tensor]
    is_frozen: ClassVar[bool] = False

    @abstractmethod
    def inputs(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """What the network is given of images (N, 3, S, S), (N, C, h, w); possibly a memory map."""

    @abstractmethod
    def new_network(self, n_classes: int, seed: int) -> nn.Module:
        """A network that maps inputs to logits (B, n_classes, h, w), its weights fixed by seed."""

    @abstractmethod
    def card(self, classes: Sequence[str]) -> Card:
        """What a file of a trained network says of it."""

    @abstractmethod
    def training_work(self, n_frames: float) -> float:
        """What training on so many frames costs, in training steps of one frame."""

    @abstractmethod
    def train(self, fabric: Fabric, model: nn.Module, training: Training) -> float:
        """Train a network in place and return the loss it reached.

        Args:
            fabric: launched; says on which device and in which precision.
            model: as the strategy's `prepare_model` made it.
            training: on what, and how.

        Raises:
            TooFewLabels, Diverged: it cannot be trained on this.
        """


class WholeNetwork(Learner):
    """Every weight of a network of segmentation-models-pytorch, from the pixels on."""

    def __init__(self, config: TrainConfig, n_classes: int) -> None:
        self.config = config
        check_image_size(self.new_network(n_classes, 0), config.image_size)  # it names weights that are missing
        self.transform: Normalisation = normalisation_of(config.encoder, config.encoder_weights)

    def inputs(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        return images

    def new_network(self, n_classes: int, seed: int) -> nn.Module:
        config = self.config
        return build_model(
            config.architecture,
            config.encoder,
            encoder_weights=config.encoder_weights,
            num_classes=n_classes,
            head_kernel=config.head_kernel,
            seed=seed,
        )

    def card(self, classes: Sequence[str]) -> Card:
        config = self.config
        return Card(
            architecture=config.architecture,
            encoder=config.encoder,
            encoder_weights=config.encoder_weights,
            encoder_digest="",
            head_kernel=config.head_kernel,
            normalisation=self.transform,
            image_size=config.image_size,
            classes=classes,
        )

    def training_work(self, n_frames: float) -> float:
        return self.config.epochs * n_frames

    def train(self, fabric: Fabric, model: nn.Module, training: Training) -> float:
        return train(
            fabric,
            model,
            training.labelled.frames(),
            epochs=self.config.epochs,
            batch_size=self.config.batch_size,
            lr=self.config.lr,
            seed=training.seed,
            round=training.round,
            loss=training.loss,
            transform=self.transform,
            crops=crops_of(training.labelled) if training.labelled.windows else None,
            on_batch=training.on_batch,
        )


class HeadOfFrozenEncoder(Learner):
    """A small head over the maps of a pretrained encoder, which are made once and kept."""

    is_frozen: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, encoder: FrozenEncoder, encoding: Encoding) -> None:
        self.config = config
        self.encoder = encoder
        self.encoding = encoding
        self.transform = torch.Tensor.float

    def inputs(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        return self.encoder.cached(images, self.encoding)

    def new_network(self, n_classes: int, seed: int) -> nn.Module:
        return FrozenHead(self.encoder.projection, n_classes, seed)

    def card(self, classes: Sequence[str]) -> Card:
        return Card.of_frozen(self.encoder.trunk, self.config.image_size, classes)

    def training_work(self, n_frames: float) -> float:
        rows, columns = grid_of((self.config.image_size, self.config.image_size))
        return self.config.head_steps * self.config.head_pixels / (rows * columns)

    def train(self, fabric: Fabric, model: nn.Module, training: Training) -> float:
        labelled, inputs = training.labelled, training.inputs
        positions = np.array(labelled.positions)
        grid = (inputs.shape[2], inputs.shape[3])
        features = inputs[positions] if isinstance(inputs, Tensor) else torch.from_numpy(inputs[positions])
        return train_head(
            fabric.device,
            model,
            features,
            labels_on(grid, labelled.frames().masks),
            steps=self.config.head_steps,
            pixels=self.config.head_pixels,
            lr=self.config.head_lr,
            weight_decay=self.config.head_weight_decay,
            whole_frames=training.needs_places,
            seed=training.seed,
            round=training.round,
            loss=training.loss,
            on_step=lambda pixels: training.on_batch(pixels / (grid[0] * grid[1])),
        )


def make_learner(
    config: TrainConfig, n_classes: int, images: NDArray[np.uint8], device: torch.device, encoding: Encoding
) -> Learner:
    """The learner that a configuration names.

    Args:
        images: (N, 3, S, S) of the pool, to which a frozen encoder's projection is fitted.
        device: where a frozen encoder runs.
        encoding: called while the pool's maps are made.

    Raises:
        UserError: an unknown network, or weights or a cache that cannot be had.
    """
    if config.architecture != FROZEN:
        return WholeNetwork(config, n_classes)
    assert config.encoder_weights is not None
    trunk = build_trunk(config.encoder, config.encoder_weights).to(device)
    return HeadOfFrozenEncoder(config, load_or_fit(trunk, images, progress=encoding), encoding)

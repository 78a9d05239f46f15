"""What is trained, and what it is given of a frame: a whole network and pixels, or a frozen encoder's head and maps, or
that head and then its encoder too.

Runs and projects read `Learner` and need not know which it is.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from alges_fast.data import FrameSet
from alges_fast.models import FROZEN, TUNED, build_model, check_image_size
from alges_fast.models.coded_maps import KeptMaps
from alges_fast.models.features_cache import FrozenEncoder, load_or_fit
from alges_fast.models.frozen import FrozenHead, FrozenModel, build_trunk, grid_size
from alges_fast.models.saved import Card
from alges_fast.models.weights import normalisation_of
from alges_fast.normalisation import Normalisation
from alges_fast.progress import Progress
from alges_fast.random_streams import stream_seed
from alges_fast.training.config import TrainConfig
from alges_fast.training.head import labels_on, train_head
from alges_fast.training.labelled import Labelled
from alges_fast.training.optimising import MEMORY_FORMAT, LossFunction, plain_loss
from alges_fast.training.whole_network import train

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True, eq=False)
class Training:
    """One training.

    Attributes:
        labelled: what of the pool is labelled.
        inputs: of all frames of the pool, (N, C, h, w), on any device.
        seed, round: fix everything random.
        loss: of a batch.
        needs_places: whether the loss wants to know where in their frames pixels are, and so must see maps.
        unseen: positions of frames that no teacher may label, because the network is to be tested on them.
        on_batch: called with the work done after each step, as `Learner.training_work` counts it.
    """

    labelled: Labelled
    inputs: Tensor | KeptMaps
    seed: int
    round: int = 0
    loss: LossFunction = plain_loss
    needs_places: bool = False
    unseen: Collection[int] = ()
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
    def inputs(self, frames: FrameSet) -> KeptMaps:
        """What the network is given of frames, (N, C, h, w); possibly a memory map."""

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

        Raises:
            TooFewLabels, Diverged: it cannot be trained on this.
        """


class WholeNetwork(Learner):
    """Every weight of a network of segmentation-models-pytorch, from the pixels on.

    Args:
        teacher: that knows the pool, and says what its pixels without a label may be.
    """

    def __init__(self, config: TrainConfig, n_classes: int, teacher: Teacher | None = None) -> None:
        self.config = config
        self.teacher = teacher
        check_image_size(self.new_network(n_classes, 0), config.image_size)  # it names weights that are missing
        self.transform: Normalisation = normalisation_of(config.encoder, config.encoder_weights)

    def inputs(self, frames: FrameSet) -> NDArray[Any]:
        return frames.images

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
        return (1 + self.config.self_training) * self.config.frames_shown(n_frames)

    def train(self, fabric: Fabric, model: nn.Module, training: Training) -> float:
        labelled, config = training.labelled, self.config
        pool = [position for position in range(len(labelled.pool)) if position not in training.unseen]
        taught, soft = None, None
        if self.teacher is not None:
            taught, soft = pool, self.teacher.soft_labels(fabric, training)[pool]
        untrained = {name: value.clone() for name, value in model.state_dict().items()}
        for again in range(1 + config.self_training):
            if again:
                taught, soft = pool, _soft_labels(fabric, model, training.inputs, pool, self.transform)
                model.load_state_dict(untrained)
            loss = train(
                fabric,
                model,
                labelled.frames(taught),
                config,
                seed=training.seed,
                round=training.round,
                loss=training.loss,
                transform=self.transform,
                partial=labelled.windows,
                soft=soft,
                on_batch=training.on_batch,
            )
        return loss


@torch.no_grad()
def _soft_labels(
    fabric: Fabric,
    model: nn.Module,
    inputs: Tensor | KeptMaps,
    positions: Sequence[int],
    transform: Callable[[Tensor], Tensor],
) -> NDArray[np.float16]:
    """(N, K, h, w): what a network says of these frames, on the grid that a frozen encoder's head has."""
    parts = []
    for start in range(0, len(positions), 16):
        batch = transform(torch.as_tensor(np.array(inputs[positions[start : start + 16]])).to(fabric.device))
        with fabric.autocast():
            shares = model(batch.contiguous(memory_format=MEMORY_FORMAT)).float().softmax(1)
        parts.append(F.interpolate(shares, grid_size(shares.shape[2:]), mode="area").half().cpu())
    return torch.cat(parts).numpy()


class HeadOfFrozenEncoder(Learner):
    """A small head over the maps of a pretrained encoder, which are made once and kept."""

    is_frozen: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, encoder: FrozenEncoder, encoding: Progress) -> None:
        self.config = config
        self.encoder = encoder
        self.encoding = encoding
        self.transform = torch.Tensor.float

    def inputs(self, frames: FrameSet) -> KeptMaps:
        return self.encoder.cached(frames.images, self.encoding, frames.pictures)

    def new_network(self, n_classes: int, seed: int) -> nn.Module:
        return FrozenHead(self.encoder.projection, n_classes, seed)

    def card(self, classes: Sequence[str]) -> Card:
        return Card.of_frozen(self.encoder.trunk, self.encoder.projection.view, self.config.image_size, classes)

    def training_work(self, n_frames: float) -> float:
        rows, columns = grid_size((self.config.image_size, self.config.image_size))
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


class TunedEncoder(Learner):
    """A frozen encoder's head, and from there the encoder too: linear probing, then fine-tuning (Kumar et al., ICLR
    2022). Batch normalisation keeps the statistics that came with the encoder's weights.

    Args:
        head: trains the head, over kept maps.
        maps: of the pool's frames, (N, C, h, w).

    Attributes:
        side: of the pictures that the network is shown.
    """

    def __init__(self, config: TrainConfig, head: HeadOfFrozenEncoder, maps: KeptMaps) -> None:
        self.config = config
        self.head = head
        self.maps = maps
        self.transform: Normalisation = head.encoder.trunk.normalisation
        self.side = config.image_size * head.encoder.projection.view.scale

    def inputs(self, frames: FrameSet) -> NDArray[Any]:
        pictures = np.empty((len(frames), 3, self.side, self.side), np.uint8)
        for position in range(len(frames)):
            self.head.encoding("reading pictures", position, len(frames))
            pictures[position] = frames.pictures([position], self.side)[0]
        return pictures

    def new_network(self, n_classes: int, seed: int) -> nn.Module:
        head = FrozenHead(copy.deepcopy(self.head.encoder.projection), n_classes, seed)
        return FrozenModel(self.head.encoder.trunk.thawed(), head, self.config.image_size)

    def card(self, classes: Sequence[str]) -> Card:
        encoder = self.head.encoder
        return Card.of_frozen(encoder.trunk, encoder.projection.view, self.config.image_size, classes, TUNED)

    def training_work(self, n_frames: float) -> float:
        return self.head.training_work(n_frames) + self.config.frames_shown(n_frames)

    def train(self, fabric: Fabric, model: nn.Module, training: Training) -> float:
        assert isinstance(model, FrozenModel)
        self.head.train(fabric, model.head, replace(training, inputs=self.maps))
        labelled, inputs, scale = training.labelled, training.inputs, self.side // self.config.image_size
        frames, at = labelled.frames(), labelled.positions
        pictures: NDArray[Any] = inputs[at].cpu().numpy() if isinstance(inputs, Tensor) else inputs[at]
        return train(
            fabric,
            model,
            replace(frames, images=pictures, masks=frames.masks.repeat(scale, 1).repeat(scale, 2)),
            self.config,
            seed=training.seed,
            round=training.round,
            loss=training.loss,
            transform=self.transform,
            by_share=True,
            on_batch=training.on_batch,
        )


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen encoder's head, trained on the labels that a network is, that labels the rest of the pool softly.

    Attributes:
        maps: of the pool's frames, (N, C, h, w).
    """

    learner: HeadOfFrozenEncoder
    maps: Tensor | KeptMaps
    n_classes: int

    @torch.no_grad()
    def soft_labels(self, fabric: Fabric, training: Training) -> NDArray[np.float16]:
        """(N, K, h, w): the classes' probabilities in every frame of the pool."""
        head = self.learner.new_network(self.n_classes, stream_seed("teacher's weights", training.seed, training.round))
        with torch.enable_grad():
            self.learner.train(fabric, head, replace(training, inputs=self.maps, on_batch=lambda work: None))
        parts = []
        for start in range(0, len(self.maps), 32):
            maps = torch.as_tensor(np.array(self.maps[start : start + 32])).to(fabric.device).float()
            parts.append(head(maps).softmax(1).half().cpu())
        return torch.cat(parts).numpy()


def make_learner(
    config: TrainConfig, n_classes: int, pool: FrameSet, device: torch.device, encoding: Progress
) -> Learner:
    """The learner that a configuration names.

    Args:
        pool: to which a frozen encoder's projection is fitted.
        device: where a frozen encoder runs.
        encoding: called while the pool's maps are made.

    Raises:
        UserError: an unknown network, or weights or a cache that cannot be had.
    """
    teaches = config.teacher == FROZEN
    if config.architecture not in (FROZEN, TUNED) and not teaches:
        return WholeNetwork(config, n_classes)
    of_head = config
    if teaches:
        of_head = replace(config, architecture=FROZEN, encoder="", encoder_weights=None, teacher="none")
    assert of_head.encoder_weights is not None
    trunk = build_trunk(of_head.encoder, of_head.encoder_weights).to(device)
    encoder = load_or_fit(trunk, pool.images, bits=of_head.feature_bits, pictures=pool.pictures, progress=encoding)
    head = HeadOfFrozenEncoder(of_head, encoder, encoding)
    if config.architecture == TUNED:
        return TunedEncoder(config, head, head.inputs(pool))
    return WholeNetwork(config, n_classes, Teacher(head, head.inputs(pool), n_classes)) if teaches else head

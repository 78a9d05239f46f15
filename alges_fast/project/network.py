"""A project's own models. By default a frozen encoder whose maps of the pool are kept, and a head that `train` fits to
the labels; or a whole network.

The encoder's projection is fitted to the pool before the first round and goes with every head from then on, so that a
pool that grows changes no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alges_fast import atomic
from alges_fast.annotation.decoded import pictures_of
from alges_fast.annotation.sources import PoolFrame
from alges_fast.cached_rows import let_go
from alges_fast.data.frame_pool import FramePool
from alges_fast.errors import UserError
from alges_fast.models import FROZEN
from alges_fast.models.coded_maps import CodedMaps, KeptMaps
from alges_fast.models.features_cache import FrozenEncoder, load_or_fit
from alges_fast.models.frozen import PLAIN, FrozenHead, Projection, Trunk, build_trunk
from alges_fast.models.saved import Card, load, read_card, serialized
from alges_fast.normalisation import Normalisation
from alges_fast.progress import Progress, silent
from alges_fast.project.folder import Project, TrainedModel
from alges_fast.training.config import TrainConfig
from alges_fast.training.learner import HeadOfFrozenEncoder

WEIGHTS = "model.safetensors"
MAPPED = 1 << 27
"""Bytes of maps that stay in memory while a pool is read."""


class Maps(FramePool):
    """(id, map (channels, h, w) float16) of the pool's frames, mapped from a file.

    What was read stays in the system's cache but not in this process's memory, which hours of video would fill.
    """

    def __init__(self, ids: Sequence[str], values: KeptMaps) -> None:
        stacked = None if isinstance(values, CodedMaps) else torch.from_numpy(values)
        super().__init__(ids, lambda at: torch.from_numpy(values[at]), stacked)
        self.values = values
        self._rows: NDArray[Any] = values.rows if isinstance(values, CodedMaps) else values
        self._mapped = 0  # bytes handed out since they were last let go

    def views_of(self, positions: Sequence[int]) -> list[Tensor] | None:
        if self._mapped > MAPPED:
            let_go(self._rows)
            self._mapped = 0
        self._mapped += len(positions) * self._rows[0].nbytes
        if isinstance(self.values, CodedMaps):
            return [torch.from_numpy(self.values[list(positions)])]
        return super().views_of(positions)


@dataclass(frozen=True)
class Frozen:
    """The encoder of a project and what it makes of the pool."""

    encoder: FrozenEncoder
    maps: Maps


def frozen(
    project: Project, frames: Sequence[PoolFrame], images: NDArray[np.uint8], progress: Progress = silent
) -> Frozen:
    """The project's encoder, with the view and projection of its models where it has one, over frames and their
    (N, 3, S, S) images."""
    trunk, pictures = trunk_of(project), pictures_of(frames)
    heads = [model for model in project.models if is_frozen(model)]
    if heads:
        encoder = FrozenEncoder(trunk, _projection(heads[-1], trunk), bits=project.config.feature_bits)
    else:
        encoder = load_or_fit(trunk, images, bits=project.config.feature_bits, pictures=pictures, progress=progress)
    return Frozen(encoder, Maps([frame.id for frame in frames], encoder.cached(images, progress, pictures)))


def trunk_of(project: Project) -> Trunk:
    """The project's encoder, which one process builds once."""
    return _trunk(project.config.encoder, project.config.encoder_weights)


def learner_of(project: Project, encoder: FrozenEncoder) -> HeadOfFrozenEncoder:
    """What trains the heads of a project, as `run` does."""
    config = project.config
    settings = TrainConfig(config.image_size, FROZEN, config.encoder, config.encoder_weights)
    return HeadOfFrozenEncoder(settings, encoder, silent)


def load_head(project: Project, model: TrainedModel, trunk: Trunk) -> FrozenHead:
    """A trained head. Raises UserError where its file is damaged or of another encoder."""
    head = FrozenHead(_projection(model, trunk), len(project.config.classes), 0)
    try:
        head.load_state_dict(_read(model))
    except RuntimeError:
        raise UserError(f"{model.folder / WEIGHTS}: not the weights of this project's model: restore it") from None
    return head.eval()


def save(folder: Path, model: nn.Module, card: Card) -> None:
    """Write model.safetensors: the weights with a card, so that `select --model` needs nothing else."""
    atomic.write_bytes(folder / WEIGHTS, serialized(model, card))


def is_frozen(model: TrainedModel) -> bool:
    """Whether it is a head over the project's encoder."""
    return _card(model).architecture == FROZEN


def shown_size(model: TrainedModel) -> int:
    """Side of the pictures that a model looks at: it sees more in them than in smaller ones."""
    return _card(model).shown_size


def load_whole(model: TrainedModel, encoder_weights: str | None = None) -> tuple[nn.Module, Normalisation]:
    """Any trained model, normalised images to logits at their size, and the normalisation; of a frozen encoder with the
    weights that the project names."""
    card = _card(model)
    return load(model.folder / WEIGHTS, card, encoder_weights).requires_grad_(False), card.normalisation


@cache
def _trunk(encoder: str, encoder_weights: str) -> Trunk:
    return build_trunk(encoder, encoder_weights)


def _projection(model: TrainedModel, trunk: Trunk) -> Projection:
    state = _read(model)
    return Projection(state["projection.weight"], state["projection.bias"], trunk.channels, _card(model).view or PLAIN)


def _card(model: TrainedModel) -> Card:
    path = model.folder / WEIGHTS
    try:
        card = read_card(path)
    except UserError:
        card = None
    if card is None:
        raise UserError(f"{path}: cannot be read: restore it, or delete {model.folder} and train")
    return card


def _read(model: TrainedModel) -> dict[str, Tensor]:
    path = model.folder / WEIGHTS
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}): restore it, or delete {model.folder} and train") from None

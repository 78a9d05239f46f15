"""What rates a project's pool, and predicts on its frames: a model of the user's, the project's own, or a frozen
encoder alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alges_fast.annotation.lists import class_names, class_weights
from alges_fast.annotation.models import load_model, normalisation_in
from alges_fast.annotation.sources import PoolFrame, resized
from alges_fast.data.frame_pool import FramePool
from alges_fast.errors import UserError, one_line
from alges_fast.job import device_of
from alges_fast.last_layer import LastLayer
from alges_fast.models import build_model
from alges_fast.models.frozen import FrozenModel
from alges_fast.normalisation import HALF, IMAGENET, UNIT
from alges_fast.progress import Progress
from alges_fast.project import network, predictions
from alges_fast.project.asking import NextSettings
from alges_fast.project.folder import Project, TrainedModel
from alges_fast.project.pool import ProjectPool, decoded


@dataclass(frozen=True)
class Model:
    """A network over pictures or over the maps of the project's encoder.

    name: as pages say it. over_maps: whether it is a head over maps. transform: what makes its input of pictures, on
    their device. image_size: side of the pictures. classes: names, in the order of its logits. weights: of classes,
    where some are aimed at. fixed: how many pictures it takes at a time, where it takes no other number. predictions:
    what it repeats, where nothing is computed.
    """

    network: nn.Module
    name: str
    over_maps: bool
    transform: Callable[[Tensor], Tensor] | None
    image_size: int
    classes: tuple[str, ...]
    weights: Sequence[float] | None
    fixed: int | None = None
    predictions: predictions.Predictions | None = None


@dataclass(frozen=True)
class Frames:
    """What a query is made over.

    pool: frames that can be used. inputs: by id, what the model takes, or pictures before its transform. maps: those of
    the frozen encoder, where something looks at them. standing: ids of those that stand for all, where near-duplicates
    are thinned. scored: ids of those that predictions tell of, where they choose.
    """

    pool: ProjectPool
    inputs: FramePool
    maps: network.Maps | None
    standing: Sequence[str] | None = None
    scored: Collection[str] | None = None

    @property
    def candidates(self) -> Sequence[str]:
        """Ids of the frames that may be chosen."""
        ids = [frame.id for frame in self.pool.frames] if self.standing is None else self.standing
        return ids if self.scored is None else [id for id in ids if id in self.scored]

    def inputs_of(self, model: Model) -> Callable[[PoolFrame, NDArray[np.uint8]], Tensor]:
        """Makes of a frame and its picture (H, W, 3) a batch of one for the model."""

        def of_maps(frame: PoolFrame, image: NDArray[np.uint8]) -> Tensor:
            item: Tensor = self.inputs[self.inputs.ids.index(frame.id)][1]
            return item[None].float()

        def of_pictures(frame: PoolFrame, image: NDArray[np.uint8]) -> Tensor:
            picture = resized(image, model.image_size)[None]
            return picture if model.transform is None else model.transform(picture)

        return of_maps if model.over_maps else of_pictures


def chooser(project: Project, own: TrainedModel | None, settings: NextSettings) -> Model | None:
    """The model that chooses; None before there is one.

    Raises:
        UserError: one that cannot be had, that cannot score frames of this size, or that has other classes.
    """
    size = project.config.image_size
    if settings.model == predictions.NAME:
        model = _as_predicted(project)
    elif settings.model is not None:
        model = _of_the_user(project, settings.model, settings)
    elif own is None:
        return None
    elif network.is_frozen(own):
        head = network.load_head(project, own, network.trunk_of(project)).requires_grad_(False)
        model = Model(head, f"model {own.number}", True, None, size, project.config.classes, None)
    else:
        whole, transform = network.load_whole(own)
        shown = network.shown_size(own)
        model = Model(whole, f"model {own.number}", False, transform, shown, project.config.classes, None)
    model.network.to(device_of(settings.device))
    weights = class_weights(settings.class_weights, model.classes)
    return replace(model, weights=weights)


def _of_the_user(project: Project, name: str, settings: NextSettings) -> Model:
    size = project.config.image_size

    def build(n_classes: int) -> nn.Module:
        encoder = settings.encoder or "resnet18"
        return build_model(
            settings.architecture, encoder, num_classes=n_classes, head_kernel=settings.head_kernel, seed=0
        )

    module, fixed = load_model(name, image_size=size, build=build, encoder_weights=settings.encoder_weights)
    if fixed not in (None, 1):
        raise UserError(f"{name}: takes {fixed} frames at a time: export it for one, or for any number")
    module.eval().requires_grad_(False)
    size = module.side if isinstance(module, FrozenModel) else size
    try:
        layer: Any = LastLayer.find(module, torch.zeros(1, 3, size, size))
    except Exception as error:  # whatever the user's model does with it
        raise UserError(f"{name} cannot score frames of --image_size {size}: {one_line(error)[:300]}") from error
    given = ",".join(project.config.classes) or None
    classes = tuple(class_names(given, layer.n_classes, windows=settings.grid is not None))
    known = {"imagenet": IMAGENET, "half": HALF, "unit": UNIT}
    transform = known.get(settings.normalise) or normalisation_in(name) or IMAGENET
    return Model(module, Path(name).name, False, transform, size, classes, None, fixed)


def _as_predicted(project: Project) -> Model:
    of = predictions.newest(project)
    if of is None or not of.scored:
        raise UserError(
            f"--model {predictions.NAME}: no predictions with probabilities are there: "
            f"{project.command('import', '--predictions FOLDER')} first"
        )
    classes = project.config.classes
    repeated = predictions.AsPredicted(len(classes)).eval()
    return Model(repeated, predictions.NAME, True, None, project.config.image_size, classes, None, predictions=of)


def read_frames(
    project: Project,
    pool: ProjectPool,
    model: Model | None,
    *,
    looks: bool,
    compares: bool,
    device: torch.device,
    progress: Progress,
) -> Frames:
    """What the model, or the frozen encoder in its place, looks at; nothing is read where nothing looks. The encoder's
    maps are there too where frames are compared."""
    if not looks:
        ids = [frame.id for frame in pool.frames]
        return Frames(pool, FramePool(ids, _never_read), None)
    size = project.config.image_size
    pool, images = decoded(pool, size if model is None else model.image_size, progress)
    over_maps = model is not None and model.over_maps
    pictures = FramePool([frame.id for frame in pool.frames], lambda at: torch.from_numpy(np.array(images[at])))
    if model is not None and not over_maps and not compares:
        return Frames(pool, pictures, None)
    network.trunk_of(project).to(device)
    seen = images if images.shape[2] == size else decoded(pool, size, progress)[1]
    maps = network.frozen(project, pool.frames, seen, progress).maps
    if model is None or model.predictions is None:
        return Frames(pool, maps if over_maps else pictures, maps)
    if model.predictions.scored.isdisjoint(maps.ids):
        raise UserError("none of the predicted frames is in the pool any more: import predictions of these")
    assert isinstance(model.network, predictions.AsPredicted)
    model.network.look_at(len(model.classes) + maps.values.shape[1])
    model.network.to(device)
    return Frames(pool, model.predictions.joined(maps, len(model.classes)), maps, scored=model.predictions.scored)


def _never_read(position: int) -> Tensor:
    raise AssertionError("a strategy whose reads_images is False has asked for an image")

"""The step that trains the project's model on all labels, and says how good it is from frames that it held out.

Two models are trained: the one that is measured has not seen the held-out frames, the one that is kept has seen all. A
third, trained on half of the frames, tells what doubling the labels was worth: the only ground for saying what another
round would bring. Where rounds of random frames are there to compare with, more tell what choosing saved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from alges_fast import atomic
from alges_fast.annotation.decoded import pictures_of
from alges_fast.annotation.exports import csv_text
from alges_fast.data.frames import FrameSet
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.models import FROZEN, TUNED
from alges_fast.models.weights import PACKAGED, PACKAGED_ENCODER
from alges_fast.progress import Progress, silent
from alges_fast.project import network
from alges_fast.project.folder import HISTORY, MODEL, Project, TrainedModel
from alges_fast.project.labels import Labels, read_labels
from alges_fast.project.measuring import comparison, dice_with_intervals, gain_with_interval, hold_out, shuffled
from alges_fast.project.pool import ProjectPool, decoded, list_pool
from alges_fast.random_streams import stream_seed
from alges_fast.training.config import TrainConfig
from alges_fast.training.device import fabric_on
from alges_fast.training.errors import Diverged, TooFewLabels
from alges_fast.training.evaluation import evaluate
from alges_fast.training.labelled import Labelled, Piece
from alges_fast.training.learner import Learner, Teacher, Training, TunedEncoder, WholeNetwork
from alges_fast.windows import Window

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class TrainSettings:
    """Which network, and how. What is None is as for the newest model; the first is frozen.

    Args:
        architecture: frozen, a head over the project's encoder, in seconds; tuned, that head and then the encoder too,
            in minutes; or one of segmentation-models-pytorch, such as unet, trained as `run` trains it.
        encoder, encoder_weights: of such a network.
        steps, batch_size, lr, augment: of its training, or of tuned.
        teacher: what tells it of pixels without a label: frozen, a head over the project's encoder, or none.
        self_training: how often it is trained once more, taught by the one before.
        device: auto, cpu or cuda.
    """

    architecture: str | None = None
    encoder: str | None = None
    encoder_weights: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    augment: str | None = None
    teacher: Literal["none", "frozen"] | None = None
    self_training: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def over(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """The whole of what names and trains the network, as model.json keeps it.

        Raises:
            UserError: a setting of a whole network for a frozen one, or one that is out of range.
        """
        given = {name: value for name, value in vars(self).items() if name != "device" and value is not None}
        if self.architecture not in (None, before["architecture"]):
            before = {"architecture": self.architecture}
        architecture = {**before, **given}["architecture"]
        known: Mapping[str, Any] = {FROZEN: {}, TUNED: TUNING}.get(architecture, WHOLE)
        if more := [name for name in given if name not in (*known, "architecture")]:
            raise UserError(
                f"--{more[0]} is of another network: give --architecture too, such as --architecture unet (the "
                f"encoder of a {architecture} one is given to `new`)"
            )
        if architecture == FROZEN:
            return {"architecture": FROZEN}
        values = {**known, **{name: before[name] for name in before if name in (*known, "architecture")}, **given}
        if self.encoder is not None:
            values["encoder_weights"] = self.encoder_weights  # others than another encoder's
        config = TrainConfig(**values)  # it says what is out of range
        return {name: getattr(config, name) for name in values}


MOST_TAUGHT = 2000
"""Frames without a label that a network is taught on, so that a long video fits in memory."""

WHOLE: Mapping[str, Any] = {
    "encoder": PACKAGED_ENCODER,
    "encoder_weights": PACKAGED,
    "steps": TrainConfig().steps,
    "batch_size": TrainConfig.batch_size,
    "lr": TrainConfig().lr,
    "augment": TrainConfig().augment,
    "teacher": FROZEN,
    "self_training": TrainConfig.self_training,
}
"""Settings of a whole network where nothing is asked for."""

TUNING: Mapping[str, Any] = {
    name: getattr(TrainConfig(architecture=TUNED), name) for name in ("steps", "batch_size", "lr", "augment")
}
"""The same of a frozen encoder that is trained too."""


def train_project(project: Project, settings: TrainSettings | None = None, progress: Progress = silent) -> TrainedModel:
    """Train on all labels; the newest model where it has seen them already. Rewrites history.csv.

    Raises:
        UserError: nothing is labelled, or a labelled frame cannot be read.
    """
    if not project.labelled:
        step = "import" if project.out else "next"
        raise UserError(
            f"nothing is labelled yet: {project.command(step, 'EXPORT' if step == 'import' else '-n 20')} first"
        )
    settings = settings or TrainSettings()
    newest = project.models[-1] if project.models else None
    before = {"architecture": FROZEN} if newest is None else newest.network
    asked = settings.over(before)
    if newest is None or not project.known_to(newest) or asked != TrainSettings().over(before):
        _train(project, asked, settings.device, progress)
    atomic.write_text(project.root / HISTORY, csv_text([_history_row(model) for model in project.models]))
    return project.models[-1]


def _train(project: Project, asked: Mapping[str, Any], device: str, progress: Progress) -> None:
    labels = read_labels(project)
    pool, images = decoded(list_pool(project), project.config.image_size, progress)
    trainer = _trainer(project, labels, pool, images, asked, device, progress)
    before = project.models[-1].facts["held_out"] if project.models else []
    held = hold_out({id: pool.by_id[id].video for id in labels.masks}, before)
    round = project.imports[-1].round
    facts: dict[str, Any] = {
        "network": dict(asked),
        "imports": [import_.number for import_ in project.imports],
        "round": round,
        "strategy": next(of.asked.get("strategy") for of in project.rounds if of.number == round),
        "frames": len(labels.masks),
        "windows": labels.n_windows,
        "pixels": int(sum(counts.sum() for counts in labels.pixels.values())),
        "outline": labels.outline,
        "held_out": [] if held is None else list(held.ids),
        "whole_videos": held is not None and held.whole_videos,
        "of_pictures": held is not None and any(pool.by_id[id].timestamp is None for id in held.ids),
        "dice": None,
        "gain": None,
        "saving": None,
    }
    everything = list(labels.masks)
    trainer.n_shown = len(everything)
    try:
        if held is not None:
            seen = [id for id in everything if id not in held.ids]
            half = set(sorted(seen, key=shuffled)[: len(seen) // 2])
            compared = comparison(project, seen, held.ids)
            trainer.n_shown += len(seen) + len(half) + (0 if compared is None else compared.n_frames)
            counts = trainer.counts(seen, held.ids)
            facts["dice"] = dice_with_intervals(counts)
            facts["gain"] = gain_with_interval(counts, trainer.counts([id for id in seen if id in half], held.ids))
            facts["saving"] = None if compared is None else compared.saving(trainer.counts)
        model = trainer.fit(everything)
    except TooFewLabels as error:
        raise UserError(f"{error}: annotate more, {project.command('next', '-n 20')}") from error
    except Diverged as error:
        if asked["architecture"] == FROZEN:
            raise UserError(f"{error}: begin a project with another encoder than {project.config.encoder}") from error
        raise UserError(f"{error}: lower --lr from {asked['lr']}") from error
    number = project.models[-1].number + 1 if project.models else 0
    folder = project.root / "models" / f"{number:03d}"
    network.save(folder, model, trainer.learner.card(project.config.classes))
    atomic.write_json(folder / MODEL, facts)
    project.forget()


@dataclass
class _Trainer:
    """Networks trained on some of the labelled frames, and their counts on others.

    Attributes:
        frames: all labelled ones, and others that a teacher may label, at the network's size.
        inputs: what the learner is given of them.
        pieces: what is labelled of each.
        seed: of every training.
        n_shown, shown: frames of all trainings to come, and of those that are finished.
    """

    learner: Learner
    fabric: Fabric
    n_classes: int
    frames: FrameSet
    inputs: NDArray[Any]
    pieces: Mapping[str, Sequence[Piece]]
    seed: int
    progress: Progress
    n_shown: int = 0
    shown: int = 0

    def fit(self, ids: Sequence[str], unseen: Collection[str] = ()) -> nn.Module:
        """A network trained on these frames, and taught on all but those that are to be unseen."""
        work, done = self.learner.training_work(len(ids)), 0.0

        def on_batch(more: float) -> None:
            nonlocal done
            done += more
            self.progress("training", self.shown + round(len(ids) * min(done / work, 1)), self.n_shown)

        model = self.learner.new_network(self.n_classes, self.seed)
        labelled = Labelled(self.frames, tuple(piece for id in ids for piece in self.pieces[id]))
        training = Training(
            labelled=labelled,
            inputs=self.inputs,
            seed=self.seed,
            unseen=[self.frames.index(id) for id in unseen],
            on_batch=on_batch,
        )
        self.learner.train(self.fabric, model, training)
        self.shown += len(ids)
        return model

    def counts(self, ids: Sequence[str], held_out: Sequence[str]) -> NDArray[np.int64]:
        """(N, 3, K) counts on held-out frames of a network trained on others."""
        at = [self.frames.index(id) for id in held_out]
        counts = evaluate(
            self.fabric,
            self.fit(ids, held_out),
            self.frames.subset(at),
            self.n_classes,
            inputs=self.inputs[at],
            transform=self.learner.transform,
        )
        return counts.per_image.cpu().numpy()


def _trainer(
    project: Project,
    labels: Labels,
    pool: ProjectPool,
    images: NDArray[np.uint8],
    asked: Mapping[str, Any],
    device: str,
    progress: Progress,
) -> _Trainer:
    size, n_classes = project.config.image_size, len(project.config.classes)
    rows = {frame.id: row for row, frame in enumerate(pool.frames)}
    if unread := [id for id in labels.masks if id not in rows]:
        raise UserError(f"{unread[0]} is labelled and cannot be read: {pool.left_out.reasons[unread[0]]}")
    is_tuned = asked["architecture"] == TUNED
    is_whole = asked["architecture"] != FROZEN and not is_tuned
    taught = is_whole and (asked["teacher"] == FROZEN or asked["self_training"] > 0)
    others = [id for id in rows if id not in labels.masks] if taught else []
    ids = (*labels.masks, *at_most(MOST_TAUGHT, others, project.config.seed))
    at, videos = [rows[id] for id in ids], tuple(pool.by_id[id].video for id in ids)
    masks = np.full((len(ids), size, size), UNLABELLED, np.uint8)
    for row, mask in enumerate(labels.masks.values()):
        masks[row] = np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
    frames = FrameSet(ids, videos, videos, images[at], masks)
    pieces = {
        id: [id] if windows is None else [_scaled(window, labels.masks[id].shape, size) for window in windows]
        for id, windows in project.labelled.items()
    }
    learner: Learner
    inputs: NDArray[Any] = frames.images
    teacher = None
    if not is_whole or asked["teacher"] == FROZEN:
        frozen = network.frozen(project, pool.frames, images, progress)
        head = network.learner_of(project, frozen.encoder)
        learner, inputs = head, frozen.maps.values[at]
        teacher = Teacher(head, inputs, n_classes)
        if is_tuned:
            learner = TunedEncoder(replace(head.config, **asked), head, inputs)
            inputs = pictures_of([pool.frames[row] for row in at])(range(len(at)), learner.side)
    if is_whole:
        learner, inputs = WholeNetwork(TrainConfig(**asked, image_size=size), n_classes, teacher), frames.images
    seed = stream_seed("project's network" if is_whole else "project's head", project.config.seed)
    fabric = fabric_on("cpu" if asked["architecture"] == FROZEN else device)
    return _Trainer(learner, fabric, n_classes, frames, inputs, pieces, seed, progress)


def at_most(n: int, ids: Sequence[str], seed: int) -> list[str]:
    """So many of these, drawn at random, in their order."""
    drawn = np.random.default_rng(stream_seed("frames that are taught", seed)).permutation(len(ids))[:n]
    return [ids[position] for position in sorted(drawn)]


def _scaled(window: Window, shape: Sequence[int], size: int) -> Window:
    """The window in frames that were stretched to a square, rounded outwards."""
    (top, bottom), (left, right) = (
        (low * size // side, -(-(low + length) * size // side))
        for low, length, side in ((window.y, window.height, shape[0]), (window.x, window.width, shape[1]))
    )
    return Window(window.id, left, top, right - left, bottom - top)


def _history_row(model: TrainedModel) -> dict[str, Any]:
    facts = model.facts
    dice = facts["dice"]["mean"] if facts["dice"] else [None] * 3
    return {
        "model": model.number,
        "round": facts["round"],
        "strategy": facts["strategy"] or "",
        "architecture": model.network["architecture"],
        **{name: facts[name] for name in ("frames", "windows", "pixels", "outline")},
        "held_out": len(facts["held_out"]),
        **{f"dice{of}": "" if v is None else f"{v:.4f}" for of, v in zip(("", "_low", "_high"), dice, strict=True)},
    }

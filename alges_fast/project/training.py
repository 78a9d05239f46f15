"""The step that trains the project's model on all labels, and says how good it is from frames that it held out.

Two models are trained: the one that is measured has not seen the held-out frames, the one that is kept has seen all. A
third, trained on half of the frames, tells what doubling the labels was worth: the only ground for saying what another
round would bring. Where rounds of random frames are there to compare with, more tell what choosing saved.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from alges_fast import atomic
from alges_fast.annotation.exports import csv_text
from alges_fast.data.frames import FrameSet
from alges_fast.errors import UserError
from alges_fast.experiment.annotator import Labelled
from alges_fast.experiment.config import RunConfig
from alges_fast.experiment.learner import Training, WholeNetwork
from alges_fast.experiment.metrics import SegmentationCounts
from alges_fast.experiment.processes import launch
from alges_fast.experiment.training import evaluate
from alges_fast.models import FROZEN
from alges_fast.models.saved import Card
from alges_fast.project import network
from alges_fast.project.choosing import strategy_of
from alges_fast.project.folder import HISTORY, MODEL, Project, TrainedModel
from alges_fast.project.labels import Labels, read_labels
from alges_fast.project.pool import Progress, decoded, list_pool, silent
from alges_fast.random_streams import stream_seed
from alges_fast.strategies import get_strategy
from alges_fast.windows import Window

ENOUGH = 10
"""Annotated frames from which on a fifth is held out."""
TELLING = 5
"""Held-out frames from which on an interval means something."""
RANDOM = ("random", "stratified-random")
"""Strategies whose frames stand for the pool."""
RESAMPLES = 1000


@dataclass(frozen=True)
class TrainSettings:
    """Which network, and how. What is None is as for the newest model; the first is frozen.

    Args:
        architecture: frozen, a head over the project's encoder, in seconds; or a network of
            segmentation-models-pytorch, such as unet, all of whose weights are trained as `run` trains them.
        encoder, encoder_weights: of such a network.
        epochs, batch_size, lr: of its training, from scratch each time.
        device: auto, cpu or cuda.
    """

    architecture: str | None = None
    encoder: str | None = None
    encoder_weights: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def over(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """The whole of what names and trains the network, as model.json keeps it.

        Raises:
            UserError: a setting of a whole network for a frozen one, or one that is out of range.
        """
        given = {name: value for name, value in vars(self).items() if name != "device" and value is not None}
        if self.architecture not in (None, before["architecture"]):
            before = {"architecture": self.architecture}
        if {**before, **given}["architecture"] == FROZEN:
            if more := [name for name in given if name != "architecture"]:
                raise UserError(
                    f"--{more[0]} is of a whole network: give --architecture too, such as --architecture unet (the "
                    "encoder of a frozen one is given to `new`)"
                )
            return {"architecture": FROZEN}
        values = {**WHOLE, **before, **given}
        config = RunConfig(**values)  # it says what is out of range
        return {name: getattr(config, name) for name in values}


WHOLE: Mapping[str, Any] = {"encoder": "", "encoder_weights": None, "epochs": 50, "batch_size": 8, "lr": 1e-3}
"""Settings of a whole network where nothing is asked for."""


@dataclass(frozen=True)
class HeldOut:
    """Which annotated frames measure. whole_videos: whether none of their videos has a frame in training."""

    ids: tuple[str, ...]
    whole_videos: bool


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
    if newest is None or not project.known_to(newest) or asked != before:
        _train(project, asked, settings.device, progress)
    atomic.write_text(project.root / HISTORY, csv_text([_history_row(model) for model in project.models]))
    return project.models[-1]


def hold_out(videos: Mapping[str, str], before: Collection[str]) -> HeldOut | None:
    """A fifth of the frames, by video where that can be; None where there are too few.

    Args:
        videos: annotated frame -> its video.
        before: what was held out before; it stays so, for the curve to be one.
    """
    if len(videos) < ENOUGH:
        return None
    target = len(videos) // 5
    groups: dict[str, list[str]] = {}
    for id, video in videos.items():
        groups.setdefault(video, []).append(id)
    held = {videos[id] for id in before if id in videos}
    chosen: list[str] = []
    for video in sorted(groups, key=lambda video: (video not in held, _shuffled(video))):
        if len(chosen) < target and len(chosen) + len(groups[video]) <= len(videos) // 3:
            chosen += groups[video]
    if chosen:
        return HeldOut(tuple(id for id in videos if id in set(chosen)), True)
    known = set(before)
    order = sorted(videos, key=lambda id: (id not in known, _shuffled(id)))
    return HeldOut(tuple(id for id in videos if id in set(order[:target])), False)


def dice_with_intervals(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Dice and its 95 % interval from resampled frames, mean and by class.

    Args:
        counts: (N, 3, K) pixels right, of the truth, predicted, as `SegmentationCounts.per_image` has them.

    Returns:
        "mean" and "classes": [value, low, high], None where not defined; low and high from `TELLING` frames on.
    """
    whole = _dice(counts.sum(0))
    draws = None
    if len(counts) >= TELLING:
        draws = np.stack([_dice(counts[rows].sum(0)) for rows in _resamples(len(counts))])
    return {
        "mean": _interval(_mean(whole), None if draws is None else [_mean(row) for row in draws]),
        "classes": [
            _interval(float(value), None if draws is None else draws[:, k].tolist()) for k, value in enumerate(whole)
        ],
    }


def gain_with_interval(more: NDArray[np.int64], fewer: NDArray[np.int64]) -> list[float | None]:
    """[difference, low, high] of the mean Dice of two models on the same held-out frames, resampled together."""
    pairs = None
    if len(more) >= TELLING:
        pairs = [_mean(_dice(more[rows].sum(0))) - _mean(_dice(fewer[rows].sum(0))) for rows in _resamples(len(more))]
    return _interval(_mean(_dice(more.sum(0))) - _mean(_dice(fewer.sum(0))), pairs)


def _train(project: Project, asked: Mapping[str, Any], device: str, progress: Progress) -> None:
    config = project.config
    labels = read_labels(project)
    pool, images = decoded(list_pool(project), config.image_size, progress)
    rows = {frame.id: row for row, frame in enumerate(pool.frames)}
    if unread := [id for id in labels.masks if id not in rows]:
        raise UserError(f"{unread[0]} is labelled and cannot be read: {pool.left_out.reasons[unread[0]]}")
    videos = {id: pool.by_id[id].video for id in labels.masks}
    at = [rows[id] for id in labels.masks]
    data: _Data
    if asked["architecture"] == FROZEN:
        frozen = network.frozen(project, [frame.id for frame in pool.frames], images, progress)
        data = _Maps(project, labels, frozen, at)
    else:
        data = _Frames(project, labels, videos, images[at], asked, device)
    before = project.models[-1].facts["held_out"] if project.models else []
    held = hold_out(videos, before)
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
    if held is not None:
        seen = [id for id in everything if id not in held.ids]
        half = sorted(seen, key=_shuffled)[: len(seen) // 2]
        comparison = _comparison(project, seen, held.ids)
        n_frames = len(everything) + len(seen) + len(half) + (0 if comparison is None else comparison.n_frames)
        data.shown = Shown(progress, n_frames)
        counts = data.counts(data.fit(seen), held.ids)
        fewer = data.counts(data.fit([id for id in seen if id in set(half)]), held.ids)
        facts["dice"] = dice_with_intervals(counts)
        facts["gain"] = gain_with_interval(counts, fewer)
        facts["saving"] = None if comparison is None else comparison.saving(data)
    else:
        data.shown = Shown(progress, len(everything))
    model = data.fit(everything)
    number = project.models[-1].number + 1 if project.models else 0
    folder = project.root / "models" / f"{number:03d}"
    network.save(folder, model, data.card())
    atomic.write_json(folder / MODEL, facts)
    project.forget()


@dataclass
class Shown:
    """Progress of several trainings, in frames of their training sets."""

    progress: Progress
    n_frames: int
    done: float = 0

    def add(self, frames: float) -> None:
        self.done += frames
        self.progress("training", round(self.done), self.n_frames)


class _Data(ABC):
    """The labelled frames as a model is trained and measured on them."""

    shown: Shown

    @abstractmethod
    def fit(self, ids: Sequence[str]) -> nn.Module:
        """A model trained on these frames."""

    @abstractmethod
    def counts(self, model: Any, ids: Sequence[str]) -> NDArray[np.int64]:
        """(N, 3, K) counts of a model on these frames, at the model's image size."""

    @abstractmethod
    def card(self) -> Card:
        """What a model's file says."""


def _resized(labels: Labels, size: int) -> NDArray[np.uint8]:
    """(N, size, size) masks."""
    return np.stack(
        [
            np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
            for mask in labels.masks.values()
        ]
    )


class _Frames(_Data):
    """For a whole network: their pictures."""

    def __init__(
        self,
        project: Project,
        labels: Labels,
        videos: Mapping[str, str],
        images: NDArray[np.uint8],
        asked: Mapping[str, Any],
        device: str,
    ) -> None:
        size = project.config.image_size
        self.project = project
        self.config = RunConfig(**asked, image_size=size)
        self.learner = WholeNetwork(self.config, len(project.config.classes))
        self.fabric = launch(device, self.config.precision).fabric
        ids = tuple(labels.masks)
        of = tuple(videos.values())
        self.frames = FrameSet(ids=ids, videos=of, clips=of, images=images, masks=_resized(labels, size))
        self.pieces = {
            id: [id] if windows is None else [_scaled(w, labels.masks[id].shape, size) for w in windows]
            for id, windows in project.labelled.items()
        }

    def fit(self, ids: Sequence[str]) -> nn.Module:
        seed = stream_seed("project's network", self.project.config.seed)
        model = self.learner.new_network(len(self.project.config.classes), seed)
        labelled = Labelled(self.frames, tuple(piece for id in ids for piece in self.pieces[id]))
        training = Training(
            labelled=labelled,
            inputs=self.frames.images,
            strategy=get_strategy("random")(),
            seed=seed,
            round=0,
            on_batch=lambda n: self.shown.add(n / self.config.epochs),
        )
        self.learner.train(self.fabric, model, training)
        return model

    def counts(self, model: Any, ids: Sequence[str]) -> NDArray[np.int64]:
        chosen = self.frames.subset([self.frames.index(id) for id in ids])
        n_classes = len(self.project.config.classes)
        found = evaluate(self.fabric, model, chosen, n_classes, transform=self.learner.transform)
        return found.per_image.cpu().numpy()

    def card(self) -> Card:
        return self.learner.card(self.project.config.classes)


def _scaled(window: Window, shape: Sequence[int], size: int) -> Window:
    """The window in frames that were stretched to a square, rounded outwards."""
    (top, bottom), (left, right) = (
        (low * size // side, -(-(low + length) * size // side))
        for low, length, side in ((window.y, window.height, shape[0]), (window.x, window.width, shape[1]))
    )
    return Window(window.id, left, top, right - left, bottom - top)


class _Maps(_Data):
    """For a head: the frozen encoder's maps."""

    def __init__(self, project: Project, labels: Labels, frozen: network.Frozen, rows: Sequence[int]) -> None:
        self.project = project
        self.encoder = frozen.encoder
        self.at = {id: number for number, id in enumerate(labels.masks)}
        self.maps = torch.from_numpy(np.stack([frozen.maps.values[row] for row in rows])).float()
        self.masks = torch.from_numpy(_resized(labels, project.config.image_size))

    def card(self) -> Card:
        return network.head_card(self.project, self.encoder.trunk)

    def fit(self, ids: Sequence[str]) -> nn.Module:
        chosen = [self.at[id] for id in ids]
        seed = stream_seed("project's head", self.project.config.seed)
        head = network.new_head(self.project, self.encoder, seed)
        network.fit_head(head, self.maps[chosen], self.masks[chosen].numpy(), seed)
        self.shown.add(len(ids))
        return head

    @torch.no_grad()
    def counts(self, model: Any, ids: Sequence[str]) -> NDArray[np.int64]:
        found = SegmentationCounts(len(self.project.config.classes))
        for id in ids:
            at = self.at[id]
            logits: Tensor = model(self.maps[at][None])
            logits = F.interpolate(logits, self.masks.shape[1:], mode="bilinear", align_corners=False)
            found.update(logits.argmax(1), self.masks[at][None])
        return found.per_image.numpy()


@dataclass(frozen=True)
class _Comparison:
    """Frames that were chosen, and random ones of the same project, to train on as many of each.

    Attributes:
        chosen, random: in the order in which they were picked, none of them held out.
        held_out: frames that were drawn at random too: they favour neither.
        strategies: that chose.
    """

    chosen: Sequence[str]
    random: Sequence[str]
    held_out: Sequence[str]
    strategies: Sequence[str]

    @property
    def sizes(self) -> list[int]:
        """Numbers of random frames to train on, the second of them as many as of the chosen."""
        n = min(len(self.chosen), len(self.random))
        return [n // 2, n, *([len(self.random)] if len(self.random) > n else [])]

    @property
    def n_frames(self) -> int:
        return self.sizes[1] + sum(self.sizes)

    def saving(self, data: _Data) -> dict[str, Any]:
        """What as many chosen frames reach, and how many random ones reach that."""
        n = self.sizes[1]
        reached = data.counts(data.fit(self.chosen[:n]), self.held_out)
        random = [data.counts(data.fit(self.random[:size]), self.held_out) for size in self.sizes]
        return {
            "frames": n,
            "held_out": len(self.held_out),
            "strategies": list(self.strategies),
            "dice": _mean(_dice(reached.sum(0))),
            "random_dice": _mean(_dice(random[1].sum(0))),
            "difference": gain_with_interval(reached, random[1]),
            "random_frames": frames_for(
                _mean(_dice(reached.sum(0))), self.sizes, [_mean(_dice(counts.sum(0))) for counts in random]
            ),
            "most": self.sizes[-1],
        }


def _comparison(project: Project, seen: Collection[str], held: Collection[str]) -> _Comparison | None:
    """None where frames of either kind are fewer than `TELLING`: nothing can be known then."""
    chosen: dict[str, str] = {}
    random: list[str] = []
    whole = {id for id, windows in project.labelled.items() if windows is None}
    for round in project.rounds:
        ids = [pick for pick in round.picks or () if isinstance(pick, str) and pick in whole]
        if not ids:
            continue
        if (name := strategy_of(round.asked, round.model)) in RANDOM:
            random += ids
        else:
            chosen |= dict.fromkeys(ids, name)
    parts = (
        [id for id in chosen if id in seen],
        [id for id in random if id in seen],
        [id for id in random if id in held],
    )
    if min(map(len, parts)) < TELLING:
        return None
    return _Comparison(*parts, list(dict.fromkeys(chosen[id] for id in parts[0])))


def frames_for(dice: float, sizes: Sequence[int], reached: Sequence[float]) -> float | None:
    """How many random frames reach this Dice, on a curve that never falls; None where the last of it does not."""
    best = np.maximum.accumulate(reached)
    if not dice <= best[-1]:
        return None
    return float(np.interp(dice, best, sizes))


def _history_row(model: TrainedModel) -> dict[str, Any]:
    facts = model.facts
    row: dict[str, Any] = {
        "model": model.number,
        "round": facts["round"],
        "strategy": facts["strategy"] or "",
        "architecture": model.network["architecture"],
        "frames": facts["frames"],
        "windows": facts["windows"],
        "pixels": facts["pixels"],
        "outline": facts["outline"],
        "held_out": len(facts["held_out"]),
    }
    for name, value in zip(
        ("dice", "dice_low", "dice_high"), (facts["dice"] or {"mean": [None] * 3})["mean"], strict=True
    ):
        row[name] = "" if value is None else f"{value:.4f}"
    return row


def _dice(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) of (3, K) counts; NaN for a class that does not occur in the truth."""
    right, truth, predicted = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(truth > 0, 2 * right / (truth + predicted), np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _resamples(n: int) -> NDArray[np.int64]:
    return np.random.default_rng(stream_seed("held-out frames", n)).integers(0, n, (RESAMPLES, n))


def _interval(value: float, draws: Sequence[float] | None) -> list[float | None]:
    if np.isnan(value):
        return [None, None, None]
    known = [] if draws is None else [draw for draw in draws if not np.isnan(draw)]
    if len(known) < RESAMPLES // 2:
        return [value, None, None]
    low, high = np.percentile(known, [2.5, 97.5])
    return [value, float(low), float(high)]


def _shuffled(name: str) -> bytes:
    """A place in an order that new names do not change."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()

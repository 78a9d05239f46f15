"""The step that trains the project's model on all labels, and says how good it is from frames that it held out.

Two heads are trained: the one that is measured has not seen the held-out frames, the one that is kept has seen all. A
third, trained on half of the frames, tells what doubling the labels was worth: the only ground for saying what another
round would bring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from alges_fast import atomic
from alges_fast.annotation.exports import csv_text
from alges_fast.errors import UserError
from alges_fast.experiment.metrics import SegmentationCounts
from alges_fast.models.frozen import FrozenHead
from alges_fast.project import network
from alges_fast.project.folder import HISTORY, MODEL, Project, TrainedModel
from alges_fast.project.labels import Labels, read_labels
from alges_fast.project.pool import Progress, decoded, list_pool, silent
from alges_fast.random_streams import stream_seed

ENOUGH = 10
"""Annotated frames from which on a fifth is held out."""
TELLING = 5
"""Held-out frames from which on an interval means something."""
RESAMPLES = 1000


@dataclass(frozen=True)
class HeldOut:
    """Which annotated frames measure. whole_videos: whether none of their videos has a frame in training."""

    ids: tuple[str, ...]
    whole_videos: bool


def train_project(project: Project, progress: Progress = silent) -> TrainedModel:
    """Train on all labels; the newest model where it has seen them already. Rewrites history.csv.

    Raises:
        UserError: nothing is labelled, or a labelled frame cannot be read.
    """
    if not project.labelled:
        step = "import" if project.out else "next"
        raise UserError(
            f"nothing is labelled yet: {project.command(step, 'EXPORT' if step == 'import' else '-n 20')} first"
        )
    if not project.models or project.models[-1].n_imports != len(project.imports):
        _train(project, progress)
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


def _train(project: Project, progress: Progress) -> None:
    config = project.config
    labels = read_labels(project)
    pool, images = decoded(list_pool(project), config.image_size, progress)
    rows = {frame.id: row for row, frame in enumerate(pool.frames)}
    if unread := [id for id in labels.masks if id not in rows]:
        raise UserError(f"{unread[0]} is labelled and cannot be read: {pool.left_out.reasons[unread[0]]}")
    frozen = network.frozen(project, [frame.id for frame in pool.frames], images, progress)
    data = _Data(project, labels, frozen, [rows[id] for id in labels.masks])
    before = project.models[-1].facts["held_out"] if project.models else []
    held = hold_out({id: pool.by_id[id].video for id in labels.masks}, before)
    round = project.imports[-1].round
    facts: dict[str, Any] = {
        "imports": len(project.imports),
        "round": round,
        "strategy": project.rounds[round].asked.get("strategy"),
        "frames": len(labels.masks),
        "windows": labels.n_windows,
        "pixels": int(sum(counts.sum() for counts in labels.pixels.values())),
        "outline": labels.outline,
        "held_out": [] if held is None else list(held.ids),
        "whole_videos": held is not None and held.whole_videos,
        "dice": None,
        "gain": None,
    }
    everything = list(labels.masks)
    steps = 1 if held is None else 3
    if held is not None:
        seen = [id for id in everything if id not in held.ids]
        half = sorted(seen, key=_shuffled)[: len(seen) // 2]
        progress("training", 0, steps)
        counts = data.counts(data.fit(seen), held.ids)
        progress("training", 1, steps)
        fewer = data.counts(data.fit([id for id in seen if id in set(half)]), held.ids)
        facts["dice"] = dice_with_intervals(counts)
        facts["gain"] = gain_with_interval(counts, fewer)
    progress("training", steps - 1, steps)
    head = data.fit(everything)
    number = len(project.models)
    folder = project.root / "models" / f"{number:03d}"
    network.save_head(project, folder, head, frozen.encoder.trunk)
    atomic.write_json(folder / MODEL, facts)
    project.forget()


class _Data:
    """The labelled frames as the model's head sees them."""

    def __init__(self, project: Project, labels: Labels, frozen: network.Frozen, rows: Sequence[int]) -> None:
        size = project.config.image_size
        self.project = project
        self.encoder = frozen.encoder
        self.at = {id: number for number, id in enumerate(labels.masks)}
        self.maps = torch.from_numpy(np.stack([frozen.maps.values[row] for row in rows])).float()
        masks = [
            np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
            for mask in labels.masks.values()
        ]
        self.masks = torch.from_numpy(np.stack(masks))

    def fit(self, ids: Sequence[str]) -> FrozenHead:
        """A head trained on these frames."""
        chosen = [self.at[id] for id in ids]
        seed = stream_seed("project's head", self.project.config.seed)
        head = network.new_head(self.project, self.encoder, seed)
        network.fit_head(head, self.maps[chosen], self.masks[chosen].numpy(), seed)
        return head

    @torch.no_grad()
    def counts(self, head: nn.Module, ids: Sequence[str]) -> NDArray[np.int64]:
        """(N, 3, K) counts of a head on these frames, at the model's image size."""
        found = SegmentationCounts(len(self.project.config.classes))
        for id in ids:
            at = self.at[id]
            logits: Tensor = head(self.maps[at][None])
            logits = F.interpolate(logits, self.masks.shape[1:], mode="bilinear", align_corners=False)
            found.update(logits.argmax(1), self.masks[at][None])
        return found.per_image.numpy()


def _history_row(model: TrainedModel) -> dict[str, Any]:
    facts = model.facts
    row: dict[str, Any] = {
        "model": model.number,
        "round": facts["round"],
        "strategy": facts["strategy"] or "",
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

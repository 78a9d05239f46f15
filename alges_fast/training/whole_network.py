"""Training and evaluation of one model, through lightning-fabric: any device, any precision, frames kept as uint8.

No worker processes feed the device: the labelled frames of an active-learning round fit in its memory, where a batch is
one gather away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from alges_fast.data import FrameSet, to_input
from alges_fast.losses import labelled_cross_entropy
from alges_fast.models.batch_norm import has_statistics_of_one_value
from alges_fast.random_streams import stream_seed
from alges_fast.training.crops import Crop
from alges_fast.training.errors import Diverged, TooFewLabels
from alges_fast.training.metrics import SegmentationCounts

LossFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, images (B, 3, S, S) float32, masks (B, S, S) int64) -> scalar; `Strategy.loss` is one."""


def plain_loss(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """The loss of a training with no strategy of its own: cross-entropy over labelled pixels."""
    return labelled_cross_entropy(model(images), masks)


MEMORY_FORMAT = torch.channels_last
"""Measured: a step of U-Net with ResNet-18 takes 0.65 to 0.97 of its time in torch's default layout (AVX-512)."""


def train(
    fabric: Fabric,
    model: nn.Module,
    frames: FrameSet,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    round: int,
    loss: LossFunction,
    transform: Callable[[Tensor], Tensor] = to_input,
    crops: Sequence[Crop] | None = None,
    on_batch: Callable[[float], None] = lambda images: None,
) -> float:
    """Train a model in place with Adam(0.9, 0.999) and return the mean loss of the last epoch.

    Args:
        fabric: launched; says on which device and in which precision.
        model: on any device; left on fabric's, in eval mode.
        frames: the labelled frames.
        epochs, batch_size, lr: as usual. An epoch's last, smaller batch is kept; one of a single image joins the batch
            before it, because batch normalisation cannot learn from one image.
        seed, round: fix the order in which frames are shown, and dropout. Global generators are left as they were.
        loss: called with the model as fabric wraps it.
        transform: makes the model's input of a batch of frames, on the device.
        crops: what to show of the frames instead of each of them whole. Crops of one size make a batch, of as many
            pixels as batch_size frames.
        on_batch: called with the number of images after each step (of crops, what they are worth in pixels), without
            waiting for the device.

    Raises:
        TooFewLabels: the model's batch normalisation needs more than one image.
        Diverged: the loss is not finite.
    """
    device = fabric.device
    model.to(device, memory_format=MEMORY_FORMAT).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999), fused=True)
    wrapped, optimizer = fabric.setup(model, optimizer)
    images = torch.from_numpy(np.array(frames.images)).to(device)
    masks = torch.from_numpy(np.array(frames.masks)).to(device)
    size = images.shape[-1]
    shown = list(crops) if crops is not None else [Crop(frame, 0, 0, size) for frame in range(len(frames))]
    alone: set[int] = set()  # sides of images that made a batch by themselves
    mean = math.nan
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # for dropout
        torch.manual_seed(stream_seed("dropout", seed, round))
        for epoch in range(epochs):
            total = torch.zeros((), device=device)
            for batch in batches_of_crops(shown, size, batch_size, stream_seed("shuffle", seed, round, epoch)):
                inputs = transform(cut_out(images, batch)).contiguous(memory_format=MEMORY_FORMAT)
                if len(batch) == 1 and batch[0].side not in alone:
                    alone.add(batch[0].side)
                    if has_statistics_of_one_value(model, inputs):
                        raise TooFewLabels("this model's batch normalisation cannot train on one image")
                value = loss(wrapped, inputs, cut_out(masks, batch).long())
                fabric.backward(value)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                total += value.detach() * len(batch)
                on_batch(sum(crop.side**2 for crop in batch) / size**2)
            mean = float(total) / len(shown)
            if not math.isfinite(mean):
                raise Diverged(f"training diverged in epoch {epoch + 1} (loss {mean})")
    model.eval()
    return mean


@torch.inference_mode()
def evaluate(
    fabric: Fabric,
    model: nn.Module,
    frames: FrameSet,
    n_classes: int,
    *,
    inputs: npt.NDArray[Any] | None = None,
    transform: Callable[[Tensor], Tensor] = to_input,
    batch_size: int = 16,
    group: dist.ProcessGroup | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> SegmentationCounts:
    """Counts of a model's predictions against the masks of all frames.

    Args:
        fabric: as for `train`.
        model: in eval mode, on fabric's device.
        frames: n_classes class ids in their masks.
        inputs: what the model is given of the frames, (N, C, h, w), where that is not their images.
        transform: makes the model's input of a batch of these, on the device.
        batch_size: images at a time.
        group: processes that each take every world_size-th frame and then all have the counts of all frames.
        on_batch: called with the number of images after each batch.
    """
    counts = SegmentationCounts(n_classes, device=fabric.device)
    rank, size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    for start in range(rank, len(frames), batch_size * size):
        rows = slice(start, start + batch_size * size, size)
        given = (frames.images if inputs is None else inputs)[rows]
        prediction = predict(fabric, model, given, size=frames.masks.shape[1:], transform=transform)
        counts.update(prediction, torch.from_numpy(np.array(frames.masks[rows])).to(fabric.device))
        on_batch(len(prediction) * size)
    return counts if group is None else counts.gather(group)


@torch.inference_mode()
def predict(
    fabric: Fabric,
    model: nn.Module,
    inputs: npt.NDArray[Any],
    *,
    size: Sequence[int],
    transform: Callable[[Tensor], Tensor] = to_input,
) -> Tensor:
    """Class ids (B, *size) int64 of what the model is given, (B, C, h, w), on the device.

    Logits on a coarser grid are enlarged bilinearly, and then decide.
    """
    batch = transform(torch.from_numpy(np.array(inputs)).to(fabric.device))
    with fabric.autocast():
        logits: Tensor = model(batch.contiguous(memory_format=MEMORY_FORMAT))
    if logits.shape[2:] != tuple(size):
        logits = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
    return logits.argmax(1)


def batches_of_crops(crops: Sequence[Crop], size: int, batch_size: int, seed: int) -> list[list[Crop]]:
    """Crops of frames of this size in an order drawn from seed, cut into batches of one side each.

    A batch has at most as many pixels as batch_size frames, or one crop more; see `shuffled_batches`.
    """
    by_side: dict[int, list[Crop]] = {}
    for crop in crops:
        by_side.setdefault(crop.side, []).append(crop)
    batches = []
    for side, group in by_side.items():
        n = batch_size * (size // side) ** 2
        order = shuffled_batches(len(group), n, seed if side == size else stream_seed("crops", seed, side))
        batches += [[group[i] for i in chosen] for chosen in order]
    if len(by_side) == 1:
        return batches
    return [batches[i] for i in np.random.default_rng(stream_seed("sides", seed)).permutation(len(batches))]


def cut_out(values: Tensor, crops: Sequence[Crop]) -> Tensor:
    """(B, ..., side, side) of (N, ..., S, S), for crops of one side."""
    if crops[0].side == values.shape[-1]:
        return values[torch.tensor([crop.frame for crop in crops], device=values.device)]
    return torch.stack([values[c.frame, ..., c.y : c.y + c.side, c.x : c.x + c.side] for c in crops])


def shuffled_batches(n: int, batch_size: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """0 to n - 1 in an order drawn from seed, cut into batches; a last batch of one joins the one before it."""
    order = np.random.default_rng(seed).permutation(n)
    batches = [order[start : start + batch_size] for start in range(0, n, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches

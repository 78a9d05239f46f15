"""Testing of a network, through lightning-fabric, frames shared out over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast.data import FrameSet, to_input
from alges_fast.models.coded_maps import KeptMaps
from alges_fast.training.metrics import SegmentationCounts
from alges_fast.training.optimising import MEMORY_FORMAT

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@torch.inference_mode()
def evaluate(
    fabric: Fabric,
    model: nn.Module,
    frames: FrameSet,
    n_classes: int,
    *,
    inputs: KeptMaps | None = None,
    transform: Callable[[Tensor], Tensor] = to_input,
    batch_size: int = 16,
    group: dist.ProcessGroup | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> SegmentationCounts:
    """Counts of a model's predictions against the masks of all frames.

    Args:
        fabric: launched; says on which device and in which precision.
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
    inputs: Tensor | npt.NDArray[Any],
    *,
    size: Sequence[int],
    transform: Callable[[Tensor], Tensor] = to_input,
) -> Tensor:
    """Class ids (B, *size) int64 of what the model is given, (B, C, h, w), on the device.

    Logits on a coarser grid are enlarged bilinearly, and then decide.
    """
    given = inputs if isinstance(inputs, Tensor) else torch.from_numpy(np.array(inputs))
    batch = transform(given.to(fabric.device))
    with fabric.autocast():
        logits: Tensor = model(batch.contiguous(memory_format=MEMORY_FORMAT))
    if logits.shape[2:] != tuple(size):
        logits = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
    return logits.max(1).indices  # those of `argmax`, which takes up to ten times as long on the CPU

"""Training of a frozen encoder's head: cross-entropy over labelled pixels, gathered and shuffled.

Pixels that are not labelled are not gathered, so a frame with one labelled window costs what its window costs.

On the CPU a step of a few hundred pixels runs on one thread. It takes a third of a millisecond in some twenty parallel
parts, and where another program holds one of the cores, every part waits for the thread that is not on one: 40 steps
then took 6 to 18 seconds on two threads, and 0.2 on one (bench/NOTES.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alges_fast.labels import UNLABELLED
from alges_fast.random_streams import stream_seed
from alges_fast.training.errors import Diverged, TooFewLabels
from alges_fast.training.optimising import MEMORY_FORMAT, LossFunction, one_cycle

PIXELS_A_THREAD = 8192
"""Pixels of a step that keep a thread busy for milliseconds, so that it is worth waiting for."""


def train_head(
    device: torch.device,
    model: nn.Module,
    features: Tensor,
    labels: NDArray[np.uint8],
    *,
    steps: int,
    pixels: int,
    lr: float,
    weight_decay: float,
    seed: int,
    round: int,
    loss: LossFunction,
    whole_frames: bool = False,
    on_step: Callable[[int], None] = lambda pixels: None,
) -> float:
    """Train a head in place with AdamW and a one-cycle learning rate; the mean loss of the last tenth of the steps.

    Args:
        device: where to train, in float32: a head has too little to do for less precision to save time.
        model: features to logits, each pixel by itself; left on the device, in eval mode.
        features: (N, C, h, w), on any device.
        labels: (N, h, w) class ids, UNLABELLED where a pixel is not labelled.
        steps, pixels, lr, weight_decay: pixels of a step; the learning rate's peak.
        seed, round: fix the order in which pixels are shown. Global generators are left as they were.
        loss: called with pixels as (1, C, rows, columns), their places lost; with whole_frames with maps.
        whole_frames: show frames, not pixels, for a loss that wants to know where they are; about `pixels` a step.
        on_step: called with the number of pixels after each step.

    Raises:
        TooFewLabels: no pixel has a label.
        Diverged: the loss is not finite.
    """
    model.to(device, memory_format=MEMORY_FORMAT).train()  # type: ignore[call-overload]
    optimizer = _AdamW(model, weight_decay)
    batches = _frames if whole_frames else _pixels
    total, counted = torch.zeros((), device=device), 0
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _threads(pixels):
        torch.manual_seed(stream_seed("dropout", seed, round))
        endless = batches(features, labels, pixels, stream_seed("shuffle", seed, round), device)
        for step, (inputs, truth) in zip(range(steps), endless, strict=False):
            value = loss(model, inputs, truth)
            value.backward()
            optimizer.step(one_cycle(step, steps, lr))
            if step >= steps - math.ceil(steps / 10):
                total += value.detach()
                counted += 1
            on_step(truth.numel())
    reached = float(total) / counted
    if not math.isfinite(reached):
        raise Diverged(f"training diverged (loss {reached})")
    model.eval()
    return reached


def labels_on(grid: tuple[int, int], masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The masks (N, H, W) at the centre of each of a grid's cells, (N, *grid)."""
    rows, columns = (
        (np.arange(cells) * side + side // 2) // cells for cells, side in zip(grid, masks.shape[1:], strict=True)
    )
    return masks[:, rows[:, None], columns]


@contextmanager
def _threads(pixels: int) -> Iterator[None]:
    """Within it torch has no more threads than a step of so many pixels keeps busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(pixels // PIXELS_A_THREAD, 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _AdamW:
    """AdamW(0.9, 0.999). torch's own looks for a GPU at every step, which takes longer than a head's whole step."""

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        self.parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.weight_decay = weight_decay
        self.mean = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.square = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move along the gradients, and forget them."""
        self.steps += 1
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        torch._foreach_lerp_(self.mean, gradients, 0.1)
        torch._foreach_mul_(self.square, 0.999)
        torch._foreach_addcmul_(self.square, gradients, gradients, 0.001)
        scale = torch._foreach_sqrt(self.square)
        torch._foreach_div_(scale, math.sqrt(1 - 0.999**self.steps))
        torch._foreach_add_(scale, 1e-8)
        torch._foreach_mul_(self.parameters, 1 - lr * self.weight_decay)
        torch._foreach_addcdiv_(self.parameters, self.mean, scale, -lr / (1 - 0.9**self.steps))
        for parameter in self.parameters:
            parameter.grad = None


def _pixels(
    features: Tensor, labels: NDArray[np.uint8], pixels: int, seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Labelled pixels without end, (1, C, rows, columns) and (1, rows, columns): oneDNN likes a square best."""
    labelled = labels != UNLABELLED
    if not labelled.any():
        raise TooFewLabels("no pixel of the labelled frames has a class")
    places = torch.from_numpy(labelled).to(features.device)
    points = features.permute(0, 2, 3, 1)[places].to(device)
    classes = torch.from_numpy(labels[labelled]).to(device)
    for chosen in _passes(len(points), pixels, seed):
        rows = next(rows for rows in range(math.isqrt(len(chosen)), 0, -1) if len(chosen) % rows == 0)
        batch = torch.from_numpy(chosen).to(device)
        inputs = points.index_select(0, batch).float().view(1, rows, -1, points.shape[1]).permute(0, 3, 1, 2)
        yield inputs, classes.index_select(0, batch).long().view(1, rows, -1)


def _frames(
    features: Tensor, labels: NDArray[np.uint8], pixels: int, seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Frames without end, (B, C, h, w) and (B, h, w)."""
    maps = features.to(device)
    classes = torch.from_numpy(labels).to(device)
    for chosen in _passes(len(maps), max(pixels // labels[0].size, 1), seed):
        batch = torch.from_numpy(chosen).to(device)
        yield maps[batch].float().contiguous(memory_format=MEMORY_FORMAT), classes[batch].long()


def _passes(n: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Positions 0 to n - 1 in one drawn order after another, so many at a time; the last few of a pass are left out."""
    size = min(size, n)
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(n)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]

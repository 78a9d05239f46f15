"""Training of a whole network through lightning-fabric: any device, any precision, frames kept as uint8.

Frames are shown whole, whatever part of them is labelled: a network learns what surrounds a pixel, and its batch
normalisation what frames are like. Two ways are here. By epochs it is the paper's: Adam at one learning rate. By steps
it suits a few labels: AdamW, a learning rate that rises and falls, frames moved about, and an average of the weights
in the end. A teacher may say what the pixels without a label are.

No worker processes feed the device: the labelled frames of an active-learning round fit in its memory, where a batch is
one gather away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from alges_fast.data import FrameSet, to_input
from alges_fast.labels import UNLABELLED
from alges_fast.losses import IGNORE, cross_entropy
from alges_fast.models.batch_norm import has_statistics_of_one_value
from alges_fast.random_streams import stream_seed
from alges_fast.training.augmentation import augmentation, augmented, kinds_of
from alges_fast.training.config import TrainConfig
from alges_fast.training.errors import Diverged, TooFewLabels
from alges_fast.training.optimising import MEMORY_FORMAT, LossFunction, one_cycle

if TYPE_CHECKING:
    from lightning_fabric import Fabric

AVERAGED = 0.1
"""Share of the steps that the average of the weights looks back on: the mean age of what it holds."""


def train(
    fabric: Fabric,
    model: nn.Module,
    frames: FrameSet,
    config: TrainConfig,
    *,
    seed: int,
    round: int,
    loss: LossFunction,
    transform: Callable[[Tensor], Tensor] = to_input,
    partial: bool = False,
    by_share: bool = False,
    soft: npt.NDArray[np.float16] | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> float:
    """Train a model in place and return the mean loss of the last epoch, or of the last tenth of the steps.

    With a budget in steps, and where frames are labelled in part, every labelled pixel counts alike, however few its
    frame has: the loss of a batch, a mean over its labelled pixels, is weighted by how many they are.

    Args:
        fabric: launched; says on which device and in which precision.
        model: on any device; left on fabric's, in eval mode.
        frames: what is shown; masks are UNLABELLED where a pixel is not labelled.
        config: `epochs` or `steps`, `batch_size`, `lr`, `augment`. A pass's last, smaller batch is
            kept; one of a single image joins the batch before it, because batch normalisation cannot learn from one.
        seed, round: fix the order in which frames are shown, how they are moved, and dropout. Global generators are
            left as they were.
        loss: called with the model as fabric wraps it.
        transform: makes the model's input of a batch of frames, on the device.
        partial: whether windows are labelled.
        by_share: draw frames in proportion to their labelled pixels, and have each count alike in its batch: every
            labelled pixel counts alike as well, and steps differ less. `loss` is not used.
        soft: (N, K, h, w) probabilities that a teacher gives the classes, on any grid. Pixels without a label learn
            these, and `loss` is not used.
        on_batch: called with the number of images after each step, without waiting for the device.

    Raises:
        TooFewLabels: the model's batch normalisation needs more than one image.
        Diverged: the loss is not finite.
    """
    device, lr = fabric.device, config.lr or 0.0
    labelled = float((frames.masks != UNLABELLED).mean())  # of the pixels: of a batch's, on average
    if config.steps is not None and soft is None and not labelled:
        raise TooFewLabels("no pixel of the labelled frames has a class")
    model.to(device, memory_format=MEMORY_FORMAT).train()  # type: ignore[call-overload]
    kind = torch.optim.Adam if config.steps is None else torch.optim.AdamW
    wrapped, optimizer = fabric.setup(model, kind(model.parameters(), lr=lr, betas=(0.9, 0.999), fused=True))
    images, masks = (torch.from_numpy(np.array(part)).to(device) for part in (frames.images, frames.masks))
    of_teacher = None if soft is None else torch.from_numpy(soft).to(device)
    n_pass = len(shuffled_batches(len(frames), config.batch_size, 0))
    n_steps = config.steps or (config.epochs or 0) * n_pass
    n_told = n_pass if config.steps is None else math.ceil(n_steps / 10)
    move = augmentation(kinds_of(config.augment), frames.masks.shape[1:])
    average = None
    if config.steps is not None:
        decay = 1 - 1 / max(AVERAGED * n_steps, 1)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    total, counted, mean = torch.zeros((), device=device), 0, math.nan
    was_alone = False  # whether an image made a batch by itself
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed("dropout", seed, round))
        batches = itertools.islice(
            _drawn(frames.masks, config.batch_size, seed, round)
            if by_share
            else _batches(len(frames), config.batch_size, seed, round),
            n_steps,
        )
        for step, positions in enumerate(batches):
            batch = torch.from_numpy(positions).to(device)
            taught = [] if of_teacher is None else [_enlarged(of_teacher[batch], masks.shape[1:])]
            shown, truth, *taught = augmented(move, images[batch], masks[batch], *taught)
            inputs, truth = transform(shown).contiguous(memory_format=MEMORY_FORMAT), truth.long()
            if len(batch) == 1 and not was_alone:
                was_alone = True
                if has_statistics_of_one_value(model, inputs):
                    raise TooFewLabels("this model's batch normalisation cannot train on one image")
            if taught:
                value = taught_loss(wrapped(inputs), truth, *taught)
            elif by_share:
                value = cross_entropy(wrapped(inputs), truth.masked_fill(truth == UNLABELLED, IGNORE))
            else:
                value = loss(wrapped, inputs, truth)
                if partial or config.steps is not None:
                    value = value * ((truth != UNLABELLED).float().mean() / labelled)
            fabric.backward(value)
            if config.steps is not None:
                optimizer.param_groups[0]["lr"] = one_cycle(step, n_steps, lr)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update_parameters(model)
            total += value.detach() * len(batch)
            counted += len(batch)
            on_batch(len(batch))
            if (step + 1) % n_told == 0 or step + 1 == n_steps:
                mean = float(total) / counted
                if not math.isfinite(mean):
                    raise Diverged(f"training diverged in step {step + 1} (loss {mean})")
                total, counted = torch.zeros_like(total), 0
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return mean


def taught_loss(logits: Tensor, masks: Tensor, soft: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of every pixel against its label or, where it has none, what a teacher says of it.

    logits: (B, K, S, S). masks: (B, S, S) int64, UNLABELLED where a pixel is not labelled. soft: (B, K, S, S), which
    sums to 1 over K.
    """
    known = (masks != UNLABELLED).unsqueeze(1)
    labels = F.one_hot(masks.where(known[:, 0], 0), logits.shape[1]).movedim(-1, 1)
    return -(torch.where(known, labels, soft) * logits.log_softmax(1)).sum(1).mean()


def shuffled_batches(n: int, batch_size: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """0 to n - 1 in an order drawn from seed, cut into batches; a last batch of one joins the one before it."""
    order = np.random.default_rng(seed).permutation(n)
    batches = [order[start : start + batch_size] for start in range(0, n, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def _batches(n: int, batch_size: int, seed: int, round: int) -> Iterator[npt.NDArray[np.int64]]:
    """Batches of one pass after another, without end."""
    for epoch in itertools.count():
        yield from shuffled_batches(n, batch_size, stream_seed("shuffle", seed, round, epoch))


def _drawn(masks: npt.NDArray[np.uint8], batch_size: int, seed: int, round: int) -> Iterator[npt.NDArray[np.int64]]:
    """Batches of frames drawn in proportion to their labelled pixels, without end."""
    labelled = (masks != UNLABELLED).sum((1, 2))
    generator = np.random.default_rng(stream_seed("frames by their labels", seed, round))
    while True:
        yield generator.choice(len(masks), batch_size, p=labelled / labelled.sum())


def _enlarged(soft: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(soft.float(), tuple(size), mode="bilinear", align_corners=False)

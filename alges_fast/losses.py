"""Losses whose last-layer gradient can be an embedding, the residual of any loss at the logits, and the loss that
networks are trained with, `labelled_cross_entropy`.

A loss of the first kind is any callable `loss(logits, target) -> scalar` over logits (B, K, *spatial) and class ids
(B, *spatial) in which `IGNORE`, torch's default ignore_index, marks a pixel that does not count. Active learning has no
labels, so the target is the model's own prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from alges_fast.labels import UNLABELLED

Loss = Callable[[Tensor, Tensor], Tensor]
IGNORE = -100


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over images of the mean cross-entropy of an image's counted pixels.

    Args:
        logits: (B, K, *spatial).
        target: (B, *spatial) int64 class ids, `IGNORE` where a pixel does not count.

    Returns:
        A scalar, in nats.
    """
    return _mean_over_pixels(F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none"), target)


def cross_entropy_with_dice(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """`cross_entropy` plus the soft Dice loss, 1 - (2 Σ p y + smooth) / (Σ p + Σ y + smooth), averaged over classes.

    Arguments and result as `cross_entropy`. Sums run over an image's counted pixels, one ratio per image and class.

    Reference:
        Milletari et al., "V-Net", 3DV 2016; the sum of both as in Isensee et al., "nnU-Net", Nature Methods 2021.
    """
    counted = (target != IGNORE).unsqueeze(1)
    onehot = F.one_hot(target.clamp(min=0), logits.shape[1]).movedim(-1, 1).to(logits.dtype) * counted
    probability = logits.softmax(1) * counted
    overlap = (probability * onehot).flatten(2).sum(2)
    total = (probability + onehot).flatten(2).sum(2)
    dice = 1 - (2 * overlap + smooth) / (total + smooth)
    return cross_entropy(logits, target) + dice.mean()


def focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Mean over images of the mean of (1 - p)^gamma (-ln p) over counted pixels, p the target class's probability.

    Arguments and result as `cross_entropy`.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, Eq. 4.
    """
    cost = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    # 1 - p without cancelling; above 0, where a power below 1 has no slope.
    others = (-torch.expm1(-cost)).clamp(min=torch.finfo(cost.dtype).tiny)
    return _mean_over_pixels(others**gamma * cost, target)


def labelled_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """The training loss: mean cross-entropy, in nats, over the labelled pixels of a batch; 0 where there is none.

    Args:
        logits: (B, K, *spatial).
        masks: (B, *spatial) int64 class ids, UNLABELLED where a pixel is not labelled.
    """
    total = F.cross_entropy(logits, masks, ignore_index=UNLABELLED, reduction="sum")
    return total / (masks != UNLABELLED).sum().clamp(min=1)


def loss_residual(logits: Tensor, *, loss: Loss | None = None, valid: Tensor | None = None) -> Tensor:
    """Residual of every pixel: its mean over an image's valid pixels, times features, is that image's gradient.

    Args:
        logits: (B, K, *spatial), of a floating type.
        loss: see the module's text; None is the cross-entropy against the prediction, in closed form. It is called on
            one image at a time, so whatever it averages over, images do not mix.
        valid: (B, *spatial) bool, the pixels that count; default all.

    Returns:
        (B, K, *spatial), in the logits' type (at least float32): n dL/dlogits with L the loss of one image and n its
        number of valid pixels. 0 at pixels that do not count, whatever the loss makes of them.

    Raises:
        ValueError: the loss does not return one value with a gradient; valid of another shape.
        TypeError: valid is not bool.
    """
    logits = logits.detach()
    check_valid(valid, (logits.shape[0], *logits.shape[2:]))
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    target = logits.argmax(1)  # the lowest class among equals, as torch.argmax documents
    if loss is None:
        residual = _cross_entropy_residual(logits, target)
    else:
        residual = _by_autograd(logits, target, loss, valid)
    return residual if valid is None else residual.masked_fill(~valid.unsqueeze(1), 0)


def check_valid(valid: Tensor | None, shape: tuple[int, ...]) -> None:
    """That these are pixels that count, of maps of this shape. Raises ValueError and TypeError."""
    if valid is None:
        return
    if not isinstance(valid, Tensor):
        raise TypeError(f"valid must be a tensor or None, got {type(valid).__name__}")
    if valid.shape != shape:
        raise ValueError(f"valid must have shape {shape}, got {tuple(valid.shape)}")
    if valid.dtype != torch.bool:
        raise TypeError(f"valid must be bool, got {str(valid.dtype).removeprefix('torch.')}")


def _by_autograd(logits: Tensor, target: Tensor, loss: Loss, valid: Tensor | None) -> Tensor:
    """One image at a time, its pixels that do not count marked in its target."""
    residual = torch.zeros_like(logits)
    for index in range(logits.shape[0]):
        image_target = target[index : index + 1]
        n_pixels = image_target.numel()
        if valid is not None:
            image_valid = valid[index : index + 1]
            image_target = image_target.masked_fill(~image_valid, IGNORE)
            n_pixels = int(image_valid.sum())
        if n_pixels:
            residual[index] = n_pixels * _gradient(loss, logits[index : index + 1], image_target)[0]
    return residual


def _mean_over_pixels(cost: Tensor, target: Tensor) -> Tensor:
    """(B, *spatial) costs, 0 where ignored -> mean over images of each image's mean over counted pixels."""
    n_pixels = (target != IGNORE).flatten(1).sum(1).clamp(min=1)
    return (cost.flatten(1).sum(1) / n_pixels).mean()


def _cross_entropy_residual(logits: Tensor, target: Tensor) -> Tensor:
    """p - onehot(target), at the target minus the sum of the other classes' p: p - 1 cancels near p = 1."""
    onehot = target.unsqueeze(1)
    # On a CPU torch.softmax rounds by where threads cut the batch, and an image's bits must not depend on the others.
    probability = logits.softmax(1) if logits.is_cuda else torch.cat([one.softmax(1) for one in logits.split(1)])
    residual = probability.scatter_(1, onehot, 0)
    return residual.scatter_(1, onehot, -residual.sum(1, keepdim=True))


def _gradient(loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
    with torch.enable_grad():
        logits = logits.clone().requires_grad_()
        value = loss(logits, target)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ValueError(
                f"loss must return one value with a gradient for logits of shape {tuple(logits.shape)} and a target of "
                f"shape {tuple(target.shape)}, got {_describe(value)}"
            )
        (gradient,) = torch.autograd.grad(value.sum(), logits)
    return gradient


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"shape {tuple(value.shape)}" + ("" if value.requires_grad else " without a gradient")

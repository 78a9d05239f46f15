"""The definition of `pixel_gradients` in plain PyTorch; every other backend is held against it.

One image at a time, in the accumulator's type. Scratch is (K + d) x pixels of one image; no (pixels x K x d) tensor.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from alges_fast.ops.problem import Problem


def unavailable() -> str | None:
    """Why this backend cannot run on this machine; it always can."""
    return None


def unsupported(problem: Problem) -> str | None:
    """Why this backend cannot run these inputs; it always can."""
    return None


def run(problem: Problem) -> dict[str, Tensor]:
    """All outputs asked for, in canonical shape."""
    images = [_one_image(problem, index) for index in range(problem.batch)]
    return {name: torch.stack([image[name] for image in images]) for name in problem.outputs}


def _one_image(problem: Problem, index: int) -> dict[str, Tensor]:
    dtype, outputs = problem.accumulator, problem.outputs
    features = problem.features[index].to(dtype)
    valid = torch.ones_like(features[0], dtype=torch.bool) if problem.valid is None else problem.valid[index]
    n_classes = problem.classes
    result: dict[str, Tensor] = {}

    if problem.needs_prediction:
        if problem.logits is None:
            padding = tuple(size // 2 for size in problem.kernel)
            logits = F.conv3d(features[None], problem.weight, problem.bias, padding=padding)[0]
        else:
            logits = problem.logits[index].to(dtype)
        prediction = _argmax_lowest(logits)
        onehot = F.one_hot(prediction, n_classes).movedim(-1, 0).bool()
        # e = exp(s - max s) is 1 at the prediction: softmax = e / (1 + others), and 1 - p = others / (1 + others).
        shifted = logits - logits.gather(0, prediction[None])
        exps = shifted.exp()
        exps_others = exps.masked_fill(onehot, 0)
        others = exps_others.sum(0)
        total = 1 + others

    if problem.residual is not None:
        residual = problem.residual[index].to(dtype)
    else:
        # r = p - onehot; at the prediction minus the sum of the other classes' p, because p - 1 cancels near p = 1.
        residual = torch.where(onehot, -others, exps) / total
    residual = residual.masked_fill(~valid, 0)

    if "image" in outputs:
        # Eq. 4: the mean over valid pixels of r ⊗ z̃; an image with none is all zeros.
        result["image"] = _outer_sum(residual, features, problem.kernel) / valid.sum().clamp(min=1)
    if outputs & {"semantic", "norm_map"}:
        # The gradient of a pixel is rank one: ‖r ⊗ z̃‖_F = ‖r‖ ‖z̃‖.
        norms = residual.square().sum(0).sqrt() * _patch_sum(features.square().sum(0), problem.kernel).sqrt()
        norms = norms.masked_fill(~valid, 0)
    if "norm_map" in outputs:
        result["norm_map"] = norms
    if outputs & {"semantic", "semantic_vector", "class_pixels"}:
        counted = onehot & valid
    if "semantic" in outputs:
        result["semantic"] = norms.masked_fill(~counted, 0).flatten(1).sum(1)
    if "semantic_vector" in outputs:
        result["semantic_vector"] = _outer_sum(residual.masked_fill(~counted, 0), features, problem.kernel)
    if "class_pixels" in outputs:
        result["class_pixels"] = counted.flatten(1).sum(1)
    if "entropy" in outputs:
        # -Σ p ln p = ln Σe - Σ e ln e / Σe; a class with e = 0 adds nothing, and ln e would be -inf there.
        weighted = torch.where(exps > 0, exps * shifted, exps).masked_fill(onehot, 0).sum(0)
        result["entropy"] = (others.log1p() - weighted / total).masked_fill(~valid, 0).sum()
    if "margin" in outputs:
        # p of the best class less p of the runner-up, which for a single class is 0.
        result["margin"] = ((1 - exps_others.amax(0)) / total).masked_fill(~valid, 0).sum()
    if "confidence" in outputs:
        result["confidence"] = total.reciprocal().masked_fill(~valid, 0).sum()
    return result


def _argmax_lowest(logits: Tensor) -> Tensor:
    """Index of the largest logit over classes, the lowest among equals (torch.argmax promises no order)."""
    largest = logits == logits.amax(0)
    classes = torch.arange(logits.shape[0], device=logits.device).view(-1, *[1] * (logits.ndim - 1))
    # A NaN equals nothing: the sentinel K is clamped, and the NaN reaches the image through its logit.
    return torch.where(largest, classes, logits.shape[0]).amin(0).clamp(max=logits.shape[0] - 1)


def _outer_sum(residual: Tensor, features: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """Σ over pixels of r ⊗ z̃: residual (K, D, H, W), features (d, D, H, W) -> (K, d, *kernel)."""
    padded = _pad(features, kernel)
    shape = residual.shape[1:]
    flat = residual.flatten(1)
    taps = [flat @ window.flatten(1).mT for window in _windows(padded, shape, kernel)]
    return torch.stack(taps, -1).view(*taps[0].shape, *kernel)


def _patch_sum(image: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """Zero-padded box sum of (D, H, W)."""
    return torch.stack(list(_windows(_pad(image, kernel), image.shape, kernel))).sum(0)


def _pad(tensor: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    margins = [size // 2 for size in reversed(kernel) for _ in range(2)]
    return F.pad(tensor, margins)


def _windows(padded: Tensor, shape: torch.Size, kernel: tuple[int, int, int]) -> list[Tensor]:
    """The padded map seen from each kernel offset, in the order of the kernel's elements."""
    depth, height, width = shape
    return [
        padded[..., z : z + depth, y : y + height, x : x + width]
        for z, y, x in itertools.product(*(range(size) for size in kernel))
    ]
